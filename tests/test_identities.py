"""The identities against the published tables that made them necessary, and against every small confusion matrix."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dftrack.learning.identities import check_identities, implied_share


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


def test_numbers_that_are_not_given_are_not_asked_about() -> None:
    assert check_identities(0.9, None, 0.8, 0.2) == []
    assert check_identities(None, 0.8, 0.8, None) == []
    assert implied_share(1.0, 1.0, 1.0) is None
    assert implied_share(0.7, 0.0, 0.0) is None


def test_at_full_precision_the_corners_without_rounding_are_caught() -> None:
    assert "without a caught fake" in check_identities(0.5, 0.0, 0.5, None, rounding=0)[0]
    assert "accuracy 1" in check_identities(1.0, 0.9, 0.9, None, rounding=0)[0]
    assert "needs at least as many reals" in check_identities(0.9, 0.0, 0.0, 0.0, 0.5, rounding=0)[0]


def test_no_possible_classifier_is_ever_accused_whatever_its_confusion_matrix_and_rounding() -> None:
    for tn, fp, fn, tp in product(range(6), repeat=4):
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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=4, max_size=4), st.floats(0.01, 0.3))
def test_an_f1_moved_out_of_the_interval_is_always_accused(counts: list[int], shift: float) -> None:
    tn, fp, fn, tp = counts
    p, r = tp / (tp + fp), tp / (tp + fn)
    accuracy, f1 = (tp + tn) / sum(counts), max(p, r) + shift
    if f1 <= 1:
        assert check_identities(accuracy, p, r, f1), f"precision {p}, recall {r}, F1 {f1}"
