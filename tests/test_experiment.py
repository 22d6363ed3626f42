"""One experiment as a whole: what it records, how it stops, and that it ends the same however often it is killed."""

import dataclasses
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent import futures
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import optuna
import pytest
import torch
from filelock import FileLock, Timeout

from dftrack.config import Config, DataConfig, TrainConfig
from dftrack.data.batches import Batch
from dftrack.data.cache import open_data
from dftrack.errors import BusyExperiment, DataError, Interrupted, SettingError, StoreError, TrainingError
from dftrack.experiment import Notice, Plan, Result, Stage, Started, run_experiment
from dftrack.learning import checkpoint, snapshot, training
from dftrack.learning.checkpoint import Checkpoints
from dftrack.learning.training import Epoch, NonFiniteError, State, Step
from dftrack.objective import Objective
from dftrack.runtime import StopRequests
from dftrack.study.file import parse_study
from dftrack.study.jobs import Ended, Job
from dftrack.study.space import Choice, Float
from dftrack.study.trials import TrialCloser, TrialTrainer
from dftrack.tracking import Run, open_tracker
from tests.makers import make_faces

PLAIN = Plan(pictures=False)
SHORT_STUDY = """
name = "short"
[base]
train.epochs = 4
train.batch_size = 8
data.image_size = 16
[space]
model.dropout = { low = 0.0, high = 0.7 }
[pruning]
rungs = [1, 4]
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_faces(tmp_path_factory.mktemp("faces") / "faces", train=24, val=12, test=8)


def small(faces: Path, **train: object) -> Config:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, **train}
    return Config(data=DataConfig(source=str(faces), image_size=16), train=TrainConfig(**settings))


def finish(config: Config, store: Path, **more: object) -> Result:
    *_, last = run_experiment(config, store, **{"plan": PLAIN, **more})
    assert isinstance(last, Result)
    return last


def test_a_finished_run_holds_settings_curves_results_predictions_data_and_model(faces: Path, store: Path) -> None:
    result = finish(small(faces), store, plan=Plan())
    record = open_tracker(store).find_run(result.run_id)
    assert (record.status, record.end) == ("FINISHED", "complete")
    assert record.settings["train.learning_rate"] == "0.001" and record.settings["data.image_size"] == "16"
    assert [step for step, _ in open_tracker(store).metric_history(result.run_id, "val/roc_auc")] == [1, 2]
    flat = result.final.flat()
    for split in ("val", "test-dev"):
        for name in (
            "accuracy",
            "balanced_accuracy",
            "precision",
            "recall",
            "f1",
            "roc_auc",
            "average_precision",
            "eer",
            "log_loss",
            "brier",
            "share_fake",
        ):
            key = f"{split}/{name}"
            assert flat[key] is None or record.metrics[key] == pytest.approx(flat[key]), key
            assert f"{split}/always_fake/{name}" in flat
    for path in (
        "predictions/val.csv", "predictions/test-dev.csv", "curves/loss.png", "curves/roc.png",
        "curves/precision-recall.png", "confusion/val.png", "grad-cam/test-dev.png", "provenance/environment.json",
    ):  # fmt: skip
        assert open_tracker(store).download(result.run_id, path).stat().st_size > 50, path
    assert open_tracker(store).detector_folder(result.run_id).is_dir()
    assert not list((store / "checkpoints").rglob("*.safetensors")), "checkpoints go when a run is finished"


def test_nobody_need_listen_beyond_the_result(faces: Path, store: Path) -> None:
    events = run_experiment(small(faces), store, plan=PLAIN)
    result = next(event for event in events if isinstance(event, Result))
    events.close()
    assert open_tracker(store).find_run(result.run_id).status == "FINISHED", (
        "a finished run was taken for a stopped one"
    )


def test_the_recorded_model_gives_the_recorded_predictions(faces: Path, store: Path) -> None:
    import csv

    from dftrack.learning.detector import Detector

    result = finish(small(faces), store)
    tracker = open_tracker(store)
    text = tracker.download(result.run_id, "predictions/test-dev.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    detector = Detector.load(tracker.detector_folder(result.run_id))
    judged = list(detector.judge([faces / row["picture"] for row in rows]))
    assert len(rows) == 16
    for row, verdict in zip(rows, judged, strict=True):
        assert verdict.score == pytest.approx(float(row["score"]), abs=1e-6)


def test_the_same_command_twice_is_two_runs_with_the_same_numbers(faces: Path, store: Path) -> None:
    one, two = finish(small(faces), store), finish(small(faces), store)
    assert one.run_id != two.run_id
    assert one.final.flat() == two.final.flat()


def test_a_stop_request_closes_the_run_as_killed_and_the_same_experiment_goes_on(faces: Path, store: Path) -> None:
    config = small(faces)
    stop = StopRequests()
    with pytest.raises(Interrupted) as caught:
        for event in run_experiment(config, store, plan=PLAIN, stop=stop):
            if isinstance(event, Step) and event.epoch == 2:
                stop.exit_code = 143
    assert caught.value.exit_code == 143
    (record,) = open_tracker(store).runs()
    assert (record.status, record.end) == ("KILLED", "interrupted")
    events = list(run_experiment(config, store, plan=PLAIN))
    started = next(e for e in events if isinstance(e, Started))
    assert (started.run_id, started.epoch, started.step) == (record.run_id, 2, 1)
    assert open_tracker(store).find_run(record.run_id).status == "FINISHED"
    steps = [step for step, _ in open_tracker(store).metric_history(record.run_id, "val/loss")]
    assert steps == [1, 2], f"epochs recorded: {steps}"


def test_two_starts_of_one_experiment_at_once_do_not_disturb_each_other(faces: Path, store: Path) -> None:
    events = run_experiment(small(faces), store, plan=PLAIN)
    while not isinstance(next(events), Step):
        pass
    with pytest.raises(BusyExperiment, match="is being trained by another process"):
        finish(small(faces), store)
    assert next(e for e in events if isinstance(e, Result)).end == "complete"


def test_a_loss_that_is_not_finite_is_tried_once_more_in_fp32(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training._train_step

    def breaks_in_bf16(state: training.State, batch: object) -> object:
        loss = real(state, batch)
        if state.precision == "bf16" and (state.epoch, state.step) == (2, 1):
            return dataclasses.replace(loss, mean=loss.mean * float("nan"))
        return loss

    monkeypatch.setattr(training, "_train_step", breaks_in_bf16)
    events = list(run_experiment(small(faces, precision="bf16", checkpoint_seconds=0.0), store, plan=PLAIN))
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "the loss is not finite at epoch 2, step 2 (bf16): going on in fp32 from the last good state"
    ]
    record = open_tracker(store).find_run(events[-1].run_id)
    assert record.status == "FINISHED"
    assert "not finite" in record.tags["dftrack.fp32_retry"]
    assert [e.number for e in events if isinstance(e, Epoch)] == [1, 2], "the first epoch is not done again"


def test_a_loss_that_stays_not_finite_fails_the_run_with_the_reason(faces: Path, store: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        finish(small(faces, learning_rate=1e30, optimizer="sgd"), store)
    (record,) = open_tracker(store).runs()
    assert (record.status, record.end) == ("FAILED", "failed")
    assert "not finite" in record.tags["dftrack.reason"]
    assert not any(name.startswith("test") for name in record.metrics), "a failed run must not have results"
    assert "Traceback" in open_tracker(store).download(record.run_id, "failure/traceback.txt").read_text()


def test_exhausted_memory_fails_the_run_and_says_what_to_do(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(training, "_train_step", exhausted)
    with pytest.raises(TrainingError, match=r"memory is exhausted.*20\.00 GiB") as caught:
        finish(small(faces), store)
    assert "train.batch_size" in caught.value.hint
    assert open_tracker(store).runs()[0].status == "FAILED"


def test_an_unforeseen_failure_fails_the_run_and_keeps_its_traceback(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("our own mistake")

    monkeypatch.setattr(training, "_train_step", broken)
    with pytest.raises(KeyError):
        finish(small(faces), store)
    assert open_tracker(store).runs()[0].status == "FAILED"


def test_pausing_and_going_on_under_the_same_key_trains_no_epoch_twice(faces: Path, store: Path) -> None:
    config = small(faces, epochs=4)
    whole = finish(config, store)
    paused = finish(
        config, store, plan=Plan(key="t0", pictures=False, go_on=lambda e: "paused" if e.number == 1 else "")
    )
    assert paused.end == "paused"
    assert open_tracker(store).find_run(paused.run_id).end == "paused"
    events = list(run_experiment(config, store, plan=Plan(key="t0", pictures=False)))
    assert [e.number for e in events if isinstance(e, Epoch)] == [2, 3, 4]
    assert events[-1].run_id == paused.run_id
    assert events[-1].final.flat() == whole.final.flat()


@pytest.fixture
def writing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints as on a card: see tests/test_behind.py."""

    def checkpoints(folder: Path, *, every_seconds: float, behind: bool = False) -> Checkpoints:
        return Checkpoints(folder, every_seconds=every_seconds, behind=True)

    monkeypatch.setattr("dftrack.experiment.Checkpoints", checkpoints)


