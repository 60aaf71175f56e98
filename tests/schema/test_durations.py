from __future__ import annotations

import pytest

from autoad.errors import UsageError
from autoad.schema import parse_duration


def test_durations() -> None:
    texts = ("90", "45s", "20m", "1h30m", "1.5h", " 10m ")
    assert [parse_duration(text) for text in texts] == [90, 45, 1200, 5400, 5400, 600]


@pytest.mark.parametrize("text", ["", "0", "0h0m", "m", "5 minutes", "-3", "1m1h", "nan"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        parse_duration(text)
