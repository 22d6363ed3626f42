"""Intervals and paired tests against independent implementations: scikit-learn, SciPy, textbook formulas."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from dftrack.errors import MetricError
from dftrack.learning import bootstrap, metrics, statistics
from dftrack.learning.bootstrap import MEASURES, make_case, resample, weighted
from dftrack.learning.metrics import FloatArray, IntArray
from dftrack.learning.statistics import Interval, Paired, group_intervals


def draw(seed: int, *, ties: bool = False, groups: int = 20) -> tuple[FloatArray, IntArray, list[str]]:
    """Groups of 1 to 6 pictures that share an offset; half the seeds have groups of one class."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), rng.integers(1, 7, groups))
    labels = (of % 2 if seed % 2 else rng.integers(0, 2, len(of))).astype(np.int64)
    margins = rng.normal(0, 0.7, groups)[of] + rng.normal(1.3 * labels - 0.6, 1)
    scores = 1 / (1 + np.exp(-margins))
    order = rng.permutation(len(of))
    return (np.round(scores * 0.8 + 0.1, 1) if ties else scores)[order], labels[order], [f"g{i}" for i in of[order]]


def naive(scores: FloatArray, labels: IntArray, weights: FloatArray, threshold: float) -> dict[str, float]:
    """Each measure by scikit-learn with sample weights; NaN where undefined."""
    kept = weights > 0
    y, s, w = labels[kept], scores[kept], weights[kept]
    called = (s >= threshold).astype(int)
    found = {"accuracy": sk.accuracy_score(y, called, sample_weight=w), "brier": np.average((s - y) ** 2, weights=w)}
    inside = np.clip(s, 1e-12, 1 - 1e-12)
    found["log_loss"] = np.average(-np.log(np.where(y == 1, inside, 1 - inside)), weights=w)
    found["recall"] = sk.recall_score(y, called, sample_weight=w) if y.any() else math.nan
    if 0 < y.mean() < 1:
        found["balanced_accuracy"] = sk.balanced_accuracy_score(y, called, sample_weight=w)
        found["roc_auc"] = sk.roc_auc_score(y, s, sample_weight=w)
        found["average_precision"] = sk.average_precision_score(y, s, sample_weight=w)
        fpr, tpr, _ = sk.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        way = np.linspace(0, 1, len(fpr))
        gap = 1 - tpr - fpr  # falls from 1 to -1
        at = np.interp(0, -gap, way)
        found["eer"] = np.interp(at, way, fpr)
        if called.any():
            found["precision"] = sk.precision_score(y, called, sample_weight=w)
            found["f1"] = sk.f1_score(y, called, sample_weight=w)
    return {name: found.get(name, math.nan) for name in MEASURES}


@pytest.mark.parametrize("seed", range(100))
def test_resampled_metrics_are_those_of_scikit_learn_with_weights(seed: int) -> None:
    scores, labels, groups = draw(seed, ties=seed % 3 == 0, groups=4 + seed % 17)
    threshold = 0.5 if seed % 5 else 0.9
    case = make_case(scores, labels, groups, threshold)
    names = sorted(set(groups))
    for counts in bootstrap.draws(len(names), 2, seed, 3):
        ours = weighted(case, counts)
        for row, draws in enumerate(counts):
            weights = np.array([draws[names.index(group)] for group in groups])
            for name, value in naive(scores, labels, weights, threshold).items():
                assert ours[name][row] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, row)


@pytest.mark.parametrize("seed", range(20))
def test_a_weight_of_one_for_every_group_gives_the_metrics_themselves(seed: int) -> None:
    scores, labels, groups = draw(seed, ties=True)
    case = make_case(scores, labels, groups, 0.5)
    found = weighted(case, np.ones((1, case.groups)))
    expected = metrics.summarise(scores, labels)
    for name in MEASURES:
        assert expected[name] == pytest.approx(float(found[name][0]), abs=1e-12), name


