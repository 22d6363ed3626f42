"""What a finished or running study comes to: its winner, whether it is really better, what it cost. Plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dftrack.config import Value
from dftrack.study.definition import Direction, StudyDefinition
from dftrack.study.naming import trial_name
from dftrack.study.records import Record
from dftrack.study.verdict import Verdict, judge

LIMITS: Mapping[str, tuple[float, float]] = {
    "val/roc_auc": (0, 1),
    "val/accuracy": (0, 1),
    "val/loss": (0, float("inf")),
}


@dataclass(frozen=True, slots=True)
class FinalTraining:
    """The winner trained once more, with another seed."""

    seed: int
    run_id: str
    val: float  # the study's metric after the last epoch
    tests: Mapping[str, Mapping[str, float | None]]  # test split -> metric -> value; None: undefined


@dataclass(frozen=True, slots=True)
class FailedFinal:
    """A final training that failed: it says nothing about the winner's mean, and something about its settings."""

    seed: int
    run_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """All that a report says, as plain values."""

    name: str  # of the study in its storage
    definition: StudyDefinition
    records: Sequence[Record]
    trials: int  # how many there are to be in the end
    data_digest: str
    finals: Sequence[FinalTraining] = ()
    failed_finals: Sequence[FailedFinal] = ()
    baseline: float | None = None  # the metric of the baseline's settings trained to the end; None: not known
    seconds: Mapping[int, float] = field(default_factory=dict)  # trial -> seconds that its epochs took; absent: unknown
    final_seconds: float | None = None  # of all final trainings; None: unknown
    run_ids: Mapping[int, str] = field(default_factory=dict)  # trial -> its run in MLflow
    tests_opened_before: int | None = None  # how often the test splits of this data were opened; None: unknown
    tests_opened_after: int | None = None
    started: datetime | None = None
    ended: datetime | None = None  # None: still at work
    command: str = "dftrack study"  # what goes on with this study


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the epochs went. The search only, without the final trainings."""

    epochs: int  # trained
    full_epochs: int  # that the same trials would have taken, all trained to the end
    saved_epochs: int  # that pruned trials did not train
    seconds: float | None  # of the trials whose time is known; None: of no one
    timed: int  # how many trials those are
    seconds_per_epoch: float | None
    saved_seconds: float | None  # estimate: each pruned trial's missing epochs at its own pace


def best_record(records: Sequence[Record], direction: Direction) -> Record | None:
    """The trial that won: the best value among those trained to the end; ties go to the lower number."""
    ranked = ranking(records, direction)
    return ranked[0] if ranked else None


def ranking(records: Sequence[Record], direction: Direction) -> list[Record]:
    """The trials trained to the end, the best first."""
    sign = -1 if direction == "maximize" else 1
    complete = [(sign * r.value, r.number, r) for r in records if r.status == "complete" and r.value is not None]
    return [record for _, _, record in sorted(complete, key=lambda entry: entry[:2])]


def cost(summary: StudySummary) -> Cost:
    """What the search has cost so far."""
    records, end = summary.records, summary.definition.epochs
    timed = [r for r in records if r.number in summary.seconds and r.epoch > 0]
    epochs_timed = sum(r.epoch for r in timed)
    pace = sum(summary.seconds[r.number] for r in timed) / epochs_timed if epochs_timed else None
    saved = {r.number: end - r.epoch for r in records if r.status == "pruned"}
    paces = {r.number: summary.seconds[r.number] / r.epoch for r in timed}
    known = [summary.seconds[r.number] for r in records if r.number in summary.seconds]
    return Cost(
        epochs=sum(r.epoch for r in records),
        full_epochs=len(records) * end,
        saved_epochs=sum(saved.values()),
        seconds=sum(known) if known else None,
        timed=len(known),
        seconds_per_epoch=pace,
        saved_seconds=None if pace is None else sum(left * paces.get(number, pace) for number, left in saved.items()),
    )


def trials_table(summary: StudySummary) -> dict[str, list[Value]]:
    """Columns of equal length for a CSV, a row for each trial, by number. None where something is undefined.

    number, name, status, value, epochs (trained), seconds, each searched setting by its dotted name, reason, run_id.
    """
    records = sorted(summary.records, key=lambda record: record.number)
    return {
        "number": [r.number for r in records],
        "name": [trial_name(r.number, r.params) for r in records],
        "status": [r.status for r in records],
        "value": [r.value for r in records],
        "epochs": [r.epoch for r in records],
        "seconds": [summary.seconds.get(r.number) for r in records],
        **{name: [r.params.get(name) for r in records] for name in summary.definition.space},
        "reason": [r.reason for r in records],
        "run_id": [summary.run_ids.get(r.number) for r in records],
    }


def verdict(summary: StudySummary) -> Verdict:
    """Whether the winner is better than the baseline beyond seed noise."""
    winner = best_record(summary.records, summary.definition.direction)
    if winner is not None and dict(winner.params) == summary.definition.baseline():
        return Verdict("not told apart", "the winner is the baseline itself")
    definition = summary.definition
    limits = LIMITS.get(definition.metric, (float("-inf"), float("inf")))
    return judge([final.val for final in summary.finals], summary.baseline, definition.direction, limits)