def test_checkpoints_written_behind_change_no_number_and_nothing_is_left(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None
) -> None:
    written = []
    real = checkpoint.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        written.append(threading.current_thread() is threading.main_thread())
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    config = small(faces, checkpoint_seconds=0.0)
    stop = StopRequests()
    with pytest.raises(Interrupted):
        for event in run_experiment(config, store, plan=PLAIN, stop=stop):
            if isinstance(event, Step) and (event.epoch, event.step) == (2, 3):
                stop.exit_code = 143
    assert True in written and False in written, "asked for: at once; due: behind"
    *_, last = events = list(run_experiment(config, store, plan=PLAIN))
    started = next(e for e in events if isinstance(e, Started))
    assert (started.epoch, started.step) == (2, 3)
    assert not list((store / "checkpoints").rglob("*.safetensors")), "it was written after they were cleaned up"
    monkeypatch.undo()
    assert last.final.flat() == finish(small(faces), store).final.flat()


@pytest.mark.parametrize("end", ["closed", "failed"])
def test_nobody_lets_go_of_the_folder_while_a_thread_writes_there(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None, end: str
) -> None:
    began, free, held = threading.Event(), threading.Event(), []
    real_save, real_wait, real_step = checkpoint.save_file, futures.wait, training._train_step

    def slow(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        began.set()
        assert free.wait(60.0), "nobody waited for the writer"
        lock = FileLock(path.parent / "lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            held.append("nobody holds it")
        real_save(tensors, path, metadata)
        held.append("saved")

    def wait(work: list[futures.Future[None]]) -> object:
        free.set()
        return real_wait(work)

    def breaks(state: training.State, batch: object) -> object:
        if end == "failed" and began.is_set():
            raise KeyError("our own mistake")
        return real_step(state, batch)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    monkeypatch.setattr("dftrack.learning.behind.futures.wait", wait)
    monkeypatch.setattr(training, "_train_step", breaks)
    events = run_experiment(small(faces, epochs=50, checkpoint_seconds=0.0), store, plan=PLAIN)
    with suppress(KeyError):
        for _ in events:
            if end == "closed" and began.is_set():
                break
    events.close()
    assert held == ["saved"]
    left = [path.name for path in (store / "checkpoints").rglob("*.safetensors")]
    assert len(left) == (1 if end == "closed" else 0), f"{left} after the training had {end}"
    (record,) = open_tracker(store).runs()
    assert record.status == ("KILLED" if end == "closed" else "FAILED")


def test_what_goes_wrong_behind_ends_the_training_as_it_would_at_once(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    config = small(faces, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
        patch.setattr(checkpoint, "save_file", full)
        finish(config, store)
    assert [(run.status, run.end) for run in open_tracker(store).runs()] == [("KILLED", "interrupted")]
    assert finish(config, store).end == "complete"


def test_weights_found_not_finite_behind_are_tried_once_more_in_fp32(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None
) -> None:
    real = checkpoint.save_file

    def finds(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if json.loads(metadata["state"])["precision"] == "bf16" and path.parent.joinpath("checkpoints.json").exists():
            raise NonFiniteError("the weights fc1.weight are not finite")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", finds)
    events = list(run_experiment(small(faces, precision="bf16", checkpoint_seconds=0.0), store, plan=PLAIN))
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "the weights fc1.weight are not finite: going on in fp32 from the last good state"
    ]
    assert events[-1].end == "complete"


@pytest.mark.timeout(170)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_give_each_time_the_same_bits(faces: Path, store: Path, kills: int) -> None:
    """Each training is killed with -9 at a random moment and started again until it ends; a forked child is a process
    like any other to the files and the database, and spares as many times the imports."""
    script = Path(__file__).with_name("kills.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [sys.executable, str(script), str(faces), str(store), str(kills)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout)
    assert outcome["killed"] >= kills, f"only {outcome['killed']} kills hit: {outcome}"
    trainings = len(outcome["weights"])  # the undisturbed one, and those that were killed
    assert trainings > kills
    assert len(set(outcome["weights"])) == 1, f"the final weights differ: {outcome['weights']}"
    assert len(set(outcome["predictions"])) == 1
    assert not outcome["compiler"], "a training imports torch._dynamo: see learning/optimizers.py"
    records = open_tracker(store).runs()
    assert len(records) == trainings + 1, "a killed training must go on in the same run"
    for record in records:
        assert record.status == "FINISHED"
        steps = [step for step, _ in open_tracker(store).metric_history(record.run_id, "val/roc_auc")]
        assert steps == [1, 2], f"run {record.run_id} has epochs {steps}"


def test_sigterm_stops_the_command_at_a_safe_point_with_its_exit_code(faces: Path, store: Path) -> None:
    command = [
        sys.executable, "-m", "dftrack", "baseline", "--data", str(faces), "--store", str(store), "--epochs", "500",
        "--set", "data.image_size=16", "--set", "train.batch_size=8",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "stopped" in err and "Traceback" not in err
    assert out == ""
    (record,) = open_tracker(store).runs()
    assert (record.status, record.end) == ("KILLED", "interrupted")


def test_a_store_that_fails_for_a_while_loses_nothing(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(faces, epochs=3, checkpoint_seconds=0.0)
    undisturbed = finish(config, store)
    real = Run.log_epoch

    def full(run: Run, step: int, metrics: dict[str, float | None]) -> bool:
        if step == 2:
            raise StoreError("database or disk is full")
        return real(run, step, metrics)

    monkeypatch.setattr(Run, "log_epoch", full)
    with pytest.raises(StoreError, match="disk is full"):
        finish(config, store)
    monkeypatch.setattr(Run, "log_epoch", real)
    record = open_tracker(store).runs(status="KILLED")[0]
    events = list(run_experiment(config, store, plan=PLAIN))
    assert events[-1].run_id == record.run_id
    assert min(e.number for e in events if isinstance(e, Epoch)) == 2, "the first epoch was trained again"
    assert events[-1].final.flat() == undisturbed.final.flat()


def test_a_run_that_cannot_be_described_is_not_left_running(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("our own mistake")

    monkeypatch.setattr("dftrack.experiment.record_start", broken)
    with pytest.raises(ValueError, match="our own"):
        finish(small(faces), store)
    assert [run.status for run in open_tracker(store).runs()] == ["FAILED"]


def test_a_picture_with_a_name_of_no_alphabet_is_recorded_all_the_same(
    faces: Path, store: Path, tmp_path: Path
) -> None:
    odd = make_faces(tmp_path / "odd", train=8, val=4, test=2)
    first = next((odd / "val" / "real").iterdir())
    os.rename(os.fsencode(first), os.fsencode(first.parent) + b"/Andr\xe9.jpg")
    result = finish(small(odd), store, plan=Plan())
    text = open_tracker(store).download(result.run_id, "predictions/val.csv").read_text()
    assert "Andr" in text


@pytest.mark.parametrize("name", ["data.source", "data.leaks"])
def test_an_objective_refuses_to_compare_trials_on_different_pictures(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} cannot be searched"):
        Objective(space={name: Choice(("a", "b"))})


def test_a_scripts_trial_does_not_go_on_as_the_interrupted_one_of_another_study(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Objective(small(faces, epochs=1), space={"model.dropout": Float(0.0, 0.7)}, store=store)

    def stopped(*_: object) -> float:
        raise KeyboardInterrupt

    for name in ("first", "second"):
        study = optuna.create_study(study_name=name, direction="maximize")
        study.enqueue_trial({"model.dropout": 0.5})
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            if name == "first":
                patch.setattr("dftrack.objective.value_of", stopped)
            study.optimize(train, n_trials=1)
    runs = {run.tags["dftrack.study"]: (run.status, run.end) for run in open_tracker(store).runs()}
    assert runs == {"first": ("KILLED", "interrupted"), "second": ("FINISHED", "complete")}


def test_a_trial_killed_between_its_end_and_optunas_knowledge_of_it_is_not_trained_again_from_the_start(
    faces: Path, store: Path
) -> None:
    study = parse_study(SHORT_STUDY).revised({"data.source": str(faces)})
    parent = open_tracker(store).start_run("study", key="parent", settings={}, tags={})
    train = TrialTrainer(study, store, "short", parent.run_id)
    job = Job("short", 0, {"model.dropout": 0.5}, start_epoch=0, stop_epoch=1, is_last=False, attempt=1, token=1)
    assert train(job, lambda epoch, value: None, StopRequests()).kind == "paused"
    last = dataclasses.replace(job, start_epoch=1, stop_epoch=4, is_last=True, token=2)
    values = []
    told: list[int] = []
    for attempt in (last, dataclasses.replace(last, start_epoch=4, attempt=2, token=3)):
        told.clear()
        outcome = train(attempt, lambda epoch, value: told.append(epoch), StopRequests())
        assert outcome.kind == "complete"
        assert 1 not in told, "its checkpoint was gone before Optuna knew that it had ended"
        values.append(outcome.value)
    assert values[0] == values[1]
    (trial,) = open_tracker(store).runs(parent=parent.run_id)
    assert (trial.status, trial.end) == ("FINISHED", "complete")
    TrialCloser(store, "short")(Ended(0, "complete", values[0], ""))
    assert not list((store / "checkpoints").rglob("*.safetensors")), "they go once Optuna knows"


def test_a_trial_is_not_trained_on_data_that_changed_since_its_study_began(store: Path, tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces", train=8, val=4, test=2)
    study = parse_study(SHORT_STUDY).revised({"data.source": str(faces)})
    began = open_data(study.config({}).data, store).digest
    parent = open_tracker(store).start_run("study", key="parent", settings={}, tags={})
    train = TrialTrainer(study, store, "short", parent.run_id, began)
    first = Job("short", 0, {"model.dropout": 0.5}, start_epoch=0, stop_epoch=1, is_last=False, attempt=1, token=1)
    assert train(first, lambda epoch, value: None, StopRequests()).kind == "paused"
    next((faces / "train" / "real").iterdir()).unlink()
    told: list[int] = []
    for job in (dataclasses.replace(first, start_epoch=1, stop_epoch=4, token=2), dataclasses.replace(first, trial=1)):
        with pytest.raises(DataError, match=f"the data have changed: .* the study began with {began}") as caught:
            train(job, lambda epoch, value: told.append(epoch), StopRequests())
        assert "--new" in caught.value.hint
    assert told == []
    (trial,) = open_tracker(store).runs(parent=parent.run_id)
    assert (trial.status, trial.end) == ("KILLED", "paused"), "the trial must be able to go on"
    assert list((store / "checkpoints").rglob("*.safetensors")), "its checkpoint must be left alone"


def test_a_trial_whose_checkpoint_lies_past_its_rung_pauses_all_the_same(faces: Path, store: Path) -> None:
    """A stop between an epoch's checkpoint and the trial's pause leaves it so; it must not train on to the end."""
    study = parse_study(SHORT_STUDY).revised({"data.source": str(faces)})
    parent = open_tracker(store).start_run("study", key="parent", settings={}, tags={})
    train = TrialTrainer(study, store, "short", parent.run_id)
    job = Job("short", 0, {"model.dropout": 0.5}, start_epoch=0, stop_epoch=1, is_last=False, attempt=1, token=1)
    told: list[int] = []
    for done in ([1], [1, 2]):
        outcome = train(job, lambda epoch, value: told.append(epoch), StopRequests())
        assert (outcome.kind, told) == ("paused", done)


def whose_writer_will_find_bad_weights(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[object, BaseException, None]:
    """A training at a step, while the writer of its last checkpoint is about to fail in bf16."""
    begun, free, real = threading.Event(), threading.Event(), checkpoint.save_file

    def finds(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if json.loads(metadata["state"])["precision"] == "bf16":
            begun.set()
            assert free.wait(60.0)
            raise NonFiniteError("the weights fc1.weight are not finite")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", finds)
    config = small(faces, precision="bf16", checkpoint_seconds=0.0, epochs=40)
    events = run_experiment(config, store, plan=PLAIN)
    while not begun.is_set():
        next(events)
    while not isinstance(next(events), Step):
        pass
    free.set()
    return cast("Generator[object, BaseException, None]", events)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of somebody else")])
def test_an_error_under_way_is_not_lost_for_what_the_writer_found(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None, error: BaseException
) -> None:
    events = whose_writer_will_find_bad_weights(faces, store, monkeypatch)
    with pytest.raises(type(error)):
        events.throw(error)


def test_a_training_can_be_dropped_though_the_writer_found_bad_weights(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None
) -> None:
    whose_writer_will_find_bad_weights(faces, store, monkeypatch).close()


def test_a_loss_that_nobody_has_seen_yet_is_in_no_checkpoint(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step, real_look = training._train_step, training._finite

    def breaks_in_bf16(state: State, batch: Batch) -> object:
        loss = real_step(state, batch)
        broken = state.precision == "bf16" and (state.epoch, state.step) == (2, 1)
        return replace(loss, mean=loss.mean * math.nan) if broken else loss

    def looks_at_the_end(loss: object, state: State) -> float | None:  # as on a card, where looking means waiting
        return real_look(loss, state) if state.step == 3 else None

    monkeypatch.setattr(training, "_train_step", breaks_in_bf16)
    monkeypatch.setattr(training, "_finite", looks_at_the_end)
    events = list(run_experiment(small(faces, precision="bf16", checkpoint_seconds=0.0), store, plan=PLAIN))
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "the losses are not finite after epoch 2, step 2: going on in fp32 from the last good state"
    ]
    assert isinstance(events[-1], Result)


def test_where_no_memory_can_be_pinned_checkpoints_are_written_at_once(
    faces: Path, store: Path, monkeypatch: pytest.MonkeyPatch, writing_behind: None
) -> None:
    written, real = [], checkpoint.save_file

    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        written.append(threading.current_thread() is threading.main_thread())
        real(tensors, path, metadata)

    monkeypatch.setattr(snapshot.Room, "make", full)
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    finish(small(faces, checkpoint_seconds=0.0), store)
    assert written and all(written)


def test_the_second_state_is_gone_when_the_model_is_judged(faces: Path, store: Path, writing_behind: None) -> None:
    for event in run_experiment(small(faces, checkpoint_seconds=0.0), store, plan=PLAIN):
        if isinstance(event, Stage) and event.what == "judging the model":
            assert not any(room._places for room in gc.get_objects() if type(room) is snapshot.Room)
            return
    pytest.fail("the model was not judged")
