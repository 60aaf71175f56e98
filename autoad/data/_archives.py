"""Archives that somebody else has made: their files, read one after the other; none is ever written under their names.

An archive is read twice. The first time everything in it is unpacked, compared with its checksums, hashed and thrown
away, so that nothing of an archive is kept that is damaged at its end, or turns out to be a bomb there.
"""

from __future__ import annotations

import bz2
import dataclasses
import errno
import gzip
import hashlib
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar, cast

from autoad.data._paths import check_path
from autoad.data._uploads import Limits
from autoad.data.layouts import LAYOUT_NAMES
from autoad.errors import AutoADError, DatasetError, UsageError

__all__ = ["Archive", "ArchivedFile", "UnknownArchiveError"]

_PIECE = 2**20
_MOST_HEADER = 2 * 2**20  # of one member, long names and lists of holes included
_R = TypeVar("_R")
_RATIO = 200
_ALWAYS_ALLOWED = 2**28  # masks alone may be small without being a bomb
_CENTRAL_BYTES = 160  # of a file's entry in the directory of a zip, on the average
_BLOCK = 512
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_PACKERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


class UnknownArchiveError(UsageError):
    """The bytes are no archive of a kind that is read."""


@dataclasses.dataclass(frozen=True)
class ArchivedFile:
    """A file of an archive.

    Attributes:
        path: relative to the folder that the archive holds.
        sha256: of its bytes.
        size: in bytes.
    """

    path: str
    sha256: str
    size: int


