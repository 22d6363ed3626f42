"""The queue of a study: what a worker does next, decided under the storage's lock, one worker at a time.

Each decision is one transaction, so that a kill leaves it done or not done: a new trial is written with its parameters
and its claim at once; a claim, a pause and a promotion are one attribute. A job carries the token of its claim: a
worker whose trial was given to another one hears so with its next report and drops its work.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from optuna.trial import TrialState, create_trial

from dftrack.errors import Abandoned, TrainingError
from dftrack.study.definition import StudyDefinition
from dftrack.study.halving import Status, plan
from dftrack.study.liveness import Watch, Worker, is_free
from dftrack.study.opening import OpenStudy
from dftrack.study.records import BEAT, CLAIM, ENDS, REASON, TRACEBACK, Claim, Reader, Record, to_record
from dftrack.study.sampling import distributions, looked_at, suggest
from dftrack.study.space import Params

T = TypeVar("T")
SLACK = 3  # trials at most that the sampler does without, beyond those at work, so that nobody waits for a slow one
MOST_DEATHS = 3  # a trial is taken up again twice; a third death is its end


@dataclass(frozen=True, slots=True)
class Job:
    """A stretch of one trial's training: from after `start_epoch` up to and including `stop_epoch`."""

    study: str
    trial: int
    params: Params
    start_epoch: (
        int  # the last epoch that was reported, 0 at the beginning; a checkpoint may be a little before or after
    )
    stop_epoch: int
    is_last: bool  # whether the trial ends there; otherwise it pauses, and its checkpoint is kept
    attempt: int  # 1, and 1 more for each worker that died over it
    token: int

    @property
    def is_resumed(self) -> bool:
        """Whether somebody has worked on this trial before: look for its checkpoint and its run."""
        return self.token > 1


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until others are done with theirs."""

    running: int  # trials others work on


@dataclass(frozen=True, slots=True)
class Done:
    """All trials have ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stretch of training ended."""

    kind: Literal["complete", "paused", "pruned", "failed", "released"]
    value: float | None = None  # complete: the result; None takes the last reported value
    reason: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial has come to its end, by its own worker or overtaken by others: its checkpoint may go."""

    trial: int
    status: Status
    value: float | None
    reason: str


class Superseded(Abandoned):
    """The trial belongs to another worker now, or has ended: drop the work."""


