"""Full training states on disk: written aside, synced, hashed, two kept; a resumed training ends bit for bit the same.

A checkpoint is one safetensors file (tensors, and the rest as JSON in its header), named in `checkpoints.json` with its
hash. Whatever moment a kill comes at, that list names complete files only.
"""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dftrack.errors import StoreError
from dftrack.files import sha256, usual_mode, write_aside, write_text
from dftrack.learning.training import NonFiniteError, State, set_precision

KEPT = 2
LIST = "checkpoints.json"
COST_SHARE = 0.02  # of the time may go into checkpoints, however short the interval asked for


class Checkpoints:
    """The checkpoints of one training, in a folder of its own."""

    def __init__(self, folder: Path, *, every_seconds: float) -> None:
        self._folder = folder
        self._every = every_seconds
        self._next = time.monotonic() + every_seconds

    def save_if_due(self, state: State) -> bool:
        """Save when the interval has passed and checkpoints have cost 2 % of the time at most; says if it did.

        An interval of 0 saves every time, whatever it costs.
        """
        began = time.monotonic()
        if began < self._next:
            return False
        self.save(state)
        cost = time.monotonic() - began
        self._next = time.monotonic() + (max(self._every, cost / COST_SHARE) if self._every else 0)
        return True

    def save(self, state: State) -> None:
        """Write the state. Raises NonFiniteError rather than save weights that no training could go on from."""
        for name, parameter in state.model.named_parameters():
            if not bool(torch.isfinite(parameter.sum())):
                raise NonFiniteError(f"the weights {name} are not finite after epoch {state.epoch}, step {state.step}")
        name = f"epoch-{state.epoch:05}-step-{state.step:07}.safetensors"
        with write_aside(self._folder / name) as aside:
            try:
                with usual_mode(aside):
                    save_file(_tensors(state), aside, metadata={"state": json.dumps(_plain(state))})
            except SafetensorError as error:  # a full disk comes as this
                raise StoreError(f"cannot write {self._folder / name}: {error}", "is there space?") from error
            digest = sha256(aside)
        kept = [entry for entry in self._listed() if entry["file"] != name][-(KEPT - 1) :]
        write_text(self._folder / LIST, json.dumps([*kept, {"file": name, "sha256": digest}]))
        self._clean()

    def restore(self, state: State) -> bool:
        """Bring `state` (newly made, same settings) to the newest checkpoint that is whole; False if there is none."""
        for entry in reversed(self._listed()):
            path = self._folder / entry["file"]
            if path.is_file() and sha256(path) == entry["sha256"]:
                _load(path, state)
                return True
        return False

    def remove(self) -> None:
        """Delete all checkpoints of this training."""
        (self._folder / LIST).unlink(missing_ok=True)
        self._clean()

    def _listed(self) -> list[dict[str, str]]:
        try:
            entries = json.loads((self._folder / LIST).read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{self._folder / LIST} cannot be read: {error}", "remove that folder to train from the start"
            ) from error
        return list(entries)

    def _clean(self) -> None:
        listed = {entry["file"] for entry in self._listed()}
        # A hidden one is what a kill cut off, our own or safetensors', which writes to `.tmp` and six letters first.
        for path in [*self._folder.glob("*.safetensors"), *self._folder.glob(".*tmp*")]:
            if path.name not in listed:
                path.unlink(missing_ok=True)


def _tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of the state by name, in plain (contiguous) order."""
    found = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    found |= {"scores": state.scores, "loss_sum": state.loss_sum, "torch_random": torch.get_rng_state()}
    return {name: value.detach().contiguous() for name, value in found.items()}


def _plain(state: State) -> dict[str, object]:
    return {
        "precision": state.precision,
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.seconds,
        "history": state.history,
        "scaler": state.scaler.state_dict(),
    }


def _load(path: Path, state: State) -> None:
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["state"])
        with torch.no_grad():
            own = state.model.state_dict()
            for name, value in own.items():
                value.copy_(file.get_tensor(f"model.{name}"))
            load_optimizer(state, {k: file.get_tensor(k) for k in file.keys() if k.startswith("optimizer.")})  # noqa: SIM118 - no mapping
            state.scores.copy_(file.get_tensor("scores"))
            state.loss_sum.copy_(file.get_tensor("loss_sum"))
            torch.set_rng_state(file.get_tensor("torch_random"))
    state.epoch, state.step = plain["epoch"], plain["step"]
    state.seconds, state.history = plain["seconds"], plain["history"]
    set_precision(state, plain["precision"])  # a training may have fallen back to fp32
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(plain["scaler"])


def load_optimizer(state: State, tensors: dict[str, Tensor]) -> None:
    """Put the optimizer's slots back, each on the device and in the memory layout of its parameter.

    Fused kernels walk both in step, and count their steps on the card.
    """
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        _, index, slot = key.split(".", 2)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
        state.optimizer.state[parameter][slot] = value.to(parameter.device)
