"""What a check-up of a study looks at: its trials, its runs and its checkpoints; who is at work; what it may find."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock, Timeout

from dftrack.study.liveness import Watch, is_free
from dftrack.study.naming import parent_key, trial_key
from dftrack.study.opening import FINGERPRINT, OpenStudy
from dftrack.study.records import Reader, Record, to_record
from dftrack.tracking import KEY_TAG, RunRecord, Tracker

T = TypeVar("T")

Kind = Literal["zombie", "double", "missing", "status", "tags", "curve", "checkpoints", "orphan"]
Runs = Mapping[str, Sequence[RunRecord]]  # dftrack.key -> the runs that bear it

KEY = "key"  # attribute of a study in the storage: its part in the names of its runs and checkpoints
NOBODY = "nobody trains it any more; the same command goes on with it"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    kind: Kind
    study: str  # its name in the storage; "": a run outside all studies
    trial: int | None  # None: the study itself, or no trial
    run_id: str  # "" if there is no run
    message: str  # what is wrong, for a person
    mend: str  # what mending does; "": nothing can be done, it is only reported


@dataclass(frozen=True, slots=True)
class Ailment:
    """A finding with its cure."""

    finding: Finding
    cure: Callable[[], None] | None = None  # None: only reported


@dataclass(frozen=True, slots=True)
class Folder:
    """The checkpoints of one training, with the lock that it holds while it lives."""

    path: Path

    @property
    def is_held(self) -> bool:
        """Whether a process trains here."""
        return (self.path / "lock").exists() and not is_free(self.path / "lock")

    @property
    def key(self) -> str:
        """The key of the run that is recorded from here; "" if nobody noted one."""
        try:
            return str(json.loads((self.path / "run.json").read_text())["key"])
        except (OSError, ValueError, KeyError):
            return ""

    def content(self) -> list[Path]:
        """Every file but the lock."""
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if path.is_file() and path.name != "lock")

    def bytes(self) -> int:
        """The size of what it holds."""
        sizes = 0
        for path in self.content():
            with contextlib.suppress(FileNotFoundError):
                sizes += path.stat().st_size
        return sizes

    def clear(self) -> None:
        """Remove what it holds, unless a training has begun here."""
        lock = FileLock(self.path / "lock", timeout=0, is_singleton=False)
        with contextlib.suppress(Timeout), lock:
            for path in self.content():
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class State:
    """How a run should stand in MLflow."""

    status: str
    end: str
    reason: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.status}, {self.end}" if self.end else self.status


def state_of(record: Record) -> State:
    """The state in MLflow of a trial that nobody works on."""
    match record.status:
        case "complete":
            return State("FINISHED", "complete", record.reason)
        case "pruned":
            return State("KILLED", "pruned", record.reason)
        case "failed":
            return State("FAILED", "failed", record.reason, record.traceback)
        case "paused":
            return State("KILLED", "paused")
        case "running":
            return State("KILLED", "interrupted", NOBODY)


@dataclass(frozen=True, slots=True)
class Case:
    """One study with everything it takes to look at it."""

    tracker: Tracker
    study: OpenStudy
    key: str
    fingerprint: Mapping[str, str]
    watch: Watch

    @classmethod
    def of(cls, tracker: Tracker, study: OpenStudy, watch: Watch) -> "Case | None":
        """None if the study has never been trained by `dftrack study`: it has no runs of ours."""
        backend = study.storage.backend
        attributes = study.storage.patiently(lambda: backend.get_study_user_attrs(study.study_id))
        if KEY not in attributes:
            return None
        return cls(tracker, study, str(attributes[KEY]), attributes.get(FINGERPRINT, {}), watch)

    @property
    def parent_key(self) -> str:
        return parent_key(self.key)

    @property
    def metric(self) -> str:
        """The one that trials report, under its name in MLflow."""
        return self.fingerprint.get("metric", "").partition(" ")[2]

    def records(self) -> list[Record]:
        """The trials of `dftrack study`; one that a script added has a run of its own, or none."""
        found = Reader(self.study.storage.backend, self.study.study_id).read()
        return [record for record in found if record.claim is not None]

    def record(self, number: int) -> Record:
        """One trial as it is now."""
        backend = self.study.storage.backend
        return to_record(
            backend.get_trial(backend.get_trial_id_from_study_id_trial_number(self.study.study_id, number))
        )

    def folder(self, number: int) -> Folder:
        return Folder(self.tracker.store.checkpoints / trial_key(self.key, number))

    def is_at_work(self, record: Record) -> bool:
        """Whether somebody trains the trial, or may do so: a worker that is not known to be dead counts as alive."""
        claim = record.claim
        claimed = record.status == "running" and claim is not None and claim.state == "claimed"
        return (claimed and not self.watch.is_dead(record)) or self.folder(record.number).is_held

    def is_anybody_at_work(self, records: Sequence[Record]) -> bool:
        """Whether somebody works on the study: at a trial, a final training, a report, or waiting for others."""
        home = self.tracker.store
        places = [*home.checkpoints.glob(f"{self.key}-*/lock"), *(home.folder / "studies").glob(f"{self.key}*.lock")]
        places += (home.folder / "studies" / "workers").glob("*.alive")
        return any(self.is_at_work(record) for record in records) or not all(is_free(place) for place in places)

    def runs_of(self, key: str) -> list[RunRecord]:
        return self.tracker.runs(tags={KEY_TAG: key})

    def patiently(self, look: Callable[[], T]) -> T:
        """Look at the storage, again if it fails for a moment."""
        return self.study.storage.patiently(look)

    def steady(self, step: Callable[[], list[Finding]]) -> list[Finding]:
        """Carry out a step while no worker can take up a trial."""
        return self.study.storage.steady(step)
