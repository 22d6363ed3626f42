"""Training, from files to updated weights: images/s of dftrack beside the plain script and what is made of it.

Wanted on two cores at 224 px, batch 32: 3.5 times the plain script in fp32 with the same numbers (the first 50 losses
within 1e-4), 8 times in bf16 where the processor has it.

The same numbers are looked for in steps. dftrack's loop and the plain loop around dftrack's network, fed the same
tensors, must agree bit for bit in fp32. Both networks with their optimizers must agree in float64. The losses of fp32
of dftrack and the plain script themselves need not stay within 1e-4: one pooling window whose two largest values are
nearly equal, chosen otherwise, is enough to part them, and the plain script parts from itself in the same way when
only its memory layout changes or its first weights move by 1e-7 (--nudges). So each loss is also taken from the very
weights that the plain script has before that step: these must be within 1e-4. NOT SO to 1e-4 for the two trainings may
stand where nothing is wrong; the line below it holds dftrack to twice what those changes do to the plain script.

Reading is included on both sides: the plain script opens
files with PIL at every step, dftrack takes rows of its decoded array (made before, see reading.py).
`tuned` is the plain script with the settings everybody can reach: channels_last, fused Adam, bf16 autocast if native.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from material import Task, files_of, open_faces
from peers import plain_loader, plain_model, same_dropout, train_plain
from side_by_side import Check, Report, arguments, fresh, furthest, in_turn, show

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.learning.model import build_model, normalise
from dftrack.learning.training import Epoch, Step, fit, new_state
from dftrack.runtime import cpu_has_bf16

WARM_UP = 3  # steps that are not timed
SAME, STEPS_COMPARED = 1e-4, 50  # relative difference of losses; steps
NUDGE = 1e-7  # about one rounding of float32


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contender did: images/s after the warm-up, and its losses (nats)."""

    rate: float
    losses: list[float]


def plain(task: Task, workers: int = 0, tuned: bool = False, like: str = "") -> Turn:
    """The plain script for one epoch's first steps. like: "channels_last", or "nudge N": first weights moved a bit."""
    train = open_faces(task.faces, task.size, task.store).splits["train"]
    order = Batches(train, batch_size=task.batch_size, seed=task.seed).order(1)[: task.steps * task.batch_size]
    model = plain_model(task.size, task.seed)
    if tuned or like == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    elif like:
        torch.manual_seed(int(like.removeprefix("nudge ")))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + NUDGE * torch.randn_like(weight))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, **({"fused": True} if tuned else {}))
    loader = plain_loader(files_of(train), task.size, task.batch_size, order=order, workers=workers)
    with torch.autocast("cpu", torch.bfloat16, enabled=tuned and cpu_has_bf16()):
        return timed(train_plain(model, loader, optimizer, before_step=same_dropout(task.seed, 1)), task)


def ours(task: Task, precision: str) -> Turn:
    """dftrack's own loop, as an experiment drives it, up to as many steps."""
    data = open_faces(task.faces, task.size, task.store)
    config = TrainConfig(batch_size=task.batch_size, seed=task.seed, epochs=1)
    torch.manual_seed(task.seed)
    model = build_model(ModelConfig(), task.size)
    train = data.splits["train"]
    state = new_state(model, config, images=len(train.labels), precision=precision, device="cpu")
    batches = Batches(train, batch_size=task.batch_size, seed=task.seed)
    steps = (event.loss for event in fit(state, batches, data.splits["val"], config) if isinstance(event, Step))
    return timed(itertools.islice((loss for loss in steps if loss is not None), task.steps), task)


def timed(losses, task: Task) -> Turn:  # type: ignore[no-untyped-def]
    """Run through the steps. The last batch of an epoch may be smaller: it is counted as what it is elsewhere."""
    seen, began = [], time.perf_counter()
    for number, loss in enumerate(losses, start=1):
        seen.append(loss)
        if number == WARM_UP:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    return Turn((len(seen) - WARM_UP) * task.batch_size / seconds, seen)