def test_drawing_a_group_twice_is_having_its_pictures_twice() -> None:
    scores, labels, groups = draw(3)
    case = make_case(scores, labels, groups, 0.5)
    [counts] = bootstrap.draws(case.groups, 1, 0, 5)
    names = sorted(set(groups))
    rows = [i for i, group in enumerate(groups) for _ in range(int(counts[0, names.index(group)]))]
    expected = metrics.summarise(scores[rows], labels[rows])
    for name, value in weighted(case, counts).items():
        assert expected[name] == pytest.approx(float(value[0])), name


def test_draws_are_of_whole_groups_and_do_not_depend_on_how_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(*draw(1), 0.5)
    whole = resample(case, 50, seed=7)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 300)
    parts = resample(case, 50, seed=7)
    for name in MEASURES:
        np.testing.assert_allclose(whole[name], parts[name], rtol=0, atol=1e-12)
    for counts in bootstrap.draws(9, 40, 0, 7):
        assert (counts.sum(axis=1) == 9).all() and counts.shape[0] <= 7


def test_the_bootstrap_error_of_a_mean_is_the_textbook_one_over_groups() -> None:
    scores, labels, groups = draw(11, groups=150)
    found = group_intervals(scores, labels, groups, resamples=4000)["brier"]
    errors = (scores - labels) ** 2
    names = np.array(groups)
    residuals = np.array([np.sum(errors[names == g] - errors.mean()) for g in sorted(set(groups))])
    se = math.sqrt(len(residuals) / (len(residuals) - 1) * float(residuals @ residuals)) / len(errors)
    assert found is not None
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 149) * se, rel=0.06)


def test_the_interval_of_a_mean_loss_is_the_studentised_bootstrap_or_students_t_whichever_reaches_further() -> None:
    """The oracle resamples one by one, in plain Python, with another generator."""
    scores, labels, groups = draw(12, groups=30)
    found = group_intervals(scores, labels, groups, resamples=6000)["log_loss"]
    losses = -np.log(np.where(labels == 1, scores, 1 - scores))
    names = sorted(set(groups))
    parts = [losses[[group == name for group in groups]] for name in names]

    def log_mean(of: list[np.ndarray]) -> tuple[float, float]:
        mean = np.concatenate(of).mean()
        residuals = np.array([np.sum(part - mean) for part in of])
        error = math.sqrt(len(of) / (len(of) - 1) * float(residuals @ residuals)) / sum(map(len, of))
        return math.log(mean), error / mean

    random = np.random.default_rng(99)
    center, error = log_mean(parts)
    drawn = [log_mean([parts[i] for i in random.integers(0, len(parts), len(parts))]) for _ in range(6000)]
    low, high = np.quantile([(mean - center) / own for mean, own in drawn], [0.025, 0.975])
    sizes = np.array([len(part) for part in parts])
    reach = stats.t.ppf(0.975, sizes.sum() ** 2 / float(sizes @ sizes) - 1)
    assert found is not None and -low > reach > high, "this sample shows both"
    assert math.log(found.high) == pytest.approx(center - low * error, abs=0.06 * error)
    assert math.log(found.low) == pytest.approx(center - reach * error, abs=1e-9)


def test_a_loss_that_outweighs_all_others_leaves_the_log_loss_without_an_interval_not_with_an_absurd_one() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.uniform(0.2, 0.8, 20), np.arange(20) % 2
    scores[1] = 1e-300
    found = group_intervals(scores, labels, [str(i) for i in range(20)])
    assert found["log_loss"] is None and found["brier"] is not None


