"""What a search will do, checked before anything is written."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from autoad.algorithms import ALGORITHMS, Precision, get_algorithm
from autoad.data import Dataset, Roles, assign_roles, read_dataset
from autoad.errors import CalibrationError, DatasetError, UnknownNameError, UsageError, WeightsError
from autoad.evaluation import labelled_weight, smallest_rate
from autoad.features import EngineChoice, backbone_stages, choose_engine, head_precision, reachable_backbones
from autoad.models import check_model_name
from autoad.schema import METRIC_NAMES, THRESHOLD_METHODS, Evidence, Objective, ThresholdMethod
from autoad.search.choice import Limits
from autoad.search.space import Space, load_spaces

__all__ = [
    "DEFAULT_RATE",
    "DEFAULT_SECONDS",
    "DETERMINISTIC_EPOCHS",
    "DETERMINISTIC_TRIALS",
    "PIXEL_OBJECTIVES",
    "Plan",
    "SearchRequest",
    "make_plan",
    "usable_name",
]

DEFAULT_SECONDS = 20 * 60.0
DEFAULT_RATE = 0.05
DETERMINISTIC_EPOCHS = 5
DETERMINISTIC_TRIALS = 16
_LONGEST_NAME = 200
_LONGEST_MODEL = 80
PIXEL_OBJECTIVES = ("pixel_auroc", "aupro")


@dataclasses.dataclass(frozen=True)
class SearchRequest:
    """What to search.

    Attributes:
        data: folder or manifest.
        algorithms: names; empty for all eight.
        objective: metric on the selection role that ranks trials.
        trials: how many; None for as many as the time allows.
        seconds: for the whole search; None for no limit (then ``trials`` must be given).
        seed: of the sampler and of every detector.
        name: of the search; empty for the dataset's name and the date.
        model: whose next version the champion becomes; empty for the model of the search's own name.
        space: file or folder of search spaces that override the packaged ones.
        deterministic: one worker and no decision by the clock, so that the same call gives the same leaderboard.
        warm_start: whether to try, after the defaults, what searches of similar pictures found; never in a
            deterministic search.
        max_epochs: lowers the search spaces' ceilings of epochs.
        address: ``HOST:PORT`` of a running Ray cluster to search on; empty for this machine alone.
        threshold: ``conformal`` guarantees a rate of false positives; ``f1-max`` has the best F1 on the calibration
            pictures and the selection's labelled defects.
        false_positive_rate: for a conformal threshold; None for 5 %, or the smallest that the pictures allow.
        patience: finished trials in a row that may fail to improve the best before the search ends; None for any.
        max_latency_ms: of the champion; None for any.
        max_memory_mb: likewise.
        keep_suspicious: learn from good pictures that look unlike the others or like the labelled defects, too.
        trial_timeout: seconds after which a trial counts as hanging; None for a quarter of the trials' time.
    """

    data: Path
    algorithms: tuple[str, ...] = ()
    objective: str = "image_auroc"
    trials: int | None = None
    seconds: float | None = DEFAULT_SECONDS
    seed: int = 0
    name: str = ""
    model: str = ""
    space: Path | None = None
    deterministic: bool = False
    warm_start: bool = True
    max_epochs: int | None = None
    threshold: str = "conformal"
    false_positive_rate: float | None = None
    patience: int | None = None
    trial_timeout: float | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    keep_suspicious: bool = False
    engine: str = "auto"
    precision: str = "auto"
    address: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request, checked against the dataset and this machine.

    Attributes:
        labelled_weight: of labelled defects beside synthetic ones in what ranks the trials.
        threshold: how the champion's thresholds are found.
        rate: that conformal ones guarantee; with ``f1-max`` the pixel threshold may be one still.
    """

    request: SearchRequest
    objective: Objective
    dataset: Dataset
    roles: Roles
    labelled_weight: float
    spaces: dict[str, Space]
    engine: EngineChoice
    precision: Precision
    threshold: ThresholdMethod
    rate: float
    limits: Limits
    notes: tuple[str, ...]

    @property
    def evidence(self) -> Evidence:
        """What ranks the trials."""
        return "labelled" if self.labelled_weight == 1 else "both" if self.labelled_weight else "synthetic"


