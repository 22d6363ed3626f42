"""Metrics of a thousand resampled data sets at once: whole groups are drawn, so a resample is a weight per picture.

A scene, video or person is the unit that was sampled from the world; its pictures are not independent of each other.
Drawing G of the G groups with replacement gives every picture the weight "how often its group was drawn". Pictures
are sorted by score once; each resample is then two cumulative sums, and all metrics that count are products of the
(resamples, groups) matrix of draws with sums per group. Source: Davison and Hinkley 1997, section 3.8 (clusters).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dftrack.errors import MetricError
from dftrack.learning.metrics import FAKE, FloatArray, IntArray, check_scores

MEASURES = (
    "accuracy", "balanced_accuracy", "precision", "recall", "f1",
    "roc_auc", "average_precision", "eer", "log_loss", "brier",
)  # fmt: skip
MEANS = {"log_loss": 4, "brier": 5}  # those that are a mean over the pictures: their column of Case.sums
AT_ONCE = 1 << 18  # weights in memory at a time: 2 MB a table, of which there are about ten

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """The pictures of a split, made ready for resampling: sorted by falling score, summed by group."""

    group: NDArray[np.intp]  # (n,) the number of each picture's group, in the order of falling scores
    fake: NDArray[np.bool_]  # (n,) in the same order
    ends: NDArray[np.intp]  # (k,) the last picture of each distinct score
    sums: Floats  # (G, 6) per group: caught, false alarms, missed, passed, sum of log losses, sum of squared errors

    @property
    def groups(self) -> int:
        return len(self.sums)


def make_case(scores: FloatArray, labels: IntArray, groups: Sequence[str], threshold: float) -> Case:
    """scores: (n,) finite; labels: (n,) 0 real, 1 fake; groups: n names. Raises MetricError where they do not fit."""
    check_scores(scores, labels)
    if len(groups) != len(labels):
        raise MetricError(f"{len(groups)} groups for {len(labels)} labels")
    given: Floats = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-given, kind="stable")
    fake = labels == FAKE
    number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    called = given >= threshold
    counted = (fake & called, ~fake & called, fake & ~called, ~fake & ~called)
    columns = [*(part.astype(np.float64) for part in counted), *_losses(given, fake)]
    falls = np.flatnonzero(np.diff(given[order]))
    return Case(
        group=number[order],
        fake=fake[order],
        ends=np.append(falls, len(scores) - 1),
        sums=np.stack([np.bincount(number, weights=column) for column in columns], axis=1),
    )


def draws(groups: int, resamples: int, seed: int, at_once: int) -> Iterator[Floats]:
    """How often each group is drawn: tables (at most `at_once`, groups) of counts, `resamples` rows in all.

    Each row sums to `groups`. The rows do not depend on `at_once`.
    """
    random = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(0, groups, (rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def resample(case: Case, resamples: int, seed: int, measures: Sequence[str] = MEASURES) -> dict[str, Floats]:
    """(resamples,) values of each measure; NaN where a resample leaves it undefined. The same seed, the same draws."""
    at_once = max(1, AT_ONCE // max(len(case.group), case.groups))
    parts = [weighted(case, counts, measures) for counts in draws(case.groups, resamples, seed, at_once)]
    return {name: np.concatenate([part[name] for part in parts]) for name in measures}


def pivots(case: Case, name: str, resamples: int, seed: int) -> tuple[Floats, float]:
    """Of one of MEANS: (resamples,) its studentised values on the logarithm, and the error they are multiples of.

    A value is (log of the resample's mean - log of the case's own) / the resample's own standard error; where that
    error is 0 it is infinite or NaN. The error is the linearised one of a ratio of group sums, on the logarithm.
    Source: Davison and Hinkley 1997, section 5.2.
    """
    at_once = max(1, AT_ONCE // case.groups)
    (center,), (error,) = _mean_and_error(case, name, np.ones((1, case.groups)))
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [_mean_and_error(case, name, counts) for counts in draws(case.groups, resamples, seed, at_once)]
        return np.concatenate([(mean - center) / own for mean, own in parts]), float(error)


def _mean_and_error(case: Case, name: str, counts: Floats) -> tuple[Floats, Floats]:
    """(r,) the logarithm of the mean and its standard error, for each row of weights. counts: (r, G)."""
    of, pictures = case.sums[:, MEANS[name]], case.sums[:, :4].sum(axis=1)  # (G,) each
    total, n = counts @ of, counts @ pictures
    mean = total / n
    squares = counts @ of**2 - 2 * mean * (counts @ (of * pictures)) + mean**2 * (counts @ pictures**2)
    scale = math.sqrt(case.groups / (case.groups - 1))
    return np.log(mean), scale * np.sqrt(np.maximum(squares, 0.0)) / total


def weighted(case: Case, counts: Floats, measures: Sequence[str] = MEASURES) -> dict[str, Floats]:
    """Each measure for each row of weights. counts: (r, G) weight of each group. Returns (r,); NaN where undefined.

    The definitions are those of dftrack.learning.metrics.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _counting(case, counts)
        if not set(measures) <= set(found):
            found |= _ranking(case, counts)
    return {name: found[name] for name in measures}


