"""Where studies live: made, continued, refused; and the queue's promises, one by one."""

import dataclasses
import errno
import fcntl
import gc
import multiprocessing
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
import standins
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from postgres import Server, postgres_server

from dftrack.errors import SettingError, StoreError, TrainingError
from dftrack.study import liveness
from dftrack.study.fingerprint import fingerprint
from dftrack.study.jobs import Done, Ended, Job, Outcome, Queue, Superseded, Wait
from dftrack.study.liveness import Life, Watch, is_free
from dftrack.study.opening import OpenStudy, StudyChanged, latest, load, open_study, reopen
from dftrack.study.records import Claim, Reader, Record
from dftrack.study.storage import Storage, read_url

GRID = """
name = "grid"
sampler = "grid"
trials = 100
enqueue = "baseline"
[base]
train.epochs = 2
[space]
model.dropout = [0.1, 0.5]
model.kernel_size = [3, 5]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage made once: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("template") / "optuna.db"
    Storage(path).close()
    return path


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path / "optuna.db"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as running:
        yield running


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test opens, so that no connection is left for the collector to warn of."""
    made: list[Storage] = []
    real = Storage.__init__

    def remember(self: Storage, *args: object, **options: object) -> None:
        real(self, *args, **options)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(Storage, "__init__", remember)
    yield
    for storage in made:
        storage.close()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[list[Life]]:
    made: list[Life] = []
    yield made
    for life in made:
        life.end()


def queue(opened: OpenStudy, lives: list[Life], folder: Path, text: str = standins.STUDY, **options: object) -> Queue:
    lives.append(Life(folder / "workers"))
    return Queue(opened, standins.definition(text), lives[-1].worker, **options)  # type: ignore[arg-type]


def do(queue: Queue, job: Job | Wait | Done) -> None:
    """Train the job as the stand-in does, and give it back."""
    assert isinstance(job, Job), job
    queue.finish(job, standins.train(job, lambda epoch, value: queue.report(job, epoch, value)))


def records(opened: OpenStudy) -> list[Record]:
    return Reader(opened.storage.backend, opened.study_id).read()


def finish_all(queue: Queue) -> Done:
    while isinstance(job := queue.next_job(), Job):
        do(queue, job)
    assert isinstance(job, Done), job
    return job


# Opening


@contextmanager
def plain_optuna(place: Path) -> Iterator[RDBStorage]:
    """The SQLite file at `place` as the ordinary library opens it."""
    storage = RDBStorage(f"sqlite:///{place}")
    yield storage
    storage.engine.dispose()


def test_a_storage_is_made_whole_and_with_a_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "optuna.db"
    Storage(path).close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not list(path.parent.glob(".*")), "the temporary file must be gone"


