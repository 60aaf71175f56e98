from __future__ import annotations

import pytest

from autoad.models import check_model_name
from autoad.search.plan import usable_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bottle", "bottle"),
        ("bottle-20260101-101010", "bottle-20260101-101010"),
        ("my bottles (new)", "my-bottles-new"),
        (".hidden", "hidden"),
        ("été 2026", "t-2026"),
        ("瓶", "search"),
        ("", "search"),
        ("x" * 300, "x" * 80),
    ],
)
def test_any_folder_gives_a_name_that_a_model_can_have(text: str, name: str) -> None:
    assert usable_name(text) == name
    assert check_model_name(f"{name}-20260101-101010")
