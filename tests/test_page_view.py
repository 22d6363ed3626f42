"""`dftrack ui`: the address it names shows the finished runs in the MLflow page, the best first, in our columns."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, open_browser, save_screenshot

from dftrack.page_view import TAG, ready_view
from dftrack.tracking import Tracker, open_tracker

SHOTS = os.environ.get("SCREENSHOTS")  # a folder that keeps the screenshots


def test_the_best_test_auc_comes_first_and_val_stands_in_for_it() -> None:
    assert ready_view(["test/roc_auc", "test-dev/roc_auc", "interval/test/roc_auc/low"]).metric == "test-dev/roc_auc"
    assert ready_view(["test-b/roc_auc", "test-a/roc_auc", "val/roc_auc"]).metric == "test-a/roc_auc"
    assert ready_view([]).metric == "val/roc_auc"
    view = json.loads(ready_view(["test/roc_auc"], "trial").state())
    assert view["searchFilter"] == "attributes.status = 'FINISHED' and tags.`dftrack.kind` = 'trial'"
    assert "metrics.`test/roc_auc`" in view["selectedColumns"] and not view["orderByAsc"]


def test_a_view_is_kept_once_and_found_by_its_address(store: Path) -> None:
    tracker = open_tracker(store)
    words = tracker.offer_view(ready_view(["test/roc_auc"]))
    assert (
        words == f"/#/experiments/{tracker.experiment_id}/runs?viewStateShareKey=dftrack&workflowType=machine_learning"
    )
    assert tracker.offer_view(ready_view(["val/roc_auc"], "final")) == words
    kept = tracker._client.get_experiment(tracker.experiment_id).tags[TAG]
    assert "final" in kept and len(kept) < 5000, "MLflow keeps 5000 characters of an experiment's tag"


def some_runs(tracker: Tracker) -> None:
    fates = [("low", 0.7, "FINISHED"), ("high", 0.9, "FINISHED"), ("middle", 0.8, "FINISHED"), ("dead", 0.95, "FAILED")]
    for name, auc, status in fates:
        settings = {"train.learning_rate": 1e-4, "train.seed": 3}
        run = tracker.start_run(name, key=name, settings=settings, tags={"dftrack.kind": "baseline"})
        run.log_metrics({"test-dev/roc_auc": auc, "val/roc_auc": 0.55})
        run.finish(status)
    tracker.start_run("other", key="other", settings={}, tags={"dftrack.kind": "trial"}).finish("FINISHED")


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_opens_on_the_finished_runs_ready_to_compare(store: Path, tmp_path: Path) -> None:
    chromium()
    some_runs(open_tracker(store))
    command = [sys.executable, "-m", "dftrack", "ui", "--json", "--kind", "baseline", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            said = json.loads("".join(server.stdout.readline() for _ in range(5)))
            with open_browser(2400) as page:  # columns out of sight are not drawn
                page.goto(said["runs"])
                page.get_by_text("high").first.wait_for()
                page.get_by_text("train.learning_rate").first.wait_for()
                order = page.evaluate(
                    "Array.from(document.querySelectorAll('[role=row] a')).map(e => e.innerText).filter(Boolean)"
                )
                headers = page.evaluate(
                    "Array.from(document.querySelectorAll('[role=columnheader]')).map(e => e.innerText)"
                )
                save_screenshot(page, (Path(SHOTS) if SHOTS else tmp_path) / "runs.png")
                address = page.url
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert [name for name in order if name in ("low", "high", "middle", "dead", "other")] == ["high", "middle", "low"]
    assert {"test-dev/roc_auc", "val/roc_auc", "train.learning_rate"} <= set(headers), headers
    assert "traces" not in address and "workflowType=machine_learning" in address, "it opened for language models"
