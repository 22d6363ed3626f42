"""Do 95 % intervals hold the true value in 95 % of samples? A simulation in which the truth is known exactly.

Run: nice python benchmarks/interval_coverage.py [simulations] [metric ...]. 0.1 s a simulation and setting on one core.
Wanted: between 93 and 97 % for each metric and setting, within the Monte-Carlo error that stands beside it.

Groups hold 1 to 10 pictures. A picture's margin is normal with variance 1, of which the share RHO is its group's own:
so a real is N(-d/2, 1), a fake N(d/2, 1), AUC = Phi(d / sqrt 2), and each metric of the world follows from two
normal distributions. Half the settings give a group one class (a video), the others mix (a scene).
These worlds, and their samples, are not those on which the kind of interval was chosen (AUC 0.65, 0.8, 0.9 and 0.97,
RHO 0.4, SHARPNESS 1.5): choosing and reporting on the same would flatter.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from dftrack.learning import metrics
from dftrack.learning.bootstrap import MEASURES
from dftrack.learning.statistics import group_intervals

RHO = 0.5  # share of a margin's variance that the pictures of a group have in common
SHARPNESS = 2.0  # logits for one standard deviation of the margin
THRESHOLD = 0.55
AUCS, GROUPS = (0.7, 0.85, 0.95), (60, 200)
FIRST_SEED = 1_000_000
GRID = 200_000  # quantiles of each class that stand for the world


@dataclass(frozen=True, slots=True)
class Setting:
    """One world, and how much of it is seen."""

    auc: float
    groups: int
    mixed: bool  # a group holds both classes

    def __str__(self) -> str:
        return f"AUC {self.auc:.2f}, {self.groups:3} {'scenes' if self.mixed else 'videos'}"

    @property
    def distance(self) -> float:
        """Between the two classes, in standard deviations."""
        return math.sqrt(2) * float(stats.norm.ppf(self.auc))

    def truth(self) -> dict[str, float | None]:
        """Every metric of the world itself, half of it fake."""
        quantiles = stats.norm.ppf((np.arange(GRID) + 0.5) / GRID)
        labels = np.repeat([0, 1], GRID)
        margins = np.tile(quantiles, 2) + (labels - 0.5) * self.distance
        return metrics.summarise(expit(SHARPNESS * margins), labels, THRESHOLD)

    def sample(self, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
        """Scores, labels and groups of one sample."""
        random = np.random.default_rng([seed, self.groups, int(self.mixed), round(self.auc * 1000)])
        group = np.repeat(np.arange(self.groups), random.integers(1, 11, self.groups))
        labels = random.integers(0, 2, len(group)) if self.mixed else random.integers(0, 2, self.groups)[group]
        shared = math.sqrt(RHO) * random.normal(size=self.groups)[group]
        margins = shared + random.normal((labels - 0.5) * self.distance, math.sqrt(1 - RHO))
        return expit(SHARPNESS * margins), labels, [str(number) for number in group]


def settings() -> Iterator[Setting]:
    """All of them."""
    for mixed in (True, False):
        for groups in GROUPS:
            yield from (Setting(auc, groups, mixed) for auc in AUCS)


def one(setting: Setting, seed: int, truth: dict[str, float | None]) -> dict[str, bool | None]:
    """Which intervals of one sample hold the truth; None where there is no interval."""
    scores, labels, groups = setting.sample(seed)
    held: dict[str, bool | None] = {}
    for name, interval in group_intervals(scores, labels, groups, THRESHOLD, seed=seed).items():
        true = truth[name]
        held[name] = None if interval is None or true is None else interval.low <= true <= interval.high
    return held


def main(simulations: int, measures: Sequence[str]) -> None:
    """Print coverage in per cent, a line for each setting, a column for each metric; outside 93 to 97 is marked."""
    print(f"{simulations} simulations; Monte-Carlo error {100 * math.sqrt(0.95 * 0.05 / simulations):.1f} points")
    print(f"{'':22}" + "".join(f"{name[:11]:>13}" for name in measures))
    seeds = range(FIRST_SEED, FIRST_SEED + simulations)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for setting in settings():
            found = list(pool.map(one, repeat(setting), seeds, repeat(setting.truth()), chunksize=20))
            print(f"{setting!s:22}", end="")
            for name in measures:
                held = [answer[name] for answer in found if answer[name] is not None]
                share = 100 * sum(map(bool, held)) / len(held) if held else math.nan
                lost = f"({len(found) - len(held)})" if len(held) < len(found) else ""
                print(f"{share:9.1f}{' ' if 93 <= share <= 97 else '!'}{lost:3}", end="")
            print(flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, sys.argv[2:] or MEASURES)
