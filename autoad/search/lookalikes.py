"""Good pictures that look like the labelled defects: whoever learns from them takes defects for normal.

A hidden defect need not be unlike the other good pictures, for what it shows may occur more than once among them. But
where some defects are labelled, it is like those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from autoad.algorithms.optimizers import Adam
from autoad.data import Picture, Roles, load_mask
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore

__all__ = ["lookalikes", "telling_defects"]

_FEWEST_DEFECTS, _MOST_DEFECTS = 16, 200
"""Labelled defects of which a sort can be learnt (by fewer, many a good picture would look like one), and how many of
them are looked at."""

_FEWEST_GOOD = 20
_SUSPECTED = 0.3
"""Likelihood above which a picture is named: a hidden defect costs more than a good picture less does."""

_MOST = 0.1
"""Share of the good pictures above which none is named: so many are a kind of good, not a mistake."""

_STAGES = (2, 3)
_SIZE = (256, 256)
_FOLDS = 5
_REGULARISATION = 1e-3
_PATCHES, _HIDDEN, _EPOCHS, _BATCH = 12_000, 64, 8, 500
_HIGHEST = 0.02
"""Share of a picture's patches, those most like a defect, whose mean it is judged by."""

_DEFECTIVE, _FARTHEST = 0.3, 0.03
"""Share of a patch's pixels from which the mask makes it defective; share of a defect's patches that count as such
where it has no mask: those farthest from the good ones."""

_COMPARED = 6000
_AT_ONCE = 32
_FAR, _LOG_ODDS, _FIRST_SHARE, _STEPS = 8.0, 50.0, 0.1, 200

_FREEDOM, _SCALE = 4, 0.911
"""Student's distribution of a standard deviation that is robust: good pictures have outliers that are no defects."""

_Array = npt.NDArray[np.float64]
_Maps = npt.NDArray[np.float32]
_Features = Mapping[int, npt.NDArray[np.float16]]


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """What a classifier says of good pictures ``[N]`` and of labelled defects ``[K]``, in robust standard deviations
    from the median good one.
    """

    good: _Array
    defects: _Array

    @classmethod
    def standardised(cls, good: _Array, defects: _Array) -> _Evidence:
        middle = np.median(good)
        spread = max(1.4826 * float(np.median(np.abs(good - middle))), 1e-9)
        return cls((good - middle) / spread, (defects - middle) / spread)


def telling_defects(roles: Roles) -> list[Picture]:
    """Labelled defects of selection, by which others can be told; none if they are too few."""
    defects = sorted((p for p in roles.selection if not p.is_normal), key=lambda picture: picture.sha256)
    return defects[:_MOST_DEFECTS] if len(defects) >= _FEWEST_DEFECTS else []


def lookalikes(
    roles: Roles, store: FeatureStore, engine: EngineChoice, threads: int = 1
) -> list[tuple[Picture, float]]:
    """Good pictures to learn from that are probably defective, by what labelled defects look like.

    Two classifiers tell the labelled defects from the good pictures: a linear one by averages, deviations and maxima
    of a picture's features, and a small network by single patches, for which those in a defect's mask are examples.
    Each is asked only about pictures that it was not fitted on. Their joint score has one distribution over the good
    pictures and one over the labelled defects; how many of the good ones are of the second is estimated by expectation
    maximisation (Saerens, Latinne and Decaestecker, Neural Computation 2002), and with it how likely each is.

    Good pictures with a split of their own, such as those of a test folder, are only compared with: whoever put them
    there has looked at them, and all defects may have been photographed beside them.

    Args:
        roles: of the dataset's pictures; those of calibration and test are not looked at.
        store: keeps the features.
        engine: runs the backbone.
        threads: CPU threads of that.

    Returns:
        Train and selection pictures and how likely they are defective as this model has it, from .3 on, the
        likeliest first. Empty if labelled defects are too few, or so many are like them that this must be good.
    """
    bad = telling_defects(roles)
    good = sorted(
        (picture for picture in (*roles.train, *roles.selection) if picture.is_normal),
        key=lambda picture: picture.sha256,
    )
    divided = any(picture.split == "train" for picture in good)
    learnt = np.array([picture.split == "train" or not divided for picture in good])
    if not bad or learnt.sum() < _FEWEST_GOOD:
        return []
    maps, of_bad = (
        store.features(
            pictures, backbone=DEFAULT_BACKBONE, stages=_STAGES, image_size=_SIZE, engine=engine, threads=threads
        )
        for pictures in (good, bad)
    )
    likely = _likelihoods(_joined([_by_whole(maps, of_bad), _by_patches(maps, of_bad, bad)]))
    named = np.flatnonzero(learnt & (likely > _SUSPECTED))
    if len(named) > _MOST * learnt.sum():
        return []
    return [(good[number], float(likely[number])) for number in named[np.argsort(-likely[named], kind="stable")]]


