"""The MLflow page, in a real browser: pictures, tables, the data set and the model show; nothing of it stays behind."""

import os
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, loaded_pictures, open_browser, save_screenshot
from PIL import Image

from dftrack.errors import StoreError
from dftrack.tracking import Run, open_tracker, serve_ui

SHOTS = os.environ.get("SCREENSHOTS")  # a folder that keeps the screenshots


@pytest.fixture
def recorded(store: Path, tmp_path: Path) -> Run:
    """A finished run with a picture of 123 x 45 pixels, a table, a diff and a data set."""
    run = open_tracker(store).start_run("baseline", key="a", settings={"train.epochs": 2}, tags={"user": "somebody"})
    pixels = np.random.default_rng(0).integers(0, 255, (45, 123, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    for epoch in (1, 2):
        run.log_epoch(epoch, {"train/loss": 1 / epoch})
    run.log_bytes((tmp_path / "noise.png").read_bytes(), "grad-cam/val.png")
    run.log_table(
        {"picture": [f"val/{i}.jpg" for i in range(2000)], "score": [i / 2000 for i in range(2000)]}, "val.csv"
    )
    run.log_text("+a changed line", "uncommitted.diff")
    run.log_dataset("faces", "0123456789abcdef" * 2, {"train": {"real": 3, "fake": 4}}, ["train"])
    run.finish("FINISHED")
    return run


@pytest.mark.browser
def test_the_page_shows_pictures_tables_and_the_data_set(store: Path, recorded: Run, tmp_path: Path) -> None:
    chromium()
    shots = Path(SHOTS) if SHOTS else tmp_path
    with serve_ui(store) as ui, open_browser() as page:
        address = ui.run_url(recorded.record.experiment_id, recorded.run_id)
        page.goto(address)
        page.get_by_text("faces (0123456789abcdef0123456789abcdef)").first.wait_for()
        page.get_by_text("Finished").first.wait_for()
        page.get_by_text("somebody").first.wait_for()
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
        page.get_by_text("uncommitted.diff").first.click()
        save_screenshot(page, shots / "diff.png")
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


def test_the_page_is_small_answers_to_its_own_names_only_and_ends_whole(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_ui(store, port=port) as ui:
            served = int(re.findall(r"\d+", ui.url)[-1])
            assert served != port, "a taken port was taken again"
            group = ui.process_group
            assert group is not None
            assert 1 <= len(members(group)) <= 4, f"{len(members(group))} processes serve one page"
            address = f"{ui.url}/api/2.0/mlflow/experiments/search?max_results=1"
            assert status_for(address, f"127.0.0.1:{served}") == 200
            assert status_for(address, f"10.evil.example:{served}") == 403, "DNS rebinding is let in"
            command = Path(f"/proc/{group}/cmdline").read_text()
            assert "mlflow.db" not in command, "the store's address (which may hold a password) is open to every user"
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(group), "processes of the page stay behind"


def test_a_store_that_is_unfit_is_said_before_a_server_starts(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"nonsense" * 500)
    with pytest.raises(StoreError, match="not a database"), serve_ui(tmp_path):
        pass


def test_a_port_that_does_not_exist_is_said(store: Path) -> None:
    with pytest.raises(StoreError, match="no port 70000"), serve_ui(store, port=70_000):
        pass


def test_a_server_named_by_the_environment_is_shown_as_it_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000/")
    with serve_ui(store) as ui:
        assert (ui.url, ui.process_group) == ("http://mlflow.example:5000", None)
        ui.wait()
