"""What the storage says about a study's trials, as plain values: the state of a trial, and who works on it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from dftrack.config import Value
from dftrack.study.halving import Standing, Status

CLAIM, BEAT, REASON, TRACEBACK = "claim", "beat", "reason", "traceback"  # attributes of a trial in the storage
CHANGES = "changes"  # attribute of the study
MOST_CHANGES = 300  # that are remembered; who has missed more reads everything again
ENDS: Mapping[TrialState, Status] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """Who may work on a trial, and how far. Written whole, in one transaction; the token fences off former owners."""

    state: Literal["claimed", "paused", "released"]  # released: interrupted on request, waits to be taken up again
    token: int  # goes up with each owner
    stop: int  # the epoch up to which the trial may train
    deaths: int = 0  # owners that died at work
    worker: str = ""
    machine: str = ""
    life: str = ""  # path of the file that the owner holds locked while it lives

    @classmethod
    def read(cls, attribute: Mapping[str, Any]) -> "Claim":
        return cls(**attribute)

    def write(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Record:
    """One trial as it stands in the storage."""

    number: int
    status: Status
    params: Mapping[str, Value]
    curve: Mapping[int, float]  # epoch, from 1 -> value of the metric
    value: float | None  # the result of an ended trial; of a pruned one the last value
    claim: Claim | None  # None: not made by dftrack study (somebody's own script)
    reason: str  # why it failed or was pruned
    traceback: str
    beat: str  # the owner's sign of life, "token:count"
    started: datetime | None
    ended: datetime | None

    @property
    def epoch(self) -> int:
        """The last epoch with a value, 0 before the first."""
        return max(self.curve, default=0)

    @property
    def is_ended(self) -> bool:
        return self.status in ("complete", "pruned", "failed")

    def standing(self, rungs: Sequence[int], place: float = 0.0) -> Standing:
        """As successive halving sees it; `place` is that of its parameters, see `StudyDefinition.place`."""
        stop = rungs[-1] if self.status == "complete" else rungs[0]
        return Standing(self.number, self.status, self.claim.stop if self.claim else stop, self.curve, place)


class Reader:
    """Reads the trials of one study again and again, and of them only those that can have changed.

    Ended trials never change, and paused ones only by a promotion or their end, which `touch` announces in an attribute
    of the study before it happens. So a reading costs what the trials at work cost, however many there are in all.
    """

    def __init__(self, backend: BaseStorage, study_id: int) -> None:
        self._backend = backend
        self._study_id = study_id
        self._records: dict[int, Record] = {}
        self._revision = -1  # of the announcements, when they were last read

    def read(self) -> list[Record]:
        """All trials that count, by number. A script's own trial counts from when it has ended."""
        revision, recent = self._changes()
        news = revision - self._revision
        if self._revision < 0 or news > len(recent):
            for trial in self._backend.get_all_trials(self._study_id, deepcopy=False):
                self._records[trial.number] = to_record(trial)
        else:
            stale = {number for number, record in self._records.items() if record.status == "running"}
            stale.update(recent[len(recent) - news :])
            while self._read_one(len(self._records)):  # new ones first: they are numbered without gaps,
                stale.discard(len(self._records) - 1)  # and the first number that is missing is the end
            for number in sorted(stale):
                self._read_one(number)
        self._revision = revision
        return [record for _, record in sorted(self._records.items()) if record.is_ended or record.claim is not None]

    def _read_one(self, number: int) -> bool:
        """Read one trial; whether there is one of this number."""
        try:
            trial_id = self._backend.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError:
            return False
        self._records[number] = to_record(self._backend.get_trial(trial_id))
        return True

    def touch(self, numbers: Sequence[int]) -> None:
        """Announce that these paused trials are about to change. Only under the storage's lock."""
        revision, recent = self._changes()
        changes = {"revision": revision + len(numbers), "recent": [*recent, *numbers][-MOST_CHANGES:]}
        self._backend.set_study_user_attr(self._study_id, CHANGES, changes)

    def _changes(self) -> tuple[int, list[int]]:
        changes = self._backend.get_study_user_attrs(self._study_id).get(CHANGES, {"revision": 0, "recent": []})
        return changes["revision"], changes["recent"]


def to_record(trial: FrozenTrial) -> Record:
    """Optuna's trial as ours."""
    attributes = trial.user_attrs
    claim = Claim.read(attributes[CLAIM]) if CLAIM in attributes else None
    unfinished: Status = "paused" if claim is not None and claim.state == "paused" else "running"
    return Record(
        number=trial.number,
        status=ENDS.get(trial.state, unfinished),
        params=trial.params,
        curve=trial.intermediate_values,
        value=trial.values[0] if trial.values else None,
        claim=claim,
        reason=attributes.get(REASON, ""),
        traceback=attributes.get(TRACEBACK, ""),
        beat=attributes.get(BEAT, ""),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )
