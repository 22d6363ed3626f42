"""Whether P(fake) means what it says: reliability, expected calibration error, and the temperature that mends it."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from dftrack.errors import MetricError
from dftrack.learning.metrics import FloatArray, IntArray, check_scores
from dftrack.learning.temperature import apply_temperature as apply_temperature  # fitted here, applied everywhere

BINS = 15  # as in Guo et al. 2017
COLDEST, HOTTEST = 1e-3, 1e3  # temperatures beyond which the scores are taken to be perfect, or worthless
_EDGE = 2.0**-53  # scores are kept this far from 0 and 1, where the logit ends


@dataclass(frozen=True, slots=True)
class Bin:
    """The pictures whose P(fake) lies in [low, high); the last bin holds 1 too."""

    low: float
    high: float
    n: int
    mean_score: float | None  # None: the bin is empty
    share_fake: float | None


def reliability(scores: FloatArray, labels: IntArray, bins: int = BINS) -> tuple[Bin, ...]:
    """What is said against what is true, in `bins` equal parts of [0, 1]. Well calibrated: mean_score = share_fake.

    scores: (n,) P(fake) in [0, 1]; labels: (n,) ints, 0 real, 1 fake. Raises MetricError if n = 0.
    """
    check_scores(scores, labels)
    if np.any((scores < 0) | (scores > 1)):
        raise MetricError("undefined: calibration needs probabilities in [0, 1]")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    said = np.bincount(place, weights=scores, minlength=bins)
    true = np.bincount(place, weights=labels, minlength=bins)
    return tuple(
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            n=int(n),
            mean_score=float(said[i] / n) if n else None,
            share_fake=float(true[i] / n) if n else None,
        )
        for i, n in enumerate(counts)
    )


def expected_calibration_error(scores: FloatArray, labels: IntArray, bins: int = BINS) -> float:
    """Mean over the pictures of |mean P(fake) - share of fakes| of their bin, in [0, 1]; 0 = calibrated.

    For two classes and P(fake), as in torchmetrics' BinaryCalibrationError. It is biased upwards for small n.
    scores: (n,) in [0, 1]; labels: (n,) ints. Raises MetricError if n = 0. Source: Naeini et al. 2015.
    """
    filled = [part for part in reliability(scores, labels, bins) if part.n]
    gaps = [part.n * abs((part.mean_score or 0.0) - (part.share_fake or 0.0)) for part in filled]
    return float(sum(gaps) / len(labels))


def fit_temperature(scores: FloatArray, labels: IntArray) -> float:
    """The T > 0 for which the softmax of (logits / T) has the least log loss: over 1 if the scores are too sure.

    scores: (n,) P(fake) of val; labels: (n,) ints, 0 real, 1 fake. The loss is convex in 1 / T, so the zero of its
    slope is the one best. Ranking metrics do not change with T.
    Raises MetricError if a class is absent, and where no finite T is best: every picture is judged rightly (the surer
    the better), or the scores tell nothing (the less sure the better). Source: Guo et al. 2017.
    """
    check_scores(scores, labels, both_classes=True)
    logits = logit(np.clip(np.asarray(scores, dtype=np.float64), _EDGE, 1 - _EDGE))

    def slope(sharpness: float) -> float:  # d(log loss) / d(1 / T), rising
        return float(np.mean((expit(sharpness * logits) - labels) * logits))

    if slope(1 / HOTTEST) >= 0:
        raise MetricError("no temperature mends these scores: they tell no more than a coin, or the wrong way round")
    if slope(1 / COLDEST) <= 0:
        raise MetricError("no temperature is best: every picture is judged rightly, so surer would always be better")
    return 1 / float(brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-12, rtol=1e-12))
