"""A run that asks to be released, and the released one it is held against: what the gates need to know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dftrack import gates, logged_model, registered
from dftrack.config import Config, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.data.folder import Progress
from dftrack.errors import DataError, DetectorError, DftrackError, MetricError, StoreError
from dftrack.gates import Gate, Limits, is_test
from dftrack.learning import statistics
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import DEFAULT_THRESHOLD
from dftrack.learning.statistics import Paired
from dftrack.model_files import file_problems
from dftrack.registered import Version
from dftrack.scored import aligned, stored_predictions
from dftrack.tracking import RunRecord, Tracker
from dftrack.verification import verify

SAMPLE = 16  # pictures of the round trip


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A run with what it recorded."""

    record: RunRecord
    predictions: Mapping[str, Predictions]  # by split
    folder: Path | None  # of the whole logged model
    problems: tuple[str, ...]  # what is wrong with the files of the model
    detector: Detector | None  # None if the files are not fit to be loaded

    @property
    def threshold(self) -> float:
        """P(fake) from which on its model calls a picture fake."""
        return self.detector.threshold if self.detector else DEFAULT_THRESHOLD

    @property
    def digest(self) -> str | None:
        """Of its data."""
        return self.record.tags.get("dftrack.data_digest")

    def tests(self) -> dict[str, Predictions]:
        """The test splits that it scored."""
        return {split: found for split, found in self.predictions.items() if is_test(split)}


@dataclass(frozen=True, slots=True, eq=False)
class Champion:
    """The version that an alias points at."""

    version: Version
    record: RunRecord | None  # None: its run was deleted
    predictions: Mapping[str, Predictions]

    @property
    def digest(self) -> str | None:
        """Of the data that it was judged on."""
        return self.version.tags.get("dftrack.data_digest") or (
            self.record.tags.get("dftrack.data_digest") if self.record else None
        )


def look_at(tracker: Tracker, run: str) -> Candidate:
    """Gather what the run recorded; a model whose files are wrong is not loaded. StoreError if there is no such run."""
    record = tracker.find_run(run)
    predictions = stored_predictions(tracker, record.run_id)
    try:
        folder = tracker.model_folder(record.run_id)
    except StoreError as error:
        return Candidate(record, predictions, None, (error.message,), None)
    problems = tuple(file_problems(folder, tracker.model_digest(record.run_id)))
    detector = None if problems else Detector.load(folder / logged_model.FOLDER)
    return Candidate(record, predictions, folder, problems, detector)


def look_at_champion(tracker: Tracker, model: str, alias: str) -> Champion | None:
    """The version that `alias` points at, with what its run recorded; None if it points nowhere."""
    version = tracker.registered(model).at(alias)
    if version is None:
        return None
    try:
        record = tracker.find_run(version.run_id)
        return Champion(version, record, stored_predictions(tracker, record.run_id))
    except StoreError:
        return Champion(version, None, {})


# ---- data


class Pictures:
    """The data set of a run, opened when it is first needed, once for each size of picture."""

    def __init__(self, record: RunRecord, store: Path, progress: Progress | None = None) -> None:
        self._record, self._store, self._progress = record, store, progress
        self._opened: dict[int | None, DataSet] = {}

    def at(self, size: int | None = None) -> DataSet:
        """The very pictures that the run was judged on, `size` pixels a side (None: as the run had them).

        Raises DftrackError if they are gone or have changed.
        """
        if size not in self._opened:
            names = {name: value for name, value in self._record.settings.items() if name.startswith("data.")}
            config = vary(Config(), {**names, **({"data.image_size": size} if size else {})})
            data = open_data(config.data, self._store, self._progress)
            wanted = self._record.tags.get("dftrack.data_digest")
            if data.digest != wanted:
                raise DataError(
                    f"the pictures of {config.data.source} have changed: their digest is {data.digest[:8]}, the run's "
                    f"{(wanted or 'unknown')[:8]}"
                )
            self._opened[size] = data
        return self._opened[size]


# ---- gates


def judge(
    tracker: Tracker, ours: Candidate, champion: Champion | None, limits: Limits, progress: Progress | None = None
) -> list[Gate]:
    """Every gate, in the order in which they are shown; what is cheap comes first, what is not fit is not loaded."""
    record, tests = ours.record, ours.tests()
    pictures = Pictures(record, tracker.store.folder, progress)
    audited = "audit.json" in tracker.artifacts(record.run_id)
    found = [
        gates.finished(record.status, record.end),
        gates.metrics_true(record.metrics, ours.predictions, ours.threshold, _faults(tracker, ours)),
        gates.no_leaks(record.tags.get("dftrack.leaks"), audited),
        gates.enough_pictures(tests, limits.pictures),
        gates.files_whole(ours.problems),
        gates.above_always_fake(tests, ours.threshold),
        gates.above_shortcuts(record.metrics.get("val/roc_auc"), record.metrics.get("shortcut/roc_auc")),
        gates.calibrated(tests, ours.detector.temperature if ours.detector else None, limits.ece),
        *_against(tracker, ours, champion, limits, pictures),
        _round_trip(ours, pictures),
    ]
    return found


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
            again = "the champion was judged again on these pictures"
    except DftrackError as error:
        reason = f"the champion cannot be judged on these pictures: {error.message}"
        return [
            gates.same_data(ours.digest, champion.digest, "", reason),
            gates.not_worse({}, limits.margin),
            gates.robust(ours.record.metrics, _metrics(champion), same, limits.robustness),
        ]
    pairs = {split: _difference(ours.predictions[split], found) for split, found in theirs.items()}
    return [
        gates.same_data(ours.digest, champion.digest, again, ""),
        gates.not_worse(pairs, limits.margin),
        gates.robust(ours.record.metrics, _metrics(champion), same, limits.robustness),
    ]


def _metrics(champion: Champion) -> Mapping[str, float]:
    return champion.record.metrics if champion.record else {}


def _stored(ours: Candidate, champion: Champion, split: str) -> Predictions | None:
    """What the champion's run recorded of a split, in our order; None if it did not score these pictures."""
    if split not in champion.predictions:
        return None
    return aligned(champion.predictions[split], ours.predictions[split])[0]


def _judged_again(tracker: Tracker, ours: Candidate, champion: Champion, pictures: Pictures) -> dict[str, Predictions]:
    """The champion's scores of our test pictures, in our order. Raises DftrackError if that cannot be done."""
    folder = tracker.registered(champion.version.name).model_folder(champion.version)
    if problems := file_problems(folder, None):
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
