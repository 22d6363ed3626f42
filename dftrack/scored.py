"""What runs recorded of each picture, read back; and whether two of them scored the very same pictures."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np

from dftrack.errors import MetricError, StoreError
from dftrack.learning.assessment import Chosen, choose
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import CLASSES, DEFAULT_THRESHOLD
from dftrack.tracking import Tracker

EVALUATED_TAG = "dftrack.evaluated_run"  # of an evaluation: the run whose model was judged


def stored_predictions(tracker: Tracker, run_id: str) -> dict[str, Predictions]:
    """Split -> what a run recorded of each picture. Raises StoreError if such a file cannot be understood."""
    found = {}
    for name in tracker.artifacts(run_id, "predictions"):
        split, suffix = name.rpartition(".")[::2]
        if suffix == "csv":
            found[split] = read_predictions(tracker.download(run_id, f"predictions/{name}"), split)
    return found


def read_predictions(path: Path, split: str) -> Predictions:
    """The predictions in a CSV with the columns picture, group, label (real, fake) and score. Raises StoreError."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
        if not rows:
            raise ValueError("it holds no pictures")
        return Predictions(
            split=split,
            names=tuple(row["picture"] for row in rows),
            groups=tuple(row["group"] for row in rows),
            labels=np.array([CLASSES.index(row["label"]) for row in rows], dtype=np.int64),
            scores=np.array([float(row["score"] or "nan") for row in rows], dtype=np.float64),
        )
    except (OSError, KeyError, ValueError, TypeError, MetricError) as error:
        raise StoreError(f"{path} does not hold predictions: {error}") from error


def decided_by(tracker: Tracker, run_id: str) -> Chosen | None:
    """What the val predictions of a run decide: temperature and thresholds. None if it stored none of val.

    For an evaluation it is the run whose model was judged that decides, if it can.
    """
    judged = tracker.find_run(run_id).tags.get(EVALUATED_TAG)
    for each in filter(None, (judged, run_id)):
        try:
            val = stored_predictions(tracker, each).get("val")
        except StoreError:
            continue
        if val is not None:
            return choose(val)
    return None


def threshold_of(tracker: Tracker, run_id: str) -> float:
    """P(fake) from which on a run's model calls a picture fake; 0.5 if it kept no model."""
    try:
        card = json.loads((tracker.detector_folder(run_id) / "detector.json").read_bytes())
        threshold = float(card["threshold"])
    except (StoreError, OSError, ValueError, KeyError, TypeError):
        return DEFAULT_THRESHOLD
    return threshold if math.isfinite(threshold) else DEFAULT_THRESHOLD


def aligned(ours: Predictions, first: Predictions) -> tuple[Predictions | None, str]:
    """`ours` in the order of `first`, or None and the reason why the two cannot be compared picture by picture."""
    place = {name: row for row, name in enumerate(ours.names)}
    if len(place) < len(ours) or len(set(first.names)) < len(first):
        return None, "a picture stands twice in the predictions"
    common = len(place.keys() & set(first.names))
    if common < max(len(ours), len(first)):
        return None, f"they scored other pictures ({len(ours):,} and {len(first):,}, {common:,} in common)"
    rows = np.array([place[name] for name in first.names], dtype=int)
    if wrong := int(np.sum(ours.labels[rows] != first.labels)):
        return None, f"{wrong:,} pictures have another label in one than in the other"
    unfit = int(np.sum(~np.isfinite(ours.scores)) + np.sum(~np.isfinite(first.scores)))
    if unfit:
        return None, f"{unfit:,} scores are not finite"
    return Predictions(first.split, first.names, first.groups, first.labels, ours.scores[rows]), ""
