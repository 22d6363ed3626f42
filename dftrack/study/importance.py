"""Which settings mattered: Optuna's fANOVA and PED-ANOVA, at every rung that enough trials have reached."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState, create_trial

from dftrack.study.definition import StudyDefinition
from dftrack.study.records import Record
from dftrack.study.sampling import distributions
from dftrack.study.space import Choice

FEWEST = 10  # trials; with fewer a share of importance is an accident
METHODS = ("fANOVA", "PED-ANOVA")


@dataclass(frozen=True, slots=True)
class Importance:
    """What each setting contributed to the metric after one epoch, by two methods; each method's shares sum to 1."""

    epoch: int
    trials: int
    shares: Mapping[str, Mapping[str, float]]  # method -> dotted name -> share in [0, 1]; {}: undefined
    reason: str = ""  # why it is undefined

    @property
    def title(self) -> str:
        return f"after epoch {self.epoch} ({self.trials} trial{'' if self.trials == 1 else 's'})"


def importances(records: Sequence[Record], definition: StudyDefinition) -> list[Importance]:
    """The importance of every searched setting after each rung, the first rung first.

    Values after different numbers of epochs cannot be compared, so each rung has its own answer from the trials that
    reached it: with pruning, all trials after the first rung, but only a few after the last. fANOVA shares out the
    variance over the whole space; PED-ANOVA asks what sets the best tenth of the trials apart, which is little to go
    by with 30 of them. A logarithmic setting counts by its logarithm, as it is searched.
    """
    return [_at(epoch, records, definition) for epoch in definition.rungs]


def comparable(records: Sequence[Record], definition: StudyDefinition, epoch: int) -> list[Record]:
    """The trials with a finite value after `epoch` and a point of the space as their settings."""
    space = definition.space
    return [
        record
        for record in records
        if math.isfinite(record.curve.get(epoch, math.nan))
        and record.params.keys() == space.keys()
        and all(space[name].contains(value) for name, value in record.params.items())
    ]


def _at(epoch: int, records: Sequence[Record], definition: StudyDefinition) -> Importance:
    chosen = comparable(records, definition, epoch)
    values = {record.curve[epoch] for record in chosen}
    varied = [name for name in definition.space if len({record.params[name] for record in chosen}) > 1]
    if len(chosen) < FEWEST:
        return Importance(epoch, len(chosen), {}, f"undefined: {len(chosen)} trials, at least {FEWEST} are needed")
    if len(values) == 1 or not varied:
        what = "all values are the same" if len(values) == 1 else "no setting was varied"
        return Importance(epoch, len(chosen), {}, f"undefined: {what}")
    study = _study(chosen, definition, epoch)
    shares = {
        "fANOVA": _shares(study, varied, FanovaImportanceEvaluator(seed=0)),
        "PED-ANOVA": _shares(study, varied, PedAnovaImportanceEvaluator()),
    }
    return Importance(epoch, len(chosen), shares)


def _shares(study: optuna.Study, names: list[str], evaluator: BaseImportanceEvaluator) -> dict[str, float]:
    """{} if the method finds nothing: then there is nothing to share out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is said above: few trials, an experimental method
        found = get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
    total = sum(found.values())
    return {name: found[name] / total for name in names} if math.isfinite(total) and total > 0 else {}


def _study(records: Sequence[Record], definition: StudyDefinition, epoch: int) -> optuna.Study:
    """A study in memory in which these trials ended after `epoch`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is no news, as in `Storage`
    dimensions = distributions(definition.space)
    logarithmic = {name for name, d in definition.space.items() if not isinstance(d, Choice) and d.log}
    for name in logarithmic:
        low, high = definition.space[name].ends()
        dimensions[name] = FloatDistribution(math.log(float(str(low))), math.log(float(str(high))))
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=definition.direction)
    for record in records:
        params = {
            name: math.log(float(str(value))) if name in logarithmic else value for name, value in record.params.items()
        }
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, value=record.curve[epoch], params=params, distributions=dimensions)
        )
    return study
