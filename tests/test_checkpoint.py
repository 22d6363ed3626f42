"""Checkpoints: a training resumed anywhere ends bit for bit as if nothing had happened."""

import dataclasses
import json
import math
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.learning.checkpoint import Checkpoints, load_optimizer
from dftrack.learning.model import build_model
from dftrack.learning.training import NonFiniteError, State, fit, new_state
from tests.makers import made_split

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, augmentation="flip-color")
TRAIN, VAL = made_split("train", 30), made_split("val", 12, seed=1)


def fresh(config: TrainConfig = CONFIG, kernel: int = 3, precision: str = "fp32") -> State:
    torch.manual_seed(config.seed)
    model = build_model(ModelConfig(kernel_size=kernel), 16)
    return new_state(model, config, images=30, precision=precision, device="cpu")


def go_on(state: State, config: TrainConfig = CONFIG, *, stop_after: int | None = None) -> State:
    batches = Batches(TRAIN, batch_size=config.batch_size, seed=config.seed, augmentation=config.augmentation)
    for done, _ in enumerate(fit(state, batches, VAL, config), start=1):
        if done == stop_after:
            break
    return state


def same_bits(one: State, other: State) -> bool:
    for name, value in one.model.state_dict().items():
        if not torch.equal(value, other.model.state_dict()[name]):
            return False
    slots, others = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    return slots.keys() == others.keys() and all(
        torch.equal(value, others[index][slot])
        for index, of in slots.items()
        for slot, value in of.items()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stopping_after_any_event_and_resuming_gives_the_same_bits(
    tmp_path: Path, optimizer: str, precision: str
) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    undisturbed = go_on(fresh(config, kernel=5, precision=precision), config)
    for event in range(1, 11):  # (4 steps + 1 epoch) x 2
        checkpoints = Checkpoints(tmp_path / f"{event}", every_seconds=0)
        checkpoints.save(go_on(fresh(config, kernel=5, precision=precision), config, stop_after=event))
        torch.rand(event)  # the new process stands elsewhere in the global generator
        resumed = fresh(config, kernel=5, precision=precision)
        assert checkpoints.restore(resumed)
        go_on(resumed, config)
        assert same_bits(resumed, undisturbed), f"resuming after event {event} ended elsewhere"
        for one, other in zip(resumed.history, undisturbed.history, strict=True):
            assert {k: v for k, v in one.items() if not k.startswith("time/")} == {
                k: v for k, v in other.items() if not k.startswith("time/")
            }, f"the recorded curve after event {event} differs"


def test_a_training_that_fell_back_to_fp32_goes_on_in_it_where_bf16_was_asked_for(tmp_path: Path) -> None:
    undisturbed = go_on(fresh())
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    checkpoints.save(go_on(fresh(), stop_after=3))
    resumed = fresh(precision="bf16")
    assert checkpoints.restore(resumed) and resumed.precision == "fp32"
    assert same_bits(go_on(resumed), undisturbed), "bfloat16 had a hand in it"


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    state = fresh()
    for _ in range(4):
        go_on(state, stop_after=1)
        checkpoints.save(state)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["checkpoints.json", "epoch-00001-step-0000003.safetensors", "epoch-00001-step-0000004.safetensors"]
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [".tmp4iRWO0", ".checkpoints.json.1-0a1b2c3d.tmp", ".run.json.1-0a1b2c3d.tmp"])
def test_what_a_kill_cut_off_goes_with_the_next_checkpoint_and_at_the_end(tmp_path: Path, left: str) -> None:
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    (tmp_path / left).write_bytes(b"half of it")
    checkpoints.save(fresh())
    assert not (tmp_path / left).exists()
    (tmp_path / left).write_bytes(b"half of it")
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_noticed_and_the_older_checkpoint_is_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    state = fresh()
    for _ in range(2):
        go_on(state, stop_after=1)
        checkpoints.save(state)
    newest = tmp_path / json.loads((tmp_path / "checkpoints.json").read_text())[-1]["file"]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = fresh()
    assert checkpoints.restore(resumed)
    assert resumed.step == 1, "the damaged newest checkpoint was trusted"
    assert same_bits(go_on(resumed), go_on(fresh()))


def test_without_any_whole_checkpoint_training_starts_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    assert not checkpoints.restore(fresh())
    checkpoints.save(go_on(fresh(), stop_after=2))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    state = fresh()
    assert not checkpoints.restore(state)
    assert state.step == 0 and state.epoch == 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    state = go_on(fresh(), stop_after=1)
    checkpoints.save(state)
    with torch.no_grad():
        state.model.fc2.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"fc2\.weight"):
        checkpoints.save(state)
    restored = fresh()
    assert checkpoints.restore(restored)
    assert bool(torch.isfinite(restored.model.fc2.weight).all())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_checkpoint_can_be_read_by_whoever_can_read_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        Checkpoints(tmp_path, every_seconds=0).save(fresh())
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {".safetensors": mode, ".json": mode}, "another user's worker could not go on with the trial"


def test_a_full_disk_leaves_the_last_checkpoint_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dftrack.errors import StoreError
    from dftrack.learning import checkpoint

    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    state = go_on(fresh(), stop_after=1)
    checkpoints.save(state)

    def half_written(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    go_on(state, stop_after=1)
    with pytest.raises(StoreError, match="No space left"):
        checkpoints.save(state)
    restored = fresh()
    assert checkpoints.restore(restored) and restored.step == 1
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_told_by_safetensors_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from dftrack.errors import StoreError
    from dftrack.learning import checkpoint

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        Checkpoints(tmp_path, every_seconds=0).save(go_on(fresh(), stop_after=1))
    assert not list(tmp_path.iterdir())


def test_the_optimizers_state_goes_back_to_where_the_weights_are() -> None:
    """Its count of steps has no shape to know it by, and must be on the card too. "meta" stands in for a card."""
    weight = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    state = Mock(spec=State, optimizer=torch.optim.SGD([weight]))
    load_optimizer(state, {"optimizer.0.step": torch.tensor(7.0), "optimizer.0.exp_avg": torch.ones(3, 2)})
    assert {slot: value.device.type for slot, value in state.optimizer.state[weight].items()} == {
        "step": "meta", "exp_avg": "meta",
    }  # fmt: skip
