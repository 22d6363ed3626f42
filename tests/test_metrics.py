"""Each metric against an independent implementation, hand-counted cases, and what it must do when it is undefined."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats

from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.metrics import FloatArray, IntArray

KEYS = {
    "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "eer", "log_loss",
    "brier", "share_fake", "n",
}  # fmt: skip
SINGLE = (
    metrics.roc_auc, metrics.average_precision, metrics.equal_error_rate, metrics.accuracy, metrics.balanced_accuracy,
    metrics.precision, metrics.recall, metrics.f1, metrics.log_loss, metrics.brier,
)  # fmt: skip


def ints(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


def draw(seed: int, n: int = 200, *, ties: bool = False) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2 if seed % 2 else (np.arange(n) % 7 == 0).astype(int))
    scores = 1 / (1 + np.exp(-rng.normal(labels * 1.2 - 0.6)))
    return (np.round(scores, 1) if ties else scores), labels.astype(np.int64)


@st.composite
def scored_labels(draw: st.DrawFn) -> tuple[FloatArray, IntArray]:
    n = draw(st.integers(2, 40))
    scores = draw(arrays(np.float64, n, elements=st.integers(0, 12).map(lambda i: i / 12)))  # many ties
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 1)))
    assume(0 < labels.sum() < n)
    return scores, labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_every_metric_agrees_with_torchmetrics(seed: int, ties: bool) -> None:
    scores, labels = draw(seed, ties=ties)
    s, y = torch.tensor(scores), torch.tensor(labels)
    ours = metrics.summarise(scores, labels, threshold=0.45)
    oracle = {
        "accuracy": tm.binary_accuracy(s, y, threshold=0.45),
        "precision": tm.binary_precision(s, y, threshold=0.45),
        "recall": tm.binary_recall(s, y, threshold=0.45),
        "f1": tm.binary_f1_score(s, y, threshold=0.45),
        "roc_auc": tm.binary_auroc(s, y),
        "average_precision": tm.binary_average_precision(s, y),
        "log_loss": torch.nn.functional.binary_cross_entropy(s.clamp(1e-12, 1 - 1e-12), y.double()),
        "brier": torch.mean((s - y) ** 2),
        "balanced_accuracy": (
            tm.binary_recall(s, y, threshold=0.45) + tm.binary_specificity(s, y, threshold=0.45)
        ) / 2,
    }  # fmt: skip
    for name, value in oracle.items():
        if ours[name] is not None:
            assert ours[name] == pytest.approx(float(value), abs=2e-6), name
    assert set(ours) == KEYS


@settings(max_examples=40, deadline=None)
@given(scored_labels())
def test_auc_is_the_mann_whitney_statistic(case: tuple[FloatArray, IntArray]) -> None:
    scores, labels = case
    assume(len(set(scores.tolist())) > 1)
    fakes, reals = scores[labels == 1], scores[labels == 0]
    u = stats.mannwhitneyu(fakes, reals).statistic
    assert metrics.roc_auc(scores, labels) == pytest.approx(u / (len(fakes) * len(reals)))


@settings(max_examples=40, deadline=None)
@given(scored_labels())
def test_average_precision_is_the_sum_over_distinct_thresholds(case: tuple[FloatArray, IntArray]) -> None:
    scores, labels = case
    assume(len(set(scores.tolist())) > 1)
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        recall = float(labels[called].sum() / labels.sum())
        total += (recall - before) * float(labels[called].mean())
        before = recall
    assert metrics.average_precision(scores, labels) == pytest.approx(total)


@settings(max_examples=40, deadline=None)
@given(scored_labels())
def test_eer_is_where_the_joined_roc_points_cross_the_line_of_equal_errors(case: tuple[FloatArray, IntArray]) -> None:
    scores, labels = case
    assume(len(set(scores.tolist())) > 1)
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    fpr = [float(np.mean(scores[labels == 0] >= t)) for t in thresholds]
    tpr = [float(np.mean(scores[labels == 1] >= t)) for t in thresholds]
    way = np.arange(len(thresholds))  # walk along the polyline, so that vertical steps are no trouble

    def gap(at: float) -> float:
        return 1 - float(np.interp(at, way, tpr)) - float(np.interp(at, way, fpr))

    crossing = optimize.brentq(gap, 0, len(thresholds) - 1, xtol=1e-13)
    assert metrics.equal_error_rate(scores, labels) == pytest.approx(float(np.interp(crossing, way, fpr)), abs=1e-9)


def test_eer_of_cases_counted_by_hand() -> None:
    assert metrics.equal_error_rate(np.array([0.1, 0.2, 0.8, 0.9]), ints(0, 0, 1, 1)) == 0.0
    assert metrics.equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), ints(0, 0, 1, 1)) == 1.0
    assert metrics.equal_error_rate(np.array([0.1, 0.7, 0.3, 0.9]), ints(0, 0, 1, 1)) == 0.5
    # ROC (0,0) (0,1/3) (1/2,1/3) (1/2,1) (1,1): it crosses 1 - x on the flat part? no: on the rise at x = 1/2
    assert metrics.equal_error_rate(np.array([0.8, 0.1, 0.9, 0.5, 0.4]), ints(0, 0, 1, 1, 1)) == pytest.approx(0.5)
    # two classes share the score 0.5: the slanted piece from (0, 1/2) to (1/2, 1) meets 1 - x at x = 1/4
    assert metrics.equal_error_rate(np.array([0.1, 0.5, 0.5, 0.9]), ints(0, 0, 1, 1)) == pytest.approx(0.25)


@settings(max_examples=40, deadline=None)
@given(scored_labels())
def test_ranking_metrics_stay_in_bounds_and_follow_their_symmetries(case: tuple[FloatArray, IntArray]) -> None:
    scores, labels = case
    assume(len(set(scores.tolist())) > 1)
    auc, eer = metrics.roc_auc(scores, labels), metrics.equal_error_rate(scores, labels)
    assert 0 <= auc <= 1 and 0 <= eer <= 1
    assert 0 < metrics.average_precision(scores, labels) <= 1
    flipped = 1 - labels
    assert metrics.roc_auc(scores, flipped) == pytest.approx(1 - auc), "other labels must mirror the AUC"
    assert metrics.equal_error_rate(scores, flipped) == pytest.approx(1 - eer), "and the equal error rate"
    assert metrics.equal_error_rate(1 - scores, flipped) == pytest.approx(eer), "naming the classes otherwise must not"
    bent = np.exp(3 * scores) - 7  # strictly rising
    for metric in (metrics.roc_auc, metrics.average_precision, metrics.equal_error_rate):
        assert metric(bent, labels) == pytest.approx(metric(scores, labels)), metric.__name__


@settings(max_examples=40, deadline=None)
@given(scored_labels(), st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_the_pictures(case: tuple[FloatArray, IntArray], random: object) -> None:
    scores, labels = case
    order = np.arange(len(labels))
    random.shuffle(order)  # type: ignore[attr-defined]
    ours, shuffled = metrics.summarise(scores, labels), metrics.summarise(scores[order], labels[order])
    assert {k: v if v is None else pytest.approx(v) for k, v in ours.items()} == shuffled


@settings(max_examples=40, deadline=None)
@given(scored_labels())
def test_f1_lies_between_precision_and_recall(case: tuple[FloatArray, IntArray]) -> None:
    found = metrics.summarise(*case)
    if found["f1"] is not None:
        assert found["precision"] is not None and found["recall"] is not None
        low, high = sorted((found["precision"], found["recall"]))
        assert low - 1e-12 <= found["f1"] <= high + 1e-12
    else:
        assert found["precision"] is None


def test_equal_scores_rank_nothing_so_what_rests_on_rank_is_undefined() -> None:
    scores, labels = np.full(5, 0.7), ints(0, 1, 1, 0, 1)
    found = metrics.summarise(scores, labels)
    assert found["roc_auc"] is None and found["eer"] is None and found["average_precision"] is None
    assert found["accuracy"] == pytest.approx(0.6), "what does not rest on rank is defined"
    with pytest.raises(MetricError, match=r"all 5 scores are 0.7"):
        metrics.roc_auc(scores, labels)
    low = metrics.summarise(np.full(5, 0.2), labels)
    assert low["precision"] is None and low["f1"] is None, "nothing was called fake: undefined, not 0"
    assert low["recall"] == 0.0


def test_a_score_at_the_threshold_is_called_fake() -> None:
    assert metrics.confusion(np.array([0.5, 0.4999, 0.5]), ints(0, 0, 1)) == ((1, 1), (0, 1))


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_only_what_needs_both_is_undefined_and_the_rest_is_there(label: int) -> None:
    scores, labels = np.array([0.2, 0.9, 0.6]), np.full(3, label)
    found = metrics.summarise(scores, labels)
    undefined = {name for name, value in found.items() if value is None}
    needs_both = {"balanced_accuracy", "precision", "f1", "roc_auc", "average_precision", "eer"}
    assert undefined == needs_both | ({"recall"} if label == 0 else set())
    assert found["share_fake"] == label
    absent = metrics.CLASSES[1 - label]
    with pytest.raises(MetricError, match=f"there is no {absent} among 3"):
        metrics.roc_auc(scores, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (np.empty(0), ints(), "no pictures"),
        (np.array([0.5, np.nan]), ints(0, 1), "1 of 2 scores are not finite"),
        (np.array([np.inf, 0.1]), ints(0, 1), "not finite"),
        (np.array([0.5]), ints(0, 1), "2 labels need as many scores"),
        (np.array([0.5, 0.5]), ints(0, 2), "labels must be 0 .real. or 1 .fake., got 2"),
        (np.array([[0.5, 0.5]]), np.array([[0, 1]]), "one row"),
    ],
)
def test_unfit_input_raises_in_every_single_function(scores: FloatArray, labels: IntArray, words: str) -> None:
    for metric in SINGLE:
        with pytest.raises(MetricError, match=words):
            metric(scores, labels)


def test_the_summary_of_no_pictures_or_of_unfit_scores_is_undefined_and_never_nan() -> None:
    empty = metrics.summarise(np.empty(0), ints())
    assert empty == dict.fromkeys(KEYS) | {"n": 0.0}
    broken = metrics.summarise(np.array([np.nan, 0.3]), ints(0, 1))
    assert broken == dict.fromkeys(KEYS) | {"n": 2.0, "share_fake": 0.5}


def test_labels_that_do_not_fit_are_a_mistake_and_not_an_undefined_number() -> None:
    with pytest.raises(MetricError, match="3 scores for 2 labels"):
        metrics.summarise(np.zeros(3), ints(0, 1))
    with pytest.raises(MetricError, match="got 7"):
        metrics.summarise(np.zeros(2), ints(0, 7))


def test_probability_metrics_refuse_scores_that_are_none_and_rankings_take_them() -> None:
    scores, labels = np.array([-2.0, 3.0]), ints(0, 1)
    assert metrics.roc_auc(scores, labels) == 1.0
    for metric in (metrics.brier, metrics.log_loss):
        with pytest.raises(MetricError, match=r"probabilities in .0, 1., got -2"):
            metric(scores, labels)


@given(scored_labels())
@settings(max_examples=40, deadline=None)
def test_log_loss_is_the_one_of_scikit_learn_where_nothing_is_certain(case: tuple[FloatArray, IntArray]) -> None:
    scores, labels = np.clip(case[0], 1e-9, 1 - 1e-9), case[1]
    assert metrics.log_loss(scores, labels) == pytest.approx(sklearn.metrics.log_loss(labels, scores))


def test_log_loss_is_infinite_hence_undefined_for_a_certain_mistake_and_zero_for_certain_truth() -> None:
    with pytest.raises(MetricError, match="1 certain answers"):
        metrics.log_loss(np.array([1.0, 0.7]), ints(0, 1))
    assert metrics.log_loss(np.array([0.0, 1.0]), ints(0, 1)) == pytest.approx(0.0, abs=1e-12)
    assert metrics.log_loss(np.full(2, 0.5), ints(0, 1)) == pytest.approx(math.log(2))


def test_always_fake_has_the_numbers_that_follow_from_the_share_of_fakes() -> None:
    found = metrics.always_fake(ints(1, 1, 1, 0))
    assert found["accuracy"] == found["precision"] == found["share_fake"] == found["average_precision"] == 0.75
    assert found["balanced_accuracy"] == found["roc_auc"] == found["eer"] == 0.5
    assert found["recall"] == 1.0
    assert found["f1"] == pytest.approx(6 / 7)
    assert found["brier"] == 0.25
    assert found["log_loss"] is None, "certain and wrong: infinite"
    assert set(found) == KEYS


def test_float32_scores_give_the_numbers_of_the_same_values_in_float64() -> None:
    scores, labels = draw(3)
    single = scores.astype(np.float32)
    assert metrics.summarise(single, labels) == metrics.summarise(single.astype(np.float64), labels)
