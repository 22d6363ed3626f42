"""Runs as a training would have left them, without a training: a network, a detector, scores that are set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dftrack.config import Config, Value, flatten, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.metrics import CLASSES
from dftrack.learning.model import build_model
from dftrack.recording import flat_metrics
from dftrack.tracking import Run, Tracker


@dataclass(frozen=True)
class Recipe:
    """How a made run differs from the usual one."""

    name: str = "baseline"
    settings: Mapping[str, Value] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)  # on top of, or instead of, those of the scores
    digest: str = "d" * 32
    model: bool = True
    seed: int = 0
    finish: bool = True


def scored(
    split: str, n: int, *, skill: float, seed: int = 0, noise: int = 0, pictures_a_group: int = 2
) -> Predictions:
    """Set scores: the fakes' logits lie `skill` standard deviations above the reals'. Labels alternate.

    The pictures' own difficulty depends on `seed`; `noise` adds a little that is another for another number.
    """
    random = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(np.int64)
    logits = random.normal(size=n) + 0.1 * np.random.default_rng(1000 + noise).normal(size=n) + skill * (labels - 0.5)
    return Predictions(
        split=split,
        names=tuple(f"{split}/{i:05}.jpg" for i in range(n)),
        groups=tuple(f"{split}-{i // pictures_a_group}" for i in range(n)),
        labels=labels,
        scores=1 / (1 + np.exp(-logits * max(skill, 0.3))),
    )


def record(tracker: Tracker, predictions: Sequence[Predictions], recipe: Recipe | None = None) -> Run:
    """A finished run with these predictions, their metrics, and a (random) network that was logged."""
    recipe = recipe or Recipe()
    settings = flatten(vary(Config(), {"data.image_size": 16, **recipe.settings}))
    run = tracker.start_run(
        recipe.name,
        key=f"{recipe.name}-{len(tracker.runs())}",
        settings=settings,
        tags={"dftrack.kind": "baseline", "dftrack.data_digest": recipe.digest, **recipe.tags},
    )
    for epoch in (1, 2):
        run.log_epoch(epoch, {"train/loss": 0.7 / epoch, "val/loss": 0.8 / epoch})
    metrics = {name: value for found in predictions for name, value in flat_metrics(report(found)).items()}
    run.log_metrics({**metrics, **recipe.metrics})
    for found in predictions:
        run.log_table(
            {
                "picture": found.names,
                "group": found.groups,
                "label": [CLASSES[label] for label in found.labels],
                "score": [float(score) for score in found.scores],
            },
            f"predictions/{found.split}.csv",
        )
    if recipe.model:
        folder = tracker.store.folder / "made"
        network(settings, recipe.seed).save(folder)
        run.log_model(folder, {})
    if recipe.finish:
        run.finish("FINISHED")
    return run


def network(settings: Mapping[str, Value], seed: int = 0) -> Detector:
    """A detector whose weights are random."""
    config = vary(Config(), settings)
    torch.manual_seed(seed)
    return Detector(model=build_model(config.model, config.data.image_size or 16), settings=dict(settings))


def predictions_of(detector: Detector, data: DataSet, split: str) -> Predictions:
    """What the detector really says of a split."""
    part = data.splits[split]
    scores: NDArray[np.float64] = detector.score(part.pixels)
    return Predictions(split=split, names=part.names, groups=part.groups, labels=part.labels, scores=scores)


def opened(source: Path, store: Path) -> DataSet:
    """The data of `source` at 16 pixels."""
    return open_data(vary(Config(), {"data.source": str(source), "data.image_size": 16}).data, store)
