"""The store survives what happens to folders, files, processes and servers; or says clearly what is wrong."""

import base64
import contextlib
import http.server
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest

import dftrack.database
import dftrack.files
from dftrack.database import check_database
from dftrack.errors import StoreError
from dftrack.speaking import speaking
from dftrack.store import Store, connect, experiment_id, prepare_store, tracking_uri
from dftrack.tracking import open_tracker, serve_ui

# store is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
from mlflow.exceptions import MlflowException

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


# Children are forked from a process that has imported everything already: they really meet, and no test waits for it.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["dftrack.tracking"])


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    assert process.pid
    return process


def end(process: BaseProcess) -> int:
    """How the process ended: its exit code, or minus the signal."""
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def open_and_record(folder: Path, number: int, meet: float) -> None:
    time.sleep(max(0.0, meet - time.time()))
    run = open_tracker(folder).start_run(f"run {number}", key=f"key {number}", settings={"n": number}, tags={})
    run.finish("FINISHED")


def healthy(folder: Path) -> bool:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as raw:
        return bool(raw.execute("pragma integrity_check").fetchone() == ("ok",))


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".mlflow.db*"))


def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    processes = [start(open_and_record, folder, number, time.time() + 1) for number in range(4)]
    assert [end(process) for process in processes] == [0, 0, 0, 0], "a process failed: see its traceback"
    assert len(open_tracker(folder).runs()) == 4
    assert not left_over(folder)


@pytest.mark.slow
def test_kills_while_the_store_is_made_leave_nothing_half(tmp_path: Path) -> None:
    random.seed(20261122)
    for attempt in range(3):
        folder = tmp_path / f"store{attempt}"
        processes = [start(open_and_record, folder, number, time.time() + 0.5) for number in range(4)]
        time.sleep(0.5 + random.uniform(0.0, 2.5))
        for process in processes:
            process.kill()
        assert {end(process) for process in processes} <= {0, -signal.SIGKILL}
        assert not (folder / "mlflow.db").exists() or healthy(folder), f"kill {attempt} left a half database"
        open_tracker(folder).start_run("after", key="after", settings={}, tags={}).finish("FINISHED")
        assert not left_over(folder), f"after kill {attempt} something stays"


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_making(folder: Path, point: str) -> None:
    """Make the store, but stop dead at an exact point."""
    write = dftrack.database._write_schema
    if point == "half of the file":
        dftrack.database._write_schema = lambda target, _: (
            target.write_bytes(b"SQLite format 3\0" + bytes(5000)),
            die(),
        )
    elif point == "after the schema":
        dftrack.database._write_schema = lambda *arguments: (write(*arguments), die())
    elif point == "before the rename":
        os.replace = die
    else:
        dftrack.files.sync_folder = die
    prepare_store(folder)


@pytest.mark.parametrize("point", ["half of the file", "after the schema", "before the rename", "after the rename"])
def test_a_kill_at_an_exact_point_leaves_no_database_or_a_whole_one(tmp_path: Path, point: str) -> None:
    folder = tmp_path / "store"
    assert end(start(die_while_making, folder, point)) == -signal.SIGKILL, f"it did not die {point}"
    assert (folder / "mlflow.db").exists() == (point == "after the rename")
    prepare_store(folder)
    assert healthy(folder)
    assert not left_over(folder), "the killed process's temporary file stays"


