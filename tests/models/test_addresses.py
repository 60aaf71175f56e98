from __future__ import annotations

import pytest

from autoad.errors import UsageError
from autoad.models import Address, check_model_name, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("bottle", Address("bottle")),
        ("bottle/3", Address("bottle", version=3)),
        ("bottle@champion", Address("bottle", alias="champion")),
        ("bottle@previous", Address("bottle", alias="previous")),
        ("bottle@canary", Address("bottle", alias="canary")),
        ("bottle@shadow", Address("bottle", alias="shadow")),
        ("3/3", Address("3", version=3)),
        ("line-2.left_A", Address("line-2.left_A")),
        ("x" * 100 + "/999999999", Address("x" * 100, version=999_999_999)),
    ],
)
def test_an_address_is_read_with_and_without_its_prefix(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(f"models:/{text}") == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a model's name must be"),
        ("models:/", "a model's name must be"),
        ("./x/3", "a model's name must be"),
        ("../x", "a model's name must be"),
        ("/x/3", "a model's name must be"),
        ("@champion", "a model's name must be"),
        ("a b@champion", "a model's name must be"),
        ("models:/models:/bottle", "a model's name must be"),
        ("bottle/", "a version must be a number"),
        ("bottle/x", "a version must be a number"),
        ("bottle/-1", "a version must be a number"),
        ("bottle/1/2", "a version must be a number"),
        ("bottle/\N{SUPERSCRIPT THREE}", "a version must be a number"),
        ("bottle/1234567890", "a version must be a number"),
        ("bottle@champoin", "unknown alias 'champoin'. Did you mean 'champion'"),
        ("bottle@", "unknown alias"),
        ("bottle@champion/3", "unknown alias"),
        ("bottle/3@champion", "a model's name must be"),
    ],
)
def test_what_is_no_address_is_refused_by_what_is_wrong_with_it(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 101, ".."])
def test_a_name_that_cannot_be_a_folder_or_part_of_an_address_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="at most 100 letters"):
        check_model_name(name)


@pytest.mark.parametrize("name", ["a", "7", "Bottle", "bottle-20260101-101010", "x" * 100])
def test_a_name_that_can_be_is_given_back(name: str) -> None:
    assert check_model_name(name) == name
