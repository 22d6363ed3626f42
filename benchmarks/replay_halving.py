"""Does halving find as good a configuration as the full search? Replayed on recorded curves, over many seeds.

Run: python benchmarks/replay_halving.py CURVES.json [studies] [trials]. Each simulated study draws its trials from the
recorded ones, with replacement, so the same configuration may come twice, as it may in a search.
"""

import json
import random
import statistics
import sys
from pathlib import Path

from dftrack.study.halving import Halving, replay


def main(curves: Path, studies: int = 1000, trials: int = 30) -> None:
    """Print the losses against the full search, and the epochs spent."""
    recorded = json.loads(curves.read_text())["trials"]
    whole = [[0.5 if value is None else value for value in trial["curve"]] for trial in recorded]
    losses, epochs, full = [], [], 0
    for seed in range(studies):
        drawn = random.Random(seed).choices(whole, k=trials)
        found = replay(drawn, Halving(rungs=(1, 3, 10)))
        losses.append(found.best - found.value)
        epochs.append(found.epochs)
        full = found.full_epochs
    losses.sort()
    print(f"{len(whole)} recorded curves of {len(whole[0])} epochs; {studies} simulated studies of {trials} trials")
    print(f"epochs: at most {max(epochs)} of {full} ({max(epochs) / full:.1%})")
    print(f"val AUC lost against the full search, in points: mean {100 * statistics.fmean(losses):.2f}, "
          f"median {100 * statistics.median(losses):.2f}, "
          f"95 % of the studies at most {100 * losses[int(0.95 * studies)]:.2f}, "
          f"within 0.5 in {sum(loss <= 0.005 for loss in losses) / studies:.1%}")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
