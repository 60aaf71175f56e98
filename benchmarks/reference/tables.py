"""Tables, goals and a plot of what was measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scipy import stats
from tasks import TASKS, Task

__all__ = ["write_report"]

Row = dict[str, Any]
_METRICS = ("image_auroc", "aupr", "pixel_auroc", "aupro")
_DETERMINISTIC = 0.005
_TRAINED = -0.02


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """Write ``reference.md`` and ``reference.svg`` from the measurements.

    Args:
        rows: of ``reference.jsonl``.
        folder: to write into.
    """
    parts = [_machine(rows), _goals(rows), _times(rows), _starts(rows), _coresets(rows), _many(rows), _accuracy(rows)]
    text = "\n\n".join(part for part in parts if part)
    (folder / "reference.md").write_text("# Beside anomalib\n\n" + text + "\n")
    plot = _plot(rows)
    if plot is not None:
        (folder / "reference.svg").write_text(plot)


def _machine(rows: Sequence[Row]) -> str:
    machine = next(row for row in rows if row["key"]["phase"] == "machine")
    versions: dict[str, str] = next((row["versions"] for row in _of(rows, "time")), {})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads for each side, Python {machine['python']}; {listed}. "
        "Pictures of 256 px, EfficientNet-Lite0 (Reverse Distillation: ResNet-18 with random weights, for anomalib "
        "has it for ResNets only). Ratios are anomalib's median over autoad's; in brackets the smallest and largest "
        "ratio of a round."
    )


def _of(rows: Sequence[Row], phase: str, **others: Any) -> Iterator[Row]:
    for row in rows:
        if row["key"]["phase"] == phase and all(row["key"].get(key) == value for key, value in others.items()):
            yield row


class _Ratio:
    """anomalib's seconds over autoad's."""

    def __init__(self, theirs: Sequence[float], ours: Sequence[float]) -> None:
        # A round that warms up counts where a fit took long, and then only for the side that took long.
        rounds = min(len(theirs), len(ours))
        theirs, ours = theirs[-rounds:], ours[-rounds:]
        each = [a / b for a, b in zip(theirs, ours, strict=True)]
        self.value = statistics.median(theirs) / statistics.median(ours)
        self.low, self.high = min(each), max(each)

    def __str__(self) -> str:
        return f"**{_short(self.value)}** [{_short(self.low)}, {_short(self.high)}]"


def _ratio(row: Row, what: str, side: str = "theirs") -> _Ratio | None:
    seconds = row["seconds"]
    if side not in seconds or what not in seconds["ours"]:
        return None
    return _Ratio(seconds[side][what], seconds["ours"][what])


def _times(rows: Sequence[Row]) -> str:
    parts = []
    for data in dict.fromkeys(row["key"]["data"] for row in _of(rows, "time")):
        found = list(_of(rows, "time", data=data))
        [((train, test), _)] = Counter(tuple(row["pictures"]) for row in found).most_common(1)
        lines = []
        for row in found:
            seconds, peak = row["seconds"], row["peak"]
            name = row["key"]["task"]
            if "epoch" in seconds["ours"]:
                epochs = row.get("epochs", 1)
                name += ", an epoch" if epochs == 1 else f", {epochs} epochs"
            if row["pictures"] != [train, test]:
                name += ", {} training pictures".format(row["pictures"][0])
            if "theirs" not in seconds:
                lines.append([name, f"anomalib: {row['failed'].get('theirs')}"] + [""] * 11)
                continue
            batch = _ratio(row, "fit", "theirs, batch 32")
            cells = [name, *_pair(seconds, "fit", 1), _ratio(row, "fit"), batch or "-"]
            cells += [_ratio(row, "epoch") or "-"]
            for what in ("predict 1", "predict 16"):
                cells += [*_pair(seconds, what, 1000 / row["pictures"][1]), _ratio(row, what)]
            cells += [f"{peak['ours']:.0f} / {peak['theirs']:.0f} = **{peak['ours'] / peak['theirs']:.2f}**"]
            lines.append([str(cell) for cell in cells])
        title = ["", "fit, s: autoad", "anomalib", "ratio", "ratio to its batch 32", "ratio of an epoch"]
        title += [
            "a picture alone, ms: autoad",
            "anomalib",
            "ratio",
            "in batches of 16, ms: autoad",
            "anomalib",
            "ratio",
        ]
        title += ["peak memory, MiB"]
        parts.append(
            f"## Time and memory: {data}, {train} training and {test} test pictures\n\n"
            "`fit` is from picture files to a fitted model, with an empty feature store and a compiled backbone that "
            "another process has kept. Of two epochs the first is compared: the statistics of batch normalisation that "
            "autoad's two students measure after an epoch that is looked at belong to the fit. anomalib's algorithms "
            "that do not train get the training batch that is fastest here, 4, and beside it their default, 32. "
            "Prediction is from decoded pixels in memory to raw score and map.\n\n" + _table(title, lines)
        )
    return "\n\n".join(parts)


def _pair(seconds: Row, what: str, factor: float) -> list[str]:
    return [_short(factor * statistics.median(seconds[side][what])) for side in ("ours", "theirs")]


def _starts(rows: Sequence[Row]) -> str:
    lines = []
    for row in _of(rows, "start"):
        ours, theirs = row["seconds"]["ours"], row["seconds"]["theirs"]
        middle = [_short(statistics.median(one)) for one in (ours, theirs)]
        lines.append([row["key"]["task"], *middle, str(_Ratio(theirs, ours))])
    if not lines:
        return ""
    return (
        "## From the start of a process to its first score\n\n`Model.load` and `score` of one PNG file beside "
        "anomalib's `TorchInferencer`, in a new Python each time.\n\n"
        + _table(["", "autoad, s", "anomalib, s", "ratio"], lines)
    )


def _coresets(rows: Sequence[Row]) -> str:
    lines = []
    for row in _of(rows, "coreset"):
        ours, theirs = row["seconds"]["ours"], row["seconds"]["theirs"]
        radius = row["radius"]["ours"] / row["radius"]["theirs"]
        what = f"{row['key']['data']}, {row['patches']} patches, {100 * row['key']['ratio']:g} %"
        middle = [_short(statistics.median(one)) for one in (ours, theirs)]
        lines.append([what, *middle, str(_Ratio(theirs, ours)), f"{radius:.3f}"])
    if not lines:
        return ""
    title = ["", "autoad, s", "anomalib, s", "ratio", "covering radius, autoad / anomalib"]
    return "## Coreset alone\n\n" + _table(title, lines)


def _many_done(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By dataset, the configurations that both sides have fitted."""
    datasets = dict.fromkeys(row["key"]["data"] for row in _of(rows, "many"))
    return {data: [row for row in _of(rows, "many", data=data) if "failed" not in row] for data in datasets}


