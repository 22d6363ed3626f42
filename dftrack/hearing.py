"""A candidate heard: every gate is given what it has to judge; the champion is judged again where that is needed."""

from collections.abc import Mapping

import numpy as np

from dftrack import evidence, gates, logged_model, registered
from dftrack.candidate import Candidate, Champion, Pictures
from dftrack.data.folder import Progress
from dftrack.errors import DataError, DetectorError, DftrackError, MetricError
from dftrack.gates import Gate, Limits
from dftrack.learning import statistics
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import summarise
from dftrack.learning.statistics import Paired
from dftrack.resolving import version_problems
from dftrack.scored import aligned
from dftrack.tracking import Tracker
from dftrack.verification import verify

SAMPLE = 16  # pictures of the round trip


def judge(
    tracker: Tracker, ours: Candidate, champion: Champion | None, limits: Limits, progress: Progress | None = None
) -> list[Gate]:
    """Every gate, in the order in which they are shown; what is cheap comes first, what is not fit is not loaded."""
    record, tests = ours.record, ours.tests()
    pictures = Pictures(record, tracker.store.folder, progress)
    found = [
        gates.finished(record.status, record.end),
        gates.metrics_true(
            record.metrics,
            ours.predictions,
            ours.threshold,
            [*_faults(tracker, ours), *evidence.unlike_kept(tracker, record)],
            evidence.owed_splits(tracker, record),
        ),
        gates.no_leaks(*evidence.leaks_trained_on(tracker, record)),
        gates.enough_pictures(tests, limits.pictures),
        gates.files_whole(ours.problems),
        gates.above_always_fake(tests, ours.threshold),
        gates.above_shortcuts(_auc(ours.predictions.get("val")), record.metrics.get("shortcut/roc_auc")),
        gates.calibrated(tests, ours.detector.temperature if ours.detector else None, limits.ece),
        *_against(tracker, ours, champion, limits, pictures),
        evidence.stored_truly(ours, pictures),
        _round_trip(ours, pictures),
    ]
    return found


def _auc(found: Predictions | None) -> float | None:
    try:
        return None if found is None else summarise(found.scores, found.labels)["roc_auc"]
    except MetricError:
        return None


def _faults(tracker: Tracker, ours: Candidate) -> list[str]:
    """Logged intervals, calibration and the like that do not follow from the predictions; the metrics of the splits
    themselves, and where there are no fit predictions at all, are the gate's own concern."""
    try:
        claims = verify(tracker, ours.record.run_id).faults
    except DftrackError:
        return []
    splits = tuple(f"{split}/" for split in ours.predictions)
    return [
        f"{claim.name} does not follow from the predictions" for claim in claims if not claim.name.startswith(splits)
    ]


def _against(
    tracker: Tracker, ours: Candidate, champion: Champion | None, limits: Limits, pictures: Pictures
) -> list[Gate]:
    if champion is None:
        nobody = "there is no champion yet"
        return [
            Gate("same data", "the champion judged on the same pictures", nobody, None),
            Gate("against the champion", "not worse", nobody, None),
            gates.robust(ours.record.metrics, None, False, limits.robustness),
        ]
    same = champion.digest is not None and champion.digest == ours.digest
    again = ""
    theirs: dict[str, Predictions] = {}
    if same:
        theirs = {split: found for split in ours.tests() if (found := _stored(ours, champion, split)) is not None}
    try:
        if theirs.keys() != ours.tests().keys():
            theirs = _judged_again(tracker, ours, champion, pictures)
            doubted = [s for s in ours.tests() if s in champion.predictions and not evidence.believable(champion, s)]
            why = f", for its stored predictions of {doubted[0]} are not those of its release" if doubted else ""
            again = f"the champion was judged again on these pictures{why}"
    except DftrackError as error:
        reason = f"the champion cannot be judged on these pictures: {error.message}"
        return [
            gates.same_data(ours.digest, champion.digest, "", reason),
            gates.not_worse({}, limits.margin),
            gates.robust(ours.record.metrics, _metrics(tracker, champion), same, limits.robustness),
        ]
    pairs = {split: _difference(ours.predictions[split], found) for split, found in theirs.items()}
    return [
        gates.same_data(ours.digest, champion.digest, again, ""),
        gates.not_worse(pairs, limits.margin),
        gates.robust(ours.record.metrics, _metrics(tracker, champion), same, limits.robustness),
    ]


def _metrics(tracker: Tracker, champion: Champion) -> Mapping[str, float]:
    """What the champion's run logged, or else holds in its files."""
    record = champion.record
    return {} if record is None else {**evidence.kept_numbers(tracker, record), **record.metrics}


def _stored(ours: Candidate, champion: Champion, split: str) -> Predictions | None:
    """What the champion's run recorded of a split, in our order; None if it did not score these pictures."""
    if split not in champion.predictions or not evidence.believable(champion, split):
        return None
    return aligned(champion.predictions[split], ours.predictions[split])[0]


def _judged_again(tracker: Tracker, ours: Candidate, champion: Champion, pictures: Pictures) -> dict[str, Predictions]:
    """The champion's scores of our test pictures, in our order. Raises DftrackError if that cannot be done."""
    folder = tracker.registered(champion.version.name).model_folder(champion.version)
    if problems := version_problems(tracker, champion.version):
        raise DetectorError(f"{champion.version}: {problems[0]}")
    detector = Detector.load(folder / logged_model.FOLDER)
    data = pictures.at(detector.image_size)
    found = {}
    for split, predictions in ours.tests().items():
        if split not in data.splits:
            raise DataError(f"the data have no split {split}")
        part = data.splits[split]
        theirs = Predictions(split, part.names, part.groups, part.labels, detector.score(part.pixels))
        in_order, reason = aligned(theirs, predictions)
        if in_order is None:
            raise DataError(f"{split}: {reason}")
        found[split] = in_order
    return found


def _difference(ours: Predictions, theirs: Predictions) -> Paired | None:
    try:
        return statistics.clustered_delong(ours.scores, theirs.scores, ours.labels, ours.groups)
    except MetricError:
        return None


def _round_trip(ours: Candidate, pictures: Pictures) -> Gate:
    """Load the model as MLflow does, in a clean process, and score some test pictures whose scores are recorded."""
    if ours.folder is None or ours.problems:
        return gates.round_trip(0, None, "not done: the files are not fit to be loaded")
    try:
        data = pictures.at()
        sample = [
            (data.splits[split].paths[place[name]], score)
            for split, found in ours.tests().items()
            if split in data.splits
            for place in [{name: row for row, name in enumerate(data.splits[split].names)}]
            for name, score in _some(found)
            if name in place
        ]
        if not sample:
            return gates.round_trip(0, None, "none of the pictures that were scored is there")
        scores = registered.score_apart(ours.folder, [path for path, _ in sample])
    except DftrackError as error:
        return gates.round_trip(0, None, error.message)
    if unread := sum(score is None for score in scores):
        return gates.round_trip(len(scores), None, f"{unread} of {len(scores)} pictures could not be read")
    distances = [abs(said - wanted) for said, (_, wanted) in zip(scores, sample, strict=True) if said is not None]
    return gates.round_trip(len(distances), max(distances), "")


def _some(found: Predictions) -> list[tuple[str, float]]:
    """The pinned sample of a split: names and scores, evenly over all rows, the same ones every time."""
    wanted = min(SAMPLE, len(found))
    rows = [round(row) for row in np.linspace(0, max(0, len(found) - 1), wanted).tolist()]
    return [(found.names[row], float(found.scores[row])) for row in rows]