def _counting(case: Case, counts: Floats) -> dict[str, Floats]:
    """The measures at the threshold, and the two of probabilities: products of counts with sums per group."""
    tp, fp, fn, tn, _, _ = columns = (counts @ np.nan_to_num(case.sums, posinf=0.0)).T  # each (r,)
    pictures = tp + fp + fn + tn
    both = (tp + fn > 0) & (fp + tn > 0)
    named = both & (tp + fp > 0)
    logs, squares = (
        np.where(np.isfinite(case.sums[:, place]).all(), columns[place] / pictures, np.nan) for place in (4, 5)
    )
    return {
        "accuracy": (tp + tn) / pictures,
        "balanced_accuracy": np.where(both, (tp / (tp + fn) + tn / (tn + fp)) / 2, np.nan),
        "precision": np.where(named, tp / (tp + fp), np.nan),
        "recall": tp / (tp + fn),
        "f1": np.where(named, 2 * tp / (2 * tp + fp + fn), np.nan),
        "log_loss": logs,
        "brier": squares,
    }


def _ranking(case: Case, counts: Floats) -> dict[str, Floats]:
    """AUC, average precision and equal error rate, from the ROC points of all rows at once."""
    weights = counts[:, case.group]  # (r, n)
    caught = np.cumsum(weights * case.fake, axis=1)[:, case.ends]  # (r, k) down to each distinct score
    alarms = np.cumsum(weights * ~case.fake, axis=1)[:, case.ends]
    precision = np.where(caught > 0, caught / (caught + alarms), 0.0)
    tpr, fpr = (np.pad(part / part[:, -1:], ((0, 0), (1, 0))) for part in (caught, alarms))  # (r, k + 1)
    auc = np.sum(np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]), axis=1) / 2
    average = np.sum(np.diff(tpr, axis=1) * precision, axis=1)
    gap = 1 - tpr - fpr  # from 1 down to -1; a picture of weight 0 adds a step of no length
    last = np.maximum(np.sum(gap >= 0, axis=1) - 1, 0)
    row = np.arange(len(counts))
    beyond = np.minimum(last + 1, gap.shape[1] - 1)
    way = gap[row, last] / (gap[row, last] - gap[row, beyond])
    eer = fpr[row, last] + way * (fpr[row, beyond] - fpr[row, last])
    both = np.isfinite(auc)
    return {
        "roc_auc": auc,
        "average_precision": np.where(both, average, np.nan),
        "eer": np.where(both, eer, np.nan),
    }


def _losses(scores: Floats, fake: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(n,) log losses, infinite for a certain mistake, and (n,) squared errors; all infinite unless P(fake)."""
    if np.any((scores < 0) | (scores > 1)):
        return np.full(len(scores), np.inf), np.full(len(scores), np.inf)
    given = np.where(fake, scores, 1 - scores)  # (n,) P(true class)
    with np.errstate(divide="ignore"):
        return -np.log(given), (scores - fake) ** 2
