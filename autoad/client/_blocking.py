"""Searches and scores for callers without asyncio."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autoad.client._async_search import AsyncSearch
from autoad.client._portal import Portal
from autoad.client._scores import AsyncScore, Verdict
from autoad.schema import Champion, PromotionResult, SearchEvent, SearchResult, SubmissionEntry, SubmissionStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autoad.client._client import Client

__all__ = ["Score", "Search"]


class Score(Verdict):
    """What a model says of one picture.

    Attributes:
        picture: the path, or what was given instead.
        score: raw; higher is more anomalous.
        normalized_score: between 0 and 1; 0.5 at the threshold.
        is_anomalous: whether the raw score lies above the threshold.
        regions: where, in pixels of the picture, most anomalous first; None for a model without a map.
        model: that was asked.
        version: that answered.
        request_id: by which the server's log knows the request.
        reply: all that the server said.
    """

    def __init__(self, client: Client, portal: Portal, score: AsyncScore) -> None:
        super().__init__(score.reply, score.picture)
        self._client = client  # which closes the portal when nobody has it any more
        self._portal = portal
        self._score = score

    def anomaly_map(self) -> npt.NDArray[np.float32] | None:
        """The raw anomaly map ``[H, W]`` at the model's image size; None for a model without one.

        Asks the same version once more, unless the map came with the score; of a picture that was given as a path, the
        file is read again.

        Raises:
            UnreadableImageError: the file is gone, or another one than it was.
            ServerError: as scoring.
        """
        return self._portal.call(self._score.anomaly_map)

    def normalized_map(self) -> npt.NDArray[np.uint8] | None:
        """The anomaly map ``[H, W]`` from 0 to 255, 127 at the pixel threshold; None for a model without one.

        Raises:
            UnreadableImageError: as :meth:`anomaly_map`.
            ServerError: as scoring.
        """
        return self._portal.call(self._score.normalized_map)


class Search:
    """A search on a server: what :meth:`Client.search` gives."""

    def __init__(self, client: Client, portal: Portal, search: AsyncSearch) -> None:
        self._client = client
        self._portal = portal
        self._search = search

    def __repr__(self) -> str:
        return repr(self._search)

    @property
    def entry(self) -> SubmissionEntry:
        """How it stood when it was last asked about, or last told of itself."""
        return self._search.entry

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

    def refresh(self) -> SubmissionEntry:
        """Ask how it stands."""
        return self._portal.call(self._search.refresh)

    def follow(self) -> Iterator[SearchEvent]:
        """What happens to it, from its beginning, until nothing of it will change any more.

        A network that is away is waited for, up to the client's patience.

        Raises:
            UnreachableError: nobody answers.
            ServerError: the server refuses or fails.
        """
        return self._portal.iterate(self._search.follow(), self)

    def wait(self, timeout: float | None = None) -> SubmissionEntry:
        """Wait until nothing of it will change any more, and say how it stands then.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimeoutError: it has not ended; it goes on.
            UnreachableError: nobody answers.
            ServerError: the server refuses or fails.
        """
        return self._portal.call(lambda: self._search.wait(timeout))

    def cancel(self) -> SubmissionEntry:
        """End it; what it has found stays."""
        return self._portal.call(self._search.cancel)

    def leaderboard(self) -> SearchResult:
        """Its ranked trials and its champion, so far."""
        return self._portal.call(self._search.leaderboard)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write its report, one HTML file that opens without a network, and return where it is.

        Args:
            path: of the file, or of a folder for it.

        Raises:
            UsageError: the file cannot be written.
            ServerError: there is no report yet, or the server fails.
        """
        return self._portal.call(lambda: self._search.report(path))

    def promote(self, reason: str = "", canary: float | None = None, shadow: bool = False) -> PromotionResult:
        """Let its champion answer, once it scores on the server exactly what was evaluated.

        Args:
            reason: kept in the model's history.
            canary: share of the requests, above 0 and below 1, that it is to answer; None for all.
            shadow: whether it is to score beside the version that answers, unseen.

        Raises:
            UsageError: it has no champion (yet).
            ServerError: the server refuses or fails.
        """
        return self._portal.call(lambda: self._search.promote(reason, canary, shadow))
