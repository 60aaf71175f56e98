"""The files of a folder by their names: on this machine's disk, or as somebody else has told them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from autoad.folders import files_below, is_data

__all__ = ["DiskTree", "NamedTree", "Tree"]


class Tree(Protocol):
    """A folder and all below it; hidden files are none of it, nor is what explains or decorates a folder.

    Attributes:
        root: the folder, with which all its paths begin.
        name: of the dataset in it.
    """

    root: Path
    name: str

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder of that path."""

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder, by name."""

    def files(self, folder: Path, *, recursive: bool = True) -> Iterator[Path]:
        """The files in a folder, in the order of their names."""


class DiskTree:
    """A folder of this machine; :class:`Tree`.

    Its methods raise OSError where a folder cannot be listed.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder of that path."""
        return path.is_dir()

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder, by name."""
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def files(self, folder: Path, *, recursive: bool = True) -> Iterator[Path]:
        """The files in a folder, in the order of their names."""
        return files_below(folder, recursive=recursive)


class NamedTree:
    """A folder of which only the names of its files are known; :class:`Tree`. Its root is the empty path.

    Args:
        paths: of its files, relative, parts separated by ``/``.
        name: of the dataset.
    """

    def __init__(self, paths: Iterable[str], name: str) -> None:
        self.root = Path()
        self.name = name
        self._names: defaultdict[str, list[str]] = defaultdict(list)  # by folder, of which the root is the empty one
        self._folders: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            folder, _, file = path.rpartition("/")
            self._names[folder].append(file)
        known: set[str] = set()
        for folder in self._names:
            while folder and folder not in known:
                known.add(folder)
                parent, _, folder_name = folder.rpartition("/")
                self._folders[parent].append(folder_name)
                folder = parent

    def is_folder(self, path: Path) -> bool:
        """Whether a file lies in that folder, or below it."""
        return _key(path) in self._names or _key(path) in self._folders

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder, by name."""
        return [folder / name for name in sorted(self._folders.get(_key(folder), ())) if not name.startswith(".")]

    def files(self, folder: Path, *, recursive: bool = True) -> Iterator[Path]:
        """The files in a folder, in the order of their names."""
        waiting = [folder]
        while waiting:
            parent = waiting.pop()
            names = sorted(self._names.get(_key(parent), ()))
            yield from (parent / name for name in names if is_data(name))
            if recursive:
                waiting += reversed(self.folders(parent))


def _key(folder: Path) -> str:
    return str(folder) if folder.parts else ""