def in_float64(task: Task) -> float:
    """Furthest relative difference of the losses of both networks, each with its optimizer, computed in float64."""
    train = open_faces(task.faces, task.size, task.store).splits["train"]
    order = Batches(train, batch_size=task.batch_size, seed=task.seed).order(1)[: task.steps * task.batch_size]
    ones = plain_model(task.size, task.seed)
    torch.manual_seed(task.seed)
    others = build_model(ModelConfig(), task.size)
    losses = []
    for model, fused in ((ones.double(), False), (others.double(), True)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
        loader = plain_loader(files_of(train), task.size, task.batch_size, order=order)
        wide = ([images.double(), labels] for images, labels in loader)
        losses.append(list(train_plain(model, wide, optimizer, before_step=same_dropout(task.seed, 1))))
    return furthest(*losses)


def from_the_same_weights(task: Task) -> float:
    """Furthest relative difference of the losses in fp32 when dftrack has the plain weights before each step."""
    train = open_faces(task.faces, task.size, task.store).splits["train"]
    order = Batches(train, batch_size=task.batch_size, seed=task.seed).order(1)[: task.steps * task.batch_size]
    model, found = plain_model(task.size, task.seed), []
    own = build_model(ModelConfig(), task.size)
    seeded = same_dropout(task.seed, 1)

    def compared() -> Iterator[Sequence[torch.Tensor]]:
        loader = plain_loader(files_of(train), task.size, task.batch_size, order=order)
        for step, (images, labels) in enumerate(loader):
            own.load_state_dict(model.state_dict(), strict=False)  # all but the biases that BatchNorm takes away
            seeded(step)
            found.append(torch.nn.functional.cross_entropy(own(images), labels).item())
            yield images, labels

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return furthest(list(train_plain(model, compared(), optimizer, before_step=seeded)), found)


def same_loop(task: Task) -> bool:
    """Whether dftrack's loop gives the losses of the plain loop around dftrack's network, bit for bit, in fp32."""
    train = open_faces(task.faces, task.size, task.store).splits["train"]
    batches = itertools.islice(Batches(train, batch_size=task.batch_size, seed=task.seed).epoch(1), task.steps)
    fed = ((normalise(batch.pixels), batch.labels) for batch in batches)
    torch.manual_seed(task.seed)
    model = build_model(ModelConfig(), task.size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    losses = list(train_plain(model, fed, optimizer, before_step=same_dropout(task.seed, 1)))
    return losses == ours(task, "fp32").losses


def best_auc(seed: int, precision: str, given) -> float:  # type: ignore[no-untyped-def]
    """Val AUC after the last epoch of a whole training."""
    size, epochs, device = given.auc_size, given.auc_epochs, given.device
    data = open_faces(given.faces, size, given.store)
    config = TrainConfig(seed=seed, epochs=epochs)
    torch.manual_seed(seed)
    train = data.splits["train"]
    state = new_state(
        build_model(ModelConfig(), size), config, images=len(train.labels), precision=precision, device=device
    )
    last = 0.0
    for event in fit(state, Batches(train, batch_size=32, seed=seed, device=device), data.splits["val"], config):
        if isinstance(event, Epoch):
            last = event.metrics["val/roc_auc"] or 0.0
    return last


def main() -> None:
    """Take turns, compare losses, print."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images a step [32]")
    parser.add_argument("--steps", type=int, default=8, help="steps a turn; 53 compares 50 losses [8]")
    parser.add_argument("--workers", type=int, default=2, help="of the plain script with workers; 0: leave it out [2]")
    parser.add_argument("--exact-size", type=int, default=48, help="pixels of the comparison in float64 [48]")
    parser.add_argument("--nudges", type=int, default=2, help="plain trainings from nudged weights, if needed [2]")
    add_auc_options(parser, device="cpu")
    given = parser.parse_args()
    train = open_faces(given.faces, given.size, given.store).splits["train"]
    steps = min(given.steps, len(train.labels) // given.batch)
    task = Task(given.faces, given.size, given.batch, steps, given.store)
    native = cpu_has_bf16()
    contenders = {"plain": partial(fresh, plain, task)}
    if given.workers:
        contenders[f"plain, {given.workers} workers"] = partial(fresh, plain, task, given.workers)
    contenders["tuned"] = partial(fresh, plain, task, 0, True)
    contenders["dftrack fp32"] = partial(fresh, ours, task, "fp32")
    if native:
        contenders["dftrack bf16"] = partial(fresh, ours, task, "bf16")
    turns = in_turn(contenders, given.turns)

    checks = same_numbers(task, turns["plain"][0].losses, turns["dftrack fp32"][0].losses, given)
    repeats = {tuple(turn.losses) for turn in turns["dftrack fp32"]}
    alike = len(repeats) == 1 if given.turns > 1 else None
    checks.append(Check("the same losses in every turn, bit for bit", alike, f"{given.turns} turns"))
    checks.append(auc_check(given, native))
    none = "this processor does not multiply bf16 natively; emulated it is 13 times slower than fp32"
    show(
        Report(
            claim=f"training, {given.size} px, batch {given.batch}",
            wanted="fp32 3.5 x, bf16 8 x the plain script",
            base="plain",
            unit="images/s",
            samples={name: [turn.rate for turn in of] for name, of in turns.items()},
            more_is_better=True,
            setting={"pictures": len(train.labels), "steps": steps, "turns": given.turns, "reading": "included"},
            checks=checks,
            not_measured={} if native else {"dftrack bf16": none},
        )
    )


def same_numbers(task: Task, expected: list[float], found: list[float], given) -> list[Check]:  # type: ignore[no-untyped-def]
    """Whether dftrack computes what the plain script computes, see above."""
    expected, found = expected[:STEPS_COMPARED], found[:STEPS_COMPARED]
    compared = replace(task, steps=min(STEPS_COMPARED, task.steps))
    small = replace(compared, size=given.exact_size)
    equal, exact = fresh(same_loop, small), fresh(in_float64, small)
    stepwise = fresh(from_the_same_weights, compared)
    apart = furthest(expected, found)
    said, own = f"{apart:.1e} at most in {len(expected)} steps", {}
    if apart > SAME:
        for like in ["channels_last", *(f"nudge {number}" for number in range(given.nudges))]:
            own[like] = furthest(expected, fresh(plain, task, 0, False, like).losses[:STEPS_COMPARED])
        early = [furthest([a], [b]) <= SAME for a, b in zip(expected, found, strict=True)]
        said += f", held for the first {early.index(False)}"
    others = "; the plain script against itself: " + ", ".join(f"{name} {value:.1e}" for name, value in own.items())
    limit = max(SAME, 2 * max(own.values(), default=0.0))
    return [
        Check(f"same loop bit for bit in fp32 at {given.exact_size} px", equal, f"{small.steps} losses"),
        Check(f"losses within {SAME:.0e} in float64 at {given.exact_size} px", exact <= SAME, f"{exact:.1e}"),
        Check(
            f"losses of fp32 within {SAME:.0e}, each from the plain script's weights",
            stepwise <= SAME,
            f"{stepwise:.1e} at most in {compared.steps} steps",
        ),
        Check(f"losses of fp32 within {SAME:.0e}", apart <= SAME, said),
        Check(
            f"or within twice the plain script's own, {limit:.1e}",
            apart <= limit,
            f"{apart:.1e}{others if own else ''}",
        ),
    ]


def add_auc_options(parser: argparse.ArgumentParser, device: str) -> None:
    """What `auc_check` needs."""
    parser.add_argument("--auc-seeds", type=int, default=0, help="whole trainings in fp32 and bf16, so many seeds [0]")
    parser.add_argument("--auc-size", type=int, default=96, help="pixels for those [96]")
    parser.add_argument("--auc-epochs", type=int, default=10, help="epochs of those [10]")
    parser.set_defaults(device=device)


def auc_check(given, native: bool) -> Check:  # type: ignore[no-untyped-def]
    """bf16 learns as well as fp32: mean val AUC over seeds within 0.5 points."""
    what = "val AUC of bf16 within 0.5 points of fp32, mean over seeds"
    if not native or not given.auc_seeds:
        return Check(what, None, "no native bf16" if not native else "ask for it with --auc-seeds 3")
    means = {}
    for precision in ("fp32", "bf16"):
        found = [fresh(best_auc, seed, precision, given) for seed in range(given.auc_seeds)]
        means[precision] = float(np.mean(found))
    apart = 100 * abs(means["bf16"] - means["fp32"])
    return Check(what, apart <= 0.5, f"{means['fp32']:.4f} and {means['bf16']:.4f}: {apart:.2f} points")


if __name__ == "__main__":
    main()