def make_on_a_full_disk(folder: Path, answer: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # bytes in one file; the schema needs 950,000
    try:
        prepare_store(folder)
    except StoreError as error:
        answer.write_text(f"{error.message}: {error.hint}")


def test_a_full_disk_while_the_store_is_made_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    folder, answer = tmp_path / "store", tmp_path / "answer"
    assert end(start(make_on_a_full_disk, folder, answer)) == 0
    assert re.search("disk|space", answer.read_text()), f"the message does not say why: {answer.read_text()}"
    assert not (folder / "mlflow.db").exists()
    assert not left_over(folder)
    prepare_store(folder)
    assert healthy(folder)


def test_a_store_can_be_prepared_by_a_thread_while_it_is_opened(tmp_path: Path) -> None:
    thread = threading.Thread(target=prepare_store, args=(tmp_path / "store",))
    thread.start()
    tracker = open_tracker(tmp_path / "store")
    thread.join()
    assert tracker.runs() == []


def test_the_write_ahead_log_is_on_and_stays_on(store: Path) -> None:
    open_tracker(store)
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as raw:
        assert raw.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("name", ["with space", "Größe é", "quote's", "plus+and&"])
def test_a_folder_with_an_unusual_name_serves(template_store: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "store"
    folder.mkdir(parents=True)
    shutil.copy2(template_store / "mlflow.db", folder)
    tracker = open_tracker(folder)
    run = tracker.start_run("a", key="a", settings={}, tags={})
    run.log_text("hello", "a.txt")
    run.finish("FINISHED")
    assert tracker.download(run.run_id, "a.txt").read_text() == "hello"
    assert tracker.download(run.run_id, "a.txt").is_relative_to(folder.resolve())


@pytest.mark.parametrize("name", ["50%", "what?", "no#1"])
def test_a_folder_whose_name_no_database_url_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="contains") as caught:
        open_tracker(tmp_path / name)
    assert caught.value.hint
    assert not (tmp_path / name).exists()


# ---- what is wrong is said, and nothing is touched


def damaged(folder: Path, kind: str) -> None:
    """Make `folder`/mlflow.db unfit in one of the ways in which that happens."""
    database = folder / "mlflow.db"
    if kind == "random bytes":
        database.write_bytes(random.Random(1).randbytes(50_000))
    elif kind == "another program's":
        database.unlink()
        with contextlib.closing(sqlite3.connect(database)) as raw:
            raw.execute("create table notes (text)")
    elif kind == "cut short":
        database.write_bytes(database.read_bytes()[:150_000])
    else:
        version = "0123456789ab" if kind == "newer MLflow's" else "89d4b8295536"  # the second: MLflow 1.0's
        with contextlib.closing(sqlite3.connect(database)) as raw:
            raw.execute("update alembic_version set version_num = ?", (version,))
            raw.commit()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("random bytes", "not a database"),
        ("another program's", "not an MLflow database"),
        ("cut short", r"malformed|corrupt"),
        ("newer MLflow's", "newer MLflow"),
        ("older MLflow's", "older MLflow"),
    ],
)
def test_an_unfit_database_is_named_and_left_as_it_is(store: Path, kind: str, message: str) -> None:
    damaged(store, kind)
    before = (store / "mlflow.db").read_bytes()
    with pytest.raises(StoreError, match=message) as caught:
        open_tracker(store)
    assert caught.value.hint, "the message says nothing of what to do"
    assert str(store / "mlflow.db") in caught.value.message
    assert (store / "mlflow.db").read_bytes() == before, "the file has been changed"


