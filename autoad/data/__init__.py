"""Pictures in: layouts, decoding, roles, synthetic defects and the demonstration dataset."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autoad.data._picture import GOOD, Picture, Split
from autoad.data.dataset import Dataset, Skipped
from autoad.data.decoding import MAX_PIXELS, decode_image, load_image, load_mask, resize_image
from autoad.data.layouts import read_dataset
from autoad.data.splits import Roles, assign_roles

if TYPE_CHECKING:
    from autoad.data.demo import write_demo_dataset
    from autoad.data.synthetic import draw_defects

__all__ = [
    "GOOD",
    "MAX_PIXELS",
    "Dataset",
    "Picture",
    "Roles",
    "Skipped",
    "Split",
    "assign_roles",
    "decode_image",
    "draw_defects",
    "load_image",
    "load_mask",
    "read_dataset",
    "resize_image",
    "write_demo_dataset",
]

# They draw with SciPy, which takes a quarter of a second that a process which only scores should not wait.
_DRAWING = {"draw_defects": "autoad.data.synthetic", "write_demo_dataset": "autoad.data.demo"}


def __getattr__(name: str) -> Any:
    if name in _DRAWING:
        return getattr(importlib.import_module(_DRAWING[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
