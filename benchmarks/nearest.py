"""The search for the nearest entries of PatchCore's bank: in float32, in int8 first, and that with a packed bank.

The bank is the 10 per cent coreset of at most 60 pictures of ``train/good`` at 256 px, stages 2 and 3; searched are the
1,024 patches of each of 20 test pictures, one picture after the other, the ways in turn. Printed are the medians over
pictures and rounds; distances that differ by more than rounding end the program.

    python benchmarks/nearest.py --data FOLDER...
"""

from __future__ import annotations

import statistics
import time

from _common import arguments, folders, open_store, table

import autoad.algorithms._bank as search
from autoad.algorithms._bank import Bank
from autoad.algorithms._coreset import greedy_coreset
from autoad.algorithms.patchcore import PatchCore, PatchCoreConfig, embed
from autoad.models import load_inputs

import torch  # isort: skip - after autoad, which says how torch's threads wait

PICTURES, SEARCHED, ROUNDS = 60, 20, 5


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, engine = open_store(parsed)
    config = PatchCoreConfig()
    ways = {"float32": False}
    if search.multiplies_int8():
        ways["int8"] = False
    if search.packs_int8():
        ways["int8, packed"] = True
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        pictures = train[:PICTURES] + test[:: max(1, len(test) // SEARCHED)][:SEARCHED]
        patches = embed(load_inputs(store, pictures, PatchCore(config).needs, engine, parsed.threads), config)
        known = patches[: len(train[:PICTURES])].flatten(0, 1)
        patches -= known.mean(0)
        norms = torch.linalg.vector_norm(known, dim=1).square_()
        bank = known[greedy_coreset(known, norms, len(known) // 10, first=0)]
        banks = {way: Bank(bank, int8=way != "float32") for way in ways}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(1 + ROUNDS):
            for vectors in patches[len(train[:PICTURES]) :]:
                distances = {}
                for way, packs in ways.items():
                    search.packs_int8 = lambda packs=packs: packs
                    started = time.perf_counter()
                    [(_, distances[way], _)] = banks[way].nearest(vectors, [len(bank)])
                    if turn:
                        taken[way].append(1000 * (time.perf_counter() - started))
                for way, found in distances.items():
                    torch.testing.assert_close(found, distances["float32"], msg=f"{way} differs")
        medians = {way: statistics.median(values) for way, values in taken.items()}
        rows.append([path.name, len(bank), *(f"{medians[way]:.1f}" for way in ways)])
    print(table(["data", "entries", *(f"{way}, ms" for way in ways)], rows))


if __name__ == "__main__":
    main()
