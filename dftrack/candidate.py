"""A run that asks to be released, and the released one it is held against: what the gates need to know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dftrack import logged_model
from dftrack.config import Config, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.data.folder import Progress
from dftrack.data_place import data_source_of
from dftrack.errors import DataError, StoreError
from dftrack.gates import is_test
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import DEFAULT_THRESHOLD
from dftrack.model_files import file_problems
from dftrack.registered import Version
from dftrack.scored import stored_predictions
from dftrack.tracking import RunRecord, Tracker


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A run with what it recorded."""

    record: RunRecord
    predictions: Mapping[str, Predictions]  # by split
    folder: Path | None  # of the whole logged model
    problems: tuple[str, ...]  # what is wrong with the files of the model
    detector: Detector | None  # None if the files are not fit to be loaded
    content: str | None = None  # sha256 of all files of the model together

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
    kept = tracker.model_digest(record.run_id)
    problems = tuple(file_problems(folder, kept))
    detector = None if problems else Detector.load(folder / logged_model.FOLDER)
    content = kept or logged_model.content_digest(folder)
    return Candidate(record, predictions, folder, problems, detector, content)


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
            names["data.source"] = data_source_of(self._record)
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
