"""What can be wrong with one trial's run, or with a study's own: found by comparing MLflow with what Optuna says.

Optuna owns the state; MLflow is mended from it. What somebody works on is left alone.
"""

from collections.abc import Callable, Sequence

from dftrack.config import Value
from dftrack.study.case import NOBODY, Ailment, Case, Finding, Kind, Runs, State, state_of
from dftrack.study.naming import trial_key, trial_name
from dftrack.study.records import Record
from dftrack.tracking import KEY_TAG, PARENT_TAG, REASON_TAG, RunRecord

REBUILT_TAG = "dftrack.rebuilt"


def look_at_trial(case: Case, record: Record, runs: Runs, parent: str) -> list[Ailment]:
    """What ails the run and the checkpoints of one trial. parent: run id of the study's run, "" if that is unknown."""
    if case.is_at_work(record):
        return []
    return _Trial(case, record, runs.get(trial_key(case.key, record.number), ()), parent).ailments()


class _Trial:
    """A trial that nobody works on, and the runs that claim to be its own."""

    def __init__(self, case: Case, record: Record, runs: Sequence[RunRecord], parent: str) -> None:
        self.case, self.record, self.parent = case, record, parent
        self.tracker = case.tracker
        self.key = trial_key(case.key, record.number)
        self.wanted = state_of(record)
        self.curves = {run.run_id: self._curve(run) for run in runs}
        self.runs = sorted(runs, key=self._worth)

    def ailments(self) -> list[Ailment]:
        found = self._checkpoints()
        if not self.runs:
            return [self._missing(), *found]
        run, *doubles = self.runs
        return [
            *(self._double(double) for double in doubles),
            *self._state(run),
            *self._tags(run),
            *self._epochs(run),
            *found,
        ]

    def _finding(self, kind: Kind, run_id: str, message: str, mend: str) -> Finding:
        number = self.record.number
        return Finding(kind, self.case.study.name, number, run_id, f"trial {number}: {message}", mend)

    def _curve(self, run: RunRecord) -> dict[int, float]:
        return dict(self.tracker.metric_history(run.run_id, self.case.metric)) if self.record.curve else {}

    def _worth(self, run: RunRecord) -> tuple[bool, int, bool, float, str]:
        """The best first: not made by us, tells more of the trial, is in the right state, was there before."""
        right = (run.status, run.end) == (self.wanted.status, self.wanted.end)
        return REBUILT_TAG in run.tags, -len(self.curves[run.run_id]), not right, run.start_time, run.run_id

    def _missing(self) -> Ailment:
        deleted = self.tracker.runs(tags={KEY_TAG: self.key}, deleted=True)
        if deleted:
            self.curves = {run.run_id: self._curve(run) for run in deleted}
            best = min(deleted, key=self._worth).run_id
            message = f"its run {best[:12]} was deleted in MLflow"
            return Ailment(self._finding("missing", "", message, "restore it"), lambda: self.tracker.restore_run(best))
        mend = f"make one from Optuna's record: settings, {len(self.record.curve)} epochs, {self.wanted}"
        return Ailment(
            self._finding("missing", "", f"{self.record.status} in Optuna, no run in MLflow", mend), self._make
        )

    def _make(self) -> None:
        """A run with what Optuna knows. It has the trial's key: a training that goes on goes on in it."""
        case, record = self.case, self.record
        settings: dict[str, Value] = {
            name.removeprefix("setting "): text
            for name, text in case.fingerprint.items()
            if name.startswith("setting ")
        }
        times = f"began {record.started or 'at an unknown time'}, ended {record.ended or 'not yet'}"
        run = self.tracker.start_run(
            trial_name(record.number, record.params),
            key=self.key,
            settings=settings | dict(record.params),
            tags={
                **self._own_tags(),
                "dftrack.data_digest": case.fingerprint.get("data", ""),
                REBUILT_TAG: f"from Optuna's record, without model and predictions; the trial {times}",
            },
            parent=self.parent or None,
        )
        for epoch, value in sorted(record.curve.items()):
            run.log_epoch(epoch, {case.metric: value})
        self._close(run.run_id)

    def _own_tags(self) -> dict[str, str]:
        return {
            "dftrack.kind": "trial",
            "dftrack.study": self.case.study.name,
            "dftrack.trial": str(self.record.number),
        }

    def _close(self, run_id: str) -> None:
        wanted = self.wanted
        self.tracker.close_run(run_id, wanted.status, end=wanted.end, reason=wanted.reason, trace=wanted.trace)

    def _double(self, double: RunRecord) -> Ailment:
        best = self.runs[0].run_id
        message = f"run {double.run_id[:12]} is a second one beside {best[:12]}, which tells more"
        mend = f"mark {double.run_id[:12]} as deleted (mlflow runs restore brings it back)"
        return Ailment(
            self._finding("double", double.run_id, message, mend), lambda: self.tracker.delete_run(double.run_id)
        )

    def _state(self, run: RunRecord) -> list[Ailment]:
        wanted = self.wanted
        known = State(run.status, run.end)
        unexplained = run.status == "FAILED" and bool(wanted.reason) and not run.tags.get(REASON_TAG)
        if known == State(wanted.status, wanted.end) and not unexplained:
            return []
        if run.status == "RUNNING":
            kind: Kind = "zombie"
            message = f"RUNNING in MLflow, though nobody trains it; it is {self.record.status} in Optuna"
            if self.record.status == "running":
                message = "RUNNING in MLflow, though its worker is gone"
        else:
            kind, message = "status", f"{known} in MLflow, {self.record.status} in Optuna"
            message += ", without the reason" if unexplained else ""
        return [Ailment(self._finding(kind, run.run_id, message, f"set {wanted}"), lambda: self._close(run.run_id))]

    def _tags(self, run: RunRecord) -> list[Ailment]:
        wanted = self._own_tags() | ({PARENT_TAG: self.parent} if self.parent else {})
        wrong = {name: value for name, value in wanted.items() if run.tags.get(name) != value}
        if not wrong:
            return []
        message = "wrong tags: " + ", ".join(f"{name} is {run.tags.get(name, 'not there')}" for name in wrong)
        mend = "set " + ", ".join(f"{name} to {value}" for name, value in wrong.items())
        return [
            Ailment(
                self._finding("tags", run.run_id, message, mend),
                lambda: self.tracker.open_run(run.run_id).set_tags(wrong),
            )
        ]

    def _epochs(self, run: RunRecord) -> list[Ailment]:
        """Epochs that Optuna knows and MLflow does not, or with another value."""
        known = self.curves[run.run_id]
        wrong = {epoch: value for epoch, value in sorted(self.record.curve.items()) if known.get(epoch) != value}
        if not wrong or not self.case.metric:
            return []
        epochs = ", ".join(map(str, wrong))
        message = f"the curve of {self.case.metric} lacks epoch {epochs}, or has another value than Optuna"

        def cure() -> None:
            opened = self.tracker.open_run(run.run_id)
            for epoch, value in wrong.items():
                opened.correct_epoch(epoch, {self.case.metric: value})

        return [Ailment(self._finding("curve", run.run_id, message, "record Optuna's values"), cure)]

    def _checkpoints(self) -> list[Ailment]:
        folder = self.case.folder(self.record.number)
        if not self.record.is_ended or not folder.content():
            return []
        message = f"{self.record.status}, and its checkpoints still take {folder.bytes():,} bytes"
        return [Ailment(self._finding("checkpoints", "", message, f"remove those in {folder.path}"), folder.clear)]