def test_an_empty_database_file_holds_nothing_and_is_made_anew(store: Path) -> None:
    (store / "mlflow.db").write_bytes(b"")
    assert open_tracker(store).runs() == []


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match="cannot make the store"):
        open_tracker(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "mine"


def test_a_place_where_nothing_can_be_made_is_said() -> None:
    with pytest.raises(StoreError, match="cannot make the store /proc/dftrack"):
        open_tracker(Path("/proc/dftrack/store"))


def test_a_folder_in_the_place_of_the_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        open_tracker(tmp_path)


@pytest.fixture
def someone_elses(template_store: Path) -> Iterator[Path]:
    """A store that everybody may read and only its owner write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        folder.mkdir()
        shutil.copy2(template_store / "mlflow.db", folder)
        Path(name).chmod(0o755)
        (folder / "mlflow.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def check_as_anybody(database: Path, answer: Path) -> None:
    """Root may write everywhere: look as somebody else."""
    out = os.open(answer, os.O_WRONLY | os.O_CREAT)
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        check_database(database)
    except StoreError as error:
        os.write(out, error.message.encode())


def test_a_store_that_may_only_be_read_is_said(someone_elses: Path, tmp_path: Path) -> None:
    assert end(start(check_as_anybody, someone_elses / "mlflow.db", tmp_path / "answer")) == 0
    said = (tmp_path / "answer").read_text()
    assert re.search("readonly|unable to open", said), f"a read-only store was taken, or not explained: {said!r}"


# ---- servers


def test_a_server_that_refuses_is_said_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter22@127.0.0.1:{closed.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer") as caught:
            open_tracker(tmp_path)
    assert time.monotonic() - began < 10
    assert "hunter22" not in caught.value.message, "the password is shown"


def test_a_server_that_is_silent_is_said_within_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dftrack.store.FIRST_ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer: timed out"):
            open_tracker(tmp_path)
    assert time.monotonic() - began < 10


class Guarded(http.server.BaseHTTPRequestHandler):
    """Stands in for an MLflow server that asks for user and password, and holds no experiment."""

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'me:hunter22').decode()}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(b"{}" if allowed else b"who are you?")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *words: object) -> None:
        pass


def test_user_and_password_in_the_address_of_a_server_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter22@{address}/")
        assert connect(tmp_path).serves_artifacts
        with serve_ui(tmp_path) as page:
            assert page.url == f"http://{address}", "the password is shown"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:wrong-one@{address}")
        with pytest.raises(StoreError, match="401") as caught:
            connect(tmp_path)
        server.shutdown()
    assert "wrong-one" not in caught.value.message


@pytest.mark.parametrize("uri", ["http://me:hunter22@127.0.0.1:1", "http://me:hunter22@[::1", "http://me:hunt/er22@h"])
def test_no_password_is_said_of_a_server_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setattr("dftrack.store.FIRST_TRIES", 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError) as caught:
        connect(tmp_path)
    assert "er22" not in caught.value.message + caught.value.hint


def test_a_postgresql_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:hunter22@127.0.0.1:9/results")
    began = time.monotonic()
    with pytest.raises(StoreError, match="refused") as caught:
        open_tracker(tmp_path)
    assert time.monotonic() - began < 15, "MLflow's own retries would take 100 s"
    assert "hunter22" not in caught.value.message


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "databricks", "ftp://x"])
def test_a_tracking_uri_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="not served") as caught:
        open_tracker(tmp_path)
    assert "unset" in caught.value.hint


def test_another_database_named_by_the_environment_is_used(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    here = tmp_path / "here"
    run = open_tracker(here).start_run("a", key="a", settings={}, tags={})
    assert not (here / "mlflow.db").exists(), "a second database was made"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [found.run_id for found in open_tracker(store).runs()] == [run.run_id]


def test_postgresql_goes_through_the_driver_we_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://h/db")
    assert tracking_uri(Store.at(Path("x"))) == "postgresql+psycopg://h/db"


# ---- a database that is started again


class Away:
    """Stands in for MlflowClient: `failures` calls fail as they do while PostgreSQL is away, then it answers."""

    failures = 0
    code = "TEMPORARILY_UNAVAILABLE"
    tracking_uri = "postgresql://h/db"

    def __init__(self, **_: str) -> None:
        self.logged: list[tuple[str, str]] = []

    def search_experiments(self, max_results: int) -> list[str]:
        return self.answer([])

    def set_tag(self, run_id: str, key: str) -> str:
        self.logged.append((run_id, key))
        return self.answer("done")

    def answer(self, answer: T) -> T:
        if Away.failures:
            Away.failures -= 1
            error = MlflowException("the database system is starting up")
            error.error_code = self.code
            raise error
        return answer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds waited for; no time passes but these."""
    slept: list[float] = []
    clock = types.SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr("dftrack.store.time", clock)
    monkeypatch.setattr("dftrack.store.MlflowClient", Away)
    monkeypatch.setattr("dftrack.store._schema_lock", lambda uri: contextlib.nullcontext())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Away.tracking_uri)
    monkeypatch.setattr(Away, "failures", 0)
    return slept


