"""Every error that autoad raises on purpose.

::

    AutoADError
    |-- UsageError                  the caller asked for something that cannot be (exit code 2)
    |   |-- UnknownNameError        no such algorithm, backbone, objective, ...: lists the choices
    |   |-- DatasetError            the folder or manifest cannot be searched as it is
    |   |-- ConflictError           what there is stands against it: the same key for another request, ... (HTTP 409)
    |   |-- QuotaError              the project has no room for it (HTTP 413)
    |   |-- SearchSpaceError        a search-space file is wrong: names file, line and key
    |   `-- CalibrationError        the threshold asked for needs more calibration pictures
    |-- UnreadableImageError        a picture is truncated, damaged, or no picture
    |   `-- ImageTooLargeError      it has more pixels than are decoded
    |-- WeightsError                a backbone's weights cannot be reached or are not what they should be
    |-- FileStoreError              the file store cannot be reached, or does not hold what it should
    |-- ArtifactError               a saved model is damaged, incomplete or of a newer schema
    |-- StorageFullError            the disk has no room for what must be kept
    |-- TrialError                  a trial could not be carried out (its reason goes on the leaderboard)
    |   `-- TrialMemoryError        it needs more memory than it may have
    |-- StateError                  the metadata cannot be written, the machinery does not come up, or a server cannot
    |                               answer yet; resume or ask again later
    |-- PromotionError              a model may not answer: it cannot be loaded, or scores otherwise than evaluated
    |-- QueueLimitError             too many searches wait already (HTTP 429)
    |-- ServerError                 the server failed
    |   |-- RefusedError            it refused the request as it is (HTTP 4xx)
    |   |   `-- NotFoundError       there is no such thing in the key's project (HTTP 404)
    |   `-- BusyError               it had no room or time, however often it was asked (HTTP 429, 503); try again later
    |-- UnreachableError            there is no server at that address (exit code 4)
    |-- LeaseLostError              another process carries the search out now
    |-- AuthenticationError         no API key came with a request, or none that is known (HTTP 401)
    |-- ForbiddenError              the API key lacks the scope that this needs (HTTP 403)
    `-- NoTrialSucceededError       a search ended without one usable model (exit code 3)

A message says what is wrong, names the thing, and says what to do about it.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ArtifactError",
    "AuthenticationError",
    "AutoADError",
    "BusyError",
    "CalibrationError",
    "ConflictError",
    "DatasetError",
    "FileStoreError",
    "ForbiddenError",
    "ImageTooLargeError",
    "LeaseLostError",
    "NoTrialSucceededError",
    "NotFoundError",
    "PromotionError",
    "QueueLimitError",
    "QuotaError",
    "RefusedError",
    "SearchSpaceError",
    "ServerError",
    "StateError",
    "StorageFullError",
    "TrialError",
    "TrialMemoryError",
    "UnknownNameError",
    "UnreachableError",
    "UnreadableImageError",
    "UsageError",
    "WeightsError",
    "is_full",
]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class AutoADError(Exception):
    """Base of all errors below; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(AutoADError):
    """The request cannot be carried out as given."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name is not among the choices.

    Args:
        kind: what was named, for example ``"algorithm"``.
        name: what the caller wrote.
        choices: the names that would have been right; there may be none yet.
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.choices = sorted(choices)
        super().__init__(kind, name, self.choices)  # all of them, or it could not be sent from another process

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name, self.choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        choices = f"Choices: {', '.join(self.choices)}." if self.choices else "There is none yet."
        return f"unknown {self.kind} {self.name!r}.{hint} {choices}"


class DatasetError(UsageError):
    """The dataset cannot be searched as it is."""


class SearchSpaceError(UsageError):
    """A search-space file is wrong."""


class ConflictError(UsageError):
    """What there is already stands against the request."""


class QuotaError(UsageError):
    """The project has no room for what is to be kept."""


class CalibrationError(UsageError):
    """The threshold asked for cannot be guaranteed with the pictures there are."""


class UnreadableImageError(AutoADError):
    """A picture cannot be decoded."""


class ImageTooLargeError(UnreadableImageError):
    """A picture has more pixels than are decoded."""


class WeightsError(AutoADError):
    """A backbone's weights cannot be reached or verified."""

    exit_code = 2


class FileStoreError(AutoADError):
    """The file store cannot be reached or written, or does not hold the file that it should."""

    exit_code = 2


class ArtifactError(AutoADError):
    """A saved model cannot be loaded."""

    exit_code = 2


class StorageFullError(AutoADError):
    """The disk has no room for what must be kept.

    Args:
        folder: what cannot be written.
        needed: bytes that it needs; 0 if not known yet.
        free: bytes that may still be written.
    """

    def __init__(self, folder: Path, needed: int, free: int) -> None:
        super().__init__(folder, needed, free)  # all of them, or it could not be sent from a worker
        self.folder = folder
        self.needed = needed
        self.free = free

    def __str__(self) -> str:
        needed = f"{_megabytes(self.needed)} more" if self.needed else "another file"
        return (
            f"{self.folder} must have room for {needed} but its disk, or your share of it, has {_megabytes(self.free)} "
            "free; free space, or set AUTOAD_DATA_DIR to a folder on a larger disk"
        )


class TrialError(AutoADError):
    """One trial could not be carried out; the search goes on."""


class TrialMemoryError(TrialError):
    """One trial needs more memory than it may have; with more room it might succeed."""


class StateError(AutoADError):
    """A search had to stop, but what it has done is kept: resume it when the cause is mended.

    Or a server cannot answer now (it starts, or one of its processes is being started again): ask again.
    """


class LeaseLostError(AutoADError):
    """Another process has taken over what this one was doing."""


class PromotionError(AutoADError):
    """A model may not answer: a replica cannot load it, or its scores are not those that were evaluated.

    Args:
        message: what is wrong.
        details: the differences, one a line.
    """

    def __init__(self, message: str, details: Iterable[str] = ()) -> None:
        self.message = message
        self.details = list(details)
        super().__init__(message, self.details)

    def __str__(self) -> str:
        return "\n".join([self.message, *self.details])


class ServerError(AutoADError):
    """The server failed, or refused a request (:class:`RefusedError`).

    Args:
        message: what the server said.
        code: of the error, as in the reply's JSON.
        status: of HTTP.
    """

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message, code, status)
        self.message = message
        self.code = code
        self.status = status

    def __str__(self) -> str:
        return self.message


class RefusedError(ServerError):
    """The server does not do this: the request must change."""


class NotFoundError(RefusedError):
    """The key's project has nothing of that name."""


class BusyError(ServerError):
    """The server had no room or time for a request, in all attempts."""


class QueueLimitError(AutoADError):
    """More searches wait than may."""


class UnreachableError(AutoADError):
    """No server answers at that address."""

    exit_code = 4


class AuthenticationError(AutoADError):
    """A request came without an API key, or with one that is unknown or revoked.

    Args:
        message: what is wrong; never which part of a key was.
        challenge: value of the ``WWW-Authenticate`` header of the reply (RFC 6750).
    """

    def __init__(self, message: str, challenge: str = "Bearer") -> None:
        super().__init__(message, challenge)
        self.challenge = challenge

    def __str__(self) -> str:
        return str(self.args[0])


class ForbiddenError(AutoADError):
    """The API key is known but may not do this: it lacks a scope."""


class NoTrialSucceededError(AutoADError):
    """No trial of the search produced a model."""

    exit_code = 3


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, has no room: no fault of what was being done."""
    return isinstance(error, StorageFullError) or (isinstance(error, OSError) and error.errno in _FULL)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
