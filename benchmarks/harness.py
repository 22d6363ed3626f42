"""What the harness costs: the experiment's loop (scores, metrics, MLflow, screen) over dftrack's bare step loop.

Wanted: 1 % at most. One process trains two networks on the same pictures, an epoch of the one after an epoch of the
other, each first in turn: machines drift over minutes, so what counts is the ratio within a pair of neighbours. The
bare loop has batches, steps and the scoring of val. The other is a recorded experiment with its screen drawn as on a
terminal. Checkpoints have a limit of their own (2 %, see checkpoint.py) and are left out here, as are opening the run
and what follows the last epoch (see trial_overhead.py).
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles

import torch
from material import Task, open_faces
from side_by_side import Check, Report, arguments, fresh, show

WANTED = 0.01


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of each epoch, scoring of val included; neighbours in time at the same place."""

    bare: list[float]
    whole: list[float]


def pairs(task: Task, count: int) -> Pairs:
    """Train both, in turn; a first pair is not counted: scikit-learn and the like are imported in it."""
    found = Pairs([], [])
    with recorded(task, count + 1) as whole, on_a_terminal():
        loops = [(found.bare, bare(task)), (found.whole, whole)]
        for number in range(count + 1):
            for taken, epoch in loops if number % 2 else loops[::-1]:
                began = time.perf_counter()
                epoch()
                taken.append(time.perf_counter() - began)
    return Pairs(found.bare[1:], found.whole[1:])


def bare(task: Task) -> Callable[[], None]:
    """An epoch a call: no loss is read, no metric made, nothing recorded or shown."""
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

    def epoch() -> None:
        state.model.train()
        for step, batch in enumerate(batches.epoch(1)):
            torch.manual_seed(training._step_seed(0, 1, step))
            training._train_step(state, batch)
        trim_allocator()
        predict(state.model, data.splits["val"])

    return epoch


@contextmanager
def recorded(task: Task, epochs: int) -> Iterator[Callable[[], None]]:
    """An epoch a call, of an experiment that is recorded and shown; the screen is up during it and no longer."""
    from dftrack.config import Config, DataConfig, TrainConfig
    from dftrack.experiment import Plan, Started, run_experiment
    from dftrack.learning.training import Epoch
    from dftrack.screens import Screen

    config = Config(
        data=DataConfig(source=task.faces, image_size=task.size, leaks="allow"),
        train=TrainConfig(
            epochs=epochs, batch_size=task.batch_size, device="cpu", precision="fp32", checkpoint_seconds=1e9
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to((task.store / "data").resolve())
        events = run_experiment(config, Path(folder), plan=Plan(open_tests=False, pictures=False))
        next(event for event in events if isinstance(event, Started))

        def epoch() -> None:
            with Screen() as screen:
                for event in events:
                    screen.show(event)
                    if isinstance(event, Epoch):
                        return

        yield epoch
        for _ in events:
            pass


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
    parser.add_argument("--epochs", type=int, default=8, help="pairs of epochs a turn [8]")
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
            setting={"pairs": len(ratios), "batch": given.batch},
            checks=[
                Check("the median of the pairs, at most 1 %", middle <= WANTED if sharp else None,
                      f"{middle:+.2%}; half of them from {low:+.2%} to {high:+.2%}"),
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