def test_a_postgresql_that_is_started_again_is_asked_until_it_answers(tmp_path: Path, waits: list[float]) -> None:
    client: Any = connect(tmp_path).client
    assert client.tracking_uri == Away.tracking_uri
    for _ in range(2):
        Away.failures = 200
        assert client.set_tag("a run", key="a tag") == "done"
    assert len(client.logged) == 402 and set(client.logged) == {("a run", "a tag")}
    assert sum(waits) == pytest.approx(100), "each time it is away has its own minute"


def test_a_postgresql_that_stays_away_is_given_up_after_a_minute_in_all(tmp_path: Path, waits: list[float]) -> None:
    connection = connect(tmp_path)
    client: Any = connection.client
    Away.failures = 10**6
    for _ in range(3):  # that a run cannot be closed either shall not cost another minute
        with pytest.raises(StoreError, match="starting up"), speaking(connection.uri):
            client.set_tag("a run", key="a tag")
    assert 60 <= sum(waits) < 61


def test_only_a_database_that_is_away_is_asked_again(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    Away.failures = 1
    with pytest.raises(StoreError, match="starting up"):
        connect(tmp_path)  # the first time: the address may be wrong
    Away.failures = 5
    client: Any = connect(tmp_path, known=True).client
    assert len(waits) == 5, "a trial begins while the database is started again"
    monkeypatch.setattr(Away, "code", "RESOURCE_DOES_NOT_EXIST")
    Away.failures = 1
    with pytest.raises(MlflowException):
        client.set_tag("a run", key="a tag")
    assert len(waits) == 5, "what it answers is final"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert isinstance(connect(tmp_path).client, Away), "SQLite itself waits for a lock"


# ---- moving


def filled(store: Path) -> str:
    run = open_tracker(store).start_run("a", key="a", settings={}, tags={})
    run.log_text("hello", "notes/a.txt")
    run.finish("FINISHED")
    return run.run_id


def test_artifacts_still_open_after_the_folder_was_moved(store: Path, tmp_path: Path) -> None:
    run_id = filled(store)
    target = tmp_path / "else where" / "results"
    target.parent.mkdir()
    shutil.move(store, target)
    tracker = open_tracker(target)
    assert tracker.download(run_id, "notes/a.txt").read_text() == "hello"
    assert tracker.find_run(run_id).artifact_uri.startswith((target / "artifacts").as_uri())
    again = tracker.start_run("b", key="b", settings={}, tags={})
    again.log_text("new", "b.txt")
    assert tracker.download(again.run_id, "b.txt").is_relative_to(target)
    assert not store.exists(), "something was written to the old place"


def test_a_copy_of_the_folder_keeps_to_its_own_artifacts(store: Path, tmp_path: Path) -> None:
    run_id = filled(store)
    shutil.copytree(store, tmp_path / "copy")
    found = open_tracker(tmp_path / "copy").download(run_id, "notes/a.txt")
    assert found.is_relative_to(tmp_path / "copy")
    assert open_tracker(store).download(run_id, "notes/a.txt").is_relative_to(store), "the original was changed"


def test_a_folder_reached_by_another_name_has_not_moved(store: Path, tmp_path: Path) -> None:
    run_id = filled(store)
    (tmp_path / "alias").symlink_to(store)
    assert open_tracker(tmp_path / "alias").download(run_id, "notes/a.txt").is_relative_to(store)


def test_experiments_of_one_name_are_one_and_a_deleted_one_is_said(store: Path) -> None:
    connection = connect(store)
    assert experiment_id(connection, "faces") == experiment_id(connection, "faces")
    connection.client.delete_experiment(experiment_id(connection, "faces"))
    with pytest.raises(StoreError, match="deleted") as caught:
        experiment_id(connection, "faces")
    assert "restore" in caught.value.hint


def test_mlflow_is_quiet_reports_to_nobody_and_unpickles_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dftrack.tracking import open_tracker\n"
        "open_tracker(Path(sys.argv[1]))\n"
        "from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as pickles\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "assert get_telemetry_client() is None, 'telemetry is on'\n"
        "assert not pickles.get(), 'pickles are read'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], cwd=ROOT, text=True, capture_output=True, timeout=150
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