class Queue:
    """One worker's view of the study's work."""

    def __init__(
        self,
        study: OpenStudy,
        definition: StudyDefinition,
        worker: Worker,
        *,
        on_ended: Callable[[Ended], None] = lambda ended: None,
        watch: Watch | None = None,
    ) -> None:
        """on_ended: told of each trial that this worker ends, once the lock is free."""
        self._study, self._definition, self._worker = study, definition, worker
        self._storage, self._backend = study.storage, study.storage.backend
        self._reader = Reader(self._backend, study.study_id)
        self._watch = watch or Watch()
        self._on_ended = on_ended
        self._ended: dict[int, Ended] = {}  # since the lock was taken
        self._exhausted = False  # every point of the space has been tried
        self._total = definition.total(study.storage.patiently(study.trials))
        self._workers = study.storage.patiently(study.workers)
        self._beats = 0
        self._left_alone: dict[int, float] = {}  # trial -> until when (monotonic)

    # What a worker asks and says

    def next_job(self) -> Job | Wait | Done:
        """The most urgent thing to do: orphans, new trials, promotions; or to wait, or that all is done."""
        return self._locked(self._next)

    def report(self, job: Job, epoch: int, value: float) -> None:
        """Record the value after an epoch; the same again is harmless.

        Raises Superseded if the trial is no longer this job's, TrainingError if the value is not a finite number.
        """
        if not math.isfinite(value):
            raise TrainingError(f"{self._definition.metric} is {value} after epoch {epoch}: the trial cannot be judged")

        def step() -> None:
            self._own(job)
            self._backend.set_trial_intermediate_value(self._id(job.trial), epoch, value)

        self._locked(step)

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Give the job back with its outcome. Raises Superseded if it was no longer this job's."""

        def step() -> None:
            record = self._own(job, or_ended=True)
            if not record.is_ended:
                self._settle_job(record, job, outcome)
            self._overtake(self._reader.read())

        self._locked(step)

    def beat(self, job: Job) -> None:
        """Give a sign of life."""
        self._beats += 1
        self._backend.set_trial_user_attr(self._id(job.trial), BEAT, f"{job.token}:{self._beats}")

    def leave_alone(self, trial: int, seconds: float) -> None:
        """Do not take this trial up for so long: somebody is still about to drop it. Other workers may."""
        self._left_alone[trial] = time.monotonic() + seconds

    # Under the lock

    def _locked(self, step: Callable[[], T]) -> T:
        try:
            return self._storage.steady(step)
        finally:
            ended, self._ended = self._ended, {}
            for one in ended.values():
                self._on_ended(one)

    def _next(self) -> Job | Wait | Done:
        asked = self._study.trials()
        self._total = self._definition.total(asked)
        records = self._reader.read()
        if job := self._take_up(records):
            return job
        if self._ended:  # a trial was given up
            records = self._reader.read()
        if job := self._begin(records):
            return job
        if job := self._promote(self._overtake(records), records):
            return job
        running = sum(record.status == "running" for record in records)
        if running:
            return Wait(running)
        whole = self._exhausted or len(records) < asked
        return Done(f"all {len(records)} trials have ended" + (": every point of the space has been tried" * whole))

    def _take_up(self, records: Sequence[Record]) -> Job | Wait | Done | None:
        """A trial that nobody works on any more though it is not at a rung; one that is at its rung pauses there."""
        for record in records:
            claim = record.claim
            if record.status != "running" or claim is None:
                continue
            released = claim.state == "released"
            if released and time.monotonic() < self._left_alone.get(record.number, 0.0):
                continue
            if not released and claim.worker == self._worker.name:
                return self._job(record, claim)  # granted, but the answer was lost on its way
            if not released and not self._watch.is_dead(record):
                continue
            if claim.stop in record.curve and claim.stop != self._definition.epochs:
                _bury(claim, self._worker.machine)
                self._pause(record.number, claim)  # stopped after the last thing it had to do, before it could say so
                return self._next()
            if released:
                return self._grant(record, claim.stop, claim.deaths)
            if claim.deaths + 1 < MOST_DEATHS:
                return self._grant(record, claim.stop, claim.deaths + 1)
            self._end(record, TrialState.FAIL, f"its worker died {MOST_DEATHS} times")
        return None

    def _begin(self, records: Sequence[Record]) -> Job | Wait | None:
        """A new trial, if there are to be more: written whole, with its claim.

        Where the sampler looks at a trial that another worker is at, it waits for its value: the study asks for the
        same trials every time. Not where more workers are at it than it was begun with: they would be in vain.
        """
        if len(records) >= self._total or self._exhausted:
            return None
        others = self._workers - 1
        ahead = others + min(others, SLACK)
        running = sum(record.status == "running" for record in records)
        unknown = any(
            record.status == "running" and record.claim is not None and record.claim.stop == self._definition.rungs[0]
            for record in looked_at(self._definition, records, ahead)
        )
        if unknown and running < self._workers:
            return Wait(running)
        params = suggest(self._definition, records, ahead)
        if params is None:
            self._exhausted = True
            return None
        claim = self._claim(token=1, stop=self._definition.rungs[0], deaths=0)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=distributions(self._definition.space),
            user_attrs={CLAIM: claim.write()},
        )
        number = self._backend.get_trial_number_from_id(self._backend.create_new_trial(self._study.study_id, trial))
        return self._describe(number, params, 0, claim)

    def _promote(self, promotions: Sequence[tuple[int, int]], records: Sequence[Record]) -> Job | None:
        for number, stop in promotions:
            record = next(record for record in records if record.number == number)
            assert record.claim is not None
            self._reader.touch([number])
            return self._grant(record, stop, record.claim.deaths)
        return None

    def _overtake(self, records: Sequence[Record]) -> Sequence[tuple[int, int]]:
        """End the paused trials that are out; returns who may go on."""
        definition, rungs = self._definition, self._definition.rungs
        baseline = definition.enqueue[0] if definition.protects_baseline else None
        contest = definition.contest(
            total=len(records) if self._exhausted else max(self._total, len(records)),
            protected=frozenset(record.number for record in records if record.params == baseline),
        )
        step = plan([r.standing(rungs, self._definition.place(r.params)) for r in records], contest)
        by_number = {record.number: record for record in records}
        if step.prune:
            self._reader.touch(step.prune)
        for number in step.prune:
            claim = by_number[number].claim
            assert claim is not None
            seats = contest.seats(rungs.index(claim.stop))
            reason = f"out after epoch {claim.stop} of {rungs[-1]}: {seats} of {contest.total} trials go on"
            self._end(by_number[number], TrialState.PRUNED, reason)
        return step.promote

    def _settle_job(self, record: Record, job: Job, outcome: Outcome) -> None:
        """Write down the outcome of a job that is still its worker's."""
        assert record.claim is not None
        kind, value = outcome.kind, outcome.value
        if kind == "paused" and job.stop_epoch not in record.curve:
            kind, outcome = "failed", Outcome("failed", reason=f"no value was reported after epoch {job.stop_epoch}")
        if kind == "complete" or (kind == "paused" and job.is_last):
            value = record.curve.get(record.epoch) if value is None else value
            if value is None or not math.isfinite(value):
                kind, outcome = "failed", Outcome("failed", reason=f"{self._definition.metric} ended as {value}")
            else:
                self._end(record, TrialState.COMPLETE, outcome.reason, value=value)
        elif kind == "paused":
            self._pause(record.number, record.claim)
        elif kind == "released":
            self._write(record.number, _let_go(record.claim, "released"))
        elif kind == "pruned":
            self._end(record, TrialState.PRUNED, outcome.reason)
        if kind == "failed":
            self._end(record, TrialState.FAIL, outcome.reason, traceback=outcome.traceback)

    # Small steps

    def _pause(self, number: int, claim: Claim) -> None:
        self._write(number, _let_go(claim, "paused"))

    def _own(self, job: Job, *, or_ended: bool = False) -> Record:
        record = to_record(self._backend.get_trial(self._id(job.trial)))
        claim = record.claim
        if (
            claim is None
            or claim.token != job.token
            or not (claim.state == "claimed" or (or_ended and record.is_ended))
        ):
            raise Superseded(f"trial {job.trial} was taken up by another worker")
        if record.is_ended and not or_ended:
            raise Superseded(f"trial {job.trial} has been ended")
        return record

    def _grant(self, record: Record, stop: int, deaths: int) -> Job:
        assert record.claim is not None
        _bury(record.claim, self._worker.machine)
        claim = self._claim(record.claim.token + 1, stop, deaths)
        self._write(record.number, claim)
        return self._job(record, claim)

    def _claim(self, token: int, stop: int, deaths: int) -> Claim:
        worker = self._worker
        return Claim("claimed", token, stop, deaths, worker.name, worker.machine, str(worker.life))

    def _job(self, record: Record, claim: Claim) -> Job:
        return self._describe(record.number, dict(record.params), record.epoch, claim)

    def _describe(self, number: int, params: Params, epoch: int, claim: Claim) -> Job:
        return Job(
            study=self._study.name,
            trial=number,
            params=params,
            start_epoch=epoch,
            stop_epoch=claim.stop,
            is_last=claim.stop == self._definition.epochs,
            attempt=claim.deaths + 1,
            token=claim.token,
        )

    def _write(self, number: int, claim: Claim) -> None:
        self._backend.set_trial_user_attr(self._id(number), CLAIM, claim.write())

    def _end(
        self, record: Record, state: TrialState, reason: str, *, value: float | None = None, traceback: str = ""
    ) -> None:
        trial_id = self._id(record.number)
        for key, text in ((REASON, reason), (TRACEBACK, traceback)):
            if text:
                self._backend.set_trial_user_attr(trial_id, key, text)
        if state == TrialState.PRUNED:
            value = record.curve.get(record.epoch)
        self._backend.set_trial_state_values(trial_id, state, None if value is None else [value])
        self._ended[record.number] = Ended(record.number, ENDS[state], value, reason)

    def _id(self, number: int) -> int:
        return self._backend.get_trial_id_from_study_id_trial_number(self._study.study_id, number)


def _bury(claim: Claim, machine: str) -> None:
    """Remove the sign of life of a dead worker of this machine: the path of another's means nothing here."""
    life = Path(claim.life)
    if claim.machine == machine and life.is_file() and is_free(life):
        with suppress(OSError):  # somebody else's, or gone: `Life` clears away what is left
            life.unlink(missing_ok=True)


def _let_go(claim: Claim, state: Literal["paused", "released"]) -> Claim:
    return replace(claim, state=state, worker="", machine="", life="")
