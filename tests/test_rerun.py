"""A recorded run trained again: bit for bit the same, or it is said what differs and whether that is noise."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from dftrack.config import Config, Value, vary
from dftrack.errors import DataError, DeviceError, SettingError, StoreError
from dftrack.experiment import Plan, Result, run_experiment
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import roc_auc
from dftrack.likeness import MARGIN, likeness
from dftrack.recording import prediction_columns
from dftrack.rerun import KIND, OF_TAG, VERDICT_TAG, Rebuilt, Request, Verdict, rebuild, rerun
from dftrack.surroundings import _by_file
from dftrack.tracking import Run, Tracker, open_tracker
from tests.makers import make_faces
from tests.released import scored

SMALL: Mapping[str, Value] = {"data.image_size": 16, "train.batch_size": 8, "train.epochs": 2, "train.device": "cpu"}
QUIET = Plan(pictures=False)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_faces(tmp_path_factory.mktemp("faces") / "faces", train=10, val=5, test=5)


def trained(faces: Path, store: Path, plan: Plan = QUIET, **more: Value) -> str:
    config = vary(Config(), {**SMALL, "data.source": str(faces), **{k.replace("__", "."): v for k, v in more.items()}})
    *_, result = run_experiment(config, store, plan=plan)
    assert isinstance(result, Result)
    return result.run_id


def again(store: Path, run: str, **request: object) -> tuple[Rebuilt, Verdict]:
    events = list(rerun(Request(run=run, **request), store))
    [rebuilt] = [event for event in events if isinstance(event, Rebuilt)]
    assert isinstance(events[-1], Verdict)
    return rebuilt, events[-1]


def test_the_same_run_again_is_bit_identical_and_recorded_as_such(faces: Path, store: Path) -> None:
    old = trained(faces, store)
    rebuilt, verdict = again(store, old[:10])
    assert verdict.likeness.word == "bit-identical", verdict.sentence()
    assert [change for change in rebuilt.changes if change.kind != "code"] == []
    assert {text.split(" (")[0] for text in verdict.likeness.equal} == {
        "train/loss of 2 epochs",
        "val/loss of 2 epochs",
        "the weights",
        "the 10 predictions on val",
        "the 10 predictions on test-dev",
    }
    tracker = open_tracker(store)
    new = tracker.find_run(verdict.run_id)
    assert new.run_id != old and new.status == "FINISHED"
    assert (new.tags[OF_TAG], new.tags["dftrack.kind"], new.tags[VERDICT_TAG]) == (old, KIND, "bit-identical")
    assert new.settings == tracker.find_run(old).settings
    kept = json.loads(tracker.download(new.run_id, "rerun/verdict.json").read_text())
    assert kept["verdict"] == "bit-identical" and kept["of"] == old
    third = again(store, old)[1]
    assert third.run_id not in (old, new.run_id), "a finished rerun was taken up again"


def test_another_seed_says_that_the_order_of_the_data_differs(faces: Path, store: Path) -> None:
    old = trained(faces, store)
    rebuilt, verdict = again(store, old, changes={"train.seed": "1"})
    assert "train.seed 0 -> 1: other initial weights, another order of the data and other dropout" in map(
        str, rebuilt.changes
    )
    assert verdict.likeness.word in ("within seed noise", "different")
    assert "train/loss from epoch 1 on" in verdict.sentence() and "another order of the data" in verdict.sentence()
    assert "DeLong" in verdict.likeness.method
    assert open_tracker(store).find_run(verdict.run_id).settings["train.seed"] == "1"


def test_pictures_that_changed_are_refused_unless_it_is_to_be_anyway(tmp_path: Path, store: Path) -> None:
    faces = make_faces(tmp_path / "faces", train=10, val=5, test=5)
    old = trained(faces, store)
    moved = faces.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="there is no"):
        again(store, old)
    assert again(store, old, source=str(moved))[1].likeness.word == "bit-identical", "the same pictures elsewhere"
    with pytest.raises(DataError, match="there is no 'typo'"):  # --set counts last, as in every command
        again(store, old, source=str(moved), changes={"data.source": "typo"})
    lost = sorted((moved / "val" / "fake").iterdir())[0]
    lost.unlink()
    before = len(open_tracker(store).runs())
    with pytest.raises(DataError) as caught:
        again(store, old, source=str(moved))
    assert "val/fake 5 pictures -> 4" in caught.value.message and lost.name in caught.value.message
    assert "--anyway" in caught.value.hint and len(open_tracker(store).runs()) == before
    _, verdict = again(store, old, source=str(moved), anyway=True)
    assert verdict.likeness.word != "bit-identical" and "the digest" in verdict.sentence()


def test_the_threads_of_the_run_are_used_and_given_back(faces: Path, store: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        old = trained(faces, store)
    finally:
        torch.set_num_threads(1)
    try:
        rebuilt, verdict = again(store, old)
        assert (rebuilt.threads, torch.get_num_threads()) == (2, 1)
        assert verdict.likeness.word == "bit-identical", verdict.sentence()
    finally:
        torch.set_num_threads(before)


def test_a_rerun_that_was_interrupted_goes_on_in_its_own_run(faces: Path, store: Path) -> None:
    old = trained(faces, store)
    tracker = open_tracker(store)
    events = rerun(Request(run=old), store)
    for event in events:
        if type(event).__name__ == "Epoch":
            break
    events.close()
    [begun] = tracker.runs(tags={OF_TAG: old})
    assert (begun.status, begun.end) == ("KILLED", "interrupted")
    _, verdict = again(store, old)
    assert verdict.run_id == begun.run_id and verdict.likeness.word == "bit-identical"


def test_a_trial_opens_no_test_split_when_it_is_run_again(faces: Path, store: Path) -> None:
    old = trained(faces, store, Plan(kind="trial", open_tests=False, pictures=False, keep_model=False))
    _, verdict = again(store, old)
    assert verdict.likeness.word == "bit-identical"
    assert any("weights" in note for note in verdict.likeness.notes)
    new = open_tracker(store).find_run(verdict.run_id)
    assert not [name for name in new.metrics if name.startswith("test")], "a rerun opened what its run had not"


def test_what_cannot_be_run_again_is_refused(faces: Path, store: Path) -> None:
    tracker = open_tracker(store)
    study = tracker.start_run("search", key="s", settings={"study.metric": "x"}, tags={"dftrack.kind": "study"})
    study.finish("FINISHED")
    with pytest.raises(StoreError, match="is no training but a study"):
        again(store, study.run_id)
    odd = tracker.start_run("odd", key="o", settings={**SMALL, "train.optimizer": "magic"}, tags={})
    with pytest.raises(StoreError, match=r"settings that cannot be used.*magic"):
        again(store, odd.run_id)
    fine = tracker.start_run("fine", key="f", settings=SMALL, tags={})
    with pytest.raises(SettingError, match=r"no setting 'train\.sed'"):
        again(store, fine.run_id, changes={"train.sed": "1"})


def test_neither_a_study_nor_an_evaluation_is_trained_again_whatever_settings_it_has(store: Path) -> None:
    tracker = open_tracker(store)
    tags = {"dftrack.kind": "study"}
    search = tracker.start_run("search", key="s", settings={"study.metric": "val/loss", **SMALL}, tags=tags).run_id
    with pytest.raises(StoreError, match="is no training but a study") as caught:
        rebuild(tracker.find_run(search), Request(run=search))
    assert f"parent={search}" in caught.value.hint
    tags = {"dftrack.kind": "evaluation", "dftrack.evaluated_run": "f" * 32}
    judged = tracker.start_run("judged", key="j", settings={"data.image_size": 16}, tags=tags).run_id
    with pytest.raises(StoreError, match="is no training but an evaluation") as caught:
        rebuild(tracker.find_run(judged), Request(run=judged))
    assert f"dftrack rerun {'f' * 12}" in caught.value.hint


def test_a_run_of_a_card_can_be_trained_again_where_there_is_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {**SMALL, "train.device": "cuda", "run.device": "cuda", "run.precision": "fp16"}
    tracker = open_tracker(store)
    run = tracker.find_run(tracker.start_run("far", key="f", settings=settings, tags={}).run_id)
    with pytest.raises(DeviceError) as caught:
        rebuild(run, Request(run=run.run_id))
    assert "--set train.device=cpu" in caught.value.hint
    train = rebuild(run, Request(run=run.run_id, changes={"train.device": "cpu"}))[0].train
    assert (train.device, train.precision) == ("cpu", "auto")


# the verdict on runs whose numbers are set


def recorded(tracker: Tracker, key: str, predictions: list[Predictions], *, seed: int = 0, loss: float = 0.5) -> Run:
    run = tracker.start_run(
        key, key=key, settings={"train.epochs": 2, "train.seed": seed}, tags={"dftrack.data_digest": "d" * 32}
    )
    for epoch in (1, 2):
        run.log_epoch(epoch, {"train/loss": loss / epoch, "val/loss": 0.6})
    for found in predictions:
        run.log_table(prediction_columns(found), f"predictions/{found.split}.csv")
        run.log_metrics({f"{found.split}/roc_auc": roc_auc(found.scores, found.labels)})
    run.finish("FINISHED")
    return run


def compared(tracker: Tracker, old: Run, new: Run) -> tuple[str, str, str]:
    found = likeness(tracker, tracker.find_run(old.run_id), tracker.find_run(new.run_id))
    return found.word, "; ".join(found.unequal), found.method


def test_the_first_epoch_that_differs_is_named(store: Path) -> None:
    tracker = open_tracker(store)
    predictions = [scored("test-dev", 200, skill=1.5)]
    old = recorded(tracker, "old", predictions)
    new = recorded(tracker, "new", predictions, loss=0.5 + 1e-15)
    word, unequal, method = compared(tracker, old, new)
    assert word == "within seed noise" and "predictions" not in unequal
    assert unequal.startswith("train/loss from epoch 1 on: 0.5 before, 0.500000000000001 now"), unequal
    assert "test-dev AUC" in method


def test_a_worse_model_is_different_and_a_shuffled_one_too(store: Path) -> None:
    tracker = open_tracker(store)
    old = recorded(tracker, "old", [scored("test-dev", 400, skill=2.0)])
    noisy = recorded(tracker, "noisy", [scored("test-dev", 400, skill=2.0, noise=1)], loss=0.51)
    worse = recorded(tracker, "worse", [scored("test-dev", 400, skill=0.5)], loss=0.51)
    assert compared(tracker, old, noisy)[0] == "within seed noise"
    word, unequal, method = compared(tracker, old, worse)
    assert word == "different" and "400 of 400 differ" in unequal and str(MARGIN) in method


def test_runs_with_other_seeds_tell_what_noise_is(store: Path) -> None:
    tracker = open_tracker(store)
    skills = {0: 1.0, 1: 1.25, 2: 1.5, 3: 1.75}
    runs = {
        seed: recorded(tracker, f"seed {seed}", [scored("test-dev", 400, skill=skill)], seed=seed)
        for seed, skill in skills.items()
    }
    new = recorded(tracker, "new", [scored("test-dev", 400, skill=1.3)], loss=0.51)
    word, _, method = compared(tracker, runs[0], new)
    assert word == "within seed noise" and "among 4 seeds of the same settings" in method
    values = [tracker.find_run(run.run_id).metrics["test-dev/roc_auc"] for run in runs.values()]
    assert f"standard deviation of {np.std(values, ddof=1):.4f}" in method
    hopeless = recorded(tracker, "hopeless", [scored("test-dev", 400, skill=-2.0)], loss=0.51)
    assert compared(tracker, runs[0], hopeless)[0] == "different"


def test_runs_without_numbers_in_common_are_not_comparable(store: Path) -> None:
    tracker = open_tracker(store)
    bare = tracker.start_run("bare", key="b", settings={}, tags={})
    bare.finish("FAILED")
    old = recorded(tracker, "old", [scored("val", 20, skill=1.0)])
    assert compared(tracker, bare, old)[0] == "not comparable"


def test_a_diff_is_read_by_file_without_the_hashes_of_contents() -> None:
    diff = (
        "diff --git a/dftrack/a.py b/dftrack/a.py\nindex 1..2 100644\n--- a\n+++ b\n+x\n"
        "diff --git a/README.md b/README.md\nindex 3..4\n+y\n"
    )
    assert _by_file(diff).keys() == {"dftrack/a.py", "README.md"}
    assert _by_file(diff) == _by_file(diff.replace("1..2", "5..6"))
