"""What is said of a dataset before it is searched."""

from __future__ import annotations

from typing import Literal

from autoad.schema._record import Record

__all__ = ["Finding", "FindingKind", "Inspection"]

FindingKind = Literal["near_duplicates", "suspicious_good", "like_defects", "variants", "brightness"]


class Finding(Record):
    """Something about some pictures that a person should look at.

    Attributes:
        kind: ``near_duplicates`` (the pictures are nearly the same), ``suspicious_good`` (labelled good, but unlike the
            other good ones), ``like_defects`` (labelled good, but like the labelled defects), ``variants`` (one group
            of several into which the good pictures fall), or ``brightness`` (much darker or brighter than the others).
        text: what was seen and what to do about it, for people.
        pictures: files, the most telling first.
        value: by which the finding is judged, in the unit that ``text`` names.
    """

    kind: FindingKind
    text: str
    pictures: list[str]
    value: float


class Inspection(Record):
    """All findings about a dataset.

    Attributes:
        path: of the dataset.
        dataset_hash: of its pictures.
        counts: how many pictures of which sort there are.
        findings: by kind, the most severe first.
    """

    path: str
    dataset_hash: str
    counts: dict[str, int]
    findings: list[Finding]
