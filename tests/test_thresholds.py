"""Operating points against a search over every possible threshold, and what too few reals cannot show."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dftrack.errors import MetricError
from dftrack.learning.metrics import FloatArray, IntArray
from dftrack.learning.thresholds import best_f1, point_at, threshold_for_fpr, tpr_at_fpr, tpr_at_low_rates


@st.composite
def cases(draw: st.DrawFn) -> tuple[FloatArray, IntArray]:
    pairs = draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 1)), min_size=12, max_size=50))
    scores, labels = np.array([s / 15 for s, _ in pairs]), np.array([y for _, y in pairs])
    assume((labels == 0).sum() >= 10 and labels.any())
    return scores, labels


def rates(scores: FloatArray, labels: IntArray, threshold: float) -> tuple[float, float, float]:
    called = scores >= threshold
    tp, fp, fakes = (called & (labels == 1)).sum(), (called & (labels == 0)).sum(), (labels == 1).sum()
    return fp / (labels == 0).sum(), tp / fakes, 2 * tp / (called.sum() + fakes)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.1, 0.2, 0.35, 0.5]))
def test_no_other_threshold_catches_more_fakes_at_that_false_alarm_rate(
    case: tuple[FloatArray, IntArray], target: float
) -> None:
    point = threshold_for_fpr(*case, target)
    assert (point.fpr, point.tpr) == rates(*case, point.threshold)[:2], "the point does not describe its threshold"
    assert point.fpr <= target
    allowed = [rates(*case, t)[1] for t in [*np.unique(case[0]), 2.0] if rates(*case, t)[0] <= target]
    assert point.tpr == max(allowed)
    assume(len(set(case[0].tolist())) > 1)
    assert point.tpr == tpr_at_fpr(*case, target)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_no_other_threshold_has_a_better_f1(case: tuple[FloatArray, IntArray]) -> None:
    point = best_f1(*case)
    values = [rates(*case, t)[2] for t in np.unique(case[0])]
    assert point.f1 == pytest.approx(max(values))
    assert point.f1 == pytest.approx(rates(*case, point.threshold)[2])


def test_low_rates_agree_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000)
    scores = 1 / (1 + np.exp(-rng.normal(labels * 2.0)))
    found = tpr_at_low_rates(scores, labels)
    for name, rate in (("10pct", 0.1), ("5pct", 0.05), ("1pct", 0.01), ("0.1pct", 0.001)):
        oracle, _ = tm.binary_sensitivity_at_specificity(torch.tensor(scores), torch.tensor(labels), 1 - rate)
        assert found[f"tpr_at_{name}_fpr"] == pytest.approx(float(oracle), abs=2 / 2400), name


def test_a_rate_that_so_few_reals_cannot_show_is_undefined() -> None:
    labels = np.array([0] * 99 + [1] * 50)
    scores = np.linspace(0, 1, 149)
    found = tpr_at_low_rates(scores, labels)
    assert found["tpr_at_10pct_fpr"] == 1.0 and found["tpr_at_5pct_fpr"] == 1.0
    assert found["tpr_at_1pct_fpr"] is None and found["tpr_at_0.1pct_fpr"] is None
    with pytest.raises(MetricError, match=r"99 reals cannot show a false-alarm rate of 1.00%, 100 could"):
        threshold_for_fpr(scores, labels, 0.01)
    assert tpr_at_fpr(np.append(scores, 0.0), np.append(labels, 0), 0.01) == 1.0, "100 reals can"


def test_one_class_or_a_rate_that_is_none_is_refused() -> None:
    assert set(tpr_at_low_rates(np.ones(3), np.ones(3, int)).values()) == {None}
    equal = tpr_at_low_rates(np.full(4000, 0.3), np.arange(4000) % 2)
    assert set(equal.values()) == {None}, "equal scores rank nothing: undefined, not 0"
    for function in (best_f1, lambda s, y: threshold_for_fpr(s, y, 0.1)):
        with pytest.raises(MetricError, match="one class only"):
            function(np.full(20, 0.3), np.zeros(20, int))
    for target in (0.0, 1.0, -0.1):
        with pytest.raises(MetricError, match="between 0 and 1"):
            threshold_for_fpr(np.array([0.1, 0.9]), np.array([0, 1]), target)


def test_equal_scores_call_nothing_fake_at_a_low_rate_and_all_for_the_best_f1() -> None:
    scores, labels = np.full(40, 0.5), np.arange(40) % 2
    strict = threshold_for_fpr(scores, labels, 0.1)
    assert (strict.fpr, strict.tpr, strict.f1) == (0.0, 0.0, None)
    assert strict.threshold > 0.5
    loose = best_f1(scores, labels)
    assert (loose.fpr, loose.tpr, loose.threshold) == (1.0, 1.0, 0.5)


def test_thresholds_lie_between_scores_so_that_the_last_digit_does_not_decide() -> None:
    scores, labels = np.array([0.1, 0.2, 0.6, 0.8]), np.array([0, 0, 1, 1])
    assert best_f1(scores, labels).threshold == pytest.approx(0.4)
    assert threshold_for_fpr(scores, labels, 0.5).threshold == pytest.approx(0.15)
    touching = np.array([0.5, np.nextafter(0.5, 1)])
    assert best_f1(touching, np.array([0, 1])).f1 == 1.0, "two scores with no number between them"


def test_a_point_says_what_its_threshold_does() -> None:
    point = point_at(np.array([0.1, 0.7, 0.6, 0.8]), np.array([0, 0, 1, 1]), 0.65)
    assert (point.threshold, point.fpr, point.tpr, point.f1) == (0.65, 0.5, 0.5, 0.5)
