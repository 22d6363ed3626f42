"""What a checkpoint of the full state costs: training waits for dftrack's as long as shown, beside `torch.save`.

Wanted: at most 25 ms of waiting on a GPU; on a CPU under 2 % of an epoch. dftrack writes aside, hashes, syncs and
renames, so that no kill and no full disk can spoil it; `torch.save` alone does none of it and lies in the kernel's
cache when it returns; `torch.save, synced` is the nearest that is as safe against a power cut.
An epoch is taken from a few timed steps on made pictures.

On a GPU dftrack writes behind: the time shown goes from an idle card and the asking until the card is free again, that
is, has copied the state. Training goes on then, and what is restored must be the state of the moment of asking.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from material import made_split
from side_by_side import Check, Report, arguments, in_turn, show
from torch import Tensor

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.data.cache import Split
from dftrack.learning.checkpoint import COST_SHARE, Checkpoints
from dftrack.learning.model import build_model
from dftrack.learning.snapshot import look_at
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
        wait_for(device)
        ends.append(time.perf_counter())
    return ends


def wait_for(device: str) -> None:
    """Until the card has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def kept(state: State) -> dict[str, Tensor]:
    """A copy of every tensor by its name in a checkpoint: weights, BatchNorm's statistics, moments, scores."""
    return {name: value.clone() for name, value in look_at(state).tensors.items()}


def unlike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names of what is not the same bit for bit."""
    return [name for name in one if name not in other or not torch.equal(one[name], other[name])]


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
    behind = given.device == "cuda"
    split = made_split("train", 32 * (2 * given.steps + 1), given.size)
    state = begun(split, given.device)
    ends = go_on(state, split, given.device, given.steps)
    step = median(b - a for a, b in itertools.pairwise(ends))
    given.store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.store) as folder:
        place = Path(folder)
        checkpoints = Checkpoints(place / "ours", every_seconds=0, behind=behind)

        def waiting(save) -> float:  # type: ignore[no-untyped-def]
            os.sync()
            wait_for(given.device)
            began = time.perf_counter()
            save()
            wait_for(given.device)
            return time.perf_counter() - began

        def ours() -> float:
            with checkpoints:  # what is written behind ends with it
                return waiting(lambda: checkpoints.save_if_due(state))

        def plain(synced: bool = False) -> None:
            with open(place / "plain.pt", "wb") as file:
                torch.save({"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())

        (place / "ours").mkdir()
        if behind:
            ours()  # the first time only makes room
        seconds = in_turn(
            {
                "torch.save": lambda: waiting(plain),
                "torch.save, synced": lambda: waiting(lambda: plain(synced=True)),
                "dftrack": ours,
            },
            given.turns,
        )
        size = (place / "plain.pt").stat().st_size
        moment = kept(state)
        with checkpoints:
            asked = checkpoints.save_if_due(state)
            beside = go_on(state, split, given.device, given.steps)
        gone_on = unlike(moment, kept(state))
        again = begun(split, given.device, seed=1)
        go_on(again, split, given.device, 1)
        restored = asked and checkpoints.restore(again)
        parts = unlike(moment, kept(again))
        trains = len(go_on(again, split, given.device, 1)) == 1
    setting = {"size": f"{size / 2**20:,.0f} MiB", "step": f"{step:.4f} s", "turns": given.turns}
    if behind:
        setting["step while one is written"] = f"{median(b - a for a, b in itertools.pairwise(beside)):.4f} s"
    cost, epoch = median(seconds["dftrack"]), step * given.pictures / 32
    checks = [
        Check("training had gone on when it was restored", bool(gone_on), f"in {len(gone_on)} tensors"),
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
            setting=setting,
            checks=checks,
        )
    )


if __name__ == "__main__":
    main()
