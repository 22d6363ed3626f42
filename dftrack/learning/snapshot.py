"""What a checkpoint holds of a training state: as it lies in memory, or copied so that training can go on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dftrack.learning.training import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A training state at one moment."""

    epoch: int
    step: int
    tensors: Mapping[str, Tensor]  # under the names they have in the file, contiguous
    finite: tuple[str, ...]  # the names of those that must be, or no training could go on from them
    plain: Mapping[str, object]  # what is no tensor, for JSON
    arrive: Callable[[], None] = lambda: None  # waits until the tensors hold what they are to hold


def look_at(state: State) -> Snapshot:
    """The state as it lies in memory: true until the next step. Waits for no card."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    scaler = _look_at_scaler(state.scaler)
    tensors |= {f"scaler.{name}": value for name, value in scaler.items() if isinstance(value, Tensor)}
    tensors |= {"scores": state.scores, "loss_sum": state.loss_sum, "torch_random": torch.get_rng_state()}
    return Snapshot(
        epoch=state.epoch,
        step=state.step,
        tensors={name: value.detach().contiguous() for name, value in tensors.items()},
        finite=("loss_sum", *(f"model.{name}" for name, _ in state.model.named_parameters())),
        plain={
            "precision": state.precision,
            "epoch": state.epoch,
            "step": state.step,
            "seconds": state.seconds,
            "history": [dict(metrics) for metrics in state.history],
            "scaler": {name: value for name, value in scaler.items() if not isinstance(value, Tensor)},
        },
    )


def _look_at_scaler(scaler: torch.amp.GradScaler) -> dict[str, Tensor | float]:
    """Its `state_dict`, which reads two numbers from the card and so waits, with tensors in their place.

    No public name gives these; they have been these two since torch 1.6.
    """
    if not scaler.is_enabled() or scaler._scale is None or scaler._growth_tracker is None:  # None: before any step
        return scaler.state_dict()
    return {
        "scale": scaler._scale,
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
        "_growth_tracker": scaler._growth_tracker,
    }


class Room:
    """Memory of the host for one copy of a state, made once. A card's is pinned: it copies there by itself."""

    def __init__(self) -> None:
        self._places: dict[str, Tensor] = {}

    def fits(self, now: Snapshot) -> bool:
        """Is there a place for each tensor?"""
        return all(
            name in self._places and (self._places[name].shape, self._places[name].dtype) == (value.shape, value.dtype)
            for name, value in now.tensors.items()
        )

    def make(self, now: Snapshot) -> None:
        """Make a place for each tensor, whose content does not matter. Pinning 0.6 GB takes tenths of a second."""
        self._places = {
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            for name, value in now.tensors.items()
        }

    def copy(self, now: Snapshot) -> Snapshot:
        """What is now, whatever training does next; true until the next copy. Waits for no card.

        A card's copies are queued before the steps to come, and lie here when `arrive` returns.
        """
        for name, value in now.tensors.items():
            self._places[name].copy_(value, non_blocking=True)
        places = {name: self._places[name] for name in now.tensors}
        if not any(value.is_cuda for value in now.tensors.values()):
            return replace(now, tensors=places)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # blocking: waiting for it takes no core
        event.record()
        return replace(now, tensors=places, arrive=event.synchronize)
