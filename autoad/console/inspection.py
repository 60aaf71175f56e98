"""What an inspection found, for a terminal."""

from __future__ import annotations

from rich.table import Table

from autoad.console._streams import out
from autoad.schema import Inspection

__all__ = ["print_inspection"]

_NAMES = {
    "near_duplicates": "near-duplicates",
    "suspicious_good": "suspicious good",
    "like_defects": "like a defect",
    "variants": "variants",
    "brightness": "brightness",
}
_SHOWN = 3


def print_inspection(inspection: Inspection) -> None:
    """Findings, one a line, with the first pictures of each."""
    counts = ", ".join(f"{count} {name}" for name, count in inspection.counts.items() if count)
    if not inspection.findings:
        out.print(f"{inspection.path} ({counts}): nothing to look at")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "seen", "pictures"):
        table.add_column(title, overflow="fold")
    for finding in inspection.findings:
        rest = len(finding.pictures) - _SHOWN
        pictures = "\n".join(finding.pictures[:_SHOWN]) + (f"\nand {rest} more" if rest > 0 else "")
        table.add_row(_NAMES[finding.kind], finding.text, pictures)
    out.print(table)
    out.print(f"{inspection.path} ({counts}): {len(inspection.findings)} to look at; nothing was changed")
