"""What earlier searches can tell a new one: which configurations to try right after the defaults.

Which detector does well depends on what the pictures look like, so datasets that look alike to a backbone may want
similar configurations (Feurer et al., "Initializing Bayesian hyperparameter optimization via meta-learning", 2015,
begin a search with the best configurations of the nearest datasets by meta-features).

An earlier search counts if it is complete and was so before the new one began, so that resuming changes nothing; if it
maximised the same objective; if its pictures are near enough; and if no picture by which it selected tests now, for
its configurations were chosen with those pictures' labels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoad.data import Picture
from autoad.database import Database, Search
from autoad.errors import AutoADError
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore
from autoad.schema import Objective, TrialRow
from autoad.search.jobs import Suggestion
from autoad.search.leaderboard import rank_trials
from autoad.search.plan import Plan
from autoad.search.space import Parameter, Space
from autoad.settings import Settings

__all__ = ["Earlier", "WarmStart", "choose_configurations", "distance", "fingerprint", "warm_start"]

_PICTURES = 64
_SIZE = (256, 256)
_STAGES = (1, 2, 3, 4)

_FARTHEST = 0.5
"""Parts of one dataset lie .05 to .2 apart (the more pictures, the nearer), different objects .7 and more."""

_SEARCHES = 2
_CONFIGURATIONS = 3


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A search that has ended.

    Attributes:
        name: of the search.
        distance: between its pictures and the new search's; see :func:`fingerprint`.
        rows: its trials.
        same: whether it searched the very same pictures.
    """

    name: str
    distance: float
    rows: Sequence[TrialRow]
    same: bool = False


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What a new search takes over.

    Attributes:
        suggestions: trials, to be tried after the defaults.
        notes: what the search's own notes say of it.
    """

    suggestions: tuple[Suggestion, ...] = ()
    notes: tuple[str, ...] = ()


def fingerprint(store: FeatureStore, train: Sequence[Picture], engine: EngineChoice, threads: int = 1) -> list[float]:
    """What training pictures look like to the bundled backbone, without labels.

    Features are averaged over places, picture by picture; of each stage the fingerprint holds the mean over the
    pictures and, as long again, the standard deviation. Each half of each stage is scaled to the same length, all
    together to 1, so that the distance of two fingerprints lies between 0 (the same) and 2, and no stage decides by its
    units.

    Args:
        store: keeps the features, which the default configurations need as well.
        train: training pictures; at most 64 of them are looked at, evenly spread.
        engine: runs the backbone over pictures that the store does not hold.
        threads: CPU threads of that.

    Raises:
        AutoADError: what :meth:`FeatureStore.features` raises.
    """
    chosen = [train[place] for place in np.linspace(0, len(train) - 1, min(_PICTURES, len(train))).astype(int)]
    maps = store.features(
        chosen, backbone=DEFAULT_BACKBONE, stages=_STAGES, image_size=_SIZE, engine=engine, threads=threads
    )
    parts = []
    for stage in _STAGES:
        pooled = maps[stage].mean(axis=(1, 2), dtype=np.float64)
        for part in (pooled.mean(axis=0), pooled.std(axis=0)):
            parts.append(part / max(float(np.linalg.norm(part)), 1e-12))
    joined = np.concatenate(parts) / np.sqrt(len(parts))
    return [round(float(value), 5) for value in joined]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Euclidean distance of two fingerprints; infinite if they were made in different ways."""
    return float(np.linalg.norm(np.subtract(one, other))) if len(one) == len(other) else float("inf")


