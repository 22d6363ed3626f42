"""Runs as a training would have left them, without a training: a network, a detector, scores that are set."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dftrack.config import Config, Value, flatten, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.metrics import CLASSES
from dftrack.learning.model import build_model, normalise
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
    val = next((report(found).metrics["log_loss"] for found in predictions if found.split == "val"), None)
    for epoch in (1, 2):
        run.log_epoch(epoch, {"train/loss": 0.7 / epoch, **({} if val is None else {"val/loss": val * (3 - epoch)})})
    metrics: dict[str, float | None] = {}
    for found in predictions:
        judged = report(found)
        metrics |= {f"{found.split}/{name}": value for name, value in judged.metrics.items()}
        metrics |= {f"{found.split}/always_fake/{name}": value for name, value in judged.always_fake.items()}
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


def hard_faces(root: Path, *, test: int = 60, seed: int = 0) -> Path:
    """A folder of noisy pictures whose fakes are a little greener, some hardly: no network is right about all."""
    random = np.random.default_rng(seed)
    for split, count in (("train", 40), ("val", 20), ("test-dev", test)):
        for label in CLASSES:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                tint = random.normal(90, 12, 3)
                tint[1] += random.normal(18, 14) if label == "fake" else 0
                pixels = np.clip(random.normal(tint, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}-{label}-{number:03}.jpg", quality=95)
    return root


def taught(data: DataSet, *, seed: int = 0, spoil: float = 0.0) -> Detector:
    """A detector that knows something without having been trained: random features, a logistic regression on top.

    spoil: how much noise is added to the last layer, as a share of its length.
    """
    settings = flatten(vary(Config(), {"data.source": data.source, "data.image_size": 16}))
    detector = network(settings, seed)
    last, kept = detector.model.fc2, []
    handle = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().clone()))
    with torch.inference_mode():
        detector.model.eval()(normalise(torch.from_numpy(np.array(data.splits["train"].pixels))))
    handle.remove()
    features, labels = torch.cat(kept).numpy().astype(float), data.splits["train"].labels  # (n, 512), (n,)
    weight = LogisticRegression(C=1.0, max_iter=500).fit(features, labels).coef_[0]
    noise = np.random.default_rng(seed).normal(size=len(weight))
    weight = weight + spoil * np.linalg.norm(weight) * noise / np.linalg.norm(noise)
    line = LogisticRegression(max_iter=500).fit((features @ weight)[:, None], labels)
    with torch.no_grad():
        row = torch.from_numpy(weight * line.coef_[0, 0]).float()
        last.weight.copy_(torch.stack([-row / 2, row / 2]))
        last.bias.copy_(torch.tensor([-line.intercept_[0] / 2, line.intercept_[0] / 2]))
    return detector


def release_candidate(tracker: Tracker, data: DataSet, *, seed: int = 0, spoil: float = 0.0, **more: object) -> Run:
    """A finished run of a `taught` detector with its true predictions on val and test-dev."""
    detector = taught(data, seed=seed, spoil=spoil)
    predictions = [predictions_of(detector, data, split) for split in ("val", "test-dev")]
    recipe = Recipe(settings=detector.settings, digest=data.digest, seed=seed, model=False, finish=False)
    recipe = dataclasses.replace(recipe, **more)
    run = record(tracker, predictions, recipe)
    folder = tracker.store.folder / "made"
    detector.save(folder)
    run.log_model(folder, {})
    if data.review is not None:  # without the floor, which nobody here has to beat: these faces differ in their colour
        audit = data.review.plain()
        audit["audit"]["shortcut"]["auc"] = None
        run.log_json(audit, "audit.json")
    run.finish("FINISHED")
    return run
