"""How sure a number is, and whether two detectors differ: intervals over groups, and paired tests.

A scene, video or person is what was drawn from the world, not a picture: all intervals but McNemar's and DeLong's take
the group for the independent unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.bootstrap import MEANS, MEASURES, Case, Floats, make_case, pivots, resample
from dftrack.learning.metrics import DEFAULT_THRESHOLD, FAKE, FloatArray, IntArray

LEVEL = 0.95
METHOD = "t on the logit; log loss and Brier studentised"  # how group_intervals does it: recorded beside its numbers
RESAMPLES = 1000
LEAST_GROUPS = 6  # of five, even if all agree, a two-sided sign test gives p = 0.0625: no 95 % statement can be had
LEAST_EFFECTIVE = 4.0  # Kish's number: where one group outweighs all others, its luck is all that is seen
MOST_UNDEFINED = 0.05  # share of the resamples in which a metric may be undefined
WIDEST = 100.0  # times a mean loss: where one loss outweighs all others, an end beyond it says nothing
CERTAIN = 1e-12  # a standard error below is rounding


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies, at the level asked for."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """The first minus the second of two things measured on the same pictures. p_value: two-sided, of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def group_intervals(
    scores: FloatArray,
    labels: IntArray,
    groups: Sequence[str],
    threshold: float = DEFAULT_THRESHOLD,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval | None]:
    """An interval for each of MEASURES from a bootstrap over groups; None where it is undefined.

    scores: (n,) P(fake); labels: (n,) 0 real, 1 fake; groups: n names of scenes, videos or people.
    None: the metric itself is undefined, all scores are equal, fewer than LEAST_GROUPS groups bear on the metric or
    they are worth fewer than LEAST_EFFECTIVE, or
    over 5 % of the resamples leave it undefined (those few are dropped). Unfit labels or groups raise MetricError.

    The bootstrap gives the standard error, times sqrt(g / (g - 1)). The interval is Student's t with g - 1 degrees of
    freedom on the logit, where g is Kish's effective number of the groups that bear on the metric: fewer than their
    count if their sizes differ. A metric of exactly 0 or 1 has no error to resample; it gets Wilson's interval for g
    pictures. Log loss and Brier score are means of skewed losses: theirs is the studentised bootstrap on the logarithm,
    neither side shorter than Student's t. Why not percentiles: with 60 groups of 1 to 10 pictures and an AUC of 0.97
    they held the true AUC in 89 to 91 % of the samples (too narrow, not skewed enough near 1), BCa in 92 to 94 %, this
    in 94 to 95 %. docs/judge-and-verify.md says what it reaches for every metric; measured by
    benchmarks/interval_coverage.py.
    Sources: Hesterberg 2015 (narrowness of the percentiles, t for z), Pepe 2003 (logit of the AUC), Korn and Graubard
    1998 and Dean and Pagano 2015 (shares in clustered samples), Davison and Hinkley 1997 (studentised), Kish 1965.
    """
    points = metrics.summarise(scores, labels, threshold)
    if len(groups) != len(labels):
        raise MetricError(f"{len(groups)} groups for {len(labels)} labels")
    nothing: dict[str, Interval | None] = dict.fromkeys(MEASURES)
    if len(labels) == 0 or not np.all(np.isfinite(scores)) or np.all(scores == scores[0]):
        return nothing
    case = make_case(scores, labels, groups, threshold)
    if case.groups < LEAST_GROUPS:
        return nothing
    units, shares = _units(case), [name for name in MEASURES if name not in MEANS]
    found = nothing | {
        name: _interval(points[name], values, units[name], level)
        for name, values in resample(case, resamples, seed, shares).items()
    }
    for name in MEANS:
        if (point := points[name]) and not units[name].too_few:  # a loss of exactly 0 has no error to resample
            found[name] = _mean_interval(name, point, pivots(case, name, resamples, seed), units[name], level)
    return found


@dataclass(frozen=True, slots=True)
class _Units:
    """How many groups bear on a measure, and how many of equal size would be worth as much (Kish 1965)."""

    count: int
    effective: float

    @property
    def too_few(self) -> bool:
        """Whether nothing can be told of an error."""
        return self.count < LEAST_GROUPS or self.effective < LEAST_EFFECTIVE


def _units(case: Case) -> Mapping[str, _Units]:
    """For a measure that needs both classes: those of the class that has fewer."""
    caught, alarms, missed, passed = (case.sums[:, place] for place in range(4))
    fakes, reals, whole = _worth(caught + missed), _worth(alarms + passed), _worth(case.sums[:, :4].sum(axis=1))
    both = min(fakes, reals, key=lambda units: units.effective)
    others = {"recall": fakes, "precision": _worth(caught + alarms)}
    return dict.fromkeys(MEASURES, both) | dict.fromkeys(("accuracy", "log_loss", "brier"), whole) | others


