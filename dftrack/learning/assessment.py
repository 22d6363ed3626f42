"""A model held against the splits of a data set: every number with its interval, and how far each can be trusted.

Thresholds and the temperature are chosen on val and then held; all else is measured on each split by itself.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dftrack.data.cache import Split
from dftrack.data.look import Traits, read_traits
from dftrack.data.pixel_file import read_rows
from dftrack.errors import MetricError
from dftrack.learning import calibration
from dftrack.learning.calibration import Bin
from dftrack.learning.corruption import LEVELS, Robustness, robustness, subset
from dftrack.learning.evaluation import Predictions, Report, by_group, report
from dftrack.learning.metrics import DEFAULT_THRESHOLD, or_none
from dftrack.learning.model import FaceCNN
from dftrack.learning.scores import score_pixels
from dftrack.learning.slices import Slice, slice_table, worst
from dftrack.learning.statistics import Interval, group_intervals
from dftrack.learning.thresholds import best_f1, point_at, threshold_for_fpr, tpr_at_low_rates
from dftrack.learning.trust import Trust, examine

TARGET_FPR = 0.05  # of the reals may be called fake, at the threshold that val gives for it
FIXED, F1, FPR = "fixed", "best F1 on val", f"{100 * TARGET_FPR:g} % false alarms on val"
ROBUST_PICTURES = 64  # damaged in every way: 36 scores each, which is most of what judging costs

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What val decides for every other split. None: val cannot say, `reasons` tells why."""

    temperature: float | None
    thresholds: Mapping[str, float | None]  # name -> P(fake) from which on a picture is called fake
    reasons: Mapping[str, str]  # name -> why it is None


@dataclass(frozen=True, slots=True)
class Operating:
    """What a threshold does on the pictures of a split."""

    name: str
    threshold: float
    accuracy: float | None
    precision: float | None
    recall: float | None  # the share of fakes caught
    f1: float | None
    fpr: float | None  # the share of reals called fake


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether P(fake) means what it says, before and after the temperature that val gave."""

    ece: float | None
    ece_tempered: float | None
    bins: tuple[Bin, ...]
    bins_tempered: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What follows from the predictions of a split alone, beyond the metrics themselves."""

    intervals: Mapping[str, Interval | None]
    grouped: Mapping[str, float | None]  # the metrics with one answer for each group: the mean score of its pictures
    tpr: Mapping[str, float | None]  # share of fakes caught at 10, 5, 1 and 0.1 % false alarms
    calibration: Calibration


@dataclass(frozen=True, slots=True, eq=False)
class SplitAssessment:
    """Everything about one split."""

    predictions: Predictions
    report: Report  # at the fixed threshold
    measured: Measured
    groups: int
    operating: tuple[Operating, ...]
    slices: tuple[Slice, ...]
    worst: Slice | None
    trust: Trust


@dataclass(frozen=True, slots=True)
class Assessment:
    """Everything about a model on a data set."""

    chosen: Chosen
    splits: tuple[SplitAssessment, ...]
    robust_split: str  # the split that was damaged
    robustness: Robustness | None  # None: it was not asked for


def choose(val: Predictions) -> Chosen:
    """Fit the temperature and choose the thresholds on val."""
    reasons: dict[str, str] = {}

    def tried(name: str, choice: Callable[[], float]) -> float | None:
        try:
            return choice()
        except MetricError as error:
            reasons[name] = error.message
            return None

    scores, labels = val.scores, val.labels
    return Chosen(
        temperature=tried("temperature", partial(calibration.fit_temperature, scores, labels)),
        thresholds={
            F1: tried(F1, lambda: best_f1(scores, labels).threshold),
            FPR: tried(FPR, lambda: threshold_for_fpr(scores, labels, TARGET_FPR).threshold),
        },
        reasons=reasons,
    )