def look_at_parent(case: Case, records: Sequence[Record], runs: Runs) -> list[Ailment]:
    """What ails the run of the study itself; nothing while anybody works on it."""
    if case.is_anybody_at_work(records):
        return []
    name, tracker = case.study.name, case.tracker

    def finding(kind: Kind, run_id: str, message: str, mend: str) -> Finding:
        return Finding(kind, name, None, run_id, f"study {name}: {message}", mend)

    children = [run for key, found in runs.items() if key.startswith(f"{case.key}-") for run in found if run.parent]
    parents = sorted(
        runs.get(case.parent_key, ()),
        key=lambda run: (-sum(child.parent == run.run_id for child in children), run.start_time, run.run_id),
    )
    if not parents:
        if not records:
            return []
        deleted = tracker.runs(tags={KEY_TAG: case.parent_key}, deleted=True)
        if deleted:
            message = f"its run {deleted[0].run_id[:12]} was deleted in MLflow"
            return [
                Ailment(finding("missing", "", message, "restore it"), lambda: tracker.restore_run(deleted[0].run_id))
            ]
        mend = "make one; dftrack study writes its report anew"
        return [Ailment(finding("missing", "", "it has no run in MLflow", mend), lambda: _make_parent(case, children))]
    best, *doubles = parents
    found = []
    for double in doubles:
        message = f"run {double.run_id[:12]} is a second one beside {best.run_id[:12]}, which has more trials"
        mend = (
            f"mark {double.run_id[:12]} as deleted (mlflow runs restore brings it back), give its trials to the other"
        )
        found.append(Ailment(finding("double", double.run_id, message, mend), _merge(case, double, best, children)))
    if best.status == "RUNNING":
        message = "RUNNING in MLflow, though nobody works on it"
        wanted = State("KILLED", "interrupted", NOBODY)
        found.append(
            Ailment(
                finding("zombie", best.run_id, message, f"set {wanted}"),
                lambda: tracker.close_run(best.run_id, wanted.status, end=wanted.end, reason=wanted.reason),
            )
        )
    return found


def _make_parent(case: Case, children: Sequence[RunRecord]) -> None:
    run = case.tracker.start_run(
        f"study {case.study.name}",
        key=case.parent_key,
        settings={},
        tags={
            "dftrack.kind": "study",
            "dftrack.study": case.study.name,
            "dftrack.data_digest": case.fingerprint.get("data", ""),
            REBUILT_TAG: "from Optuna's record, without the report",
        },
    )
    _adopt(case, run.run_id, children)
    run.finish("KILLED", end="interrupted", reason=NOBODY)


def _merge(case: Case, double: RunRecord, best: RunRecord, children: Sequence[RunRecord]) -> Callable[[], None]:
    def cure() -> None:
        _adopt(case, best.run_id, [child for child in children if child.parent == double.run_id])
        case.tracker.delete_run(double.run_id)

    return cure


def _adopt(case: Case, parent: str, children: Sequence[RunRecord]) -> None:
    for child in children:
        case.tracker.open_run(child.run_id).set_tags({PARENT_TAG: parent})
