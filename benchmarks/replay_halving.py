"""Does halving find as good a configuration as the full search? Replayed on recorded curves, over many seeds.

Run: python benchmarks/replay_halving.py CURVES.json [studies] [trials]. Each simulated study has the baseline, which is
the first of the recorded curves and has a seat of its own, and draws its other trials from the rest, with replacement.
The plan is that of the default study; beside it stand the same with seats spread over nothing, and thirds.

How much the plan's winner is below that of the full search is said twice: by the last values of the search itself,
where the full search has the best of 30 draws of luck, and, if `retrain_winners.py` has left CURVES-again.json, by the
mean of what the two settings reach when they are trained again with other seeds.
"""

import dataclasses
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dftrack.study.definition import find_study_file
from dftrack.study.file import read_study
from dftrack.study.halving import Halving, replay


@dataclass(frozen=True, slots=True)
class Recorded:
    """The recorded trials, the baseline first: val AUC by epoch, and where each lies in the default study's space."""

    curves: list[list[float]]
    places: list[float]


@dataclass(frozen=True, slots=True)
class Ended:
    """One simulated study: who won it, as indices of the recorded curves, and what the plan spent."""

    full: int
    plan: int
    epochs: int
    full_epochs: int


def main(file: Path, studies: int = 1000, trials: int = 30) -> None:
    """Print for each plan the losses against the full search, and the epochs spent."""
    whole = recorded(file)
    curves = whole.curves
    print(f"{len(curves)} recorded curves of {len(curves[0])} epochs; {studies} simulated studies of {trials} trials")
    again = again_file(file)
    qualities = [
        ("val AUC in the search", dict(enumerate(curve[-1] for curve in curves))),
        *(qualities_of(json.loads(again.read_text())) if again.exists() else ()),
    ]
    for name, plan in plans().items():
        ended = list(simulated(whole, plan, studies, trials))
        spent, full = max(e.epochs for e in ended), ended[0].full_epochs
        print(f"{name}: at most {spent} of {full} epochs ({spent / full:.1%}); lost against the full search, in points")
        for said, quality in qualities:
            print(f"    {said}: {summary([quality[e.full] - quality[e.plan] for e in ended])}")


def plans() -> dict[str, Halving]:
    """The plans that are compared."""
    default = read_study(find_study_file("default")).pruning
    assert default is not None
    return {
        "the default study": default,
        "spread over nothing": dataclasses.replace(default, spread_over=""),
        "by thirds": Halving(rungs=(1, 3, 10)),
    }


def simulated(whole: Recorded, plan: Halving, studies: int, trials: int) -> Iterator[Ended]:
    """The studies with the seeds 0, 1, 2 and so on."""
    curves = whole.curves
    for seed in range(studies):
        drawn = [0, *random.Random(seed).choices(range(1, len(curves)), k=trials - 1)]
        found = replay([curves[index] for index in drawn], plan, places=[whole.places[index] for index in drawn])
        best = max(drawn, key=lambda index: curves[index][-1])
        yield Ended(best, drawn[found.winner], found.epochs, found.full_epochs)


def qualities_of(again: dict[str, dict[str, dict[str, list[float]]]]) -> list[tuple[str, dict[int, float]]]:
    """For each split that was scored: what a setting reaches on it, the mean over its trainings with other seeds."""
    return [
        (
            f"{split} AUC, trained again",
            {int(index): statistics.fmean(found[split]) for index, found in again["settings"].items()},
        )
        for split in ("val", "test-dev")
    ]


def summary(losses: Sequence[float]) -> str:
    """Mean, median, and the two shares that a promise is about."""
    ordered = sorted(losses)
    return (
        f"mean {100 * statistics.fmean(ordered):.2f}, median {100 * statistics.median(ordered):.2f}, "
        f"95 % of the studies at most {100 * ordered[int(0.95 * len(ordered))]:.2f}, "
        f"within 0.5 in {sum(loss <= 0.005 for loss in ordered) / len(ordered):.1%}"
    )


def recorded(file: Path) -> Recorded:
    """What `record_curves.py` has left."""
    trials = json.loads(file.read_text())["trials"]
    study = read_study(find_study_file("default"))
    return Recorded([trial["curve"] for trial in trials], [study.place(trial["parameters"]) for trial in trials])


def again_file(file: Path) -> Path:
    """Where the settings of these curves that win are kept as they do when trained again."""
    return file.with_name(f"{file.stem}-again.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
