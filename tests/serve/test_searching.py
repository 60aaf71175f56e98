"""A search on a server is carried out as it was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from autoad.schema import SubmitRequest
from autoad.search import SearchRequest
from autoad.serve import searching


def test_whatever_can_be_asked_of_both_reaches_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SearchRequest] = []
    monkeypatch.setattr(searching, "_begun", lambda *_: None)
    monkeypatch.setattr(searching, "run_search", lambda request, *_, **__: asked.append(request))
    given: dict[str, Any] = {
        "algorithms": ["dfm"], "objective": "aupro", "trials": 3, "seconds": 60.0, "seed": 5, "name": "n",
        "model": "m", "warm_start": False, "max_epochs": 2, "threshold": "conformal", "false_positive_rate": 0.1,
        "patience": 4, "max_latency_ms": 5.0, "max_memory_mb": 900.0, "keep_suspicious": True,
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(SearchRequest)}
    assert set(SubmitRequest.model_fields) & known == {*given, "deterministic"}, "what can be asked is tried here"
    searching._search("id", SubmitRequest(dataset="d", **given), Path("x"), cast(Any, None), "")
    found = dataclasses.asdict(asked[0])
    assert {name: found[name] for name in given} == given | {"algorithms": ("dfm",)}
