"""What a study searches and how: read from a TOML file, and checked to the last value before any work starts."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dftrack.config import Config, Value, vary
from dftrack.errors import SettingError, require
from dftrack.study.halving import Contest, Halving, contest_of
from dftrack.study.space import Params, Space, size

Direction = Literal["maximize", "minimize"]
Sampler = Literal["tpe", "random", "grid"]

# What a search can aim at: recorded after every epoch, on the validation split, with the way that is better.
METRICS: Mapping[str, Direction] = {"val/roc_auc": "maximize", "val/accuracy": "maximize", "val/loss": "minimize"}

# Settings that it makes no sense to search, and why.
NOT_SEARCHED = {
    "data.source": "results on different data cannot be compared",
    "data.leaks": "it decides which pictures there are, and leaks flatter who may use them; set it in [base]",
    "train.epochs": "it decides what a trial costs; set it in [base], pruning shares the epochs out",
    "train.seed": "the luckiest seed is not a finding; the winner is trained again with several",
    "train.device": "it says where a training runs, not what it computes",
    "train.precision": "it is a property of the machine",
    "train.compile": "it is for the speed; what a trial learns it changes by chance alone",
    "train.checkpoint_seconds": "it changes nothing that is computed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDefinition:
    """One study. Immutable; made by `dftrack.study.file.read_study`, which checks it."""

    name: str
    space: Space
    metric: str = "val/roc_auc"
    direction: Direction = "maximize"
    sampler: Sampler = "tpe"
    seed: int = 0  # of the sampler: the same seed asks for the same trials, if the study begins with as many workers
    trials: int = 30  # how many there are in the end
    base: Mapping[str, Value] = dataclasses.field(default_factory=dict)  # settings that all trials share
    enqueue: tuple[Params, ...] = ()  # the first trials, each a whole point of the space
    baseline_first: bool = False  # whether trial 0 is the baseline
    pruning: Halving | None = None
    final_seeds: int = 3  # trainings of the winner at the end, each with its own seed; 0: none
    keep_weights: int = 3  # weights of the best trials that stay on disk
    text: str = ""  # of the study file

    def __post_init__(self) -> None:
        check_trials(self.trials)

    @property
    def epochs(self) -> int:
        """Passes over the training images of a trial that reaches the end."""
        return vary(Config(), self.base).train.epochs

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which a trial waits to hear whether it goes on; the last one is the end."""
        return self.contest(self.trials).rungs

    def contest(self, total: int, protected: frozenset[int] = frozenset()) -> Contest:
        """The rules of pruning for so many trials, those with the numbers in `protected` having a seat of their own."""
        return contest_of(self.pruning, self.epochs, total, maximize=self.direction == "maximize", protected=protected)

    def place(self, params: Mapping[str, Value]) -> float:
        """Where a trial lies in the range over which pruning spreads its seats, 0 to 1; 0 where it spreads none."""
        name = self.pruning.spread_over if self.pruning else ""
        if name not in params or not self.space[name].contains(params[name]):  # a script's own trial
            return 0.0
        return self.space[name].place(params[name])

    @property
    def protects_baseline(self) -> bool:
        """Whether pruning leaves the baseline a seat of its own."""
        return self.baseline_first and self.pruning is not None and self.pruning.keep_baseline

    def total(self, trials: int | None = None) -> int:
        """How many trials the study ends with: `trials`, or the file's number, but never more than the space has."""
        wanted = check_trials(self.trials if trials is None else trials)
        points = size(self.space)
        return wanted if points is None else min(wanted, points)

    def config(self, params: Mapping[str, Value]) -> Config:
        """The settings of the trial with these parameters."""
        return vary(Config(), {**self.base, **params})

    def baseline(self) -> Params:
        """The baseline's values of the searched settings."""
        return baseline_point(self.space, self.base)

    def revised(self, changes: Mapping[str, Value]) -> "StudyDefinition":
        """A copy with other base settings (say, from the command line). Raises SettingError if one is searched."""
        for name in changes:
            require(name not in self.space, f"{name} is searched by the study {self.name!r}: it cannot be set as well")
        base = {**self.base, **changes}
        vary(Config(), base)
        return dataclasses.replace(self, base=base)


def check_trials(trials: int) -> int:
    """`trials`, if it is a number of trials that a study can have."""
    if trials < 1:
        raise SettingError(
            f"--trials must be at least 1, got {trials}", "it is the total, with the trials already done"
        )
    return trials


def baseline_point(space: Space, base: Mapping[str, Value]) -> Params:
    """The values of the searched settings in the configuration that `base` alone gives."""
    config = vary(Config(), base)
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in space}


def find_study_file(name: str) -> Path:
    """The path of a study given as a path, or by the name of one that comes with dftrack."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        require(path.is_file(), f"there is no study file {path}", "give a .toml file, or default, rich or grid")
        return path
    package = Path(__file__).resolve().parents[1]
    folders = (Path("studies"), package / "studies", package.parent / "studies")  # here, installed, in a checkout
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise SettingError(f"there is no study named {name!r}", "known studies: " + ", ".join(known) if known else "")
