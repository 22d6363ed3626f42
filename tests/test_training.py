"""The loop: it learns, it repeats itself exactly, and it never trains on a loss that is not finite."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.learning.model import build_model, normalise
from dftrack.learning.training import Epoch, NonFiniteError, State, Step, fit, new_state
from tests.makers import made_split

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3)
TRAIN, VAL = made_split("train", 30), made_split("val", 20, seed=1)


def started(config: TrainConfig = CONFIG, precision: str = "fp32") -> tuple[State, Batches]:
    torch.manual_seed(config.seed)
    model = build_model(ModelConfig(), 16)
    state = new_state(model, config, images=30, precision=precision, device="cpu")
    return state, Batches(TRAIN, batch_size=config.batch_size, seed=config.seed, augmentation=config.augmentation)


def test_it_learns_and_reports_every_step_and_epoch() -> None:
    config = dataclasses.replace(CONFIG, epochs=6)
    state, batches = started(config)
    events = list(fit(state, batches, VAL, config))
    steps = [e for e in events if isinstance(e, Step)]
    epochs = [e for e in events if isinstance(e, Epoch)]
    assert [(s.epoch, s.step) for s in steps] == [(e, s) for e in range(1, 7) for s in range(1, 5)]
    assert [e.number for e in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].metrics["val/roc_auc"] > 0.95, "brighter left halves are easy to tell"
    assert epochs[-1].metrics["train/loss"] < epochs[0].metrics["train/loss"]
    assert len(state.history) == 6


def test_the_losses_are_those_of_a_plain_loop() -> None:
    """An oracle written as most people write it: unfused Adam, eager, contiguous."""
    config = dataclasses.replace(CONFIG, epochs=1)
    state, batches = started(config)
    torch.manual_seed(config.seed)
    model = build_model(ModelConfig(dropout=0.0), 16).to(memory_format=torch.contiguous_format)
    state.model.dropout.p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, foreach=False)
    expected = []
    for batch in batches.epoch(1):
        loss = functional.cross_entropy(model(normalise(batch.pixels).contiguous()), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    got = [e.loss for e in fit(state, batches, VAL, config) if isinstance(e, Step)]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_train_auc_belongs_to_the_scores_and_labels_of_that_epoch() -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    state, batches = started(config)
    done = next(e for e in fit(state, batches, VAL, config) if isinstance(e, Epoch))
    labels = TRAIN.labels[batches.order(1)]
    assert done.metrics["train/roc_auc"] == pytest.approx(roc_auc_score(labels, state.scores.numpy()))
    scores = np.clip(state.scores.double().numpy(), 1e-12, 1)
    by_hand = -np.mean(np.where(labels == 1, np.log(scores), np.log1p(-scores)))
    assert done.metrics["train/loss"] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("augmentation", ["none", "flip-color"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(optimizer: str, augmentation: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        config = dataclasses.replace(CONFIG, seed=seed, epochs=1, optimizer=optimizer, augmentation=augmentation)
        state, batches = started(config)
        for _ in fit(state, batches, VAL, config):
            torch.rand(1)  # somebody else draws from the global generator in between
        return state.model.fc1.weight.detach().clone()

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_loss_that_is_not_finite_changes_no_weight_and_stops_the_training(optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    state, batches = started(config)
    events = fit(state, batches, VAL, config)
    next(events)
    before = {name: value.clone() for name, value in state.model.named_parameters()}
    broken = state.model.register_forward_hook(lambda *call: call[2] * math.nan)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 2 \(fp32\)"):
        list(events)
    broken.remove()
    for name, value in state.model.named_parameters():
        assert torch.equal(value, before[name]), f"{name} was trained on a NaN"


def test_bf16_autocast_is_used_when_asked_for_and_stays_near_fp32() -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    losses = {}
    for precision in ("fp32", "bf16"):
        state, batches = started(config, precision)
        losses[precision] = [e.loss for e in fit(state, batches, VAL, config) if isinstance(e, Step)]
    assert losses["bf16"] != losses["fp32"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.1)