def _worth(sizes: Floats) -> _Units:
    """sizes: (G,) how many pictures that matter each group holds."""
    total = float(sizes.sum())
    return _Units(int(np.sum(sizes > 0)), total**2 / float(sizes @ sizes) if total else 0.0)


def _interval(point: float | None, values: Floats, units: _Units, level: float) -> Interval | None:
    spread = _spread(values, units)
    if point is None or spread is None:
        return None
    reach = _reach(units, level)
    if point <= 0 or point >= 1:
        return _wilson(point, units.effective, reach)
    if spread < CERTAIN:
        return None  # the same in every resample, and yet not certain: nothing is known of its error
    logit, half = math.log(point / (1 - point)), reach * spread / (point * (1 - point))
    return Interval(float(expit(logit - half)), float(expit(logit + half)))


def _mean_interval(
    name: str, point: float, studentised: tuple[Floats, float], units: _Units, level: float
) -> Interval | None:
    """Of a mean of losses; None if all are equal, or so few differ that no end can be told."""
    values, error = studentised
    defined = values[np.isfinite(values)]
    if error < CERTAIN or len(defined) < (1 - MOST_UNDEFINED) * len(values):
        return None
    reach = _reach(units, level)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    with np.errstate(over="ignore"):
        ends = point * np.exp(np.array([-max(reach, high), max(reach, -low)]) * error)
    found = Interval(float(ends[0]), float(ends[1] if name == "log_loss" else min(ends[1], 1.0)))
    return found if ends[1] <= WIDEST * point else None


def _reach(units: _Units, level: float) -> float:
    """How many standard errors an interval goes to each side."""
    return float(stats.t.ppf((1 + level) / 2, units.effective - 1))


def _spread(values: Floats, units: _Units) -> float | None:
    """Standard error of a measure, None if it cannot be told. A bootstrap's is too small by sqrt(1 - 1 / groups)."""
    defined = values[np.isfinite(values)]
    if units.too_few or len(defined) < max(2, (1 - MOST_UNDEFINED) * len(values)):
        return None
    return float(np.std(defined, ddof=1)) * math.sqrt(units.effective / (units.effective - 1))


def _wilson(share: float, n: float, reach: float) -> Interval:
    """Wilson's interval for a share of 0 or 1 seen in `n` pictures, `reach` standard errors wide."""
    other = reach * reach / (n + reach * reach)
    return Interval(0.0, other) if share <= 0 else Interval(1 - other, 1.0)


# ---- two detectors on the same pictures


def delong(first: FloatArray, second: FloatArray, labels: IntArray) -> Paired:
    """The difference of two AUCs on the same pictures, each picture taken to be independent.

    first, second: (n,) finite scores; labels: (n,) 0 real, 1 fake.
    Raises MetricError if there are fewer than two pictures of a class, and if the AUCs differ but nothing varies
    (both separate the classes entirely, in opposite ways): the test is then undefined.
    Source: DeLong, DeLong and Clarke-Pearson 1988; midranks as in Sun and Xu 2014.
    """
    difference, error, _ = _auc_difference(first, second, labels, [str(place) for place in range(len(labels))])
    return _paired(difference, error, LEVEL, stats.norm())


def clustered_delong(first: FloatArray, second: FloatArray, labels: IntArray, groups: Sequence[str]) -> Paired:
    """The difference of two AUCs on the same pictures, with groups as the independent units.

    groups: n names. DeLong's error when every picture is a group of its own; Student's t with one degree of freedom
    less than there are groups of the rarer class, since a normal law rejects too often with few. Raises MetricError
    also for fewer than LEAST_GROUPS groups.
    Source: Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data".
    """
    if len(groups) != len(labels):
        raise MetricError(f"{len(groups)} groups for {len(labels)} labels")
    if len(set(groups)) < LEAST_GROUPS:
        raise MetricError(f"undefined: an AUC's error needs {LEAST_GROUPS} groups, got {len(set(groups))}")
    difference, error, fewest = _auc_difference(first, second, labels, groups)
    return _paired(difference, error, LEVEL, stats.t(fewest - 1))


