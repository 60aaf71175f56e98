"""Sending parity pictures through the server, as a client would, until every replica has answered."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import httpx2
import numpy as np

from autoad.errors import AutoADError
from autoad.models.parity import ParityPicture
from autoad.serve.gate import Answer

__all__ = ["Replay", "ReplayError"]

_SIDE_BY_SIDE = 4
_ALONE_EACH = 8
_ROUNDS = 20
_ATTEMPTS = 5
_PASSING = frozenset({429, 500, 502, 503, 504})


class ReplayError(AutoADError):
    """The server did not answer the parity pictures."""


class Replay:
    """One version's parity pictures through HTTP.

    Args:
        client: with the server's address and a key.
        name: of the model.
        version: to be asked for by number.
        pictures: the parity set.
        batch: most pictures of one request.
        most_bytes: of one request.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        name: str,
        version: int,
        pictures: Sequence[ParityPicture],
        batch: int,
        most_bytes: int,
    ) -> None:
        self._client = client
        self._path = f"/v1/models/{name}/score"
        self._version = version
        self._pictures = pictures
        largest = max(len(picture.data) for picture in pictures)
        # A tenth for what a form adds. One picture is what every server takes.
        self._batch = max(1, min(batch, len(pictures), int(0.9 * most_bytes) // largest))

    async def run(self, replicas: Collection[str]) -> list[Answer]:
        """Every picture alone and in the largest batches, then more of both until each of ``replicas`` has answered.

        The balancer decides who answers, so this asks again with a rotated order, and gives up after a while.

        Raises:
            ReplayError: the server refused a picture, or a replica never answered.
        """
        answers: list[Answer] = []
        alone: Counter[str] = Counter()
        batches: Counter[str] = Counter()
        wanted = min(_ALONE_EACH, len(self._pictures))
        for turn in range(_ROUNDS):
            missing = [one for one in replicas if alone[one] < wanted or batches[one] < 1]
            if turn and not missing:
                break
            order = np.roll(np.arange(len(self._pictures)), turn)
            # The first turn is the whole set; the others only look for replicas that have not been met yet.
            singles = order if turn == 0 else order[: 2 * wanted]
            for found in await self._all([[int(index)] for index in singles]):
                answers.extend(found)
                alone.update(answer.replica for answer in found)
            starts = range(0, len(order) if turn == 0 else 1, self._batch)
            # The last batch is filled up from the start: a small one would test nothing new.
            for found in await self._all(
                [[int(order[(start + step) % len(order)]) for step in range(self._batch)] for start in starts]
            ):
                answers.extend(found)
                batches[found[0].replica] += 1
        else:
            raise ReplayError(
                f"replicas {', '.join(missing)} did not answer in {_ROUNDS} rounds of parity pictures; try again"
            )
        return answers

    async def _all(self, groups: Sequence[Sequence[int]]) -> list[list[Answer]]:
        """Several requests side by side, so that the balancer spreads them."""
        limit = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(group: Sequence[int]) -> list[Answer]:
            async with limit:
                return await self._ask(group)

        return await asyncio.gather(*(one(group) for group in groups))

    async def _ask(self, group: Sequence[int]) -> list[Answer]:
        wanted: dict[str, str | int] = {"version": self._version, "map": "npy"}
        body: dict[str, Any]
        if len(group) == 1:
            body = {
                "content": self._pictures[group[0]].data,
                "headers": {"Content-Type": "application/octet-stream"},
            }
        else:
            body = {"files": [("pictures", (str(index), self._pictures[index].data)) for index in group]}
        reply = await self._post(params=wanted, **body)
        if reply.status_code != 200:
            raise ReplayError(f"the server refused a parity picture: {reply.status_code} {reply.text[:300]}")
        said = reply.json()
        if said["version"] != self._version or len(said["pictures"]) != len(group):
            raise ReplayError(
                f"the server must answer {len(group)} parity pictures by version {self._version} but answered "
                f"{len(said['pictures'])} by version {said['version']}"
            )
        return [
            Answer(index, one["score"], one["is_anomalous"], _read_map(one.get("map")), said["replica"], len(group))
            for index, one in zip(group, said["pictures"], strict=True)
        ]

    async def _post(self, **options: Any) -> httpx2.Response:
        """A reply; a queue that is full and a replica that has died are given some time.

        Raises:
            ReplayError: nobody answers.
        """
        for attempt in range(_ATTEMPTS):
            try:
                reply = await self._client.post(self._path, **options)
            except httpx2.TransportError as error:
                if attempt == _ATTEMPTS - 1:
                    raise ReplayError(f"the server did not answer a parity picture ({error!r}); try again") from error
            else:
                if reply.status_code not in _PASSING or attempt == _ATTEMPTS - 1:
                    return reply
            await asyncio.sleep(2.0**attempt / 2)
        raise AssertionError("the last attempt returns or raises")


def _read_map(text: Any) -> Any:
    if text is None:
        return None
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
