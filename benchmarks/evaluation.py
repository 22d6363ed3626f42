"""Evaluation: dftrack's scoring of pictures beside the plain network in eager float32.

Wanted: 2.5 times. Both get the same uint8 pictures in memory and give P(fake) of each; batches of 32. The peer is the
plain network in `eval()` under `no_grad`, normalising in float32, NCHW. Scores must agree within 1e-5.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from material import made_pixels
from peers import MEAN, STD, plain_model, settle
from side_by_side import Check, Report, arguments, fresh, in_turn, show

BATCH = 32
NEAR = 1e-5


@dataclass(frozen=True, slots=True)
class Turn:
    """Images/s, and the scores."""

    rate: float
    scores: np.ndarray


def plain(count: int, size: int, device: str) -> Turn:
    """The plain network."""
    from dftrack.learning.scores import full_float32

    pixels, model = made_pixels(count, size), plain_model(size, 0)
    settle(model)
    model.to(device).eval()
    mean, std = MEAN.to(device), STD.to(device)

    @torch.no_grad()
    def score(pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), BATCH):
            images = torch.from_numpy(pixels[start : start + BATCH]).to(device).permute(0, 3, 1, 2).contiguous()
            parts.append(torch.softmax(model((images.float().div(255) - mean) / std), 1)[:, 1].cpu())
        return torch.cat(parts).double().numpy()

    with full_float32():  # a card would round to TF32
        return timed(score, pixels)


def ours(count: int, size: int, device: str) -> Turn:
    """dftrack's."""
    from dftrack.config import ModelConfig
    from dftrack.learning.model import build_model
    from dftrack.learning.scores import score_pixels

    torch.manual_seed(0)
    model = build_model(ModelConfig(), size)
    settle(model)
    model.to(device)
    return timed(lambda pixels: score_pixels(model, pixels, device=device), made_pixels(count, size))


def timed(score, pixels: np.ndarray) -> Turn:  # type: ignore[no-untyped-def]
    """Once to warm up on a batch, then all of them. Scores come to the host, so the card has finished."""
    score(pixels[:BATCH])
    began = time.perf_counter()
    scores = score(pixels)
    return Turn(len(pixels) / (time.perf_counter() - began), scores)


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, turns=3)
    parser.add_argument("--count", type=int, default=64, help="pictures a turn, made ones [64]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not measured: PyTorch sees no CUDA card")
        return
    work = (given.count, given.size, given.device)
    turns = in_turn({"eager fp32": partial(fresh, plain, *work), "dftrack": partial(fresh, ours, *work)}, given.turns)
    apart = float(np.abs(turns["eager fp32"][0].scores - turns["dftrack"][0].scores).max())
    show(
        Report(
            claim=f"evaluation, {given.size} px, {given.device}",
            wanted="2.5 x eager fp32",
            base="eager fp32",
            unit="images/s",
            samples={name: [turn.rate for turn in of] for name, of in turns.items()},
            more_is_better=True,
            setting={"pictures": given.count, "turns": given.turns, "batch": BATCH},
            checks=[Check(f"scores within {NEAR:.0e}", apart <= NEAR, f"{apart:.1e} apart at most")],
        )
    )


if __name__ == "__main__":
    main()
