from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoad.data import _archives
from autoad.data._archives import Archive, UnknownArchiveError
from autoad.data._uploads import Limits
from autoad.errors import AutoADError, DatasetError

FILES = {"good/a.png": b"a" * 700, "good/b.png": os.urandom(3000), "bad/c.png": b"", "bad/x/d.png": b"d" * 512}
KINDS = ["zip", "", "gz", "bz2", "xz"]
SMALL = Limits(most_files=20, most_file_bytes=2 * 10**6, most_archive_bytes=5 * 10**6)


def packed(members: Mapping[Any, bytes], kind: str) -> bytes:
    """An archive of members: names, or TarInfo or ZipInfo."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
            for name, data in members.items():
                member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def surveyed(data: bytes, limits: Limits = SMALL) -> dict[str, tuple[str, int]]:
    return {one.path: (one.sha256, one.size) for one in Archive(io.BytesIO(data), limits).survey()}


def expected(files: Mapping[str, bytes]) -> dict[str, tuple[str, int]]:
    return {path: (hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()}


def twice(name: str, kind: str) -> bytes:
    if kind != "zip":
        return packed({tarfile.TarInfo(name): b"1", tarfile.TarInfo(name): b"2"}, kind)
    with pytest.warns(UserWarning, match="Duplicate name"):
        return packed({zipfile.ZipInfo(name): b"1", zipfile.ZipInfo(name): b"2"}, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_an_archive(kind: str) -> None:
    data = packed(FILES, kind)
    assert surveyed(data) == expected(FILES)
    archive = Archive(io.BytesIO(data), SMALL)
    archive.survey()
    wanted = {hashlib.sha256(FILES[path]).hexdigest() for path in ("good/b.png", "bad/c.png")}
    found = dict(archive.read(wanted))
    assert found == {hashlib.sha256(one).hexdigest(): one for one in (FILES["good/b.png"], b"")}
    assert wanted  # is the caller's


@pytest.mark.parametrize("kind", KINDS)
def test_folders_hidden_files_and_a_common_folder(kind: str) -> None:
    inside = (
        {f"./bottle/{path}": data for path, data in FILES.items()}
        if kind != "zip"
        else {f"bottle/{path}": data for path, data in FILES.items()}
    )
    more = {"__MACOSX/bottle/._a.png": b"x", "bottle/.git/config": b"x", ".DS_Store": b"x"}
    assert surveyed(packed(inside | more, kind)) == expected(FILES)
    # Not one that says what its files are.
    for top in ("train", "good", "OK", "ground_truth", "defects"):
        inside = {f"{top}/{path}": data for path, data in FILES.items()}
        assert surveyed(packed(inside, kind)) == expected(inside)
    # Nor one beside which there is something else.
    inside = {f"bottle/{path}": data for path, data in FILES.items()} | {"bottle2.png": b"x"}
    assert surveyed(packed(inside, kind)) == expected(inside)


def test_folders_of_a_real_tar(tmp_path: Path) -> None:
    for path, data in FILES.items():
        (tmp_path / "bottle" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bottle" / path).write_bytes(data)
    for name in (".", "bottle", "some/where"):
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as archive:
                archive.add(tmp_path / "bottle", arcname=name)
            start = "bottle/" if name == "some/where" else ""
            assert name != "some/where" or surveyed(buffer.getvalue()).keys() == {f"where/{path}" for path in FILES}
            assert start or surveyed(buffer.getvalue()) == expected(FILES)
    long = {f"{'x' * 90}/{'y' * 90}/{'z' * 90}-\u00fc.png": b"x", "b.png": b"y"}
    assert surveyed(packed(long, "")) == expected(long)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["../x.png", "/x.png", "a/../../x.png", "a//b.png", "a\\b.png", "..", "a/./b", "a\nb", "C:\\x", ".hidden/../x"],
)
def test_names_that_lead_elsewhere(kind: str, name: str) -> None:
    with pytest.raises(DatasetError, match="the path") as caught:
        surveyed(packed({"good/a.png": b"x", name: b"x"}, kind))
    assert repr(name) in str(caught.value)


def test_a_name_that_seems_to_end_at_a_nul() -> None:
    data = packed({"good/a.png": b"x", "good/bXc.png": b"x"}, "zip").replace(b"good/bXc", b"good/b\0c")
    with pytest.raises(DatasetError, match="no control characters"):
        surveyed(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["good/a.png", "./good/a.png"])
def test_a_name_that_is_there_twice(kind: str, name: str) -> None:
    if kind == "zip" and name.startswith("."):
        data = packed({"good/a.png": b"1", "./good/a.png": b"2"}, kind)
    else:
        data = twice(name, kind)
    with pytest.raises(DatasetError, match=r"'good/a.png' once but holds it twice"):
        surveyed(data)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
@pytest.mark.parametrize("name", ["good/x.png", ".x", "__MACOSX/x"])
def test_a_tar_of_more_than_files(kind: bytes, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "../../etc/passwd"
    with pytest.raises(DatasetError, match=r"x.*' must be a file or a folder but is a link or something else"):
        surveyed(packed({"good/a.png": b"x", member: b""}, "gz"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_of_more_than_files(kind: int) -> None:
    member = zipfile.ZipInfo("good/x.png")
    member.external_attr = (kind | 0o777) << 16
    with pytest.raises(DatasetError, match=r"'good/x\.png' must be a file or a folder but is a link or something else"):
        surveyed(packed({"good/a.png": b"x", member: b"/etc/passwd"}, "zip"))


def test_a_zip_that_cannot_be_read() -> None:
    data = bytearray(packed({"good/a.png": b"x" * 100}, "zip"))
    central = data.index(b"PK\x01\x02")
    encrypted = bytearray(data)
    encrypted[central + 8] |= 1
    with pytest.raises(DatasetError, match=r"'good/a\.png' must not be encrypted"):
        surveyed(bytes(encrypted))
    for method in (9, 12, 14, 95):
        other = bytearray(data)
        other[central + 10] = method
        with pytest.raises(DatasetError, match=r"'good/a\.png' must be stored or deflated"):
            surveyed(bytes(other))


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_may_be(kind: str) -> None:
    for members, reason in (
        ({f"{index}.png": b"x" for index in range(41)}, "must have at most 40 members"),
        ({"a.png": b"x", "b.png": bytes(2 * 10**6 + 1)}, r"'b\.png' must have at most 2000000 bytes but has 2000001"),
        ({f"{index}.png": bytes(2 * 10**6) for index in range(3)}, r"at most 5,000,000 bytes.*by its member '2\.png'"),
    ):
        with pytest.raises(DatasetError, match=reason):
            surveyed(packed(members, kind))


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz"])
def test_bombs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archives, "_ALWAYS_ALLOWED", 10**6)
    limits = Limits(most_file_bytes=10**8)
    data = packed({"a.png": b"x", "b.png": bytes(2 * 10**7)}, kind)
    assert len(data) < 10**5
    with pytest.raises(DatasetError, match=r"200 times its own size.*by its member 'b\.png'"):
        surveyed(data, limits)
    sound = packed({"a.png": os.urandom(10**6), "b.png": bytes(2 * 10**7)}, kind)
    assert len(surveyed(sound, limits)) == 2


def test_a_bomb_that_lies_about_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archives, "_ALWAYS_ALLOWED", 10**6)
    data = packed({"a.png": bytes(10**7)}, "zip")
    for size in (0, 100, 2**31):
        lying = bytearray(data)
        for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            struct.pack_into("<I", lying, data.index(signature) + offset, size)
        with pytest.raises(DatasetError):
            surveyed(bytes(lying))


def test_a_bomb_in_a_header() -> None:
    """A long name of gigabytes, which tarfile would read at once."""
    header = tarfile.TarInfo("././@LongLink")
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        header.type, header.size = kind, 2 * 10**9
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
            file.write(tarfile.TarInfo("a.png").tobuf() + header.tobuf())
            for _ in range(100):
                file.write(bytes(10**6))
        before = psutil.Process().memory_info().rss
        with pytest.raises(DatasetError, match="a header of 2000000000 bytes"):
            surveyed(buffer.getvalue())
        assert psutil.Process().memory_info().rss - before < 20 * 10**6


def test_a_bomb_of_many_headers() -> None:
    """Headers of half a megabyte, one after the other, before a member comes."""
    body = b"".join(b"%07d k%06d=v\n" % (18, number) for number in range(30_000))
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XGLTYPE, len(body)
    block = header.tobuf() + body + bytes(-len(body) % 512)
    with pytest.raises(DatasetError, match="too large a header"):
        surveyed(gzip.compress(6 * block + tarfile.TarInfo("a.png").tobuf() + bytes(10240)))


@pytest.mark.parametrize("size", [-1, -512, -(2**40)])
def test_sizes_below_nothing(size: int) -> None:
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        member = tarfile.TarInfo("b.png")
        member.type, member.size = kind, size
        block = member.tobuf(tarfile.GNU_FORMAT)
        with pytest.raises(DatasetError):
            surveyed(tarfile.TarInfo("a.png").tobuf() + block + bytes(2048))


def test_a_list_of_members_without_end() -> None:
    many = packed({f"{index:04d}.png": b"" for index in range(3000)}, "zip")
    with pytest.raises(DatasetError, match="list of members must have at most"):
        surveyed(many)


def test_what_is_no_archive() -> None:
    for data in (b"", b"x", bytes(5000), b"\x89PNG\r\n\x1a\n", b"Rar!\x1a\x07\x00"):
        with pytest.raises(UnknownArchiveError, match="must be a zip file, or a tar file"):
            Archive(io.BytesIO(data), SMALL)
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(UnknownArchiveError):
            Archive(io.BytesIO(pack(b"text" * 1000)), SMALL)
    for kind in KINDS:
        with pytest.raises(AutoADError, match=r"holds no files|must be a zip"):
            surveyed(packed({}, kind))
        with pytest.raises(DatasetError, match="holds no files"):
            surveyed(packed({".hidden": b"x"}, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_before_anything_is_taken(kind: str) -> None:
    rng = random.Random(0)
    sound = packed({f"good/{index}.png": rng.randbytes(2000) for index in range(5)}, kind)
    for length in (300, len(sound) // 2, len(sound) - (12_000 if kind == "" else 9)):
        with pytest.raises((DatasetError, UnknownArchiveError)):
            surveyed(sound[:length])
    if kind:
        data = bytearray(sound)
        data[len(data) // 2] ^= 255
        with pytest.raises((DatasetError, UnknownArchiveError), match=r"damaged|must be a zip"):  # all of bzip2's
            surveyed(bytes(data))
    else:  # it has checksums of its headers alone
        data = bytearray(sound)
        data[3 * 2560 + 20] ^= 255
        with pytest.raises(DatasetError, match="is damaged, or ends too early, after 'good/2"):
            surveyed(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_are_refused_or_harmless(kind: str) -> None:
    rng = random.Random(1)
    sound = packed(FILES, kind)
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            where = rng.choice(
                [range(len(data)), range(min(len(data), 512)), range(max(0, len(data) - 300), len(data))]
            )
            data[rng.choice(where)] = rng.randrange(256)
        try:
            archive = Archive(io.BytesIO(bytes(data)), SMALL)
            found = archive.survey()
            list(archive.read({one.sha256 for one in found}))
        except (DatasetError, UnknownArchiveError) as error:
            assert len(str(error)) < 600  # noqa: PT017
