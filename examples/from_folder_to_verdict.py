"""A folder of pictures becomes a dataset, a search, a promoted model and verdicts.

python examples/from_folder_to_verdict.py FOLDER NAME TIME PICTURE...
"""

from __future__ import annotations

import sys

import autoad


def main(folder: str, name: str, time: str, *pictures: str) -> None:
    """Submit, search, follow, promote, score."""
    with autoad.Client() as client:
        dataset = client.submit_dataset(folder, name=name)
        print(f"{dataset}: {dataset.counts}")
        search = client.search(dataset, time=time)
        for event in search.follow():
            print(event)
        if search.champion is None:
            raise SystemExit(f"the search found no model: {search.entry.error}")
        promotion = search.promote(reason="the first model of this product")
        print(f"version {promotion.version} answers")
        for picture in pictures:
            result = client.score(name, picture)
            print(f"{picture}: {'ANOMALOUS' if result.is_anomalous else 'good'} ({result.normalized_score:.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
