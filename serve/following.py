"""Following a search: what has happened to it, told from the database, so that any replica can do so at any time."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

from autoad.errors import UsageError
from autoad.schema import Champion, EventKind, SearchEvent, SubmissionEntry, TrialRow
from autoad.search.public import public_row
from autoad.search.submissions import Submissions

__all__ = ["POSITION", "Follower"]

POSITION = r"^[a-z]*\.\d{1,9}\.\d{1,9}\.[01]\.[a-z]*\.[0-9+-]*$"
"""What an event's id looks like."""

_POSITION = re.compile(POSITION)
_MOST_APART = 10_000  # whatever a client sends, it costs little to read


class Numbers:
    """A set of numbers that is told in few characters, as ``0-11+13``: trials end nearly in their order.

    Args:
        below: the set holds all numbers below this one,
        others: and these.
    """

    def __init__(self, below: int = 0, others: Iterable[int] = ()) -> None:
        self.below = below
        self._others = set(others)

    @classmethod
    def read(cls, text: str) -> Self:
        """What :meth:`__str__` wrote.

        Raises:
            ValueError: it did not.
        """
        below, others = 0, set[int]()
        for part in text.split("+") if text else ():
            first, _, last = part.partition("-")
            start, stop = int(first), int(last or first) + 1
            if start == 0:
                below = stop
            elif 0 < stop - start <= _MOST_APART - len(others):
                others |= set(range(start, stop))
            else:
                raise ValueError(part)
        return cls(below, others)

    def __contains__(self, number: int) -> bool:
        return number < self.below or number in self._others

    def __len__(self) -> int:
        return self.below + len(self._others)

    def add(self, number: int) -> None:
        """Take one in."""
        self._others.add(number)
        while self.below in self._others:
            self._others.remove(self.below)
            self.below += 1

    def __str__(self) -> str:
        parts = [[0, self.below - 1]] if self.below else []
        for number in sorted(self._others):
            if parts and parts[-1][1] == number - 1:
                parts[-1][1] = number
            else:
                parts.append([number, number])
        return "+".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


@dataclasses.dataclass
class _Told:
    """What a client has been told; its text is the id of the last event."""

    status: str = ""
    turn: int = 0  # its place in the queue, or how often it was started again
    notes: int = 0
    champion: bool = False
    promotion: str = ""
    trials: Numbers = dataclasses.field(default_factory=Numbers)

    @classmethod
    def read(cls, text: str) -> Self:
        if not _POSITION.fullmatch(text):
            raise ValueError(text)
        status, turn, notes, champion, promotion, trials = text.split(".")
        return cls(status, int(turn), int(notes), champion == "1", promotion, Numbers.read(trials))

    def __str__(self) -> str:
        return ".".join(map(str, (self.status, self.turn, self.notes, int(self.champion), self.promotion, self.trials)))


