"""Checks of a dataset's pictures before any search: what would make its answer worth less than it looks.

Labels and splits are not believed here, but for those of the defects that others are compared with; all checks look at
the pictures. Nothing is changed: a finding is for a person to decide about.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from autoad.algorithms import get_algorithm
from autoad.data import Dataset, Picture, assign_roles
from autoad.errors import DatasetError
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore
from autoad.models import load_inputs
from autoad.schema import Finding, Inspection
from autoad.search.lookalikes import lookalikes

__all__ = ["INSPECTED_SIZE", "inspect_dataset", "suspicious_pictures"]

INSPECTED_SIZE = (256, 256)
_CELLS = 32
_AT_ONCE = 512
_NEIGHBOURS = 5
_SAME = 0.4
"""A pair is nearly the same below this share of the median distance to a picture's nearest five others (a ratio test as
Lowe's for matches, 2004): distinct pictures of one product have .45 and more, copies .3 and less."""

_FOLDS = 5
_FITTED, _BANK = 400, 2000
"""Pictures that a fold's PatchCore is fitted on, and entries of its bank, at most."""

_UNLIKE = 5.0
"""Robust standard deviations above the median, in log scores, from which a good picture is suspicious."""

_MOST_SUSPICIOUS = 0.1
"""Share of the good pictures that is called suspicious at most: more than that is a kind of good, not an exception."""

_APART = 0.5
"""Mean silhouette from which groups count as such (Kaufman and Rousseeuw, 1990, call .5 a reasonable structure)."""

_GROUPS, _COMPONENTS, _SAMPLE = 5, 8, 2000
_SMALLEST_SHARE, _SMALLEST_GROUP = 0.05, 4

_DIVIDED = "selection or test"
"""Where pictures go whose split is left to autoad although that of others is not."""

_DARKER = 6.0
_LEVELS = 10.0
"""Robust standard deviations, and levels of 255, by which a picture's mean brightness must differ from the median."""

_Array = npt.NDArray[np.float64]


def inspect_dataset(
    dataset: Dataset, *, path: str, store: FeatureStore, engine: EngineChoice, threads: int = 1
) -> Inspection:
    """Look for near-duplicates, good pictures that look defective, several products in one folder, and odd light.

    - **Near-duplicates**: grey pictures on a 32 x 32 grid, without their mean; a pair counts as nearly the same if it
      lies nearer than .4 of the usual distance to the nearest five. So copies that were encoded again, cut by a few
      pixels or brightened are found where all pictures show the same product in the same place, which features of a
      backbone do not tell apart. Pairs across splits, or of different labels, come first: they let a test repeat what
      was learnt.
    - **Suspicious good**: each good picture is scored by a PatchCore that was fitted on four fifths of the good ones
      without it; log scores more than five robust standard deviations above the median are reported, a tenth of the
      good pictures at most.
    - **Like defects**: good pictures to learn from that look like the defects by which a search would rank its trials
      (:func:`autoad.search.lookalikes.lookalikes`). Those that it would test with are not looked at, so that whoever
      sorts out pictures by this does not do so by the test.
    - **Variants**: averaged features of stages 3 and 4 of the good pictures fall into two to five clear groups (mean
      silhouette of k-means at least .5).
    - **Brightness**: mean grey level more than six robust standard deviations and ten levels from the median.

    Args:
        dataset: its pictures.
        path: how it is called in the answer.
        store: keeps the features, which a search of the same pictures uses again.
        engine: runs the backbone.
        threads: CPU threads of that.

    Raises:
        AutoADError: what reading the pictures and computing their features raises.
    """
    pictures = dataset.pictures
    features = store.features(  # with stage 2, which PatchCore needs, or the backbone would run twice
        pictures, backbone=DEFAULT_BACKBONE, stages=(2, 3, 4), image_size=INSPECTED_SIZE, engine=engine, threads=threads
    )
    images = store.images(pictures, INSPECTED_SIZE)
    good = [number for number, picture in enumerate(pictures) if picture.is_normal]
    averaged = np.concatenate([features[stage].mean(axis=(1, 2), dtype=np.float64) for stage in (3, 4)], axis=1)
    findings = [
        *_near_duplicates(images, pictures),
        *_suspicious([pictures[number] for number in good], store, engine, threads),
        *_like_defects(dataset, store, engine, threads),
        *_variants(averaged[good], [pictures[number] for number in good]),
        *_odd_light(images, pictures),
    ]
    return Inspection(path=path, dataset_hash=dataset.hash, counts=dataset.counts(), findings=findings)


