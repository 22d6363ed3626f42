"""What the harness costs: the experiment's loop (scores, metrics, MLflow, screen) over dftrack's bare step loop.

Wanted: 1 % at most. One process trains two networks on the same pictures, a step of the one after a step of the other,
each first in turn: machines drift by several percent within seconds. Counted are whole epochs. The bare loop has
batches, steps and the scoring of val. The other is a recorded experiment with its screen drawn as on a terminal, while
it is its turn. Checkpoints have a limit of their own (2 %, see checkpoint.py) and are left out here, as are opening the
run and what follows the last epoch (see trial_overhead.py).
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles

import torch
from material import Task, open_faces
from side_by_side import Check, Report, arguments, fresh, show

WANTED = 0.01


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of each epoch, scoring of val included; those that were trained together at the same place."""

    bare: list[float]
    whole: list[float]


def pairs(task: Task, epochs: int) -> Pairs:
    """Train both, in turn; a first epoch is not counted: scikit-learn and the like are imported in it."""
    found = Pairs([], [])
    with tempfile.TemporaryDirectory() as folder, on_a_terminal():
        loops = bare(task), recorded(task, epochs + 1, Path(folder))
        for _ in range(epochs + 1):
            taken, first, ended = [0.0, 0.0], 0, False
            while not ended:
                for which in (first, 1 - first):
                    began = time.perf_counter()
                    ended = next(loops[which])
                    taken[which] += time.perf_counter() - began
                first = 1 - first
            found.bare.append(taken[0])
            found.whole.append(taken[1])
    return Pairs(found.bare[1:], found.whole[1:])


def bare(task: Task) -> Iterator[bool]:
    """One step after the other, for ever; True after the scoring of val that ends an epoch. Nothing is recorded."""
    from dftrack.config import ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.learning import training
    from dftrack.learning.evaluation import predict
    from dftrack.learning.model import build_model
    from dftrack.runtime import trim_allocator

    data = open_faces(task.faces, task.size, task.store)
    config = TrainConfig(batch_size=task.batch_size)
    torch.manual_seed(0)
    train = data.splits["train"]
    model = build_model(ModelConfig(), task.size)
    state = training.new_state(model, config, images=len(train.labels), precision="fp32", device="cpu")
    batches = Batches(train, batch_size=task.batch_size, seed=0)
    for epoch in count(1):
        state.model.train()
        for step, batch in enumerate(batches.epoch(epoch)):
            torch.manual_seed(training._step_seed(0, epoch, step))
            training._train_step(state, batch)
            yield False
        trim_allocator()
        predict(state.model, data.splits["val"])
        yield True


def recorded(task: Task, epochs: int, store: Path) -> Iterator[bool]:
    """The same of an experiment that is recorded and shown; its screen stands still while others have their turn."""
    from dftrack.config import Config, DataConfig, TrainConfig
    from dftrack.experiment import Plan, run_experiment
    from dftrack.learning.training import Epoch, Step
    from dftrack.screens import Screen

    config = Config(
        data=DataConfig(source=task.faces, image_size=task.size, leaks="allow"),
        train=TrainConfig(
            epochs=epochs, batch_size=task.batch_size, device="cpu", precision="fp32", checkpoint_seconds=1e9
        ),
    )
    (store / "data").symlink_to((task.store / "data").resolve())
    with Screen() as screen:
        live = screen._progress.live
        refresh, at_work = live.refresh, True
        live.refresh = lambda: refresh() if at_work else None  # type: ignore[method-assign]
        for event in run_experiment(config, store, plan=Plan(open_tests=False, pictures=False)):
            screen.show(event)
            if isinstance(event, (Step, Epoch)):
                at_work = False
                yield isinstance(event, Epoch)
                at_work = True


@contextmanager
def on_a_terminal() -> Iterator[None]:
    """Standard error is drawn on as a terminal is, and goes nowhere."""
    before = os.environ.get("FORCE_COLOR")
    os.environ["FORCE_COLOR"] = "1"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            yield
    finally:
        os.environ.pop("FORCE_COLOR")
        if before is not None:
            os.environ["FORCE_COLOR"] = before


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=48, turns=1)
    parser.add_argument("--epochs", type=int, default=8, help="of each a turn, after the first [8]")
    parser.add_argument("--batch", type=int, default=32, help="images a step [32]")
    given = parser.parse_args()
    task = Task(given.faces, given.size, given.batch, 0, given.store)
    open_faces(given.faces, given.size, given.store)
    turns = [fresh(partial(pairs, task, given.epochs)) for _ in range(given.turns)]
    samples = {"bare": [s for turn in turns for s in turn.bare], "whole": [s for turn in turns for s in turn.whole]}
    ratios = [whole / bare - 1 for bare, whole in zip(samples["bare"], samples["whole"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    sharp = high - low <= WANTED * len(ratios) ** 0.5  # a standard error of the median of about 1 % or less
    show(
        Report(
            claim=f"harness over the bare step loop, {given.size} px",
            wanted="1 % or less",
            base="bare",
            unit="s an epoch",
            samples=samples,
            more_is_better=False,
            setting={"epochs": len(ratios), "batch": given.batch},
            checks=[
                Check("the median of the epochs, at most 1 %", middle <= WANTED if sharp else None,
                      f"{middle:+.2%}; half of them from {low:+.2%} to {high:+.2%}"),
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
