"""What clients of the tests send: folders of small pictures, as requests, frames and archives."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["announced", "files_below", "folder", "framed", "mask", "picture", "submit", "tarred", "zipped"]


def picture(seed: int, size: tuple[int, int] = (12, 16), kind: str = "PNG") -> bytes:
    """An encoded picture that depends on the seed alone."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    return _encoded(pixels, kind)


def mask(size: tuple[int, int] = (12, 16), *, empty: bool = False) -> bytes:
    """An encoded mask with one square defect, or none."""
    pixels = np.zeros(size, dtype=np.uint8)
    if not empty:
        pixels[2:5, 3:6] = 255
    return _encoded(pixels, "PNG")


def _encoded(pixels: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def folder(good: int = 10, seed: int = 0) -> dict[str, bytes]:
    """A small dataset in MVTec AD layout: files by their paths."""
    files = {f"train/good/{index:03d}.png": picture(seed + index) for index in range(good)}
    for index in range(3):
        files[f"test/crack/{index}.png"] = picture(seed + 500 + index)
        files[f"ground_truth/crack/{index}_mask.png"] = mask()
    files["test/good/0.png"] = picture(seed + 600)
    return files


def write_folder(where: Path, good: int = 10) -> Path:
    """The same on the disk."""
    for path, data in folder(good).items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(data)
    return where


def files_below(root: Path) -> dict[str, bytes]:
    """The files of a folder by their paths."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def announced(files: Mapping[str, bytes], **more: Any) -> dict[str, Any]:
    """The JSON that begins an upload."""
    return {
        "files": [
            {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for path, data in files.items()
        ],
        **more,
    }


def framed(contents: Iterable[bytes]) -> bytes:
    """A packed body."""
    return b"".join(hashlib.sha256(data).digest() + struct.pack(">Q", len(data)) + data for data in contents)


async def submit(client: Any, name: str, files: Mapping[str, bytes], headers: Any = None, **more: Any) -> Any:
    """The reply to the commit of an upload, all of whose missing files were sent in one body."""
    begun = await client.post(f"/v1/datasets/{name}/uploads", json=announced(files, **more), headers=headers)
    assert begun.status_code == 201, begun.text
    upload = begun.json()
    missing = set(upload["missing"])
    path = f"/v1/datasets/{name}/uploads/{upload['id']}"
    if missing:
        by_sha256 = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        body = framed(by_sha256[sha256] for sha256 in missing)
        sent = await client.post(f"{path}/files", content=body, headers=headers)
        assert sent.status_code == 200, sent.text
        assert sent.json()["files"] == len(missing)
    return await client.post(f"{path}/commit", headers=headers)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], kind: str = "") -> bytes:
    """A tar file, packed by ``gz``, ``bz2`` or ``xz``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
