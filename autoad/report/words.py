"""The answer in words, and what a reader must know before relying on it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from autoad.evaluation import conformal_rank, many_labelled
from autoad.report.material import Material
from autoad.schema import Champion, Choice, Objective
from autoad.search import SearchRequest

__all__ = [
    "METRIC_TITLES",
    "Caveat",
    "alarm_chance",
    "answer",
    "budget",
    "caveats",
    "duration",
    "found",
    "interval",
    "is_default",
    "number",
    "percent",
    "raw_score",
    "repeat_command",
    "signed",
]

METRIC_TITLES: dict[Objective, str] = {
    "image_auroc": "image AUROC",
    "image_aupr": "image AUPR",
    "image_f1_max": "best image F1",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
_FEW = 20
_CURSE = 0.05
_UNLIKELY = 0.05
_MANY_FAILED = 0.2


@dataclasses.dataclass(frozen=True)
class Caveat:
    """Something to know before relying on the answer."""

    title: str
    text: str


def number(value: float | None, digits: int = 3) -> str:
    """A figure as people read it; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval in brackets; empty where there is none."""
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def signed(value: float) -> str:
    """A difference as people read it, with a real minus."""
    return f"{value:+.3f}".replace("-", "−")


def raw_score(value: float) -> str:
    """A raw score to four digits; detectors' scores have no common scale, and some run into the thousands."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share as people read it: 5 %, 7.7 %."""
    return f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """A time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if not hours else ""]
    return " ".join(part for part in parts if part and (part != "0 s" or not minutes))


def count(amount: int, one: str, many: str = "") -> str:
    """An amount with the right form of its noun."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"


def is_default(champion: Champion) -> bool:
    """Whether the champion is the untuned default PatchCore itself."""
    difference = champion.difference
    return champion.test == champion.default_patchcore and (
        difference is None or difference.low == difference.image_auroc == difference.high == 0
    )


def found(material: Material, model: str = "champion") -> dict[str, tuple[int, int]]:
    """For each label of the test pictures: how many were called anomalous, and how many there are."""
    counts: dict[str, tuple[int, int]] = {}
    for score in material.scores_of(model, "test"):
        hits, total = counts.get(score.label, (0, 0))
        counts[score.label] = (hits + score.is_anomalous, total + 1)
    return dict(sorted(counts.items(), key=lambda item: (item[0] != "good", item[0])))


def answer(material: Material) -> list[str]:
    """Which model, how good beside the default, and what its threshold promises: a sentence each."""
    result, champion = material.result, material.result.champion
    if champion is None:
        best = material.complete[0] if material.complete else None
        state = {"running": "is still running", "interrupted": "was interrupted", "failed": "failed"}.get(
            result.status, "ended"
        )
        sentences = [f"The search {state}, so there is no model to use yet."]
        if best is not None:
            sentences.append(
                f"The best of {count(len(material.complete), 'finished trial')} is trial {best.trial} "
                f"({best.algorithm}) with {METRIC_TITLES[result.objective]} {number(material.objective(best))} on the "
                "selection pictures; the test pictures have not been looked at."
            )
        return sentences
    told = [_which(material, champion), _beside(champion), _threshold(material, champion)]
    if material.result.choice is not None:
        told.append(_chosen(material.result.choice, champion))
    return told


def _which(material: Material, champion: Champion) -> str:
    test, roles = champion.test, material.result.dataset.roles["test"]
    seen = f"{roles['good']} good and {roles['defective']} defective pictures that the search never saw"
    if test.image_auroc is None:
        return (
            f"Use {champion.algorithm} ({champion.origin}); how good it is cannot be said, for there were only {seen}."
        )
    bounds = ""
    if test.image_auroc_low is not None and test.image_auroc_high is not None:
        bounds = f" (95 % interval {test.image_auroc_low:.3f} to {test.image_auroc_high:.3f})"
    return (
        f"Use {champion.algorithm} ({champion.origin}): on {seen} it reached an image AUROC of "
        f"{test.image_auroc:.3f}{bounds}, which is how often a defective picture scores above a good one."
    )


def _chosen(choice: Choice, champion: Champion) -> str:
    if choice.members:
        why = (
            "It is the mean of what these trials say, chosen because it is better on the selection pictures than trial "
            f"{choice.best}, the best alone, by more than chance ({-choice.behind:.3f} in image AUROC, standard error "
            f"{choice.error:.3f})"
        )
    elif choice.kept_default:
        why = (
            f"It was chosen because it is PatchCore's default fit, and trial {choice.best}, the best on the selection "
            f"pictures, does not beat it by more than chance ({choice.behind:.3f} in image AUROC, standard error "
            f"{choice.error:.3f})"
        )
    elif choice.trial != choice.best:
        why = (
            f"It was chosen because it is faster than trial {choice.best}, the best on the selection pictures, and no "
            f"worse by more than chance ({choice.behind:.3f} in image AUROC, standard error {choice.error:.3f})"
        )
    elif len(choice.tied) > 1:
        why = (
            f"It was chosen as the best on the selection pictures; {count(len(choice.tied) - 1, 'other trial')} "
            f"{'is' if len(choice.tied) == 2 else 'are'} worse by no more than chance, but no faster"
        )
    else:
        why = "It was chosen as the best on the selection pictures by more than chance"
    if choice.divisions > 1:
        why += f" (close trials were judged on {choice.divisions} divisions of the good pictures)"
    sure = f"had these pictures been drawn again, it would have been the best in {choice.wins:.0%} of all cases"
    if not choice.members:
        sure += f", and a trial of {champion.algorithm} in {choice.algorithm_wins:.0%}"
    return f"{why}; {sure}."


