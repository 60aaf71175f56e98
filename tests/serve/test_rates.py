from __future__ import annotations

import pytest

from autoad.serve.faults import RateError
from autoad.serve.rates import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(limiter: RateLimiter, key: str, pictures: int = 1) -> int:
    """After how many seconds it may be asked again; 0 if it need not."""
    try:
        limiter.take(key, pictures)
    except RateError as error:
        return error.seconds
    return 0


def test_a_key_has_its_rate_and_no_more() -> None:
    clock = Clock()
    limiter = RateLimiter(10, clock)
    taken = 0
    for step in range(1000):
        clock.now = step / 100
        taken += not refused(limiter, "a")
    assert 10 * 9.9 <= taken <= 10 * 10 + 11  # a second's worth is in the bucket at first


def test_a_large_request_is_taken_whole_and_made_up_for() -> None:
    clock = Clock()
    limiter = RateLimiter(10, clock)
    limiter.take("a", 64)
    seconds = refused(limiter, "a")
    assert seconds == 6  # 54 too many
    clock.now = 5.3
    assert refused(limiter, "a") == 1
    clock.now = 6.0
    assert refused(limiter, "a", 64) == 0


@pytest.mark.parametrize("rate", [0.2, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("pictures", [1, 2, 7])
def test_whoever_waits_as_long_as_was_said_is_let_in(rate: float, pictures: int) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, clock)
    for _ in range(50):
        seconds = refused(limiter, "a", pictures)
        if seconds:
            clock.now += seconds
            assert refused(limiter, "a", pictures) == 0


def test_keys_have_buckets_of_their_own() -> None:
    limiter = RateLimiter(1, Clock())
    assert refused(limiter, "a", 5) == 0
    assert refused(limiter, "a") > 0
    assert refused(limiter, "b") == 0
    with pytest.raises(RateError, match="this key may have 1 pictures a second scored by each replica; ask again in 5"):
        limiter.take("a", 1)


def test_a_bucket_holds_no_more_than_a_second() -> None:
    clock = Clock()
    limiter = RateLimiter(2, clock)
    limiter.take("a", 1)
    clock.now = 1000.0
    assert [refused(limiter, "a") for _ in range(4)] == [0, 0, 1, 1]


def test_without_a_rate_there_is_no_limit() -> None:
    limiter = RateLimiter(None, Clock())
    assert not any(refused(limiter, "a", 1000) for _ in range(100))
