"""Versions of datasets as folders of this machine, where a search reads them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from autoad.files import FileStore, folder_named, write_durably
from autoad.schema import DatasetPicture

__all__ = ["VersionFolders"]

_PARALLEL = 8
_PICTURES = "pictures"
_AT_ONCE = 64  # files that are fetched before they are written


class VersionFolders:
    """Folders ``datasets/PROJECT/NAME/VERSION``, each with a manifest and the pictures that it names.

    They hold nothing that the database and the file store do not, and are made when they are wanted. Where the store is
    a folder of the same disk the pictures are links to its files and take no room.

    Args:
        data_dir: where they lie.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "datasets"

    def find(self, project: str, name: str, version: int) -> Path | None:
        """The manifest of a version, if the folder is there."""
        manifest = self._folder(project, name, version) / f"{name}.parquet"
        return manifest if manifest.is_file() else None

    def make(self, project: str, name: str, version: int, pictures: Sequence[DatasetPicture], store: FileStore) -> Path:
        """Make the folder; several processes may at once.

        Returns:
            The manifest.

        Raises:
            OSError: the folder cannot be written.
            FileStoreError: a file cannot be fetched.
        """
        target = self._folder(project, name, version)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=target.parent))
        try:
            scratch.chmod(0o755)
            files = {_file_name(one.path): one.sha256 for one in pictures}
            files |= {_file_name(one.mask): one.mask_sha256 for one in pictures if one.mask and one.mask_sha256}
            _fill(scratch / _PICTURES, files, store)
            _write_manifest(scratch / f"{name}.parquet", pictures)
            with contextlib.suppress(OSError):  # another process was quicker, and made the same
                scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        manifest = target / f"{name}.parquet"
        if not manifest.is_file():
            raise FileNotFoundError(
                f"{str(target)!r} must hold the manifest {manifest.name} but does not; remove the folder"
            )
        return manifest

    def _folder(self, project: str, name: str, version: int) -> Path:
        return self._root / folder_named(project) / name / str(version)


def _file_name(path: str) -> str:
    """What a file is called below the folder of pictures; a manifest cannot say that a name ends with white space."""
    return path if path == path.strip() else hashlib.sha256(path.encode()).hexdigest()


def _fill(folder: Path, files: Mapping[str, str], store: FileStore) -> None:
    for parent in {(folder / name).parent for name in files}:
        parent.mkdir(parents=True, exist_ok=True)
    lacking = {name: sha256 for name, sha256 in files.items() if not _link(folder / name, store.local_path(sha256))}
    names = list(lacking)
    with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            contents = pool.map(lambda name: store.read(lacking[name]), some)
            write_durably({folder / name: data for name, data in zip(some, contents, strict=True)})


def _link(path: Path, source: Path | None) -> bool:
    """Whether the file could be given a second name; not on another disk, nor more often than the disk allows."""
    if source is None:
        return False
    try:
        os.link(source, path)
    except OSError:
        return False
    return True


def _write_manifest(path: Path, pictures: Sequence[DatasetPicture]) -> None:
    def named(file: str | None) -> str | None:
        return None if file is None else f"{_PICTURES}/{_file_name(file)}"

    table = pa.table(
        {
            "path": pa.array([named(one.path) for one in pictures], pa.string()),
            "label": pa.array([one.label for one in pictures], pa.string()),
            "split": pa.array([one.split for one in pictures], pa.string()),
            "mask": pa.array([named(one.mask) for one in pictures], pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_durably({path: sink.getvalue().to_pybytes()})
