"""A wrongly scored picture becomes a labelled example; a new search promotes its champion only if it is better.

python examples/learn_from_a_mistake.py DATASET PICTURE LABEL TIME
"""

from __future__ import annotations

import sys

import autoad


def main(dataset: str, picture: str, label: str, time: str) -> None:
    """Label the picture (``good``, or what the defect is called), search again, and say what came of it."""
    with autoad.Client() as client:
        version = client.add_example(dataset, picture, label=label, note="scored wrongly at the line")
        print(f"{version}: {version.counts}")
        search = client.search(version, time=time, promote_when="better")
        search.wait()
        verdict = search.entry.promotion
        print(search.status if verdict is None else f"{verdict.state}: {verdict.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
