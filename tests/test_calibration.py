"""Calibration against torchmetrics, and the temperature against a plain minimiser."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from dftrack.errors import MetricError
from dftrack.learning.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from dftrack.learning.metrics import FloatArray, IntArray, log_loss, roc_auc


def draw(seed: int, temperature: float = 1.0, n: int = 400) -> tuple[FloatArray, IntArray]:
    """Scores that would be calibrated after dividing their logits by `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    return expit(logits * temperature), (rng.random(n) < expit(logits)).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_calibration_error_is_that_of_torchmetrics(seed: int, temperature: float) -> None:
    scores, labels = draw(seed, temperature)
    oracle = tm.binary_calibration_error(torch.tensor(scores), torch.tensor(labels), n_bins=15, norm="l1")
    assert expected_calibration_error(scores, labels) == pytest.approx(float(oracle), abs=1e-6)


def test_bins_hold_what_lies_in_them_and_empty_ones_have_no_numbers() -> None:
    bins = reliability(np.array([0.0, 0.05, 0.5, 1.0]), np.array([0, 1, 1, 1]), bins=10)
    assert [part.n for part in bins] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert (bins[0].mean_score, bins[0].share_fake) == (0.025, 0.5)
    assert (bins[1].mean_score, bins[1].share_fake) == (None, None)
    assert (bins[9].low, bins[9].high, bins[9].mean_score) == (0.9, 1.0, 1.0)
    assert expected_calibration_error(np.array([0.0, 0.05, 0.5, 1.0]), np.array([0, 1, 1, 1]), 10) == pytest.approx(
        (2 * 0.475 + 0.5 + 0) / 4
    )


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5, 4.0])
def test_the_temperature_is_the_one_a_minimiser_finds(true: float) -> None:
    scores, labels = draw(7, true)
    found = fit_temperature(scores, labels)
    logits = logit(scores)
    signs = np.where(labels == 1, -1, 1)
    oracle = minimize_scalar(
        lambda t: np.mean(np.logaddexp(0, signs * logits / np.exp(t))), bounds=(-6, 6), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert found == pytest.approx(float(np.exp(oracle.x)), rel=1e-4)
    assert found == pytest.approx(true, rel=0.25), "far from the temperature the data were made with"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 6))
def test_a_fitted_temperature_never_raises_the_loss_and_keeps_the_ranking(seed: int, true: float) -> None:
    scores, labels = draw(seed, true, n=120)
    mended = apply_temperature(scores, fit_temperature(scores, labels))
    assert log_loss(mended, labels) <= log_loss(scores, labels) + 1e-12
    assert roc_auc(mended, labels) == pytest.approx(roc_auc(scores, labels))


def test_temperature_one_changes_nothing_and_two_is_less_sure() -> None:
    scores = np.array([0.01, 0.5, 0.99])
    assert apply_temperature(scores, 1.0) == pytest.approx(scores)
    warm = apply_temperature(scores, 2.0)
    assert scores[0] < warm[0] < warm[1] == 0.5 < warm[2] < scores[2]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(MetricError, match="positive"):
            apply_temperature(scores, wrong)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], "every picture is judged rightly"),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], "no more than a coin"),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], "no more than a coin"),
        ([0.5, 0.6], [1, 1], "one class only"),
        ([0.5, float("nan")], [0, 1], "not finite"),
    ],
)
def test_where_no_temperature_is_best_none_is_made_up(scores: list[float], labels: list[int], words: str) -> None:
    with pytest.raises(MetricError, match=words):
        fit_temperature(np.array(scores), np.array(labels))


def test_calibration_of_nothing_or_of_other_numbers_than_probabilities_is_undefined() -> None:
    with pytest.raises(MetricError, match="no pictures"):
        expected_calibration_error(np.empty(0), np.empty(0, int))
    with pytest.raises(MetricError, match="probabilities"):
        reliability(np.array([1.2]), np.array([1]))
