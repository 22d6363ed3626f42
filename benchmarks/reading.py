"""Reading: a batch from the decoded array beside the PIL path, and how well decoding once uses the cores.

Wanted: 20 times cheaper an image than PIL from the second epoch on; decoding at 90 % of cores x one core's rate.
A batch counts when it is ready for the network: (32, 3, S, S) float32, normalised. Files and array are in the kernel's
cache on both sides. One core's rate is the library's decoding alone: bytes in memory -> (S, S, 3) uint8. Decoding is
measured on the files as they are and on the same pictures at --side pixels, as photographs and frames come. Beside it
stands the floor that the disk sets: as many pixels written and synced, with nothing decoded.
"""

import dataclasses
import io
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from material import Task, files_of, open_faces
from PIL import Image
from side_by_side import Check, Report, arguments, fresh, in_turn, show, tell

BATCH = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """Microseconds an image, and the first batch: its values in memory order of (B, 3, S, S), and its labels."""

    cost: float
    first: tuple[np.ndarray, np.ndarray]


def from_files(task: Task) -> Turn:
    """The plain script's DataLoader."""
    from peers import plain_loader

    from dftrack.data.batches import Batches

    train = open_faces(task.faces, task.size, task.store).splits["train"]
    order = Batches(train, batch_size=BATCH, seed=0).order(1)[: task.steps * BATCH]
    for path, _ in files_of(train):
        path.read_bytes()  # into the kernel's cache
    return timed(iter(plain_loader(files_of(train), task.size, BATCH, order=order)))


def from_array(task: Task, *, normalised: bool = True) -> Turn:
    """dftrack's batches; `normalised` False: as they go into the step, uint8."""
    from dftrack.data.batches import Batches
    from dftrack.learning.model import normalise

    train = open_faces(task.faces, task.size, task.store).splits["train"]
    for start in range(0, len(train.labels), 256):
        np.asarray(train.pixels[start : start + 256]).sum()  # into the kernel's cache
    batches = Batches(train, batch_size=BATCH, seed=0).epoch(1)
    some = itertools.islice(batches, task.steps)
    return timed((normalise(batch.pixels) if normalised else batch.pixels, batch.labels) for batch in some)


def timed(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Turn:
    """Microseconds an image, the first batch apart."""
    pixels, labels = next(batches)
    began, images = time.perf_counter(), 0
    for batch, _ in batches:
        images += len(batch)
    return Turn(1e6 * (time.perf_counter() - began) / images, (pixels.contiguous().numpy(), labels.numpy()))


def one_core(task: Task, count: int) -> float:
    """Images/s of decoding alone, on one thread."""
    torch.set_num_threads(1)
    train = open_faces(task.faces, task.size, task.store).splits["train"]
    contents = [path.read_bytes() for path, _ in files_of(train)[:count]]
    began = time.perf_counter()
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        if image.size != (task.size, task.size):
            image = image.resize((task.size, task.size), Image.Resampling.BILINEAR)
        np.array(image)
    return len(contents) / (time.perf_counter() - began)


def build(task: Task, count: int) -> float:
    """Images/s of dftrack's whole decoding, hashes, writing and syncing included, on all cores."""
    from dftrack.data.cache import open_listing
    from dftrack.data.sources import find_pictures

    listing = find_pictures(task.faces, task.store)
    train = tuple(picture for picture in listing.pictures if picture.split == "train")[:count]
    for picture in train:
        picture.path.read_bytes()
    home = task.store / "build"
    shutil.rmtree(home, ignore_errors=True)
    began = time.perf_counter()
    open_listing(dataclasses.replace(listing, pictures=train), task.size, home, to_train=False)
    seconds = time.perf_counter() - began
    shutil.rmtree(home, ignore_errors=True)
    return len(train) / seconds


def disk(task: Task, count: int) -> float:
    """Images/s of writing as many decoded pictures and syncing them, on one thread."""
    some = os.urandom(64 * task.size * task.size * 3)
    target = task.store / "disk"
    began = time.perf_counter()
    with open(target, "wb", buffering=0) as handle:
        for _ in range(0, count, 64):
            handle.write(some)
        os.fsync(handle.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return (count + 63) // 64 * 64 / seconds


def enlarged(task: Task, side: int, count: int) -> Task:
    """The task with its first pictures of train as JPEG files (quality 90) of side x side pixels."""
    folder = task.store / f"enlarged-{side}-{count}"
    some = files_of(open_faces(task.faces, task.size, task.store).splits["train"])[:count]
    for number, (path, label) in enumerate(some):
        target = folder / "train" / ("fake" if label else "real") / f"{number:06}.jpg"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            image.save(target, quality=90)
    return dataclasses.replace(task, faces=str(folder))


def decoding(task: Task, what: str, count: int, turns: int) -> None:
    """Measure decoding once, and print."""
    cores = len(os.sched_getaffinity(0))
    rates = in_turn(
        {
            "one core": partial(fresh, one_core, task, count),
            "dftrack": partial(fresh, build, task, count),
            "the disk alone": partial(fresh, disk, task, count),
        },
        turns,
    )
    share = median(rates["dftrack"]) / (cores * median(rates["one core"]))
    show(
        Report(
            claim=f"decoding once, {what}, to {task.size} px, {cores} cores",
            wanted="90 % of cores x one core's rate",
            base="one core",
            unit="images/s",
            samples=rates,
            more_is_better=True,
            setting={"pictures": count, "share of cores x one core": f"{share:.1%}"},
        )
    )


def main() -> None:
    """Take turns and print, three claims."""
    parser = arguments(__doc__, turns=3)
    parser.add_argument("--steps", type=int, default=20, help="batches of 32 a turn [20]")
    parser.add_argument("--count", type=int, default=1000, help="pictures decoded a turn, at most [1000]")
    parser.add_argument("--side", type=int, default=640, help="side of the larger files, pixels [640]")
    given = parser.parse_args()
    pictures = len(open_faces(given.faces, given.size, given.store).splits["train"].labels)
    task = Task(given.faces, given.size, BATCH, min(given.steps, pictures // BATCH), given.store)
    turns = in_turn(
        {
            "PIL, DataLoader": partial(fresh, from_files, task),
            "dftrack": partial(fresh, from_array, task),
            "dftrack, uint8 as fed": partial(fresh, partial(from_array, normalised=False), task),
        },
        given.turns,
    )
    (pixels, labels), (own, own_labels) = turns["PIL, DataLoader"][0].first, turns["dftrack"][0].first
    apart = float(np.abs(pixels - own).max())
    same = tell(
        Report(
            claim=f"reading a batch from epoch 2 on, {given.size} px",
            wanted="20 times cheaper an image",
            base="PIL, DataLoader",
            unit="us an image",
            samples={name: [turn.cost for turn in of] for name, of in turns.items()},
            more_is_better=False,
            setting={"batches": task.steps, "turns": given.turns, "threads": torch.get_num_threads()},
            checks=[
                Check("the same first batch", apart < 1e-5 and list(labels) == list(own_labels), f"{apart:.1e} apart")
            ],
        )
    )
    count = min(given.count, pictures)
    decoding(task, "files as they are", count, given.turns)
    some = min(count, 1000)
    decoding(enlarged(task, given.side, some), f"files of {given.side} px", some, given.turns)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
