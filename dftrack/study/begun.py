"""A study begun: its data, its place in the storage and its parent run, which all that follows works with."""

import dataclasses
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dftrack import __version__
from dftrack.config import INCIDENTAL, TrainConfig, Value, flatten
from dftrack.data.cache import DataSet, open_data
from dftrack.errors import require
from dftrack.runtime import pick_device, pick_precision
from dftrack.study.case import KEY
from dftrack.study.definition import StudyDefinition
from dftrack.study.fingerprint import fingerprint
from dftrack.study.naming import parent_key
from dftrack.study.opening import OpenStudy, open_study
from dftrack.study.records import Reader, Record
from dftrack.study.storage import Storage
from dftrack.study.summary import ranking
from dftrack.study.workers import how_many_pay
from dftrack.tracking import Run, Tracker, open_tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a study."""

    definition: StudyDefinition
    store: Path
    storage: str = ""  # path or URL of the Optuna storage; "": optuna.db in the store
    trials: int | None = None  # the total; None: as before, or as the file says
    workers: int | None = None  # None: as many as it was begun with; a new study: as this machine is best used by
    new: bool = False
    command: str = ""  # what a person types to go on with it; "": made from the study's name


@dataclass(kw_only=True)
class Begun:
    """The study while this process works on it."""

    request: Request
    definition: StudyDefinition  # with the picture size that the data came at
    data: DataSet
    study: OpenStudy
    key: str  # in the names of its runs and checkpoints
    workers: int  # of this command
    tracker: Tracker
    run: Run  # the parent run
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.read_anew()

    @property
    def lives(self) -> Path:
        """Folder of the files that processes at work hold locked."""
        return self.request.store / "studies" / "workers"

    def read_anew(self) -> None:
        """Forget what was read of the trials."""
        self.reader = Reader(self.study.storage.backend, self.study.study_id)

    def records(self) -> list[Record]:
        """All trials; a storage that fails for a moment is waited for, as the workers wait for it.

        Under the lock, like every reading that goes on from an earlier one: see `Reader`.
        """
        return self.study.storage.steady(self.reader.read)

    def ranked(self) -> list[Record]:
        """The complete trials, the best first; ties go to the lower number."""
        return ranking(self.records(), self.definition.direction)

    def total(self) -> int:
        """How many trials there are in the end, as the latest start said."""
        return self.definition.total(self.study.storage.patiently(self.study.trials))


def begin(request: Request, show: Callable[[str, int, int], None]) -> Begun:
    """Make the study with its parent run, or find both as an earlier start left them.

    show: told how far the data are, see `open_data`.
    """
    require(request.workers is None or request.workers >= 1, f"--workers must be at least 1, got {request.workers}")
    request = dataclasses.replace(request, store=request.store.expanduser())
    config = request.definition.config({})
    device = _require_device(config.train)
    data = open_data(config.data, request.store, show)
    definition = _at_size(request.definition, data.image_size)
    mark = fingerprint(definition, data.digest, {"dftrack": __version__})
    with ExitStack() as refused:
        storage = refused.enter_context(Storage(request.storage or request.store / "optuna.db"))
        begins_with = request.workers or how_many_pay(device)
        study = open_study(storage, definition, mark, trials=request.trials, new=request.new, workers=begins_with)
        noted = storage.patiently(study.workers)
        key = storage.steady(lambda: _study_key(study))
        tracker = open_tracker(request.store)
        run = tracker.start_run(
            f"study {study.name}",
            key=parent_key(key),
            settings={**_settings(study.name, definition), "study.workers": noted},
            tags={"dftrack.kind": "study", "dftrack.study": study.name, "dftrack.data_digest": data.digest},
        )
        refused.pop_all()  # from here on, who closes the parent run closes the storage
    return Begun(
        request=request, definition=definition, data=data, study=study, key=key, workers=request.workers or noted,
        tracker=tracker, run=run,
    )  # fmt: skip


def _require_device(train: TrainConfig) -> str:
    """The device. Raises DeviceError, before any work, if it or the precision asked for is not to be had here."""
    device = pick_device(train.device)
    if train.precision != "auto":  # to answer that, a card would be occupied; it is never refused
        pick_precision(train.precision, device)
    return device


def _at_size(definition: StudyDefinition, size: int) -> StudyDefinition:
    """The definition with the picture size that the data came at, so that a change of it is seen."""
    return definition if "data.image_size" in definition.space else definition.revised({"data.image_size": size})


def _study_key(study: OpenStudy) -> str:
    """A name for the study that no other study of any storage has; made once."""
    backend = study.storage.backend
    known = backend.get_study_user_attrs(study.study_id).get(KEY)
    if known is None:
        known = f"{study.name}-{uuid.uuid4().hex[:8]}"
        backend.set_study_user_attr(study.study_id, KEY, known)
    return str(known)


def _settings(name: str, definition: StudyDefinition) -> dict[str, Value]:
    """What the parent run shows: how is searched, the space, and what all trials share. name: in the storage."""
    shared = {k: v for k, v in flatten(definition.config({})).items() if k not in definition.space}
    return {
        "study.name": name,
        "study.metric": definition.metric,
        "study.direction": definition.direction,
        "study.sampler": definition.sampler,
        "study.seed": definition.seed,
        "study.rungs": ", ".join(map(str, definition.rungs)),
        "study.final_seeds": definition.final_seeds,
        **{f"space.{name}": str(dimension) for name, dimension in definition.space.items()},
        **{k: v for k, v in shared.items() if k not in INCIDENTAL},
    }
