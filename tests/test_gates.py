"""Each gate refuses for its own reason, and lets pass what it has no reason to refuse."""

import dataclasses
import math

import numpy as np
import pytest

from dftrack import gates
from dftrack.errors import SettingError
from dftrack.gates import Gate, Limits
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.statistics import Paired, clustered_delong
from tests.released import scored


def logged(*found: Predictions, threshold: float = 0.5) -> dict[str, float]:
    """What an honest run would have logged."""
    values: dict[str, float | None] = {}
    for one in found:
        judged = report(one, threshold)
        values |= {f"{one.split}/{name}": value for name, value in judged.metrics.items()}
        values |= {f"{one.split}/always_fake/{name}": value for name, value in judged.always_fake.items()}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("status", "end", "passed"),
    [
        ("FINISHED", "complete", True),
        ("KILLED", "pruned", False),
        ("FAILED", "failed", False),
        ("RUNNING", "", False),
    ],
)
def test_only_a_finished_run_passes(status: str, end: str, passed: bool) -> None:
    gate = gates.finished(status, end)
    assert gate.passed is passed and status in gate.found


def test_honest_metrics_pass_at_either_threshold() -> None:
    tests, val = scored("test-dev", 80, skill=1.0), scored("val", 40, skill=1.0)
    predictions = {"test-dev": tests, "val": val}
    assert gates.metrics_true(logged(tests, val), predictions).passed
    assert gates.metrics_true(logged(tests, val, threshold=0.3), predictions, 0.3).passed
    assert not gates.metrics_true(logged(tests, val, threshold=0.3), predictions, 0.4).passed


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.7976931348623157e308, math.nan])
def test_an_infinite_metric_is_refused_also_as_mlflow_stores_it(value: float) -> None:
    tests = scored("test-dev", 80, skill=1.0)
    gate = gates.metrics_true({**logged(tests), "train/loss": value}, {"test-dev": tests})
    assert gate.passed is False and "train/loss is" in gate.found


@pytest.mark.parametrize("name", ["roc_auc", "accuracy", "eer", "n", "always_fake/accuracy"])
def test_a_metric_that_the_predictions_do_not_give_is_refused(name: str) -> None:
    tests = scored("test-dev", 80, skill=1.0)
    honest = logged(tests)
    raised = {**honest, f"test-dev/{name}": honest[f"test-dev/{name}"] + 1e-4}
    gate = gates.metrics_true(raised, {"test-dev": tests})
    assert gate.passed is False and f"test-dev/{name} is logged as" in gate.found
    del honest[f"test-dev/{name}"]
    assert gates.metrics_true(honest, {"test-dev": tests}).passed is False, "one that is missing was not missed"


def test_a_run_without_test_predictions_or_with_scores_that_are_no_numbers_is_refused() -> None:
    tests, val = scored("test-dev", 80, skill=1.0), scored("val", 40, skill=1.0)
    assert gates.metrics_true(logged(val), {"val": val}).passed is False
    broken = dataclasses.replace(tests, scores=np.where(np.arange(80) == 3, np.nan, tests.scores))
    assert gates.metrics_true(logged(tests), {"test-dev": broken}).passed is False


def test_leaks_that_were_trained_on_are_refused() -> None:
    assert gates.no_leaks([], audited=True).passed
    gate = gates.no_leaks(["7 leaks were trained on"], audited=True)
    assert gate.passed is False and "7 leaks" in gate.found
    gate = gates.no_leaks([], audited=False)
    assert gate.passed is False and "no audit" in gate.found, "what nobody looked for was let pass"


def test_too_few_test_pictures_are_refused_and_val_does_not_count() -> None:
    predictions = {"val": scored("val", 500, skill=1.0), "test-dev": scored("test-dev", 120, skill=1.0)}
    assert gates.enough_pictures(predictions, 120).passed
    assert gates.enough_pictures(predictions, 121).passed is False


def test_a_run_is_refused_if_the_champion_is_significantly_better_or_more_than_the_margin_ahead() -> None:
    def verdict(difference: float, low: float, high: float, p: float) -> Gate:
        return gates.not_worse({"test-dev": Paired(difference, low, high, p)}, 0.02)

    assert verdict(-0.005, -0.008, -0.002, 0.001).passed is False, "small but certain"
    assert verdict(-0.05, -0.2, 0.1, 0.5).passed is False, "uncertain but large"
    assert verdict(0.0, -0.04, 0.04, 1.0).passed
    assert "a loss of 0.040 is not ruled out" in verdict(0.0, -0.04, 0.04, 1.0).found
    assert "ruled out" not in verdict(0.0, -0.01, 0.01, 1.0).found
    assert verdict(0.03, 0.01, 0.05, 0.001).passed
    assert gates.not_worse({"test-dev": None}, 0.02).passed is False
    assert gates.not_worse({}, 0.02).passed is False
    both = {"a": Paired(0.1, 0.05, 0.15, 0.001), "b": Paired(-0.1, -0.15, -0.05, 0.001)}
    assert gates.not_worse(both, 0.02).passed is False, "one split may not pay for another"


