"""The SDK for callers without asyncio: :class:`AsyncClient` in an event loop of its own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal, Self, overload

import httpx2

from autoad.client._async_client import AsyncClient
from autoad.client._blocking import Score, Search
from autoad.client._pictures import Picture, Pictures
from autoad.client._portal import Portal
from autoad.client._scores import FailedPicture, MapChoice
from autoad.client._uploads import Progress
from autoad.schema import (
    DatasetEntry,
    DatasetPicture,
    DatasetVersions,
    ModelEntry,
    Objective,
    PromoteWhen,
    PromotionResult,
    RouteEntry,
    ThresholdMethod,
)

__all__ = ["Client"]


class Client:
    """An autoad server.

    ::

        with autoad.Client() as client:
            result = client.score("bottle", "image.png")

    Many threads may use one client. Requests that may be repeated are tried again after 1, 2 and 4 seconds, or as the
    server's ``Retry-After`` says. Uploads, ``score_many`` and following go on trying for ``patience`` seconds, so that
    neither a network that is away nor a server that is started again ends them. Ctrl-C ends whatever is under way.

    Args:
        server: its address. Default ``AUTOAD_SERVER``, or ``http://127.0.0.1:8000``.
        api_key: default ``AUTOAD_API_KEY``; a server on this machine may ask for none.
        timeout: seconds that an answer may take; promotions and commits may take longer.
        retries: how often a request is tried again.
        patience: seconds from the first failure.
        transport: what carries requests; None for the network.

    Raises:
        UsageError: the address or the key is none.
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
        self._client = AsyncClient(
            server, api_key, timeout=timeout, retries=retries, patience=patience, transport=transport
        )
        self._portal = Portal(self._client.aclose)
        self._finalize = weakref.finalize(self, self._portal.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.server}>"

    @property
    def server(self) -> str:
        """The server's address."""
        return self._client.server

    def close(self) -> None:
        """End whatever is under way and close the connections; afterwards the client refuses everything."""
        self._finalize()

    def health(self) -> dict[str, str]:
        """Whether the server's processes are up; asks no key.

        Raises:
            UnreachableError: nobody answers.
        """
        return self._portal.call(self._client.health)

    def ready(self) -> bool:
        """Whether the server can score: its routes are read and its champions loaded.

        Raises:
            UnreachableError: nobody answers.
        """
        return self._portal.call(self._client.ready)

    def submit_dataset(
        self,
        data: str | os.PathLike[str],
        name: str | None = None,
        *,
        note: str = "",
        progress: Progress | None = None,
        parallel: int = 4,
    ) -> DatasetEntry:
        """Make pictures of this machine the next version of a dataset.

        Sends only files that the project does not have yet, so an upload that was cut off goes on when it is called
        again, and one of the same files sends nothing and returns the version that there is.

        Args:
            data: folder (MVTec layout, or ``good/`` and ``bad/``), ``.csv`` or ``.parquet`` manifest, or archive
                (``.zip``, ``.tar``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz``), which the server unpacks.
            name: of the dataset; made of the folder's where None.
            note: kept with the version.
            progress: called with bytes done, bytes in all and what is being done, in a thread of the client's; it must
                not use the client.
            parallel: packs of at most 16 MiB that are sent at once, and held in memory.

        Raises:
            DatasetError: the pictures cannot be read, or one changed while it was sent; the message names it.
            RefusedError: the server cannot make a dataset of them.
            ServerError: it fails.
            UnreachableError: nobody answers for longer than the patience.
        """
        return self._portal.call(
            lambda: self._client.submit_dataset(data, name, note=note, progress=progress, parallel=parallel)
        )

    def add_example(
        self,
        dataset: DatasetEntry | str,
        picture: Picture,
        label: str,
        *,
        mask: Picture | None = None,
        note: str = "",
    ) -> DatasetEntry:
        """Make a picture a labelled example: the dataset's next version has it, or has it under this label.

        Args:
            dataset: name.
            picture: path, bytes, PIL image or NumPy array.
            label: ``good``, or the name of the defect.
            mask: where the defect is: nonzero pixels; a NumPy array of it may be of bool.
            note: kept with the version.

        Raises:
            UnreadableImageError: a file cannot be read.
            RefusedError: there is no such dataset, or the server cannot read the picture.
            ServerError: it fails.
        """
        return self._portal.call(lambda: self._client.add_example(dataset, picture, label, mask=mask, note=note))

    def datasets(self) -> Iterator[DatasetEntry]:
        """The newest version of each dataset, by name; without what was left out, which :meth:`dataset` tells."""
        return self._portal.iterate(self._client.datasets(), self)

    def dataset(self, name: str, version: int | None = None) -> DatasetEntry:
        """A version of a dataset, which may be written ``bottle/3``; the newest by default.

        Raises:
            NotFoundError: there is none.
        """
        return self._portal.call(lambda: self._client.dataset(name, version))

    def dataset_versions(self, name: str) -> DatasetVersions:
        """All versions of a dataset, newest first; without what was left out of each, which :meth:`dataset` tells.

        Raises:
            NotFoundError: there is none.
        """
        return self._portal.call(lambda: self._client.dataset_versions(name))

    def dataset_pictures(self, name: str, version: int | None = None) -> Iterator[DatasetPicture]:
        """The pictures of a version of a dataset, by path; of the newest by default.

        Raises:
            NotFoundError: there is none.
        """
        return self._portal.iterate(self._client.dataset_pictures(name, version), self)

    def search(
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
    ) -> Search:
        """Start a search on the server; it is put into a queue, and this returns at once.

        Args:
            dataset: what :meth:`submit_dataset` returned, a name, or ``NAME/VERSION``.
            time: for the whole search: ``"30m"``, or seconds. 20 minutes where neither it nor ``trials`` is given.
            trials: number of trials.
            algorithms: names; all eight by default.
            objective: metric on the selection pictures that ranks trials.
            name: of the search; made of the dataset's and the date by default.
            model: whose next version the champion becomes; the dataset's name by default.
            seed: of the sampler and of every detector.
            deterministic: one worker and no clock, so that it repeats exactly.
            warm_start: whether earlier searches of similar pictures are learnt from.
            max_epochs: lowers the ceilings of epochs.
            threshold: ``conformal`` keeps to a rate of false positives; ``f1-max`` has the best F1 on the calibration
                pictures and the selection's labelled defects, and needs some.
            false_positive_rate: share of good pictures that may be called anomalous, for ``conformal`` alone.
            patience: end after so many finished trials in a row without a better one.
            max_latency_ms: most milliseconds that the champion may take for a picture on the server.
            max_memory_mb: most memory, in MB, that a process which scores with the champion may take.
            keep_suspicious: whether to learn from good pictures that look unlike the others or like the labelled
                defects, too; they are set aside, and named in a note, otherwise.
            promote_when: whether the champion is promoted at the end: ``never``, ``always``, or when it is ``better``
                than the version that serves by more than chance.
            idempotency_key: a second search with the same key is the first; made by default.

        Raises:
            UsageError: a value is not as it must be.
            RefusedError: the server does not do that.
            BusyError: too many searches wait.
            ServerError: it fails.
        """
        found = self._portal.call(
            lambda: self._client.search(
                dataset,
                time=time,
                trials=trials,
                algorithms=algorithms,
                objective=objective,
                name=name,
                model=model,
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
                idempotency_key=idempotency_key,
            )
        )
        return Search(self, self._portal, found)

    def searches(self) -> Iterator[Search]:
        """All searches, newest first."""
        for search in self._portal.iterate(self._client.searches(), self):
            yield Search(self, self._portal, search)

    def find_search(self, search: str) -> Search:
        """A search by its id or name.

        Raises:
            NotFoundError: there is none.
        """
        return Search(self, self._portal, self._portal.call(lambda: self._client.find_search(search)))

    def score(
        self, model: str, picture: Picture, version: int | str | None = None, *, maps: MapChoice = False
    ) -> Score:
        """Score a picture.

        Args:
            model: name; ``NAME/VERSION`` and ``NAME@ALIAS`` say the version, too.
            picture: path, bytes, PIL image, or NumPy array ``[H, W]`` or ``[H, W, 1, 3 or 4]`` of uint8, RGB.
            version: number or alias; the champion, or its canary, by default.
            maps: whether the map comes with the score, raw (True) or normalised (``"png"``); otherwise the score asks
                for it when it is wanted.

        Raises:
            UnreadableImageError: the file cannot be read.
            UsageError: it is no picture.
            RefusedError: there is no such model, or the server cannot read the picture.
            BusyError: the server has no room.
            ServerError: it fails.
        """
        return Score(
            self, self._portal, self._portal.call(lambda: self._client.score(model, picture, version, maps=maps))
        )

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
    ) -> Iterator[Score]: ...

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
    ) -> Iterator[Score | FailedPicture]: ...

    def score_many(
        self,
        model: str,
        pictures: Pictures,
        *,
        concurrency: int = 8,
        version: int | str | None = None,
        maps: MapChoice = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Score] | Iterator[Score | FailedPicture]:
        """Score many pictures, several at once, and give the scores in the order of the pictures.

        At most twice ``concurrency`` pictures are read ahead. A network or server that is away is waited for, up to the
        client's patience.

        Args:
            model: as :meth:`score` takes it.
            pictures: a folder (all files in it, by name, sub-folders too), or an iterable of pictures. It may block, as
                one of a camera's pictures does: a thread of its own reads it.
            concurrency: requests at once.
            version: as :meth:`score` takes it.
            maps: as :meth:`score` takes it.
            errors: whether a picture that cannot be scored raises at its turn, or is a :class:`FailedPicture` there.

        Raises:
            UsageError: what is given is no folder, and not several pictures.
            UnreadableImageError: a file cannot be read.
            RefusedError: there is no such model, or the server cannot read a picture.
            ServerError: it fails.
            UnreachableError: nobody answers for longer than the patience.
        """
        scores = self._client.score_many(
            model, pictures, concurrency=concurrency, version=version, maps=maps, errors=errors
        )
        found = self._portal.iterate(scores, self)
        return (one if isinstance(one, FailedPicture) else Score(self, self._portal, one) for one in found)

    def models(self) -> list[ModelEntry]:
        """All models with their versions and routes, without their history."""
        return self._portal.call(self._client.models)

    def model(self, name: str) -> ModelEntry:
        """A model with its versions, route and history.

        Raises:
            NotFoundError: there is none.
        """
        return self._portal.call(lambda: self._client.model(name))

    def promote(
        self,
        name: str,
        version: int | None = None,
        *,
        reason: str = "",
        canary: float | None = None,
        shadow: bool = False,
    ) -> PromotionResult:
        """Let a version of a model answer, once it scores on the server exactly what was evaluated.

        A request that reached the server is not repeated: if it fails, :meth:`model` says what came of it.

        Args:
            name: of the model.
            version: the newest by default.
            reason: kept in the model's history.
            canary: share of the requests, above 0 and below 1, that it is to answer; None for all.
            shadow: whether it is to score beside the version that answers, unseen.

        Raises:
            UsageError: a value is not as it must be.
            RefusedError: there is no such version, or it scores otherwise than evaluated.
            ServerError: the server fails.
        """
        return self._portal.call(
            lambda: self._client.promote(name, version, reason=reason, canary=canary, shadow=shadow)
        )

    def rollback(self, name: str, *, reason: str = "") -> RouteEntry:
        """Let the version answer that was the champion before; not repeated, as :meth:`promote`.

        Raises:
            RefusedError: there is no such model, or nothing was the champion before.
            ServerError: the server fails.
        """
        return self._portal.call(lambda: self._client.rollback(name, reason=reason))

    def end_canary(self, name: str, *, reason: str = "") -> RouteEntry:
        """Let the champion answer all requests.

        Raises:
            RefusedError: there is no such model.
            ServerError: the server fails.
        """
        return self._portal.call(lambda: self._client.end_canary(name, reason=reason))

    def end_shadow(self, name: str, *, reason: str = "") -> RouteEntry:
        """Let the champion score alone.

        Raises:
            RefusedError: there is no such model.
            ServerError: the server fails.
        """
        return self._portal.call(lambda: self._client.end_shadow(name, reason=reason))

    def delete(self, name: str, version: int, *, reason: str = "") -> None:
        """Delete a version of a model that has no part in answering; its number is not given again.

        Raises:
            RefusedError: there is no such version, or it answers.
            ServerError: the server fails.
        """
        self._portal.call(lambda: self._client.delete(name, version, reason=reason))
