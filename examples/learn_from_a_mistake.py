"""A wrongly scored picture becomes a labelled example; a new search promotes its champion only if it is better.

python examples/learn_from_a_mistake.py DATASET PICTURE LABEL [--time 30m | --trials N]
"""

from __future__ import annotations

import argparse

import autoad


def main() -> None:
    """Label the picture, search again, and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("picture")
    parser.add_argument("label", help="good, or what the defect is called")
    parser.add_argument("--time")
    parser.add_argument("--trials", type=int)
    given = parser.parse_args()
    with autoad.Client() as client:
        version = client.add_example(given.dataset, given.picture, label=given.label, note="scored wrongly at the line")
        print(f"{version}: {version.counts}")
        search = client.search(version, time=given.time, trials=given.trials, promote_when="better")
        for event in search.follow():
            print(event)
        verdict = search.entry.promotion
        print(search.status if verdict is None else f"{verdict.state}: {verdict.reason}")


if __name__ == "__main__":
    main()
