"""What is dear to work out and follows from what is at hand, kept in the data folder for the next process.

A new process would spend seconds on importing timm to learn the shape of a network, and on converting and compiling
that network for OpenVINO, only to arrive where the last one did. Instead it finds the answer in a file, named by
everything that decides it: versions of libraries are part of every key, so that an update simply makes new files. The
same goes for the networks of saved models, which follow from their weights.

Nothing depends on a file being there. One that is damaged, or that holds something else, counts as missing; a folder
that cannot be written keeps nothing; several processes may write the same at once. What has not been used longest goes
when the folder becomes too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoad.files import remove_leftovers, write_atomically
from autoad.settings import get_settings

__all__ = ["keep", "recall", "remember"]

Key = Mapping[str, object]
"""What decides the answer; JSON."""

_LIMIT = 2 * 2**30
"""Bytes that the folder may take.

EfficientNet-Lite0 takes 12 MB, wide ResNet-50 about 270, and networks of saved models as much as their weights.
"""


def recall(key: Key) -> bytes | None:
    """What was kept under a key; None if nothing sound is there."""
    path, line = _place(key)
    try:
        data = path.read_bytes()
        os.utime(path)  # used: others go first
    except OSError:
        return None
    found, _, rest = data.partition(b"\n")
    digest, _, payload = rest.partition(b"\n")
    if found != line or digest != _digest(payload):
        return None
    return payload


def keep(key: Key, payload: bytes) -> None:
    """Keep something under a key, if the disk lets us."""
    path, line = _place(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"\n".join((line, _digest(payload), payload)))
        remove_leftovers(path.parent)
        _prune(path)


def remember(fact: str, compute: Callable[[], Any], **key: object) -> Any:
    """A fact of timm's, as JSON gives it back; worked out where no process has yet.

    Args:
        fact: what it is.
        compute: works it out. What it raises is passed on, and not remembered.
        **key: of what it is.
    """
    whole = {"fact": fact, "timm": version("timm"), "torch": version("torch"), **key}
    payload = recall(whole)
    if payload is None:
        payload = json.dumps(compute()).encode()
        keep(whole, payload)
    return json.loads(payload)


def _place(key: Key) -> tuple[Path, bytes]:
    """The file, and the line by which it begins."""
    line = json.dumps(key, sort_keys=True).encode()
    return get_settings().data_dir / "kept" / hashlib.sha256(line).hexdigest()[:32], line


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


def _prune(newest: Path) -> None:
    files = []
    for entry in os.scandir(newest.parent):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            status = entry.stat()
            files.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
    excess = sum(size for _, size, _ in files) - _LIMIT
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            excess -= size
