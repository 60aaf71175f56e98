"""Reading a dataset: an MVTec AD folder, a plain folder of pictures, or a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autoad.data._checks import check
from autoad.data._listing import ListedPicture, Listing
from autoad.data._picture import GOOD, Split
from autoad.data._tree import DiskTree, Tree
from autoad.data.dataset import Dataset
from autoad.data.manifest import list_manifest
from autoad.errors import DatasetError
from autoad.folders import GOOD_NAMES, label_named

__all__ = ["LAYOUT_NAMES", "list_tree", "read_dataset"]

_BAD_NAMES = frozenset(
    ("abnormal", "anomalies", "anomalous", "anomaly", "bad", "defect", "defective", "defects", "faulty", "ng", "nok")
)
_MASK_FOLDERS = ("ground_truth", "masks")
_MVTEC_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": ""}
_MASK_SUFFIX = "_mask"
LAYOUT_NAMES = frozenset({*GOOD_NAMES, *_BAD_NAMES, *_MASK_FOLDERS, *_MVTEC_SPLITS})
"""Folders whose names say what is in them, in lower case."""


def read_dataset(path: Path) -> Dataset:
    """Read and check a dataset.

    Three layouts are understood:

    - MVTec AD: ``train/good``, ``test/<good or the defect>``, ``ground_truth/<defect>/<stem>_mask.png`` (or
      ``<stem>.png``). What is in ``train`` has split ``"train"``; ``test`` is a labelled pool and has none.
    - A plain folder: good pictures directly in it, or in a sub-folder ``good``, ``ok`` or ``normal``; bad ones, if any,
      in a sub-folder ``bad``, ``defect``, ``ng``, ..., whose sub-folders, if any, name the defects. Masks may lie
      as in MVTec AD.
    - A ``.csv`` or ``.parquet`` manifest with columns ``path``, ``label``, ``split``, ``mask``.

    Every picture is really decoded, and recognised by its content. Files that cannot be are skipped by name, as is
    a picture that is there twice with the same label and split.

    Args:
        path: the folder or manifest.

    Raises:
        DatasetError: there is no such folder; it is laid out in none of these ways; it holds fewer than 8 good
            pictures; more than 10 % of its files cannot be read; the same picture stands in two splits or
            under two labels; a mask has no picture or another size than its picture.
    """
    try:
        if path.is_dir():
            listing = list_tree(DiskTree(path))
        elif path.is_file():
            listing = list_manifest(path)
        else:
            raise DatasetError(f"dataset {path} must be an existing folder or manifest but there is none")
    except OSError as error:
        raise DatasetError(f"{error.filename} must be readable but {error.strerror}") from error
    return check(listing.absolute())


def list_tree(tree: Tree) -> Listing:
    """The files of a folder, as its layout has them.

    Raises:
        DatasetError: it is laid out in no way that is understood, or a mask has no picture.
        OSError: a folder cannot be listed.
    """
    return _list_mvtec(tree) if tree.is_folder(tree.root / "train") else _list_folder(tree)


def _list_mvtec(tree: Tree) -> Listing:
    files: list[ListedPicture] = []
    masks = _Masks(tree)
    for sub_folder in tree.folders(tree.root):
        if sub_folder.name not in (*_MVTEC_SPLITS, *_MASK_FOLDERS) and any(tree.files(sub_folder)):
            raise DatasetError(
                f"sub-folder {sub_folder} must be named train, validation, test or ground_truth: rename it or move it"
            )
    for folder, split in _MVTEC_SPLITS.items():
        if tree.is_folder(tree.root / folder):
            files += _list_split(tree, tree.root / folder, split, masks)
    masks.refuse_orphans()
    return Listing(tree.name, tree.root, "mvtec", tuple(files))


def _list_split(tree: Tree, folder: Path, split: Split, masks: _Masks) -> Iterator[ListedPicture]:
    for path in tree.files(folder, recursive=False):
        if split != "train":
            raise DatasetError(f"{path} must lie in a folder that says what it shows, such as {folder / GOOD}")
        yield ListedPicture(path, GOOD, split)
    for labelled in tree.folders(folder):
        label = label_named(labelled.name)
        # Two folders may hold a picture of the same name; only the labelled pool has masks.
        found = masks.of(labelled, labelled.name) if split != "train" else {}
        for path in tree.files(labelled):
            yield ListedPicture(path, label, split, found.get(path))


def _list_folder(tree: Tree) -> Listing:
    root = tree.root
    files = [ListedPicture(path) for path in tree.files(root, recursive=False)]
    masks = _Masks(tree)
    for folder in tree.folders(root):
        name = folder.name.casefold()
        if name in GOOD_NAMES:
            files += [ListedPicture(path) for path in tree.files(folder)]
        elif name in _BAD_NAMES:
            files += _list_bad(tree, folder, masks)
        elif name not in _MASK_FOLDERS and any(tree.files(folder)):
            raise DatasetError(
                f"sub-folder {folder} must be named good (good pictures), bad (bad ones; its own sub-folders name the "
                f"defects) or ground_truth (masks): rename it, for example to {root / 'bad' / folder.name}, or move it"
            )
    masks.refuse_orphans()
    return Listing(tree.name, root, "folder", tuple(files))


def _list_bad(tree: Tree, folder: Path, masks: _Masks) -> Iterator[ListedPicture]:
    found = masks.of(folder, folder.name, recursive=False)
    for path in tree.files(folder, recursive=False):
        yield ListedPicture(path, folder.name, mask=found.get(path))
    for kind in tree.folders(folder):
        label = label_named(kind.name)
        if label == GOOD:
            raise DatasetError(f"{kind} must name a defect but its name says good: move it next to {folder}")
        found = masks.of(kind, kind.name)
        for path in tree.files(kind):
            yield ListedPicture(path, label, mask=found.get(path))


class _Masks:
    """The mask files of a dataset; each must find its picture."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        candidates = (tree.root / name for name in _MASK_FOLDERS)
        self._folder = next((folder for folder in candidates if tree.is_folder(folder)), None)
        self._orphans = set() if self._folder is None else set(tree.files(self._folder))

    def of(self, pictures: Path, label: str, *, recursive: bool = True) -> dict[Path, Path]:
        """Masks of the pictures in a folder, by picture; a mask is called as its picture, or ``<stem>_mask``."""
        if self._folder is None or not self._tree.is_folder(self._folder / label):
            return {}
        by_name: dict[Path, Path] = {}
        for path in self._tree.files(pictures, recursive=recursive):
            name = path.relative_to(pictures).with_suffix("")
            if name in by_name:
                by_name[name] = Path()  # two pictures of one name: whose mask is it?
            else:
                by_name[name] = path
        masks: dict[Path, Path] = {}
        for mask in self._tree.files(self._folder / label):
            name = mask.relative_to(self._folder / label).with_suffix("")
            name = name if name in by_name else name.with_name(name.name.removesuffix(_MASK_SUFFIX))
            picture = by_name.get(name)
            if picture is None:
                continue
            if picture == Path():
                raise DatasetError(f"mask {mask} must belong to one picture but several are called {pictures / name}")
            if picture in masks:
                raise DatasetError(f"picture {picture} must have one mask but got {masks[picture]} and {mask}")
            masks[picture] = mask
            self._orphans.discard(mask)
        return masks

    def refuse_orphans(self) -> None:
        """Complain of masks without a picture."""
        if self._orphans:
            first = min(self._orphans)
            more = f" (and {len(self._orphans) - 1} more)" if len(self._orphans) > 1 else ""
            raise DatasetError(f"mask {first}{more} must belong to a picture but there is none")
