"""The pictures and weights that both sides get: the same files, already at their final size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from autoad.data import Picture, load_image, load_mask, read_dataset
from autoad.features import create_backbone

__all__ = ["Folder", "prepare", "write_weights"]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A dataset as both sides see it.

    Attributes:
        name: of the folder it was made from.
        path: in MVTec AD layout, with ``test.txt`` (test pictures in order) and ``truth.npz`` (``labels`` of all of
            them; ``known``, the rows whose defects are known to the pixel, and their ``masks``).
        train: number of training pictures.
        test: number of test pictures.
    """

    name: str
    path: Path
    train: int
    test: int

    @property
    def truth(self) -> Path:
        """See ``path``."""
        return self.path / "truth.npz"


def prepare(source: Path, target: Path, size: int, train: int | None, test: int | None) -> Folder:
    """Write a dataset's pictures at ``size`` x ``size`` as PNG files, so that decoding and resizing are the same.

    Args:
        source: folder in MVTec AD layout.
        target: folder to be made.
        size: height and width.
        train: at most so many training pictures, evenly spread over all; None for all.
        test: likewise of the test pictures, half of them good.
    """
    pictures = read_dataset(source).pictures
    chosen = _spread([p for p in pictures if p.split == "train"], train)
    rest = [p for p in pictures if p.split != "train"]
    good, bad = ([p for p in rest if p.is_normal is normal] for normal in (True, False))
    half = None if test is None else test // 2
    tests = [*_spread(good, half), *_spread(bad, half)]
    for number, picture in enumerate(chosen):
        _write(picture, target / f"train/good/{number:04}.png", size)
    names, known, masks = [], [], []
    for number, picture in enumerate(tests):
        names.append(f"test/{picture.label}/{number:04}.png")
        _write(picture, target / names[-1], size)
        mask = np.zeros((size, size), bool) if picture.is_normal else load_mask(picture, (size, size))
        if mask is not None:
            known.append(number)
            masks.append(mask)
    (target / "test.txt").write_text("\n".join(names))
    labels = np.array([not picture.is_normal for picture in tests])
    if not labels[known].any():
        known, masks = [], []
    np.savez_compressed(target / "truth.npz", labels=labels, known=np.array(known, int), masks=np.array(masks, bool))
    return Folder(source.name, target, len(chosen), len(tests))


def write_weights(folder: Path) -> dict[str, str]:
    """Write the tensors of both sides' backbones as timm's feature pyramids have them; by name, the file.

    EfficientNet-Lite0's are the pretrained ones. ResNet-18's are random, from a seed, for Reverse Distillation only,
    which anomalib has for ResNets alone; autoad finds ``resnet18.safetensors`` through ``AUTOAD_WEIGHTS_DIR``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pyramid = create_backbone("tf_efficientnet_lite0", (1, 2, 3, 4), pretrained=True).state_dict()
    tensors = {name.removeprefix("network."): tensor.contiguous().clone() for name, tensor in pyramid.items()}
    save_file(tensors, folder / "pyramid.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = timm.create_model("resnet18", pretrained=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in random.items()}, folder / "resnet18.safetensors")
    return {
        "tf_efficientnet_lite0": str(folder / "pyramid.safetensors"),
        "resnet18": str(folder / "resnet18.safetensors"),
    }


def _spread(pictures: Sequence[Picture], count: int | None) -> list[Picture]:
    if count is None or count >= len(pictures):
        return list(pictures)
    return [pictures[index] for index in np.linspace(0, len(pictures) - 1, count).round().astype(int)]


def _write(picture: Picture, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(load_image(picture.read(), (size, size))).save(target)
