"""What a study and its workers tell whoever watches: small frozen values, for a live table."""

from dataclasses import dataclass

from dftrack.errors import DftrackError
from dftrack.study.halving import Status
from dftrack.study.space import Params


@dataclass(frozen=True, slots=True)
class Opened:
    """The study is open and its parent run exists."""

    name: str
    run_id: str
    total: int
    ended: int  # trials that earlier starts brought to their end


@dataclass(frozen=True, slots=True)
class Started:
    """A worker began or took up a stretch of a trial."""

    worker: int  # 0, 1, ...
    trial: int
    params: Params
    start_epoch: int
    stop_epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Progress:
    """An epoch of a trial is done."""

    worker: int
    trial: int
    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class Left:
    """A worker let go of a trial: at a rung, at its end, on request, or because it was taken over."""

    worker: int
    trial: int
    how: str  # complete, paused, pruned, failed, released, superseded
    reason: str


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial has come to its end, by its worker or overtaken by others."""

    worker: int
    trial: int
    status: Status
    value: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker waits for others to reach a rung."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker ended without a word; another takes its place, and its trial is taken up again."""

    worker: int
    exit_code: int  # negative: the signal that killed it


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker found that there is nothing left to do."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot go on: the storage, the data or the device failed it, and would fail every trial."""

    worker: int
    error: DftrackError


@dataclass(frozen=True, slots=True)
class FinalStarted:
    """The winner is trained once more, with another seed."""

    trial: int
    seed: int
    number: int  # from 1
    count: int


Event = Started | Progress | Left | TrialEnded | Idle | WorkerDied | Finished | Refused  # of a worker
