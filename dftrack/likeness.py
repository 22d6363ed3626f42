"""How alike two trainings came out: bit for bit, within the noise of another seed, or different, and in what."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from dftrack.config import INCIDENTAL
from dftrack.errors import DetectorError, MetricError, StoreError
from dftrack.files import sha256
from dftrack.learning.detector import WEIGHTS
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import roc_auc
from dftrack.learning.statistics import clustered_delong, holm
from dftrack.scored import aligned, stored_predictions
from dftrack.tracking import RunRecord, Tracker

LOSSES = ("train/loss", "val/loss")
LEVEL = 0.05
SMALL = 0.01  # AUC: another seed moves it by as much, even where a big test set tells the two models apart
MARGIN = 0.03  # AUC: more than this is no noise, even where a small test set cannot tell them apart
LEAST_SEEDS = 3
ASIDE = ("train.seed", *INCIDENTAL)  # settings in which runs of one kind may differ

Word = Literal["bit-identical", "within seed noise", "different", "not comparable"]


@dataclass(frozen=True, slots=True)
class Likeness:
    """What was compared, and what came out."""

    word: Word
    equal: tuple[str, ...]  # what is the same to the last bit
    unequal: tuple[str, ...]  # what is not, and where it begins
    method: str  # how noise was told from a difference; "" if nothing had to be told
    notes: tuple[str, ...]  # what could not be compared


@dataclass(frozen=True, slots=True)
class _Noise:
    inside: bool | None  # None: nothing to judge by
    method: str


def likeness(tracker: Tracker, old: RunRecord, new: RunRecord) -> Likeness:
    """Compare what two runs recorded: the loss of each epoch, the weights, every prediction."""
    equal: list[str] = []
    unequal: list[str] = []
    notes: list[str] = []
    epochs = _compare_losses(tracker, old, new, equal, unequal)
    _compare_weights(tracker, old, new, equal, unequal, notes)
    before, after = stored_predictions(tracker, old.run_id), stored_predictions(tracker, new.run_id)
    common = [split for split in before if split in after]
    _compare_predictions(before, after, common, equal, unequal)
    if not common:
        notes.append("the run kept no predictions that could be compared")
    if old.end != "complete":
        notes.append(f"the run was {old.end or old.status}: only what it recorded is compared")
    if not epochs and not common:
        return Likeness("not comparable", tuple(equal), tuple(unequal), "", tuple(notes))
    if not unequal:
        return Likeness("bit-identical", tuple(equal), (), "", tuple(notes))
    tests = [split for split in common if split not in ("train", "val")] or common
    noise = _by_seeds(tracker, old, new) or _by_pictures({split: (after[split], before[split]) for split in tests})
    word: Word = "different" if noise.inside is not True else "within seed noise"
    return Likeness(word, tuple(equal), tuple(unequal), noise.method, tuple(notes))


def _compare_losses(tracker: Tracker, old: RunRecord, new: RunRecord, equal: list[str], unequal: list[str]) -> int:
    """Epoch by epoch; returns how many epochs both have."""
    shared = 0
    for name in LOSSES:
        before, after = (dict(tracker.metric_history(run.run_id, name)) for run in (old, new))
        epochs = sorted(before.keys() & after.keys())
        shared = max(shared, len(epochs))
        first = next((epoch for epoch in epochs if before[epoch] != after[epoch]), None)
        if first is not None:
            unequal.append(f"{name} from epoch {first} on: {before[first]!r} before, {after[first]!r} now")
        elif epochs:
            equal.append(f"{name} of {len(epochs)} epochs" if len(epochs) > 1 else f"{name} of the one epoch")
        if first is None and epochs and old.end == new.end == "complete" and before.keys() != after.keys():
            unequal.append(f"{name}: {len(before)} epochs before, {len(after)} now")
    return shared


def _compare_weights(
    tracker: Tracker, old: RunRecord, new: RunRecord, equal: list[str], unequal: list[str], notes: list[str]
) -> None:
    digests = []
    for run, when in ((old, "before"), (new, "now")):
        try:
            digests.append(sha256(tracker.detector_folder(run.run_id) / WEIGHTS))
        except (StoreError, DetectorError, OSError):
            notes.append(f"no weights were kept {when}: they cannot be compared")
            return
    if digests[0] == digests[1]:
        equal.append(f"the weights (sha256 {digests[0][:12]})")
    else:
        unequal.append(f"the weights: sha256 {digests[0][:12]} before, {digests[1][:12]} now")


def _compare_predictions(
    before: Mapping[str, Predictions],
    after: Mapping[str, Predictions],
    common: Sequence[str],
    equal: list[str],
    unequal: list[str],
) -> None:
    for split in common:
        ours, reason = aligned(after[split], before[split])
        if ours is None:
            unequal.append(f"the predictions on {split}: {reason}")
        elif np.array_equal(ours.scores, before[split].scores):
            equal.append(f"the {len(ours):,} predictions on {split}")
        else:
            gaps = np.abs(ours.scores - before[split].scores)
            unequal.append(
                f"the predictions on {split}: {np.sum(gaps > 0):,} of {len(gaps):,} differ, by {gaps.max():.2g} at most"
            )


def _by_seeds(tracker: Tracker, old: RunRecord, new: RunRecord) -> _Noise | None:
    """Against the spread of the AUC among runs that differ in nothing but their seed; None if there are too few."""
    metric = next((name for name in _aucs(old) if name in new.metrics), None)
    digest = old.tags.get("dftrack.data_digest")
    if metric is None or not digest:
        return None
    runs = tracker.runs(tags={"dftrack.data_digest": digest}, status="FINISHED")
    alike = {
        run.settings.get("train.seed"): run.metrics[metric]
        for run in runs
        if run.run_id != new.run_id and metric in run.metrics and _kind_of(run) == _kind_of(old)
    }
    if len(alike) < LEAST_SEEDS:
        return None
    values = list(alike.values())
    spread = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * spread * math.sqrt(2)
    gap = new.metrics[metric] - old.metrics[metric]
    return _Noise(
        abs(gap) <= reach,
        f"{metric} moved by {gap:+.4f}; among {len(values)} seeds of the same settings it has a standard deviation of "
        f"{spread:.4f}, so that two of them lie {reach:.4f} apart at most in 95 of 100 cases (Student's t)",
    )


def _aucs(run: RunRecord) -> list[str]:
    names = [name for name in run.metrics if name.endswith("/roc_auc") and name.count("/") == 1]
    return sorted(
        (name for name in names if name != "shortcut/roc_auc"), key=lambda name: (name == "val/roc_auc", name)
    )


def _kind_of(run: RunRecord) -> Mapping[str, str]:
    """The settings of a training, but those that may differ among runs that are repetitions of each other."""
    return {
        name: value
        for name, value in run.settings.items()
        if name not in ASIDE and name != "data.source" and not name.startswith("run.")
    }


def _by_pictures(pairs: Mapping[str, tuple[Predictions, Predictions]]) -> _Noise:
    """By a test on the same pictures, and by the size of the difference."""
    told: list[str] = []
    p_values: list[float] = []
    gaps: list[float] = []
    for split, (after, before) in pairs.items():
        ours, _ = aligned(after, before)
        if ours is None:
            continue
        try:
            now, then = (roc_auc(found.scores, before.labels) for found in (ours, before))
        except MetricError:
            continue
        try:
            p_value = clustered_delong(ours.scores, before.scores, before.labels, before.groups).p_value
        except MetricError:  # nothing varies: the size alone has to tell
            p_value = 1.0
        gaps.append(abs(now - then))
        p_values.append(p_value)
        told.append(f"{split} AUC {then:.4f} before, {now:.4f} now (p = {p_value:.2g})")
    if not gaps:
        return _Noise(None, "the two scored no pictures in common")
    inside = [gap <= SMALL or (p >= LEVEL and gap <= MARGIN) for gap, p in zip(gaps, holm(p_values), strict=True)]
    return _Noise(
        all(inside),
        f"{'; '.join(told)}; noise is what moves the AUC by {SMALL} at most, or by {MARGIN} where DeLong's test with "
        "groups as the unit tells nothing apart (too few runs with other seeds to know their spread)",
    )
