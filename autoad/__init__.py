"""AutoML for visual anomaly detection."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoad.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = version("autoad")
_CLIENTS = frozenset({"AsyncClient", "Client"})


def __getattr__(name: str) -> Any:
    """The clients are imported when they are asked for: whoever serves or searches needs none."""
    if name in _CLIENTS:
        from autoad import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLIENTS})
