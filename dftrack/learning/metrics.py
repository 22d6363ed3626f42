"""Scores and labels -> numbers. Pure: nothing is printed, recorded or read.

Fake is the positive class everywhere. A picture is called fake when its score is at or above the threshold.
A number that the data cannot give (a class is absent, nothing was called fake, a score is not finite) is undefined:
the single functions raise MetricError, `summarise` puts None. It is never 0 or NaN.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from dftrack.errors import MetricError

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

CLASSES = ("real", "fake")  # the label of a class is its place here: real 0, fake 1
REAL, FAKE = 0, 1
DEFAULT_THRESHOLD = 0.5  # P(fake) from which on a picture is called fake


METRICS = (  # what `summarise` returns
    "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer", "log_loss",
    "brier", "share_fake", "n",
)  # fmt: skip


def roc_auc(scores: FloatArray, labels: IntArray) -> float:
    """Chance that a random fake scores higher than a random real; equal scores count one half.

    scores: (n,) finite floats, higher = more fake. labels: (n,) ints, 0 real, 1 fake.
    Returns a number in [0, 1]; 0.5 = chance.
    Raises MetricError if a class is absent or all scores are equal.
    Source: scikit-learn, `roc_auc_score` (the Mann-Whitney U statistic).
    """
    check_ranking(scores, labels)
    return float(sk.roc_auc_score(labels, scores))


def average_precision(scores: FloatArray, labels: IntArray) -> float:
    """Area under the precision-recall steps: precision at each distinct score, weighted by the recall it adds.

    scores: (n,) finite floats, higher = more fake. labels: (n,) ints, 0 real, 1 fake.
    Returns a number in (0, 1]; chance is the share of fakes: pictures with one score stand or fall together, so their
    order in the file cannot matter. Raises MetricError if a class is absent or all scores are equal.
    Source: scikit-learn, `average_precision_score` (no interpolation).
    """
    check_ranking(scores, labels)
    return float(sk.average_precision_score(labels, scores))


def equal_error_rate(scores: FloatArray, labels: IntArray) -> float:
    """Error rate at the threshold where misses and false alarms are equal.

    scores: (n,) finite floats, higher = more fake. labels: (n,) ints, 0 real, 1 fake.
    The ROC points of all distinct scores, from (0, 0) to (1, 1), are joined by straight lines; the rate is the FPR
    where that line meets FPR = 1 - TPR. Every step of the ROC lowers 1 - TPR - FPR, so there is exactly one such place.
    Returns a number in [0, 1]; 0.5 = chance.
    Raises MetricError if a class is absent or all scores are equal: the rate is then undefined.
    Source: ISO/IEC 19795-1 (false accept = a fake passed as real, false reject = a real called fake).
    """
    check_ranking(scores, labels)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    gap = 1.0 - tpr - fpr  # (k,) misses minus false alarms: from 1 down to -1, strictly
    last = int(np.flatnonzero(gap >= 0)[-1])  # the last point at which misses still prevail
    weight = gap[last] / (gap[last] - gap[last + 1])  # [0, 1), the way from that point to the next
    return float(fpr[last] + weight * (fpr[last + 1] - fpr[last]))


def accuracy(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> float:
    """Share of pictures judged rightly, in [0, 1]. scores: (n,) P(fake); labels: (n,) ints. MetricError if n = 0."""
    (tn, fp), (fn, tp) = confusion(scores, labels, threshold)
    return (tp + tn) / (tn + fp + fn + tp)


def balanced_accuracy(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> float:
    """Mean of the share of fakes caught and the share of reals passed, in [0, 1]; any constant answer gets 0.5.

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake. Raises MetricError if a class is absent.
    """
    check_scores(scores, labels, both_classes=True)
    (tn, fp), (fn, tp) = confusion(scores, labels, threshold)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


def precision(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> float:
    """Share of true fakes among the pictures called fake, in [0, 1].

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake.
    Raises MetricError if nothing was called fake, or if a class is absent: it would then be 0 or 1 for any detector.
    """
    check_scores(scores, labels, both_classes=True)
    (_, fp), (_, tp) = confusion(scores, labels, threshold)
    if tp + fp == 0:
        raise MetricError(f"precision is undefined: no picture was called fake at threshold {threshold:g}")
    return tp / (tp + fp)


def recall(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> float:
    """Share of the fakes that were called fake (TPR), in [0, 1].

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake. Raises MetricError if there is no fake.
    """
    (_, _), (fn, tp) = confusion(scores, labels, threshold)
    if tp + fn == 0:
        raise MetricError("recall is undefined: there is no fake among the labels")
    return tp / (tp + fn)


def f1(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> float:
    """Harmonic mean of precision and recall, in [0, 1]; 0 when fakes were named but none rightly.

    scores: (n,) P(fake); labels: (n,) ints, 0 real, 1 fake.
    Raises MetricError wherever precision or recall is undefined, so that F1 always lies between the two.
    """
    precision(scores, labels, threshold)
    recall(scores, labels, threshold)
    (_, fp), (fn, tp) = confusion(scores, labels, threshold)
    return 2 * tp / (2 * tp + fp + fn)


def log_loss(scores: FloatArray, labels: IntArray) -> float:
    """Mean of -log(probability given to the true class), in nats, at least 0; log 2 = 0.693 for always saying 0.5.

    scores: (n,) P(fake) in [0, 1]; labels: (n,) ints, 0 real, 1 fake.
    Raises MetricError if n = 0, and if a score of exactly 0 or 1 is wrong: the loss is then infinite (clipping it
    would give a number that depends on the clip). Equals the cross-entropy of the logits.
    """
    _check_probabilities(scores, labels)
    given = np.where(labels == FAKE, scores, 1.0 - np.asarray(scores, dtype=np.float64))  # (n,) P(true class)
    if np.any(given == 0):
        raise MetricError(f"log loss is infinite: {int(np.sum(given == 0))} certain answers (score 0 or 1) are wrong")
    return float(np.mean(-np.log(given)))  # not scikit-learn's, which clips at 2.2e-16


def brier(scores: FloatArray, labels: IntArray) -> float:
    """Mean squared distance of P(fake) from the truth (0 or 1), in [0, 1]; 0.25 for always saying 0.5.

    scores: (n,) P(fake) in [0, 1]; labels: (n,) ints, 0 real, 1 fake. Raises MetricError if n = 0.
    """
    _check_probabilities(scores, labels)
    return float(np.mean((np.asarray(scores, dtype=np.float64) - labels) ** 2))


def share_fake(labels: IntArray) -> float:
    """Share of fakes among the labels, in [0, 1]. Raises MetricError if there are no labels."""
    check_labels(labels)
    return float(np.mean(labels == FAKE))


def confusion(
    scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Counts [true class][predicted class]: ((real passed, false alarms), (missed fakes, caught fakes)).

    scores: (n,) floats; labels: (n,) ints, 0 real, 1 fake. Raises MetricError for no or unfit scores.
    """
    check_scores(scores, labels)
    called_fake = scores >= threshold
    fake = labels == FAKE
    tp, fn = int(np.sum(fake & called_fake)), int(np.sum(fake & ~called_fake))
    fp, tn = int(np.sum(~fake & called_fake)), int(np.sum(~fake & ~called_fake))
    return (tn, fp), (fn, tp)