class Archive:
    """A zip file, or a tar file plain or packed by gzip, bzip2 or xz; which it is shows in its first bytes.

    Args:
        file: it, open for reading; it must allow going back.
        limits: what it may hold.

    Raises:
        UnknownArchiveError: it is neither.
    """

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._packed = file.seek(0, 2)
        self._shas: dict[str, str] = {}
        file.seek(0)
        start = file.read(_BLOCK)
        self._unpack = next((unpack for magic, unpack in _PACKERS.items() if start.startswith(magic)), None)
        self._is_zip = start.startswith(_ZIP_STARTS)
        if not self._is_zip:
            with _explained():
                if not _is_tar(self._tar_stream().read(_BLOCK)):
                    raise UnknownArchiveError(
                        "the body must be a zip file, or a tar file that is plain or packed by gzip, bzip2 or xz"
                    )

    def survey(self) -> list[ArchivedFile]:
        """All files, less hidden ones and what macOS adds; a folder that all of them lie in is left out of their paths.

        Raises:
            DatasetError: the archive is damaged, or holds what it may not; the message names the member.
        """
        sizes: dict[str, int] = {}
        with _explained():
            for name, pieces in self._walk():
                if name in sizes:
                    raise DatasetError(f"the archive must hold {name!r} once but holds it twice")
                digest, size = hashlib.sha256(), 0
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                self._shas[name], sizes[name] = digest.hexdigest(), size
        if not sizes:
            raise DatasetError("the archive must hold pictures but holds no files")
        start = _common_folder(list(sizes))
        return [ArchivedFile(name[start:], self._shas[name], size) for name, size in sizes.items()]

    def read(self, sha256s: set[str]) -> Iterator[tuple[str, bytes]]:
        """The files of that sha256, each once; after :meth:`survey`.

        Raises:
            DatasetError: as there.
        """
        wanted = set(sha256s)
        with _explained():
            for name, pieces in self._walk():
                if self._shas[name] in wanted:
                    wanted.discard(self._shas[name])
                    yield self._shas[name], b"".join(pieces)

    def _walk(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The name of each file and its bytes in pieces; what is not fetched of them is skipped."""
        guard = _Guard(self._limits, self._packed)
        return self._walk_zip(guard) if self._is_zip else self._walk_tar(guard)

    def _walk_zip(self, guard: _Guard) -> Iterator[tuple[str, Iterator[bytes]]]:
        self._file.seek(0)
        most = _CENTRAL_BYTES * self._limits.most_files + 2**16
        with zipfile.ZipFile(cast("IO[bytes]", _Capped(self._file, most))) as archive:
            members = archive.infolist()
            for member in members:  # before any of them is unpacked
                check_path(_plain_name(member.orig_filename))  # the other name ends where this one has a NUL
                kind = stat.S_IFMT(member.external_attr >> 16)
                guard.admit(
                    member.filename,
                    size=member.file_size,
                    plain=kind in (0, stat.S_IFREG) or (member.is_dir() and kind == stat.S_IFDIR),
                )
                if member.flag_bits & 1:
                    raise DatasetError(f"the archive's member {member.filename!r} must not be encrypted")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DatasetError(f"the archive's member {member.filename!r} must be stored or deflated")
            for member in members:
                name = _plain_name(member.filename)
                if not member.is_dir() and not _is_ignored(name):
                    with archive.open(member) as file:
                        yield name, _pieces(file, member.filename, guard)

    def _walk_tar(self, guard: _Guard) -> Iterator[tuple[str, Iterator[bytes]]]:
        stream = _Stream(self._tar_stream(), guard)
        # It reads the first header as soon as it is made.
        with stream.header(lambda: tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:")) as archive:
            while (member := stream.header(archive.next)) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep them all
                cast("dict[str, str]", archive.pax_headers).clear()  # likewise
                stream.member = member.name
                plain = (member.isreg() and not member.issparse()) or member.isdir()
                guard.admit(member.name, size=member.size, plain=plain)
                name = _plain_name(member.name)
                if not member.isdir() and not _is_ignored(name):
                    stream.seek(member.offset_data)
                    yield name, stream.pieces(member.size)
        if stream.last != bytes(_BLOCK):  # where tarfile stops without a word, as it does where a header is damaged
            raise DatasetError(f"the archive is damaged, or ends too early, after {stream.member!r}")
        while stream.read(_PIECE):  # the checksum of what is packed comes last
            pass

    def _tar_stream(self) -> IO[bytes]:
        self._file.seek(0)
        return self._file if self._unpack is None else cast("IO[bytes]", self._unpack(self._file))


class _Guard:
    """Counts what an archive says that it holds, and what it turns out to hold."""

    def __init__(self, limits: Limits, packed: int) -> None:
        self._limits = limits
        self._most = min(limits.most_archive_bytes, max(_ALWAYS_ALLOWED, _RATIO * packed))
        self._members = self._declared = self._real = 0

    def admit(self, name: str, *, size: int, plain: bool) -> None:
        """Take down a member that is to come."""
        if not plain:
            raise DatasetError(
                f"the archive's member {name[:100]!r} must be a file or a folder but is a link or something else"
            )
        if _plain_name(name):
            check_path(_plain_name(name))
        if size < 0:
            raise DatasetError(f"the archive's member {name!r} must not have a size of {size} bytes")
        self._members += 1
        if self._members > 2 * self._limits.most_files:  # folders count, too
            raise DatasetError(
                f"the archive must have at most {2 * self._limits.most_files} members but has more: {name!r}"
            )
        if size > self._limits.most_file_bytes:
            raise DatasetError(
                f"the archive's member {name!r} must have at most {self._limits.most_file_bytes} bytes but has {size}"
            )
        self._declared += size
        self._compare(self._declared, name)

    def count(self, size: int, name: str) -> None:
        """Take down bytes that have come."""
        self._real += size
        self._compare(self._real, name)

    def _compare(self, size: int, name: str) -> None:
        if size > self._most:
            raise DatasetError(
                f"the archive must unpack to at most {self._most:,} bytes (and {_RATIO} times its own size, if that is "
                f"less and more than {_ALWAYS_ALLOWED:,}) but has more by its member {name!r}"
            )


class _Capped:
    """A file of which little is read at once; zipfile reads all of the list of members, as long as it is said to be."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise DatasetError(f"the archive's list of members must have at most {self._most} bytes but says {size}")
        return self._file.read(size)


class _Stream:
    """An unpacked tar file, which is read in pieces and not too far; tarfile reads as much as a header tells it to.

    Attributes:
        member: that was met last.
        last: what was read last.
    """

    def __init__(self, file: IO[bytes], guard: _Guard) -> None:
        self._file = file
        self._guard = guard
        self._position = 0
        self._left: int | None = None
        self.member = ""
        self.last = b""

    def header(self, read: Callable[[], _R]) -> _R:
        """What reads a member's header, however many blocks that says it has; they are all kept in memory.

        Raises:
            DatasetError: too many.
        """
        self._left = _MOST_HEADER
        try:
            return read()
        finally:
            self._left = None

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._count(position - self._position)
        self._position = self._file.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _PIECE:
            raise DatasetError(f"the archive has a header of {size} bytes after its member {self.member!r}")
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise DatasetError(f"the archive has too large a header after its member {self.member!r}")
        self.last = self._file.read(size)
        self._count(len(self.last))
        self._position += len(self.last)
        return self.last

    def pieces(self, size: int) -> Iterator[bytes]:
        """So many bytes from here on."""
        while size:
            piece = self.read(min(size, _PIECE))
            if not piece:
                raise DatasetError(f"the archive ends within its member {self.member!r}")
            size -= len(piece)
            yield piece

    def _count(self, size: int) -> None:
        if size > 0:
            self._guard.count(size, self.member)


def _pieces(file: IO[bytes], name: str, guard: _Guard) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        guard.count(len(piece), name)
        yield piece


@contextmanager
def _explained() -> Iterator[None]:
    """What is wrong with an archive, as an error of ours."""
    try:
        yield
    except AutoADError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of the disk; the other is of a place that no file has
            raise
        raise DatasetError(f"the archive is damaged ({error})") from error
    except Exception as error:  # the unpackers raise whatever a damaged file makes them stumble over
        raise DatasetError(f"the archive is damaged ({str(error)[:200] or type(error).__name__})") from error


def _is_tar(block: bytes) -> bool:
    return block[257:262] == b"ustar"


def _plain_name(name: str) -> str:
    """Without the ``./`` that tar puts before names, and the ``/`` after a folder's; empty for the folder itself."""
    return "" if name in (".", "./") else name.removeprefix("./").removesuffix("/")


def _is_ignored(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def _common_folder(names: list[str]) -> int:
    """Length of the folder's name, with its ``/``, that all files lie in; 0 if there is none, or it is of a layout."""
    folder = names[0].partition("/")[0] + "/"
    is_common = all(name.startswith(folder) for name in names) and folder[:-1].casefold() not in LAYOUT_NAMES
    return len(folder) if is_common else 0
