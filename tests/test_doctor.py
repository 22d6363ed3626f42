"""What `dftrack doctor` finds and mends: each thing is broken on purpose, found, mended, and then in order for good."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import standins
from filelock import FileLock

from dftrack.errors import StoreError
from dftrack.study.case import KEY
from dftrack.study.doctor import Finding, examine, fix, studies_in
from dftrack.study.jobs import Ended, Job, Outcome, Queue
from dftrack.study.liveness import Life
from dftrack.study.naming import trial_key, trial_name
from dftrack.study.records import Reader, Record
from dftrack.study.storage import Storage
from dftrack.tracking import Run, RunRecord, Tracker, open_tracker

TEXT = (
    standins.STUDY.replace("trials = 30", "trials = 5")
    .replace("epochs = 10", "epochs = 7")
    .replace("[1, 3, 10]", "[1, 7]")
)
METRIC = "val/roc_auc"
ENDS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "optuna.db"
    Storage(path).close()
    return path


class Clinic:
    """A study with its runs, recorded as `dftrack study` does, and a doctor."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.storage = Storage(store / "optuna.db", patience=20)
        self.tracker: Tracker = open_tracker(store)
        self.lives: list[Life] = []
        self.study = standins.open_study(self.storage, design := standins.definition(TEXT), standins.mark(design))
        self.key = f"{self.study.name}-1a2b3c4d"
        self.storage.backend.set_study_user_attr(self.study.study_id, KEY, self.key)
        self.parent = self.tracker.start_run(
            "study stand-in",
            key=f"{self.key}-parent",
            settings={},
            tags={"dftrack.kind": "study", "dftrack.study": self.study.name},
        )

    def close(self) -> None:
        for life in self.lives:
            life.end()
        self.storage.close()

    def queue(self) -> Queue:
        self.lives.append(Life(self.store / "studies" / "workers"))
        return Queue(self.study, standins.definition(TEXT), self.lives[-1].worker, on_ended=self.on_ended)

    def start(self, job: Job) -> Run:
        return self.tracker.start_run(
            trial_name(job.trial, job.params),
            key=trial_key(self.key, job.trial),
            settings=dict(job.params),
            tags={"dftrack.kind": "trial", "dftrack.study": self.study.name, "dftrack.trial": str(job.trial)},
            parent=self.parent.run_id,
        )

    def train(self, queue: Queue, job: Job, outcome: Outcome | None = None) -> None:
        run = self.start(job)
        for epoch in range(job.start_epoch + 1, job.stop_epoch + 1):
            value = standins.curve(job.params, epoch)
            run.log_epoch(epoch, {METRIC: value})
            queue.report(job, epoch, value)
        if outcome and outcome.kind == "failed":
            run.finish("FAILED", reason=outcome.reason)
        elif job.is_last:
            run.finish("FINISHED")
        else:
            run.finish("KILLED", end="paused")
        queue.finish(job, outcome or Outcome("paused"))

    def on_ended(self, ended: Ended) -> None:
        for run in self.tracker.runs(tags={"dftrack.key": trial_key(self.key, ended.trial)}):
            self.tracker.close_run(run.run_id, ENDS[ended.status], end=ended.status, reason=ended.reason)

    def records(self) -> list[Record]:
        return Reader(self.storage.backend, self.study.study_id).read()

    def run(self, number: int) -> RunRecord:
        [run] = self.tracker.runs(tags={"dftrack.key": trial_key(self.key, number)})
        return run

    def checkpoint(self, name: str, key: str | None = None) -> Path:
        folder = self.store / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        (folder / "run.json").write_text(json.dumps({"key": key or name}))
        (folder / "epoch-00001.safetensors").write_bytes(bytes(1000))
        return folder

    def examine(self) -> tuple[Finding, ...]:
        return examine(self.tracker, studies_in(self.storage))

    def mend(self, *kinds: str) -> tuple[Finding, ...]:
        """Find exactly these, mend them; then all is well, and mending the same again changes nothing."""
        found = self.examine()
        assert sorted(finding.kind for finding in found) == sorted(kinds), [finding.message for finding in found]
        mended = fix(found, self.tracker, studies_in(self.storage))
        assert {(one.kind, one.trial) for one in found} <= {(one.kind, one.trial) for one in mended}
        assert self.examine() == (), "something is left"
        before = self.snapshot()
        assert fix(found, self.tracker, studies_in(self.storage)) == (), "a second mending found work"
        assert self.snapshot() == before, "a second mending changed something"
        return found

    def snapshot(self) -> object:
        runs = [run for deleted in (False, True) for run in self.tracker.runs(deleted=deleted)]
        files = sorted((str(path), path.stat().st_mtime_ns) for path in self.store.glob("checkpoints/*/*"))
        files = [(name, stamp) for name, stamp in files if not name.endswith("lock")]
        return runs, [self.tracker.metric_history(run.run_id, METRIC) for run in self.tracker.runs()], files


