"""Workers: several processes, any of which may die at any moment, and a study that comes out whole."""

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import standins
from postgres import postgres_server

from dftrack.errors import DataError, DeviceError, DftrackError, Interrupted, SettingError, StoreError, TrainingError
from dftrack.runtime import catch_stop_requests
from dftrack.study import worker, workers
from dftrack.study.events import Event, Finished, Left, Progress, Started, TrialEnded, WorkerDied
from dftrack.study.jobs import Ended
from dftrack.study.opening import OpenStudy, load, reopen
from dftrack.study.records import Reader, Record
from dftrack.study.storage import Storage
from dftrack.study.worker import Train
from dftrack.study.workers import environments, find_gpus, how_many_pay, run_workers

FLAT = """
name = "stand-in"
sampler = "random"
[base]
train.epochs = 2
[space]
train.learning_rate = { low = 1e-5, high = 1e-2, log = true }
model.dropout = { low = 0.0, high = 0.7 }
"""


def ended(place: str | Path) -> list[Record]:
    storage = Storage(place)
    study = reopen(storage, "stand-in")
    try:
        assert all(trial.state.is_finished() for trial in load(study).trials), "a trial is RUNNING or WAITING"
        return Reader(storage.backend, study.study_id).read()
    finally:
        storage.close()


def assert_sound(records: list[Record], count: int) -> None:
    assert [record.number for record in records] == list(range(count)), "lost or doubled"
    assert len({tuple(record.params.items()) for record in records}) == count, "the same configuration twice"
    for record in records:
        assert sorted(record.curve) == list(range(1, record.epoch + 1)), f"a gap in the curve of {record.number}"
        for epoch, value in record.curve.items():
            assert value == standins.curve(dict(record.params), epoch)


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OpenStudy]:
    text, trials = getattr(request, "param", (standins.STUDY, 9))
    study = standins.opened(tmp_path / "optuna.db", standins.definition(text), trials=trials)
    yield study
    study.storage.close()


def test_two_workers_share_a_study_and_say_what_they_do(opened: OpenStudy, tmp_path: Path) -> None:
    events: list[Event] = []
    work = standins.work(opened, standins.definition(), tmp_path)
    marks = tmp_path / "marks"
    marks.mkdir()
    work = dataclasses.replace(work, on_ended=partial(leave_a_mark, str(marks)))
    reason = run_workers(work, 2, events.append, gpus=())
    assert reason == "all 9 trials have ended"
    records = ended(tmp_path / "optuna.db")
    assert_sound(records, 9)
    assert Counter(record.status for record in records) == {"complete": 1, "pruned": 8}
    kinds = Counter(type(event) for event in events)
    assert kinds[Progress] == sum(record.epoch for record in records) == 22, "an epoch was trained twice or not told"
    assert kinds[Finished] == 2
    assert kinds[TrialEnded] == 9
    assert sorted(int(file.name) for file in marks.iterdir()) == list(range(9)), "each end must be told to the callback"
    assert {event.worker for event in events if isinstance(event, Started)} <= {0, 1}
    assert not list((tmp_path / "workers").iterdir()), "workers that ended well leave no file"


def leave_a_mark(folder: str, ended: Ended) -> None:
    (Path(folder) / str(ended.trial)).touch(exist_ok=False)


def test_an_accident_ends_its_trial_and_not_the_study(opened: OpenStudy, tmp_path: Path) -> None:
    work = dataclasses.replace(standins.work(opened, standins.definition(), tmp_path), train=standins.train_badly)
    events: list[Event] = []
    run_workers(work, 2, events.append, gpus=())
    records = ended(tmp_path / "optuna.db")
    reasons = {record.number: record.reason for record in records if record.status == "failed"}
    assert reasons == {
        1: "MemoryError",
        2: "TrainingError: val/roc_auc is nan after epoch 1: the trial cannot be judged",
        3: "RuntimeError: CUDA error: out of memory",
        4: "its worker died 3 times",
        5: "SystemExit: 3",
        6: "no value was reported after epoch 1",
        7: "val/roc_auc ended as inf",
    }
    assert "in train_badly" in records[3].traceback
    assert [event.exit_code for event in events if isinstance(event, WorkerDied)] == [-signal.SIGKILL] * 3
    assert Counter(record.status for record in records) == {"failed": 7, "complete": 1, "pruned": 1}


