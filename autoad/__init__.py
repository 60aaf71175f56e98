"""AutoML for visual anomaly detection."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoad.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = version("autoad")
# Pictures go from OpenVINO's threads to torch's and back. By default torch's (GNU OpenMP's) spin for milliseconds when
# they have nothing to do, which takes the cores from those that have: a tenth of a millisecond bridges the gaps between
# a network's layers as well. The library reads this when it is loaded, hence before anything here imports torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

_CLIENTS = frozenset({"AsyncClient", "Client"})


def __getattr__(name: str) -> Any:
    """The clients are imported when they are asked for: whoever serves or searches needs none."""
    if name in _CLIENTS:
        from autoad import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLIENTS})
