"""``autoad score``: here, or on a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoad.commands._options import AnyServer, Json, client_of, named_server

if TYPE_CHECKING:
    from autoad.schema import ScoredPicture

__all__ = ["score"]


def score(
    model: Annotated[
        str,
        typer.Argument(
            help="Model, version (bottle/3, bottle@champion), search, or folder of a saved model; on a server a model "
            "or version."
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to score.")],
    heatmaps: Annotated[Path, typer.Option(help="Folder for heatmap files.")] = Path("heatmaps"),
    no_heatmaps: Annotated[bool, typer.Option("--no-heatmaps", help="Write no heatmaps.")] = False,
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """Score pictures with a saved or served model: verdict, regions and heatmaps."""
    from autoad.console import err, out, print_scores

    folder = None if no_heatmaps else heatmaps
    if named_server(server):
        scored, unreadable = _score_there(server, model, pictures, folder)
    else:
        from autoad.search import score_pictures

        scored, unreadable = score_pictures(model, pictures, folder)
    if as_json:
        out.out(json.dumps([picture.model_dump() for picture in scored], indent=2), highlight=False)
    else:
        print_scores(scored)
    for line in unreadable:
        err.print(line, style="red")
    if unreadable:
        raise typer.Exit(1)


def _score_there(
    server: str | None, model: str, pictures: list[Path], heatmaps: Path | None
) -> tuple[list[ScoredPicture], list[str]]:
    from autoad.client import FailedPicture
    from autoad.data import decode_image
    from autoad.data.heatmaps import heatmap_files, lay_over, save_heatmap
    from autoad.schema import ScoredPicture

    targets = {} if heatmaps is None else heatmap_files(pictures, heatmaps)
    scored: list[ScoredPicture] = []
    unreadable: list[str] = []
    with client_of(server) as client:
        client.health()  # or a server that is not there would be waited for as one that comes back
        maps: Literal["png", False] = "png" if targets else False
        for path, one in zip(pictures, client.score_many(model, pictures, errors="return", maps=maps), strict=True):
            if isinstance(one, FailedPicture):
                message = str(one.error)
                unreadable.append(message if message.startswith(str(path)) else f"{path}: {message}")
                continue
            normalized = one.normalized_map() if path in targets else None
            heatmap = None
            if normalized is not None:
                image = lay_over(decode_image(path.read_bytes()), normalized / 255)
                heatmap = save_heatmap(image, targets[path])
            scored.append(
                ScoredPicture(
                    picture=str(path),
                    model=f"{one.model}/{one.version}",
                    score=one.score,
                    normalized_score=one.normalized_score,
                    is_anomalous=one.is_anomalous,
                    regions=one.regions,
                    heatmap=heatmap,
                )
            )
    return scored, unreadable