def assess(
    model: FaceCNN,
    splits: Sequence[Split],
    predictions: Sequence[Predictions],
    chosen: Chosen,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    device: str = "cpu",
    robust_on: str = "",
    progress: Progress = lambda what, done, total: None,
) -> Assessment:
    """Everything about `model` on `splits`, whose `predictions` are given in the same order.

    robust_on: the split to damage ("": none). Raises MetricError if a score is not finite.
    """
    trusts = examine(
        model, splits, predictions, threshold=threshold, progress=partial(progress, "checking the heat maps")
    )
    assessed: list[SplitAssessment] = []
    for split, found, trust in zip(splits, predictions, trusts, strict=True):
        progress(f"assessing {split.name}", len(assessed), len(splits))
        assessed.append(assess_split(split, found, chosen, trust, threshold))
    damaged = next((split for split in splits if split.name == robust_on), None)
    return Assessment(
        chosen=chosen,
        splits=tuple(assessed),
        robust_split=robust_on if damaged else "",
        robustness=_robustness(model, damaged, threshold, device, progress) if damaged else None,
    )


def assess_split(
    split: Split, predictions: Predictions, chosen: Chosen, trust: Trust, threshold: float = DEFAULT_THRESHOLD
) -> SplitAssessment:
    """All that is said of one split."""
    slices = slice_table(predictions, _traits(split), threshold)
    return SplitAssessment(
        predictions=predictions,
        report=report(predictions, threshold),
        measured=measure(predictions, chosen.temperature, threshold),
        groups=len(set(predictions.groups)),
        operating=_operating_points(predictions, chosen, threshold),
        slices=slices,
        worst=worst(slices),
        trust=trust,
    )


def measure(predictions: Predictions, temperature: float | None, threshold: float = DEFAULT_THRESHOLD) -> Measured:
    """Intervals, answers by group, low false-alarm rates and calibration: the same numbers whenever it is asked."""
    scores, labels = predictions.scores, predictions.labels
    return Measured(
        intervals=group_intervals(scores, labels, predictions.groups, threshold),
        grouped=report(by_group(predictions), threshold).metrics,
        tpr=tpr_at_low_rates(scores, labels),
        calibration=_calibration(predictions, temperature),
    )


def measured_numbers(split: str, found: Measured) -> dict[str, float | None]:
    """Under their names in MLflow. None = undefined."""
    numbers: dict[str, float | None] = {}
    for name, interval in found.intervals.items():
        numbers[f"interval/{split}/{name}/low"] = interval.low if interval else None
        numbers[f"interval/{split}/{name}/high"] = interval.high if interval else None
    numbers |= {f"by_group/{split}/{name}": found.grouped[name] for name in ("accuracy", "roc_auc")}
    numbers |= {f"operating/{split}/{name}": value for name, value in found.tpr.items()}
    numbers[f"calibration/{split}/ece"] = found.calibration.ece
    numbers[f"calibration/{split}/ece_tempered"] = found.calibration.ece_tempered
    return numbers


def _operating_points(predictions: Predictions, chosen: Chosen, threshold: float) -> tuple[Operating, ...]:
    points = ((FIXED, threshold), *chosen.thresholds.items())
    return tuple(_operating(name, at, predictions) for name, at in points if at is not None)


def _operating(name: str, threshold: float, predictions: Predictions) -> Operating:
    metrics = report(predictions, threshold).metrics
    try:
        fpr = point_at(predictions.scores, predictions.labels, threshold).fpr
    except MetricError:
        fpr = None
    return Operating(
        name, threshold, metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["f1"], fpr
    )  # fmt: skip


def _calibration(predictions: Predictions, temperature: float | None) -> Calibration:
    scores, labels = predictions.scores, predictions.labels
    tempered = scores if temperature is None else calibration.apply_temperature(scores, temperature)
    return Calibration(
        ece=or_none(partial(calibration.expected_calibration_error, scores, labels)),
        ece_tempered=(
            None if temperature is None else or_none(partial(calibration.expected_calibration_error, tempered, labels))
        ),
        bins=calibration.reliability(scores, labels),
        bins_tempered=calibration.reliability(tempered, labels) if temperature is not None else (),
    )


