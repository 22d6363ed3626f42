"""What the harness costs: the experiment's loop (progress, scores, metrics, MLflow) over dftrack's bare step loop.

Wanted: 1 % at most. Two ways to see it. In turns, an epoch inside a recorded experiment with its screen beside an epoch
of nothing but batches, steps and the scoring of val: honest, but no sharper than the machine is quiet. And by the
clock inside: what the loop spends outside batches, steps and scoring, which is sharp, but sees only what is waited for.
Checkpoints have a limit of their own (2 %, see checkpoint.py) and are told beside it. Opening the run and what follows
the last epoch are not in it: see trial_overhead.py.
"""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from material import Task, open_faces
from side_by_side import Check, Report, arguments, fresh, in_turn, show

WANTED = 0.01


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of each epoch, scoring of val included, and shares of them."""

    epochs: list[float]
    share: float  # that was neither step, batch, score nor checkpoint
    saving: float  # of checkpoints


def bare(task: Task, epochs: int) -> Turn:
    """Batches, steps and the scoring of val; no loss is read, no metric made, nothing recorded or shown."""
    from dftrack.config import ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.learning import training
    from dftrack.learning.evaluation import predict
    from dftrack.learning.model import build_model
    from dftrack.runtime import trim_allocator, tune_allocator

    data = open_faces(task.faces, task.size, task.store)
    config = TrainConfig(batch_size=task.batch_size)
    torch.manual_seed(0)
    train = data.splits["train"]
    state = training.new_state(
        build_model(ModelConfig(), task.size), config, images=len(train.labels), precision="fp32", device="cpu"
    )
    batches, taken = Batches(train, batch_size=task.batch_size, seed=0), []
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        state.model.train()
        for step, batch in enumerate(batches.epoch(epoch)):
            torch.manual_seed(training._step_seed(0, epoch, step))
            training._train_step(state, batch)
            if step == 0:
                tune_allocator()
        trim_allocator()
        predict(state.model, data.splits["val"])
        taken.append(time.perf_counter() - began)
    return Turn(taken, 0.0, 0.0)


def whole(task: Task, epochs: int) -> Turn:
    """The same epochs inside a recorded experiment, shown on a screen; checkpoints as they fall due."""
    from dftrack.config import Config, DataConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.experiment import Plan, Started, run_experiment
    from dftrack.learning import training
    from dftrack.learning.checkpoint import Checkpoints
    from dftrack.learning.training import Epoch
    from dftrack.screens import Screen

    inside, saves = Clock(), Clock()
    Checkpoints.save = saves.around(Checkpoints.save)  # type: ignore[method-assign]
    training._train_step = inside.around(training._train_step)
    training.predict = inside.around(training.predict)
    Batches._gather = inside.around(Batches._gather)  # type: ignore[method-assign]
    config = Config(
        data=DataConfig(source=task.faces, image_size=task.size, leaks="allow"),
        train=TrainConfig(epochs=epochs, batch_size=task.batch_size, device="cpu", precision="fp32"),
    )
    taken: list[float] = []
    share = saving = 0.0
    with tempfile.TemporaryDirectory() as folder, Screen() as screen:
        (Path(folder) / "data").symlink_to((task.store / "data").resolve())
        began = time.perf_counter()
        first = began
        for event in run_experiment(config, Path(folder), plan=Plan(open_tests=False, pictures=False)):
            screen.show(event)
            now = time.perf_counter()
            if isinstance(event, Started):
                began = first = now
                inside.seconds = saves.seconds = 0.0
            elif isinstance(event, Epoch):
                taken.append(now - began)
                began = now
                if event.number == 1 and epochs > 1:  # scikit-learn and the like are imported in it
                    first, inside.seconds, saves.seconds = now, 0.0, 0.0
                else:
                    saving = saves.seconds / (now - first)
                    share = 1 - inside.seconds / (now - first) - saving
    return Turn(taken, share, saving)


class Clock:
    """Adds up the seconds inside some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function):  # type: ignore[no-untyped-def]
        """`function`, with its time added."""

        def clocked(*args, **kwargs):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return clocked


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=48, turns=2)
    parser.add_argument("--epochs", type=int, default=2, help="a turn; the first is not counted [2]")
    parser.add_argument("--batch", type=int, default=32, help="images a step [32]")
    given = parser.parse_args()
    task = Task(given.faces, given.size, given.batch, 0, given.store)
    open_faces(given.faces, given.size, given.store)
    contenders = {"bare": partial(fresh, bare, task, given.epochs), "whole": partial(fresh, whole, task, given.epochs)}
    turns = in_turn(contenders, given.turns)
    samples = {name: [median(turn.epochs[1:] or turn.epochs) for turn in of] for name, of in turns.items()}
    share, saving = (median(getattr(turn, of) for turn in turns["whole"]) for of in ("share", "saving"))
    extra = median(samples["whole"]) / median(samples["bare"]) - 1
    spread = max(samples["bare"]) / min(samples["bare"]) - 1
    show(
        Report(
            claim=f"harness over the bare step loop, {given.size} px",
            wanted="1 % or less",
            base="bare",
            unit="s an epoch",
            samples=samples,
            more_is_better=False,
            setting={"epochs": given.epochs, "batch": given.batch, "turns": given.turns},
            checks=[
                Check("by the clock inside, at most 1 %", share <= WANTED, f"{share:.2%}; checkpoints {saving:.2%}"),
                Check("in turns, at most 1 %", None if spread > WANTED else extra <= WANTED,
                      f"{extra:+.2%}; the bare loop alone differs by {spread:.1%} from turn to turn"),
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
