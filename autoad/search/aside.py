"""Good pictures that look unlike the others, or like a defect: a search does not learn from them, unless told to.

A defect among the good pictures teaches every algorithm that it is normal, and what ranks the trials that finding it is
a mistake. So the pictures that ``autoad inspect`` would call suspicious, or like a defect, are left out of training and
selection. Neither the test nor the calibration pictures are looked at for this: the first nothing but the final report
may see, and of the second those that look odd must stay, or the false-positive rate that they promise would not hold
for the odd pictures that are good.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoad.algorithms import get_algorithm
from autoad.data import Picture, Roles
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore
from autoad.search.inspection import INSPECTED_SIZE, suspicious_pictures
from autoad.search.lookalikes import lookalikes, telling_defects
from autoad.search.plan import Plan

__all__ = ["doubtful_pictures", "set_aside"]

_FILE = "aside.json"
_NAMED = 10

_MOST_LOOKED_AT = 2000
"""Good pictures of which a search looks at each before its first trial; of more, an odd one weighs little."""


def set_aside(plan: Plan, folder: Path, store: FeatureStore, *, threads: int) -> tuple[Plan, str | None]:
    """The plan without the suspicious pictures, and what to say of them; of more than 2,000 good ones none is left out.

    Args:
        plan: of the search.
        folder: of the search; its ``aside.json`` keeps which pictures they are, so that a resumed search leaves out the
            same.
        store: keeps features, which the first trials use again.
        threads: CPU threads of the backbone.
    """
    roles = plan.roles
    good = [picture for picture in (*roles.train, *roles.selection) if picture.is_normal]
    if plan.request.keep_suspicious or len(good) > _MOST_LOOKED_AT:
        return plan, None
    reasons = _decided(folder)
    if reasons is None:
        _compute_together(plan, [*good, *telling_defects(roles)], store, threads)
        doubtful = doubtful_pictures(roles, store, plan.engine, threads)
        reasons = {picture.sha256: reason for picture, reason in doubtful.items()}
        (folder / _FILE).write_text(json.dumps(reasons, indent=1))
    suspicious = [picture for picture in good if picture.sha256 in reasons]
    left = roles.set_aside(suspicious)
    if not any(picture.is_normal for picture in left.selection):  # trials must be ranked by something
        chosen = {picture.sha256 for picture in roles.selection}
        suspicious = [picture for picture in suspicious if picture.sha256 not in chosen]
        left = roles.set_aside(suspicious)
    if not suspicious:
        return plan, None
    return dataclasses.replace(plan, roles=left), _note(plan, {one: reasons[one.sha256] for one in suspicious})


def doubtful_pictures(roles: Roles, store: FeatureStore, engine: EngineChoice, threads: int) -> dict[Picture, str]:
    """Good train and selection pictures that look unlike the others, or like the labelled defects of selection.

    Args:
        roles: of the dataset's pictures.
        store: keeps the features.
        engine: runs the backbone.
        threads: CPU threads of that.

    Returns:
        What each looks like, in words.
    """
    normals = [picture for picture in roles.selection if picture.is_normal]
    reasons: dict[Picture, list[str]] = {}
    for picture, _ in suspicious_pictures([*roles.train, *normals], store, engine, threads):
        reasons.setdefault(picture, []).append("unlike the others")
    for picture, _ in lookalikes(roles, store, engine, threads):
        reasons.setdefault(picture, []).append("like the labelled defects")
    return {picture: " and ".join(found) for picture, found in reasons.items()}


def _decided(folder: Path) -> dict[str, str] | None:
    """Why each picture, by its sha256, was set aside when the search began; None if it has not."""
    try:
        reasons: dict[str, str] = json.loads((folder / _FILE).read_text())
    except (OSError, ValueError):
        return None
    return reasons


def _compute_together(plan: Plan, good: Iterable[Picture], store: FeatureStore, threads: int) -> None:
    """All stages that the first trials will want of the same backbone at the same size, in one run of it."""
    stages: set[int] = set()
    for space in plan.spaces.values():
        algorithm = get_algorithm(space.algorithm)
        needs = algorithm(algorithm.Config(**space.defaults())).needs
        if needs.backbone == DEFAULT_BACKBONE and needs.image_size == INSPECTED_SIZE:
            stages.update(needs.stages)
    if stages:
        store.features(
            list(good),
            backbone=DEFAULT_BACKBONE,
            stages=tuple(sorted({*stages, 2, 3})),
            image_size=INSPECTED_SIZE,
            engine=plan.engine,
            threads=threads,
        )


def _note(plan: Plan, reasons: Mapping[Picture, str]) -> str:
    root = plan.dataset.root
    named = [
        f"{one.path.relative_to(root) if one.path.is_relative_to(root) else one.path} ({reason})"
        for one, reason in itertools.islice(reasons.items(), _NAMED)
    ]
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    count, look = ("1 good picture", "looks") if len(reasons) == 1 else (f"{len(reasons)} good pictures", "look")
    return (
        f"set aside: {count} that {look} defective; nothing is learnt from {', '.join(named)}{more}. "
        "If they are good, search again with --keep-suspicious"
    )
