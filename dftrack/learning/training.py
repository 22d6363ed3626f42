"""The one training loop: `fit` yields a Step after each optimizer step and an Epoch after each pass."""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dftrack.config import TrainConfig
from dftrack.data.batches import Batch, Batches
from dftrack.data.cache import Split
from dftrack.errors import TrainingError
from dftrack.learning.evaluation import Predictions, predict
from dftrack.learning.metrics import summarise
from dftrack.learning.model import FaceCNN
from dftrack.learning.optimizers import new_optimizer
from dftrack.learning.program import compiled_loss_and_logits, compiling, loss_and_logits
from dftrack.runtime import trim_allocator, tune_allocator

CUDA_LOSS_EVERY = 50  # steps between two readings of the loss on a card, where reading means waiting
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteError(TrainingError):
    """A loss, a score or a weight became NaN or infinite: nothing after it can be used."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step is done. `loss` (nats) is None where reading it would make the card wait."""

    epoch: int  # from 1
    epochs: int
    step: int  # from 1
    steps: int  # in this epoch
    loss: float | None
    images_per_second: float  # in this epoch, so far


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass is done: `metrics` under the names they are recorded by; None = undefined."""

    number: int  # from 1
    metrics: Mapping[str, float | None]
    validation: Predictions


@dataclass(slots=True)
class State:
    """Everything that training changes. What a checkpoint holds, and nothing else."""

    model: FaceCNN
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: str  # "fp32", "bf16" or "fp16"
    scores: Tensor  # (n,) float32 P(fake) of the images trained on in this epoch, in its order
    loss_sum: Tensor  # () float64, summed over this epoch's images, nats
    compiled_size: int | None = None  # the images of a batch that torch.compile serves; None: it serves none
    epoch: int = 1  # the one in progress, or next
    step: int = 0  # steps of it that are done
    seconds: float = 0.0  # of training in this epoch, over all processes that worked on it
    history: list[dict[str, float | None]] = field(default_factory=list)  # the metrics of the epochs done


def new_state(model: FaceCNN, config: TrainConfig, *, images: int, precision: str, device: str) -> State:
    """The state before the first step. `model` is moved to `device`; `images` is the number of training images."""
    model = model.to(device)
    state = State(
        model=model,
        optimizer=new_optimizer(model.parameters(), config),
        scaler=_new_scaler("fp32", device),
        precision="fp32",
        scores=torch.zeros(images, dtype=torch.float32, device=device),
        loss_sum=torch.zeros((), dtype=torch.float64, device=device),
        compiled_size=config.batch_size if config.compile else None,  # not the last, smaller one: it is one in an epoch
    )
    set_precision(state, precision)
    return state


def set_precision(state: State, precision: str) -> None:
    """Let the steps to come be in "fp32", "bf16" or "fp16"; on a CPU what they need is compiled now."""
    device = state.scores.device.type
    state.precision, state.scaler = precision, _new_scaler(precision, device)
    _widen(state.model)
    if device == "cpu":
        from dftrack.learning import fused, narrow  # here: what trains on a card needs no compiler

        fused.load(AUTOCAST.get(precision, torch.float32))
        if precision == "bf16" and state.compiled_size is None:
            narrow.load(state.optimizer)
            state.model.narrow = narrow.NarrowWeight(state.model.fc1.weight)


def _widen(model: FaceCNN) -> None:
    if model.narrow is not None:
        model.narrow.let_go()
        model.narrow = None


def let_go(state: State) -> None:
    """Give back what only training needs, gradients and the optimizer's moments: 3 x the weights. It cannot go on."""
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer.state.clear()
    state.model.spare = None
    _widen(state.model)
    trim_allocator()


