"""A search on a server, for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from autoad.client._following import follow
from autoad.client._records import segment
from autoad.client._transport import Transport
from autoad.errors import UsageError
from autoad.schema import (
    Champion,
    PromotionResult,
    SearchEvent,
    SearchResult,
    SubmissionEntry,
    SubmissionStatus,
)

if TYPE_CHECKING:
    from autoad.client._async_client import AsyncClient

__all__ = ["AsyncSearch"]


class AsyncSearch:
    """A search on a server: what :meth:`AsyncClient.search` gives.

    Attributes:
        entry: how it stood when it was last asked about, or last told of itself.
    """

    def __init__(self, client: AsyncClient, transport: Transport, entry: SubmissionEntry) -> None:
        self.entry = entry
        self._client = client
        self._transport = transport
        self._path = f"/v1/searches/{segment(entry.id)}"

    def __repr__(self) -> str:
        return f"<search {self.name} ({self.id}): {self.status}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self.entry.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def status(self) -> SubmissionStatus:
        """``queued``, ``running``, ``complete``, ``failed`` or ``cancelled``."""
        return self.entry.status

    @property
    def champion(self) -> Champion | None:
        """The model that it chose, once it has."""
        return self.entry.champion

    async def refresh(self) -> SubmissionEntry:
        """Ask how it stands."""
        self.entry = await self._transport.get(SubmissionEntry, self._path)
        return self.entry

    async def follow(self) -> AsyncGenerator[SearchEvent, None]:
        """What happens to it, from its beginning, until nothing of it will change any more.

        A network that is away is waited for, up to the client's patience.

        Raises:
            UnreachableError: nobody answers.
            ServerError: the server refuses or fails.
        """
        async with aclosing(follow(self._transport, f"{self._path}/events")) as events:
            async for event in events:
                self.entry = event.search
                yield event

    async def wait(self, timeout: float | None = None) -> SubmissionEntry:
        """Wait until nothing of it will change any more, and say how it stands then.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimeoutError: it has not ended; it goes on.
            UnreachableError: nobody answers.
            ServerError: the server refuses or fails.
        """
        try:
            async with asyncio.timeout(timeout), aclosing(self.follow()) as events:
                async for _ in events:
                    pass
        except TimeoutError as error:
            raise TimeoutError(f"the search {self.name} has not ended after {timeout} s; it goes on") from error
        return await self.refresh()

    async def cancel(self) -> SubmissionEntry:
        """End it; what it has found stays."""
        self.entry = await self._transport.post(SubmissionEntry, f"{self._path}/cancel", repeat="retries")
        return self.entry

    async def leaderboard(self) -> SearchResult:
        """Its ranked trials and its champion, so far."""
        return await self._transport.get(SearchResult, f"{self._path}/leaderboard")

    async def report(self, path: str | os.PathLike[str]) -> Path:
        """Write its report, one HTML file that opens without a network, and return where it is.

        Args:
            path: of the file, or of a folder for it.

        Raises:
            UsageError: the file cannot be written.
            ServerError: there is no report yet, or the server fails.
        """
        reply = await self._transport.ask("GET", f"{self._path}/report", repeat="retries", timeout=300)
        return await asyncio.to_thread(_write, Path(path), f"{self.name}.html", reply.content)

    async def promote(self, reason: str = "", canary: float | None = None, shadow: bool = False) -> PromotionResult:
        """Let its champion answer, once it scores on the server exactly what was evaluated.

        Args:
            reason: kept in the model's history.
            canary: share of the requests, above 0 and below 1, that it is to answer; None for all.
            shadow: whether it is to score beside the version that answers, unseen.

        Raises:
            UsageError: it has no champion (yet).
            ServerError: the server refuses or fails.
        """
        champion = self.champion or (await self.refresh()).champion
        if champion is None or champion.name is None:
            why = f": {self.entry.error}" if self.entry.error else ""
            wait = "" if self.entry.ended else "; wait until it has ended"
            raise UsageError(f"the search {self.name} ({self.status}) has no champion to promote{why}{wait}")
        return await self._client.promote(champion.name, champion.version, reason=reason, canary=canary, shadow=shadow)


def _write(path: Path, name: str, content: bytes) -> Path:
    path = path / name if path.is_dir() else path
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write the report to {path} ({error.strerror}); choose another file") from error
    return path
