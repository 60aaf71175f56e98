"""The SDK for asyncio; :class:`autoad.client.Client` is the same without it."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar, overload

import httpx2

from autoad.client._async_search import AsyncSearch
from autoad.client._local import dataset_name, is_archive
from autoad.client._pictures import Encoded, Picture, Pictures, encode_picture
from autoad.client._records import make_record, model_version, segment
from autoad.client._scores import AsyncScore, FailedPicture, MapChoice, map_format
from autoad.client._several import check_several, numbered
from autoad.client._streams import in_order
from autoad.client._transport import Repeat, Transport
from autoad.client._uploads import Progress, send_archive, send_dataset
from autoad.errors import (
    AutoADError,
    BusyError,
    NotFoundError,
    RefusedError,
    ServerError,
    UnreadableImageError,
    UsageError,
)
from autoad.folders import label_named
from autoad.schema import (
    DatasetEntry,
    DatasetPage,
    DatasetPicture,
    DatasetVersions,
    MapFormat,
    ModelEntry,
    Objective,
    PicturePage,
    PictureReply,
    PromoteRequest,
    PromoteWhen,
    PromotionResult,
    ReasonRequest,
    RouteEntry,
    ScoreReply,
    SubmissionEntry,
    SubmissionPage,
    SubmitRequest,
    ThresholdMethod,
    parse_duration,
)
from autoad.settings import DEFAULT_SERVER, get_settings

__all__ = ["AsyncClient"]

_PROMOTION_SECONDS = 300.0
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_PAGE = 100
_PICTURE = {"Content-Type": "application/octet-stream"}
_OF_THE_PICTURE = frozenset({"unreadable_picture", "picture_too_large", "request_too_large"})


class _Page(Protocol):
    next: str | None


P = TypeVar("P", bound=_Page)


class AsyncClient:
    """An autoad server, for asyncio.

    ::

        async with autoad.AsyncClient() as client:
            result = await client.score("bottle", "image.png")

    What :class:`Client` has, as coroutines and asynchronous iterators, with the same arguments and errors. Use it in
    one event loop.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        patience: float = 60.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        settings = get_settings()
        self._transport = Transport(
            server or settings.server or DEFAULT_SERVER,
            settings.api_key.get_secret_value() if api_key is None else api_key,
            timeout=timeout,
            retries=retries,
            patience=patience,
            carrier=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.server}>"

    @property
    def server(self) -> str:
        """The server's address."""
        return self._transport.server

    async def aclose(self) -> None:
        """Close the connections; afterwards the client refuses everything."""
        await self._transport.close()

    async def health(self) -> dict[str, str]:
        """Whether the server's processes are up; asks no key.

        Raises:
            UnreachableError: nobody answers.
        """
        return await self._transport.get(dict[str, str], "/health")

    async def ready(self) -> bool:
        """Whether the server can score: its routes are read and its champions loaded.

        Raises:
            UnreachableError: nobody answers.
        """
        try:
            await self._transport.ask("GET", "/ready", repeat="never")
        except BusyError:
            return False
        return True

    # Datasets

    async def submit_dataset(
        self,
        data: str | os.PathLike[str],
        name: str | None = None,
        *,
        note: str = "",
        progress: Progress | None = None,
        parallel: int = 4,
    ) -> DatasetEntry:
        """As :meth:`Client.submit_dataset`."""
        path = Path(data)
        name = dataset_name(path) if name is None else name
        if not 1 <= parallel <= 64:
            raise UsageError(f"parallel must be from 1 to 64 but got {parallel}")
        told = progress or _say_nothing
        if is_archive(path) and not path.is_dir():
            return await send_archive(self._transport, path, name, note, told)
        return await send_dataset(self._transport, path, name, note, parallel, told)

    async def add_example(
        self,
        dataset: DatasetEntry | str,
        picture: Picture,
        label: str,
        *,
        mask: Picture | None = None,
        note: str = "",
    ) -> DatasetEntry:
        """As :meth:`Client.add_example`."""
        name = dataset.name if isinstance(dataset, DatasetEntry) else dataset
        encoded, data = await asyncio.to_thread(encode_picture, picture, "picture")
        path = f"/v1/datasets/{segment(name)}/examples"
        params = {"label": label_named(label), "note": note or None}
        if mask is None:
            return await self._transport.post(
                DatasetEntry, path, repeat="retries", params=params, content=data, headers=_PICTURE
            )
        mask_encoded, mask_data = await asyncio.to_thread(encode_picture, mask, "mask")
        files = {"picture": (Path(encoded.name).name, data), "mask": (Path(mask_encoded.name).name, mask_data)}
        return await self._transport.post(DatasetEntry, path, repeat="retries", params=params, files=files)

    async def datasets(self) -> AsyncGenerator[DatasetEntry, None]:
        """As :meth:`Client.datasets`."""
        async for page in self._pages(DatasetPage, "/v1/datasets"):
            for entry in page.items:
                yield entry

    async def dataset(self, name: str, version: int | None = None) -> DatasetEntry:
        """As :meth:`Client.dataset`."""
        name, number = _dataset_version(name, version)
        if number is None:
            number = (await self.dataset_versions(name)).versions[0].version
        return await self._transport.get(DatasetEntry, f"/v1/datasets/{segment(name)}/versions/{number}")

    async def dataset_versions(self, name: str) -> DatasetVersions:
        """As :meth:`Client.dataset_versions`."""
        found = await self._transport.get(DatasetVersions, f"/v1/datasets/{segment(name)}")
        if not found.versions:
            raise NotFoundError(f"the dataset {name!r} has no version", "unknown_name", 404)
        return found

    async def dataset_pictures(self, name: str, version: int | None = None) -> AsyncGenerator[DatasetPicture, None]:
        """As :meth:`Client.dataset_pictures`."""
        name, number = _dataset_version(name, version)
        number = (await self.dataset_versions(name)).versions[0].version if number is None else number
        path = f"/v1/datasets/{segment(name)}/versions/{number}/pictures"
        async for page in self._pages(PicturePage, path):
            for picture in page.items:
                yield picture

    # Searches

    async def search(
        self,
        dataset: DatasetEntry | str,
        *,
        time: str | float | None = None,
        trials: int | None = None,
        algorithms: Sequence[str] = (),
        objective: Objective = "image_auroc",
        name: str = "",
        model: str = "",
        seed: int = 0,
        deterministic: bool = False,
        warm_start: bool = True,
        max_epochs: int | None = None,
        threshold: ThresholdMethod = "conformal",
        false_positive_rate: float | None = None,
        patience: int | None = None,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
        keep_suspicious: bool = False,
        promote_when: PromoteWhen = "never",
        idempotency_key: str | None = None,
    ) -> AsyncSearch:
        """As :meth:`Client.search`."""
        seconds = parse_duration(time) if isinstance(time, str) else time
        request = make_record(
            SubmitRequest,
            dataset=str(dataset),
            name=name,
            model=model,
            algorithms=list(algorithms),
            objective=objective,
            seconds=seconds,
            trials=trials,
            seed=seed,
            deterministic=deterministic,
            warm_start=warm_start,
            max_epochs=max_epochs,
            threshold=threshold,
            false_positive_rate=false_positive_rate,
            patience=patience,
            max_latency_ms=max_latency_ms,
            max_memory_mb=max_memory_mb,
            keep_suspicious=keep_suspicious,
            promote_when=promote_when,
        )
        if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
            raise UsageError(
                f"idempotency_key must be 1 to 200 ASCII characters without spaces but got {idempotency_key!r}"
            )
        if isinstance(algorithms, str):
            raise UsageError(f"algorithms must be several names but got {algorithms!r}; write [{algorithms!r}]")
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        entry = await self._transport.post(SubmissionEntry, "/v1/searches", request, repeat="retries", headers=headers)
        return AsyncSearch(self, self._transport, entry)

    async def searches(self) -> AsyncGenerator[AsyncSearch, None]:
        """As :meth:`Client.searches`."""
        async for page in self._pages(SubmissionPage, "/v1/searches"):
            for entry in page.items:
                yield AsyncSearch(self, self._transport, entry)

    async def find_search(self, search: str) -> AsyncSearch:
        """As :meth:`Client.find_search`."""
        entry = await self._transport.get(SubmissionEntry, f"/v1/searches/{segment(search)}")
        return AsyncSearch(self, self._transport, entry)

    # Scores

    async def score(
        self, model: str, picture: Picture, version: int | str | None = None, *, maps: MapChoice = False
    ) -> AsyncScore:
        """As :meth:`Client.score`."""
        encoded = await asyncio.to_thread(encode_picture, picture, "picture")
        return await self._score(model, encoded, version, map_format(maps), "retries")

    @overload
    def score_many(
        self,
        model: str,
        pictures: Pictures,
        *,
        concurrency: int = 8,
        version: int | str | None = None,
        maps: MapChoice = False,
        errors: Literal["raise"] = "raise",
    ) -> AsyncGenerator[AsyncScore, None]: ...

    @overload
    def score_many(
        self,
        model: str,
        pictures: Pictures,
        *,
        concurrency: int = 8,
        version: int | str | None = None,
        maps: MapChoice = False,
        errors: Literal["return"],
    ) -> AsyncGenerator[AsyncScore | FailedPicture, None]: ...

    def score_many(
        self,
        model: str,
        pictures: Pictures,
        *,
        concurrency: int = 8,
        version: int | str | None = None,
        maps: MapChoice = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> AsyncGenerator[AsyncScore, None] | AsyncGenerator[AsyncScore | FailedPicture, None]:
        """As :meth:`Client.score_many`."""
        if not 1 <= concurrency <= 256:
            raise UsageError(f"concurrency must be from 1 to 256 but got {concurrency}")
        if errors not in ("raise", "return"):
            raise UsageError(f"errors must be 'raise' or 'return' but got {errors!r}")
        check_several(pictures)
        wanted = map_format(maps)

        async def one(turn: tuple[int, Picture]) -> AsyncScore | FailedPicture:
            number, picture = turn
            name = str(picture) if isinstance(picture, str | os.PathLike) else f"picture {number}"
            try:
                encoded = await asyncio.to_thread(encode_picture, picture, name)
            except AutoADError as error:
                if errors == "raise":
                    raise
                return FailedPicture(name, error)
            try:
                return await self._score(model, encoded, version, wanted, "patience")
            except AutoADError as error:
                if errors == "raise" or not _is_of_the_picture(error):
                    raise
                return FailedPicture(name, error)

        return in_order(numbered(pictures), one, concurrency)

    async def _score(
        self, model: str, encoded: tuple[Encoded, bytes], version: int | str | None, maps: MapFormat, repeat: Repeat
    ) -> AsyncScore:
        source, data = encoded
        model_name, wanted = model_version(model, version)
        # Made here, so that an attempt that is repeated goes to the same version.
        reply = await self._ask_score(model_name, data, wanted, maps, uuid.uuid4().hex, repeat)
        return AsyncScore(reply, source, maps, self._ask_again)

    async def _ask_again(self, source: Encoded, reply: ScoreReply, maps: MapFormat) -> PictureReply:
        data = await asyncio.to_thread(source.read)
        again = await self._ask_score(reply.model, data, reply.version, maps, reply.request_id, "patience")
        return again.pictures[0]

    async def _ask_score(
        self, model: str, data: bytes, version: int | str | None, maps: MapFormat, request_id: str, repeat: Repeat
    ) -> ScoreReply:
        reply = await self._transport.post(
            ScoreReply,
            f"/v1/models/{segment(model)}/score",
            repeat=repeat,
            params={"version": version, "map": maps},
            content=data,
            headers=_PICTURE | {"X-Request-Id": request_id},
        )
        if len(reply.pictures) != 1:
            raise ServerError(
                f"the answer must be about one picture but is about {len(reply.pictures)}", "unreadable_reply", 200
            )
        return reply

    # Models

    async def models(self) -> list[ModelEntry]:
        """As :meth:`Client.models`."""
        return await self._transport.get(list[ModelEntry], "/v1/models")

    async def model(self, name: str) -> ModelEntry:
        """As :meth:`Client.model`."""
        return await self._transport.get(ModelEntry, f"/v1/models/{segment(name)}")

    async def promote(
        self,
        name: str,
        version: int | None = None,
        *,
        reason: str = "",
        canary: float | None = None,
        shadow: bool = False,
    ) -> PromotionResult:
        """As :meth:`Client.promote`."""
        request = make_record(PromoteRequest, version=version, reason=reason, canary=canary, shadow=shadow)
        path = f"/v1/models/{segment(name)}/promote"
        return await self._transport.post(PromotionResult, path, request, repeat="never", timeout=_PROMOTION_SECONDS)

    async def rollback(self, name: str, *, reason: str = "") -> RouteEntry:
        """As :meth:`Client.rollback`."""
        request = make_record(ReasonRequest, reason=reason)
        path = f"/v1/models/{segment(name)}/rollback"
        return await self._transport.post(RouteEntry, path, request, repeat="never", timeout=_PROMOTION_SECONDS)

    async def end_canary(self, name: str, *, reason: str = "") -> RouteEntry:
        """As :meth:`Client.end_canary`."""
        return await self._end(name, "canary", reason)

    async def end_shadow(self, name: str, *, reason: str = "") -> RouteEntry:
        """As :meth:`Client.end_shadow`."""
        return await self._end(name, "shadow", reason)

    async def delete(self, name: str, version: int, *, reason: str = "") -> None:
        """As :meth:`Client.delete`."""
        path = f"/v1/models/{segment(name)}/versions/{version}"
        await self._transport.ask("DELETE", path, repeat="never", params={"reason": reason or None})

    async def _end(self, name: str, role: str, reason: str) -> RouteEntry:
        path = f"/v1/models/{segment(name)}/{role}"
        return await self._transport.delete(RouteEntry, path, reason=reason or None)

    async def _pages(self, kind: type[P], path: str) -> AsyncGenerator[P, None]:
        after: str | None = None
        while True:
            page = await self._transport.get(kind, path, limit=_PAGE, after=after)
            yield page
            if page.next is None:
                return
            after = page.next


def _dataset_version(name: str, version: int | None) -> tuple[str, int | str | None]:
    bare, slash, given = name.partition("/")
    if not slash:
        return name, version
    if version is not None or not given.isascii() or not given.isdigit():
        raise UsageError(f"a dataset must be named as bottle or bottle/3 but got {name!r} and version {version}")
    return bare, int(given)


def _is_of_the_picture(error: AutoADError) -> bool:
    """Whether another picture may do better."""
    if isinstance(error, RefusedError):
        return error.code in _OF_THE_PICTURE
    failed = isinstance(error, ServerError) and error.status == 500
    return failed or isinstance(error, UnreadableImageError)


def _say_nothing(*_: object) -> None:
    pass
