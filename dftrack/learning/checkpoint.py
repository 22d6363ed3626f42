"""Full training states on disk: written aside, synced, hashed, two kept; a resumed training ends bit for bit the same.

A checkpoint is one safetensors file (tensors, and the rest as JSON in its header), named in `checkpoints.json` with its
hash. Whatever moment a kill comes at, that list names complete files only.
"""

import json
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dftrack.errors import StoreError
from dftrack.files import sha256, usual_mode, write_aside, write_text
from dftrack.learning.behind import Behind
from dftrack.learning.snapshot import Room, Snapshot, look_at
from dftrack.learning.training import NonFiniteError, State, set_precision

KEPT = 2
LIST = "checkpoints.json"
COST_SHARE = 0.02  # of the time may go into checkpoints, however short the interval asked for
COPYING = 0.025  # seconds that a card copies a state, after the call that asked for it: see benchmarks/checkpoint.py


class Checkpoints:
    """The checkpoints of one training, in a folder of its own. Train in a `with` block: at its end nothing is written.

    With `behind`, what is due is copied, and written while training goes on. It takes memory for a second state, and
    pays on a card. What goes wrong with it is raised by whatever is called next here, or at the end of the block.
    """

    def __init__(self, folder: Path, *, every_seconds: float, behind: bool = False) -> None:
        self._folder = folder
        self._every = every_seconds
        self._next = time.monotonic() + every_seconds
        self._writer = Behind()
        self._room = Room() if behind else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._writer.wait()
        except NonFiniteError:
            if kind is None:  # an error that is under way must not turn into a reason to go on in fp32
                raise
        finally:
            if self._room is not None:
                self._room = Room()  # what follows training needs the memory

    def save_if_due(self, state: State) -> bool:
        """Save when the interval has passed and checkpoints have cost 2 % of the time at most; says if it did.

        An interval of 0 saves every time, whatever it costs. None is due while another is being written behind.
        """
        if self._writer.busy:
            return False
        self._writer.wait()  # for what went wrong with the last one
        began = time.monotonic()
        if began < self._next:
            return False
        now = look_at(state)
        if self._room is None:
            self._write(now)
        elif self._room.fits(now):
            self._writer.begin(partial(self._write, self._room.copy(now)))
        else:  # the first time; it will fit when this is done
            self._writer.begin(partial(self._make, self._room, now))
            return False
        cost = time.monotonic() - began + (COPYING if self._room else 0)
        self._next = time.monotonic() + (max(self._every, cost / COST_SHARE) if self._every else 0)
        return True

    def _make(self, room: Room, now: Snapshot) -> None:
        try:
            room.make(now)
        except (RuntimeError, MemoryError):  # no memory that could be pinned: training waits for the disk, as on a CPU
            self._room = None

    def save(self, state: State) -> None:
        """Have the state on disk. Raises NonFiniteError rather than save one that no training could go on from."""
        self._writer.wait()
        self._write(look_at(state))

    def _write(self, now: Snapshot) -> None:
        now.arrive()
        for name in now.finite:
            if not bool(torch.isfinite(now.tensors[name].sum())):
                # A card's loss is read now and then: it may have changed no weight, and nobody has seen it yet.
                what = "losses" if name == "loss_sum" else f"weights {name.removeprefix('model.')}"
                raise NonFiniteError(f"the {what} are not finite after epoch {now.epoch}, step {now.step}")
        name = f"epoch-{now.epoch:05}-step-{now.step:07}.safetensors"
        with write_aside(self._folder / name) as aside:
            try:
                with usual_mode(aside):
                    save_file(dict(now.tensors), aside, metadata={"state": json.dumps(now.plain)})
            except SafetensorError as error:  # a full disk comes as this
                raise StoreError(f"cannot write {self._folder / name}: {error}", "is there space?") from error
            digest = sha256(aside)
        kept = [entry for entry in self._listed() if entry["file"] != name][-(KEPT - 1) :]
        write_text(self._folder / LIST, json.dumps([*kept, {"file": name, "sha256": digest}]))
        self._clean()

    def restore(self, state: State) -> bool:
        """Bring `state` (newly made, same settings) to the newest checkpoint that is whole; False if there is none."""
        self._writer.wait()
        for entry in reversed(self._listed()):
            path = self._folder / entry["file"]
            if path.is_file() and sha256(path) == entry["sha256"]:
                _load(path, state)
                return True
        return False

    def remove(self) -> None:
        """Delete all checkpoints of this training."""
        self._writer.wait()
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


def _load(path: Path, state: State) -> None:
    with safe_open(path, framework="pt") as file:
        plain, names = json.loads(file.metadata()["state"]), list(file.keys())
        with torch.no_grad():
            own = state.model.state_dict()
            for name, value in own.items():
                value.copy_(file.get_tensor(f"model.{name}"))
            load_optimizer(state, {k: file.get_tensor(k) for k in names if k.startswith("optimizer.")})
            scaler = {k.removeprefix("scaler."): file.get_tensor(k).item() for k in names if k.startswith("scaler.")}
            state.scores.copy_(file.get_tensor("scores"))
            state.loss_sum.copy_(file.get_tensor("loss_sum"))
            torch.set_rng_state(file.get_tensor("torch_random"))
    state.epoch, state.step = plain["epoch"], plain["step"]
    state.seconds, state.history = plain["seconds"], plain["history"]
    set_precision(state, plain["precision"])  # a training may have fallen back to fp32
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(plain["scaler"] | scaler)


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