@pytest.mark.parametrize("name", ["a%20b", "a?b=c", "a#b", "a b+c", "{name}"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "optuna.db"
    opened = standins.opened(path, standins.definition())
    assert reopen(Storage(opened.storage.url), "stand-in").trials() == 30, "workers open it by its URL"
    assert path.exists() and [folder.name for folder in tmp_path.iterdir()] == [name]


def _open_at(start: float, place: str, answers: "multiprocessing.Queue[object]") -> None:
    time.sleep(max(0.0, start - time.time()))
    try:
        answers.put(standins.opened(place, standins.definition()).is_new)
    except Exception as error:
        answers.put(repr(error))


def test_several_starts_at_the_same_moment_make_one_storage_and_one_study(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[object] = context.Queue()
    start = time.time() + 0.3
    processes = [context.Process(target=_open_at, args=(start, str(tmp_path / "o.db"), answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(map(str, found)) == ["False", "False", "False", "True"]


def test_a_maker_killed_half_way_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    code = (
        "import os, sys; from dftrack.study import storage; from dftrack.study.storage import Storage\n"
        "real = storage.RDBStorage\n"
        "def killed(*a, **k): real(*a, **k); os.kill(os.getpid(), 9)\n"
        "storage.RDBStorage = killed\n"
        "Storage(sys.argv[1])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -9
    assert not path.exists()
    Storage(path, patience=5).close()
    assert not list(tmp_path.glob(".*.tmp*")), "what the killed maker left must be cleared away"


def test_the_same_study_is_continued_and_a_changed_one_refused_line_by_line(place: Path) -> None:
    study = standins.definition()
    first = standins.opened(place, study)
    again = standins.opened(place, study)
    assert (first.is_new, again.is_new, again.name) == (True, False, "stand-in")
    changed = standins.definition(standins.STUDY.replace("high = 0.7", "high = 0.6"))
    with pytest.raises(StudyChanged, match=r"space model\.dropout: was 0 to 0\.7, is 0 to 0\.6") as caught:
        standins.opened(place, changed)
    assert "--new" in caught.value.hint
    with pytest.raises(StudyChanged, match="data: was"):
        open_study(Storage(place), study, fingerprint(study, "e" * 32))


def test_a_fresh_start_gets_the_next_number_and_is_the_one_continued(place: Path) -> None:
    study = standins.definition()
    assert [standins.opened(place, study, new=True).name for _ in range(3)] == ["stand-in", "stand-in-2", "stand-in-3"]
    assert standins.opened(place, study).name == "stand-in-3"


def test_a_study_file_called_like_a_fresh_start_of_another_is_a_study_of_its_own(place: Path) -> None:
    plain, second = (standins.definition(standins.STUDY.replace("stand-in", name)) for name in ("cnn", "cnn-2"))
    second = second.revised({"train.batch_size": 16})
    assert [standins.opened(place, one).name for one in (plain, second, plain, second)] == ["cnn", "cnn-2"] * 2
    assert [latest(Storage(place), name).name for name in ("cnn", "cnn-2")] == ["cnn", "cnn-2"]
    assert standins.opened(place, plain, new=True).name == "cnn-3", "the name cnn-2 is taken"
    assert [standins.opened(place, one).name for one in (plain, second)] == ["cnn-3", "cnn-2"]
    assert latest(Storage(place), "cnn").name == "cnn-3"


def test_a_fresh_start_that_came_first_leaves_a_study_file_of_its_name_the_next_one(place: Path) -> None:
    plain, second = (standins.definition(standins.STUDY.replace("stand-in", name)) for name in ("cnn", "cnn-2"))
    assert [standins.opened(place, plain, new=True).name for _ in range(2)] == ["cnn", "cnn-2"]
    with pytest.raises(StoreError, match="no study 'cnn-2'"):
        latest(Storage(place), "cnn-2")
    assert standins.opened(place, second).name == "cnn-2-2"
    assert [latest(Storage(place), name).name for name in ("cnn", "cnn-2")] == ["cnn-2", "cnn-2-2"]


def test_a_study_that_does_not_say_whose_it_is_counts_by_its_name_until_it_is_continued(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, second = (standins.definition(standins.STUDY.replace("stand-in", name)) for name in ("cnn", "cnn-2"))
    second = second.revised({"train.batch_size": 16})
    with monkeypatch.context() as before:
        before.setattr("dftrack.study.opening.OWNER", "of an older version")
        assert [standins.opened(place, one, new=True).name for one in (plain, plain)] == ["cnn", "cnn-2"]
    assert standins.opened(place, plain).name == "cnn-2"
    assert standins.opened(place, second).name == "cnn-2-2", "by now the other one's is known"


def test_a_study_of_the_same_name_by_another_program_is_refused(place: Path) -> None:
    with plain_optuna(place) as storage:
        other = optuna.create_study(storage=storage, study_name="stand-in", direction="maximize")
        other.add_trial(optuna.trial.create_trial(value=1.0))
        with pytest.raises(StoreError, match="was not made by dftrack study"):
            standins.opened(place, standins.definition())
        assert len(other.trials) == 1, "it must be left alone"


def test_a_study_whose_maker_was_killed_before_its_fingerprint_is_continued(place: Path) -> None:
    with plain_optuna(place) as storage:
        optuna.create_study(storage=storage, study_name="stand-in", direction="maximize")
    opened = standins.opened(place, standins.definition(), workers=3)
    assert opened.trials() == 30
    assert opened.workers() == 3
    assert standins.opened(place, standins.definition()).name == "stand-in"


def test_no_trials_are_refused_before_anything_is_made(place: Path) -> None:
    with pytest.raises(SettingError, match="--trials must be at least 1, got 0"):
        standins.opened(place, standins.definition(), trials=0)
    assert Storage(place).backend.get_all_studies() == []


def test_an_unknown_study_is_refused_with_those_there_are(place: Path) -> None:
    standins.opened(place, standins.definition())
    with pytest.raises(StoreError, match="no study 'other'") as caught:
        reopen(Storage(place), "other")
    assert "stand-in" in caught.value.hint


def test_a_locked_database_is_waited_for_and_then_refused(place: Path) -> None:
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        with pytest.raises(StoreError, match="locked by another program"):
            Storage(place, patience=0.5)
        assert time.monotonic() - begin < 5


def test_a_lock_that_is_never_let_go_is_refused(place: Path) -> None:
    first, second = Storage(place), Storage(place, patience=0.3)
    with first.lock(), pytest.raises(StoreError, match="nobody let go of its lock"), second.lock():
        pass


@pytest.mark.filterwarnings("ignore:unclosed database in:ResourceWarning")  # Optuna's, of a schema that it refuses
@pytest.mark.parametrize("how", ["no database", "torn", "empty", "of MLflow", "of the future"])
def test_a_file_that_is_no_sound_storage_is_refused_and_left_alone(how: str, place: Path) -> None:
    if how == "no database":
        place.write_bytes(b"hello" * 1000)
    elif how == "torn":
        content = bytearray(place.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        place.write_bytes(content)
    elif how == "empty":
        place.write_bytes(b"")
    else:
        with closing(sqlite3.connect(place)) as connection:
            if how == "of MLflow":
                for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    connection.execute(f"DROP TABLE {table}")
                connection.execute("CREATE TABLE experiments (id INTEGER)")
            else:
                connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
                connection.execute("UPDATE version_info SET schema_version = 99")
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = place.read_bytes()
    words = {"no database": "damaged", "torn": "damaged", "empty": "empty database", "of MLflow": "another program's"}
    with pytest.raises(StoreError, match=words.get(how, "another version of Optuna")):
        Storage(place, patience=2)
    gc.collect()  # here, where the warning is expected, and not in another test
    assert place.read_bytes() == before


def test_places_that_studies_cannot_live_in_are_refused() -> None:
    for place in ("mysql://u:secret@h/d", "redis://h", "sqlite:///:memory:", "sqlite://", "://"):
        with pytest.raises(StoreError) as caught:
            read_url(place)
        assert "secret" not in caught.value.message, "a password must not be shown"
    assert read_url("postgres://h/d").drivername == "postgresql+psycopg"
    assert read_url("optuna.db").database == str(Path("optuna.db").absolute())


def test_a_server_that_never_answers_is_refused_in_bounded_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://user:secret@127.0.0.1:{silent.getsockname()[1]}/d"
        begin = time.monotonic()
        with pytest.raises(StoreError, match="does not answer") as caught:
            Storage(url, patience=2)
        assert time.monotonic() - begin < 15
    assert "secret" not in caught.value.message + caught.value.hint
    with pytest.raises(StoreError, match="does not answer"):
        Storage(url, patience=2)  # nobody listens any more


# The queue


def test_a_study_spends_its_plan_and_ends(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    done = finish_all(queue(opened, lives, tmp_path))
    ended = records(opened)
    assert Counter(record.status for record in ended) == {"complete": 3, "pruned": 27}
    assert sum(record.epoch for record in ended) == 71
    assert ended[0].params == standins.definition().baseline(), "trial 0 is the baseline"
    assert ended[0].status == "complete", "the baseline has a seat of its own"
    assert len({tuple(record.params.items()) for record in ended}) == 30, "no configuration twice"
    assert done.reason == "all 30 trials have ended"
    study = load(opened)
    assert study.best_value == max(record.value or 0 for record in ended if record.status == "complete")
    assert all(trial.state.is_finished() for trial in study.trials)
    assert all(record.reason.startswith("out after epoch") for record in ended if record.status == "pruned")


def test_one_worker_is_given_the_same_trials_again(template: Path, tmp_path: Path, lives: list[Life]) -> None:
    found = []
    for name in ("a", "b"):
        path = Path(shutil.copy(template, tmp_path / f"{name}.db"))
        opened = standins.opened(path, standins.definition(), trials=12)
        finish_all(queue(opened, lives, tmp_path))
        found.append([record.params for record in records(opened)])
    assert found[0] == found[1]


def played(opened: OpenStudy, crew: list[Queue], seed: int) -> list[tuple[int, dict[str, object], str]]:
    """Let the workers do the study, one of them slow, in a random order: who asks next, whose training ends next."""
    rng = random.Random(seed)
    paces = [1 if index == seed % len(crew) else 9 for index in range(len(crew))]
    at_work: dict[int, Job] = {}
    while True:
        index = rng.choices(range(len(crew)), paces)[0]
        if job := at_work.pop(index, None):
            do(crew[index], job)
            continue
        answer = crew[index].next_job()
        if isinstance(answer, Done):
            return [(record.number, dict(record.params), record.status) for record in records(opened)]
        if isinstance(answer, Job):
            at_work[index] = answer


def test_several_workers_are_given_the_same_trials_again_whoever_is_quicker(
    template: Path, tmp_path: Path, lives: list[Life]
) -> None:
    found = []
    for seed in range(2):
        path = Path(shutil.copy(template, tmp_path / f"{seed}.db"))
        opened = standins.opened(path, standins.definition(), trials=20, workers=3)
        found.append(played(opened, [queue(opened, lives, tmp_path) for _ in range(3)], seed))
    assert found[0] == found[1], "a seed must mean the same search, however the processes take turns"


def test_a_worker_waits_for_values_that_its_suggestion_is_made_from_and_no_longer(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition(), workers=2)
    quick, slow = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    job = slow.next_job()
    for _ in range(11):
        do(quick, quick.next_job())
    assert quick.next_job() == Wait(1), "trial 12 is made from the trials up to 9: the slow one has trial 0"
    do(slow, job)
    assert trial_of(quick.next_job()) == 12
    for number in (13, 14):
        job = slow.next_job()
        assert trial_of(job) == number
        do(slow, job)
    assert slow.next_job() == Wait(1), "trial 15 is made from the trials up to 12, which is being trained"
    again = standins.opened(place, standins.definition(), workers=9)
    assert again.workers() == 2, "what it was begun with stays"


def test_more_workers_than_a_study_was_begun_with_do_not_wait(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition(), workers=1)
    first, second, third = (queue(opened, lives, tmp_path) for _ in range(3))
    for _ in range(11):
        do(first, first.next_job())
    assert [trial_of(one.next_job()) for one in (first, second, third)] == [11, 12, 13]


def test_nobody_waits_for_values_that_decide_nothing(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    points = [
        f"{{ train.learning_rate = {rate}e-5, model.dropout = 0.1, model.kernel_size = 3 }}" for rate in range(1, 15)
    ]
    text = standins.STUDY.replace('"baseline"', f"[{', '.join(points)}]")
    opened = standins.opened(place, standins.definition(text), workers=2)
    quick, slow = queue(opened, lives, tmp_path, text), queue(opened, lives, tmp_path, text)
    slow.next_job()
    for number in range(1, 14):
        job = quick.next_job()
        assert trial_of(job) == number, "what is enqueued is made from no values"
        do(quick, job)
    assert quick.next_job() == Wait(1)


def test_a_trial_that_was_promoted_keeps_no_worker_from_those_of_a_longer_total(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition(), trials=12, workers=2)
    first, second = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    while isinstance(job := first.next_job(), Job) and job.start_epoch == 0:
        do(first, job)
    assert isinstance(job, Job) and job.trial < 10
    standins.opened(place, standins.definition(), trials=15)
    assert trial_of(second.next_job()) == 12


def trial_of(job: Job | Wait | Done) -> int:
    assert isinstance(job, Job), job
    return job.trial


def test_two_workers_are_never_given_the_same_trial(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    first, second = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    a, b = first.next_job(), second.next_job()
    assert isinstance(a, Job) and isinstance(b, Job)
    assert (a.trial, b.trial) == (0, 1)
    assert a.params != b.params


def test_a_longer_total_adds_trials_to_workers_already_at_work(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition(), trials=9)
    mine = queue(opened, lives, tmp_path)
    finish_all(mine)
    assert len(records(opened)) == 9
    standins.opened(place, standins.definition(), trials=18)
    finish_all(mine)
    ended = records(opened)
    assert len(ended) == 18
    assert sum(record.epoch for record in ended) <= 44
    assert standins.opened(place, standins.definition()).trials() == 18, "without --trials the last word holds"


def test_an_exhausted_grid_ends_early_and_says_so(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition(GRID))
    done = finish_all(queue(opened, lives, tmp_path, GRID))
    ended = records(opened)
    assert done.reason == "all 4 trials have ended: every point of the space has been tried"
    assert len({tuple(record.params.values()) for record in ended}) == 4
    assert all(record.status == "complete" for record in ended)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_tried_point_by_point_without_repeats(
    sampler: str, place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    text = GRID.replace('"grid"\ntrials', f'"{sampler}"\ntrials').replace("[3, 5]", "[3, 5, 7, 9, 11]")
    opened = standins.opened(place, standins.definition(text))
    finish_all(queue(opened, lives, tmp_path, text))
    assert len({tuple(record.params.values()) for record in records(opened)}) == len(records(opened)) == 10


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_stepped_range_is_tried_value_by_value_as_they_are_written(
    sampler: str, place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    text = GRID.replace('"grid"\ntrials', f'"{sampler}"\ntrials').replace("model.kernel_size = [3, 5]\n", "")
    text = text.replace("[0.1, 0.5]", "{ low = 0.0, high = 0.7, step = 0.1 }")
    text = text.replace('"baseline"', '["baseline", { model.dropout = 0.3 }]')
    opened = standins.opened(place, standins.definition(text))
    finish_all(queue(opened, lives, tmp_path, text))
    found = sorted(float(str(record.params["model.dropout"])) for record in records(opened))
    assert found == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "0.30000000000000004 is 0.3 trained again"


def test_a_paused_trial_teaches_the_sampler_instead_of_counting_as_bad(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition(), trials=26)
    mine = queue(opened, lives, tmp_path)
    for _ in range(26):
        do(mine, mine.next_job())
    found = [record.curve[1] for record in records(opened)]
    assert sum(found[16:26]) / 10 > sum(found[1:11]) / 10, "TPE must have learnt from one-epoch values"


def test_an_interrupted_trial_is_taken_up_before_anything_new(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    first, second = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    job = first.next_job()
    assert isinstance(job, Job)
    first.finish(job, Outcome("released"))
    again = second.next_job()
    assert isinstance(again, Job)
    assert (again.trial, again.attempt, again.is_resumed) == (job.trial, 1, True), "a request to stop is no death"


def test_a_trial_left_alone_is_passed_over_for_a_while_and_only_by_this_worker(
    place: Path, tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = standins.opened(place, standins.definition(), trials=2)
    mine, other = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def next_of(one: Queue) -> int:
        job = one.next_job()
        assert isinstance(job, Job)
        one.finish(job, Outcome("released"))
        return job.trial

    assert next_of(mine) == 0
    mine.leave_alone(0, 15.0)
    assert (next_of(mine), next_of(other)) == (1, 0), "there is other work, and others may try"
    mine.leave_alone(1, 5.0)
    assert isinstance(mine.next_job(), Wait), "nothing else to do: a pause, no loop that grabs it again and again"
    now[0] += 15
    assert next_of(mine) == 0


@pytest.mark.parametrize("how", ["released", "dead"])
def test_a_trial_stopped_after_its_rungs_epoch_pauses_there(
    place: Path, tmp_path: Path, lives: list[Life], how: str
) -> None:
    """Its checkpoint may lie past the rung: trained on from there it would never stop, and win without a seat."""
    opened = standins.opened(place, standins.definition())
    watcher, doomed = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    job = doomed.next_job()
    assert isinstance(job, Job) and job.stop_epoch == 1
    doomed.report(job, 1, 0.4)
    if how == "released":
        doomed.finish(job, Outcome("released"))
    else:
        lives.pop()._lock.release()
    after = watcher.next_job()
    assert isinstance(after, Job)
    assert (after.trial, after.stop_epoch) == (1, 1), "the next trial begins"
    (first, _) = records(opened)
    assert (first.status, first.epoch) == ("paused", 1)
    watcher.finish(after, standins.train(after, lambda epoch, value: watcher.report(after, epoch, value)))
    finish_all(watcher)
    assert Counter(record.status for record in records(opened)) == {"complete": 3, "pruned": 27}


def test_a_total_below_what_was_begun_brings_that_to_its_end(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    worker = queue(opened, lives, tmp_path)
    for _ in range(8):
        do(worker, worker.next_job())
    fewer = standins.opened(place, standins.definition(), trials=3)
    finish_all(queue(fewer, lives, tmp_path))
    assert Counter(record.status for record in records(fewer))["complete"] >= 1
    assert len(records(fewer)) == 8 and all(record.is_ended for record in records(fewer))


def test_a_dead_workers_trial_is_taken_up_twice_then_failed(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    told: list[Ended] = []
    watcher = queue(opened, lives, tmp_path, on_ended=told.append)
    for attempt in (1, 2, 3):
        doomed = queue(opened, lives, tmp_path)
        job = doomed.next_job()
        assert isinstance(job, Job)
        assert (job.trial, job.attempt) == (0, attempt)
        lives.pop()._lock.release()  # what the system does at kill -9
    new = watcher.next_job()
    assert isinstance(new, Job) and new.trial == 1
    assert records(opened)[0].status == "failed"
    assert told == [Ended(0, "failed", None, "its worker died 3 times")]


def test_a_worker_that_was_overtaken_is_told_and_changes_nothing(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition())
    slow, quick = queue(opened, lives, tmp_path), queue(opened, lives, tmp_path)
    old = slow.next_job()
    assert isinstance(old, Job)
    lives[0]._lock.release()  # taken for dead
    new = quick.next_job()
    assert isinstance(new, Job) and (new.trial, new.start_epoch) == (0, 0)
    with pytest.raises(Superseded):
        slow.report(old, 1, 0.9)
    with pytest.raises(Superseded):
        slow.finish(old, Outcome("failed", reason="late"))
    do(quick, new)
    record = records(opened)[0]
    kept = {1: standins.curve(dict(record.params), 1)}
    assert (record.status, record.curve) == ("paused", kept), "the old worker must not have written"
    with pytest.raises(Superseded):
        quick.report(new, 1, 0.1)


def test_a_lost_answer_gives_the_same_job_again(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition())
    mine = queue(opened, lives, tmp_path)
    assert mine.next_job() == mine.next_job()
    assert len(records(opened)) == 1


def test_giving_back_twice_is_harmless(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition(GRID))
    mine = queue(opened, lives, tmp_path, GRID)
    job = mine.next_job()
    assert isinstance(job, Job)
    do(mine, job)
    mine.finish(job, Outcome("complete", value=0.1))
    assert records(opened)[0].value == pytest.approx(standins.curve(job.params, 2))


def far_away(opened: OpenStudy, lives: list[Life], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Queue, Job]:
    """A worker of another machine, and the job that it has taken."""
    with monkeypatch.context() as patch:
        patch.setattr(liveness, "this_machine", lambda: "far/away")
        far = queue(opened, lives, folder)
        job = far.next_job()
    assert isinstance(job, Job)
    return far, job


def test_a_far_worker_is_judged_by_its_counter_and_ones_own_clock(
    place: Path, tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = standins.opened(place, standins.definition())
    far, job = far_away(opened, lives, tmp_path / "far", monkeypatch)
    now = [1000.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    watch = Watch(grace=60.0)

    def is_dead() -> bool:
        return watch.is_dead(records(opened)[0])

    assert not is_dead(), "a new observer has seen no silence yet"
    now[0] += 59
    assert not is_dead()
    far.beat(job)
    now[0] += 30
    assert not is_dead(), "it has given a sign of life"
    now[0] += 59
    assert not is_dead()
    now[0] += 2
    assert is_dead()
    far.beat(job)
    assert not is_dead(), "it was only slow"


def test_a_dead_worker_of_another_machine_is_buried_without_a_look_at_its_files(
    place: Path, tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their paths mean nothing here: to lock one makes folders, or fails, and every worker dies by it."""
    opened = standins.opened(place, standins.definition())
    _, job = far_away(opened, lives, tmp_path / "far", monkeypatch)
    lives.pop().end()
    (tmp_path / "far" / "workers").rmdir()
    (tmp_path / "far").rmdir()
    mine = queue(opened, lives, tmp_path, watch=Watch(grace=0.0))
    mine.next_job()  # the first look; a silence shows with the second
    lives.append(Life(tmp_path / "workers"))
    again = Queue(opened, standins.definition(), lives[-1].worker, watch=mine._watch).next_job()
    assert isinstance(again, Job)
    assert (again.trial, again.attempt) == (job.trial, 2)
    assert not (tmp_path / "far").exists(), "the path of another machine was made here"


def test_to_ask_whether_a_worker_lives_makes_nothing(tmp_path: Path, lives: list[Life]) -> None:
    assert is_free(tmp_path / "no" / "such.alive")
    assert is_free(tmp_path / "gone.alive")
    assert list(tmp_path.iterdir()) == []
    lives.append(Life(tmp_path / "workers"))
    assert not is_free(lives[0].worker.life)
    lives[0]._lock.release()
    assert is_free(lives[0].worker.life)


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_locks_do_not_exist_a_worker_lives_as_long_as_its_counter_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """What a killed worker left there, filelock's marker, looks held for ever: nobody took up its trial."""

    def no_locks(handle: int, how: int) -> None:
        raise OSError(answer, "no locks here")

    life = tmp_path / "killed.alive"
    life.touch()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    claim = Claim("claimed", token=1, stop=3, worker="w", machine=liveness.this_machine(), life=str(life))
    record = Record(0, "running", {}, {}, None, claim, "", "", "1:7", None, None)
    watch = Watch(grace=0.05)  # s
    assert not watch.is_dead(record), "the first look can tell nothing"
    time.sleep(0.1)
    assert not watch.is_dead(dataclasses.replace(record, beat="1:8")), "it gave a sign of life"
    time.sleep(0.1)
    assert watch.silence(dataclasses.replace(record, beat="1:8")) > 0.05
    assert watch.is_dead(dataclasses.replace(record, beat="1:8"))
    assert not is_free(life), "nothing is known of its lock: what belongs to it is left alone"


def test_a_worker_can_begin_while_somebody_looks_whether_it_lives(
    tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doctor's look holds the lock for a moment."""
    real = fcntl.flock
    looks: list[int] = []

    def held_at_first(handle: int, how: int) -> None:
        if not looks and how & fcntl.LOCK_EX:
            looks.append(handle)
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", held_at_first)
    lives.append(Life(tmp_path / "workers"))
    assert looks
    assert not is_free(lives[0].worker.life)


def test_a_worker_that_begins_while_the_database_is_started_again_waits_for_it(
    place: Path, tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = standins.opened(place, standins.definition(), trials=3)
    backend = standins.make_flaky(opened.storage, 2, monkeypatch)
    mine = queue(opened, lives, tmp_path)
    assert backend.failures == 0, "the queue asked nothing, so this shows nothing"
    assert isinstance(mine.next_job(), Job)


def test_a_value_that_is_no_number_is_refused(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    mine = queue(standins.opened(place, standins.definition()), lives, tmp_path)
    job = mine.next_job()
    assert isinstance(job, Job)
    with pytest.raises(TrainingError, match="val/roc_auc is nan after epoch 1"):
        mine.report(job, 1, float("nan"))
    mine.finish(job, Outcome("complete", value=float("inf")))
    assert records(mine._study)[0].reason == "val/roc_auc ended as inf"


def test_a_trial_of_somebodys_own_script_counts_once_it_has_ended(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition(), trials=3)
    own = load(opened)
    trial = own.ask()
    assert records(opened) == []
    own.tell(trial, state=TrialState.FAIL)
    finish_all(queue(opened, lives, tmp_path))
    assert Counter(record.status for record in records(opened)) == {"failed": 1, "complete": 1, "pruned": 1}


def test_readers_agree_however_long_they_have_looked_away(
    place: Path, tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dftrack.study import records as module

    monkeypatch.setattr(module, "MOST_CHANGES", 5)
    opened = standins.opened(place, standins.definition(), trials=18)
    watching, asleep = (Reader(opened.storage.backend, opened.study_id) for _ in range(2))
    asleep.read()
    mine = queue(opened, lives, tmp_path)
    while isinstance(job := mine.next_job(), Job):
        do(mine, job)
        assert watching.read() == Reader(opened.storage.backend, opened.study_id).read()
    assert asleep.read() == watching.read()


def test_a_reader_hears_of_changes_in_trials_that_it_has_never_seen(
    place: Path, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(place, standins.definition(), trials=9)
    watching = Reader(opened.storage.backend, opened.study_id)
    watching.read()
    finish_all(queue(opened, lives, tmp_path))
    assert watching.read() == records(opened)


# PostgreSQL


@pytest.mark.postgres
def test_a_study_lives_in_postgresql_and_outlives_a_restart_of_the_server(
    server: Server, tmp_path: Path, lives: list[Life]
) -> None:
    opened = standins.opened(server.url, standins.definition(), trials=9)
    mine = queue(opened, lives, tmp_path)
    for _ in range(4):
        do(mine, mine.next_job())
    server.stop()
    server.start()
    finish_all(mine)
    assert Counter(record.status for record in records(opened)) == {"complete": 1, "pruned": 8}


@pytest.mark.postgres
def test_the_lock_of_a_killed_process_is_free_in_postgresql(server: Server) -> None:
    storage = Storage(server.url, patience=10)
    code = (
        "import os, sys; from dftrack.study.storage import Storage\n"
        "with Storage(sys.argv[1]).lock(): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, storage.url], timeout=60).returncode == -9
    begin = time.monotonic()
    with storage.lock():
        assert time.monotonic() - begin < 5


@pytest.mark.postgres
def test_a_lock_held_by_another_is_waited_for_and_then_refused_in_postgresql(server: Server) -> None:
    first = Storage(server.url)
    second = Storage(server.url, patience=0.3)
    with first.lock(), pytest.raises(StoreError, match="nobody let go of its lock"), second.lock():
        pass


@pytest.mark.postgres
def test_another_programs_tables_in_postgresql_are_refused(server: Server) -> None:
    server.run(
        "psql",
        "-h",
        "127.0.0.1",
        "-p",
        server.url.split(":")[-1].split("/")[0],
        "-U",
        "test",
        "-d",
        "postgres",
        "-c",
        "CREATE SCHEMA other",
        "-c",
        "CREATE TABLE other.alembic_version (version_num text)",
    )
    with pytest.raises(StoreError, match="another program's tables"):
        Storage(server.url + "?options=-csearch_path%3Dother")


def test_the_ordinary_library_can_read_a_study(place: Path, tmp_path: Path, lives: list[Life]) -> None:
    opened = standins.opened(place, standins.definition(), trials=9)
    finish_all(queue(opened, lives, tmp_path))
    with plain_optuna(place) as storage:
        study = optuna.load_study(study_name="stand-in", storage=storage)
        assert [trial.number for trial in study.trials] == list(range(9))
