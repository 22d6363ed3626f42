"""From asking for a trial to its first step done: a fresh process beside the second trial of a warm worker.

Wanted: 1 s on a CPU and 0.25 s on a GPU, 5 and 20 times faster than a fresh process. Both are dftrack's own: the queue
is asked, the run opened, the network built, the first step trained. The fresh one starts with the interpreter.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from material import open_faces
from side_by_side import Check, Report, arguments, fresh, in_turn, show

TRIALS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds to the first step done: of the process's first trial, from its start, and of each later one."""

    fresh: float
    warm: list[float]
    step: float  # seconds of a later step alone


def worker(faces: str, size: int, store: Path, device: str, began: float) -> Turn:
    """A worker's life, cut short after the second step of each trial. `began`: before this process was started."""
    from dftrack.experiment import Plan, run_experiment
    from dftrack.learning.training import Step
    from dftrack.study.definition import find_study_file
    from dftrack.study.file import read_study
    from dftrack.study.fingerprint import fingerprint
    from dftrack.study.jobs import Job, Outcome, Queue
    from dftrack.study.liveness import Life
    from dftrack.study.naming import trial_key
    from dftrack.study.opening import open_study
    from dftrack.study.storage import Storage

    settings = {"data.source": faces, "data.image_size": size, "train.device": device}
    definition = read_study(find_study_file("grid")).revised(settings)
    study = open_study(Storage(store / "warm.db"), definition, fingerprint(definition, "0" * 32), new=True)
    life = Life(store / "lives")
    queue = Queue(study, definition, life.worker)
    taken, steps = [], []
    for _ in range(TRIALS):
        job = queue.next_job()
        assert isinstance(job, Job)
        plan = Plan(kind="trial", key=trial_key(study.name, job.trial), open_tests=False, pictures=False)
        events = run_experiment(definition.config(job.params), store, plan=plan)
        for event in events:
            if isinstance(event, Step):
                if device == "cuda":
                    torch.cuda.synchronize()
                now = time.monotonic()
                if event.step == 1:
                    taken.append(now - began)
                else:
                    steps.append(now - began - taken[-1])
                    break
        events.close()  # type: ignore[attr-defined]
        for epoch in range(job.start_epoch + 1, job.stop_epoch + 1):
            queue.report(job, epoch, 0.5)
        queue.finish(job, Outcome("complete"))
        began = time.monotonic()
    life.end()
    return Turn(taken[0], taken[1:], median(steps))


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=96, turns=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not measured: PyTorch sees no CUDA card")
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        if given.faces == "sample":
            open_faces("sample", given.size, given.store)  # makes it, if need be
            (store / "data").symlink_to((given.store / "data").resolve())

        def turn() -> Turn:
            return fresh(worker, given.faces, given.size, store, given.device, time.monotonic())

        turn()  # makes the schema, decodes and audits the pictures: once for a data set, not for a trial
        turns = in_turn({"a worker": turn}, given.turns)["a worker"]
    warm = [median(one.warm) for one in turns]
    wanted, times = (1.0, 5) if given.device == "cpu" else (0.25, 20)
    ratio = median([one.fresh for one in turns]) / median(warm)
    step = median(one.step for one in turns)
    show(
        Report(
            claim=f"ask to first step done, {given.size} px, {given.device}",
            wanted=f"{wanted:g} s, {times} x a fresh process",
            base="fresh process",
            unit="s",
            samples={"fresh process": [one.fresh for one in turns], "warm worker": warm},
            more_is_better=False,
            setting={"a step alone": f"{step:.2f} s", "turns": given.turns},
            checks=[Check(f"at most {wanted:g} s", median(warm) <= wanted, f"{median(warm):.2f} s"),
                    Check(f"{times} times", ratio >= times, f"{ratio:.1f}")],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