def warm_start(plan: Plan, search_id: str, database: Database, settings: Settings, *, threads: int) -> WarmStart:
    """Record the fingerprint of a search's pictures, and see what searches of similar ones have found.

    A deterministic search takes nothing over, for the same call must give the same result whatever was searched
    before; others can learn from it.

    Args:
        plan: of the new search.
        search_id: of the new search, which is in the database.
        database: of the project whose searches count.
        settings: where searches keep which role each picture had.
        threads: CPU threads for the backbone.
    """
    search = database.find_search(search_id)
    if search.fingerprint is None:
        try:
            found = fingerprint(FeatureStore(settings.features_dir), plan.roles.train, plan.engine, threads)
        except AutoADError as error:  # the trials will say so where it keeps them from working, too
            return WarmStart(notes=(f"warm start: off, for the pictures could not be compared with others ({error})",))
        database.write_fingerprint(search_id, found)
    else:
        found = search.fingerprint
    if plan.request.deterministic or not plan.request.warm_start:
        return WarmStart()
    near: list[tuple[float, Search]] = []
    for other in reversed(database.fingerprinted_searches()):
        apart = distance(found, other.fingerprint or [])
        before = other.finished is not None and other.finished <= search.created
        if before and other.summary["objective"] == plan.objective and apart <= _FARTHEST:
            near.append((apart, other))
    near.sort(key=lambda pair: pair[0])  # of equal ones the newest first
    earlier: list[Earlier] = []
    notes = []
    for apart, other in near:
        if len(earlier) == _SEARCHES:
            break
        if _selected_by_test_pictures(other, plan, settings):
            notes.append(f"warm start: not from search {other.name}, for pictures that it selected by test now")
        else:
            rows = database.trials(other.id)
            earlier.append(Earlier(other.name, apart, rows, same=other.dataset_hash == plan.dataset.hash))
    chosen = choose_configurations(earlier, plan.spaces, plan.objective)
    for source in earlier:
        count = sum(origin is source for _, origin in chosen)
        if count:
            pictures = "the same pictures" if source.same else f"pictures at distance {source.distance:.2f}"
            plural = "s" if count > 1 else ""
            notes.append(f"warm start: {count} configuration{plural} from search {source.name} ({pictures})")
    return WarmStart(tuple(suggestion for suggestion, _ in chosen), tuple(notes))


def choose_configurations(
    earlier: Sequence[Earlier], spaces: Mapping[str, Space], objective: Objective, count: int = _CONFIGURATIONS
) -> list[tuple[Suggestion, Earlier]]:
    """The best configurations of earlier searches that the new one can try, and whence they are.

    Of each algorithm at most one, the best of the nearest search that has any; none that is a default, for those are
    tried anyway. Whatever was best in its search comes before what was second best, whichever search is nearer.

    Args:
        earlier: nearest first.
        spaces: search space of the new search by algorithm, of reachable backbones only.
        objective: what was maximised.
        count: how many at most.
    """
    candidates: list[tuple[int, int, TrialRow]] = []
    for place, search in enumerate(earlier):
        best: dict[str, TrialRow] = {}
        for row in rank_trials(search.rows, objective):
            # What a search had taken over itself may come from one that this one must not learn from.
            if row.status == "complete" and row.origin != "warm" and _fit(row, spaces) is not None:
                best.setdefault(row.algorithm, row)
        candidates += [(rank, place, row) for rank, row in enumerate(best.values())]
    chosen: dict[str, tuple[Suggestion, Earlier]] = {}
    for _, place, row in sorted(candidates, key=lambda candidate: candidate[:2]):
        config = _fit(row, spaces)
        if config is not None and config != spaces[row.algorithm].defaults() and row.algorithm not in chosen:
            chosen[row.algorithm] = Suggestion("warm", row.algorithm, config), earlier[place]
    return list(chosen.values())[:count]


def _fit(row: TrialRow, spaces: Mapping[str, Space]) -> dict[str, Any] | None:
    """A trial's configuration in the new search's space; None if it is not in it.

    What the new search sweeps or has fixed has the value there, whatever it was before.
    """
    space = spaces.get(row.algorithm)
    if space is None or not set(row.proposed) <= {parameter.name for parameter in space.parameters}:
        return None
    config = space.defaults()
    for parameter in space.parameters:
        if parameter.is_proposed and parameter.name in row.proposed:
            value = row.proposed[parameter.name]
            value = tuple(value) if isinstance(value, list) else value
            if not _may_be(parameter, value):
                return None
            config[parameter.name] = value
    return config


def _may_be(parameter: Parameter, value: Any) -> bool:
    if parameter.type in ("int", "float"):
        number = isinstance(value, int) or (isinstance(value, float) and parameter.type == "float")
        if not number or isinstance(value, bool):
            return False
    return parameter.refusal(value) is None


def _selected_by_test_pictures(other: Search, plan: Plan, settings: Settings) -> bool:
    """Whether an earlier search selected by a picture that tests now, or may have done so."""
    if other.dataset_hash == plan.dataset.hash:  # roles follow from the dataset alone
        return False
    try:
        role_of = json.loads((settings.searches_dir / other.id / "roles.json").read_text())["role_of"]
    except (OSError, ValueError, KeyError):
        return True
    return any(role_of.get(picture.sha256) == "selection" for picture in plan.roles.test)
