"""Where a detector is good and where it is not: its pictures parted by class, size, brightness, sharpness, quality."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from dftrack.data.look import Traits
from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import CLASSES, DEFAULT_THRESHOLD, FAKE
from dftrack.learning.statistics import LEVEL, Interval, group_intervals

WHOLE = "all"  # the kind of the first slice, which holds every picture
PARTS = 4  # quarters of about as many pictures each
RESAMPLES = 200  # enough for a standard error within 5 %


@dataclass(frozen=True, slots=True)
class Slice:
    """Some pictures of a split, and how they are judged. None = undefined for so few or such pictures."""

    kind: str  # what they have in common: "all", "class", "size", ...
    name: str  # and of which value: "fake", "31 to 88"
    n: int
    reals: int
    fakes: int
    accuracy: float | None  # at the threshold
    accuracy_interval: Interval | None  # 95 %, over groups
    roc_auc: float | None  # None with one class only
    roc_auc_interval: Interval | None


def slice_table(
    predictions: Predictions,
    traits: Sequence[Traits | None],
    threshold: float = DEFAULT_THRESHOLD,
    *,
    parts: int = PARTS,
) -> tuple[Slice, ...]:
    """The whole first, then its slices: by class, and by each trait into `parts` of about as many pictures.

    traits: of `dftrack.data.look.read_traits`, one for each picture; None or a missing trait makes a slice "unknown"
    (of JPEG quality "no JPEG"). Pictures with one value stay together, so there can be fewer parts; a trait that all
    share makes no slice. Raises MetricError for another number of traits than pictures.
    """
    if len(traits) != len(predictions):
        raise MetricError(f"{len(traits)} traits for {len(predictions)} pictures")
    everything = np.ones(len(predictions), dtype=np.bool_)
    found = [_slice(WHOLE, "pictures", everything, predictions, threshold)]
    for label, name in enumerate(CLASSES):
        if 0 < np.sum(predictions.labels == label) < len(predictions):
            found.append(_slice("class", name, predictions.labels == label, predictions, threshold))
    for kind, value_of in _VALUES.items():
        values = np.array([math.nan if one is None else value_of(one) for one in traits], dtype=np.float64)
        for name, members in _parted(kind, values, parts):
            found.append(_slice(kind, name, members, predictions, threshold))
    return tuple(found)


def worst(slices: Sequence[Slice]) -> Slice | None:
    """The slice with the least accuracy among those that are surely worse than the whole; None if none is.

    Surely: the interval lies below the accuracy of the whole, with the 95 % held for all slices together (Bonferroni,
    so the intervals are widened on the logit). Of twenty slices of a detector that is equally good everywhere, one
    plain 95 % interval is expected to miss.
    """
    whole, others = slices[0], [part for part in slices[1:] if part.accuracy_interval]
    if whole.accuracy is None:
        return None
    wider = float(norm.ppf(1 - (1 - LEVEL) / 2 / max(1, len(others))) / norm.ppf((1 + LEVEL) / 2))
    worse = [part for part in others if _upper(part, wider) < whole.accuracy]
    return min(worse, key=lambda part: part.accuracy or 0.0, default=None)


def _upper(part: Slice, wider: float) -> float:
    """The upper end of the accuracy's interval after it is made `wider`."""
    if part.accuracy is None or part.accuracy_interval is None:
        return 1.0
    if not 0 < part.accuracy < 1:
        return part.accuracy_interval.high
    middle = logit(part.accuracy)
    return float(expit(middle + wider * (logit(part.accuracy_interval.high) - middle)))


def _slice(kind: str, name: str, members: NDArray[np.bool_], predictions: Predictions, threshold: float) -> Slice:
    scores, labels = predictions.scores[members], predictions.labels[members]
    groups = [group for group, member in zip(predictions.groups, members, strict=True) if member]
    intervals = group_intervals(scores, labels, groups, threshold, resamples=RESAMPLES)
    fakes = int(np.sum(labels == FAKE))
    return Slice(
        kind=kind,
        name=name,
        n=len(labels),
        reals=len(labels) - fakes,
        fakes=fakes,
        accuracy=metrics.or_none(lambda: metrics.accuracy(scores, labels, threshold)),
        accuracy_interval=intervals["accuracy"],
        roc_auc=metrics.or_none(lambda: metrics.roc_auc(scores, labels)),
        roc_auc_interval=intervals["roc_auc"],
    )


def _parted(kind: str, values: NDArray[np.float64], parts: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(name, members) of each part; nothing if that is one part only. values: (n,), NaN = unknown."""
    known = np.isfinite(values)
    place = np.full(len(values), -1)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.arange(1, parts) / parts, method="lower"))
        place[known] = np.searchsorted(edges, values[known], side="left")
    present = np.unique(place)
    if len(present) < 2:
        return
    for part in present[present >= 0]:
        members = place == part
        low, high = (f"{end(values[members]):.4g}" for end in (np.min, np.max))
        yield (low if low == high else f"{low} to {high}"), members
    if not known.all():
        yield ("no JPEG" if kind == QUALITY else "unknown"), ~known


QUALITY = "JPEG quality"
# kind -> its value for a picture; NaN where it has none
_VALUES: dict[str, Callable[[Traits], float]] = {
    "size (px)": lambda traits: math.sqrt(float(traits["width"]) * float(traits["height"])),  # of a square as large
    "brightness": lambda traits: round(float(traits["brightness"]), 1),
    "sharpness": lambda traits: round(float(traits["sharpness"]), 1),
    QUALITY: lambda traits: float(traits.get(QUALITY, math.nan)),
}