def _folds(good: int, defects: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Which pictures are held out together."""
    for fold in range(_FOLDS):
        yield np.arange(good)[fold::_FOLDS], np.arange(defects)[fold::_FOLDS]


def _by_whole(good: _Features, defects: _Features) -> _Evidence:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    points, bad = _summaries(good), _summaries(defects)
    middle, spread = points.mean(axis=0), np.maximum(points.std(axis=0), 1e-6)
    points, bad = (points - middle) / spread, (bad - middle) / spread
    scores, of_defects = np.empty(len(points)), np.empty(len(bad))
    for held, held_bad in _folds(len(points), len(bad)):
        negative, positive = np.delete(points, held, axis=0), np.delete(bad, held_bad, axis=0)
        model = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=500)
        model.fit(np.concatenate([negative, positive]), np.repeat([0, 1], [len(negative), len(positive)]))
        scores[held] = model.decision_function(points[held])
        of_defects[held_bad] = model.decision_function(bad[held_bad])
    return _Evidence.standardised(scores, of_defects)


def _summaries(maps: _Features) -> _Array:
    """``[N, 3 C]``: of each channel the mean, standard deviation and maximum over the picture."""
    parts = []
    for stage in _STAGES:
        for start in range(0, len(maps[stage]), _AT_ONCE):
            whole = maps[stage][start : start + _AT_ONCE].astype(np.float32)
            parts.append((stage, [whole.mean(axis=(1, 2)), whole.std(axis=(1, 2)), whole.max(axis=(1, 2))]))
    return np.concatenate(
        [
            np.concatenate([values[kind] for of, values in parts if of == stage])
            for stage in _STAGES
            for kind in range(3)
        ],
        axis=1,
        dtype=np.float64,
    )


def _by_patches(good: _Features, defects: _Features, pictures: Sequence[Picture]) -> _Evidence:
    rng = np.random.default_rng(0)
    count, bad_count = len(good[_STAGES[0]]), len(defects[_STAGES[0]])
    sample = _sample(good, rng)
    middle, spread = sample.mean(axis=(0, 1)), np.maximum(sample.std(axis=(0, 1)), 1e-6)
    sample = (sample - middle) / spread
    bad = (_patches(defects, np.arange(bad_count)) - middle) / spread
    marked = _marked(pictures, bad, rng.permutation(sample.reshape(-1, sample.shape[2]))[:_COMPARED])
    scores, of_defects = np.empty(count), np.empty(bad_count)
    for held, held_bad in _folds(count, bad_count):
        negative = np.delete(sample, held, axis=0).reshape(-1, sample.shape[2])
        positive = np.delete(bad, held_bad, axis=0)[np.delete(marked, held_bad, axis=0)]
        network = _fitted(negative, positive)
        for start in range(0, len(held), _AT_ONCE):
            rows = held[start : start + _AT_ONCE]
            scores[rows] = _highest(network, (_patches(good, rows) - middle) / spread)
        of_defects[held_bad] = _highest(network, bad[held_bad])
    return _Evidence.standardised(scores, of_defects)


def _fitted(negative: _Maps, positive: _Maps) -> torch.nn.Module:
    """Gives of patches ``[M, C]`` the log odds ``[M, 1]`` of a defective one; both sorts weigh the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(negative.shape[1], _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, 1)
        )
    optimizer = Adam(network.parameters(), lr=2e-3, weight_decay=1e-2)
    of_good, of_bad = torch.from_numpy(negative), torch.from_numpy(positive)
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(len(of_good), generator=generator), _BATCH):
            some = torch.randint(len(of_bad), (len(rows),), generator=generator)
            odds = network(torch.cat([of_good[rows], of_bad[some]])).squeeze(1)
            # softplus(-x) for positives and softplus(x) for negatives: the cross entropy
            loss = torch.nn.functional.softplus(torch.cat([odds[: len(rows)], -odds[len(rows) :]])).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.requires_grad_(False)


