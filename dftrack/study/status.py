"""`dftrack study status`: how far a study has come, read from the storage and MLflow while others write, or nobody."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dftrack.config import Value
from dftrack.study.case import KEY
from dftrack.study.definition import StudyDefinition
from dftrack.study.halving import Status, cost
from dftrack.study.liveness import Watch
from dftrack.study.naming import finals_prefix
from dftrack.study.opening import OpenStudy
from dftrack.study.records import Reader, Record
from dftrack.study.summary import ranking
from dftrack.tracking import KEY_TAG, RunRecord, Tracker

STATUSES: tuple[Status, ...] = ("running", "paused", "complete", "pruned", "failed")


@dataclass(frozen=True, slots=True)
class Best:
    """The best trial so far: of those that were trained longest, the one with the best value."""

    trial: int
    value: float  # of the study's metric
    epoch: int  # after which it was measured
    params: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker that trains, and is not known to be dead."""

    name: str
    machine: str  # its host name
    trial: int
    epoch: int  # the last one it reported, 0 before the first
    stop_epoch: int  # where the trial pauses or ends
    seconds_silent: float  # since this observer saw a sign of life; 0 at its first look


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """How far a study has come."""

    name: str
    total: int  # trials there will be
    counts: Mapping[Status, int]  # every status is there; together the trials there are
    interrupted: int  # of the running ones, those whose worker is gone: they wait to be taken up again
    epochs_spent: int
    epochs_planned: int  # in all, if no trial fails
    best: Best | None  # None before the first value
    workers: tuple[WorkerStatus, ...]  # by trial
    begun_with: int  # workers, for which its suggestions are spaced
    seconds_elapsed: float | None  # from the first trial's begin to now, or to the last one's end; None: not begun
    seconds_left: float | None  # of searching, at the pace so far; None: undefined (nothing done yet, or nobody works)
    finals_done: int  # of the winner as it is now
    finals_planned: int
    tests_opened: int  # final trainings that have scored the test splits

    @property
    def ended(self) -> int:
        """Trials that have come to their end."""
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]


def status(
    opened: OpenStudy, definition: StudyDefinition, tracker: Tracker, *, watch: Watch | None = None
) -> StudyStatus:
    """How far the study has come. Only reads; takes no lock.

    watch: the same one at each look lets workers of other machines be judged; a first look takes them for alive.
    """
    watch, storage = watch or Watch(), opened.storage
    if epochs := storage.patiently(opened.epochs):  # perhaps other ones than the study file's
        definition = definition.revised({"train.epochs": epochs})
    records = storage.patiently(Reader(storage.backend, opened.study_id).read)
    claimed = [one for one in records if one.status == "running" and one.claim and one.claim.state == "claimed"]
    alive = [record for record in claimed if not watch.is_dead(record)]
    counts = Counter(record.status for record in records)
    total = definition.total(storage.patiently(opened.trials))
    spent, planned = sum(record.epoch for record in records), _planned(definition, max(total, len(records)))
    over = sum(record.is_ended for record in records) >= max(total, len(records))
    elapsed = _elapsed(records, ended=over)
    finals = _finals(opened, tracker)
    winner = next((str(record.number) for record in ranking(records, definition.direction)), "")
    return StudyStatus(
        name=opened.name,
        total=total,
        counts={status: counts[status] for status in STATUSES},
        interrupted=counts["running"] - len(alive),
        epochs_spent=spent,
        epochs_planned=planned,
        best=_best(records, maximize=definition.direction == "maximize"),
        workers=tuple(_worker(record, watch) for record in alive),
        begun_with=storage.patiently(opened.workers),
        seconds_elapsed=elapsed,
        seconds_left=_left(elapsed, spent, planned, over=over, working=bool(alive)),
        finals_done=sum(run.tags.get("dftrack.trial") == winner for run in finals),
        finals_planned=definition.final_seeds,
        tests_opened=sum(any(name.startswith("test") for name in run.metrics) for run in finals),
    )


def _finals(opened: OpenStudy, tracker: Tracker) -> list[RunRecord]:
    """The study's finished final trainings: known by its own key, since one of another storage may bear its name."""
    backend = opened.storage.backend
    key = opened.storage.patiently(lambda: backend.get_study_user_attrs(opened.study_id)).get(KEY)
    if key is None:  # made, and not begun
        return []
    finals = tracker.runs(tags={"dftrack.kind": "final", "dftrack.study": opened.name}, status="FINISHED")
    return [run for run in finals if run.tags.get(KEY_TAG, "").startswith(finals_prefix(key))]


def _planned(definition: StudyDefinition, total: int) -> int:
    return cost(definition.contest(total))


def _best(records: Sequence[Record], *, maximize: bool) -> Best | None:
    measured = [record for record in records if record.curve and record.status != "failed"]
    if not measured:
        return None
    sign = 1 if maximize else -1
    best = max(measured, key=lambda record: (record.epoch, sign * record.curve[record.epoch], -record.number))
    return Best(best.number, best.curve[best.epoch], best.epoch, best.params)


def _worker(record: Record, watch: Watch) -> WorkerStatus:
    claim = record.claim
    assert claim is not None
    machine = claim.machine.partition("/")[0]
    return WorkerStatus(claim.worker, machine, record.number, record.epoch, claim.stop, watch.silence(record))


def _elapsed(records: Sequence[Record], *, ended: bool) -> float | None:
    """Seconds. Breaks between two starts of the study count: nothing in the storage tells of them."""
    starts = [record.started for record in records if record.started]
    if not starts:
        return None
    last = max((record.ended for record in records if record.ended), default=None) if ended else None
    return max(0.0, ((last or datetime.now()) - min(starts)).total_seconds())


def _left(elapsed: float | None, spent: int, planned: int, *, over: bool, working: bool) -> float | None:
    if over:
        return 0.0
    if not working or not spent or elapsed is None:
        return None
    return elapsed / spent * max(0, planned - spent)
