"""The Optuna objective: a trial's parameters -> settings -> an experiment -> the value.

`study.optimize(Objective(config), n_trials=30)` works from any script or notebook; `dftrack study` trains its trials
through the same `run_experiment`.
"""

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import optuna

from dftrack.config import Config, Value, vary
from dftrack.errors import MetricError, require
from dftrack.experiment import Plan, Result, run_experiment
from dftrack.learning.training import Epoch
from dftrack.study.definition import NOT_SEARCHED
from dftrack.study.naming import trial_key, trial_name
from dftrack.study.space import Choice, Float, Int, Space

KEY = "dftrack.objective"  # attribute of a study: its part in the names of its runs
SPACE: Space = {  # the one of studies/default.toml
    "train.learning_rate": Float(1e-5, 1e-2, log=True),
    "model.dropout": Float(0.0, 0.7),
    "model.kernel_size": Choice((3, 5, 7)),
}


class Objective:
    """Call it with an Optuna trial: builds the CNN from its parameters, trains it, records the run in MLflow.

    config: the settings that all trials share. space: dotted setting -> what it may be. store: where runs are recorded.
    metric: one that is recorded after each epoch; its last value is returned, and each is reported, so that any pruner
    of Optuna's can end the trial. Test splits are not opened. parent: run id under which the runs are shown.
    Raises optuna.TrialPruned when the pruner says so (the run is closed as KILLED, pruned, before), MetricError if the
    metric is undefined, and what `run_experiment` raises; give those to `optimize(..., catch=(DftrackError,))` if a
    failed trial should not end your study. Raises SettingError for a space that decides which pictures there are.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        space: Space = SPACE,
        store: Path = Path("mlruns"),
        metric: str = "val/roc_auc",
        parent: str | None = None,
    ) -> None:
        for name in ("data.source", "data.leaks"):
            require(name not in space, f"{name} cannot be searched: {NOT_SEARCHED[name]}")
        self.config, self.space, self.store = config or Config(), space, store
        self.metric, self.parent = metric, parent

    def __call__(self, trial: optuna.Trial) -> float:
        params = suggest(trial, self.space)
        config = vary(self.config, params)

        def go_on(epoch: Epoch) -> str:
            trial.report(value_of(epoch, self.metric), epoch.number)
            return "pruned" if trial.should_prune() else ""

        plan = Plan(
            name=trial_name(trial.number, params),
            kind="trial",
            parent=self.parent,
            key=_key(trial, config),
            tags={"dftrack.study": trial.study.study_name, "dftrack.trial": str(trial.number)},
            open_tests=False,
            pictures=False,
            go_on=go_on,
        )
        *_, result = run_experiment(config, self.store, plan=plan)
        assert isinstance(result, Result), "an experiment ends with its Result"
        if result.end == "pruned":
            raise optuna.TrialPruned(f"after epoch {len(result.history)}")
        value = result.history[-1][self.metric]
        assert value is not None, "an undefined value ends the experiment"
        return value


def value_of(epoch: Epoch, metric: str) -> float:
    """The epoch's value of `metric`. Raises MetricError if it is undefined: there is then nothing to compare by."""
    value = epoch.metrics.get(metric)
    if value is None:
        raise MetricError(f"{metric} is undefined after epoch {epoch.number}", "are both classes in the val split?")
    return value


def _key(trial: optuna.Trial, config: Config) -> str:
    """Names this trial's training: an interrupted one of another study, though with these settings, is not its own."""
    study = trial.study
    if KEY not in study.user_attrs:
        study.set_user_attr(KEY, uuid.uuid4().hex[:16])
    settings = hashlib.sha256(repr(config).encode()).hexdigest()[:8]  # a script may train several in one trial
    return f"{trial_key(study.user_attrs[KEY], trial.number)}-{settings}"


def suggest(trial: optuna.Trial, space: Space) -> Mapping[str, Value]:
    """The trial's value of each setting of `space`."""
    found: dict[str, Value] = {}
    for name, dimension in space.items():
        match dimension:
            case Choice(options):
                found[name] = trial.suggest_categorical(name, options)
            case Float(low, high, log, step):
                found[name] = trial.suggest_float(name, low, high, log=log, step=step)
            case Int(low, high, log, step):
                found[name] = trial.suggest_int(name, low, high, log=log, step=step)
    return found