def _beside(champion: Champion) -> str:
    default, difference = champion.default_patchcore, champion.difference
    if is_default(champion):
        return "It is the untuned default PatchCore itself: no other trial did better on the selection pictures."
    if default is None or default.image_auroc is None or difference is None:
        return "There is no default PatchCore to compare it with."
    change = f"{signed(difference.image_auroc)} (95 % interval {signed(difference.low)} to {signed(difference.high)})"
    verdict = "worse than" if difference.high < 0 else "not clearly different from"
    if difference.low > 0:
        verdict = "better than"
    return (
        f"That is {verdict} the untuned default PatchCore, which reached {default.image_auroc:.3f} on the same "
        f"pictures: a difference of {change}."
    )


def _threshold(material: Material, champion: Champion) -> str:
    text = f"A picture that scores above {raw_score(champion.threshold)} is called anomalous; {_promise(champion)}"
    hits = found(material)
    if not hits:
        return text + "."
    alarms, good = hits.get("good", (0, 0))
    caught = sum(caught for label, (caught, _) in hits.items() if label != "good")
    defective = sum(total for label, (_, total) in hits.items() if label != "good")
    return (
        f"{text}, and on the test pictures it found {caught} of {defective} defects with {alarms} of {good} good "
        + ("pictures flagged by mistake.")
    )


def _promise(champion: Champion) -> str:
    rate, upper = percent(champion.false_positive_rate), champion.false_positive_rate_upper
    if champion.threshold_method == "conformal":
        told = f"the calibration promises that on average at most {rate} of good pictures do"
        bound = (
            "" if upper is None else f" (at most {percent(upper)} by a 90 % bound on what this calibration realises)"
        )
    else:
        told = f"that has the best F1 on labelled defects and calibration pictures, of which {rate} do"
        bound = "" if upper is None else f" (at most {percent(upper)} of good ones by nearly a 90 % bound)"
    return told + bound


def alarm_chance(alarms: int, tested: int, rate: float, calibrated: int) -> float:
    """How likely so many false alarms, or more, are where calibration and test pictures are of the same kind.

    With the threshold at the ``k``-th largest of ``n`` calibration scores, the share of good pictures above it has a
    Beta(k, n + 1 - k) distribution over calibration sets, so that the alarms among the test pictures are beta-binomial.
    """
    from scipy.stats import betabinom  # most of a second that only a report with a test should wait

    rank = conformal_rank(calibrated, rate)
    return float(betabinom.sf(alarms - 1, tested, rank, calibrated + 1 - rank))


def caveats(material: Material) -> list[Caveat]:
    """What limits the answer, most important first."""
    result, champion = material.result, material.result.champion
    told: list[Caveat] = []

    def warn(title: str, text: str) -> None:
        told.append(Caveat(title, text))

    weight = 0.0 if result.choice is None else result.choice.labelled_weight
    if result.evidence == "both" and not many_labelled(weight):
        share = f", which counted for {1 - weight:.0%}" if weight else ""
        warn(
            "Chosen by few labelled defects",
            f"There were {result.dataset.roles['selection']['defective']} labelled defects to select by, too few to "
            f"decide alone, so drawn ones stood beside them{share}. More labelled ones make the choice surer.",
        )
    if result.evidence == "synthetic":
        warn(
            "Chosen by synthetic defects",
            "There was no labelled defect to select by, so drawn ones (pasted patches, textures, scratches, stains, "
            "deformations, missing and displaced pieces) ranked the trials. Real defects may be ranked differently; "
            "add a few labelled ones and search again.",
        )
    if champion is not None:
        _warn_of_champion(material, champion, warn)
    failed = sum(row.status == "failed" for row in result.leaderboard)
    if result.leaderboard and failed > _MANY_FAILED * len(result.leaderboard):
        warn(
            "Many trials failed",
            f"{failed} of {len(result.leaderboard)} trials failed; the leaderboard below gives the reasons.",
        )
    return told


