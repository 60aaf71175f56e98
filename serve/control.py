"""The control plane: promotion with its parity gate, canary, shadow, rollback, deletion.

Nothing here scores. The database is the truth and every change of a route is one transaction of the registry; so this
process may die at any moment, and the old route or the new one is what replicas read.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import EllipsisType

import httpx2

from autoad.database import RouteConflictError
from autoad.errors import ArtifactError, PromotionError, UsageError
from autoad.models import read_manifest
from autoad.models.parity import ParityPicture, read_parity
from autoad.models.registry import Registry
from autoad.schema import PromoteRequest, PromotionResult, ReplicaEntry, RouteEntry
from autoad.serve.gate import Ruler, find_discrepancies
from autoad.serve.replay import Replay, ReplayError

__all__ = ["Control", "NotReadyError"]

_LOAD_SECONDS = 120.0
_LIVE_SECONDS = 8.0
_ASK_SECONDS = 60.0
_LISTED = 20


class NotReadyError(PromotionError):
    """The replicas could not be asked now; nothing is known against the version."""


class Control:
    """Carries out what changes a route.

    Args:
        registry: the models of all projects.
        server: address at which this process reaches the data plane.
        key: the API key for a project.
        poll_seconds: after how long at most a replica knows of a change.
        batch: largest batch of the data plane.
        most_bytes: of a request to it.
        name: of this server; its replicas' names begin with it and a dot. Empty for all that share the database.
    """

    def __init__(
        self,
        registry: Registry,
        server: str,
        key: Callable[[str], str],
        *,
        poll_seconds: float,
        batch: int,
        most_bytes: int = 64 * 2**20,
        name: str = "",
    ) -> None:
        self._registry = registry
        self._server = server
        self._key = key
        self._poll_seconds = poll_seconds
        self._batch = batch
        self._most_bytes = most_bytes
        self._name = name
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def promote(
        self,
        project: str,
        actor: str,
        name: str,
        request: PromoteRequest,
        instead_of: int | EllipsisType | None = ...,
    ) -> PromotionResult:
        """Load a version on every live replica, hold its answers against its record, and let it answer.

        Args:
            project: whose model it is.
            actor: who asks.
            name: of the model.
            request: which version, why, and whether as canary or shadow.
            instead_of: the only champion whose place a new one may take; by default any.

        Raises:
            UsageError: no such version, it answers already, or no replica is up.
            PromotionError: a replica cannot load it, or its scores are not those that were evaluated.
        """
        started = time.monotonic()
        async with self._alone(project, name):
            version = await self._choose(project, name, request)
            await asyncio.to_thread(self._registry.stage, name, version, project=project)
            try:
                replicas: set[str] = set()
                pictures = answered = 0
                # Until nobody has joined while the others were being checked.
                while joined := await self._loaded_everywhere(f"{project}/{name}/{version}") - replicas:
                    pictures, more = await self._check_parity(project, name, version, joined)
                    answered += more
                    replicas |= joined
                route = await asyncio.to_thread(self._commit, project, actor, name, version, request, instead_of)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self._registry.unstage, name, version, project=project))
                raise
        await asyncio.sleep(1.5 * self._poll_seconds)  # whoever asks next is answered by the new route
        return PromotionResult(
            route=route,
            version=version,
            replicas=sorted(replicas),
            parity_pictures=pictures,
            parity_answers=answered,
            seconds=round(time.monotonic() - started, 3),
        )

    async def rollback(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        """Let the previous champion answer again, at once: it passed its gate when it was promoted.

        Raises:
            UsageError: there is no previous champion.
        """
        route = await asyncio.to_thread(self._registry.rollback, name, reason=reason, actor=actor, project=project)
        await asyncio.sleep(1.5 * self._poll_seconds)
        return route

    async def end_canary(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        """Let the champion alone answer."""
        return await asyncio.to_thread(self._registry.end_canary, name, reason=reason, actor=actor, project=project)

    async def end_shadow(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        """Score with the shadow no more."""
        return await asyncio.to_thread(self._registry.end_shadow, name, reason=reason, actor=actor, project=project)

    async def delete(self, project: str, actor: str, name: str, version: int, reason: str) -> None:
        """Delete a version that has no part in answering.

        Raises:
            UsageError: no such version, or it has.
        """
        await asyncio.to_thread(self._registry.delete, name, version, reason=reason, actor=actor, project=project)

    async def is_up(self) -> bool:
        """Whether a replica lives that could load what is promoted."""
        living = await asyncio.to_thread(self._registry.replicas, _LIVE_SECONDS)
        return any(self._is_mine(replica) for replica in living)

    async def tidy(self) -> None:
        """Forget promotions that an earlier control plane did not live to finish; another server's may be under way."""

        def unstage() -> None:
            if any(not self._is_mine(replica) for replica in self._registry.replicas(_LIVE_SECONDS)):
                return
            for (project, name), route in self._registry.routes().items():
                if route.staged is not None:
                    self._registry.unstage(name, route.staged, project=project)

        await asyncio.to_thread(unstage)

    @asynccontextmanager
    async def _alone(self, project: str, name: str) -> AsyncIterator[None]:
        lock = self._locks[project, name]
        if lock.locked():
            raise RouteConflictError(f"another version of {name!r} is being promoted; wait until that has ended")
        async with lock:
            yield

    async def _choose(self, project: str, name: str, request: PromoteRequest) -> int:
        model = await asyncio.to_thread(self._registry.model, name, project=project)
        version = request.version if request.version is not None else model.versions[0].version
        if version == model.route.champion:
            raise UsageError(f"version {version} of {name!r} is the champion already")
        if (request.canary is not None or request.shadow) and model.route.champion is None:
            raise UsageError(f"{name!r} has no champion yet, so there is nothing to compare version {version} with")
        return version

    def _commit(
        self,
        project: str,
        actor: str,
        name: str,
        version: int,
        request: PromoteRequest,
        instead_of: int | EllipsisType | None,
    ) -> RouteEntry:
        if request.canary is not None:
            return self._registry.set_canary(
                name, version, request.canary, reason=request.reason, actor=actor, project=project
            )
        if request.shadow:
            return self._registry.set_shadow(name, version, reason=request.reason, actor=actor, project=project)
        return self._registry.promote(
            name, version, reason=request.reason, actor=actor, project=project, instead_of=instead_of
        )

    async def _loaded_everywhere(self, version: str) -> set[str]:
        """Wait until each live replica has loaded a version; who they are."""
        deadline = time.monotonic() + _LOAD_SECONDS
        while True:
            living = await asyncio.to_thread(self._registry.replicas, _LIVE_SECONDS)
            replicas = [replica for replica in living if self._is_mine(replica)]
            for replica in replicas:
                if reason := replica.failed.get(version):
                    raise PromotionError(f"replica {replica.id} cannot load {version}: {reason}")
            if replicas and all(version in replica.loaded for replica in replicas):
                return {replica.id for replica in replicas}
            if time.monotonic() > deadline:
                waiting = [replica.id for replica in replicas if version not in replica.loaded]
                what = f"replicas {', '.join(waiting)} have" if waiting else "no replica is up that could have"
                raise NotReadyError(f"after {_LOAD_SECONDS:.0f} s {what} not loaded {version}; try again")
            await asyncio.sleep(0.1)

    def _is_mine(self, replica: ReplicaEntry) -> bool:
        """Whether a replica is this server's: several may share a database, and only its own can be asked here."""
        return replica.id.startswith(f"{self._name}.") if self._name else True

    async def _check_parity(self, project: str, name: str, version: int, replicas: set[str]) -> tuple[int, int]:
        """How many pictures were sent, and how many answers they got."""

        def read() -> tuple[Ruler, Sequence[ParityPicture]]:
            folder = self._registry.open(name, version, project=project)
            pictures = read_parity(folder)
            return Ruler.of(read_manifest(folder), pictures), pictures

        try:
            ruler, pictures = await asyncio.to_thread(read)
        except (ArtifactError, ValueError) as error:
            raise PromotionError(f"version {version} of {name!r} cannot be checked: {error}") from error
        headers = {"Authorization": f"Bearer {self._key(project)}"}
        async with httpx2.AsyncClient(base_url=self._server, headers=headers, timeout=_ASK_SECONDS) as client:
            try:
                answers = await Replay(client, name, version, pictures, self._batch, self._most_bytes).run(replicas)
            except ReplayError as error:
                raise NotReadyError(str(error)) from error
        if found := find_discrepancies(ruler, pictures, answers):
            raise PromotionError(
                f"version {version} of {name!r} does not score here what was evaluated: {len(found)} of "
                f"{len(answers)} answers differ by more than {ruler.tolerance:g} interquartile ranges",
                [str(one) for one in found[:_LISTED]],
            )
        return len(pictures), len(answers)