def _sums(done: Sequence[Row]) -> tuple[float, float, float]:
    """Seconds of autoad, of anomalib and of autoad without its store."""
    ours, theirs, storeless = (
        sum(row["seconds"][side] for row in done) for side in ("ours", "theirs", "ours, no store")
    )
    return ours, theirs, storeless


def _many(rows: Sequence[Row]) -> str:
    parts = []
    for data, done in _many_done(rows).items():
        tried = list(_of(rows, "many", data=data))
        lines = []
        for name in [*dict.fromkeys(row["algorithm"] for row in done), "all"]:
            which = [row for row in done if name in (row["algorithm"], "all")]
            ours, theirs, storeless = _sums(which)
            ratios = [f"**{_short(one / ours)}**" for one in (theirs, storeless)]
            lines.append([name, str(len(which)), *map(_short, (ours, storeless, theirs)), *ratios])
        train, test = tried[0]["pictures"]
        title = ["", "configurations", "autoad, s", "without the store, s", "anomalib, s", "anomalib / autoad"]
        title += ["without / with the store"]
        parts.append(
            f"## {len(tried)} configurations: {data}, {train} training and {test} test pictures\n\n"
            "Random ones from the search spaces, fitted and scored one after the other; the store is empty at first. "
            f"{len(tried) - len(done)} failed in anomalib, or took it more than five minutes, and are left out on both "
            "sides.\n\n" + _table(title, lines)
        )
    return "\n\n".join(parts)


def _accuracy(rows: Sequence[Row]) -> str:
    lines = []
    for data in dict.fromkeys(row["key"]["data"] for row in _of(rows, "judge")):
        for task in TASKS:
            sides = {side: _judged(rows, data, task, side) for side in ("ours", "theirs")}
            if not all(sides.values()):
                failed = next(_of(rows, "judge", data=data, task=task.name, side="theirs"), {}).get("failed")
                if failed:
                    lines.append([data, task.name, "", f"anomalib: {failed}", "", ""])
                continue
            epochs = sides["ours"][0]["epochs"]
            what = task.name + (f", {epochs} epochs" if epochs else "")
            cells = [" / ".join(_mean(each, name) for name in _METRICS) for each in (sides["ours"], sides["theirs"])]
            differences = _differences(rows, data, task, "image_auroc")
            shown = f"{statistics.fmean(differences):+.3f}"
            if len(differences) > 1:
                shown += f" (sd {statistics.stdev(differences):.3f})"
            lines.append([data, what, str(len(differences)), *cells, shown])
            extra = sides["theirs"][0]
            if "mended" in extra:
                values = f"{extra['mended']['image_auroc']:.3f} / {extra['mended']['aupr']:.3f} / - / -"
                lines.append([data, f"{task.name}, log density", "1", "", values, ""])
            if "alone" in extra:
                cell = " / ".join(_mean([{"metrics": each["alone"]} for each in sides["theirs"]], m) for m in _METRICS)
                lines.append([data, f"{task.name}, one picture at a time", "", "same", cell, ""])
    if not lines:
        return ""
    title = ["data", "", "seeds", "autoad", "anomalib", "difference of image AUROC"]
    return (
        "## Accuracy\n\nImage AUROC / AUPR / pixel AUROC / AUPRO, means over seeds, by autoad's metrics. Both sides' "
        "raw scores; autoad's and anomalib's metric code differ by at most "
        f"{_largest_disagreement(rows):.0e} on all of them. Algorithms that do not train: all pictures of the folder "
        "(PatchCore 10 %: 60 training and 100 test pictures); those that train: 60 and 100, equal epochs, each side's "
        "default configuration.\n\n" + _table(title, lines)
    )


