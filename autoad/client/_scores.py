"""Scores as callers get them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import io
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from autoad.client._pictures import Encoded
from autoad.errors import AutoADError, ServerError
from autoad.schema import MapFormat, PictureReply, Region, ScoreReply

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["AskAgain", "AsyncScore", "FailedPicture", "MapChoice", "Verdict", "map_format"]

MapChoice = bool | Literal["npy", "png"]
"""Whether maps come with a score: no; raw (``True``, ``"npy"``); or normalised (``"png"``)."""
AskAgain = Callable[[Encoded, ScoreReply, MapFormat], Awaitable[PictureReply]]
"""Has the version that answered score the same picture once more, with a map."""


def map_format(maps: MapChoice) -> MapFormat:
    """What is asked of the server."""
    return {True: "npy", False: "none"}[maps] if isinstance(maps, bool) else maps  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class FailedPicture:
    """A picture that could not be scored, in ``score_many(..., errors="return")``.

    Attributes:
        picture: its path, or its number among the pictures.
        error: why.
    """

    picture: str
    error: AutoADError


class Verdict:
    """What scores have in common."""

    def __init__(self, reply: ScoreReply, picture: str) -> None:
        (one,) = reply.pictures
        self.picture = picture
        self.score: float = one.score
        self.normalized_score: float = one.normalized_score
        self.is_anomalous: bool = one.is_anomalous
        self.regions: list[Region] | None = one.regions
        self.model = reply.model
        self.version = reply.version
        self.request_id = reply.request_id
        self.reply = reply

    def __repr__(self) -> str:
        verdict = "anomalous" if self.is_anomalous else "good"
        return f"<{self.picture}: {verdict}, {self.normalized_score:.3f} by {self.model}/{self.version}>"


class AsyncScore(Verdict):
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

    def __init__(self, reply: ScoreReply, source: Encoded, maps: MapFormat, again: AskAgain) -> None:
        super().__init__(reply, source.name)
        self._source = source
        self._again = again
        self._known: dict[MapFormat, str | None] = {maps: reply.pictures[0].map} if maps != "none" else {}

    async def anomaly_map(self) -> npt.NDArray[np.float32] | None:
        """The raw anomaly map ``[H, W]`` at the model's image size; None for a model without one.

        Asks the same version once more, unless the map came with the score; of a picture that was given as a path, the
        file is read again.

        Raises:
            UnreadableImageError: the file is gone, or another one than it was.
            ServerError: as scoring.
        """
        data = await self._map("npy")
        return None if data is None else await asyncio.to_thread(_load_array, data)

    async def normalized_map(self) -> npt.NDArray[np.uint8] | None:
        """The anomaly map ``[H, W]`` from 0 to 255, 127 at the pixel threshold; None for a model without one.

        Raises:
            UnreadableImageError: as :meth:`anomaly_map`.
            ServerError: as scoring.
        """
        data = await self._map("png")
        return None if data is None else await asyncio.to_thread(_load_picture, data)

    async def _map(self, kind: MapFormat) -> bytes | None:
        if self.regions is None:
            return None
        if kind not in self._known:
            self._known[kind] = (await self._again(self._source, self.reply, kind)).map
        text = self._known[kind]
        try:
            return None if text is None else base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise _damaged(error) from error


def _load_array(data: bytes) -> npt.NDArray[np.float32]:
    import numpy as np

    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return array.astype(np.float32, copy=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(error) from error


def _load_picture(data: bytes) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.array(image.convert("L"))
    except (ValueError, OSError, SyntaxError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ServerError:
    return ServerError(f"the anomaly map that the server sent is damaged ({error})", "unreadable_reply", 200)
