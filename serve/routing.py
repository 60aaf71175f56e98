"""Which version answers a request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from autoad.errors import UnknownNameError, UsageError
from autoad.schema import RouteEntry

__all__ = ["NoChampionError", "choose_version", "request_share"]


class NoChampionError(UsageError):
    """A model exists, but no version of it has been promoted."""


def request_share(request_id: str) -> float:
    """Where a request's id falls in [0, 1), uniformly: the same id always falls on the same version."""
    return int.from_bytes(hashlib.sha256(request_id.encode("utf-8", "replace")).digest()[:8], "big") / 2**64


def choose_version(
    routes: Mapping[tuple[str, str], RouteEntry], project: str, name: str, wanted: str | None, request_id: str
) -> int:
    """The version that is to answer.

    Args:
        routes: as they are now.
        project: whose model is meant.
        name: of the model.
        wanted: a version's number, or an alias; None for the champion or, for its share of the requests, the canary.
        request_id: decides for the canary.

    Raises:
        UnknownNameError: there is no such model or alias.
        NoChampionError: nothing has been promoted, or nothing has that alias.
    """
    route = routes.get((project, name))
    if route is None:
        raise UnknownNameError("model", name, (known for owner, known in routes if owner == project))
    if wanted is None:
        if route.champion is None:
            raise NoChampionError(f"no version of {name!r} has been promoted; promote one with: autoad promote {name}")
        if route.canary is not None and request_share(request_id) < route.canary_share:
            return route.canary
        return route.champion
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= 9:
        return int(wanted)
    aliases = {
        "champion": route.champion,
        "previous": route.previous,
        "canary": route.canary,
        "shadow": route.shadow,
    }
    if wanted not in aliases:
        raise UnknownNameError("version or alias", wanted, aliases)
    version = aliases[wanted]
    if version is None:
        raise NoChampionError(f"no version of {name!r} is {wanted}")
    return version