def _near_duplicates(images: npt.NDArray[np.uint8], pictures: Sequence[Picture]) -> Iterator[Finding]:
    count = len(pictures)
    if count < _NEIGHBOURS + 2:
        return
    cell = INSPECTED_SIZE[0] // _CELLS
    grey = images.reshape(count, _CELLS, cell, _CELLS, cell, 3).mean(axis=(2, 4, 5), dtype=np.float64)
    points = grey.reshape(count, -1)
    points -= points.mean(axis=1, keepdims=True)
    nearest, distances = _neighbours(points, _NEIGHBOURS + 1)
    usual = np.maximum(np.median(distances[:, 1:], axis=1), 1e-9)
    # What is so much nearer than the usual is among a picture's nearest.
    pairs = {
        (min(i, j), max(i, j)): distance / min(usual[i], usual[j])
        for i, row in enumerate(nearest)
        for j, distance in zip(row.tolist(), distances[i].tolist(), strict=True)
    }
    told = []
    for (i, j), share in pairs.items():
        if share >= _SAME:
            continue
        one, other = pictures[i], pictures[j]
        across = one.split != other.split
        unequal = one.is_normal != other.is_normal
        if unequal:
            text = (
                f"nearly the same picture is labelled {one.label!r} and {other.label!r}; look which is right, and "
                "leave one out"
            )
        elif across:
            text = (
                f"nearly the same picture is in {one.split or _DIVIDED!r} and in {other.split or _DIVIDED!r}, so "
                "that a test would repeat what was learnt; leave one out"
            )
        else:
            text = "two pictures are nearly the same and count twice; leave one out unless that is meant"
        text += f" (distance {share:.2f} of the usual one)"
        finding = Finding(kind="near_duplicates", text=text, pictures=[str(one.path), str(other.path)], value=share)
        told.append(((not unequal, not across, share), finding))
    yield from (finding for _, finding in sorted(told, key=lambda pair: pair[0]))


