"""How far a study has come: read while others write, after a kill, and when nobody works."""

import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import standins

from dftrack.errors import StoreError
from dftrack.study import status as module
from dftrack.study.case import KEY
from dftrack.study.jobs import Job, Outcome, Queue
from dftrack.study.liveness import Life, Watch
from dftrack.study.naming import final_key
from dftrack.study.opening import OpenStudy, latest
from dftrack.study.records import CLAIM
from dftrack.study.status import StudyStatus, status
from dftrack.study.storage import Storage
from dftrack.tracking import Tracker, open_tracker

DESIGN = standins.definition(standins.STUDY.replace("trials = 30", "trials = 9"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "optuna.db"
    Storage(path).close()
    return path


@pytest.fixture
def study(template: Path, tmp_path: Path) -> Iterator[OpenStudy]:
    opened = standins.opened(shutil.copy(template, tmp_path / "optuna.db"), DESIGN)
    yield opened
    opened.storage.close()


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path / "workers")
    yield life
    life.end()


@pytest.fixture
def queue(study: OpenStudy, life: Life) -> Queue:
    return Queue(study, DESIGN, life.worker)


def do(queue: Queue) -> None:
    job = queue.next_job()
    assert isinstance(job, Job)
    queue.finish(job, standins.train(job, lambda epoch, value: queue.report(job, epoch, value)))


def test_a_study_that_has_not_begun_has_no_times_and_nothing_best(study: OpenStudy, tracker: Tracker) -> None:
    now = status(study, DESIGN, tracker)
    assert (now.name, now.total, now.ended, now.epochs_spent, now.epochs_planned) == ("stand-in", 9, 0, 0, 22)
    assert now.counts == {"running": 0, "paused": 0, "complete": 0, "pruned": 0, "failed": 0}
    assert (now.best, now.seconds_elapsed, now.seconds_left, now.workers) == (None, None, None, ())
    assert (now.finals_done, now.finals_planned, now.tests_opened) == (0, 3, 0)
    assert now.begun_with == study.workers() == 1


def test_a_worker_at_work_is_shown_with_its_trial_and_epoch(
    study: OpenStudy, queue: Queue, life: Life, tracker: Tracker
) -> None:
    do(queue)
    job = queue.next_job()
    assert isinstance(job, Job)
    queue.report(job, 1, 0.99)
    now = status(study, DESIGN, tracker)
    [worker] = now.workers
    assert (worker.name, worker.trial, worker.epoch, worker.stop_epoch) == (life.worker.name, 1, 1, 1)
    assert worker.machine == life.worker.machine.split("/")[0] and worker.seconds_silent == 0
    assert (now.counts["running"], now.counts["paused"], now.interrupted, now.epochs_spent) == (1, 1, 0, 2)
    assert now.best and (now.best.trial, now.best.value, now.best.epoch, now.best.params) == (1, 0.99, 1, job.params)
    assert now.seconds_elapsed is not None and now.seconds_left is not None
    assert now.seconds_left == pytest.approx(now.seconds_elapsed / 2 * 20)


def test_a_worker_that_was_killed_is_not_alive_and_its_trial_waits(
    study: OpenStudy, queue: Queue, life: Life, tracker: Tracker
) -> None:
    do(queue)
    assert isinstance(queue.next_job(), Job)
    life._lock.release()  # what the system does at kill -9
    now = status(study, DESIGN, tracker)
    assert (now.workers, now.interrupted, now.counts["running"]) == ((), 1, 1)
    assert now.seconds_left is None, "nobody works: there is no pace to go by"


def test_a_worker_of_another_machine_is_judged_by_an_observer_that_looks_again(
    study: OpenStudy, queue: Queue, tracker: Tracker
) -> None:
    job = queue.next_job()
    assert isinstance(job, Job)
    backend = study.storage.backend
    trial = backend.get_trial_id_from_study_id_trial_number(study.study_id, 0)
    claim = backend.get_trial(trial).user_attrs[CLAIM]
    backend.set_trial_user_attr(trial, CLAIM, {**claim, "machine": "far/1", "life": "/nowhere"})
    watch = Watch(grace=30)
    [worker] = status(study, DESIGN, tracker, watch=watch).workers
    assert worker.machine == "far"
    time.sleep(0.2)
    silent = status(study, DESIGN, tracker, watch=watch).workers[0].seconds_silent
    assert silent >= 0.2
    queue.beat(job)
    assert status(study, DESIGN, tracker, watch=watch).workers[0].seconds_silent < silent, "it gave a sign of life"
    watch._grace = 0.0  # any silence is too long now
    assert status(study, DESIGN, tracker, watch=watch).workers == ()


def test_an_ended_study_has_its_winner_its_duration_and_its_finals(
    study: OpenStudy, queue: Queue, tracker: Tracker
) -> None:
    while isinstance(job := queue.next_job(), Job):
        if job.trial == 4:
            queue.finish(job, Outcome("failed", reason="MemoryError"))
        else:
            queue.finish(job, standins.train(job, lambda epoch, value, job=job: queue.report(job, epoch, value)))  # type: ignore[misc]
    study.storage.backend.set_study_user_attr(study.study_id, KEY, "stand-in-1a2b3c4d")
    for seed in (1, 2, 3):
        winner = str(status(study, DESIGN, tracker).best.trial if seed < 3 else 99)  # type: ignore[union-attr]
        tags = {"dftrack.kind": "final", "dftrack.study": study.name, "dftrack.trial": winner}
        key = final_key("stand-in-1a2b3c4d", int(winner), seed)
        run = tracker.start_run(f"final {seed}", key=key, settings={}, tags=tags)
        if seed < 3:
            run.log_metrics({"val/roc_auc": 0.9, "test-dev/roc_auc": 0.8} if seed == 1 else {"val/roc_auc": 0.9})
            run.finish("FINISHED")
    now = status(study, DESIGN, tracker)
    assert (now.ended, now.counts["failed"], now.counts["complete"]) == (9, 1, 1)
    assert now.best and now.best.epoch == 10
    assert now.seconds_left == 0
    assert now.seconds_elapsed == pytest.approx(status(study, DESIGN, tracker).seconds_elapsed), "the clock has stopped"
    assert (now.finals_done, now.finals_planned, now.tests_opened) == (2, 3, 1)
    tags = {"dftrack.kind": "final", "dftrack.study": study.name, "dftrack.trial": "99"}
    key = final_key("stand-in-1a2b3c4d", 99, 1)
    tracker.start_run("of an earlier winner", key=key, settings={}, tags=tags).finish("FINISHED")
    assert status(study, DESIGN, tracker).finals_done == 2, "an earlier winner's trainings are not the winner's"
    more = replace(DESIGN, pruning=None)
    assert status(study, more, tracker).epochs_planned == 90


def test_finals_of_a_study_of_the_same_name_in_another_storage_are_not_this_ones(
    study: OpenStudy, queue: Queue, tracker: Tracker
) -> None:
    while isinstance(job := queue.next_job(), Job):
        queue.finish(job, standins.train(job, lambda epoch, value, job=job: queue.report(job, epoch, value)))  # type: ignore[misc]
    best = status(study, DESIGN, tracker).best
    assert best
    tags = {"dftrack.kind": "final", "dftrack.study": study.name, "dftrack.trial": str(best.trial)}
    for key in ("stand-in-1a2b3c4d", "stand-in-99999999"):
        run = tracker.start_run("final", key=final_key(key, best.trial, 1), settings={}, tags=tags)
        run.log_metrics({"test-dev/roc_auc": 0.8})
        run.finish("FINISHED")
    assert status(study, DESIGN, tracker).finals_done == 0, "a study that has no key has no runs"
    study.storage.backend.set_study_user_attr(study.study_id, KEY, "stand-in-1a2b3c4d")
    now = status(study, DESIGN, tracker)
    assert (now.finals_done, now.tests_opened) == (1, 1), "those of the other study were counted"


def test_reading_takes_no_lock_and_writes_nothing(study: OpenStudy, queue: Queue, tracker: Tracker) -> None:
    do(queue)
    other = Storage(study.storage.place)
    try:
        before = Path(study.storage.place).stat().st_mtime_ns, tracker.runs()
        with other.lock():
            began = time.monotonic()
            assert isinstance(status(study, DESIGN, tracker), StudyStatus)
            assert time.monotonic() - began < 5
        assert (Path(study.storage.place).stat().st_mtime_ns, tracker.runs()) == before
    finally:
        other.close()


def test_a_look_rides_out_a_storage_that_fails_for_a_moment_and_says_of_one_that_stays_away(
    study: OpenStudy, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = standins.make_flaky(study.storage, 0, monkeypatch)
    for answers in itertools.count():
        backend.answers, backend.failures = answers, 1
        assert status(latest(study.storage, "stand-in"), DESIGN, tracker).total == 9
        if backend.failures:
            break
    assert answers > 5, "every reading of a look must have failed once"
    backend.answers, backend.failures, study.storage.patience = 0, 10**9, 0
    for look in (lambda: latest(study.storage, "stand-in"), lambda: status(study, DESIGN, tracker)):
        with pytest.raises(StoreError, match="the server closed the connection"):
            look()


def test_what_is_minimised_is_best_when_it_is_least(study: OpenStudy, queue: Queue, tracker: Tracker) -> None:
    do(queue)
    job = queue.next_job()
    assert isinstance(job, Job)
    queue.report(job, 1, 0.01)
    least = replace(DESIGN, metric="val/loss", direction="minimize")
    best = status(study, least, tracker).best
    assert best and best.value == 0.01


def test_the_time_left_is_the_work_left_at_the_pace_so_far() -> None:
    assert module._left(100.0, 20, 71, over=False, working=True) == pytest.approx(255.0)
    assert module._left(100.0, 20, 71, over=False, working=False) is None
    assert module._left(100.0, 0, 71, over=False, working=True) is None
    assert module._left(100.0, 60, 71, over=True, working=False) == 0.0


def test_the_clock_goes_from_the_first_begin_to_the_last_end() -> None:
    noon = datetime(2026, 11, 22, 12)
    record = module.Record(0, "complete", {}, {}, None, None, "", "", "", noon, noon + timedelta(seconds=90))
    later = replace(record, number=1, started=noon + timedelta(seconds=60), ended=noon + timedelta(seconds=150))
    assert module._elapsed([later, record], ended=True) == 150.0
    assert module._elapsed([], ended=False) is None
