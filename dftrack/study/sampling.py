"""The next point to try: Optuna's samplers over a view of the study that shows them what they can learn from.

In the storage a paused trial is RUNNING, and TPE takes running trials for bad ones (its constant liar). In the view
it is PRUNED with the values it has, as every trial that was overtaken. The view is made of the storage's records for
one suggestion and thrown away; the sampler's seed is the study's and the trial's number, so that no two workers are
given the same suggestion.

Which trials a suggestion is made from goes by their numbers, not by who was quicker: all but the last `ahead` ones,
which others may be at. So several workers, too, are given the same suggestions again, in this order and every time.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from dftrack.config import Value
from dftrack.study.definition import StudyDefinition
from dftrack.study.records import Record
from dftrack.study.space import Choice, Float, Params, Space, points

LEARNS_FROM = 10  # trials: TPE draws at random until it sees so many
REPEATS = 8  # suggestions that are asked for before a point that has been tried is replaced by a random one


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    found: dict[str, BaseDistribution] = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choice):
            found[name] = CategoricalDistribution(dimension.options)
        elif isinstance(dimension, Float):
            found[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
        else:
            found[name] = IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return found


def looked_at(definition: StudyDefinition, records: Sequence[Record], ahead: int = 0) -> Sequence[Record]:
    """The trials from which the next suggestion is made: all but the last `ahead`; none where nothing is learnt yet."""
    seen = records[: max(0, len(records) - ahead)]
    learns = definition.sampler == "tpe" and len(seen) >= LEARNS_FROM and not _enqueued(definition, records)
    return seen if learns else []


def suggest(definition: StudyDefinition, records: Sequence[Record], ahead: int = 0) -> Params | None:
    """The parameters of the next trial: an enqueued point, or the sampler's, and never one that has been tried.

    ahead: how many of the last trials the sampler does not look at. Returns None if every point of the space has been
    tried.
    """
    if point := _enqueued(definition, records):
        return point
    tried = {_key(record.params) for record in records}
    number = len(records)
    if definition.sampler == "grid":
        grid = list(points(definition.space))
        random.Random(definition.seed).shuffle(grid)  # a part of the grid is then a fair sample of it
        return next((point for point in grid if _key(point) not in tried), None)
    dimensions = distributions(definition.space)
    seen = looked_at(definition, records, ahead)
    view = _View([_show(record, dimensions) for record in seen if record.status != "failed"])
    for repeat in range(REPEATS):
        seed = _seed(definition.seed, number, repeat)
        if _key(point := _ask(definition, _sampler(definition.sampler, seed), view)) not in tried:
            return point
    if definition.total(len(tried) + 1) <= len(tried):
        free = [point for point in points(definition.space) if _key(point) not in tried]
        return random.Random(_seed(definition.seed, number, REPEATS)).choice(free) if free else None
    for repeat in itertools.count(REPEATS):  # ends: the space has more points than have been tried
        sampler = RandomSampler(seed=_seed(definition.seed, number, repeat))
        if _key(point := _ask(definition, sampler, _View([]))) not in tried:
            return point
    raise AssertionError("unreachable")


def _enqueued(definition: StudyDefinition, records: Sequence[Record]) -> Params | None:
    """The first of the enqueued points that has not been tried."""
    tried = {_key(record.params) for record in records} if definition.enqueue else set()
    return next((dict(point) for point in definition.enqueue if _key(point) not in tried), None)


class _View(InMemoryStorage):
    """A storage in memory that shows given trials besides the one being asked for."""

    def __init__(self, shown: list[FrozenTrial]) -> None:
        super().__init__()
        self.shown = shown

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        own = super().get_all_trials(study_id, deepcopy, states)
        return own + [trial for trial in self.shown if states is None or trial.state in states]


def _show(record: Record, dimensions: dict[str, BaseDistribution]) -> FrozenTrial:
    """The trial as the sampler should see it. Numbers are shifted by one: in the view the new trial is number 0."""
    state = TrialState.COMPLETE if record.status == "complete" else TrialState.PRUNED
    if not record.curve and record.status == "running":
        state = TrialState.RUNNING
    value = record.value if state == TrialState.COMPLETE else None
    return FrozenTrial(
        number=record.number + 1,
        trial_id=record.number + 1,
        state=state,
        value=value,
        datetime_start=record.started,
        datetime_complete=record.ended,
        params=dict(record.params),
        distributions=dimensions,
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(record.curve),
    )


def _ask(definition: StudyDefinition, sampler: BaseSampler, view: _View) -> dict[str, Any]:
    fresh = _View(view.shown)
    study = optuna.create_study(storage=fresh, sampler=sampler, direction=definition.direction)
    point = study.ask(fixed_distributions=distributions(definition.space)).params
    for name, dimension in definition.space.items():
        if isinstance(dimension, Float):
            point[name] = dimension.nearest(point[name])  # Optuna multiplies steps, rounding errors included
    return point


def _sampler(kind: str, seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=LEARNS_FROM) if kind == "tpe" else RandomSampler(seed=seed)


def _seed(*words: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4], "big")


def _key(params: Mapping[str, Value]) -> str:
    """The same text for the same point; numbers that are equal to 12 digits count as one."""
    rounded = {name: float(f"{value:.12g}") if isinstance(value, float) else value for name, value in params.items()}
    return json.dumps(dict(sorted(rounded.items())))
