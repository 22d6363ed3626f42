"""What is recorded is recorded once, whole, without secrets; and is found again."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from dftrack.errors import StoreError
from dftrack.tracking import Run, RunRecord, Tracker, open_tracker

SETTINGS = {"train.epochs": 3, "train.learning_rate": 1e-4, "data.source": "sample", "data.image_size": None}


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


@pytest.fixture
def run(tracker: Tracker) -> Run:
    return tracker.start_run("baseline", key="one", settings=SETTINGS, tags={"user": "me"})


def columns_of(store: Path, query: str) -> list[Any]:
    """Ask the database itself, past MLflow."""
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as raw:
        return raw.execute(query).fetchall()


# ---- runs


def test_a_run_has_its_settings_tags_parent_and_name(tracker: Tracker, run: Run) -> None:
    child = tracker.start_run(
        "trial 7", key="two", settings=SETTINGS, tags={"source": "dftrack study"}, parent=run.run_id
    )
    found = tracker.find_run(child.run_id)
    assert found.settings == {name: str(value) for name, value in SETTINGS.items()}
    assert (found.name, found.status, found.parent, found.end_time) == ("trial 7", "RUNNING", run.run_id, None)
    assert found.tags["mlflow.source.name"] == "dftrack study", "the page shows the source under MLflow's name for it"
    assert [record.run_id for record in tracker.runs(parent=run.run_id)] == [child.run_id]
    assert all(type(value) in (str, dict, float, type(None)) for value in dataclasses.asdict(found).values())


def test_a_run_is_found_by_the_beginning_of_its_id(tracker: Tracker, run: Run) -> None:
    assert tracker.find_run(run.run_id[:6]).run_id == run.run_id
    assert tracker.find_run(run.run_id.upper()).run_id == run.run_id


def test_where_a_runs_files_lie_is_asked_once_for_all_of_them(
    tracker: Tracker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_json({"a": 1}, "a.json")
    asked: list[str] = []
    find = tracker.find_run
    monkeypatch.setattr(tracker, "find_run", lambda run_id: asked.append(run_id) or find(run_id))
    for _ in range(3):
        assert tracker.artifacts(run.run_id) == ["a.json"]
        assert json.loads(tracker.download(run.run_id, "a.json").read_bytes()) == {"a": 1}
    assert asked == [run.run_id]
    assert tracker.artifacts(run.run_id[:8]) == ["a.json"]
    assert asked[1:] == [run.run_id[:8]], "the beginning of an id may come to mean two runs"


@pytest.mark.parametrize("wanted", ["", "xyz", "%", "' or 1=1", "../a"])
def test_what_is_no_run_id_is_refused(tracker: Tracker, wanted: str) -> None:
    with pytest.raises(StoreError, match="not a run id"):
        tracker.find_run(wanted)


def test_an_unknown_run_and_an_ambiguous_one_are_said(tracker: Tracker) -> None:
    runs = [tracker.start_run(f"r{i}", key=f"k{i}", settings={}, tags={}) for i in range(17)]
    beginnings = [run.run_id[0] for run in runs]
    twice = next(digit for digit in beginnings if beginnings.count(digit) > 1)
    with pytest.raises(StoreError, match="several runs begin with"):
        tracker.find_run(twice)
    with pytest.raises(StoreError, match="there is no run 0123456789abcdef"):
        tracker.find_run("0123456789abcdef")


def test_a_text_that_mlflow_cannot_search_for_is_said(tracker: Tracker) -> None:
    assert tracker.runs(tags={"dftrack.study": "it's"}) == tracker.runs(tags={"dftrack.study": 'so "called"'}) == []
    with pytest.raises(StoreError, match="both kinds of quotes"):
        tracker.runs(tags={"dftrack.study": 'it\'s "so"'})


def test_the_latest_run_is_the_one_started_last(tracker: Tracker, run: Run) -> None:
    with pytest.raises(StoreError, match="no FINISHED run"):
        tracker.latest_run()
    run.finish("FINISHED")
    other = tracker.start_run("b", key="b", settings={}, tags={"dftrack.kind": "it's"})
    other.finish("FINISHED")
    assert tracker.latest_run().run_id == other.run_id
    assert tracker.latest_run(tags={"dftrack.kind": "it's"}).run_id == other.run_id


# ---- lost replies and second attempts


def test_the_same_key_started_twice_is_one_run(tracker: Tracker, run: Run, store: Path) -> None:
    again = open_tracker(store).start_run("baseline", key="one", settings=SETTINGS, tags={})
    assert again.run_id == run.run_id
    assert len(tracker.runs()) == 1


def test_a_run_that_goes_on_bears_the_name_and_the_tags_it_is_given_now(tracker: Tracker, run: Run) -> None:
    run.finish("KILLED", end="interrupted")
    tags = {"user": "you", "dftrack.trial": "3"}
    again = tracker.start_run("trial 3", key="one", settings=SETTINGS, tags=tags, parent="f" * 32)
    found = tracker.find_run(run.run_id)
    assert (again.run_id, again.record.name) == (run.run_id, "trial 3")
    assert (found.name, found.status, found.parent) == ("trial 3", "RUNNING", "f" * 32)
    assert (found.tags["mlflow.user"], found.tags["dftrack.trial"]) == ("you", "3")


def lossy(create: Callable[..., object], *, resent: int, answers: bool) -> Callable[..., object]:
    """create_run as a bad network makes it: the request arrives `resent` times, the answer perhaps never."""

    def call(*arguments: object, **options: object) -> object:
        results = [create(*arguments, **options) for _ in range(resent)]
        if not answers:
            raise MlflowException("API request failed: Connection reset by peer")
        return results[-1]

    return call


@pytest.mark.parametrize(("resent", "answers"), [(2, True), (1, False), (3, False)])
def test_a_lost_reply_still_makes_one_run(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, resent: int, answers: bool
) -> None:
    client = tracker._client
    monkeypatch.setattr(client, "create_run", lossy(client.create_run, resent=resent, answers=answers))
    run = tracker.start_run("a", key="lost", settings=SETTINGS, tags={})
    assert [found.run_id for found in tracker.runs()] == [run.run_id], "the reply was lost and the run doubled"
    assert tracker.find_run(run.run_id).settings["train.epochs"] == "3"
    assert tracker.start_run("a", key="lost", settings=SETTINGS, tags={}).run_id == run.run_id


def test_a_request_that_never_arrived_is_said_and_may_be_tried_again(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(tracker._client, "create_run", lossy(lambda *a, **o: None, resent=0, answers=False))
        with pytest.raises(StoreError, match="Connection reset"):
            tracker.start_run("a", key="k", settings={}, tags={})
    tracker.start_run("a", key="k", settings={}, tags={})
    assert len(tracker.runs()) == 1


# ---- epochs


def test_an_epoch_is_recorded_once_also_after_a_resume(tracker: Tracker, run: Run, store: Path) -> None:
    assert run.log_epoch(1, {"train/loss": 0.7})
    assert not run.log_epoch(1, {"train/loss": 0.1}), "the second value of an epoch was taken"
    run.log_epoch(2, {"train/loss": 0.6})
    resumed = open_tracker(store).resume_run(run.run_id)
    assert not resumed.log_epoch(2, {"train/loss": 9.9})
    assert resumed.log_epoch(3, {"train/loss": 0.5})
    assert tracker.metric_history(run.run_id, "train/loss") == [(1, 0.7), (2, 0.6), (3, 0.5)]
    rows = columns_of(store, "select count(*) from metrics where key = 'train/loss'")
    assert rows == [(3,)], "an epoch stands twice in the database"


def test_one_epoch_is_one_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    client = run._client
    for name in ("log_batch", "log_metric", "set_tag", "log_param"):
        original = getattr(client, name)
        monkeypatch.setattr(client, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    run.log_epoch(1, {f"m{i}": float(i) for i in range(20)} | {"u": None})
    assert calls == ["log_batch"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_an_undefined_metric_is_named_and_not_recorded(
    tracker: Tracker, run: Run, store: Path, value: float | None
) -> None:
    run.log_epoch(4, {"val/roc_auc": value, "val/loss": 0.5})
    run.log_metrics({"test/eer": value})
    found = tracker.find_run(run.run_id)
    assert found.metrics == {"val/loss": 0.5, "epoch": 4.0}
    assert found.tags["dftrack.undefined"] == "test/eer, val/roc_auc@4"
    assert not columns_of(store, "select * from metrics where is_nan or abs(value) > 1e300")


def test_a_metric_that_gets_a_value_later_is_undefined_no_longer(tracker: Tracker, run: Run) -> None:
    run.log_metrics({"study/best": None, "study/baseline": None})
    run.log_metrics({"study/best": 0.9})
    assert tracker.find_run(run.run_id).tags["dftrack.undefined"] == "study/baseline"
    run.log_metrics({"study/baseline": 0.8})
    assert tracker.find_run(run.run_id).tags["dftrack.undefined"] == ""


# ---- resuming and ending


def test_a_resumed_run_is_running_again_and_keeps_its_settings(tracker: Tracker, run: Run) -> None:
    run.finish("KILLED", end="interrupted", reason="Ctrl-C")
    again = tracker.start_run("baseline", key="one", settings=SETTINGS | {"train.epochs": 9, "new": 1}, tags={})
    found = tracker.find_run(run.run_id)
    assert again.run_id == run.run_id
    assert (found.status, found.end, found.end_time) == ("RUNNING", "", None)
    assert (found.settings["train.epochs"], found.settings["new"]) == ("3", "1")
    assert found.tags["dftrack.resumed_with"] == "train.epochs=9"


@pytest.mark.parametrize(
    ("status", "given", "end"),
    [
        ("FINISHED", "", "complete"),
        ("KILLED", "", "interrupted"),
        ("KILLED", "pruned", "pruned"),
        ("KILLED", "paused", "paused"),
        ("FAILED", "", "failed"),
    ],
)
def test_a_run_ends_as_what_it_is(tracker: Tracker, run: Run, status: str, given: str, end: str) -> None:
    run.finish(status, end=given, reason="because", trace="Traceback: x")
    found = tracker.find_run(run.run_id)
    assert (found.status, found.end, found.tags["dftrack.reason"]) == (status, end, "because")
    assert found.end_time is not None and found.end_time >= found.start_time
    assert tracker.download(run.run_id, "failure/traceback.txt").read_text() == "Traceback: x"


def test_an_end_that_contradicts_the_status_is_our_mistake(run: Run) -> None:
    with pytest.raises(AssertionError, match="ends complete"):
        run.finish("FINISHED", end="pruned")


# ---- artifacts


def test_artifacts_come_back_as_they_were_stored(tracker: Tracker, run: Run, tmp_path: Path) -> None:
    run.log_text("grüße", "notes/a.md")
    run.log_json({"b": [1, None, "ü"]}, "b.json")
    run.log_bytes(bytes(range(256)), "pictures/c.png")
    (tmp_path / "d.bin").write_bytes(b"\0token=abcdef")
    run.log_file(tmp_path / "d.bin", "files")
    assert tracker.download(run.run_id, "notes/a.md").read_text() == "grüße"
    assert json.loads(tracker.download(run.run_id, "b.json").read_text()) == {"b": [1, None, "ü"]}
    assert tracker.download(run.run_id, "pictures/c.png").read_bytes() == bytes(range(256))
    assert tracker.download(run.run_id, "files/d.bin").read_bytes() == b"\0token=abcdef"
    names = {file.path for file in run._client.list_artifacts(run.run_id)}
    assert names == {"notes", "b.json", "pictures", "files"}, "MLflow lists other artifacts than were stored"
    with pytest.raises(StoreError, match="no artifact nothing"):
        tracker.download(run.run_id, "nothing")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
def test_an_artifact_never_leaves_its_folder(run: Run, path: str) -> None:
    with pytest.raises(AssertionError, match="not an artifact path"):
        run.log_text("x", path)


def test_a_full_disk_while_an_artifact_is_stored_keeps_the_old_one(
    tracker: Tracker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_text("old", "a.txt")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="No space left"):
            run.log_text("new", "a.txt")
    assert tracker.download(run.run_id, "a.txt").read_text() == "old"


def test_a_table_comes_back_with_every_row(tracker: Tracker, run: Run) -> None:
    names = ['a,"b".jpg', "line\nbreak.jpg", "ü.jpg"]
    run.log_table({"picture": names, "score": [0.25, math.nan, 1e-300], "note": [None, "x", ""]}, "predictions/val")
    text = tracker.download(run.run_id, "predictions/val.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["picture"] for row in rows] == names
    assert [row["score"] for row in rows] == ["0.25", "", "1e-300"]
    with pytest.raises(AssertionError, match="differ in length"):
        run.log_table({"a": [1], "b": []}, "x.csv")


def test_the_data_set_is_recorded_once_with_digest_and_counts(tracker: Tracker, run: Run, store: Path) -> None:
    counts = {"train": {"real": 3, "fake": 4}, "val": {"real": 1, "fake": 2}}
    for attempt in (run, open_tracker(store).resume_run(run.run_id)):
        attempt.log_dataset("/data/faces", "f" * 32, counts, ("train", "val"))
    [known] = run._client.get_run(run.run_id).inputs.dataset_inputs
    assert (known.dataset.name, known.dataset.digest) == ("faces", "f" * 32)
    assert json.loads(known.dataset.profile) == {"pictures": 10, **counts}
    assert json.loads(known.dataset.source) == {"uri": "/data/faces"}


# ---- failures on the way, and secrets


def test_a_store_that_fails_on_the_way_is_said_in_one_line(run: Run, store: Path) -> None:
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as raw:
        raw.execute("drop table metrics")
    with pytest.raises(StoreError, match=r"the tracking store .* failed: .*metrics") as caught:
        run.log_metrics({"a": 1.0})
    assert "\n" not in caught.value.message and len(caught.value.message) < 500


def test_a_setting_that_mlflow_would_cut_is_our_mistake(tracker: Tracker) -> None:
    with pytest.raises(AssertionError, match="6001 characters"):
        tracker.start_run("a", key="a", settings={"data.source": "x" * 6001}, tags={})


def test_a_long_tag_is_cut_and_says_so(tracker: Tracker, run: Run) -> None:
    run.set_tags({"long": "x" * 9000})
    assert tracker.find_run(run.run_id).tags["long"].endswith("[cut: 9000 characters]")


def test_no_planted_secret_is_found_in_any_byte_of_the_store(
    tracker: Tracker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ["opensesame", "tr0ub4dor", "q1w2e3r4t5"]
    monkeypatch.setenv("SOME_SERVICE_TOKEN", secrets[1])
    text = f"see postgresql://bob:{secrets[0]}@h/db and {secrets[1]} and ?api_key={secrets[2]}&x=1"
    run = tracker.start_run(text, key="s", settings={"data.source": text}, tags={"source": text, "user": text})
    run.set_tags({"more": text})
    run.log_text(text, "diff.patch")
    run.log_json({"nested": [text]}, "a.json")
    run.log_table({"picture": [text]}, "t.csv")
    (tmp_path / "study.toml").write_text(text)
    run.log_file(tmp_path / "study.toml")
    run.log_dataset(text, "0" * 32, {"train": {"real": 1, "fake": 1}})
    run.finish("FAILED", reason=text, trace=text)
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as raw:
        raw.execute("pragma wal_checkpoint(truncate)")
    files = [path for path in store.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, f"{secret} stands in {path.relative_to(store)}"
    assert b"postgresql://[hidden]@h/db" in (store / "mlflow.db").read_bytes(), "more was removed than the secret"


def test_no_vendor_object_leaves_the_door(tracker: Tracker, run: Run) -> None:
    public = [tracker.find_run(run.run_id), tracker.runs(), tracker.store, run.record, tracker.experiment_id]
    for value in public:
        for item in value if isinstance(value, list) else [value]:
            assert type(item).__module__.partition(".")[0] in ("dftrack", "builtins"), f"{item!r} is a vendor's"
    assert isinstance(public[0], RunRecord)
