"""Growth: seconds and memory against the number of images (made ones) and of trials (a stand-in for the training).

Run: python benchmarks/growth.py docs/growth.png. Each number is measured in a process of its own:

- images: the first opening of the data (listing, decoding once, the short audit), the next opening, and resident memory
  at most in 64 training steps of 32 spread over all images;
- trials: in a study that has so many ended trials, the first question of a worker that has just started, the median of
  20 trials after it (ask, 10 reports, finish), and resident memory of that worker.

Wanted: memory that does not grow with the images, an ask below 300 ms at 1,000 trials.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from material import made_pixels, write_jpegs
from side_by_side import fresh, here

SIDE = 32  # pixels
HELD_OUT = 64  # images of val and of test-dev each


@dataclass(frozen=True, slots=True)
class Images:
    """What so many training images took."""

    count: int
    first_s: float
    again_s: float
    training_mib: float  # resident at most


@dataclass(frozen=True, slots=True)
class Trials:
    """What one more trial takes after so many."""

    count: int
    first_ask_s: float
    ask_s: float  # median of those after it
    whole_s: float  # ask, 10 reports, finish: median
    worker_mib: float  # resident at most


def most_resident() -> float:
    """MiB that this process held at most (Linux). Not ru_maxrss, which a child has from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def make_faces(folder: Path, count: int) -> list[str]:
    """Names of so many made pictures in `folder`, written if they are not there. In portions: memory stays small."""
    names, portion = [], 10_000
    for start in range(0, count, portion):
        inner = folder / f"{start:06}"
        pixels = made_pixels(min(portion, count - start), SIDE, seed=start)
        names += [f"{inner.name}/{path.name}" for path, _ in write_jpegs(pixels, inner)]
    return names


def write_manifest(folder: Path, names: Sequence[str], count: int) -> Path:
    """The first pictures as val and test-dev, the next `count` as train; the path of the manifest."""
    path = folder / f"{count}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for number, name in enumerate(names[: count + 2 * HELD_OUT]):
            split = "val" if number < HELD_OUT else "test-dev" if number < 2 * HELD_OUT else "train"
            rows.writerow([name, "fake" if number % 2 else "real", split])
    return path


def opening(manifest: Path, store: Path) -> float:
    """Seconds of opening the data as a training does."""
    from dftrack.config import DataConfig
    from dftrack.data.cache import open_data

    began = time.perf_counter()
    open_data(DataConfig(source=str(manifest), image_size=SIDE), store)
    return time.perf_counter() - began


def training(manifest: Path, store: Path, steps: int = 64) -> float:
    """MiB resident at most in so many steps, their images drawn from all of the data as an epoch draws them."""
    import torch

    from dftrack.config import DataConfig, ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.data.cache import open_for_judging
    from dftrack.learning.model import build_model
    from dftrack.learning.training import Step, fit, new_state

    data = open_for_judging(DataConfig(source=str(manifest), image_size=SIDE), store)
    train, config = data.splits["train"], TrainConfig(epochs=steps)
    torch.manual_seed(0)
    state = new_state(
        build_model(ModelConfig(), SIDE), config, images=len(train.labels), precision="fp32", device="cpu"
    )
    done = 0
    for event in fit(state, Batches(train, batch_size=32, seed=0), data.splits["val"], config):
        done += isinstance(event, Step)
        if done == steps:
            break
    return most_resident()


def more_trials(place: Path, count: int, more: int = 20) -> Trials:
    """`count` ended trials, then `more` by a queue that has seen none of them."""
    import random

    from optuna.trial import TrialState, create_trial

    from dftrack.study.definition import find_study_file
    from dftrack.study.file import read_study
    from dftrack.study.fingerprint import fingerprint
    from dftrack.study.jobs import Job, Outcome, Queue
    from dftrack.study.liveness import Life
    from dftrack.study.opening import open_study
    from dftrack.study.records import CLAIM, REASON, Claim
    from dftrack.study.sampling import distributions
    from dftrack.study.storage import Storage

    definition, chance = read_study(find_study_file("default")), random.Random(count)
    storage = Storage(place / f"{count}.db")
    study = open_study(storage, definition, fingerprint(definition, "0" * 32), trials=count + more)
    for _ in range(count):
        params = {"train.learning_rate": 10 ** chance.uniform(-5, -2), "model.dropout": chance.uniform(0, 0.7)}
        storage.backend.create_new_trial(
            study.study_id,
            create_trial(
                state=TrialState.PRUNED,
                params={**params, "model.kernel_size": chance.choice([3, 5, 7])},
                distributions=distributions(definition.space),
                intermediate_values={1: chance.uniform(0.5, 0.9)},
                user_attrs={CLAIM: Claim("paused", token=1, stop=1).write(), REASON: "overtaken"},
            ),
        )
    queue = Queue(study, definition, Life(place / "lives").worker)
    asks, wholes = [], []
    for _ in range(more):
        began = time.perf_counter()
        job = queue.next_job()
        asks.append(time.perf_counter() - began)
        assert isinstance(job, Job), job
        for epoch in range(1, 11):
            queue.report(job, epoch, chance.uniform(0.5, 0.9))
        queue.finish(job, Outcome("failed", reason="a stand-in"))
        wholes.append(time.perf_counter() - began)
    storage.close()
    return Trials(count, asks[0], median(asks[1:]), median(wholes[1:]), most_resident())


def draw(images: Sequence[Images], trials: Sequence[Trials], out: Path) -> None:
    """Four panels on log axes: seconds and memory, of images and of trials."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels: tuple[tuple[str, str, Sequence[Any], dict[str, str]], ...] = (
        ("images", "seconds", images, {"first_s": "first opening: decode, audit", "again_s": "next opening"}),
        ("images", "MiB", images, {"training_mib": "training, resident at most"}),
        ("trials", "seconds", trials,
         {"first_ask_s": "first ask of a new worker", "ask_s": "ask", "whole_s": "ask, 10 reports, finish"}),
        ("trials", "MiB", trials, {"worker_mib": "worker, resident at most"}),
    )  # fmt: skip
    for place, (what, unit, rows, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, words in lines.items():
            place.plot([row.count for row in rows], [getattr(row, name) for row in rows], "o-", label=words)
        place.set(xscale="log", yscale="log", xlabel=f"number of {what}", ylabel=unit)
        if unit == "MiB":
            place.set_ylim(100, 10_000)
        place.grid(visible=True, which="both", alpha=0.25)
        place.legend()
    figure.savefig(out, dpi=90)


def main() -> None:
    """Measure, print as it goes, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the picture (PNG)")
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--store", type=Path, default=Path("build/benchmarks/growth"), help="made anew in each run")
    given = parser.parse_args()
    shutil.rmtree(given.store, ignore_errors=True)
    faces = given.store / "faces"
    names = make_faces(faces, max(given.images) + 2 * HELD_OUT)
    images, trials = [], []
    for count in given.images:
        manifest, store = write_manifest(faces, names, count), given.store / f"store{count}"
        first, again = fresh(opening, manifest, store), fresh(opening, manifest, store)
        images.append(Images(count, first, again, fresh(training, manifest, store)))
        print(images[-1], flush=True)
    for count in given.trials:
        trials.append(fresh(more_trials, given.store, count))
        print(trials[-1], flush=True)
    draw(images, trials, given.out)
    print("JSON " + json.dumps({"images": [asdict(row) for row in images], "trials": [asdict(row) for row in trials],
                                "device": here()}))  # fmt: skip


if __name__ == "__main__":
    main()
