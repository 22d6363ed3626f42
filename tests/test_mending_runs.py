"""Runs are brought to the state they should be in from outside, whatever state they are in."""

from pathlib import Path

import pytest

from dftrack.errors import StoreError
from dftrack.tracking import Run, Tracker, open_tracker


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


@pytest.fixture
def run(tracker: Tracker) -> Run:
    return tracker.start_run("trial 1", key="one", settings={}, tags={"dftrack.kind": "trial"})


@pytest.mark.parametrize("before", ["RUNNING", "KILLED", "FAILED", "FINISHED"])
def test_a_run_is_closed_from_any_state_with_its_end_and_reason(before: str, tracker: Tracker, run: Run) -> None:
    if before != "RUNNING":
        run.finish(before, reason="an older reason")
    tracker.close_run(run.run_id, "KILLED", end="pruned", reason="out after epoch 1")
    found = tracker.find_run(run.run_id)
    assert (found.status, found.end, found.tags["dftrack.reason"]) == ("KILLED", "pruned", "out after epoch 1")
    tracker.close_run(run.run_id, "FINISHED")
    found = tracker.find_run(run.run_id)
    assert (found.status, found.end) == ("FINISHED", "complete")
    assert "dftrack.reason" not in found.tags, "the reason of an older end would explain the wrong thing"


def test_a_traceback_given_with_the_end_is_kept(tracker: Tracker, run: Run) -> None:
    tracker.close_run(run.run_id, "FAILED", reason="it broke", trace="line 3")
    assert tracker.download(run.run_id, "failure/traceback.txt").read_text() == "line 3"


def test_an_opened_run_keeps_its_state_and_takes_epochs_anew(tracker: Tracker, run: Run) -> None:
    run.log_epoch(1, {"val/roc_auc": 0.5})
    run.log_epoch(2, {"val/loss": 0.1})
    run.finish("KILLED", end="paused")
    opened = tracker.open_run(run.run_id)
    assert opened.log_epoch(1, {"val/roc_auc": 0.7})
    assert opened.log_epoch(2, {"val/roc_auc": 0.6})
    assert tracker.metric_history(run.run_id, "val/roc_auc") == [(1, 0.7), (2, 0.6)]
    assert tracker.find_run(run.run_id).status == "KILLED"


def test_a_deleted_run_is_out_of_sight_and_comes_back_whole(tracker: Tracker, run: Run) -> None:
    run.log_epoch(1, {"val/roc_auc": 0.5})
    run.finish("FINISHED")
    tracker.delete_run(run.run_id)
    assert tracker.runs() == []
    assert [found.run_id for found in tracker.runs(tags={"dftrack.key": "one"}, deleted=True)] == [run.run_id]
    with pytest.raises(StoreError, match="there is no run"):
        tracker.find_run(run.run_id)
    tracker.restore_run(run.run_id)
    assert tracker.find_run(run.run_id).status == "FINISHED"
    assert tracker.runs(deleted=True) == []
    assert tracker.metric_history(run.run_id, "val/roc_auc") == [(1, 0.5)]