class Follower:
    """What one client is told of one search.

    Args:
        submissions: of the server.
        project: whose search it is.
        name: of the search, or its id.
        position: id of the last event that the client has; empty to begin at the beginning.

    Raises:
        UnknownNameError: the project has no such search.
        UsageError: no event has such an id.
    """

    def __init__(self, submissions: Submissions, project: str, name: str, position: str = "") -> None:
        self._submissions = submissions
        self._project = project
        try:
            self._told = _Told.read(position) if position else _Told()
        except ValueError as error:
            raise UsageError(f"Last-Event-ID must be the id of an event of this search but got {position!r}") from error
        row = submissions.row(project, name)
        self._search = row.id
        self._limits = {name: row.request[name] for name in ("seconds", "trials")}
        self._mark: tuple[Any, ...] | None = None
        self._best: float | None = None
        self._counted = 0

    def poll(self) -> list[SearchEvent]:
        """What has happened since; the last of all is an event of the kind ``end``. Asks the database."""
        mark = self._submissions.tables.mark(self._search)
        if mark == self._mark:
            return []
        # In this order: what is true of an entry that has ended is in the rows that are read after it.
        entry = self._submissions.entry(self._project, self._search)
        before = copy.deepcopy(self._told), self._best, self._counted
        try:
            events = [*self._beginning(entry), *self._notes(entry), *self._trials(entry), *self._end(entry)]
        except BaseException:  # none of them is told
            self._told, self._best, self._counted = before
            raise
        self._mark = mark
        return events

    def _beginning(self, entry: SubmissionEntry) -> Iterable[SearchEvent]:
        if entry.status not in {"queued", "running"}:
            return
        turn = entry.position or 0 if entry.status == "queued" else entry.restarts
        if (self._told.status, self._told.turn) == (entry.status, turn):
            return
        self._told.status, self._told.turn = entry.status, turn
        text = f"queued, {turn} before it" if turn else "queued"
        if entry.status == "running":
            text = "running" if not turn else f"running, after its process was started again ({turn})"
        yield self._event("status", text, self._then(entry))

    def _notes(self, entry: SubmissionEntry) -> Iterable[SearchEvent]:
        for note in self._submissions.notes(self._project, self._search)[self._told.notes :]:
            self._told.notes += 1
            yield self._event("note", note, self._then(entry))

    def _trials(self, entry: SubmissionEntry) -> Iterable[SearchEvent]:
        tables, told = self._submissions.tables, self._told.trials
        after = -1 if self._mark is None else told.below - 1
        ended = tables.ended_trials(self._search, entry.objective, after)
        for number, status, value in ended:
            if self._mark is None and number in told:  # before this client came back
                self._count(status, value)
        new = [one for one in ended if one[0] not in told]
        rows = tables.trials(self._search, [number for number, _, _ in new])
        for number, status, value in new:
            told.add(number)
            self._count(status, value)
            row = public_row(rows[number])
            yield self._event("trial", self._describe(row, entry, value), self._then(entry), row)

    def _end(self, entry: SubmissionEntry) -> Iterable[SearchEvent]:
        told, is_over = self._told, entry.status not in {"queued", "running"}
        if entry.champion is not None and not told.champion:
            told.champion = True
            then = self._then(entry).model_copy(update={"champion": entry.champion})
            yield self._event("champion", _introduce(entry.champion), then)
        if is_over and told.status != entry.status:
            told.status, told.turn = entry.status, entry.restarts
            reason = f": {entry.error}" if entry.error else f" after {_span(entry.seconds)}, {_count(entry.trials)}"
            yield self._event("status", f"{entry.status}{reason}", entry)
        if is_over and entry.promotion is not None and entry.promotion.state != told.promotion:
            told.promotion = entry.promotion.state
            yield self._event("promotion", f"{entry.promotion.state}: {entry.promotion.reason}", entry)
        if entry.ended:
            yield self._event("end", f"{entry.name} is {entry.status}", entry)

    def _event(self, kind: EventKind, text: str, search: SubmissionEntry, trial: TrialRow | None = None) -> SearchEvent:
        return SearchEvent(id=str(self._told), kind=kind, text=" ".join(text.split()), search=search, trial=trial)

    def _then(self, entry: SubmissionEntry) -> SubmissionEntry:
        """The entry as it was before the search ended, with as many trials as have been told."""
        changes: dict[str, Any] = {"trials": len(self._told.trials), "best": self._best}
        if entry.status not in {"queued", "running"}:
            changes |= {"status": "running", "error": None, "finished": None}
        return entry.model_copy(update=changes | {"champion": None, "promotion": None})

    def _count(self, status: str, value: float | None) -> None:
        self._counted += status != "stopped"  # which another trial is tried for
        if value is not None and (self._best is None or value > self._best):
            self._best = value

    def _describe(self, row: TrialRow, entry: SubmissionEntry, value: float | None) -> str:
        """``trial 12 patchcore: image_auroc 0.973 (best 0.981), 34 s of 20 min``."""
        came = row.status if row.reason is None else f"{row.status} ({row.reason})"
        if value is not None:
            came = f"{entry.objective} {value:.3f}"
        best = "" if self._best is None else f" (best {self._best:.3f})"
        parts = [f"trial {row.trial} {row.algorithm}: {came}{best}"]
        if row.ended_after is not None:
            limit = f" of {_span(self._limits['seconds'])}" if self._limits["seconds"] else ""
            parts.append(f"{_span(row.ended_after)}{limit}")
        if self._limits["trials"]:
            parts.append(f"{self._counted} of {_count(self._limits['trials'])}")
        return ", ".join(parts)


def _introduce(champion: Champion) -> str:
    tested = champion.test.image_auroc
    figures = "" if tested is None else f", image_auroc {tested:.3f} on the test pictures"
    return f"champion: {champion.origin} {champion.algorithm}{figures}, kept as {champion.model}"


def _span(seconds: float) -> str:
    """``34 s``, ``20 min``, ``3 min 5 s``, ``1 h 2 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    small: Sequence[tuple[int, str]] = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{amount} {unit}" for amount, unit in small if amount) or "0 s"


def _count(trials: int) -> str:
    return f"{trials} trial" if trials == 1 else f"{trials} trials"
