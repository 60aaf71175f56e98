"""Where the files of registered versions lie: in the data folder, and in the file store if there is one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoad.errors import ArtifactError, FileStoreError
from autoad.files import FileStore, write_atomically
from autoad.settings import Settings

__all__ = ["VersionFiles"]


class VersionFiles:
    """Folders ``models/PROJECT/NAME/VERSION`` of this machine, backed by a file store.

    Args:
        settings: where both are.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.data_dir / "models"
        self._address = settings.files_url
        self._verified: set[Path] = set()

    def check(self, project: str) -> None:
        """See that the file store, if there is one, can be reached.

        Raises:
            UsageError: its address is none.
            FileStoreError: it cannot be reached.
        """
        store = self._store(project)
        if store is not None:
            store.missing({"0" * 64: 0})

    def upload(self, project: str, contents: Iterable[bytes]) -> None:
        """Keep files in the file store, if there is one.

        Raises:
            FileStoreError: it cannot be written.
        """
        store = self._store(project)
        if store is not None:
            for data in contents:
                store.write(data)

    def take(self, folder: Path, project: str, name: str, version: int) -> None:
        """Move a finished artifact to where it belongs; when this returns, the disk will keep it there."""
        target = self._folder(project, name, version)
        shutil.rmtree(target, ignore_errors=True)  # of somebody who died before the commit
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        for changed in (target, target.parent, target.parent.parent):
            _sync(changed)

    def get(self, project: str, name: str, version: int, files: Mapping[str, str]) -> Path:
        """The folder of a version, with the files that were registered; they are looked at once.

        Args:
            project: whose model it is.
            name: of the model.
            version: its number.
            files: sha256 by name.

        Raises:
            ArtifactError: a file is missing or damaged here, and the file store does not have it.
        """
        folder = self._folder(project, name, version)
        if folder not in self._verified:
            for file, sha256 in files.items():
                self._make_present(folder / file, sha256, project)
            self._verified.add(folder)
        return folder

    def remove(self, project: str, name: str, version: int) -> None:
        """Remove a version's folder; the file store keeps its files, which other versions may share."""
        folder = self._folder(project, name, version)
        self._verified.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, project: str, name: str, version: int) -> Path:
        return self._root / project / name / str(version)

    def _store(self, project: str) -> FileStore | None:
        return FileStore(self._address, project, kind="models") if self._address else None

    def _make_present(self, file: Path, sha256: str, project: str) -> None:
        with contextlib.suppress(OSError):
            if hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
                return
        store = self._store(project)
        if store is None:
            raise ArtifactError(
                f"{str(file)!r} must have sha256 {sha256[:12]} but is missing or damaged; put the file back, or delete "
                "this version and search again"
            )
        try:
            data = store.read(sha256)
        except FileStoreError as error:
            raise ArtifactError(f"{str(file)!r} is missing or damaged on this machine, and {error}") from error
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)


def _sync(folder: Path) -> None:
    """Have the disk keep what was renamed in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
