"""What an inspection found, as one HTML page with the pictures in question."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoad.data import decode_image
from autoad.errors import UnreadableImageError
from autoad.report._html import data_address, packaged, reduced, templates, write_page
from autoad.schema import Finding, FindingKind, Inspection

__all__ = ["write_inspection"]

_TITLES: dict[FindingKind, str] = {
    "near_duplicates": "Nearly the same picture twice",
    "suspicious_good": "Labelled good, but unlike the others",
    "like_defects": "Labelled good, but like the labelled defects",
    "variants": "Several products in one folder",
    "brightness": "Unusual light",
}
_MOST = 24
_SHOWN = 4
_LONGEST_SIDE = 200


@dataclasses.dataclass(frozen=True)
class _Thumbnail:
    name: str
    picture: str


@dataclasses.dataclass(frozen=True)
class _Told:
    """A finding with its first few pictures, reduced."""

    text: str
    thumbnails: list[_Thumbnail]


def write_inspection(inspection: Inspection, output: Path) -> Path:
    """Write an inspection as an HTML file that needs no network.

    Args:
        inspection: what was found; the pictures are read again for their thumbnails.
        output: the file.

    Raises:
        UsageError: the file cannot be written.
    """
    groups = []
    for kind, title in _TITLES.items():
        found = [finding for finding in inspection.findings if finding.kind == kind]
        if found:
            groups.append((title, len(found), [_told(finding, inspection.path) for finding in found[:_MOST]]))
    page = (
        templates()
        .get_template("inspection.html.j2")
        .render(inspection=inspection, groups=groups, style=packaged("report.css"))
    )
    write_page(output, page, "inspection")
    return output


def _told(finding: Finding, folder: str) -> _Told:
    thumbnails = []
    for name in finding.pictures[:_SHOWN]:
        try:
            image = decode_image(Path(name).read_bytes())
        except (OSError, UnreadableImageError):
            continue  # gone since it was inspected: the text still names it
        path = Path(name)
        short = path.relative_to(folder) if path.is_relative_to(folder) else path
        thumbnails.append(_Thumbnail(str(short), data_address(reduced(image, _LONGEST_SIDE))))
    return _Told(finding.text, thumbnails)