def _warn_of_champion(material: Material, champion: Champion, warn: Callable[[str, str], None]) -> None:
    result, test, difference = material.result, champion.test, champion.difference
    if difference is not None and not is_default(champion):
        if difference.high < 0:
            warn(
                "The default PatchCore tested better",
                f"On the test pictures the champion is at {signed(difference.image_auroc)} in image AUROC beside the "
                "default. The trial won on the selection pictures only; the default may be the better choice.",
            )
        elif difference.low <= 0:
            warn(
                "No clear gain over the default",
                f"The 95 % interval of the difference ({signed(difference.low)} to {signed(difference.high)}) includes "
                "zero, so it may be chance. More test pictures would narrow it.",
            )
    default = champion.default_patchcore
    if (
        default is not None
        and test.aupro_high is not None
        and default.aupro_low is not None
        and test.aupro_high < default.aupro_low
    ):
        warn(
            "The default shows better where a defect is",
            f"The champion's heatmaps reach an AUPRO of {number(test.aupro)}, the default PatchCore's "
            f"{number(default.aupro)}. It was chosen by {METRIC_TITLES[result.objective]}; where the place matters, "
            "search with --objective aupro.",
        )
    roles = result.dataset.roles["test"]
    if test.image_auroc is None:
        warn("Not tested", "An AUROC needs good and defective test pictures; add some of both.")
    elif min(roles["good"], roles["defective"]) < _FEW:
        warn(
            "Few test pictures",
            f"The test has {roles['good']} good and {roles['defective']} defective pictures, so one picture more or "
            "less moves the figures visibly; trust the intervals, not the third digit.",
        )
    if test.image_auroc == 1:
        warn(
            "A perfect score has no interval",
            "All defective test pictures score above all good ones. The bootstrap cannot imagine harder pictures than "
            "those it has, so its interval has no width; expect less than perfection in production.",
        )
    selected = getattr(champion.validation, result.objective)
    tested = getattr(test, result.objective)
    high = getattr(test, f"{result.objective}_high", None)
    if selected is not None and tested is not None:
        beyond = high is not None and selected > high
        if selected - tested > _CURSE or beyond:
            warn(
                "Better in selection than in the test",
                f"{METRIC_TITLES[result.objective]} was {selected:.3f} on the selection pictures and {tested:.3f} on "
                "the test. The best of many trials is partly lucky (the winner's curse): go by the test figure.",
            )
    _warn_of_alarms(material, champion, warn)
    missed = sum(total - hits for label, (hits, total) in found(material).items() if label != "good")
    defective = roles["defective"]
    if defective and missed > defective / 2:
        warn(
            "Most defects are missed at this threshold",
            f"{missed} of {defective} defective test pictures score below it. "
            + (
                "A search with a larger --false-positive-rate lowers it."
                if champion.threshold_method == "conformal"
                else "The labelled defects that set it were easier to see; label more like these and search again."
            ),
        )
    if champion.threshold_method == "f1-max":
        warn(
            "The threshold promises no rate of false alarms",
            "It has the best F1 on calibration pictures and the selection's labelled defects. These chose the trial "
            "too, so it may be too high for others. A search with --threshold conformal keeps to a rate.",
        )


def _warn_of_alarms(material: Material, champion: Champion, warn: Callable[[str, str], None]) -> None:
    roles, realised = material.result.dataset.roles, champion.test.false_positive_rate
    conformal = champion.threshold_method == "conformal"
    expected = champion.false_positive_rate if conformal else champion.false_positive_rate_upper
    if realised is None or expected is None or realised <= expected:
        return
    good = roles["test"]["good"]
    alarms = round(realised * good)
    differ = "they probably differ from those it learnt from (light, background, batch). Add good pictures like them."
    told = f"{alarms} of {good} good test pictures ({percent(realised)}) lie above the threshold, beside"
    if not conformal:
        warn("More false alarms than expected", f"{told} the 90 % bound of {percent(expected)}: {differ}")
        return
    chance = alarm_chance(alarms, good, expected, roles["calibration"]["good"])
    warn(
        "More false alarms than promised",
        f"{told} {percent(expected)} promised on average. Pictures of the same kind would do so in {percent(chance)} "
        f"of all searches: {differ if chance < _UNLIKELY else 'it can be chance.'}",
    )


def budget(request: Mapping[str, Any]) -> str:
    """The time and the number of trials that were asked for; empty if that is not known."""
    parts = [duration(request["seconds"])] if request.get("seconds") else []
    if request.get("trials"):
        parts.append(f"at most {count(request['trials'], 'trial')}")
    return ", ".join(parts)


def repeat_command(request: Mapping[str, Any], seed: int) -> str | None:
    """The command line that asks for the same search again, under a new name; None if the request is not known."""
    if "data" not in request:
        return None
    parts = ["autoad", "search", "--data", str(request["data"]), "--seed", str(seed)]
    for field in dataclasses.fields(SearchRequest):
        value = request.get(field.name)
        if field.name in {"data", "seed", "name"} or value in (None, "", [], ()) or value == field.default:
            continue
        option = "--time" if field.name == "seconds" else f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(option if value else option.replace("--", "--no-", 1))
            continue
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        parts += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(parts)