def make_plan(request: SearchRequest, *, resuming: str | None = None) -> Plan:
    """Check a request against the dataset and this machine; nothing is written.

    Args:
        request: what to search.
        resuming: name of the search that it resumes; None for a new one.

    Raises:
        UsageError: the request, the dataset or the search space is wrong.
    """
    objective = next((name for name in METRIC_NAMES if name == request.objective), None)
    if objective is None:
        raise UnknownNameError("objective", request.objective, METRIC_NAMES)
    threshold = next((name for name in THRESHOLD_METHODS if name == request.threshold), None)
    if threshold is None:
        raise UnknownNameError("threshold", request.threshold, THRESHOLD_METHODS)
    if threshold == "f1-max" and request.false_positive_rate is not None:
        raise UsageError(
            "the threshold f1-max keeps to no rate: leave out --false-positive-rate, or give --threshold conformal"
        )
    algorithms = tuple(request.algorithms) or ALGORITHMS
    for algorithm in algorithms:
        get_algorithm(algorithm)
    if request.trials is None and request.seconds is None and not request.deterministic:
        raise UsageError("a search needs an end: give --trials or --time")
    spaces = load_spaces(algorithms, request.space)
    engine = choose_engine(request.engine, request.precision)
    if resuming is None:
        _check_names(request)
    if request.deterministic and request.seconds is not None:
        raise UsageError("a deterministic search must not depend on the clock: give --trials instead of --time")
    dataset = read_dataset(request.data)
    roles = assign_roles(dataset)
    weight = _labelled_weight(roles, objective)
    notes = [f"skipped {skipped.path}: {skipped.reason}" for skipped in dataset.skipped]
    if threshold == "f1-max" and all(picture.is_normal for picture in roles.selection):
        raise UsageError(
            "the threshold f1-max needs a labelled defect among the selection pictures but there is none; add pictures "
            "of defects (of each two half select, half test), or give --threshold conformal"
        )
    rate = _false_positive_rate(request, roles, notes)
    if request.deterministic and request.max_epochs is None:
        notes.append(
            f"deterministic: training ends after {DETERMINISTIC_EPOCHS} epochs; --max-epochs sets another ceiling"
        )
    if objective in PIXEL_OBJECTIVES:
        mapless = [name for name in spaces if get_algorithm(name).kind == "classification"]
        spaces = {name: space for name, space in spaces.items() if name not in mapless}
        if not spaces:
            raise UsageError(f"the objective {objective} needs a map and {', '.join(mapless)} give none")
        if mapless:
            notes.append(f"{', '.join(mapless)}: left out, for they have no map and the objective is {objective}")
        if weight and not any(picture.mask for picture in roles.selection):
            raise DatasetError(f"the objective {objective} needs masks of defects and the selection pictures have none")
    spaces = _reachable(spaces, notes)
    return Plan(
        request=request,
        objective=objective,
        dataset=dataset,
        roles=roles,
        labelled_weight=weight,
        spaces=spaces,
        engine=engine,
        precision="float32" if request.precision == "float32" else head_precision(engine),
        threshold=threshold,
        rate=rate,
        limits=_limits(request),
        notes=tuple(notes),
    )


def _limits(request: SearchRequest) -> Limits:
    limits = Limits(request.max_latency_ms, request.max_memory_mb)
    for name, value in (("--max-latency-ms", limits.latency_ms), ("--max-memory-mb", limits.memory_mb)):
        if value is None:
            continue
        if not 0 < value < math.inf:
            raise UsageError(f"{name} must be greater than 0 but got {value:g}")
        if request.deterministic:
            raise UsageError(
                f"a deterministic search must not depend on what is measured: leave out {name} or --deterministic"
            )
    return limits


def _labelled_weight(roles: Roles, objective: Objective) -> float:
    """Metrics other than image AUROC have no common scale for real and drawn defects, so one kind decides alone."""
    normals = sum(picture.is_normal for picture in roles.selection)
    defects = len(roles.selection) - normals
    if objective != "image_auroc":
        return 1.0 if defects else 0.0
    return labelled_weight(defects, normals)


def usable_name(text: str) -> str:
    """``text`` as the name of a model: what cannot be in one becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:_LONGEST_MODEL] or "search"


def _check_names(request: SearchRequest) -> None:
    """The search's name is its model's too where none is given."""
    name = request.name
    if request.model:
        check_model_name(request.model)
    if not name:
        return
    if name != Path(name).name or name.startswith(".") or len(name.encode()) > _LONGEST_NAME:
        raise UsageError(
            f"a name must be usable as a folder name of at most {_LONGEST_NAME} bytes but got {name[:80]!r}"
        )
    if not request.model:
        try:
            check_model_name(name)
        except UsageError as error:
            raise UsageError(f"{error}; choose another --name, or name the model with --model") from error


def _false_positive_rate(request: SearchRequest, roles: Roles, notes: list[str]) -> float:
    smallest = smallest_rate(len(roles.calibration))
    if request.false_positive_rate is not None:
        if not 0 < request.false_positive_rate < 1:
            raise UsageError(f"--false-positive-rate must lie between 0 and 1 but got {request.false_positive_rate}")
        if request.false_positive_rate < smallest:
            raise CalibrationError(
                f"a false-positive rate of {request.false_positive_rate:g} cannot be guaranteed with "
                f"{len(roles.calibration)} calibration pictures (the smallest is {smallest:.4g}); "
                "add good pictures or ask for a larger rate"
            )
        return request.false_positive_rate
    if smallest > DEFAULT_RATE and request.threshold == "conformal":
        notes.append(
            f"with {len(roles.calibration)} calibration pictures the threshold can guarantee a false-positive rate "
            f"of {smallest:.3f} at best; add good pictures for less"
        )
    return max(DEFAULT_RATE, smallest)


def _reachable(spaces: dict[str, Space], notes: list[str]) -> dict[str, Space]:
    """Drop backbones whose weights cannot be had, and algorithms that then have none."""
    wanted = {name for space in spaces.values() for name in space.backbones()}
    for name in wanted:
        backbone_stages(name)  # refuses what timm does not know, by name
    found = reachable_backbones(sorted(wanted))
    missing = {name for name, weights in found.items() if isinstance(weights, str)}
    if missing:
        notes.append(
            f"backbones without reachable weights are left out: {', '.join(sorted(missing))} "
            "(put NAME.safetensors into the folder that AUTOAD_WEIGHTS_DIR names)"
        )
    left = {}
    for name, space in spaces.items():
        backbones = space.backbones()
        if backbones and not backbones - missing:
            notes.append(f"{name}: left out, for none of its backbones has reachable weights")
        else:
            left[name] = space.without_backbones(missing)
    if not left:
        reasons = "; ".join(str(found[name]) for name in sorted(missing))
        raise WeightsError(f"nothing is left to search, for no backbone's weights can be reached: {reasons}")
    return left
