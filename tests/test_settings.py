from __future__ import annotations

import psutil
import pytest

from autoad.errors import UsageError
from autoad.search.memory import free_memory
from autoad.settings import get_settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("20 gb", 20 * 10**9), ("1.5GiB", 1_610_612_736), ("500M", 5 * 10**8), ("4096", 4096)],
)
def test_a_size_has_a_unit(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_FEATURES_LIMIT", text)
    assert get_settings().features_limit == size


def test_each_size_is_named_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_MEMORY_LIMIT", "8GB")
    assert get_settings().memory_limit == 8 * 10**9
    assert get_settings().features_limit is None
    monkeypatch.setenv("AUTOAD_MEMORY_LIMIT", "plenty")
    with pytest.raises(UsageError, match=r"AUTOAD_MEMORY_LIMIT must be a size .* but got 'plenty'"):
        get_settings()


def test_trials_may_take_what_is_free_or_less(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory().available
    monkeypatch.delenv("AUTOAD_MEMORY_LIMIT", raising=False)
    assert 0.5 * free < free_memory() < free
    monkeypatch.setenv("AUTOAD_MEMORY_LIMIT", "1MiB")
    assert free_memory() == 2**20
    monkeypatch.setenv("AUTOAD_MEMORY_LIMIT", "1000TB")
    assert free_memory() < free


@pytest.mark.parametrize("text", ["much", "-3GB", "0", "0GB", "20 parsecs", "GB", "1e9", "nan"])
def test_a_size_that_is_none_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_FEATURES_LIMIT", text)
    with pytest.raises(UsageError, match=f"AUTOAD_FEATURES_LIMIT must be a size such as 20GB .* but got '{text}'"):
        get_settings()


def test_no_limit_is_set_by_default_or_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOAD_FEATURES_LIMIT", raising=False)
    assert get_settings().features_limit is None
    monkeypatch.setenv("AUTOAD_FEATURES_LIMIT", "")
    assert get_settings().features_limit is None