def _judged(rows: Sequence[Row], data: str, task: Task, side: str) -> list[Row]:
    return [row for row in _of(rows, "judge", data=data, task=task.name, side=side) if "metrics" in row]


def _mean(rows: Sequence[Row], metric: str) -> str:
    values = [row["metrics"][metric] for row in rows if metric in row["metrics"]]
    return f"{statistics.fmean(values):.3f}" if values else "-"


def _differences(rows: Sequence[Row], data: str, task: Task, metric: str) -> list[float]:
    """Ours minus theirs by seed."""
    by_side = [
        {row["key"]["seed"]: row["metrics"].get(metric) for row in _judged(rows, data, task, side)}
        for side in ("ours", "theirs")
    ]
    ours, theirs = by_side
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs and ours[seed] is not None]


def _largest_disagreement(rows: Sequence[Row]) -> float:
    return max(
        (
            abs(row["metrics"][name] - value)
            for row in _of(rows, "judge")
            if "by anomalib" in row
            for name, value in row["by anomalib"].items()
        ),
        default=math.nan,
    )


def _goals(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []

    def add(what: str, goal: str, seen: str, reached: bool) -> None:
        lines.append([what, goal, seen, "yes" if reached else "**no**"])

    tasks = {task.name: task for task in TASKS}
    for row in _of(rows, "time"):
        task = tasks[row["key"]["task"]]
        where = f"{task.name}, {row['key']['data']}"
        for what, goal in task.goal.items():
            ratio = _ratio(row, what)
            if ratio is not None:
                default = _ratio(row, what, "theirs, batch 32")
                beside = f"; {_short(default.value)} at its default batch" if default else ""
                add(f"{where}: {what}", f">= {goal:g}x", str(ratio) + beside, ratio.value >= goal)
        if "theirs" in row["peak"]:
            share = row["peak"]["ours"] / row["peak"]["theirs"]
            add(f"{where}: peak memory", "<= .6x", f"{share:.2f}", share <= 0.6)
    for row in _of(rows, "coreset"):
        ratio = _Ratio(row["seconds"]["theirs"], row["seconds"]["ours"])
        add(f"coreset alone, {row['key']['data']}", ">= 50x", str(ratio), ratio.value >= 50)
    for row in _of(rows, "start"):
        ratio = _Ratio(row["seconds"]["theirs"], row["seconds"]["ours"])
        add(f"process start to first score, {row['key']['task']}", ">= 2x", str(ratio), ratio.value >= 2)
    for data, done in _many_done(rows).items():
        ours, theirs, storeless = _sums(done)
        what = f"{len(done)} configurations, {data}"
        add(what, ">= 20x", _short(theirs / ours), theirs >= 20 * ours)
        add(f"{what}: store off / on", ">= 4x", _short(storeless / ours), storeless >= 4 * ours)
    lines += _accuracy_goals(rows)
    return "## Goals\n\n" + _table(["", "goal", "seen", "reached"], lines) if lines else ""


def _accuracy_goals(rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    datasets = list(dict.fromkeys(row["key"]["data"] for row in _of(rows, "judge")))
    for task in TASKS:
        by_metric: dict[str, list[list[float]]] = {
            metric: [found for data in datasets if (found := _differences(rows, data, task, metric))]
            for metric in ("image_auroc", "aupro")
        }
        if not by_metric["image_auroc"]:
            continue
        if task.epochs is None:
            worst = {m: min(statistics.fmean(d) for d in each) for m, each in by_metric.items() if each}
            seen = ", ".join(f"{m} {value:+.3f}" for m, value in worst.items())
            reached = min(worst.values()) >= -_DETERMINISTIC
            lines.append([f"{task.name}: worst difference", ">= -.005", seen, "yes" if reached else "**no**"])
        else:
            every = [one for each in by_metric["image_auroc"] for one in each]
            mean = statistics.fmean(every)
            bound = mean
            if len(every) > 1:
                spread = statistics.stdev(every) / math.sqrt(len(every))
                bound = mean - float(stats.t.ppf(0.95, len(every) - 1)) * spread
            goal = "lower bound >= -.02"
            seen = f"mean {mean:+.3f}, lower 95 % bound {bound:+.3f}, {len(every)} pairs"
            lines.append([f"{task.name}: image AUROC", goal, seen, "yes" if bound >= _TRAINED else "**no**"])
    gap = _largest_disagreement(rows)
    if not math.isnan(gap):
        lines.append(["both metric codes", "<= 1e-3", f"{gap:.0e}", "yes" if gap <= 1e-3 else "**no**"])
    return lines


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = [title, ["---"] * len(title), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in body)


def _plot(rows: Sequence[Row]) -> str | None:
    """Image AUROC against seconds of a fit, of the folder that was timed first; arrows from anomalib to autoad."""
    data = next((row["key"]["data"] for row in _of(rows, "time")), None)
    arrows = []
    for row in _of(rows, "time", data=data):
        task = next(task for task in TASKS if task.name == row["key"]["task"])
        sides = []
        for side in ("theirs", "ours"):
            judged = [
                r["metrics"]["image_auroc"]
                for r in _of(rows, "judge", data=data, task=task.name, side=side)
                if "metrics" in r
            ]
            if judged and side in row["seconds"]:
                sides.append((statistics.median(row["seconds"][side]["fit"]), statistics.fmean(judged)))
        if len(sides) == 2:
            arrows.append((task.name, *sides))
    if not arrows:
        return None
    points = [point for _, *both in arrows for point in both]
    left, right = (math.log10(f(x for x, _ in points)) for f in (min, max))
    bottom, top = (f(y for _, y in points) for f in (min, max))
    bottom, top = bottom - 0.05 * (top - bottom + 0.01), top + 0.08 * (top - bottom + 0.01)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = 70 + (math.log10(point[0]) - left) / max(right - left, 1e-9) * 520
        return x, 20 + (top - point[1]) / (top - bottom) * 340

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 430" width="720" height="430" '
        'font-family="sans-serif" font-size="12" fill="#333"><rect width="720" height="430" fill="white"/>',
        '<defs><marker id="end" orient="auto" markerWidth="8" markerHeight="8" refX="7" refY="4">'
        '<path d="M0 0L8 4L0 8z" fill="#0b5fa5"/></marker></defs>',
        '<text x="260" y="408" text-anchor="middle">',
        "seconds from files to a fitted model (one or two epochs where it trains)</text>",
        f'<text transform="translate(16 190) rotate(-90)" text-anchor="middle">image AUROC, {escape(data)}</text>',
    ]
    parts += _axes(left, right, bottom, top, place)
    for name, before, after in arrows:
        (a, b), (c, d) = place(before), place(after)
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="#d1495b"/>')
        parts.append(
            f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="#0b5fa5" stroke-width="1.5" marker-end="url(#end)"/>'
        )
        parts.append(f'<circle cx="{c:.1f}" cy="{d:.1f}" r="5" fill="#0b5fa5"/>')
        parts.append(f'<text x="{a + 8:.1f}" y="{b + 4:.1f}">{escape(name)}</text>')
    parts += ['<circle cx="500" cy="404" r="5" fill="#d1495b"/><text x="510" y="408">anomalib</text>']
    parts += ['<circle cx="590" cy="404" r="5" fill="#0b5fa5"/><text x="600" y="408">autoad</text></svg>', ""]
    return "\n".join(parts)


def _axes(
    left: float, right: float, bottom: float, top: float, place: Callable[[tuple[float, float]], tuple[float, float]]
) -> list[str]:
    parts = []
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (top - bottom) / s <= 8)
    for number in range(math.ceil(bottom / step), math.floor(top / step) + 1):
        _, y = place((10**left, number * step))
        parts.append(f'<path d="M64 {y:.1f}H640" stroke="#ddd"/>')
        parts.append(f'<text x="60" y="{y + 4:.1f}" text-anchor="end">{number * step:.2f}</text>')
    for seconds in (0.1, 0.3, 1, 3, 10, 30, 100, 300):
        if left <= math.log10(seconds) <= right:
            x, _ = place((seconds, bottom))
            parts.append(f'<text x="{x:.1f}" y="384" text-anchor="middle">{seconds:g}</text>')
            parts.append(f'<path d="M{x:.1f} 360v6" stroke="#333"/>')
    return parts