def _new_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """The gradient scaler that fp16 needs; one that does nothing for the other precisions."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def fit(state: State, batches: Batches, validation: Split, config: TrainConfig) -> Iterator[Step | Epoch]:
    """Train from where `state` stands to the end, in place.

    When a Step or an Epoch comes out, the state is whole: it can be saved, and the iteration dropped, at that point.
    Raises NonFiniteError as soon as a loss or a score is seen that is not finite; no weight was changed by it.
    """
    while state.epoch <= config.epochs:
        yield from _one_pass(state, batches, config)
        trim_allocator()
        predictions = predict(state.model, validation, device=batches.device)
        if not np.isfinite(predictions.scores).all():
            raise NonFiniteError(f"the validation scores of epoch {state.epoch} are not finite")
        metrics = _epoch_metrics(state, batches, predictions)
        done = Epoch(number=state.epoch, metrics=metrics, validation=predictions)
        state.history.append(dict(metrics))
        state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
        state.loss_sum.zero_()
        yield done


def _one_pass(state: State, batches: Batches, config: TrainConfig) -> Iterator[Step]:
    state.model.train()
    steps, first = len(batches), state.step
    began, before = time.perf_counter(), state.seconds
    for batch in batches.epoch(state.epoch, skip=first):
        _seed(_step_seed(config.seed, state.epoch, state.step), batches.device)  # dropout's draw
        loss = _train_step(state, batch)
        if batches.device == "cpu" and state.step == first:
            tune_allocator()  # now: what lasts (weights, gradients, moments) lies in blocks outside the heap
        _note(state, batches.batch_size, loss)
        look = batches.device == "cpu" or state.step % CUDA_LOSS_EVERY == 0 or state.step == steps
        seen = _finite(loss, state) if look else None  # before the clock: the card may be many steps behind
        seconds = time.perf_counter() - began
        state.seconds = before + seconds
        yield Step(
            epoch=state.epoch,
            epochs=config.epochs,
            step=state.step,
            steps=steps,
            loss=seen,
            images_per_second=(state.step - first) * batches.batch_size / seconds,
        )


@dataclass(frozen=True, slots=True)
class _Loss:
    mean: Tensor  # () over the batch, nats
    scores: Tensor  # (B,) P(fake)


def _train_step(state: State, batch: Batch) -> _Loss:
    """Forward, backward, update. An update whose loss is not finite changes no weight."""
    dtype = AUTOCAST.get(state.precision)
    device = batch.labels.device.type
    if device == "cpu" and state.compiled_size is None:
        state.model.reuse_gradient()
    state.optimizer.zero_grad(set_to_none=device != "cpu")  # on a CPU: heap stays whole
    compiled = len(batch.labels) == state.compiled_size
    run = compiled_loss_and_logits if compiled else loss_and_logits
    with compiling() if compiled else nullcontext():
        loss, logits = run(state.model, batch.pixels, batch.labels, dtype)
        torch.autograd.backward(state.scaler.scale(loss))
    if not state.scaler.is_enabled():  # fused optimizers skip the update where this is 1, without waiting for the card
        state.optimizer.found_inf = (~torch.isfinite(loss.detach())).float()  # type: ignore[attr-defined] # as the scaler does
    if state.model.narrow is not None:
        state.model.narrow.step(state.optimizer)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    with torch.no_grad():
        return _Loss(loss.detach(), torch.sigmoid(logits[:, 1] - logits[:, 0]).detach())


def _note(state: State, batch_size: int, loss: _Loss) -> None:
    start = state.step * batch_size
    state.scores[start : start + len(loss.scores)] = loss.scores
    state.loss_sum += loss.mean.double() * len(loss.scores)
    state.step += 1


def _finite(loss: _Loss, state: State) -> float:
    """The loss as a number. The epoch's sum is looked at: it also betrays a loss nobody read."""
    if not bool(torch.isfinite(state.loss_sum)):
        raise NonFiniteError(
            f"the loss is not finite at epoch {state.epoch}, step {state.step} ({state.precision})",
            "a smaller learning rate often helps (train.learning_rate)",
        )
    return float(loss.mean)


def _epoch_metrics(state: State, batches: Batches, predictions: Predictions) -> dict[str, float | None]:
    train = summarise(
        state.scores.double().cpu().numpy(), batches.labels_of(state.epoch).cpu().numpy()
    )  # as they were scored when trained on, dropout included
    val = summarise(predictions.scores, predictions.labels)
    return {
        "train/loss": float(state.loss_sum) / batches.images,
        "train/accuracy": train["accuracy"],
        "train/roc_auc": train["roc_auc"],
        "val/loss": val["log_loss"],
        "val/accuracy": val["accuracy"],
        "val/roc_auc": val["roc_auc"],
        "time/epoch_seconds": state.seconds,
        "time/images_per_second": batches.images / state.seconds,
        "train/learning_rate": float(state.optimizer.param_groups[0]["lr"]),
    }


def _seed(seed: int, device: str) -> None:
    """`torch.manual_seed` for one device. Without a card that one notes down the call stack each time: 0.7 ms."""
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        torch.cuda.manual_seed(seed)


def _step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for one step's dropout, well mixed, the same whenever that step is done again."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
