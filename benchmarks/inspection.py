"""What ``autoad inspect`` finds of trouble that is put into a dataset, and what it finds without.

Into the good pictures of each folder go one defective picture for every twenty, labelled good, and six copies (encoded
again as JPEG, cut by two pixels, or brightened by 5 %), labelled as test pictures. Five draws.

    python benchmarks/inspection.py --data FOLDER...
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import statistics
import tempfile
from pathlib import Path
from typing import get_args

from _common import arguments, open_store, table
from PIL import Image

from autoad.data import Dataset, Picture, read_dataset
from autoad.features import EngineChoice, FeatureStore
from autoad.schema import FindingKind, Inspection
from autoad.search.inspection import inspect_dataset

COPIES = 6
DRAWS = 5
KINDS = get_args(FindingKind)


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        dataset = read_dataset(path)
        clean = _inspect(dataset, store, engine, parsed.threads)
        kinds = [finding.kind for finding in clean.findings]
        drawn = [_one_draw(dataset, seed, store, engine, parsed.threads) for seed in range(DRAWS)]
        means = [statistics.fmean(column) for column in zip(*drawn, strict=True)]
        rows.append(
            [
                path.name,
                *(kinds.count(kind) for kind in KINDS),
                f"{means[0]:.1f} of {COPIES}",
                f"{means[1]:.1f}",
                f"{means[2]:.1f} of {means[3]:.0f}",
                f"{means[4]:.1f} of {sum(p.is_normal for p in dataset.pictures)}",
            ]
        )
        print(rows[-1], flush=True)
    title = ["data", *(f"as it is: {kind}" for kind in KINDS)]
    title += ["copies found", "other pairs", "defective among the good found", "good called suspicious"]
    print(table(title, rows))


def _inspect(dataset: Dataset, store: FeatureStore, engine: EngineChoice, threads: int) -> Inspection:
    return inspect_dataset(dataset, path=dataset.name, store=store, engine=engine, threads=threads)


def _one_draw(
    dataset: Dataset, seed: int, store: FeatureStore, engine: EngineChoice, threads: int
) -> tuple[int, int, int, int, int]:
    """Copies found, other pairs, defective pictures found, how many there were, and good ones called suspicious."""
    chance = random.Random(seed)
    good = [picture for picture in dataset.pictures if picture.is_normal]
    bad = [picture for picture in dataset.pictures if not picture.is_normal]
    hidden = chance.sample(bad, max(1, len(good) // 20))
    with tempfile.TemporaryDirectory() as folder:
        copies = [_copy(one, Path(folder), number) for number, one in enumerate(chance.sample(good, COPIES))]
        relabelled = [dataclasses.replace(picture, label="good", mask=None) for picture in hidden]
        mixed = dataclasses.replace(dataset, pictures=(*good, *relabelled, *copies))
        found = _inspect(mixed, store, engine, threads)
        made = {str(one.path) for one in copies}
        pairs = [set(finding.pictures) for finding in found.findings if finding.kind == "near_duplicates"]
    suspicious = {finding.pictures[0] for finding in found.findings if finding.kind == "suspicious_good"}
    wrong = {str(picture.path) for picture in hidden}
    return (
        len(set().union(*pairs) & made),
        sum(not pair & made for pair in pairs),
        len(suspicious & wrong),
        len(wrong),
        len(suspicious - wrong),
    )


def _copy(picture: Picture, folder: Path, number: int) -> Picture:
    image = Image.open(io.BytesIO(picture.read())).convert("RGB")
    if number % 3 == 1:
        image = image.crop((2, 2, image.width - 1, image.height - 2))
    elif number % 3 == 2:
        image = image.point(lambda level: min(255, int(1.05 * level)))
    path = folder / f"{number}.jpg"
    image.save(path, quality=75)
    return dataclasses.replace(picture, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), split="test")


if __name__ == "__main__":
    main()