def summarise(scores: FloatArray, labels: IntArray, threshold: float = DEFAULT_THRESHOLD) -> dict[str, float | None]:
    """Every metric of one set of pictures by name; None where it is undefined.

    scores: (n,) P(fake) in [0, 1]; labels: (n,) ints, 0 real, 1 fake. Labels that are not 0 or 1, or not as many as
    the scores, are a mistake, not an undefined number: MetricError.
    """
    if len(scores) != len(labels):
        raise MetricError(f"{len(scores)} scores for {len(labels)} labels")
    if len(labels):
        check_labels(labels)
    metrics: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy(scores, labels, threshold),
        "balanced_accuracy": lambda: balanced_accuracy(scores, labels, threshold),
        "precision": lambda: precision(scores, labels, threshold),
        "recall": lambda: recall(scores, labels, threshold),
        "f1": lambda: f1(scores, labels, threshold),
        "roc_auc": lambda: roc_auc(scores, labels),
        "average_precision": lambda: average_precision(scores, labels),
        "eer": lambda: equal_error_rate(scores, labels),
        "log_loss": lambda: log_loss(scores, labels),
        "brier": lambda: brier(scores, labels),
        "share_fake": lambda: share_fake(labels),
    }
    return {name: or_none(metric) for name, metric in metrics.items()} | {"n": float(len(labels))}


def always_fake(labels: IntArray) -> dict[str, float | None]:
    """The metrics of calling everything fake with certainty: the answer that any detector has to beat.

    labels: (n,) ints. Same names as `summarise`; the log loss is None (infinite) as soon as there is one real. A
    constant answer ranks nothing, but as a yardstick it is chance: AUC and EER 0.5, AP the share of fakes.
    """
    found = summarise(np.ones(len(labels)), labels)
    share = found["share_fake"]
    both = share is not None and 0 < share < 1
    return found | ({"roc_auc": 0.5, "eer": 0.5, "average_precision": share} if both else {})


def or_none(metric: Callable[[], float]) -> float | None:
    """What `metric` returns, or None if it raises MetricError: undefined."""
    try:
        return metric()
    except MetricError:
        return None


def check_labels(labels: IntArray) -> None:
    """Raise MetricError unless `labels` is (n,) with n at least 1 and holds nothing but 0 and 1."""
    if labels.ndim != 1:
        raise MetricError(f"labels must be one row of numbers, got the shape {labels.shape}")
    if not len(labels):
        raise MetricError("undefined: there are no pictures")
    if not np.all((labels == REAL) | (labels == FAKE)):
        odd = np.unique(labels[(labels != REAL) & (labels != FAKE)])[0]
        raise MetricError(f"labels must be 0 (real) or 1 (fake), got {odd}")


def check_scores(scores: FloatArray, labels: IntArray, *, both_classes: bool = False) -> None:
    """Raise MetricError unless there is one finite score per label, and both classes if `both_classes`."""
    check_labels(labels)
    if scores.shape != labels.shape:
        raise MetricError(f"{len(labels)} labels need as many scores, got the shape {scores.shape}")
    if not np.all(np.isfinite(scores)):
        raise MetricError(f"undefined: {int(np.sum(~np.isfinite(scores)))} of {len(scores)} scores are not finite")
    if both_classes and (np.all(labels == FAKE) or np.all(labels == REAL)):
        absent = CLASSES[REAL if labels[0] == FAKE else FAKE]
        raise MetricError(f"undefined with one class only: there is no {absent} among {len(labels)} labels")


def check_ranking(scores: FloatArray, labels: IntArray) -> None:
    """Raise MetricError unless there is something to rank: both classes, and scores that differ."""
    check_scores(scores, labels, both_classes=True)
    if np.all(scores == scores[0]):
        raise MetricError(f"undefined: all {len(scores)} scores are {scores[0]:g}, so nothing is ranked")


def _check_probabilities(scores: FloatArray, labels: IntArray) -> None:
    check_scores(scores, labels)
    if np.any((scores < 0) | (scores > 1)):
        odd = scores[(scores < 0) | (scores > 1)][0]
        raise MetricError(f"undefined: scores must be probabilities in [0, 1], got {odd:g}")
