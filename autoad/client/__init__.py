"""A server's datasets, searches, models and scores, from Python; imports neither PyTorch nor Ray.

:class:`Client` blocks, :class:`AsyncClient` is the same for asyncio: its methods are coroutines or asynchronous
iterators, with the same arguments. Both raise what :mod:`autoad.errors` lists.
"""

from __future__ import annotations

from autoad.client._async_client import AsyncClient
from autoad.client._async_search import AsyncSearch
from autoad.client._blocking import Score, Search
from autoad.client._client import Client
from autoad.client._scores import AsyncScore, FailedPicture

__all__ = ["AsyncClient", "AsyncScore", "AsyncSearch", "Client", "FailedPicture", "Score", "Search"]
