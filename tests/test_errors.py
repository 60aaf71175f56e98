from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from autoad import errors
from autoad.errors import (
    AutoADError,
    BusyError,
    NotFoundError,
    PromotionError,
    RefusedError,
    ServerError,
    StorageFullError,
    UnknownNameError,
)

MADE: list[AutoADError] = [
    PromotionError("refused", ["one", "two"]),
    BusyError("later", "queue_full", 429),
    NotFoundError("no", "unknown_name", 404),
    RefusedError("no", "bad_request", 400),
    ServerError("no", "failed", 500),
    StorageFullError(Path("x"), 1, 2),
    UnknownNameError("model", "bottel", ["bottle", "cap"]),
]


@pytest.mark.parametrize("name", [name for name in errors.__all__ if isinstance(getattr(errors, name), type)])
def test_every_error_can_be_sent_from_another_process(name: str) -> None:
    kind = getattr(errors, name)
    error = next((one for one in MADE if type(one) is kind), None) or kind("what is wrong")
    again = pickle.loads(pickle.dumps(error))  # what Ray does
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_unknown_name_comes_with_the_nearest() -> None:
    assert str(MADE[-1]) == "unknown model 'bottel'. Did you mean 'bottle'? Choices: bottle, cap."