def _robustness(model: FaceCNN, split: Split, threshold: float, device: str, progress: Progress) -> Robustness:
    places = subset(split.labels, split.groups, most=ROBUST_PICTURES)
    return robustness(
        partial(score_pixels, model, device=device),
        read_rows(split.pixels, places),
        split.labels[places],
        threshold=threshold,
        progress=lambda _, done, total: progress("scoring damaged pictures", done, total),
    )


def _traits(split: Split) -> list[Traits | None]:
    """What the files of a split say about themselves, in its order."""
    return read_traits(split.paths)


# ---- as plain numbers


def plain(assessment: Assessment) -> dict[str, Any]:
    """For a JSON file: everything but the predictions, which have a table of their own."""
    return {
        "chosen": dataclasses.asdict(assessment.chosen),
        "splits": {found.report.split: _plain_split(found) for found in assessment.splits},
        "robustness": (
            None
            if assessment.robustness is None
            else {"split": assessment.robust_split, **dataclasses.asdict(assessment.robustness)}
        ),
    }


def plain_numbers(predictions: Predictions, chosen: Chosen, threshold: float) -> dict[str, Any]:
    """The part of a split in `plain` that follows from its predictions, and from what val decided, alone."""
    return _plain_numbers(
        predictions,
        report(predictions, threshold),
        measure(predictions, chosen.temperature, threshold),
        _operating_points(predictions, chosen, threshold),
    )


def _plain_numbers(
    predictions: Predictions, judged: Report, measured: Measured, operating: Sequence[Operating]
) -> dict[str, Any]:
    return {
        "pictures": len(predictions),
        "groups": len(set(predictions.groups)),
        "threshold": judged.threshold,
        "confusion": judged.confusion,
        "metrics": dict(judged.metrics),
        "always_fake": dict(judged.always_fake),
        "intervals": {n: dataclasses.asdict(i) if i else None for n, i in measured.intervals.items()},
        "by_group": dict(measured.grouped),
        "operating": [dataclasses.asdict(point) for point in operating],
        "tpr": dict(measured.tpr),
        "calibration": dataclasses.asdict(measured.calibration),
    }


def _plain_split(found: SplitAssessment) -> dict[str, Any]:
    return {
        **_plain_numbers(found.predictions, found.report, found.measured, found.operating),
        "slices": [dataclasses.asdict(part) for part in found.slices],
        "worst_slice": dataclasses.asdict(found.worst) if found.worst else None,
        "trust": {**dataclasses.asdict(found.trust), "warnings": list(found.trust.warnings)},
    }


def flat(assessment: Assessment) -> dict[str, float | None]:
    """The numbers beyond the metrics themselves, under their names in MLflow. None = undefined."""
    numbers: dict[str, float | None] = {"calibration/temperature": assessment.chosen.temperature}
    for found in assessment.splits:
        split = found.report.split
        numbers |= measured_numbers(split, found.measured)
        for kind, agreement in (("caught", found.trust.right), ("missed", found.trust.wrong)):
            if agreement.n:
                numbers[f"heat/{split}/{kind}/lift"] = agreement.lift
                numbers[f"heat/{split}/{kind}/pointing"] = agreement.pointing
        checked = any(check.passed is not None for check in found.trust.checks)
        numbers[f"heat/{split}/warnings"] = float(len(found.trust.warnings)) if checked else None
    if assessment.robustness is not None:
        numbers |= robust_numbers(assessment.robustness)
    return numbers


def robust_numbers(found: Robustness) -> dict[str, float | None]:
    """`robustness/KIND/LEVEL` is the AUC, `robustness_accuracy/KIND/LEVEL` the accuracy."""
    return {
        f"{prefix}/{kind}/{level}": value
        for kind, outcomes in found.damaged.items()
        for level, outcome in zip(LEVELS, outcomes, strict=True)
        for prefix, value in (("robustness", outcome.auc), ("robustness_accuracy", outcome.accuracy))
    }