@pytest.fixture
def empty(store: Path, template: Path) -> Iterator[Clinic]:
    shutil.copy(template, store / "optuna.db")
    clinic = Clinic(store)
    yield clinic
    clinic.close()


@pytest.fixture(scope="module")
def searched(template_store: Path, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a whole study: 5 trials, one of them complete, one failed, the others pruned."""
    store = tmp_path_factory.mktemp("searched") / "store"
    (store / "artifacts").mkdir(parents=True)
    shutil.copy(template_store / "mlflow.db", store / "mlflow.db")
    shutil.copy(template, store / "optuna.db")
    clinic = Clinic(store)
    queue = clinic.queue()
    while isinstance(job := queue.next_job(), Job):
        failed = Outcome("failed", reason="MemoryError", traceback="Traceback: MemoryError") if job.trial == 4 else None
        clinic.train(queue, job, failed)
    clinic.parent.finish("FINISHED")
    clinic.close()
    return store


@pytest.fixture
def clinic(searched: Path, tmp_path: Path) -> Iterator[Clinic]:
    """The whole study, in a copy of its own."""
    store = Path(shutil.copytree(searched, tmp_path / "copy"))
    clinic = Clinic.__new__(Clinic)
    clinic.store, clinic.lives = store, []
    clinic.storage, clinic.tracker = Storage(store / "optuna.db", patience=20), open_tracker(store)
    [clinic.study] = studies_in(clinic.storage)
    clinic.key = str(clinic.storage.backend.get_study_user_attrs(clinic.study.study_id)[KEY])
    [parent] = clinic.tracker.runs(tags={"dftrack.kind": "study"})
    clinic.parent = clinic.tracker.open_run(parent.run_id)
    yield clinic
    clinic.close()


def of(clinic: Clinic, status: str) -> Record:
    return next(record for record in clinic.records() if record.status == status)


def test_a_sound_study_has_no_findings(clinic: Clinic) -> None:
    assert {record.status for record in clinic.records()} == {"complete", "pruned", "failed"}
    assert clinic.examine() == ()


def test_a_look_rides_out_a_storage_that_fails_for_a_moment_and_says_of_one_that_stays_away(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.tracker.resume_run(clinic.run(of(clinic, "complete").number).run_id)  # so that it looks a second time
    backend = standins.make_flaky(clinic.storage, 0, monkeypatch)
    for answers in itertools.count():
        backend.answers, backend.failures = answers, 1
        [finding] = clinic.examine()
        assert finding.kind == "zombie"
        if backend.failures:
            break
    assert answers > 5, "every reading of a look must have failed once"
    backend.answers, backend.failures, clinic.storage.patience = 0, 10**9, 0
    with pytest.raises(StoreError, match="the server closed the connection"):
        clinic.examine()


def test_an_ended_trial_that_is_running_in_mlflow_is_closed_as_optuna_says(clinic: Clinic) -> None:
    numbers = {status: of(clinic, status).number for status in ("complete", "pruned", "failed")}
    for number in numbers.values():
        clinic.tracker.resume_run(clinic.run(number).run_id)
    found = clinic.mend("zombie", "zombie", "zombie")
    assert "though nobody trains it" in found[0].message
    runs = {status: clinic.run(number) for status, number in numbers.items()}
    assert {status: (run.status, run.end) for status, run in runs.items()} == {
        "complete": ("FINISHED", "complete"),
        "pruned": ("KILLED", "pruned"),
        "failed": ("FAILED", "failed"),
    }
    assert runs["pruned"].tags["dftrack.reason"].startswith("out after epoch")
    assert runs["failed"].tags["dftrack.reason"] == "MemoryError"
    path = clinic.tracker.download(runs["failed"].run_id, "failure/traceback.txt")
    assert path.read_text() == "Traceback: MemoryError"


def test_a_wrong_status_or_end_is_set_right(clinic: Clinic) -> None:
    clinic.tracker.close_run(clinic.run(of(clinic, "complete").number).run_id, "KILLED", end="paused")
    clinic.tracker.close_run(clinic.run(of(clinic, "pruned").number).run_id, "KILLED", end="interrupted")
    clinic.tracker.close_run(clinic.run(of(clinic, "failed").number).run_id, "FAILED")  # without the reason
    found = clinic.mend("status", "status", "status")
    assert any("without the reason" in finding.message for finding in found)


def test_a_run_deleted_in_mlflow_is_restored_with_all_it_had(clinic: Clinic) -> None:
    run = clinic.run(of(clinic, "complete").number)
    clinic.tracker.open_run(run.run_id).log_text("weights", "model.txt")
    clinic.tracker.delete_run(run.run_id)
    [finding] = clinic.mend("missing")
    assert finding.mend == "restore it"
    assert clinic.run(of(clinic, "complete").number).run_id == run.run_id
    assert clinic.tracker.download(run.run_id, "model.txt").read_text() == "weights"


def test_a_run_that_is_gone_for_good_is_made_anew_from_optuna(clinic: Clinic) -> None:
    record = of(clinic, "failed")
    before = clinic.run(record.number)
    clinic.tracker.delete_run(before.run_id)
    purge(clinic.store, before.run_id)
    [finding] = clinic.mend("missing")
    assert "make one from Optuna's record" in finding.mend
    run = clinic.run(record.number)
    assert run.run_id != before.run_id
    assert (run.name, run.status, run.end, run.parent) == (before.name, "FAILED", "failed", clinic.parent.run_id)
    assert run.tags["dftrack.reason"] == "MemoryError"
    assert "without model and predictions" in run.tags["dftrack.rebuilt"], "a rebuilt run must say what it lacks"
    assert dict(clinic.tracker.metric_history(run.run_id, METRIC)) == record.curve
    assert {name: run.settings[name] for name in record.params} == {k: str(v) for k, v in record.params.items()}
    assert run.settings["train.epochs"] == "7", "the settings that all trials share belong to it"


def purge(store: Path, run_id: str) -> None:
    """As good as gone: nothing finds it by its key, deleted or not."""
    with closing(sqlite3.connect(store / "mlflow.db")) as raw, raw:
        raw.execute("update tags set value = 'purged' where run_uuid = ? and key = 'dftrack.key'", (run_id,))


def test_of_two_runs_of_a_trial_the_poorer_is_marked_as_deleted(clinic: Clinic) -> None:
    number = of(clinic, "complete").number
    rich = clinic.run(number)
    tags = {name: rich.tags[name] for name in ("dftrack.kind", "dftrack.study", "dftrack.trial")}
    poor = clinic.tracker.start_run("double", key="other", settings={}, tags=tags, parent=rich.parent)
    poor.set_tags({"dftrack.key": trial_key(clinic.key, number)})
    [finding] = clinic.mend("double")
    assert finding.run_id == poor.run_id and "as deleted" in finding.mend
    assert clinic.run(number).run_id == rich.run_id
    assert [run.run_id for run in clinic.tracker.runs(deleted=True)] == [poor.run_id], "it must stay restorable"


def test_epochs_that_the_curve_lacks_are_recorded(clinic: Clinic) -> None:
    record = of(clinic, "complete")
    run_id = clinic.run(record.number).run_id
    with closing(sqlite3.connect(clinic.store / "mlflow.db")) as raw, raw:
        raw.execute("delete from metrics where run_uuid = ? and key = ? and step in (2, 5)", (run_id, METRIC))
        raw.execute("update metrics set value = 0.1 where run_uuid = ? and key = ? and step = 7", (run_id, METRIC))
    [finding] = clinic.mend("curve")
    assert "epoch 2, 5, 7" in finding.message
    assert dict(clinic.tracker.metric_history(run_id, METRIC)) == record.curve


def test_a_wrong_value_from_a_clock_that_was_ahead_is_mended_for_good(clinic: Clinic) -> None:
    record = of(clinic, "complete")
    run_id = clinic.run(record.number).run_id
    with closing(sqlite3.connect(clinic.store / "mlflow.db")) as raw, raw:
        change = "update metrics set value = 0.1, timestamp = timestamp + 86400000"  # a day, in ms
        raw.execute(f"{change} where run_uuid = ? and key = ? and step in (2, 7)", (run_id, METRIC))
    [finding] = clinic.mend("curve")
    assert "epoch 2, 7" in finding.message
    assert dict(clinic.tracker.metric_history(run_id, METRIC)) == record.curve
    assert clinic.run(record.number).metrics[METRIC] == record.curve[7], "the run's own value is the last one"


def test_wrong_tags_of_a_trial_are_set_right(clinic: Clinic) -> None:
    run_id = clinic.run(3).run_id
    clinic.tracker.open_run(run_id).set_tags({"dftrack.trial": "5", "mlflow.parentRunId": "f" * 32})
    clinic.mend("tags")
    run = clinic.run(3)
    assert (run.tags["dftrack.trial"], run.parent) == ("3", clinic.parent.run_id)


def test_checkpoints_of_an_ended_trial_are_freed_and_counted_in_bytes(clinic: Clinic) -> None:
    folder = clinic.checkpoint(trial_key(clinic.key, 3))
    with FileLock(folder / "lock"):
        assert clinic.examine() == (), "somebody works there"
    [finding] = clinic.mend("checkpoints")
    assert "bytes" in finding.message and "1,0" in finding.message
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_runs_of_unknown_trials_and_studies_are_reported_and_left_alone(clinic: Clinic) -> None:
    tags = {"dftrack.kind": "trial", "dftrack.study": "stand-in"}
    clinic.tracker.start_run("x", key=trial_key(clinic.key, 77), settings={}, tags=tags, parent=clinic.parent.run_id)
    clinic.tracker.start_run("y", key="far-1-trial-0", settings={}, tags=tags, parent="e" * 32)
    found = clinic.examine()
    assert [(finding.kind, finding.mend) for finding in found if finding.kind == "orphan"] == [("orphan", "")] * 2
    assert "does not know" in found[-2].message and "not in this storage" in found[-1].message
    before = clinic.snapshot()
    assert fix([one for one in found if one.kind == "orphan"], clinic.tracker, studies_in(clinic.storage)) == ()
    assert clinic.snapshot() == before


def test_a_study_whose_run_is_gone_or_double_or_a_zombie_gets_one_in_order(clinic: Clinic) -> None:
    clinic.tracker.resume_run(clinic.parent.run_id)
    clinic.mend("zombie")
    run = clinic.tracker.find_run(clinic.parent.run_id)
    assert (run.status, run.end) == ("KILLED", "interrupted")
    clinic.tracker.delete_run(clinic.parent.run_id)
    clinic.mend("missing")
    assert clinic.tracker.find_run(clinic.parent.run_id).status == "KILLED", "it must be restored"
    clinic.tracker.delete_run(clinic.parent.run_id)
    purge(clinic.store, clinic.parent.run_id)
    clinic.mend("missing")
    [new] = clinic.tracker.runs(tags={"dftrack.kind": "study"})
    assert {run.parent for run in clinic.tracker.runs(tags={"dftrack.kind": "trial"})} == {new.run_id}
    double = clinic.tracker.start_run("double", key="z", settings={}, tags={"dftrack.kind": "study"})
    double.set_tags({"dftrack.key": new.tags["dftrack.key"]})
    double.finish("KILLED")
    clinic.mend("double")
    assert [run.run_id for run in clinic.tracker.runs(tags={"dftrack.kind": "study"})] == [new.run_id]


# Work that goes on, and work that was killed


def work(store: str, pipe: "multiprocessing.connection.Connection") -> None:
    """A worker in its own process, stuck in the middle of a trial."""
    clinic = Clinic(Path(store))
    queue = clinic.queue()
    job = queue.next_job()
    assert isinstance(job, Job)
    clinic.start(job)
    pipe.send(job.trial)
    time.sleep(60)


def test_a_living_workers_trial_is_left_alone_and_a_killed_ones_is_closed_until_it_goes_on(empty: Clinic) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=work, args=(str(empty.store), there))
    child.start()
    try:
        assert here.poll(30) and here.recv() == 0
        empty.tracker.close_run(empty.run(0).run_id, "KILLED", end="paused")  # wrong, but not ours to mend
        before = empty.snapshot()
        assert empty.examine() == (), "a living worker's trial must be left alone, and so must its study"
        wrong = Finding("status", empty.study.name, 0, empty.run(0).run_id, "wrong", "set it")
        assert fix([wrong], empty.tracker, studies_in(empty.storage)) == ()
        assert empty.snapshot() == before
        empty.tracker.resume_run(empty.run(0).run_id)
    finally:
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    found = empty.mend("zombie", "zombie")
    assert [finding.trial for finding in found] == [None, 0], "the study's run and the trial's"
    run = empty.run(0)
    assert (run.status, run.end) == ("KILLED", "interrupted")
    queue = empty.queue()
    job = queue.next_job()
    assert isinstance(job, Job) and (job.trial, job.attempt) == (0, 2), "mending must not take the trial from anybody"
    empty.train(queue, job)
    assert empty.run(0).run_id == run.run_id
    assert empty.examine() == ()


def test_paused_and_released_trials_wait_closed(empty: Clinic) -> None:
    queue = empty.queue()
    for number in range(2):
        job = queue.next_job()
        assert isinstance(job, Job) and job.trial == number
        if number == 0:
            empty.train(queue, job)
        else:
            empty.start(job).finish("KILLED")
            queue.finish(job, Outcome("released"))
    kept = empty.checkpoint(trial_key(empty.key, 0))
    assert empty.examine() == (), "checkpoints of a trial that waits are no leftovers"
    for number in range(2):
        empty.tracker.resume_run(empty.run(number).run_id)
    empty.mend("zombie", "zombie")
    assert [empty.run(number).end for number in range(2)] == ["paused", "interrupted"]
    assert len(list(kept.iterdir())) == 3, "its checkpoints are what it goes on from"


def test_a_rebuilt_run_of_a_waiting_trial_is_the_one_its_training_goes_on_in(empty: Clinic) -> None:
    queue = empty.queue()
    jobs = [queue.next_job()]
    assert isinstance(jobs[0], Job)
    empty.train(queue, jobs[0])
    run = empty.run(0)
    empty.tracker.delete_run(run.run_id)
    purge(empty.store, run.run_id)
    empty.mend("missing")
    rebuilt = empty.run(0)
    assert (rebuilt.status, rebuilt.end) == ("KILLED", "paused")
    assert empty.start(jobs[0]).run_id == rebuilt.run_id


# Runs outside studies


def test_a_killed_baseline_is_closed_and_a_living_one_left_alone(empty: Clinic) -> None:
    run = empty.tracker.start_run("baseline", key="uuid-1", settings={}, tags={"dftrack.kind": "baseline"})
    folder = empty.checkpoint("identity", key="uuid-1")
    empty.parent.finish("KILLED")
    with FileLock(folder / "lock"):
        assert empty.examine() == ()
        wrong = Finding("zombie", "", None, run.run_id, "wrong", "close it")
        assert fix([wrong], empty.tracker, ()) == ()
    [finding] = empty.mend("zombie")
    assert (finding.study, finding.run_id) == ("", run.run_id)
    found = empty.tracker.find_run(run.run_id)
    assert (found.status, found.end) == ("KILLED", "interrupted")
    assert (folder / "epoch-00001.safetensors").exists(), "it can go on from there"


def test_a_run_without_a_folder_is_judged_only_if_nothing_else_can_be_its_process(empty: Clinic) -> None:
    tags = {"dftrack.kind": "final", "machine.host": "far away"}
    far = empty.tracker.start_run("far", key="far", settings={}, tags=tags)
    empty.tracker.start_run("near", key="near", settings={}, tags={"dftrack.kind": "baseline"})
    empty.parent.finish("KILLED")
    folder = empty.checkpoint("other")
    with FileLock(folder / "lock"):
        assert empty.examine() == (), "the process that trains there may be the run's own"
    empty.mend("zombie")
    assert empty.tracker.find_run(far.run_id).status == "RUNNING", (
        "another machine's processes cannot be seen from here"
    )


def test_a_killed_evaluation_is_closed_with_the_truth_that_it_begins_anew(empty: Clinic) -> None:
    empty.parent.finish("KILLED")
    for key in ("with-a-folder", "without"):
        empty.tracker.start_run(key, key=key, settings={}, tags={"dftrack.kind": "evaluation"})
    lock = empty.store / "checkpoints" / "with-a-folder" / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert empty.examine() == (), "it works, and the other one may be its process's own"
    empty.mend("zombie", "zombie")
    for run in empty.tracker.runs(tags={"dftrack.kind": "evaluation"}):
        assert (run.status, run.end) == ("KILLED", "interrupted")
        assert "begins it anew" in run.tags["dftrack.reason"] and "goes on with it" not in run.tags["dftrack.reason"]


def test_checkpoints_of_a_finished_run_are_freed(empty: Clinic) -> None:
    empty.parent.finish("KILLED")
    empty.tracker.start_run("final", key="f", settings={}, tags={"dftrack.kind": "final"}).finish("FINISHED")
    folder = empty.checkpoint("f")
    [finding] = empty.mend("checkpoints")
    assert finding.study == "" and "is complete" in finding.message
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_store_without_studies_is_examined_too(store: Path) -> None:
    assert examine(open_tracker(store), ()) == ()
