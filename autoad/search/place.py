"""Where a worker finds itself: its node's own folders, and pictures from wherever they can be had.

Pictures that a node does not have come from the file store (``AUTOAD_FILES_URL``) or, without one, from a :class:`Desk`
on the driver's node, a picture a message.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import autoad
from autoad.data import Picture
from autoad.errors import FileStoreError, UsageError
from autoad.files import FileStore, Source, read_file, use_source
from autoad.settings import Settings, get_settings

__all__ = ["Desk", "Place", "offer_files"]

_ANSWER_SECONDS = 60.0
_READERS = 4


class Desk:
    """Hands out files of the driver's node, one at a time; an actor.

    Args:
        files: paths by sha256.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def read(self, sha256: str) -> bytes | str:
        """The file's bytes, or the reason why there are none."""
        try:
            return read_file(self._files[sha256], sha256)
        except KeyError:
            return f"no file with sha256 {sha256} belongs to this search"
        except (OSError, FileStoreError) as error:
            return f"{self._files[sha256]} {error}"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a worker must know to work on a node that has nothing in common with the driver's.

    Attributes:
        version: autoad's, on the driver's node.
        project: whose files they are.
        store: address of the file store; empty if the driver's node hands the files out.
        desk: who does so.
    """

    version: str
    project: str
    store: str = dataclasses.field(repr=False)
    desk: Any

    def settle(self) -> tuple[str, Path]:
        """Make this process at home on its node: files come from where they can be had.

        Returns:
            The node's name, and its feature store.

        Raises:
            UsageError: the node has another version of autoad.
        """
        if autoad.__version__ != self.version:
            raise UsageError(f"node {_here()} must have autoad {self.version} but has {autoad.__version__}")
        settings = _node_settings()
        fetch = FileStore(self.store, self.project).read if self.store else self._ask
        kept = FileStore(str(settings.data_dir / "files"), self.project)
        use_source(_keeping(fetch, kept))
        return _here(), settings.features_dir

    def _ask(self, sha256: str) -> bytes:
        try:
            answer = ray.get(self.desk.read.remote(sha256), timeout=_ANSWER_SECONDS)
        except (RayError, GetTimeoutError) as error:
            raise FileStoreError(f"could not be fetched from the driver's node ({type(error).__name__})") from error
        if isinstance(answer, str):
            raise FileStoreError(f"could not be fetched from the driver's node: {answer}")
        if (digest := hashlib.sha256(answer).hexdigest()) != sha256:
            raise FileStoreError(f"came damaged from the driver's node: sha256 {digest}, not {sha256}")
        return bytes(answer)


def offer_files(pictures: Iterable[Picture], settings: Settings) -> Place:
    """Make pictures and masks of this machine available to all nodes of the cluster that was joined.

    With ``AUTOAD_FILES_URL`` what is missing there is uploaded; otherwise this node hands them out while the search
    runs.

    Raises:
        FileStoreError: the file store cannot be reached or written.
        UsageError: the address of the file store is none.
    """
    files: dict[str, Path] = {}
    for picture in pictures:
        files[picture.sha256] = picture.path
        if picture.mask is not None and picture.mask_sha256 is not None:
            files[picture.mask_sha256] = picture.mask
    if settings.files_url:
        FileStore(settings.files_url, settings.project).upload(files)
        return Place(autoad.__version__, settings.project, settings.files_url, None)
    desk = (
        ray.remote(Desk)
        .options(
            num_cpus=0,
            max_concurrency=_READERS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        )
        .remote(files)
    )
    return Place(autoad.__version__, settings.project, "", desk)


def _keeping(fetch: Source, kept: FileStore) -> Source:
    """Ask this node's own folder first, and keep there what had to be fetched: other trials want other sizes of it."""

    def read(sha256: str) -> bytes:
        with suppress(FileStoreError):  # not there, or damaged
            return kept.read(sha256)
        data = fetch(sha256)
        with suppress(FileStoreError):  # a full disk will be reported by the feature store
            kept.write(data)
        return data

    return read


def _node_settings() -> Settings:
    """The node's settings; without ``AUTOAD_DATA_DIR`` what it keeps lies in a temporary folder, not at home."""
    if not os.environ.get("AUTOAD_DATA_DIR"):
        os.environ["AUTOAD_DATA_DIR"] = str(Path(tempfile.gettempdir(), f"autoad-{os.getuid()}"))
    return get_settings()


def _here() -> str:
    """This node's name in its cluster."""
    here = ray.get_runtime_context().get_node_id()
    return next((str(node["NodeName"]) for node in ray.nodes() if node["NodeID"] == here), platform.node())