def test_a_lower_bound_as_criterion_would_refuse_most_runs_that_are_exactly_as_good() -> None:
    """Why the lower end of the interval is told and not judged: 320 pictures, two like detectors, margin 0.02."""
    by_bound = by_gate = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = np.arange(320) % 2
        shared = random.normal(size=320) + 1.5 * labels
        ones, twos = (1 / (1 + np.exp(-shared - 0.6 * random.normal(size=320))) for _ in range(2))
        pair = clustered_delong(ones, twos, labels, [str(i // 4) for i in range(320)])
        by_bound += pair.low < -0.02
        by_gate += not gates.not_worse({"test-dev": pair}, 0.02).passed
    assert by_bound > 20 and by_gate < 12, (by_bound, by_gate)


def test_the_floor_of_the_files_traits_has_to_be_beaten_where_it_was_measured() -> None:
    assert gates.above_shortcuts(0.9, 0.7).passed
    assert gates.above_shortcuts(0.7, 0.7).passed is False
    assert gates.above_shortcuts(None, 0.7).passed is False
    assert gates.above_shortcuts(0.9, None).passed is None
    assert gates.above_shortcuts(0.48, 0.46).passed is False, "a floor below chance is no floor: chance is"
    assert gates.above_shortcuts(0.6, 0.46).found.endswith("none found (0.4600)")


def test_a_detector_no_better_than_always_saying_fake_is_refused() -> None:
    assert gates.above_always_fake({"test-dev": scored("test-dev", 400, skill=1.5)}, 0.5).passed
    tests = scored("test-dev", 400, skill=0.0, noise=3)
    assert (
        gates.above_always_fake({"test-dev": dataclasses.replace(tests, scores=1 - tests.labels * 0.9)}, 0.5).passed
        is False
    )
    always = dataclasses.replace(tests, scores=np.ones(400))
    assert gates.above_always_fake({"test-dev": always}, 0.5).passed is False
    assert gates.above_always_fake({"val": tests}, 0.5).passed is False


def test_robustness_is_judged_on_the_corruptions_that_both_have_and_left_open_otherwise() -> None:
    ours = {"robustness/jpeg/1": 0.8, "robustness/jpeg/2": 0.7, "robustness/blur/1": 0.1}
    theirs = {"robustness/jpeg/1": 0.82, "robustness/jpeg/2": 0.72}
    assert gates.robust(ours, theirs, True, 0.03).passed
    assert gates.robust(ours, theirs, True, 0.01).passed is False
    assert gates.robust(ours, {}, True, 0.03).passed is None
    assert "the champion" in gates.robust(ours, {}, True, 0.03).found
    assert gates.robust(ours, theirs, False, 0.03).passed is None
    assert gates.robust(ours, None, False, 0.03).passed is None


def test_the_probability_that_ships_has_to_be_calibrated() -> None:
    tests = scored("test-dev", 2000, skill=1.0)
    sure = dataclasses.replace(tests, scores=1 / (1 + (1 / tests.scores - 1) ** 8))  # logits times 8
    assert gates.calibrated({"test-dev": tests}, None, 0.15).passed
    assert gates.calibrated({"test-dev": sure}, None, 0.15).passed is False
    assert gates.calibrated({"test-dev": sure}, 8.0, 0.15).passed, "the temperature that ships was not applied"


def test_a_score_that_changes_on_the_way_is_refused() -> None:
    assert gates.round_trip(16, 9e-6, "").passed
    assert gates.round_trip(16, 2e-5, "").passed is False
    assert gates.round_trip(0, None, "the data are gone").found == "the data are gone"


def test_what_was_not_judged_stops_nobody_and_a_failure_does() -> None:
    open_, good, bad = (Gate("g", "w", "f", passed) for passed in (None, True, False))
    assert gates.allowed([open_, good]) and not gates.allowed([open_, good, bad])


@pytest.mark.parametrize("wrong", [{"pictures": 0}, {"margin": -0.1}, {"ece": 1.5}, {"robustness": math.nan}])
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="must be"):
        Limits(**wrong)
