"""One CUDA card: training at batch 32 and 512, in fp32, bf16 and fp16, beside the plain script and tuned timm.

Wanted on one H100 at 224 px: 25,000 images/s at batch 32 with everything included (stock tools: 15,000), 3 times the
plain script with 16 workers; 60,000 images/s at batch 512, 1.8 times tuned timm (left out if it is not installed).
Floors stand beside: what this card needs to move the bytes of an Adam step and of the maps, at the bandwidth measured
here, and to compute, at the bf16 rate measured here.
The rows are steps, from pixels to updated weights; `with val` adds what an epoch adds: val (an eighth as many pictures)
scored in full float32, and metrics. fp32 is as PyTorch comes on both sides (convolutions in TF32).
`compiled` is with train.compile=true. The time that compiling takes lies in the steps before, which are not timed.
Pictures are made ones: in memory for dftrack (which keeps them on the card), as JPEG files for the others.
A contender that fails is left out and its reason told. Without CUDA it says so and measures nothing.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from material import Files, made_pixels, made_split, split_of, write_jpegs
from peers import plain_loader, plain_model, same_dropout, train_plain
from PIL import Image
from side_by_side import Check, Report, arguments, fresh, furthest, in_turn, short, tell
from torch import Tensor
from torch.utils.data import Dataset
from training import add_auc_options, auc_check

from dftrack.data.cache import Split

CHANNELS = (3, 32, 64, 128)
HIDDEN, CLASSES = 512, 2
LOSSES = 50  # compared in fp32
DEVICE = "cuda"


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be trained."""

    size: int
    batch_size: int
    pixels: Path  # .npy of made pictures, (n, S, S, 3) uint8
    steps: int  # timed
    warm_up: int

    def split(self, name: str, share: int = 1) -> Split:
        """One in `share` of the pictures."""
        pixels = np.load(self.pixels, mmap_mode="r")
        return split_of(name, pixels[: len(pixels) // share])


@dataclass(frozen=True, slots=True)
class Turn:
    """Images/s, and the losses that were read."""

    rate: float
    losses: list[float]


@dataclass(frozen=True, slots=True)
class Work:
    """What one training step has to do at least."""

    adam_bytes: int  # parameters, gradients and both moments read, parameters and moments written
    map_bytes: int  # maps written and read, forward and backward
    flops: int


def least_work(size: int, batch_size: int, value_bytes: int, kernel_size: int = 3) -> Work:
    """Of one step. Adam in float32: 28 bytes a parameter. Maps: each block's convolution output is written and read
    once forward (BatchNorm's sums, then its result pooled on the way), its gradient written and read once backward and
    the output read again; pooled maps are a quarter. A lower bound for fused kernels, not a prediction for eager ones.
    """
    parameters, macs, values, side = 0, 0, 0, size
    for ins, outs in itertools.pairwise(CHANNELS):
        parameters += ins * outs * kernel_size**2 + 2 * outs
        macs += ins * outs * kernel_size**2 * side**2 * (2 if ins == CHANNELS[0] else 3)  # no gradient of the pictures
        values += outs * side**2 * 5 + outs * (side // 2) ** 2 * 4
        side //= 2
    inputs = CHANNELS[-1] * side**2
    parameters += (inputs + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
    macs += 3 * (inputs * HIDDEN + HIDDEN * CLASSES)
    return Work(28 * parameters, batch_size * values * value_bytes, 2 * macs * batch_size)


def ours(task: Task, precision: str, compiled: bool = False, scored: bool = False) -> Turn:
    """dftrack's loop over epochs of the made pictures; `scored`: with what follows each of them."""
    from dftrack.config import ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.learning import training
    from dftrack.learning.model import build_model

    split, val = task.split("train"), task.split("val", share=8)
    total = task.warm_up + task.steps
    config = TrainConfig(epochs=total, batch_size=task.batch_size, device=DEVICE, compile=compiled)
    torch.manual_seed(0)
    state = training.new_state(
        build_model(ModelConfig(), task.size), config, images=len(split.labels), precision=precision, device=DEVICE
    )
    batches = Batches(split, batch_size=task.batch_size, seed=0, device=DEVICE)
    losses: list[float] = []

    def events() -> Iterable[training.Step | training.Epoch]:
        if scored:
            yield from training.fit(state, batches, val, config)
        while not scored:
            yield from training._one_pass(state, batches, config)
            state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
            state.loss_sum.zero_()

    def steps() -> Iterable[None]:
        for event in events():
            if isinstance(event, training.Step):
                if event.loss is not None:
                    losses.append(event.loss)
                yield

    return Turn(rate(steps(), task), losses)


def plain(task: Task, files: Files, workers: int) -> Turn:
    """The plain script on the card, fp32 as PyTorch comes."""
    model = plain_model(task.size, 0).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses: list[float] = []

    def steps() -> Iterable[None]:
        rounds = -(-(task.warm_up + task.steps) * task.batch_size // len(files))  # one loader: its workers start once
        loader = plain_loader(list(files) * rounds, task.size, task.batch_size, workers=workers)
        for loss in train_plain(model, loader, optimizer, device=DEVICE):
            losses.append(loss)
            yield

    return Turn(rate(steps(), task), losses)


class TransformedFiles(Dataset[tuple[Tensor, int]]):
    """Pictures by path, as timm's own data set reads them; its loader sets `transform`."""

    transform: Callable[[Image.Image], Tensor]

    def __init__(self, files: Files) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


def tuned_timm(task: Task, files: Files, workers: int) -> Turn:
    """timm's loader and prefetcher around the plain network, tuned as its train.py can be: --amp --amp-dtype bfloat16
    --channels-last --torchcompile, fused Adam, no augmentation; the loss is read every 50 steps, as its log does.
    """
    from timm.data import create_loader

    rounds = -(-(task.warm_up + task.steps) * task.batch_size // len(files))
    on_card = DEVICE == "cuda"
    loader = create_loader(
        TransformedFiles(list(files) * rounds), (3, task.size, task.size), task.batch_size, is_training=True,
        no_aug=True, num_workers=workers, pin_memory=on_card, use_prefetcher=on_card, persistent_workers=workers > 0,
        device=torch.device(DEVICE),
    )  # fmt: skip
    model = plain_model(task.size, 0).to(DEVICE, memory_format=torch.channels_last)
    model.compile()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    losses: list[float] = []

    def steps() -> Iterable[None]:
        model.train()
        for step, (images, labels) in enumerate(loader):
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = model(images.contiguous(memory_format=torch.channels_last))
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                losses.append(loss.item())
            yield

    return Turn(rate(steps(), task), losses)


def rate(steps: Iterable[None], task: Task) -> float:
    """Images/s of the timed steps, the card waited for at both ends."""
    going = iter(steps)
    for _ in range(task.warm_up):
        next(going)
    wait()
    began = time.perf_counter()
    for _ in range(task.steps):
        next(going)
    wait()
    return task.steps * task.batch_size / (time.perf_counter() - began)


def attempt(work: Callable[[], Turn]) -> Turn | str:
    """The turn in a fresh process, or why there is none."""
    try:
        return fresh(work)
    except Exception as error:  # whatever it is, the others' turns must not be lost
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def wait() -> None:
    """Until the card has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def compare_losses(size: int, steps: int) -> Sequence[float]:
    """[furthest relative difference, the plain script's own in channels_last and nudged]: fp32, no TF32, no dropout.

    Dropout is off: on a card the mask depends on the memory layout it is drawn in, and the layouts differ.
    """
    from dftrack.config import ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.learning import training
    from dftrack.learning.model import build_model, normalise

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    split = made_split("train", 32 * steps, size)
    config = TrainConfig(epochs=1, device=DEVICE)
    batches = Batches(split, batch_size=32, seed=0, device=DEVICE)
    torch.manual_seed(0)
    state = training.new_state(
        build_model(ModelConfig(dropout=0.0), size), config, images=len(split.labels), precision="fp32", device=DEVICE
    )
    found = [float(training._train_step(state, batch).mean) for batch in batches.epoch(1)]

    def plain_losses(layout: torch.memory_format = torch.contiguous_format, nudge: int = 0) -> list[float]:
        model = plain_model(size, 0).to(memory_format=layout)
        if nudge:
            torch.manual_seed(nudge)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1 + 1e-7 * torch.randn_like(weight))
        model.dropout.p = 0.0
        model.to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        pictures = ((normalise(batch.pixels).contiguous(), batch.labels) for batch in batches.epoch(1))
        return list(train_plain(model, pictures, optimizer, device=DEVICE, before_step=same_dropout(0, 1)))

    expected = plain_losses()
    own = [plain_losses(torch.channels_last), *(plain_losses(nudge=number) for number in range(1, 6))]
    return [furthest(expected, found), max(furthest(expected, losses) for losses in own)]


def speeds() -> tuple[float, float]:
    """(bytes/s of a copy, counted both ways; FLOP/s of a bf16 product) of this card, now."""

    def seconds(work, times: int = 20) -> float:  # type: ignore[no-untyped-def]
        work()
        wait()
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        return (time.perf_counter() - began) / times

    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    copied, multiplied = seconds(lambda: target.copy_(source)), seconds(lambda: square @ square)
    return 2 * source.numel() / copied, 2 * 8192**3 / multiplied


def main() -> None:
    """Both batch sizes, a report each."""
    parser = arguments(__doc__, turns=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 512], help="batch sizes [32 512]")
    parser.add_argument("--pictures", type=int, default=4096, help="made pictures [4096]")
    parser.add_argument("--steps", type=int, default=200, help="timed steps a turn [200]")
    parser.add_argument("--warm-up", type=int, default=60, help="steps before [60]")
    parser.add_argument("--workers", type=int, default=16, help="of the plain script [16]")
    parser.add_argument("--plain-steps", type=int, default=60, help="timed steps of the plain script [60]")
    add_auc_options(parser, device=DEVICE)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: PyTorch sees no CUDA card")
        return
    bandwidth, arithmetic = speeds()
    print(f"this card now: {bandwidth / 1e12:.2f} TB/s copying, {arithmetic / 1e12:.0f} TFLOP/s in bf16")
    apart, own = fresh(compare_losses, min(given.size, 96), LOSSES)
    said = f"{apart:.1e}; the plain script against itself (channels_last, five nudges of 1e-7): {own:.1e}"
    same = [
        Check("50 losses of fp32 within 1e-4", apart <= 1e-4, said),
        Check(
            "50 losses of fp32 within 1e-4, or twice the plain script's own",
            apart <= max(1e-4, 2 * own),
            f"{apart:.1e}",
        ),
        auc_check(given, native=True),
    ]
    wanted = {32: "25,000 images/s, 3 x plain with 16 workers", 512: "60,000 images/s, 1.8 x tuned timm"}
    with tempfile.TemporaryDirectory() as folder:
        made, pixels = made_pixels(given.pictures, given.size), Path(folder) / "pixels.npy"
        np.save(pixels, made)
        files = write_jpegs(made, Path(folder) / "jpegs")
        held = True
        for size in given.batches:
            task = Task(given.size, size, pixels, given.steps, given.warm_up)
            short_task = Task(given.size, size, pixels, given.plain_steps, 5)
            contenders = {
                "plain": partial(plain, short_task, files, given.workers),
                "tuned timm": partial(tuned_timm, short_task, files, given.workers),
                "dftrack fp32": partial(ours, task, "fp32"),
                "dftrack bf16": partial(ours, task, "bf16"),
                "dftrack bf16, with val": partial(ours, task, "bf16", scored=True),
                "dftrack fp16": partial(ours, task, "fp16"),
                "dftrack bf16, compiled": partial(ours, task, "bf16", compiled=True),
                "dftrack bf16, compiled, with val": partial(ours, task, "bf16", compiled=True, scored=True),
            }
            told = in_turn({name: partial(attempt, work) for name, work in contenders.items()}, given.turns)
            failed = {name: next(turn for turn in of if isinstance(turn, str))
                      for name, of in told.items() if any(isinstance(turn, str) for turn in of)}  # fmt: skip
            turns = {name: of for name, of in told.items() if name not in failed}
            rates = {name: [turn.rate for turn in of] for name, of in turns.items()}
            learned = all(math.isfinite(loss) for of in turns.values() for turn in of for loss in turn.losses)
            work = least_work(given.size, size, value_bytes=2)
            adam, maps, sums = work.adam_bytes / bandwidth, work.map_bytes / bandwidth, work.flops / arithmetic
            held &= tell(
                Report(
                    claim=f"training on one card, {given.size} px, batch {size}",
                    wanted=wanted.get(size, "-"),
                    base="plain",
                    unit="images/s",
                    samples=rates if "plain" in rates else {},
                    more_is_better=True,
                    setting={
                        "workers of plain": given.workers,
                        "floor Adam": f"{1000 * adam:.2f} ms",
                        "floor maps bf16": f"{1000 * maps:.2f} ms",
                        "floor FLOPs": f"{1000 * sums:.2f} ms",
                        "floor images/s": short(size / (adam + max(maps, sums))),
                    },
                    checks=[*same, Check("every loss that was read is finite", learned, f"{given.steps} steps")],
                    not_measured=failed,
                )
            )  # fmt: skip
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
