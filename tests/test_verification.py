"""What was logged must follow from what was stored: every way to break that is noticed, and named."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dftrack import __main__ as entry
from dftrack.dossier import EVALUATION, INTERVALS_TAG
from dftrack.errors import SettingError, StoreError
from dftrack.learning.assessment import choose, plain_numbers
from dftrack.learning.statistics import METHOD
from dftrack.tracking import Run, Tracker, open_tracker
from dftrack.verification import OF_A_SPLIT, check_published, derived, verify
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


@pytest.mark.parametrize(
    "numbers",
    [
        ("precision=.9", "f1=.99"),
        ("accuracy=.9", "f1=.5", "recall=.1"),
        ("accuracy=.5", "recall=1", "share_fake=.9"),
        ("accuracy=.1", "share_fake=.9", "recall=.95"),
        ("precision=.1", "recall=.9", "share_fake=.5"),
        ("accuracy=.8278", "precision=.8918", "recall=.8918", "f1=.9758"),
    ],
)
def test_an_impossible_table_is_refused_with_the_reason(
    numbers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = published(capsys, *numbers)
    assert code == 1, said
    assert said["possible"] is False and said["verdict"] == "cannot be one classifier's"
    assert len(said["contradictions"]) == 1, said


def test_a_table_is_taken_as_rounded_to_the_digits_it_was_typed_with(capsys: pytest.CaptureFixture[str]) -> None:
    table = ("accuracy=.97", "precision=.96", "recall=.99", "f1=0.98")
    code, said = published(capsys, *table)
    assert (code, said["possible"], set(said["digits"].values())) == (0, True, {2})
    code, said = published(capsys, *table, "--digits", "4")
    assert (code, said["possible"], set(said["digits"].values())) == (1, False, {4})
    code, said = published(capsys, "accuracy=.9716", "recall=1", "precision=.97")
    assert said["digits"] == {"accuracy": 4, "recall": 2, "precision": 2}, "a bare 1 is as exact as the least exact"
    code, said = published(capsys, "accuracy=1", "recall=1", "precision=1")
    assert (code, set(said["digits"].values())) == (0, {1})


def test_the_rounding_that_was_assumed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, said, note = typed(capsys, "accuracy=.97", "precision=.96", "recall=.99", "f1=.98")
    assert "This can be one classifier's" in said
    assert "rounded to 2 digits after the point" in note
    _, _, note = typed(capsys, "accuracy=.97", "precision=.9612")
    assert "accuracy 2, precision 4" in note


@pytest.mark.parametrize("numbers", [("accuracy=.9",), ("recall=.9", "share_fake=.5"), ("f1=.1", "share_fake=.9")])
def test_too_few_numbers_are_called_that_and_not_possible(
    numbers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = published(capsys, *numbers)
    assert (code, said["possible"], said["verdict"]) == (0, None, "too few numbers to check anything")
    code, text, _ = typed(capsys, *numbers)
    assert code == 0 and "Too few numbers to check anything" in text and "can be one" not in text


def test_a_number_that_cannot_be_one_is_refused_even_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = published(capsys, "accuracy=1.2")
    assert (code, said["possible"]) == (1, False)


def test_the_share_that_a_table_implies_is_one_that_pictures_can_have() -> None:
    found = check_published({"accuracy": 0.6, "precision": 1.0, "recall": 0.7}, 1)  # 133 % by the numbers as printed
    assert found.contradictions == () and found.share_fake is not None
    assert 0.9 < found.share_fake.low <= found.share_fake.value <= found.share_fake.high <= 1


def test_a_published_number_given_twice_is_refused_with_both(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, error = typed(capsys, "accuracy=.9", "f1=.5", "accuracy=.8")
    assert (code, said) == (2, "")
    assert "accuracy was given twice: '.9' and '.8'" in error


def published(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """`dftrack verify --published ... --json`: NAME=VALUE, then other options -> exit code, the object."""
    code, said, _ = typed(capsys, *words, "--json")
    return code, json.loads(said)


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    named = [part for word in words for part in (("--published", word) if "=" in word else (word,))]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("sys.argv", ["dftrack", "verify", *named])
        entry.main()
        raise SystemExit(0)
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


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


def judged(tracker: Tracker, method: str = METHOD, without: str = "nothing") -> Run:
    """As a baseline is recorded, with all that is said of it beyond metrics; but for metrics that begin so."""
    chosen = choose(SPLITS[0])
    numbers = derived({split.split: split for split in SPLITS}, 0.5, chosen)
    kept = {name: None if name.startswith(without) else value for name, value in numbers.items()}
    run = recorded(tracker, metrics=kept, tags={INTERVALS_TAG: method})
    if without != "nothing":
        run.set_tags({"dftrack.undefined": ""})
    splits = {split.split: plain_numbers(split, chosen, 0.5) for split in SPLITS}
    run.log_json({"chosen": dataclasses.asdict(chosen), "splits": splits}, EVALUATION)
    return run


def test_an_honest_file_follows(tracker: Tracker) -> None:
    found = verify(tracker, judged(tracker).run_id)
    assert found.holds, found.faults


FORGED = {
    "a count of the confusion matrix": (("splits", "test-dev", "confusion", 0, 0), 1),
    "an interval": (("splits", "test-dev", "intervals", "roc_auc", "low"), 0.99),
    "an interval of a defined metric": (("splits", "val", "intervals", "brier"), None),
    "a number by group": (("splits", "test-dev", "by_group", "accuracy"), 0.99),
    "an operating point": (("splits", "test-dev", "operating", 0, "fpr"), 0.0),
    "a share at a low rate": (("splits", "test-dev", "tpr", "tpr_at_10pct_fpr"), 1.0),
    "the calibration": (("splits", "test-dev", "calibration", "ece"), 0.0),
    "a bin of the reliability curve": (("splits", "test-dev", "calibration", "bins"), []),
    "the trivial detector": (("splits", "test-dev", "always_fake", "accuracy"), 0.1),
    "a metric": (("splits", "test-dev", "metrics", "roc_auc"), 0.999),
    "how many groups": (("splits", "test-dev", "groups"), 1000),
    "a threshold": (("chosen", "thresholds"), {}),
    "the temperature": (("chosen", "temperature"), 9.0),
    "a split": (("splits", "test-dev"), {}),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_place_of_the_file_is_noticed(tracker: Tracker, what: str) -> None:
    run = judged(tracker)
    (*way, last), value = FORGED[what]
    stored = json.loads(tracker.download(run.run_id, EVALUATION).read_text())
    place = stored
    for step in way:
        place = place[step]
    assert place[last] != value
    place[last] = value
    tracker.open_run(run.run_id).log_json(stored, EVALUATION)
    faults = verify(tracker, run.run_id).faults
    assert faults and all(claim.name.startswith(f"{EVALUATION}: ") for claim in faults), faults


def test_a_file_that_is_gone_and_numbers_that_are_gone_are_missed(tracker: Tracker) -> None:
    gone = judged(tracker)
    tracker.download(gone.run_id, EVALUATION).unlink()
    assert [claim.name for claim in verify(tracker, gone.run_id).faults] == [EVALUATION]
    for kind in OF_A_SPLIT:
        faults = verify(tracker, judged(tracker, without=kind).run_id).faults
        assert faults and all(claim.name.startswith(kind) for claim in faults), kind


def test_intervals_that_were_made_in_another_way_are_not_called_wrong(tracker: Tracker) -> None:
    run = judged(tracker, method="percentiles")
    run.log_metrics({"interval/test-dev/roc_auc/low": 0.123})
    found = verify(tracker, run.run_id)
    assert found.holds, found.faults
    verdicts = {claim.verdict for claim in found.claims if claim.name.startswith("interval/")}
    assert verdicts == {"not to be derived"}


@pytest.mark.parametrize("fault", ["it holds no pictures", "a picture stands in it twice"])
def test_a_table_of_predictions_that_cannot_be_one_is_refused_by_name(tracker: Tracker, fault: str) -> None:
    run = recorded(tracker)
    place = tracker.download(run.run_id, "predictions/val.csv")
    lines = place.read_text().splitlines()
    place.write_text("\n".join(lines[:1] if "no pictures" in fault else [*lines, lines[1]]) + "\n")
    with pytest.raises(StoreError, match=rf"val\.csv does not hold predictions: {fault}"):
        verify(tracker, run.run_id)


@pytest.mark.parametrize(("numbers", "digits"), [({"accuracy": 0.9}, -400), ({"accuracy": float("nan")}, 4)])
def test_a_published_number_that_is_none_is_refused(numbers: dict[str, float], digits: int) -> None:
    with pytest.raises(SettingError):
        check_published(numbers, digits)
