"""Is the winner better than the baseline beyond seed noise? Statistics on a handful of final trainings."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t

from dftrack.study.definition import Direction

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """What several trainings of one configuration gave, with different seeds."""

    n: int
    mean: float
    sd: float | None  # of the sample (n - 1); None: undefined with one value
    low: float | None  # where one more training falls with `CONFIDENCE`; None: undefined
    high: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The winner against the baseline."""

    word: Literal["better", "worse", "not told apart", "undefined"]
    reason: str


def spread(values: Sequence[float], confidence: float = CONFIDENCE) -> Spread | None:
    """Mean, standard deviation, and the prediction interval for one more value; None without values.

    The interval is mean +- t * sd * sqrt(1 + 1/n), with Student's t at n - 1 degrees of freedom: it holds one further
    training with a new seed with the given confidence if the values are normal. Undefined if n < 2 or sd = 0.
    Source: Hahn and Meeker 1991, Statistical Intervals, section 4.7.
    """
    n = len(values)
    if n == 0:
        return None
    mean = statistics.fmean(values)
    if n == 1:
        return Spread(1, mean, None, None, None)
    sd = statistics.stdev(values)
    if sd == 0:
        return Spread(n, mean, 0.0, None, None)
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * sd * math.sqrt(1 + 1 / n)
    return Spread(n, mean, sd, mean - reach, mean + reach)


def judge(
    values: Sequence[float],
    baseline: float | None,
    direction: Direction,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Verdict:
    """The winner's final trainings against one training of the baseline.

    If both were equally good, the baseline's value would be one more draw from the same noise, and fall into the
    prediction interval 95 times in 100. Outside it is better or worse, inside they are not told apart.
    limits: what the metric can be at all; the interval is told within them.
    """
    found = spread(values)
    if baseline is None or not math.isfinite(baseline):
        return Verdict("undefined", "there is no result of the baseline to compare with")
    if found is None or found.n < 2:
        count = "no final training" if found is None else "one final training"
        return Verdict("undefined", f"{count} of the winner: seed noise needs at least two")
    if found.low is None or found.high is None:
        return Verdict("undefined", f"all {found.n} final trainings gave the same value, so seed noise is not known")
    interval = f"{max(limits[0], found.low):.4f} to {min(limits[1], found.high):.4f}"
    if found.low <= baseline <= found.high:
        reason = f"the baseline's {baseline:.4f} lies where one more training of the winner may fall ({interval})"
        return Verdict("not told apart", reason)
    better = (found.mean > baseline) == (direction == "maximize")
    reason = f"the baseline's {baseline:.4f} lies outside what seed noise explains ({interval})"
    return Verdict("better" if better else "worse", reason)
