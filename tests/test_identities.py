"""The identities against the published tables that made them necessary, and against every small confusion matrix."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from dftrack.learning.identities import NAMES, can_contradict, check_identities, implied_share


def test_the_published_impossible_table_is_refused_and_the_sentence_says_why() -> None:
    found = check_identities(0.8278, 0.8918, 0.8918, 0.9758)
    assert len(found) == 1, found
    assert "F1 0.9758 lies above both precision 0.8918 and recall 0.8918" in found[0]
    assert "0.8918" in found[0].split("harmonic mean")[1], "the sentence must give the value F1 would have"


@pytest.mark.parametrize(
    ("table", "share"),
    [((0.9716, 0.9608, 0.9913, 0.9758), 0.578), ((0.8278, 0.8918, 0.8014, 0.8441), 0.582)],
)
def test_a_possible_table_passes_and_implies_its_share_of_fakes(
    table: tuple[float, float, float, float], share: float
) -> None:
    accuracy, precision, recall, f1 = table
    assert check_identities(accuracy, precision, recall, f1) == []
    implied = implied_share(accuracy, precision, recall)
    assert implied is not None
    assert implied.value == pytest.approx(share, abs=5e-4)
    assert implied.low < implied.value < implied.high
    assert check_identities(accuracy, precision, recall, f1, implied.value) == []
    assert "imply" in check_identities(accuracy, precision, recall, f1, 0.4)[0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ((82.78, 0.9, 0.9, 0.9), "accuracy 82.78 is not a number between 0 and 1"),
        ((0.9, 0.9, 0.8, 0.85), "lies between precision 0.9 and recall 0.8, but"),
        ((0.9, 0.9, 0.8, 0.7), "below both"),
        ((0.9, 1.0, 1.0, 1.0), "accuracy must be 1"),
        ((0.5, 0.9, 0.9, 0.9), "more than all pictures"),
        ((0.2, 0.3, 0.9, None), "right answers they belong to"),
    ],
)
def test_each_contradiction_is_named_in_plain_words(
    table: tuple[float, float, float, float | None], words: str
) -> None:
    found = check_identities(*table)
    assert any(words in sentence for sentence in found), found


@pytest.mark.parametrize("digits", [2, 4])
@pytest.mark.parametrize(
    ("table", "words"),
    [
        ((None, 0.9, None, 0.99, None), "with precision 0.9, F1 must be at most 0.9474, but 0.99 is given"),
        ((None, 0.9, None, 0.99, None), "it would need recall 1.1"),
        ((None, None, 0.4, 0.9, None), "with recall 0.4, F1 must be at most 0.5714"),
        ((0.1, None, None, 0.9, None), "with F1 0.9, accuracy must be at least 0.8182"),
        ((0.9, None, 0.1, 0.5, None), "with recall 0.1, F1 must be at most 0.1818"),
        ((0.5, None, 1.0, None, 0.9), "with recall 1 and share of fakes 0.9, accuracy must be at least 0.9"),
        ((0.1, None, 0.95, None, 0.9), "with recall 0.95 and share of fakes 0.9, accuracy must be at least 0.855"),
        ((0.9, None, 0.1, None, 0.8), "with recall 0.1 and share of fakes 0.8, accuracy must be at most 0.28"),
        ((0.9, 0.5, None, None, 0.6), "with precision 0.5 and share of fakes 0.6, accuracy must be at most 0.4"),
        ((None, 0.1, 0.9, None, 0.5), "imply false alarms of 405.0% of all pictures, more than the 50.0% that are"),
    ],
)
def test_a_contradiction_is_found_and_named_whichever_numbers_are_missing(
    table: tuple[float | None, ...], words: str, digits: int
) -> None:
    accuracy, precision, recall, f1, share = table
    found = check_identities(accuracy, precision, recall, f1, share, rounding=0.5 * 10**-digits)
    assert len(found) == 1 and words in found[0], found


def test_numbers_that_are_not_given_are_not_asked_about() -> None:
    assert check_identities(0.9, None, 0.8, 0.7) == []
    assert check_identities(None, 0.8, 0.8, None) == []
    assert implied_share(1.0, 1.0, 1.0) is None
    assert implied_share(0.7, 0.0, 0.0) is None


def test_at_full_precision_the_corners_without_rounding_are_caught() -> None:
    assert "without a caught fake" in check_identities(0.5, 0.0, 0.5, None, rounding=0)[0]
    assert "accuracy 1" in check_identities(1.0, 0.9, 0.9, None, rounding=0)[0]
    assert "accuracy must be at most 0.5" in check_identities(0.9, 0.0, 0.0, 0.0, 0.5, rounding=0)[0]


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_the_implied_share_lies_in_its_range_and_in_what_pictures_can_be(digits: int) -> None:
    seen = 0
    for accuracy, precision, recall in product([0.1, 0.3, 0.5, 0.8, 0.9, 1.0], repeat=3):
        found = implied_share(accuracy, precision, recall, 0.5 * 10**-digits)
        if found is not None:
            seen += 1
            assert 0 <= found.low <= found.value <= found.high <= 1, (accuracy, precision, recall, found)
    assert seen > 100


def test_no_possible_classifier_is_ever_accused_whatever_its_confusion_matrix_and_rounding() -> None:
    for tn, fp, fn, tp in product(range(5), repeat=4):
        if tp + fp == 0 or tp + fn == 0:
            continue
        n = tn + fp + fn + tp
        p, r = tp / (tp + fp), tp / (tp + fn)
        exact = ((tp + tn) / n, p, r, 2 * tp / (2 * tp + fp + fn), (tp + fn) / n)
        for digits in (1, 2, 4):
            printed = [round(value, digits) for value in exact]
            found = check_identities(*printed, rounding=0.5 * 10**-digits)
            assert found == [], f"{(tn, fp, fn, tp)} at {digits} digits: {found}"
        assert check_identities(*exact, rounding=1e-9) == [], (tn, fp, fn, tp)
        implied = implied_share(*exact[:3], rounding=0)
        assert implied is None or implied.value == pytest.approx(exact[4]), (tn, fp, fn, tp)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=4, max_size=4).filter(any),
    st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=5, max_size=5),
)
def test_no_subset_of_a_classifiers_numbers_is_accused_however_each_is_rounded(
    counts: list[int], digits: list[int | None]
) -> None:
    tn, fp, fn, tp = counts
    exact = (
        (tp + tn) / sum(counts),
        tp / (tp + fp) if tp + fp else None,
        tp / (tp + fn) if tp + fn else None,
        2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        (tp + fn) / sum(counts),
    )
    shown = [
        None if value is None or count is None else round(value, count)
        for value, count in zip(exact, digits, strict=True)
    ]
    rounding = {name: 0.5 * 10.0**-count for name, count in zip(NAMES, digits, strict=True) if count is not None}
    assert check_identities(*shown, rounding=rounding) == [], (counts, shown)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=5, max_size=5))
def test_what_is_accused_is_what_linear_programming_finds_infeasible(percents: list[int | None]) -> None:
    rounding = 0.005
    shown = [None if percent is None else percent / 100 for percent in percents]
    upper = []  # rows in the shares tp, fp, fn, tn: row @ shares <= 0
    for value, over, under in zip(
        shown,
        ([1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 1, 0]),
        ([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [2, 1, 1, 0], [1, 1, 1, 1]),
        strict=True,
    ):
        if value is not None:
            low, high = max(0.0, value - rounding), min(1.0, value + rounding)
            upper += [np.array(over) - high * np.array(under), low * np.array(under) - np.array(over)]
    # a number above 0 needs a caught fake, and the most that there can be says whether there is one
    solved = linprog([-1, 0, 0, 0], np.array(upper) if upper else None, np.zeros(len(upper)) if upper else None,
                     [[1, 1, 1, 1]], [1])  # fmt: skip
    catches = any(value is not None and value > rounding for value in shown[1:4])
    feasible = solved.status == 0 and (-solved.fun > 1e-6 or not catches)
    assert (check_identities(*shown, rounding=rounding) == []) == feasible, (shown, solved)


def test_names_that_owe_each_other_nothing_are_those_whose_every_value_passes() -> None:
    values = [0.01, 0.25, 0.5, 0.75, 0.99]
    for size in range(1, 6):
        for names in combinations(NAMES, size):
            accused = any(
                check_identities(*(dict(zip(names, table, strict=True)).get(name) for name in NAMES))
                for table in product(values, repeat=size)
            ) if size < 4 else True  # fmt: skip
            assert can_contradict(names) == accused, names


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=4, max_size=4), st.floats(0.01, 0.3))
def test_an_f1_moved_out_of_the_interval_is_always_accused(counts: list[int], shift: float) -> None:
    tn, fp, fn, tp = counts
    p, r = tp / (tp + fp), tp / (tp + fn)
    accuracy, f1 = (tp + tn) / sum(counts), max(p, r) + shift
    if f1 <= 1:
        assert check_identities(accuracy, p, r, f1), f"precision {p}, recall {r}, F1 {f1}"