def test_a_loss_that_only_one_group_varies_has_no_interval_and_raises_nothing() -> None:
    scores, labels = np.full(24, 0.3), np.zeros(24, dtype=np.int64)
    scores[0] = 0.9
    found = group_intervals(scores, labels, [str(i // 2) for i in range(24)])
    assert found["log_loss"] is None and found["brier"] is None


def test_intervals_hold_their_value_and_are_the_same_for_the_same_seed() -> None:
    scores, labels, groups = draw(5, groups=60)
    found = group_intervals(scores, labels, groups, 0.6)
    points = metrics.summarise(scores, labels, 0.6)
    assert set(found) == set(points) - {"share_fake", "n"}
    for name, interval in found.items():
        point = points[name]
        assert interval is not None and point is not None and interval.low < point < interval.high, name
        assert interval.low >= 0 and (interval.high <= 1 or name == "log_loss")
    assert found == group_intervals(scores, labels, groups, 0.6)
    assert found != group_intervals(scores, labels, groups, 0.6, seed=1)
    narrow = group_intervals(scores, labels, groups, 0.6, level=0.5)["roc_auc"]
    wide = found["roc_auc"]
    assert narrow and wide and wide.low < narrow.low < narrow.high < wide.high


def test_pictures_of_one_group_that_agree_make_the_interval_wider() -> None:
    scores, labels, groups = draw(2, groups=100)
    copies = np.repeat(np.arange(len(labels)), 5)
    few = group_intervals(scores[copies], labels[copies], [f"{groups[i]}" for i in copies])["accuracy"]
    many = group_intervals(scores[copies], labels[copies], [str(i) for i in range(len(copies))])["accuracy"]
    assert few and many and few.high - few.low > 2 * (many.high - many.low)


def test_a_perfect_share_has_an_interval_that_one_picture_per_group_would_give() -> None:
    labels = np.arange(60) % 2
    scores = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 60)
    found = group_intervals(scores, labels, [str(i // 2) for i in range(60)])
    for name in ("accuracy", "roc_auc", "recall", "precision", "average_precision"):
        interval = found[name]
        assert interval is not None and interval.high == 1.0 and 0.8 < interval.low < 0.9, name
    eer = found["eer"]
    assert eer is not None and eer.low == 0.0 and 0.1 < eer.high < 0.2


ODD = {
    "no pictures": ([], [], []),
    "five pictures": ([0.1, 0.9, 0.4, 0.6, 0.7], [0, 1, 0, 1, 1], "abcde"),
    "equal scores": ([0.7] * 40, [0, 1] * 20, [str(i) for i in range(40)]),
    "a score that is not finite": ([math.nan] + [0.2, 0.8] * 10, [0] + [0, 1] * 10, [str(i) for i in range(21)]),
    "one group": (list(np.linspace(0, 1, 40)), [0, 1] * 20, ["a"] * 40),
}


@pytest.mark.parametrize("case", ODD)
def test_where_nothing_can_be_told_every_interval_is_undefined(case: str) -> None:
    scores, labels, groups = ODD[case]
    found = group_intervals(np.array(scores), np.array(labels, dtype=np.int64), list(groups))
    assert found == dict.fromkeys(MEASURES)


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_only_what_needs_both_has_no_interval(label: int) -> None:
    scores, labels = np.linspace(0.2, 0.9, 40), np.full(40, label)
    found = group_intervals(scores, labels, [str(i) for i in range(40)])
    undefined = {name for name, interval in found.items() if interval is None}
    needs_both = {"balanced_accuracy", "precision", "f1", "roc_auc", "average_precision", "eer"}
    assert undefined == needs_both | ({"recall"} if label == 0 else set())


def test_a_metric_that_few_groups_bear_on_has_no_interval() -> None:
    labels = np.array([1] * 5 + [0] * 55)
    rng = np.random.default_rng(0)
    found = group_intervals(rng.random(60), labels, [str(i) for i in range(60)])
    assert found["roc_auc"] is None and found["recall"] is None and found["accuracy"] is not None


def test_a_metric_that_many_resamples_leave_undefined_has_no_interval() -> None:
    scores = np.linspace(0.1, 0.4, 60)
    scores[[3, 7]] = 0.9  # called fake: two pictures, absent from about one resample in seven
    found = group_intervals(scores, np.arange(60) % 2, [str(i) for i in range(60)])
    assert found["precision"] is None and found["f1"] is None and found["recall"] is not None


def test_a_certain_mistake_leaves_the_log_loss_without_interval_and_nothing_else() -> None:
    scores, labels, groups = draw(1)
    scores[np.flatnonzero(labels == 1)[0]] = 0.0
    found = group_intervals(scores, labels, groups)
    assert [name for name, interval in found.items() if interval is None] == ["log_loss"]
    margins = group_intervals(scores * 8 - 4, labels, groups)
    assert [name for name, interval in margins.items() if interval is None] == ["log_loss", "brier"]


def test_labels_and_groups_that_do_not_fit_are_a_mistake() -> None:
    with pytest.raises(MetricError, match="2 groups for 3 labels"):
        group_intervals(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 1]), ["a", "b"])
    with pytest.raises(MetricError, match="got 7"):
        group_intervals(np.array([0.1, 0.2]), np.array([0, 7]), ["a", "b"])


# ---- two detectors


def textbook_delong(first: FloatArray, second: FloatArray, labels: IntArray) -> tuple[float, float]:
    """(difference, variance) by the definition: every fake against every real."""
    tables = []
    for scores in (first, second):
        fakes, reals = scores[labels == 1], scores[labels == 0]
        tables.append([[1.0 if x > y else 0.5 if x == y else 0.0 for y in reals] for x in fakes])
    table = np.array(tables)  # (2, fakes, reals)
    s10, s01 = np.cov(table.mean(axis=2)), np.cov(table.mean(axis=1))
    contrast = np.array([1.0, -1.0])
    covariance = s10 / table.shape[1] + s01 / table.shape[2]
    return float(table.mean(axis=(1, 2)) @ contrast), float(contrast @ covariance @ contrast)


def textbook_obuchowski(first: FloatArray, second: FloatArray, labels: IntArray, groups: list[str]) -> float:
    """The variance of the difference of two clustered AUCs, as written in Obuchowski 1997."""
    fakes, reals = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    clusters = sorted(set(groups))
    with_fakes, with_reals = (len({groups[i] for i in part}) for part in (fakes, reals))

    def components(scores: FloatArray) -> tuple[float, dict[int, float]]:
        def psi(x: float, y: float) -> float:
            return 1.0 if x > y else 0.5 if x == y else 0.0

        v = {int(i): sum(psi(scores[i], scores[j]) for j in reals) / len(reals) for i in fakes}
        v |= {int(j): sum(psi(scores[i], scores[j]) for i in fakes) / len(fakes) for j in reals}
        return sum(v[int(i)] for i in fakes) / len(fakes), v

    found = [components(first), components(second)]

    def centred(test: int, cluster: str, members: np.ndarray) -> float:
        theta, v = found[test]
        return sum(v[int(i)] - theta for i in members if groups[i] == cluster)

    def covariance(a: int, b: int) -> float:
        total = len(clusters)
        s10 = (
            with_fakes
            / ((with_fakes - 1) * len(fakes))
            * sum(centred(a, c, fakes) * centred(b, c, fakes) for c in clusters)
        )
        s01 = (
            with_reals
            / ((with_reals - 1) * len(reals))
            * sum(centred(a, c, reals) * centred(b, c, reals) for c in clusters)
        )
        s11, s11_turned = (
            total / (total - 1) * sum(centred(x, c, fakes) * centred(y, c, reals) for c in clusters)
            for x, y in ((a, b), (b, a))
        )
        return s10 / len(fakes) + s01 / len(reals) + (s11 + s11_turned) / (len(fakes) * len(reals))

    return covariance(0, 0) + covariance(1, 1) - 2 * covariance(0, 1)


def test_scores_in_float32_are_ranked_and_compared_in_float64() -> None:
    first, second = np.random.default_rng(0).random((2, 90), dtype=np.float32)
    labels = np.arange(90) % 7 % 2
    assert statistics.delong(first, second, labels) == statistics.delong(np.float64(first), np.float64(second), labels)


@pytest.mark.parametrize("seed", range(100))
def test_delong_agrees_with_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(12, 70))
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    first = rng.normal(labels * rng.uniform(0, 2))
    second = first * rng.uniform(0, 1) + rng.normal(labels * 0.5)
    if seed % 2:
        first, second = np.round(first), np.round(second)  # many ties
    found = statistics.delong(first, second, labels)
    difference, variance = textbook_delong(first, second, labels)
    aucs = [
        stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / (np.sum(labels) * np.sum(1 - labels))
        for scores in (first, second)
    ]
    assert found.difference == pytest.approx(difference) and found.difference == pytest.approx(aucs[0] - aucs[1])
    se = math.sqrt(variance) or 1e-30  # two that rank alike: p = 1
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / se))
    low, high = stats.norm.interval(0.95, difference, se)
    assert (found.low, found.high) == (pytest.approx(max(low, -1)), pytest.approx(min(high, 1)))


