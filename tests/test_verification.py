"""What was logged must follow from what was stored: every way to break that is noticed, and named."""

import math
from pathlib import Path

import pytest

from dftrack.errors import SettingError, StoreError
from dftrack.tracking import Run, Tracker, open_tracker
from dftrack.verification import check_published, verify
from tests.released import Recipe, record, scored

SPLITS = (scored("val", 80, skill=1.5), scored("test-dev", 60, skill=1.2))


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


def recorded(tracker: Tracker, **more: object) -> Run:
    return record(tracker, SPLITS, Recipe(model=False, **more))


def test_honest_numbers_follow_and_what_cannot_be_derived_is_said_to_be_so(tracker: Tracker) -> None:
    found = verify(tracker, recorded(tracker).run_id)
    assert found.holds, found.faults
    verdicts = {claim.name: claim.verdict for claim in found.claims}
    assert verdicts["test-dev/roc_auc"] == verdicts["val/always_fake/f1"] == "follows"
    assert verdicts["train/loss"] == "not to be derived"


@pytest.mark.parametrize("name", ["test-dev/roc_auc", "val/brier", "test-dev/always_fake/accuracy"])
def test_a_number_that_was_changed_is_named_with_both_values(tracker: Tracker, name: str) -> None:
    found = verify(tracker, recorded(tracker, metrics={name: 0.987}).run_id)
    [claim] = found.faults
    assert (claim.name, claim.logged) == (name, 0.987)
    assert claim.computed is not None and claim.computed < 0.98


def test_one_changed_score_breaks_what_rests_on_it(tracker: Tracker) -> None:
    run = recorded(tracker)
    place = tracker.download(run.run_id, "predictions/test-dev.csv")
    lines = place.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ",0.9999"
    place.write_text("\n".join(lines) + "\n")
    faults = {claim.name for claim in verify(tracker, run.run_id).faults}
    assert {"test-dev/log_loss", "test-dev/brier"} <= faults
    assert not any(name.startswith("val/") for name in faults)


def test_an_infinite_number_does_not_follow(tracker: Tracker) -> None:
    run = recorded(tracker)
    run._client.log_metric(run.run_id, "test-dev/log_loss", math.inf)  # past our own guard, as another tool might
    assert [claim.name for claim in verify(tracker, run.run_id).faults] == ["test-dev/log_loss"]


def test_numbers_that_contradict_each_other_are_told_apart_from_numbers_that_are_wrong(tracker: Tracker) -> None:
    found = verify(tracker, recorded(tracker, metrics={"test-dev/f1": 0.999}).run_id)
    [sentence] = found.contradictions
    assert sentence.startswith("test-dev: F1 0.999 lies above both")


def test_a_run_without_predictions_is_refused(tracker: Tracker) -> None:
    run = record(tracker, (), Recipe(model=False))
    with pytest.raises(StoreError, match="stored no predictions"):
        verify(tracker, run.run_id)


def test_scores_that_are_no_probabilities_are_refused(tracker: Tracker) -> None:
    run = recorded(tracker)
    place = tracker.download(run.run_id, "predictions/val.csv")
    lines = place.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ",1.5"
    place.write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match="no probabilities"):
        verify(tracker, run.run_id)


def test_the_table_with_mixed_rows_cannot_be_one_classifiers() -> None:
    mixed = check_published({"accuracy": 0.8278, "precision": 0.8918, "recall": 0.8918, "f1": 0.9758})
    assert "F1 0.9758 lies above both precision 0.8918 and recall 0.8918" in mixed.contradictions[0]


def test_the_corrected_table_can_be_and_implies_its_share_of_fakes() -> None:
    dev = check_published({"accuracy": 0.9716, "precision": 0.9608, "recall": 0.9913, "f1": 0.9758})
    assert dev.contradictions == ()
    assert dev.share_fake is not None and dev.share_fake.value == pytest.approx(0.578, abs=5e-4)
    challenge = check_published({"accuracy": 0.8278, "precision": 0.8918, "recall": 0.8014, "f1": 0.8441})
    assert challenge.contradictions == ()


def test_numbers_of_a_split_whose_predictions_are_gone_are_not_taken_for_proven(tracker: Tracker) -> None:
    run = recorded(tracker)
    tracker.download(run.run_id, "predictions/test-dev.csv").unlink()
    found = verify(tracker, run.run_id)
    assert not found.holds
    assert {claim.verdict for claim in found.claims if claim.name.startswith("test-dev/")} == {"nothing to show it"}


def test_a_number_that_is_not_there_any_more_is_missed(tracker: Tracker) -> None:
    run = recorded(tracker, metrics={"test-dev/roc_auc": None})
    tracker.open_run(run.run_id).set_tags({"dftrack.undefined": ""})
    [claim] = verify(tracker, run.run_id).faults
    assert (claim.name, claim.logged) == ("test-dev/roc_auc", None)


def test_a_file_that_says_other_numbers_is_noticed(tracker: Tracker) -> None:
    run = recorded(tracker)
    stored = {"splits": {"test-dev": {"metrics": {"roc_auc": 0.999}}}, "chosen": {"temperature": None}}
    tracker.open_run(run.run_id).log_json(stored, "evaluation.json")
    assert "evaluation.json: test-dev/roc_auc" in {claim.name for claim in verify(tracker, run.run_id).faults}


@pytest.mark.parametrize(("numbers", "digits"), [({"accuracy": 0.9}, -400), ({"accuracy": float("nan")}, 4)])
def test_a_published_number_that_is_none_is_refused(numbers: dict[str, float], digits: int) -> None:
    with pytest.raises(SettingError):
        check_published(numbers, digits)