def _neighbours(points: _Array, count: int) -> tuple[npt.NDArray[np.int64], _Array]:
    """Of each point ``[N, D]`` the nearest others, nearest first: their numbers and distances, ``[N, count]``."""
    squares = (points**2).sum(1)
    numbers, found = [], []
    for start in range(0, len(points), _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        distances = np.sqrt(np.maximum(squares[here, None] + squares - 2 * points[here] @ points.T, 0.0))
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        order = np.argsort(distances, axis=1)[:, :count]
        numbers.append(order)
        found.append(np.take_along_axis(distances, order, axis=1))
    return np.concatenate(numbers), np.concatenate(found)


def suspicious_pictures(
    good: Sequence[Picture], store: FeatureStore, engine: EngineChoice, threads: int = 1
) -> list[tuple[Picture, float]]:
    """Good pictures that are unlike the others, and by how many robust standard deviations; most suspicious first.

    Args:
        good: pictures that are labelled so; of fewer than ten none is suspicious.
        store: keeps the features.
        engine: runs the backbone.
        threads: CPU threads of that.
    """
    if len(good) < 2 * _FOLDS:
        return []
    scores = np.log(np.maximum(_held_out_scores(good, store, engine, threads), 1e-12))
    apart = _robust_deviations(scores)
    most = max(1, int(_MOST_SUSPICIOUS * len(good)))
    unlike = itertools.takewhile(lambda number: apart[number] > _UNLIKE, np.argsort(-apart)[:most])
    return [(good[number], float(apart[number])) for number in unlike]


def _suspicious(good: Sequence[Picture], store: FeatureStore, engine: EngineChoice, threads: int) -> Iterator[Finding]:
    for picture, deviations in suspicious_pictures(good, store, engine, threads):
        yield Finding(
            kind="suspicious_good",
            text=f"labelled good, but unlike the other good pictures ({deviations:.1f} robust standard deviations "
            "above their median); look whether it is, for a defect among the good teaches that it is normal",
            pictures=[str(picture.path)],
            value=deviations,
        )


def _like_defects(dataset: Dataset, store: FeatureStore, engine: EngineChoice, threads: int) -> Iterator[Finding]:
    try:
        roles = assign_roles(dataset)
    except DatasetError:  # no search either, which says why
        return
    for picture, likely in lookalikes(roles, store, engine, threads):
        yield Finding(
            kind="like_defects",
            text=f"labelled good, but like the labelled defects ({likely:.2f} of 1, roughly); look whether it "
            "is, for a defect among the good teaches that it is normal",
            pictures=[str(picture.path)],
            value=likely,
        )


def _held_out_scores(good: Sequence[Picture], store: FeatureStore, engine: EngineChoice, threads: int) -> _Array:
    """Each picture's score by a PatchCore that never saw it; folds go by sha256."""
    order = np.argsort([picture.sha256 for picture in good])
    scores = np.empty(len(good))
    algorithm = get_algorithm("patchcore")
    for fold in range(_FOLDS):
        held = order[fold::_FOLDS]
        fitted = np.setdiff1d(order, held)
        fitted = fitted[np.linspace(0, len(fitted) - 1, min(_FITTED, len(fitted))).astype(int)]
        needs = algorithm(algorithm.Config()).needs
        train = load_inputs(store, [good[i] for i in fitted], needs, engine, threads)
        patches = len(fitted) * train.features[needs.stages[0]].shape[-2:].numel()
        detector = algorithm(algorithm.Config(coreset_sampling_ratio=min(1.0, _BANK / patches)))
        for _ in detector.fit(train):
            pass
        tested = load_inputs(store, [good[i] for i in held], needs, engine, threads)
        scores[held] = torch.cat([detector.predict(part).scores for part in tested.batches(16)]).numpy()
    return scores


def _variants(points: _Array, good: Sequence[Picture]) -> Iterator[Finding]:
    from sklearn.cluster import KMeans  # takes a second to import, and every search imports this module
    from sklearn.metrics import silhouette_score

    smallest = max(_SMALLEST_GROUP, int(_SMALLEST_SHARE * len(points)))
    if len(points) < 3 * smallest:
        return
    points = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    reduced = points @ axes[:_COMPONENTS].T
    best: tuple[float, npt.NDArray[np.int32]] | None = None
    for count in range(2, min(_GROUPS, len(points) // smallest) + 1):
        groups = KMeans(count, n_init=4, random_state=0).fit_predict(reduced)
        if np.bincount(groups).min() < smallest:
            continue
        clear = float(silhouette_score(reduced, groups, sample_size=min(_SAMPLE, len(reduced)), random_state=0))
        if clear >= _APART and (best is None or clear > best[0]):
            best = clear, groups
    if best is None:
        return
    clear, groups = best
    sizes = np.bincount(groups)
    for number in np.argsort(-sizes):
        members = np.flatnonzero(groups == number)
        centre = reduced[members].mean(axis=0)
        typical = members[np.argsort(((reduced[members] - centre) ** 2).sum(axis=1))]
        yield Finding(
            kind="variants",
            text=f"{len(members)} of {len(groups)} good pictures are one of {len(sizes)} clear groups (silhouette "
            f"{clear:.2f}); if these are different products, a dataset and a model for each find more",
            pictures=[str(good[i].path) for i in typical],
            value=clear,
        )


def _odd_light(images: npt.NDArray[np.uint8], pictures: Sequence[Picture]) -> Iterator[Finding]:
    if len(pictures) < 8:
        return
    levels = np.array([float(image.mean()) for image in images])
    middle = float(np.median(levels))
    apart = _robust_deviations(levels)
    for number in np.argsort(-np.abs(apart)):
        if abs(apart[number]) <= _DARKER or abs(levels[number] - middle) < _LEVELS:
            continue
        word = "darker" if apart[number] < 0 else "brighter"
        yield Finding(
            kind="brightness",
            text=f"much {word} than the others (mean level {levels[number]:.0f} of 255, the median is {middle:.0f}); "
            "if that does not happen in production, leave it out",
            pictures=[str(pictures[number].path)],
            value=float(apart[number]),
        )


def _robust_deviations(values: _Array) -> _Array:
    """Distance from the median in units of the standard deviation that the median absolute deviation stands for."""
    middle = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return np.asarray((values - middle) / max(spread, 1e-9))
