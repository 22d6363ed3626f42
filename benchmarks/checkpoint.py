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
from dftrack.learning.checkpoint import COST_SHARE, Checkpoints
from dftrack.learning.model import build_model
from dftrack.learning.training import State, Step, fit, new_state
from dftrack.runtime import pick_precision

EVERY = TrainConfig().checkpoint_seconds


def trained(size: int, steps: int, device: str) -> tuple[State, float]:
    """A state after some steps, and the seconds of one of them."""
    torch.manual_seed(0)
    split = made_split("train", 32 * steps, size)
    config = TrainConfig(epochs=1)
    precision = pick_precision("auto", device)
    state = new_state(
        build_model(ModelConfig(), size), config, images=len(split.labels), precision=precision, device=device
    )
    ends = []
    for event in fit(state, Batches(split, batch_size=32, seed=0, device=device), split, config):
        if isinstance(event, Step):
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
        if len(ends) == steps:
            break
    return state, median(b - a for a, b in itertools.pairwise(ends))


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
    state, step = trained(given.size, given.steps, given.device)
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
        again, _ = trained(given.size, given.steps, given.device)
        restored = checkpoints.restore(again)
        pairs = zip(state.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        same = restored and all(bool(torch.equal(a, b)) for a, b in pairs)
    cost, epoch = median(seconds["dftrack"]), step * given.pictures / 32
    interval = max(EVERY, cost / COST_SHARE)
    share = cost / interval  # of the time, as they fall due
    checks = [Check("restored bit for bit", same, "weights" if same else "weights differ")]
    if given.device == "cpu":
        said = f"{share:.2%} at one in {interval:.0f} s; one in each epoch of {epoch:.0f} s would be {cost / epoch:.2%}"
        checks.append(Check("under 2 % of an epoch", share <= COST_SHARE + 1e-9, said))
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
