"""Operating points: from which P(fake) on a picture is called fake, and what that costs. Choose on val, then keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.metrics import roc_curve

from dftrack.errors import MetricError
from dftrack.learning.metrics import FAKE, REAL, FloatArray, IntArray, check_ranking, check_scores, confusion, or_none

LOW_RATES: Mapping[str, float] = {  # name -> false-alarm rate at which the share of caught fakes is stated
    "tpr_at_10pct_fpr": 0.1,
    "tpr_at_5pct_fpr": 0.05,
    "tpr_at_1pct_fpr": 0.01,
    "tpr_at_0.1pct_fpr": 0.001,
}


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold, and what it does on the pictures it was chosen on. All rates in [0, 1]."""

    threshold: float  # called fake at or above it
    fpr: float  # share of reals called fake
    tpr: float  # share of fakes caught
    f1: float | None  # None: nothing is called fake


def point_at(scores: FloatArray, labels: IntArray, threshold: float) -> OperatingPoint:
    """What `threshold` does on these pictures. scores, labels: (n,). Raises MetricError if a class is absent."""
    check_scores(scores, labels, both_classes=True)
    (tn, fp), (fn, tp) = confusion(scores, labels, threshold)
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp else None
    return OperatingPoint(threshold=threshold, fpr=fp / (tn + fp), tpr=tp / (tp + fn), f1=f1)


def threshold_for_fpr(scores: FloatArray, labels: IntArray, target: float) -> OperatingPoint:
    """The lowest threshold whose false-alarm rate on these pictures is at most `target`: it catches most fakes.

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake; target in (0, 1). It lies halfway down to the next lower
    score, so that the last digit of a score does not decide. Where every threshold at a score is too low, the point
    above all scores is returned: nothing is called fake, f1 is None.
    Raises MetricError if a class is absent, or if there are fewer than 1 / target reals: not one false alarm could be
    afforded, so these pictures cannot tell that rate from a smaller one.
    """
    check_scores(scores, labels, both_classes=True)
    _check_resolution(labels, target)
    fpr, _, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    last = int(np.flatnonzero(fpr <= target + 1e-12)[-1])
    if last == 0:  # (0, 0): even the highest score belongs to too many reals
        return point_at(scores, labels, float(np.nextafter(scores.max(), np.inf)))
    return point_at(scores, labels, _halfway(scores, float(thresholds[last])))


def best_f1(scores: FloatArray, labels: IntArray) -> OperatingPoint:
    """The threshold with the highest F1 on these pictures; the highest such threshold if several are as good.

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake. Raises MetricError if a class is absent.
    """
    check_scores(scores, labels, both_classes=True)
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    fakes, reals = np.sum(labels == FAKE), np.sum(labels == REAL)
    f1 = 2 * tpr[1:] * fakes / (tpr[1:] * fakes + fpr[1:] * reals + fakes)  # 2 TP / (called fake + fakes)
    best = int(np.flatnonzero(f1 >= f1.max() - 1e-12)[0])
    return point_at(scores, labels, _halfway(scores, float(thresholds[1:][best])))


def tpr_at_fpr(scores: FloatArray, labels: IntArray, target: float) -> float:
    """Largest share of fakes that a threshold catches at a false-alarm rate of at most `target`, in [0, 1].

    No interpolation: a threshold of that kind exists. Raises MetricError as `threshold_for_fpr` does, and if all
    scores are equal: nothing is ranked.
    """
    check_ranking(scores, labels)
    return threshold_for_fpr(scores, labels, target).tpr


def tpr_at_low_rates(scores: FloatArray, labels: IntArray) -> dict[str, float | None]:
    """`tpr_at_fpr` at 10, 5, 1 and 0.1 % under the names of LOW_RATES; None = too few reals to say, or one class."""
    return {name: or_none(partial(tpr_at_fpr, scores, labels, rate)) for name, rate in LOW_RATES.items()}


def _check_resolution(labels: IntArray, target: float) -> None:
    if not 0 < target < 1:
        raise MetricError(f"a false-alarm rate must lie between 0 and 1, got {target:g}")
    reals = int(np.sum(labels == REAL))
    if reals * target < 1 - 1e-9:
        needed = int(np.ceil(1 / target - 1e-9))
        raise MetricError(f"undefined: {reals} reals cannot show a false-alarm rate of {target:.2%}, {needed} could")


def _halfway(scores: FloatArray, threshold: float) -> float:
    """The middle between `threshold` and the next lower score, if there is one: the same pictures are called fake."""
    lower = scores[scores < threshold]
    middle = (threshold + float(lower.max())) / 2 if len(lower) else threshold
    return middle if not len(lower) or middle > lower.max() else threshold
