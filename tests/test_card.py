"""On a CUDA card: the loop does not wait for it, training goes on from a checkpoint, scores are those of the CPU."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data import batches as batches_module
from dftrack.data.batches import Batches
from dftrack.learning import training
from dftrack.learning.checkpoint import Checkpoints
from dftrack.learning.evaluation import predict
from dftrack.learning.model import build_model
from dftrack.learning.snapshot import look_at
from dftrack.learning.training import State, Step, fit, new_state
from tests.makers import made_split
from tests.test_behind import begun, settle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

TRAIN, VAL = made_split("train", 240, size=32), made_split("val", 12, size=32, seed=1)
CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, augmentation="flip-color")


def fresh(precision: str, optimizer: str = "adam", *, compile: bool = False) -> State:
    torch.manual_seed(0)
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, optimizer=optimizer, compile=compile)
    return new_state(build_model(ModelConfig(), 32), config, images=240, precision=precision, device="cuda")


def drawn() -> Batches:
    return Batches(TRAIN, batch_size=8, seed=0, augmentation="flip-color", device="cuda")


@pytest.fixture(params=[0.5, 0.0], ids=["pixels on the card", "pixels sent"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "RESIDENT_SHARE", request.param)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("compile", [False, True], ids=["as written", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_card_between_two_steps(precision: str, compile: bool) -> None:
    events = fit(fresh(precision, compile=compile), drawn(), VAL, CONFIG)
    next(events)  # what is made once, is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(2, 30):  # the 30th of the epoch is looked at
            event = next(events)
            assert isinstance(event, Step) and event.step == number and event.loss is None
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("optimizer", "compile"), [("adam", False), ("adamw", False), ("sgd", False), ("adam", True)])
def test_training_goes_on_from_a_checkpoint(tmp_path: Path, precision: str, optimizer: str, compile: bool) -> None:
    undisturbed = fresh(precision, optimizer, compile=compile)
    for _ in fit(undisturbed, drawn(), VAL, CONFIG):
        pass
    stopped = fresh(precision, optimizer, compile=compile)
    for _, _ in zip(range(35), fit(stopped, drawn(), VAL, CONFIG), strict=False):
        pass
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    checkpoints.save(stopped)
    resumed = fresh(precision, optimizer, compile=compile)
    assert checkpoints.restore(resumed)
    assert (resumed.epoch, resumed.step) == (stopped.epoch, stopped.step)
    assert resumed.scaler.get_scale() == stopped.scaler.get_scale()
    for _ in fit(resumed, drawn(), VAL, CONFIG):
        pass
    ended, wanted = (state.history[-1]["train/loss"] for state in (resumed, undisturbed))
    assert ended == pytest.approx(wanted, rel=0.02)  # a card's sums need not come out the same twice


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_checkpoint_makes_nothing_wait_and_holds_the_moment_though_training_goes_on(
    tmp_path: Path, precision: str
) -> None:
    state = fresh(precision)
    events = fit(state, drawn(), VAL, CONFIG)
    next(events)
    checkpoints = begun(tmp_path, state)
    assert checkpoints._room is not None
    for name, value in look_at(state).tensors.items():
        assert checkpoints._room._places[name].is_pinned() == value.is_cuda, f"{name}: copying it waits for the card"
    for _ in range(5):
        next(events)  # the card is some steps behind
    torch.cuda.set_sync_debug_mode("error")
    try:
        wanted = {name: value.clone() for name, value in look_at(state).tensors.items()}
        assert checkpoints.save_if_due(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(10):
        next(events)
    settle(checkpoints)
    again = fresh(precision)
    assert checkpoints.restore(again) and (again.epoch, again.step) == (1, 6)
    found = look_at(again).tensors
    for name, value in wanted.items():
        if name.startswith("scaler."):  # its own are made by the first step
            assert again.scaler.state_dict()[name.removeprefix("scaler.")] == value.item()
        else:
            assert torch.equal(found[name], value), f"{name} is not what it was"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_losses_are_those_of_the_pass_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for compile in (False, True):
        state = fresh(precision, compile=compile)
        state.model.dropout.p = 0.0  # another mask is drawn
        found.append([float(training._train_step(state, batch).mean) for batch in islice(drawn().epoch(1), 5)])
    np.testing.assert_allclose(*found, rtol=1e-3 if precision == "fp32" else 0.1)


@pytest.mark.usefixtures("place")
def test_batches_are_those_of_the_cpu() -> None:
    on_cpu = Batches(TRAIN, batch_size=8, seed=0, augmentation="flip-color")
    for ours, theirs in zip(drawn().epoch(1, skip=3), on_cpu.epoch(1, skip=3), strict=True):
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        torch.testing.assert_close(ours.pixels.cpu(), theirs.pixels, rtol=1e-5, atol=1e-3)


def test_scores_are_those_of_the_cpu_and_not_of_tf32() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(), 32)
    wanted = predict(model, VAL).scores
    before = torch.backends.cudnn.allow_tf32
    np.testing.assert_allclose(predict(model.to("cuda"), VAL, device="cuda").scores, wanted, atol=1e-6)
    assert torch.backends.cudnn.allow_tf32 == before
