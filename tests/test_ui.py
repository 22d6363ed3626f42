"""The MLflow page, in a real browser: pictures, tables, the data set and the model show; nothing of it stays behind."""

import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from browser import chromium, loaded_pictures, open_browser, save_screenshot
from PIL import Image

from dftrack import page
from dftrack.errors import StoreError
from dftrack.tracking import Page, Run, open_tracker, serve_ui
from tests.test_cli import Terminal, refused

SHOTS = os.environ.get("SCREENSHOTS")  # a folder that keeps the screenshots


@dataclass(frozen=True)
class Served:
    """A store and its running page."""

    store: Path
    ui: Page
    taken: int  # the port asked for, which somebody else has


@pytest.fixture(scope="module")
def served(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One page for all tests here: it takes 5 to 12 s to start. In the end nothing of it may stay behind."""
    store = tmp_path_factory.mktemp("served") / "store"
    store.mkdir()
    shutil.copy2(template_store / "mlflow.db", store)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_ui(store, port=port) as ui:
            yield Served(store, ui, port)
    assert ui.process_group
    deadline = time.monotonic() + 10
    while members(ui.process_group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(ui.process_group), "processes of the page stay behind"


@pytest.fixture
def recorded(served: Served, tmp_path: Path) -> Run:
    """A finished run with a picture of 123 x 45 pixels, a table, a diff and a data set."""
    run = open_tracker(served.store).start_run(
        "baseline", key="a", settings={"train.epochs": 2}, tags={"user": "me too"}
    )
    pixels = np.random.default_rng(0).integers(0, 255, (45, 123, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    for epoch in (1, 2):
        run.log_epoch(epoch, {"train/loss": 1 / epoch})
    run.log_bytes((tmp_path / "noise.png").read_bytes(), "grad-cam/val.png")
    run.log_table(
        {"picture": [f"val/{i}.jpg" for i in range(2000)], "score": [i / 2000 for i in range(2000)]}, "val.csv"
    )
    run.log_text("+a changed line", "uncommitted.diff.txt")  # the page shows no .diff
    run.log_dataset("faces", "0123456789abcdef" * 2, {"train": {"real": 3, "fake": 4}}, ["train"])
    run.finish("FINISHED")
    return run


@pytest.mark.browser
def test_the_page_shows_pictures_tables_texts_and_the_data_set(served: Served, recorded: Run, tmp_path: Path) -> None:
    chromium()
    shots = Path(SHOTS) if SHOTS else tmp_path
    with open_browser() as page:
        address = served.ui.run_url(recorded.record.experiment_id, recorded.run_id)
        page.goto(address)
        for text in ("faces (0123456789abcdef0123456789abcdef)", "Finished", "me too"):
            page.get_by_text(text).first.wait_for()
        save_screenshot(page, shots / "run.png")
        page.goto(f"{address}/artifacts")
        page.get_by_text("grad-cam").first.click()
        page.get_by_text("val.png").first.click()
        page.wait_for_function("Array.from(document.images).some(i => i.naturalWidth == 123 && i.naturalHeight == 45)")
        assert (123, 45) in loaded_pictures(page)
        save_screenshot(page, shots / "picture.png")
        page.get_by_text("val.csv").first.click()
        page.get_by_text("val/0.jpg").first.wait_for()
        save_screenshot(page, shots / "table.png")
        page.get_by_text("uncommitted.diff.txt").first.click()
        page.get_by_text("+a changed line").first.wait_for()
    assert (shots / "picture.png").stat().st_size > 10_000


def members(group: int) -> list[int]:
    """Processes that belong to the process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def status_for(url: str, host: str) -> int:
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_is_small_and_answers_to_its_own_names_only(served: Served) -> None:
    port = int(re.findall(r"\d+", served.ui.url)[-1])
    group = served.ui.process_group
    assert port != served.taken, "a taken port was taken again"
    assert group is not None
    assert 1 <= len(members(group)) <= 4, f"{len(members(group))} processes serve one page"
    address = f"{served.ui.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert status_for(address, f"127.0.0.1:{port}") == 200
    assert status_for(address, f"10.evil.example:{port}") == 403, "DNS rebinding is let in"
    command = Path(f"/proc/{group}/cmdline").read_text()
    assert "mlflow.db" not in command, "the store's address (which may hold a password) is open to every user"


def test_a_run_is_recorded_through_a_server_as_well(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.ui.url)
    tracker = open_tracker(tmp_path)
    run = tracker.start_run("remote", key="remote", settings={"train.epochs": 1}, tags={"user": "me"})
    assert run.log_epoch(1, {"train/loss": 0.5, "val/roc_auc": None})
    run.log_text("hello", "a.txt")
    run.log_dataset("faces", "0" * 32, {"train": {"real": 3, "fake": 4}})
    run.finish("KILLED", end="pruned")
    assert capsys.readouterr().out == "", "MLflow writes between the lines of --json"
    again = tracker.start_run("remote", key="remote", settings={"train.epochs": 1}, tags={})
    assert again.run_id == run.run_id and not again.log_epoch(1, {"train/loss": 0.5})
    found = tracker.find_run(run.run_id[:10])
    assert (found.metrics["train/loss"], found.tags["dftrack.undefined"]) == (0.5, "val/roc_auc@1")
    assert tracker.download(run.run_id, "a.txt").read_text() == "hello"
    assert not (tmp_path / "mlflow.db").exists(), "a local database was made beside the server's"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert open_tracker(served.store).find_run(run.run_id).name == "remote"


def test_a_store_that_is_unfit_is_said_before_a_server_starts(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"nonsense" * 500)
    with pytest.raises(StoreError, match="not a database"), serve_ui(tmp_path):
        pass


def test_a_port_that_does_not_exist_is_said(store: Path) -> None:
    with pytest.raises(StoreError, match="no port 70000"), serve_ui(store, port=70_000):
        pass


STAND_IN = """
import http.server, sys, time
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
try:
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health)
except OSError as error:
    time.sleep(float(sys.argv[2]))
    sys.exit(f"stand-in: {error}")
print("stand-in: ready", flush=True)
server.serve_forever()
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Servers that start in a moment instead of MLflow's; one that finds its port taken ends after so many seconds."""

    def use(patience: float) -> None:
        monkeypatch.setattr(
            page, "_command", lambda store, host, port: [sys.executable, "-c", STAND_IN, str(port), str(patience)]
        )

    return use


@pytest.mark.parametrize("patience", [60.0, 0.0], ids=["ours still tries", "ours has given up"])
def test_a_port_that_another_took_first_is_left_to_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[float], None], patience: float
) -> None:
    stand_in(patience)
    with serve_ui(store, port=5300) as other:
        theirs = int(other.url.rpartition(":")[2])
        looked = page._why_taken
        free = [None]  # what the first look at their port says, as before they had it
        monkeypatch.setattr(
            page, "_why_taken", lambda host, port: free.pop() if port == theirs and free else looked(host, port)
        )
        with serve_ui(store, port=theirs) as ours:
            assert not free and ours.url != other.url, "the runs of another store would be shown as our own"
            assert status_for(f"{ours.url}/health", "127.0.0.1") == 200
            assert ours.process_group != other.process_group and other.alive()


def test_a_server_that_dies_ends_the_command_with_its_last_words(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: Callable[[float], None]
) -> None:
    stand_in(0.0)

    def die(url: str) -> bool:
        [member] = [child for child in psutil.Process().children() if STAND_IN in child.cmdline()]
        member.kill()
        return True

    monkeypatch.setattr("webbrowser.open", die)
    said = Terminal(capsys, monkeypatch)("ui", "--store", store, "--open")
    refused(said, 4, "the MLflow page has ended: stand-in: ready")


def test_a_server_named_by_the_environment_is_shown_as_it_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000/")
    with serve_ui(store) as ui:
        assert (ui.url, ui.process_group, ui.alive()) == ("http://mlflow.example:5000", None, True)
        ui.wait()
