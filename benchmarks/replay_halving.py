"""Does halving find as good a configuration as the full search? Replayed on recorded curves, over many seeds.

Run: python benchmarks/replay_halving.py CURVES.json [studies] [trials]. Each simulated study has the baseline, which is
the first of the recorded curves and has a seat of its own, and draws its other trials from the rest, with replacement.
The plan is that of the default study; beside it stand the same ranked by value alone, and one that prunes by thirds.
"""

import json
import random
import statistics
import sys
from pathlib import Path

from dftrack.study.definition import find_study_file
from dftrack.study.file import read_study
from dftrack.study.halving import RISING, Halving, replay


def main(curves: Path, studies: int = 1000, trials: int = 30) -> None:
    """Print for each plan the losses against the full search, and the epochs spent."""
    recorded = json.loads(curves.read_text())["trials"]
    whole = [trial["curve"] for trial in recorded]
    default = read_study(find_study_file("default")).pruning
    assert default is not None
    print(f"{len(whole)} recorded curves of {len(whole[0])} epochs; {studies} simulated studies of {trials} trials")
    for name, plan, rising in (
        ("the default study", default, RISING),
        ("by the value alone", default, 0.0),
        ("by thirds and the value", Halving(rungs=(1, 3, 10)), 0.0),
    ):
        print(f"{name}: {compared(whole, plan, rising, studies, trials)}")


def compared(whole: list[list[float]], plan: Halving, rising: float, studies: int, trials: int) -> str:
    """How much a winner's last value is below the best there was, over simulated studies."""
    losses, epochs, full = [], [], 0
    for seed in range(studies):
        drawn = [whole[0], *random.Random(seed).choices(whole[1:], k=trials - 1)]
        found = replay(drawn, plan, rising=rising)
        losses.append(found.best - found.value)
        epochs.append(found.epochs)
        full = found.full_epochs
    losses.sort()
    return (
        f"at most {max(epochs)} of {full} epochs ({max(epochs) / full:.1%}); val AUC lost against the full search, "
        f"in points: mean {100 * statistics.fmean(losses):.2f}, median {100 * statistics.median(losses):.2f}, "
        f"95 % of the studies at most {100 * losses[int(0.95 * studies)]:.2f}, "
        f"within 0.5 in {sum(loss <= 0.005 for loss in losses) / studies:.1%}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
