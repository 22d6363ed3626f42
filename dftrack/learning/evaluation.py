"""A model and the pictures of a split -> Predictions -> Report."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dftrack.data.cache import Split
from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.metrics import CLASSES, DEFAULT_THRESHOLD
from dftrack.learning.model import FaceCNN
from dftrack.learning.scores import BATCH_SIZE, score_pixels


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a model says of each picture of a split, and what is true. All of one length n, in the split's order."""

    split: str
    names: tuple[str, ...]
    groups: tuple[str, ...]  # the scene, video or person that a picture comes from
    labels: NDArray[np.int64]  # (n,) 0 real, 1 fake
    scores: NDArray[np.float64]  # (n,) P(fake)

    def __post_init__(self) -> None:
        lengths = {len(self.names), len(self.groups), len(self.labels), len(self.scores)}
        if len(lengths) > 1:
            raise MetricError(f"predictions on {self.split} have columns of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one split. None = undefined for these pictures."""

    split: str
    metrics: Mapping[str, float | None]  # the names of `metrics.summarise`
    always_fake: Mapping[str, float | None]  # the same for the answer "fake" to everything
    threshold: float  # P(fake) from which on a picture is called fake
    confusion: tuple[tuple[int, int], tuple[int, int]]  # counts [true class][predicted class]


def predict(
    model: FaceCNN,
    split: Split,
    *,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    amp: torch.dtype | None = None,
) -> Predictions:
    """Score every picture of `split`. `model` lies on `device` and keeps its training or evaluation mode.

    `amp`: None multiplies in float32, as a saved detector does. A model that overflows gives scores that are NaN.
    """
    scores = score_pixels(model, split.pixels, batch_size=batch_size, device=device, amp=amp)
    return Predictions(split=split.name, names=split.names, groups=split.groups, labels=split.labels, scores=scores)


def report(predictions: Predictions, threshold: float = DEFAULT_THRESHOLD) -> Report:
    """Every metric of `predictions`, with those of always saying "fake" to compare with.

    Raises MetricError if there are no pictures or a score is not finite: there is then nothing to report.
    """
    return Report(
        split=predictions.split,
        metrics=metrics.summarise(predictions.scores, predictions.labels, threshold),
        always_fake=metrics.always_fake(predictions.labels),
        threshold=threshold,
        confusion=metrics.confusion(predictions.scores, predictions.labels, threshold),
    )


def by_group(predictions: Predictions) -> Predictions:
    """One prediction for each group and class: the mean score of its pictures, named `group/class`.

    A video is all real or all fake and gives one row; a scene or a person with both gives two, since a mean over both
    would have no true class. Sorted by group, reals first.
    """
    keys = sorted(set(zip(predictions.groups, predictions.labels.tolist(), strict=True)))
    row = {key: index for index, key in enumerate(keys)}
    of = np.array([row[key] for key in zip(predictions.groups, predictions.labels.tolist(), strict=True)], dtype=int)
    counts = np.bincount(of, minlength=len(keys))
    return Predictions(
        split=predictions.split,
        names=tuple(f"{group}/{CLASSES[label]}" for group, label in keys),
        groups=tuple(group for group, _ in keys),
        labels=np.array([label for _, label in keys], dtype=np.int64),
        scores=np.bincount(of, weights=predictions.scores, minlength=len(keys)) / counts,
    )