@pytest.mark.parametrize("seed", range(30))
def test_clustered_delong_agrees_with_obuchowski_as_written(seed: int) -> None:
    first, labels, groups = draw(seed, ties=seed % 3 == 0, groups=8)
    second = first * 0.5 + np.random.default_rng(seed + 1000).random(len(first))
    found = statistics.clustered_delong(first, second, labels, groups)
    se = math.sqrt(textbook_obuchowski(first, second, labels, groups))
    of = np.asarray(groups)
    fewest = min(len(set(of[labels == label])) for label in (0, 1))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.difference) / se, fewest - 1))
    own = [str(i) for i in range(len(labels))]
    assert math.sqrt(textbook_obuchowski(first, second, labels, own)) == pytest.approx(
        math.sqrt(textbook_delong(first, second, labels)[1])
    )
    assert statistics.clustered_delong(first, second, labels, own).difference == found.difference


def test_equal_scores_do_not_differ_and_a_difference_without_error_is_undefined() -> None:
    labels = np.arange(20) % 2
    scores = np.random.default_rng(0).random(20)
    assert statistics.delong(scores, scores, labels) == Paired(0.0, 0.0, 0.0, 1.0)
    assert statistics.delong(scores, scores * 2 + 1, labels) == Paired(0.0, 0.0, 0.0, 1.0), "only ranks count"
    with pytest.raises(MetricError, match="no error can be told"):
        statistics.delong(labels * 1.0, 1.0 - labels, labels)
    with pytest.raises(MetricError, match="there is no fake"):
        statistics.delong(scores, scores, np.zeros(20, dtype=np.int64))
    with pytest.raises(MetricError, match="needs 6 groups, got 1"):
        statistics.clustered_delong(scores, scores[::-1], labels, ["a"] * 20)