def _patches(maps: _Features, rows: npt.NDArray[np.int64]) -> _Maps:
    """``[N, P, C]``: at each place of the finest map its features, the average around them, and those of the next."""
    parts: list[torch.Tensor] = []
    for stage in _STAGES:
        whole = torch.from_numpy(maps[stage][rows].astype(np.float32)).permute(0, 3, 1, 2)
        if parts:
            size = parts[0].shape[-2:]
            parts.append(torch.nn.functional.interpolate(whole, size, mode="bilinear", align_corners=False))
        else:
            parts += [whole, torch.nn.functional.avg_pool2d(whole, 3, 1, 1)]
    patches: _Maps = torch.cat(parts, dim=1).flatten(2).permute(0, 2, 1).numpy()
    return patches


def _sample(maps: _Features, rng: np.random.Generator) -> _Maps:
    """``[N, M, C]``: as many patches of each picture."""
    count = len(maps[_STAGES[0]])
    parts = []
    for start in range(0, count, _AT_ONCE):
        some = _patches(maps, np.arange(start, min(start + _AT_ONCE, count)))
        places = rng.permuted(np.tile(np.arange(some.shape[1]), (len(some), 1)), axis=1)[:, : -(-_PATCHES // count)]
        parts.append(np.take_along_axis(some, places[..., None], axis=1))
    return np.concatenate(parts)


def _marked(pictures: Sequence[Picture], patches: _Maps, good: _Maps) -> npt.NDArray[np.bool_]:
    """``[K, P]``: which patches of the defects are examples of defective ones; of each picture at least one."""
    side = round(patches.shape[1] ** 0.5)
    most = max(1, round(_FARTHEST * patches.shape[1]))
    marked = np.zeros(patches.shape[:2], dtype=np.bool_)
    for number, picture in enumerate(pictures):
        mask = load_mask(picture, _SIZE)
        if mask is None or not mask.any():
            distances = torch.cdist(torch.from_numpy(patches[number]), torch.from_numpy(good)).amin(dim=1)
            marked[number, distances.topk(most).indices.numpy()] = True
            continue
        cell = _SIZE[0] // side, _SIZE[1] // side
        share = mask.reshape(side, cell[0], side, cell[1]).mean(axis=(1, 3)).ravel()
        marked[number] = share > min(_DEFECTIVE, share.max() - 1e-9)
    return marked


def _highest(network: torch.nn.Module, patches: _Maps) -> _Array:
    """``[N]``: of each picture the mean log odds of its patches that are most like a defect."""
    odds = network(torch.from_numpy(patches)).squeeze(2)
    most = max(1, round(_HIGHEST * odds.shape[1]))
    return np.asarray(odds.topk(most, dim=1).values.mean(dim=1).double())


def _joined(parts: Sequence[_Evidence]) -> _Evidence:
    """Of several classifiers one score, by which the labelled defects are told best."""
    from sklearn.linear_model import LogisticRegression

    good = np.stack([part.good for part in parts], axis=1).clip(-_FAR, _FAR)
    defects = np.stack([part.defects for part in parts], axis=1).clip(-_FAR, _FAR)
    model = LogisticRegression(C=0.1, class_weight="balanced")
    model.fit(np.concatenate([good, defects]), np.repeat([0, 1], [len(good), len(defects)]))
    return _Evidence.standardised(good @ model.coef_[0], defects @ model.coef_[0])


def _likelihoods(found: _Evidence) -> _Array:
    """``[N]``: how likely each good picture is a defect."""
    from scipy import stats  # most of a second that no search without labelled defects should wait

    middle, spread = float(found.defects.mean()), max(float(found.defects.std(ddof=1)), 1.0)
    if middle <= 0:
        return np.zeros(len(found.good))
    # Beyond the middle of the defects nothing speaks for a good one.
    of_defects = stats.norm.logpdf(np.minimum(found.good, middle), middle, spread)
    ratio = of_defects - stats.t.logpdf(found.good, _FREEDOM, scale=_SCALE)
    ratio[found.good <= 0] = -np.inf  # a wide distribution would lie above a narrow one there, too
    share = _FIRST_SHARE
    for _ in range(_STEPS):
        likely = 1 / (1 + np.exp(-np.clip(ratio + np.log(share / (1 - share)), -_LOG_ODDS, _LOG_ODDS)))
        share = float(np.clip(likely.mean(), 1e-4, 0.5))
    return np.asarray(likely)
