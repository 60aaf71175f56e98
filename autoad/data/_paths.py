"""Paths that somebody else has told: what may be the name of a dataset's file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autoad.errors import DatasetError

__all__ = ["check_path", "check_paths"]

_LONGEST = 1024
_LONGEST_PART = 255  # bytes, which is as long as a file's name can be on Linux
_SHOWN = 100
_SOUND = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}/){0,5}[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")


def check_path(path: str) -> None:
    """Pass if a path is relative, and every part of it the plain name of a file or folder.

    Raises:
        DatasetError: it is not.
    """
    reason = _fault(path)
    if reason:
        shown = repr(path[:_SHOWN]) + ("..." if len(path) > _SHOWN else "")
        raise DatasetError(f"the path {shown} {reason}")


def check_paths(paths: Iterable[str]) -> None:
    """Pass if paths can be the files of one folder.

    Raises:
        DatasetError: one is no path, is there twice, or is a file and a folder.
    """
    known: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        check_path(path)
        if path in known:
            raise DatasetError(f"the path {path!r} must be there once but is there twice")
        known.add(path)
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    both = known & folders
    if both:
        raise DatasetError(f"the path {min(both)!r} must be a file or a folder but is both")


def _fault(path: str) -> str:
    """What is wrong with a path; empty if nothing is."""
    if _SOUND.fullmatch(path):  # as nearly all are, of perhaps 100,000
        return ""
    try:
        parts = path.encode().split(b"/")
    except UnicodeEncodeError:  # half a surrogate pair: bytes that were no UTF-8
        return "must be UTF-8: rename the file"
    if len(path.encode()) > _LONGEST:
        return f"must have at most {_LONGEST} bytes"
    if path.startswith("/"):
        return "must be relative to the dataset's folder but is absolute"
    if any(part in (b"", b".", b"..") for part in parts):
        return "must have no part that is empty, '.' or '..'"
    if "\\" in path:
        return "must have its parts separated by '/' and no backslash"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in path):
        return "must have no control characters: rename the file"
    if max(map(len, parts)) > _LONGEST_PART:
        return f"must have parts of at most {_LONGEST_PART} bytes"
    return ""
