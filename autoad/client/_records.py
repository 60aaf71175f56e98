"""From what a caller gives to records, and from replies to records."""

from __future__ import annotations

import functools
import re
from typing import Any, TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from autoad.errors import ServerError, UsageError

__all__ = ["make_record", "model_version", "read_record", "segment"]

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

_VALUE_ERROR = "Value error, "


def make_record(kind: type[R], **values: Any) -> R:
    """A record to be sent.

    Raises:
        UsageError: a value is not as it must be; the message names it.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix(_VALUE_ERROR)
        got = f" but got {first['input']!r:.200}" if where else ""
        raise UsageError(f"{where}: {message}{got}" if where else message) from error


def read_record(kind: type[T], content: bytes | str, asked: str, status: int = 200) -> T:
    """A reply as the record that it should be; fields that a newer server adds are ignored.

    Args:
        kind: of record.
        content: JSON.
        asked: what it answers, for the message.
        status: of HTTP.

    Raises:
        ServerError: it is none.
    """
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(content, extra="ignore")
        return record
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole of it"
        raise ServerError(
            f"the answer to {asked} must be {getattr(kind, '__name__', kind)} but {where}: {first['msg']}; is this an "
            "autoad server, and not an older one than this client?",
            "unreadable_reply",
            status,
        ) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def segment(name: str) -> str:
    """A name as a part of a path.

    Raises:
        UsageError: it cannot be one.
    """
    if name.strip(".") == "":
        raise UsageError(f"a name must not be empty or of dots only but got {name!r}")
    return quote(name, safe="")


def model_version(model: str, version: int | str | None) -> tuple[str, int | str | None]:
    """Name and version (a number or alias) of a model, which may be written ``bottle/3`` or ``bottle@champion``.

    Raises:
        UsageError: two versions are given.
    """
    name, mark, given = re.fullmatch(r"(?:models:/)?([^/@]*)(?:([/@])(.*))?", model, re.DOTALL).groups()  # type: ignore[union-attr]
    if not mark:
        return name, version
    if version is not None:
        raise UsageError(f"one version must be given but got {model!r} and version {version!r}")
    return name, given