def _auc_difference(
    first: FloatArray, second: FloatArray, labels: IntArray, groups: Sequence[str]
) -> tuple[float, float, int]:
    """The first AUC minus the second, its standard error, and how many groups hold the rarer class."""
    fake = labels == FAKE
    gaps = _placements(first, labels) - _placements(second, labels)  # (n,)
    difference = float(gaps[fake].mean())  # equals the mean over the reals
    number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    total = number.max() + 1
    sums, with_class = [], []  # of fakes, then of reals: (G,) centred sums; how many groups hold any
    for part in (fake, ~fake):
        pictures = np.bincount(number[part], minlength=total)
        sums.append((np.bincount(number[part], gaps[part], minlength=total) - pictures * difference) / np.sum(part))
        with_class.append(int(np.sum(pictures > 0)))
    if min(with_class) < 2:
        raise MetricError(f"undefined: an AUC's error needs two groups of each class, got {min(with_class)}")
    variance = sum(
        count / (count - 1) * float(part @ part) for part, count in zip(sums, with_class, strict=True)
    ) + 2 * total / (total - 1) * float(sums[0] @ sums[1])
    return difference, math.sqrt(max(variance, 0.0)), min(with_class)


def _placements(scores: FloatArray, labels: IntArray) -> Floats:
    """(n,) of each fake the share of reals below it, of each real the share of fakes above it; ties count one half."""
    metrics.check_scores(scores, labels, both_classes=True)
    fake = labels == FAKE
    wide = scores.astype(np.float64)  # SciPy 1.18 gives ranks the type of what they rank
    ranks, placements = stats.rankdata(wide), np.empty(len(labels))
    for part in (fake, ~fake):
        placements[part] = (ranks[part] - stats.rankdata(wide[part])) / np.sum(~part)
    placements[~fake] = 1 - placements[~fake]
    return placements


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> Paired:
    """The difference of two accuracies on the same pictures, each picture taken to be independent.

    first_right, second_right: (n,) whether each picture was judged rightly. The p value is McNemar's exact one (a
    binomial test of the pictures on which they disagree; 1 if there are none), the interval Agresti and Min's 2005
    (half a picture added to each of the four cells), which keeps its level for few pictures.
    Raises MetricError for no pictures, or not as many of both.
    """
    if len(first_right) != len(second_right) or not len(first_right):
        raise MetricError(f"needs as many answers of both, at least one: got {len(first_right)}, {len(second_right)}")
    n = len(first_right)
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    apart = only_first + only_second
    p_value = float(stats.binomtest(only_first, apart).pvalue) if apart else 1.0
    middle = (only_first - only_second) / (n + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((apart + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    return Paired((only_first - only_second) / n, max(-1.0, middle - half), min(1.0, middle + half), p_value)


def paired_bootstrap(
    first: FloatArray,
    second: FloatArray,
    labels: IntArray,
    groups: Sequence[str],
    measure: str,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Paired | None:
    """The difference of a measure between two detectors on the same pictures; both see the same resampled groups.

    measure: one of MEASURES. Interval and p value are Student's t with the bootstrap's standard error of the
    difference: they never contradict each other, and a p value can be smaller than 1 / resamples.
    None where it is undefined, as in `group_intervals`; also if the difference is the same in all resamples but not 0.
    Raises MetricError for an unknown measure and for scores, labels or groups that do not fit.
    """
    if measure not in MEASURES:
        raise MetricError(f"there is no measure {measure!r}", f"there are {', '.join(MEASURES)}")
    cases = [make_case(scores, labels, groups, threshold) for scores in (first, second)]
    points = [metrics.summarise(scores, labels, threshold)[measure] for scores in (first, second)]
    units = min((_units(case)[measure] for case in cases), key=lambda units: units.effective)
    one, other = (resample(case, resamples, seed, (measure,))[measure] for case in cases)
    spread = _spread(one - other, units)
    if points[0] is None or points[1] is None or spread is None:
        return None
    try:
        return _paired(points[0] - points[1], spread, level, stats.t(units.effective - 1))
    except MetricError:
        return None


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number, in the order given: below 0.05 where 5 % holds for all of them together.

    Source: Holm 1979, the step-down method; no assumption about how the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _paired(difference: float, spread: float, level: float, law: Any) -> Paired:
    """Interval and p value of a difference with the standard error `spread`, which follows `law` (of scipy.stats)."""
    if spread < CERTAIN:
        if abs(difference) < CERTAIN:
            return Paired(0.0, 0.0, 0.0, 1.0)
        raise MetricError("undefined: the two differ, but by the same wherever one looks: no error can be told")
    reach = float(law.ppf((1 + level) / 2)) * spread
    p_value = min(1.0, 2 * float(law.sf(abs(difference) / spread)))
    return Paired(difference, max(-1.0, difference - reach), min(1.0, difference + reach), p_value)
