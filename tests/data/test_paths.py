from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoad.data._frames import read_frames
from autoad.data._paths import check_path, check_paths
from autoad.data._tree import DiskTree, NamedTree
from autoad.data.layouts import list_tree
from autoad.errors import DatasetError, UsageError


def framed(contents: Iterable[bytes]) -> memoryview:
    frames = (hashlib.sha256(data).digest() + struct.pack(">Q", len(data)) + data for data in contents)
    return memoryview(b"".join(frames))


PARTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc",), exclude_characters="/\\"), min_size=1, max_size=20
).filter(lambda part: part not in (".", ".."))


@given(st.lists(PARTS, min_size=1, max_size=4).map("/".join))
@settings(deadline=None)
def test_a_sound_path_stays_below_its_folder(path: str) -> None:
    if any(127 <= ord(letter) < 160 for letter in path):
        return
    check_path(path)
    assert os.path.normpath(os.path.join("/root", path)) == f"/root/{path}"


@given(st.text(max_size=30) | st.text("ab./\\\0\n", max_size=8) | st.lists(PARTS, max_size=3).map("/".join))
@settings(deadline=None, max_examples=500)
def test_whatever_passes_is_a_plain_name(path: str) -> None:
    try:
        check_path(path)
    except DatasetError:
        return
    parts = path.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\\" not in path
    assert path.isprintable() or not any(ord(letter) < 32 for letter in path)
    assert Path(path).as_posix() == path
    assert max(len(part.encode()) for part in parts) <= 255


@pytest.mark.parametrize(
    "path", ["", "a//b", "a/", "./a", "a/.", "..", "/", "a\\b", "a\x7f", "a\x85", "\ud800", "x" * 256]
)
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(DatasetError):
        check_path(path)


def test_paths_that_cannot_be_together() -> None:
    check_paths(["a", "b/a", "b/c/d", "ab"])
    for paths in (["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"], ["x/y", "x/y/z/w"]):
        with pytest.raises(DatasetError, match=r"twice|both"):
            check_paths(paths)
        with pytest.raises(DatasetError, match=r"twice|both"):
            check_paths(reversed(paths))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.integers(0, 400))
@settings(deadline=None)
def test_frames_come_back_or_are_refused(contents: list[bytes], cut: int) -> None:
    body = framed(contents)
    found = list(read_frames(body))
    assert [bytes(data) for _, data in found] == contents
    assert [sha256 for sha256, _ in found] == [hashlib.sha256(data).hexdigest() for data in contents]
    ends = {0}
    for data in contents:
        ends.add(max(ends) + 40 + len(data))
    if cut < len(body) and (cut not in ends or cut == 0):
        with pytest.raises(UsageError):
            list(read_frames(body[:cut]))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_frames_or_refused(body: bytes) -> None:
    try:
        frames = list(read_frames(memoryview(body)))
    except UsageError:
        return
    assert sum(40 + len(data) for _, data in frames) == len(body)


NAMES = st.lists(
    st.sampled_from(
        ["good", "bad", "train", "test", "ground_truth", "crack", "a", "b.png", ".x", "README.md", "x_mask"]
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@given(st.lists(NAMES, min_size=1, max_size=12, unique=True))
@settings(deadline=None, max_examples=60)
def test_names_are_listed_as_the_disk_lists_them(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    paths = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()

    def outcome(tree: Any, strip: str) -> Any:
        try:
            listing = list_tree(tree)
        except DatasetError as error:
            return str(error).replace(strip, "")
        return listing.layout, [
            (str(one.path).replace(strip, ""), one.label, one.split, str(one.mask).replace(strip, ""))
            for one in listing.files
        ]

    assert outcome(NamedTree(paths, "tree"), "\0") == outcome(DiskTree(root), f"{root}/")