@pytest.mark.parametrize("opened", [(FLAT, 24)], indirect=True)
def test_the_total_is_exact_with_three_workers(opened: OpenStudy, tmp_path: Path) -> None:
    run_workers(standins.work(opened, standins.definition(FLAT), tmp_path), 3, gpus=())
    records = ended(tmp_path / "optuna.db")
    assert_sound(records, 24)
    assert all(record.status == "complete" for record in records)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("opened", [(FLAT, 240)], indirect=True)
def test_eight_workers_do_exactly_240_trials_on_sqlite(opened: OpenStudy, tmp_path: Path) -> None:
    events: list[Event] = []
    run_workers(standins.work(opened, standins.definition(FLAT), tmp_path), 8, events.append, gpus=())
    records = ended(tmp_path / "optuna.db")
    assert_sound(records, 240)
    assert all(record.status == "complete" for record in records)
    assert not any(isinstance(event, WorkerDied) for event in events)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("count", "trials"),
    [(3, 12), pytest.param(8, 240, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_the_total_is_exact_on_postgresql(count: int, trials: int, tmp_path: Path) -> None:
    with postgres_server() as server:
        study = standins.opened(server.url, standins.definition(FLAT), trials=trials)
        events: list[Event] = []
        run_workers(standins.work(study, standins.definition(FLAT), tmp_path), count, events.append, gpus=())
        study.storage.close()
        records = ended(server.url)
    assert_sound(records, trials)
    assert all(record.status == "complete" for record in records)
    assert not any(isinstance(event, WorkerDied) for event in events)


# Death and stopping, with the command in a process of its own


def command(folder: Path, count: int, seconds: float) -> "subprocess.Popen[bytes]":
    script = str(Path(standins.__file__))
    arguments = [str(folder / "optuna.db"), str(folder), str(count), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, script, *arguments], env=environment, start_new_session=True)


def epochs_done(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in (folder / "notes").glob("*.txt"))


def wait_for_work(folder: Path, process: "subprocess.Popen[bytes]", epochs: int) -> None:
    deadline = time.monotonic() + 60
    while epochs_done(folder) < epochs and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def workers_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.timeout(600)
def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    rng = random.Random(5)
    process = command(tmp_path, 4, seconds=0.1)
    kills: Counter[str] = Counter()
    while kills.total() < 20:
        wait_for_work(tmp_path, process, epochs_done(tmp_path) + rng.randrange(3))
        time.sleep(rng.random() / 10)
        if process.poll() is not None:
            assert process.returncode in (0, -signal.SIGKILL), "the command failed by itself"
            if process.returncode == 0:
                break
            process = command(tmp_path, 4, seconds=0.1)
            continue
        crew = workers_of(process)
        if kills.total() % 7 == 6:
            process.kill()
            process.wait()
            kills["parent"] += 1
        elif crew:
            rng.choice(crew).kill()
            kills["worker"] += 1
    process.kill()
    process.wait()
    last = command(tmp_path, 4, seconds=0.0)
    assert last.wait(timeout=300) == 0
    records = ended(tmp_path / "optuna.db")
    assert_sound(records, 30)
    failed = [record for record in records if record.status == "failed"]
    assert all(record.reason == "its worker died 3 times" for record in failed)
    assert Counter(record.status for record in records)["complete"] >= 1
    again = epochs_done(tmp_path) - sum(record.epoch for record in records)
    assert again <= kills.total() * 4 + 4, f"{again} epochs were trained again after {kills}"
    assert kills.total() == 20, f"the study ended after {kills}: make the stand-in slower"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_lets_go_of_its_trials_and_can_go_on(how: signal.Signals, tmp_path: Path) -> None:
    process = command(tmp_path, 2, seconds=0.2)
    wait_for_work(tmp_path, process, 3)
    crew = workers_of(process)
    process.send_signal(how)
    code = process.wait(timeout=60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    _, alive = psutil.wait_procs(crew, timeout=60)
    assert not alive, "workers must not outlive their parent"
    storage = Storage(tmp_path / "optuna.db")
    study = reopen(storage, "stand-in")
    records = Reader(storage.backend, study.study_id).read()
    storage.close()
    assert records
    for record in records:
        assert record.claim is not None
        assert record.claim.state in ("released", "paused") or record.is_ended, "a safe point lets go of the trial"
        assert record.claim.deaths == 0, "being stopped is no death"
    if how == signal.SIGTERM:
        assert command(tmp_path, 2, seconds=0.0).wait(timeout=120) == 0
        assert_sound(ended(tmp_path / "optuna.db"), 30)
        assert epochs_done(tmp_path) == 71, "what was trained before the stop must not be trained again"


def test_the_parents_word_after_a_signal_of_ones_own_is_no_second_request() -> None:
    """systemd and Slurm send SIGTERM to all processes; a second request would cut the saving short."""
    parent, pipe = multiprocessing.Pipe()
    for signal_comes_first in (True, False):
        with catch_stop_requests() as requests:
            if signal_comes_first:
                os.kill(os.getpid(), signal.SIGTERM)
            parent.send("stop")
            worker._obey(pipe, requests)
            if not signal_comes_first:
                os.kill(os.getpid(), signal.SIGTERM)
        assert requests.exit_code == 143
    parent.close()
    with catch_stop_requests() as alone:
        worker._obey(pipe, alone)
    assert alone.exit_code == 143, "the death of the parent is a request as well"
    pipe.close()


def test_a_request_after_the_last_look_is_not_swallowed(
    opened: OpenStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the final trainings begin, and a person asks in vain."""

    def asked_at_the_last_moment(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "all trials have ended"

    monkeypatch.setattr(workers._Crew, "start", lambda *_: None)
    monkeypatch.setattr(workers, "_watch", asked_at_the_last_moment)
    with pytest.raises(Interrupted) as caught:
        run_workers(standins.work(opened, standins.definition(), tmp_path), 1, gpus=())
    assert caught.value.exit_code == 143


def test_workers_that_die_one_after_the_other_end_the_command(
    opened: OpenStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MOST_DEATHS_IN_A_ROW", 2)
    work = dataclasses.replace(standins.work(opened, standins.definition(), tmp_path), train=standins.die)
    with pytest.raises(TrainingError, match=r"3 workers died one after the other \(exit code -9\)") as caught:
        run_workers(work, 1, gpus=())
    assert "fewer --workers" in caught.value.hint


def test_a_storage_that_fails_ends_the_command_with_its_reason(opened: OpenStudy, tmp_path: Path) -> None:
    work = dataclasses.replace(standins.work(opened, standins.definition(), tmp_path), study="gone")
    with pytest.raises(StoreError, match="there is no study 'gone'"):
        run_workers(work, 1, gpus=())


@pytest.mark.parametrize(
    ("train", "error", "words"),
    [
        (standins.train_without_data, DataError, "there is no folder 'faces'"),
        (standins.train_without_device, DeviceError, "sees no CUDA card"),
    ],
)
def test_data_or_a_device_that_are_not_there_stop_the_study_and_fail_no_trial(
    opened: OpenStudy, tmp_path: Path, train: Train, error: type[DftrackError], words: str
) -> None:
    work = dataclasses.replace(standins.work(opened, standins.definition(), tmp_path), train=train)
    with pytest.raises(error, match=words) as caught:
        run_workers(work, 1, gpus=())
    assert caught.value.hint, "the hint must come through as well"
    [record] = Reader(opened.storage.backend, opened.study_id).read()
    assert record.claim is not None
    assert (record.status, record.claim.state, record.claim.deaths) == ("running", "released", 0)
    run_workers(standins.work(opened, standins.definition(), tmp_path), 1, gpus=())
    assert_sound(ended(tmp_path / "optuna.db"), 9)


def test_a_trial_that_another_process_still_holds_is_given_back_and_ends_no_worker(
    opened: OpenStudy, tmp_path: Path
) -> None:
    work = standins.work(opened, standins.definition(), tmp_path)
    train = partial(standins.train_what_another_holds, notes=str(tmp_path))
    events: list[Event] = []
    run_workers(dataclasses.replace(work, train=train, busy=0.1), 1, events.append, gpus=())
    records = ended(tmp_path / "optuna.db")
    assert_sound(records, 9)
    assert [event.trial for event in events if isinstance(event, Left) and event.how == "released"] == [1, 1]
    assert not any(isinstance(event, WorkerDied) for event in events)
    assert records[1].claim is not None
    assert records[1].claim.deaths == 0, "to give back is no death"


def test_a_card_that_answers_nothing_any_more_costs_a_process_and_no_trial(opened: OpenStudy, tmp_path: Path) -> None:
    work = standins.work(opened, standins.definition(), tmp_path)
    events: list[Event] = []
    train = partial(standins.train_on_a_card_that_breaks, notes=str(tmp_path))
    run_workers(dataclasses.replace(work, train=train), 1, events.append, gpus=())
    assert_sound(records := ended(tmp_path / "optuna.db"), 9)
    assert not [record.number for record in records if record.status == "failed"]
    assert [event.exit_code for event in events if isinstance(event, WorkerDied)] == [worker.EXIT_BROKEN]


def test_ctrl_c_while_a_worker_starts_is_held_back_until_it_can_hear_of_it(opened: OpenStudy, tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=worker.run_worker, args=(standins.work(opened, standins.definition(), tmp_path), 0, theirs)
    )
    with workers._no_interrupt():
        process.start()
    assert process.pid
    os.kill(process.pid, signal.SIGINT)  # Python itself has hardly begun
    process.join(60)
    ours.close()
    assert process.exitcode == 143, "it stops as it is told to, without a traceback (that would be -2)"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "it must not be held back for ever"


def test_no_workers_are_refused(opened: OpenStudy, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--workers must be at least 1, got 0"):
        run_workers(standins.work(opened, standins.definition(), tmp_path), 0)


def test_gpus_are_given_in_turn_and_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = environments(3, ("0", "1"), processors=8)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0", "1", "0"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"2"}
    assert environments(4, (), processors=2)[0]["OMP_NUM_THREADS"] == "1", "never no thread at all"
    assert "CUDA_VISIBLE_DEVICES" not in environments(1, ())[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert find_gpus() == ("2", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == ()


def test_as_many_workers_are_started_as_the_machine_is_best_used_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in workers.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1, 2")
    memory = {"available": 100 << 30}
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(**memory))
    assert how_many_pay("cuda") == 3, "one for each card"
    for cores, count in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        assert how_many_pay("cpu") == count
    memory["available"] = 9 << 30
    assert how_many_pay("cpu") == 2, "each needs memory of its own"
    memory["available"] = 1 << 30
    assert how_many_pay("cpu") == 1
    memory["available"] = 100 << 30
    limits = (tmp_path / "memory.max", tmp_path / "missing")
    monkeypatch.setattr(workers, "MEMORY_LIMITS", limits)
    limits[0].write_text("max\n")
    assert how_many_pay("cpu") == 4
    limits[0].write_text(f"{9 << 30}\n")
    assert how_many_pay("cpu") == 2, "a container may have less than its machine"
    limits[0].unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert how_many_pay("cpu") == 1, "who says how many threads a process has is taken at his word"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert how_many_pay("cuda") == 1, "a card that the driver does not name is one"
