"""Files by what they hold: where a process finds a picture, on whichever machine it runs.

A file's identity is the sha256 of its bytes. :func:`read_file` takes them from the path that the dataset named, if this
machine has them there, and otherwise from the source that the process was given (:func:`use_source`); a file of the
same name that holds something else is never taken for it.

:class:`FileStore` keeps files as ``PROJECT/KIND/ab/SHA256`` in a folder or in an S3 bucket. A file appears there
whole or not at all, and is checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pyarrow as pa
import pyarrow.fs

from autoad.errors import FileStoreError, UsageError

__all__ = [
    "FileStore",
    "Source",
    "folder_named",
    "read_file",
    "remove_leftovers",
    "use_source",
    "write_atomically",
    "write_durably",
]

Buffer = bytes | memoryview
Source = Callable[[str], bytes]
"""Gives the bytes that have a sha256."""

_PARALLEL = 8
_AWS_REASONS = {
    "NETWORK_CONNECTION": "the server cannot be reached",
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "access is denied",
    "INVALID_ACCESS_KEY_ID": "the access key is not known",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong",
    "INVALID_CLIENT_TOKEN_ID": "the access key is not known",
}
_REMEDY = "check AUTOAD_FILES_URL and the AWS_* variables"

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}")  # as the temporary names below

_source: Source | None = None


def use_source(source: Source | None) -> None:
    """Say where this process gets files that its own disk does not have; None for nowhere."""
    global _source
    _source = source


def read_file(path: Path, sha256: str | None) -> bytes:
    """The bytes with that sha256: at ``path``, if this machine has them there, else from the process's source.

    Args:
        path: where the file lay when the dataset was read.
        sha256: its identity; None if it is not known, and then the path alone decides.

    Raises:
        OSError: there is no such file, and no source.
        FileStoreError: the file is another one than it was and there is no source, or the source does not have it.
    """
    if sha256 is None:
        return path.read_bytes()
    try:
        data = path.read_bytes()
    except OSError:
        if _source is None:
            raise
        return _source(sha256)
    digest = hashlib.sha256(data).hexdigest()
    if digest == sha256:
        return data
    if _source is None:
        raise FileStoreError(f"has changed since the dataset was read: sha256 {digest}, not {sha256}")
    return _source(sha256)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_durably(files: Mapping[Path, Buffer]) -> None:
    """Write many files, each of which appears whole or not at all; when this returns the disk will keep them.

    First all are written under temporary names, several at a time, because a disk writes the metadata of all that wait
    in one go; then they are renamed, and each folder is written once.
    """
    folders = {path.parent for path in files}
    for folder in list(folders):
        missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
        folders.update(one.parent for one in missing)  # holds the names of what is made now
        folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    temporary = {path: path.with_name(f".{path.name}.{token}") for path in files}

    def write(path: Path) -> None:
        with temporary[path].open("xb") as file:
            file.write(files[path])
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
        try:
            _drain(pool.map(write, files))
            for path in files:
                os.replace(temporary[path], path)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for path in temporary.values():
                path.unlink(missing_ok=True)
            raise
        _drain(pool.map(_sync_folder, folders))


def remove_leftovers(root: Path, seconds: float = 3600.0) -> int:
    """Remove what processes that were killed have left half written below a folder.

    Args:
        root: the folder; it need not exist.
        seconds: what is younger may still be written.

    Returns:
        How many files there were.
    """
    removed, limit = 0, time.time() - seconds
    for folder, _, names in os.walk(root):
        for name in names:
            if _LEFTOVER.fullmatch(name):
                path = Path(folder, name)
                with suppress(OSError):  # somebody else has removed it
                    if path.stat().st_mtime < limit:
                        path.unlink()
                        removed += 1
    return removed


def folder_named(name: str) -> str:
    """A name as that of one folder, whatever is in it: a project may be called ``..`` or ``a/b``."""
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


class FileStore:
    """The files of one project, named by their sha256.

    Args:
        address: a folder, or ``s3://BUCKET/PREFIX`` with pyarrow's options, such as
            ``?endpoint_override=HOST:PORT&scheme=http``. Credentials come from the usual ``AWS_*`` variables, and so
            does the endpoint (``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``) where the address names none.
        project: whose files they are.
        kind: ``pictures`` or ``models``.

    Raises:
        UsageError: the address is none.
    """

    def __init__(self, address: str, project: str, kind: str = "pictures") -> None:
        parts = urlsplit(address)
        if parts.scheme == "s3":
            self.name = f"s3://{parts.netloc.rpartition('@')[2]}{parts.path}"
            try:
                self._files, root = pyarrow.fs.FileSystem.from_uri(_with_endpoint(address))
            except (pa.ArrowException, ValueError, OSError):
                # Not "from" the cause: it quotes the address, which may hold keys.
                raise UsageError(
                    f"the file store {self.name} must have options that pyarrow reads; {_REMEDY}"
                ) from None
        elif parts.scheme in ("", "file") and Path(parts.path).is_absolute():
            self.name = root = parts.path
            self._files = pyarrow.fs.LocalFileSystem()
        else:
            raise UsageError(
                f"AUTOAD_FILES_URL must be s3://BUCKET/PREFIX or an absolute folder but has the scheme {parts.scheme!r}"
            )
        self._local = isinstance(self._files, pyarrow.fs.LocalFileSystem)
        self._root = f"{root.rstrip('/')}/{folder_named(project)}/{kind}"

    def read(self, sha256: str) -> bytes:
        """The file with that sha256.

        Raises:
            FileStoreError: the store cannot be reached, has no such file, or a damaged one.
        """
        try:
            with self._files.open_input_file(self._path(sha256)) as file:
                data = bytes(file.read())
        except FileNotFoundError as error:
            raise FileStoreError(f"the file store {self.name} has no file with sha256 {sha256}") from error
        except OSError as error:
            raise self._explained("read", error) from error
        if (digest := hashlib.sha256(data).hexdigest()) != sha256:
            raise FileStoreError(
                f"the file store {self.name} must hold {sha256} but what lies there is damaged: sha256 {digest}"
            )
        return data

    def write(self, data: bytes) -> str:
        """Keep a file; returns its sha256.

        Raises:
            FileStoreError: the store cannot be reached or written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            if self._local:
                path = Path(self._path(sha256))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            else:
                self._write_object(sha256, data)
        except OSError as error:
            raise self._explained("written", error) from error
        return sha256

    def write_many(self, files: Mapping[str, Buffer]) -> None:
        """Keep files by the sha256 that the caller knows them to have; on a disk, safe from a loss of power.

        Many small files cost little more than their bytes: the disk is waited for several files at a time.

        Raises:
            FileStoreError: the store cannot be reached or written.
        """
        try:
            if self._local:
                write_durably({Path(self._path(sha256)): data for sha256, data in files.items()})
            else:
                with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
                    _drain(pool.map(lambda one: self._write_object(*one), files.items()))
        except OSError as error:
            raise self._explained("written", error) from error

    def local_path(self, sha256: str) -> Path | None:
        """Where a file lies, if the store is a folder; None for S3."""
        return Path(self._path(sha256)) if self._local else None

    def missing(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of the files that the store does not have, or has in another size; ``sizes`` in bytes by sha256.

        Raises:
            FileStoreError: the store cannot be reached.
        """
        wanted = list(sizes)
        try:
            found = self._files.get_file_info([self._path(sha256) for sha256 in wanted])
        except OSError as error:
            raise self._explained("read", error) from error
        return {sha256 for sha256, info in zip(wanted, found, strict=True) if info.size != sizes[sha256]}

    def upload(self, files: Mapping[str, Path]) -> int:
        """Keep what is missing of ``files`` (paths by sha256); several at a time, each read when its turn comes.

        Returns:
            How many were missing.

        Raises:
            OSError: a file cannot be read.
            FileStoreError: a file is another one than it was, or the store cannot be reached or written.
        """
        missing = self.missing({sha256: path.stat().st_size for sha256, path in files.items()})
        with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
            try:
                _drain(pool.map(lambda sha256: self.write(read_file(files[sha256], sha256)), sorted(missing)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return len(missing)

    def _write_object(self, sha256: str, data: Buffer) -> None:
        """An object appears when it is complete."""
        with self._files.open_output_stream(self._path(sha256)) as file:
            file.write(data)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def _explained(self, what: str, error: OSError) -> FileStoreError:
        """The error without what pyarrow quotes: addresses may hold keys."""
        found = re.search(r"AWS Error ([A-Z_]+)", str(error))
        if found:
            reason = _AWS_REASONS.get(found[1], found[1].replace("_", " ").lower())
        else:
            reason = error.strerror or os.strerror(error.errno) if error.errno else type(error).__name__
        return FileStoreError(f"the file store {self.name} could not be {what}: {reason}; {_REMEDY}")


def _with_endpoint(address: str) -> str:
    """An S3 address with the endpoint that the environment names, where it has none of its own."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query))
    if not endpoint or "endpoint_override" in options:
        return address
    server = urlsplit(endpoint)
    options |= {"endpoint_override": server.netloc, "scheme": server.scheme}
    return parts._replace(query=urlencode(options)).geturl()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drain(results: Iterable[object]) -> None:
    for _ in results:
        pass