def test_where_one_group_outweighs_all_others_an_interval_is_undefined_not_absurd() -> None:
    scores, labels, _ = draw(1)
    groups = ["long video", *(f"short {i}" for i in range(8))]
    of = [groups[0]] * (len(labels) - 8) + groups[1:]
    found = group_intervals(scores, labels, of)
    assert found["accuracy"] is None and found["log_loss"] is None, "the luck of one video is all that is seen"


def test_two_equally_good_detectors_on_few_groups_are_rarely_told_apart() -> None:
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels, of = np.arange(6 * 20) % 2, np.repeat(np.arange(6), 20)
        first, second = (rng.normal(labels, 1) + rng.normal(0, 1, 6)[of] for _ in range(2))
        rejected += statistics.clustered_delong(first, second, labels, of.astype(str).tolist()).p_value < 0.05
    assert rejected <= 16, f"{rejected} of 200 differences of nothing were called real"


def test_mcnemar_agrees_with_the_binomial_test_and_a_case_by_hand() -> None:
    for only_first, only_second in itertools.product(range(0, 12, 3), range(0, 12, 2)):
        first = np.array([True] * only_first + [False] * only_second + [True] * 30)
        second = np.array([False] * only_first + [True] * only_second + [True] * 30)
        found = statistics.mcnemar(first, second)
        apart = only_first + only_second
        tail = sum(math.comb(apart, k) for k in range(min(only_first, only_second) + 1)) / 2**apart
        assert found.p_value == pytest.approx(min(1.0, 2 * tail))
        assert found.difference == pytest.approx((only_first - only_second) / len(first))
        assert found.low <= found.difference <= found.high
        swapped = statistics.mcnemar(second, first)
        assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
            (-found.difference, -found.high, -found.low)
        )
    # 8 against 2 of 40: p = 2 (1 + 10 + 45) / 1024; (8.5 - 2.5) / 42 +- 1.96 sqrt(11 - 36 / 42) / 42
    by_hand = statistics.mcnemar(np.array([True] * 8 + [False] * 2 + [True] * 30), np.array([False] * 8 + [True] * 32))
    assert by_hand.p_value == pytest.approx(112 / 1024) and by_hand.difference == pytest.approx(0.15)
    assert (by_hand.low, by_hand.high) == (pytest.approx(-0.0058, abs=1e-4), pytest.approx(0.2915, abs=1e-4))
    with pytest.raises(MetricError, match="as many answers of both"):
        statistics.mcnemar(np.ones(3, bool), np.ones(2, bool))


