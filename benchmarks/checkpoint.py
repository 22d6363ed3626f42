"""What a checkpoint of the full state costs: training waits for dftrack's as long as shown, beside `torch.save`.

Wanted: at most 25 ms of waiting on a GPU; on a CPU under 2 % of an epoch. dftrack writes aside, hashes, syncs and
renames, so that no kill and no full disk can spoil it; `torch.save` alone does none of it and lies in the kernel's
cache when it returns; `torch.save, synced` is the nearest that is as safe against a power cut.
An epoch is taken from a few timed steps on made pictures.
"""

import itertools
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from material import made_split
from side_by_side import Check, Report, arguments, in_turn, show

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.data.cache import Split
from dftrack.learning.checkpoint import COST_SHARE, Checkpoints
from dftrack.learning.model import build_model
from dftrack.learning.training import State, Step, fit, new_state
from dftrack.runtime import pick_precision

CONFIG = TrainConfig(epochs=1)
EVERY = CONFIG.checkpoint_seconds


def begun(split: Split, device: str, seed: int = 0) -> State:
    """The state before the first step."""
    torch.manual_seed(seed)
    model, precision = build_model(ModelConfig(), split.pixels.shape[1]), pick_precision("auto", device)
    return new_state(model, CONFIG, images=len(split.labels), precision=precision, device=device)


def go_on(state: State, split: Split, device: str, steps: int) -> list[float]:
    """Train for so many steps, no more than the first epoch has; when each of them was done, in seconds."""
    events = fit(state, Batches(split, batch_size=32, seed=0, device=device), split, CONFIG)
    ends = []
    for event in itertools.islice(events, steps):
        assert isinstance(event, Step)
        if device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return ends


def unlike(one: State, other: State) -> list[str]:
    """The names of what is not the same bit for bit: weights, BatchNorm's statistics, the optimizer's state."""
    model, others = one.model.state_dict(), other.model.state_dict()
    found = [name for name in model if not torch.equal(model[name], others[name])]
    slots, theirs = (state.optimizer.state_dict()["state"] for state in (one, other))
    return found + [
        f"optimizer {index} {slot}" for index in slots for slot, value in slots[index].items()
        if not torch.equal(value, theirs[index][slot])
    ]  # fmt: skip


def main() -> None:
    """Take turns, each after a sync of its own, and print."""
    parser = arguments(__doc__, turns=3)
    parser.add_argument("--steps", type=int, default=4, help="steps timed for the length of an epoch [4]")
    parser.add_argument("--pictures", type=int, default=3200, help="in an epoch [3200]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not measured: PyTorch sees no CUDA card")
        return
    split = made_split("train", 32 * (given.steps + 1), given.size)
    state = begun(split, given.device)
    ends = go_on(state, split, given.device, given.steps)
    step = median(b - a for a, b in itertools.pairwise(ends))
    given.store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.store) as folder:
        place = Path(folder)
        checkpoints = Checkpoints(place / "ours", every_seconds=EVERY)

        def waiting(save) -> float:  # type: ignore[no-untyped-def]
            os.sync()
            if given.device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            save()
            return time.perf_counter() - began

        def plain(synced: bool = False) -> None:
            with open(place / "plain.pt", "wb") as file:
                torch.save({"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())

        (place / "ours").mkdir()
        seconds = in_turn(
            {
                "torch.save": lambda: waiting(plain),
                "torch.save, synced": lambda: waiting(lambda: plain(synced=True)),
                "dftrack": lambda: waiting(lambda: checkpoints.save(state)),
            },
            given.turns,
        )
        size = (place / "plain.pt").stat().st_size
        again = begun(split, given.device, seed=1)
        go_on(again, split, given.device, 1)
        differed = unlike(state, again)
        restored = checkpoints.restore(again)
        parts = unlike(state, again)
        trains = len(go_on(again, split, given.device, 1)) == 1
    cost, epoch = median(seconds["dftrack"]), step * given.pictures / 32
    checks = [
        Check("another state differs", bool(differed), f"in {len(differed)} tensors"),
        Check(
            "restored bit for bit, and trains on", restored and trains and not parts, ", ".join(parts) or "all of it"
        ),
    ]
    if given.device == "cpu":
        interval = max(EVERY, cost / COST_SHARE)
        said = f"{cost / epoch:.2%} for one in an epoch of {epoch:.0f} s; made: one in {interval:.0f} s at most"
        checks.append(Check("under 2 % of an epoch", cost / epoch <= COST_SHARE, said))
    else:
        checks.append(Check("training waits 25 ms at most", cost <= 0.025, f"{1000 * cost:.0f} ms"))
    show(
        Report(
            claim=f"checkpoint of the full state, {given.size} px, {given.device}",
            wanted="25 ms on a GPU, 2 % of an epoch on a CPU",
            base="torch.save",
            unit="s",
            samples=seconds,
            more_is_better=False,
            setting={"size": f"{size / 2**20:,.0f} MiB", "step": f"{step:.3f} s", "turns": given.turns},
            checks=checks,
        )
    )


if __name__ == "__main__":
    main()
