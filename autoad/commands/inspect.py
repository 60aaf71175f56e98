"""``autoad inspect``: what is odd about a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoad.commands._options import Json

__all__ = ["inspect"]


def inspect(
    data: Annotated[Path, typer.Option(help="Folder or manifest of pictures.")],
    output: Annotated[Path, typer.Option(help="HTML file to write, with the pictures in question.")] = Path(
        "inspection.html"
    ),
    as_json: Json = False,
) -> None:
    """Look for near-duplicates, good pictures that look defective, several products in one folder, and odd light."""
    import os

    from autoad.console import err, out, print_inspection
    from autoad.data import read_dataset
    from autoad.features import FeatureStore, choose_engine
    from autoad.report import write_inspection
    from autoad.search.inspection import inspect_dataset
    from autoad.settings import get_settings

    dataset = read_dataset(data)
    found = inspect_dataset(
        dataset,
        path=str(data),
        store=FeatureStore(get_settings().features_dir),
        engine=choose_engine(),
        threads=os.cpu_count() or 1,
    )
    written = write_inspection(found, output)
    if as_json:
        out.out(found.model_dump_json(indent=2), highlight=False)
    else:
        print_inspection(found)
    err.print(f"pictures: {written}")
