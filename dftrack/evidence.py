"""What a run stored of its judging, held against what else is known: its data set, its model, its own other files."""

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dftrack import gates
from dftrack.candidate import Candidate, Champion, Pictures
from dftrack.data.cache import Split
from dftrack.data.findings import LEAKS
from dftrack.dossier import EVALUATION, LEAKS_TAG
from dftrack.errors import DftrackError, MetricError, StoreError
from dftrack.gates import Gate
from dftrack.learning.corruption import LEVELS
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import DEFAULT_THRESHOLD, summarise
from dftrack.recording import TESTS_OPENED
from dftrack.tracking import RunRecord, Tracker

AUDIT, DATA = "audit.json", "data.json"
SCORED_AGAIN = 2000  # pictures of a split, at most; which of more is not known beforehand
ROUNDED = 5.1e-5  # the AUC in the tag of a version has four decimals


# ---- against the data set and the model


def stored_truly(ours: Candidate, pictures: Pictures) -> Gate:
    """The stored predictions name the pictures of the data set, with its labels and groups and the model's scores."""
    if ours.detector is None:
        return gates.predictions_hold(["not done: the files are not fit to be loaded"], 0, None)
    problems, count, furthest = [], 0, 0.0
    try:
        data = pictures.at(ours.detector.image_size)
        for split, found in ours.predictions.items():
            if split not in data.splits:
                problems.append(f"the data have no split {split}")
            elif said := _unlike(found, data.splits[split]):
                problems.append(f"{split}: {said}")
            else:
                distances = _distances(ours.detector, found, data.splits[split])
                count, furthest = count + len(distances), max(furthest, float(distances.max(initial=0.0)))
    except DftrackError as error:
        problems.append(error.message)
    return gates.predictions_hold(problems, count, furthest)


def _unlike(found: Predictions, part: Split) -> str:
    """How the rows of predictions differ from the pictures of a split; "" if they do not."""
    here = dict(zip(part.names, zip(part.labels.tolist(), part.groups, strict=True), strict=True))
    said = dict(zip(found.names, zip(found.labels.tolist(), found.groups, strict=True), strict=True))
    if len(said) < len(found):
        return f"{len(found) - len(said):,} pictures stand twice"
    for what, names in (("without a prediction", here.keys() - said.keys()), ("unknown", said.keys() - here.keys())):
        if names:
            return f"{len(names):,} pictures {what}, for example {min(names)}"
    for place, what in enumerate(("label", "group")):
        if wrong := [name for name in found.names if said[name][place] != here[name][place]]:
            return f"{len(wrong):,} pictures have another {what} than in the data, for example {wrong[0]}"
    return ""


def _distances(detector: Detector, found: Predictions, part: Split) -> NDArray[np.float64]:
    """How far the stored scores lie from those that the model gives, (n,); infinite where one is no number."""
    place = {name: row for row, name in enumerate(found.names)}
    rows = np.arange(len(part.names))
    if len(rows) > SCORED_AGAIN:
        rows = np.sort(np.random.default_rng().choice(rows, SCORED_AGAIN, replace=False))
    scores = detector.score(part.pixels[rows] if len(rows) < len(part.names) else part.pixels)
    stored = found.scores[[place[part.names[row]] for row in rows]]
    return np.nan_to_num(np.abs(scores - stored), nan=math.inf)


# ---- against what else the run recorded


def owed_splits(tracker: Tracker, record: RunRecord) -> list[str]:
    """The splits whose predictions the run must have stored: val, the tests it opened, and any it has numbers of."""
    known = _read(tracker, record, DATA)
    counts = known.get("counts") if isinstance(known, dict) else None
    named = {part for name in record.metrics if not name.startswith("data/") for part in name.split("/")[:-1]}
    owed = {"val"} | {part for part in record.tags.get(TESTS_OPENED, "").split(", ") if part}
    owed |= {name.partition("/")[0] for name in record.metrics if name.count("/") == 1 and name.endswith("/accuracy")}
    owed |= named & set(counts or ())
    return sorted(owed - {"train"})


def leaks_trained_on(tracker: Tracker, record: RunRecord) -> tuple[list[str], bool]:
    """What says that leaks were trained on, by the tag, the audit or the settings; and whether there was an audit."""
    try:
        audit = _read(tracker, record, AUDIT)
        allowed = int(audit["allowed"])
        found = sum(int(finding["count"]) for finding in audit["audit"]["findings"] if finding["kind"] in LEAKS)
        audited = True
    except (KeyError, TypeError, ValueError):
        allowed, found, audited = 0, 0, False
    tag = record.tags.get(LEAKS_TAG, "")
    said = [f"{tag} leaks were trained on"] if tag not in ("", "0") else []
    if allowed and str(allowed) != tag:
        said.append(f"{allowed} leaks were trained on, says {AUDIT}")
    if found and not said and record.settings.get("data.leaks") == "allow":
        said.append(f"data.leaks=allow, and {AUDIT} tells of {found} leaks")
    return said, audited


def kept_numbers(tracker: Tracker, record: RunRecord) -> dict[str, float]:
    """What the run's files say of the floor and of robustness, under the names of the metrics."""
    audit, evaluation = _read(tracker, record, AUDIT), _read(tracker, record, EVALUATION)
    numbers: dict[str, float | None] = {}
    with suppress(KeyError, TypeError):
        numbers["shortcut/roc_auc"] = audit["audit"]["shortcut"]["auc"]
    with suppress(KeyError, TypeError, AttributeError):
        for kind, outcomes in evaluation["robustness"]["damaged"].items():
            for level, outcome in zip(LEVELS, outcomes, strict=False):
                numbers[f"robustness/{kind}/{level}"] = outcome["auc"]
                numbers[f"robustness_accuracy/{kind}/{level}"] = outcome["accuracy"]
    return {name: value for name, value in numbers.items() if isinstance(value, float | int)}


def unlike_kept(tracker: Tracker, record: RunRecord) -> list[str]:
    """The metrics that are not logged, or otherwise, though the run's files hold them."""
    wrong = []
    for name, value in kept_numbers(tracker, record).items():
        logged = record.metrics.get(name)
        if logged is None:
            wrong.append(f"{name} is {value:.4f} in the run's files and not logged")
        elif not abs(logged - value) <= gates.EXACT:
            wrong.append(f"{name} is logged as {logged:.4f} and {value:.4f} in the run's files")
    return wrong


def believable(champion: Champion, split: str) -> bool:
    """Are the champion's stored predictions of a split those of its metrics, and of the version as it was released?"""
    found, tags = champion.predictions[split], champion.version.tags
    try:
        thresholds = {DEFAULT_THRESHOLD, float(tags.get("dftrack.threshold", DEFAULT_THRESHOLD))}
        if champion.record is None or all(
            gates.contradictions(champion.record.metrics, found, threshold) for threshold in thresholds
        ):
            return False
        auc, released = summarise(found.scores, found.labels)["roc_auc"], tags.get(f"dftrack.auc.{split}")
        return released is None or (auc is not None and abs(auc - float(released)) <= ROUNDED)
    except (MetricError, ValueError):
        return False


def _read(tracker: Tracker, record: RunRecord, name: str) -> Any:
    """The content of a JSON artifact; None if the run has none, or one that cannot be read."""
    if name not in tracker.artifacts(record.run_id):
        return None
    try:
        return json.loads(tracker.download(record.run_id, name).read_bytes())
    except (StoreError, OSError, ValueError):
        return None
