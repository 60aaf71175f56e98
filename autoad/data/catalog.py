"""The catalog: datasets that were sent to a server, as numbered versions that never change.

Rows of the database are the truth. A version's row lists its pictures by sha256; the bytes are in the project's file
store, each once. Whatever asks a version's pictures for their bytes has it opened: it then lies as a folder on the
machine that asks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from autoad.data._archives import Archive, UnknownArchiveError
from autoad.data._examples import Example
from autoad.data._folders import VersionFolders
from autoad.data._picture import GOOD
from autoad.data._uploads import Limits, ProjectFiles, Uploads
from autoad.data.dataset import Dataset, hash_pictures
from autoad.database import Database, DatasetTables, DatasetVersion, aware
from autoad.errors import UnknownNameError
from autoad.schema import (
    PACK_BYTES,
    DatasetEntry,
    DatasetPage,
    DatasetPicture,
    DatasetVersions,
    FileEntry,
    PicturePage,
    ReceivedEntry,
    SkippedFile,
    UploadEntry,
    UploadRequest,
)
from autoad.settings import Settings, get_settings

__all__ = ["Catalog", "Limits", "UnknownArchiveError"]


class Catalog:
    """The datasets of one database.

    Where a method takes a ``project``, None is the database's own. A method that makes a version returns it, and
    whether it was made now: not if the newest version holds the same already.

    Args:
        database: with files, uploads and versions.
        settings: where files and folders lie; from the environment by default.
        limits: of a project.
    """

    def __init__(self, database: Database, settings: Settings | None = None, limits: Limits | None = None) -> None:
        settings, limits = settings or get_settings(), limits or Limits()
        self._default_project = database.project
        self._tables = DatasetTables(database)
        self._files = ProjectFiles(self._tables, settings, limits)
        self._uploads = Uploads(self._tables, self._files, limits)
        self._folders = VersionFolders(settings.data_dir)
        self._data_dir = settings.data_dir
        self._limits = limits

    # Versions

    def entry(self, name: str, version: int | None = None, project: str | None = None) -> DatasetEntry:
        """A version of a dataset; the newest for None.

        Raises:
            UnknownNameError: there is no such dataset or version.
        """
        return _entry(self._version(project or self._default_project, name, version))

    def versions(self, name: str, project: str | None = None) -> DatasetVersions:
        """All versions of a dataset; their skipped files are counted but not listed.

        Raises:
            UnknownNameError: there is no such dataset.
        """
        project = project or self._default_project
        rows = self._tables.versions(project, name)
        if not rows:
            raise UnknownNameError("dataset", name, self._tables.names(project))
        return DatasetVersions(name=name, versions=[_entry(row, skipped=False) for row in rows])

    def page(self, limit: int, after: str = "", project: str | None = None) -> DatasetPage:
        """The newest version of each dataset, ``limit`` of them after the name ``after``."""
        rows = self._tables.newest(project or self._default_project, after, limit + 1)
        entries = [_entry(row, skipped=False) for row in rows[:limit]]
        return DatasetPage(items=entries, next=entries[-1].name if len(rows) > limit else None)

    def pictures(self, name: str, version: int, limit: int, after: int = 0, project: str | None = None) -> PicturePage:
        """Pictures of a version, ``limit`` of them after the first ``after``.

        Raises:
            UnknownNameError: there is no such dataset or version.
        """
        project = project or self._default_project
        self._version(project, name, version)
        rows = self._tables.pictures(project, name, version, after, limit + 1)
        items = [DatasetPicture.model_validate(row) for row in rows[:limit]]
        return PicturePage(items=items, next=str(after + limit) if len(rows) > limit else None)

    def open(self, name: str, version: int | None = None, project: str | None = None) -> Path:
        """A manifest on this machine that :func:`autoad.data.read_dataset` reads, with the hash of the version.

        It and the pictures are fetched if they are not there yet.

        Raises:
            UnknownNameError: there is no such dataset or version.
            FileStoreError: a file cannot be fetched.
        """
        project = project or self._default_project
        if version is None:
            version = self._version(project, name, None).version
        found = self._folders.find(project, name, version)
        if found is not None:
            return found
        row = self._version(project, name, version, pictures=True)
        pictures = [DatasetPicture.model_validate(one) for one in row.pictures]
        return self._folders.make(project, name, row.version, pictures, self._files.store(project))

    # Uploads

    def begin_upload(self, name: str, request: UploadRequest, project: str | None = None) -> UploadEntry:
        """Begin an upload, or go on with the one of the same files to the same dataset.

        Raises:
            DatasetError: these cannot be the files of one dataset.
            QuotaError: the project has no room for those that it lacks.
        """
        return self._uploads.begin(project or self._default_project, name, request)

    def upload(self, name: str, upload_id: str, project: str | None = None) -> UploadEntry:
        """An upload as it stands.

        Raises:
            UnknownNameError: there is none.
        """
        return self._uploads.entry(project or self._default_project, name, upload_id)

    def receive(self, name: str, upload_id: str, body: memoryview, project: str | None = None) -> ReceivedEntry:
        """Keep the files of a packed body, all of them or none; those that are there already do no harm.

        Raises:
            UnknownNameError: there is no such upload.
            UsageError: the body cannot be read, or a file is none of the upload's, or another than it claims to be.
            QuotaError: the project has no room for them.
            FileStoreError: they cannot be kept.
        """
        return self._uploads.receive(project or self._default_project, name, upload_id, body)

    def commit(self, name: str, upload_id: str, *, actor: str, project: str | None = None) -> tuple[DatasetEntry, bool]:
        """Make an upload the next version of its dataset.

        Raises:
            UnknownNameError: there is no such upload.
            ConflictError: files of it have not been sent.
            DatasetError: as :func:`autoad.data.read_dataset`; paths are relative to the dataset.
        """
        project = project or self._default_project
        version = self._uploads.version(project, name, upload_id)
        if version is not None:
            return self.entry(name, version, project), False
        dataset, request = self._uploads.read(project, name, upload_id)
        pictures, skipped = _described(dataset)
        columns = self._columns(project, dataset.layout, pictures, skipped) | {"note": request.note, "actor": actor}
        row, is_new = self._tables.add_version(project, name, lambda _: columns, upload_id=upload_id)
        return _entry(row), is_new

    def add_archive(
        self, name: str, file: IO[bytes], *, note: str, actor: str, project: str | None = None
    ) -> tuple[DatasetEntry, bool]:
        """Make the files of an archive the next version of a dataset; nothing is ever written under its names.

        Args:
            name: of the dataset.
            file: a zip or tar file from its beginning on.
            note: kept with the version.
            actor: who sends it.
            project: whose dataset it is.

        Raises:
            UnknownArchiveError: it is neither.
            DatasetError: it is damaged, holds something else than files, or more than may be, or cannot be a dataset.
            QuotaError: the project has no room for it.
            FileStoreError: files cannot be kept.
        """
        project = project or self._default_project
        archive = Archive(file, self._limits)
        members = archive.survey()
        files = [FileEntry(path=one.path, sha256=one.sha256, size=one.size) for one in members]
        upload = self._uploads.begin(project, name, UploadRequest(files=files, note=note))
        wanted, pack, size = set(upload.missing), dict[str, bytes](), 0
        for sha256, data in archive.read(wanted):
            if size + len(data) > PACK_BYTES:
                self._files.add(project, pack)
                pack, size = {}, 0
            pack[sha256] = data
            size += len(data)
        self._files.add(project, pack)
        return self.commit(name, upload.id, actor=actor, project=project)

    def scratch(self) -> IO[bytes]:
        """A file without a name, for an archive that arrives; on the disk of the data folder, which has the room."""
        return cast("IO[bytes]", tempfile.TemporaryFile(dir=self._data_dir))

    def add_example(
        self,
        name: str,
        picture: bytes,
        mask: bytes | None = None,
        *,
        label: str,
        note: str,
        actor: str,
        project: str | None = None,
    ) -> tuple[DatasetEntry, bool]:
        """Make a dataset's next version with a picture added, or labelled otherwise if it is there already.

        Args:
            name: of the dataset.
            picture: encoded.
            mask: encoded, of its defective pixels; where none is given, one that the picture has already stays.
            label: ``good``, or the name of a defect.
            note: kept with the version.
            actor: who says so.
            project: whose dataset it is.

        Raises:
            UnknownNameError: there is no such dataset.
            UnreadableImageError: the picture or the mask is none.
            DatasetError: the mask has another size, or marks something on a good picture; or too few good pictures
                would be left.
            QuotaError: the project has no room for it.
            FileStoreError: it cannot be kept.
        """
        project = project or self._default_project
        example = Example.read(picture, mask, label)
        self._version(project, name, None)
        self._files.add(project, example.files)

        def make(newest: DatasetVersion | None) -> Mapping[str, Any]:
            if newest is None:
                raise UnknownNameError("dataset", name, self._tables.names(project))
            pictures = example.placed([DatasetPicture.model_validate(row) for row in newest.pictures], name)
            columns = self._columns(project, newest.layout, pictures, newest.skipped)
            return columns | {"note": note, "actor": actor}

        row, is_new = self._tables.add_version(project, name, make, pictures=True)
        return _entry(row), is_new

    # Within

    def _version(self, project: str, name: str, version: int | None, *, pictures: bool = False) -> DatasetVersion:
        row = self._tables.version(project, name, version, pictures=pictures)
        if row is not None:
            return row
        numbers = [str(one.version) for one in self._tables.versions(project, name)]
        if not numbers:
            raise UnknownNameError("dataset", name, self._tables.names(project))
        raise UnknownNameError(f"version of {name!r}", str(version), numbers)

    def _columns(
        self, project: str, layout: str, pictures: Sequence[DatasetPicture], skipped: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Of a version's row, what follows from its pictures."""
        files = {sha256 for one in pictures for sha256 in (one.sha256, one.mask_sha256) if sha256 is not None}
        good = sum(one.label == GOOD for one in pictures)
        return {
            "hash": hash_pictures((one.sha256, one.label, one.split, one.mask_sha256) for one in pictures),
            "layout": layout,
            "counts": {
                "good": good,
                "defective": len(pictures) - good,
                "masks": sum(one.mask is not None for one in pictures),
                "skipped": len(skipped),
            },
            "size": sum(self._tables.sizes(project, files).values()),
            "pictures": [one.model_dump(mode="json") for one in pictures],
            "skipped": [dict(one) for one in skipped],
        }


def _described(dataset: Dataset) -> tuple[list[DatasetPicture], list[dict[str, str]]]:
    """A dataset's pictures and skipped files as rows hold them."""
    pictures = [
        DatasetPicture(
            path=str(one.path),
            sha256=one.sha256,
            label=one.label,
            split=one.split,
            mask=None if one.mask is None else str(one.mask),
            mask_sha256=one.mask_sha256,
        )
        for one in sorted(dataset.pictures, key=lambda one: str(one.path))
    ]
    return pictures, [{"path": str(one.path), "reason": one.reason} for one in dataset.skipped]


def _entry(row: DatasetVersion, *, skipped: bool = True) -> DatasetEntry:
    return DatasetEntry(
        name=row.name,
        version=row.version,
        hash=row.hash,
        layout=row.layout,
        counts=row.counts,
        size=row.size,
        skipped=[SkippedFile.model_validate(one) for one in row.skipped] if skipped else [],
        note=row.note,
        actor=row.actor,
        created=aware(row.created),
    )