def test_the_paired_bootstrap_agrees_with_clustered_delong_on_the_auc() -> None:
    for seed in range(10):
        first, labels, groups = draw(seed, groups=120)
        second = first * 0.6 + 0.4 * np.random.default_rng(seed).random(len(first))
        ours = statistics.paired_bootstrap(first, second, labels, groups, "roc_auc")
        oracle = statistics.clustered_delong(first, second, labels, groups)
        assert ours is not None and ours.difference == pytest.approx(oracle.difference)
        assert ours.high - ours.low == pytest.approx(oracle.high - oracle.low, rel=0.12)
        assert (ours.p_value < 0.05) == (ours.low > 0 or ours.high < 0), "p value and interval contradict each other"


def test_the_paired_bootstrap_takes_every_measure_and_the_same_resamples_for_both() -> None:
    first, labels, groups = draw(4, groups=40)
    second = np.clip(first + np.random.default_rng(0).normal(0, 0.2, len(first)), 0.01, 0.99)
    for measure in MEASURES:
        found = statistics.paired_bootstrap(first, second, labels, groups, measure, resamples=200)
        alone = group_intervals(first, labels, groups, resamples=200)[measure]
        assert found is not None and alone is not None
        assert found.low <= found.difference <= found.high and 0 < found.p_value <= 1
        turned = statistics.paired_bootstrap(second, first, labels, groups, measure, resamples=200)
        assert turned is not None and turned.difference == -found.difference and turned.p_value == found.p_value
        same = statistics.paired_bootstrap(first, first, labels, groups, measure, resamples=200)
        assert same == Paired(0.0, 0.0, 0.0, 1.0), f"{measure}: the two saw other resamples"


def test_the_paired_bootstrap_says_none_where_nothing_can_be_told() -> None:
    scores, labels, groups = draw(6)
    assert statistics.paired_bootstrap(scores, scores[::-1], np.ones(len(labels), int), groups, "roc_auc") is None
    assert statistics.paired_bootstrap(scores, scores[::-1], labels, ["a"] * len(labels), "accuracy") is None
    assert statistics.paired_bootstrap(labels * 1.0, 1.0 - labels, labels, groups, "roc_auc") is None
    with pytest.raises(MetricError, match="no measure 'auc'"):
        statistics.paired_bootstrap(scores, scores, labels, groups, "auc")


def test_holm_of_a_case_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.4]) == pytest.approx([0.9, 0.8])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([0.03]) == [0.03] and statistics.holm([]) == []


def test_intervals_are_plain_values() -> None:
    assert Interval(0.1, 0.2) == Interval(0.1, 0.2)
    assert isinstance(group_intervals(*draw(0))["roc_auc"], Interval)
