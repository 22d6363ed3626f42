"""Study files: TOML -> StudyDefinition. Every refusal names the file and the line of the culprit."""

import difflib
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from dftrack.config import Config, Value, setting_types, vary
from dftrack.errors import SettingError
from dftrack.study.definition import METRICS, NOT_SEARCHED, Sampler, StudyDefinition, baseline_point
from dftrack.study.halving import Halving, rungs_of
from dftrack.study.space import MANY, Choice, Dimension, Float, Int, Params, Space
from dftrack.study.toml_lines import TomlFile, parse_toml, read_toml

KEYS = ("name", "metric", "direction", "sampler", "seed", "trials", "enqueue", "base", "space", "pruning")
PRUNING_KEYS = ("kind", "eta", "rungs", "shares", "spread_over", "keep_baseline")
COUNTS = {"trials": (30, 1), "final_seeds": (3, 0), "keep_weights": (3, 0)}  # key -> default, least
MOST_CORNERS = 256  # of a space: in a richer one the settings are checked together two by two
Entry = tuple[str, tuple[str, ...], Any]  # dotted name of a setting, where it stands, what is given
_SECTIONS = sorted({name.split(".")[0] for name in setting_types()})


def read_study(path: Path) -> StudyDefinition:
    """Read and check a study file. Raises SettingError, with file and line, for whatever no study could work with."""
    return _define(read_toml(path), default_name=path.stem)


def parse_study(text: str, name: str = "study.toml") -> StudyDefinition:
    """Like `read_study`, from text."""
    return _define(parse_toml(text, name), default_name=Path(name).stem)


def _define(file: TomlFile, default_name: str) -> StudyDefinition:
    content = file.content
    _known_keys(file, (), content, (*KEYS, *COUNTS))
    name = content.get("name", default_name)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", name):
        raise file.error(("name",), f"name must be up to 60 letters, digits, '.', '_' or '-', got {name!r}")
    base = _base(file)
    space = _space(file, base)
    enqueue, baseline_first = _enqueue(file, space, base)
    metric = _one_of(file, ("metric",), content.get("metric", "val/roc_auc"), METRICS)
    sampler = typing.cast(Sampler, _one_of(file, ("sampler",), content.get("sampler", "tpe"), typing.get_args(Sampler)))
    if sampler == "grid":
        for setting, dimension in space.items():
            if dimension.values() is None:
                hint = "list the values, as in [0.0, 0.25, 0.5], or give a step"
                raise file.error(("space", *setting.split(".")), f"a grid needs finite values for {setting}", hint)
    return StudyDefinition(
        name=name,
        space=space,
        metric=metric,
        direction=_direction(file, metric),
        sampler=sampler,
        seed=_count(file, ("seed",), content.get("seed", 0), 0),
        base=base,
        enqueue=enqueue,
        baseline_first=baseline_first,
        pruning=_pruning(file, vary(Config(), base).train.epochs, space),
        text=file.text,
        **{key: _count(file, (key,), content.get(key, usual), least) for key, (usual, least) in COUNTS.items()},
    )


def _direction(file: TomlFile, metric: str) -> Literal["maximize", "minimize"]:
    right = METRICS[metric]
    given = _one_of(file, ("direction",), file.content.get("direction", right), ("maximize", "minimize"))
    if given != right:
        word = "higher" if right == "maximize" else "lower"
        raise file.error(("direction",), f"{metric} is better the {word}: the direction must be {right}")
    return right


def _base(file: TomlFile) -> dict[str, Value]:
    """[base]: settings of all trials."""
    base: dict[str, Value] = {}
    for name, path, value in _settings(file, "base"):
        base[name] = value
        _try(file, path, {name: value})
    _try(file, ("base",), base)
    return base


def _space(file: TomlFile, base: Mapping[str, Value]) -> Space:
    """[space]: what is searched."""
    space: dict[str, Dimension] = {}
    for name, path, value in _settings(file, "space"):
        if name in NOT_SEARCHED:
            raise file.error(path, f"{name} cannot be searched: {NOT_SEARCHED[name]}")
        if name in base:
            raise file.error(path, f"{name} is searched, and set in [base] as well", "take one of the two out")
        dimension = _dimension(file, path, name, value)
        for candidate in dimension.values() or dimension.ends():
            _try(file, path, {**base, name: candidate})
        space[name] = dimension
    if not space:
        raise file.error(("space",), "there is nothing to search", "name at least one setting under [space]")
    together = math.prod(len(dimension.ends()) for dimension in space.values())
    groups = [tuple(space)] if together <= MOST_CORNERS else itertools.combinations(space, 2)
    for names in groups:  # every setting is fine alone; are they together?
        for corner in itertools.product(*(space[name].ends() for name in names)):
            point = dict(zip(names, corner, strict=True))
            _try(file, ("space",), {**base, **point}, f"no run could have {_words(point)}: ")
    return space


def _dimension(file: TomlFile, path: tuple[str, ...], name: str, value: Any) -> Dimension:
    kind = setting_types()[name]
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, list):
        return _choice(file, path, name, value)
    if not isinstance(value, dict):
        hint = f"give choices, {name} = [{value!r}, ...], or a range, {name} = {{ low = ..., high = ... }}"
        raise file.error(path, f"{name} = {value!r} is one value: nothing to search", hint)
    _known_keys(file, path, value, ("low", "high", "log", "step"))
    if int not in options and float not in options:
        raise file.error(path, f"{name} has no order: it cannot have a range", f"list the choices: {name} = [...]")
    whole = int in options
    for key in ("low", "high"):
        if key not in value:
            raise file.error(path, f"the range of {name} has no {key}")
    for key in value.keys() & {"low", "high", "step"}:
        _number(file, path, f"{name}: {key}", value[key], whole=whole)
    low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise file.error(path, f"{name}: log must be true or false, got {log!r}")
    if low >= high:
        raise file.error(path, f"the range of {name} is empty: low is {low}, high is {high}")
    if log and low <= 0:
        raise file.error(path, f"{name} cannot be searched over its logarithm from {low}", "low must be above 0")
    if log and step is not None:
        raise file.error(path, f"{name}: log and step exclude each other")
    if step is not None and not 0 < step <= high - low:
        raise file.error(path, f"{name}: step must be above 0 and at most {high - low:g}, got {step}")
    dimension = Int(low, high, log, step or 1) if whole else Float(float(low), float(high), log, step and float(step))
    values = dimension.values()
    if step is not None and values is not None and not math.isclose(values[-1], high):
        raise file.error(path, f"{name}: steps of {step} do not lead from {low} to {high}", f"high = {values[-1]}?")
    return dimension


def _choice(file: TomlFile, path: tuple[str, ...], name: str, options: list[Any]) -> Choice:
    if len(options) < 2:
        what = "no choice" if not options else f"only the choice {options[0]!r}"
        raise file.error(path, f"{name} has {what}: nothing to search", "a fixed value belongs under [base]")
    if len(options) > MANY:
        raise file.error(path, f"{name} has {len(options)} choices: that is too many")
    read: list[Value] = []
    for option in options:
        if isinstance(option, list | dict):
            raise file.error(path, f"{name}: a choice must be one value, got {option!r}")
        section, key = name.split(".")
        value: Value = getattr(getattr(_try(file, path, {name: option}), section), key)
        if value in read:
            raise file.error(path, f"{name} has the choice {option!r} twice")
        read.append(value)
    return Choice(tuple(read))


def _enqueue(file: TomlFile, space: Space, base: Mapping[str, Value]) -> tuple[tuple[Params, ...], bool]:
    """`enqueue`: "baseline" or a list of tables of settings; what a table leaves out is the baseline's."""
    given = file.content.get("enqueue", [])
    baseline = baseline_point(space, base)
    if given == "baseline":
        given = [{}]
    if not isinstance(given, list) or not all(isinstance(entry, dict | str) for entry in given):
        raise file.error(("enqueue",), 'enqueue must be "baseline" or a list of tables of settings')
    queued: list[Params] = []
    for index, entry in enumerate(given):
        path = ("enqueue", str(index))
        if isinstance(entry, str) and entry != "baseline":
            raise file.error(path, f'an entry of enqueue is "baseline" or a table of settings, got {entry!r}')
        point = dict(baseline)
        for name, where, value in _flatten(file, path, {} if isinstance(entry, str) else entry):
            if name not in space:
                raise file.error(where, f"{name} is not searched: it cannot be enqueued", "set it in [base]")
            config = _try(file, where, {name: value})
            point[name] = getattr(getattr(config, name.split(".")[0]), name.split(".")[1])
        for name, value in point.items():
            if not space[name].contains(value):
                hint = f"widen the range of {name}, or leave the point out of enqueue"
                raise file.error(path, f"the enqueued {name} = {value} is outside of the space ({space[name]})", hint)
        if point in queued:
            raise file.error(path, f"the same point is enqueued twice: {_words(point)}")
        queued.append(point)
    return tuple(queued), bool(queued) and queued[0] == baseline


def _pruning(file: TomlFile, epochs: int, space: Space) -> Halving | None:
    """[pruning]: kind = "halving" with eta or rungs and shares, spread_over, keep_baseline; or kind = "none"."""
    table = file.content.get("pruning", {"kind": "none"})
    if not isinstance(table, dict):
        hint = 'write [pruning], then kind = "halving"'
        raise file.error(("pruning",), f"pruning must be a table, got {table!r}", hint)
    _known_keys(file, ("pruning",), table, PRUNING_KEYS)
    kind = _one_of(file, ("pruning", "kind"), table.get("kind", "halving"), ("halving", "none"))
    if kind == "none":
        for key in table.keys() - {"kind"}:
            raise file.error(("pruning", key), f"{key} means nothing without pruning")
        return None
    eta = _count(file, ("pruning", "eta"), table.get("eta", 3), 2)
    keep = table.get("keep_baseline", True)
    if not isinstance(keep, bool):
        raise file.error(("pruning", "keep_baseline"), f"keep_baseline must be true or false, got {keep!r}")
    rungs = table.get("rungs", [])
    path = ("pruning", "rungs")
    if not isinstance(rungs, list) or not all(type(rung) is int for rung in rungs):
        raise file.error(path, f"rungs must be a list of epochs, as in [1, 3, {epochs}], got {rungs!r}")
    if rungs and (rungs[0] < 1 or any(a >= b for a, b in itertools.pairwise(rungs))):
        raise file.error(path, f"rungs must be ascending epochs from 1 on, got {rungs}")
    if rungs and rungs[-1] != epochs:
        raise file.error(path, f"the last rung must be the last epoch ({epochs}), got {rungs[-1]}", "see train.epochs")
    shares = _shares(file, rungs, table.get("shares", []), "eta" in table)
    spread = table.get("spread_over", "")
    if spread != "":
        _one_of(file, ("pruning", "spread_over"), spread, space)
    pruning = Halving(rungs=tuple(rungs), eta=eta, shares=shares, keep_baseline=keep, spread_over=spread)
    assert rungs_of(pruning, epochs)[-1] == epochs
    return pruning


def _shares(file: TomlFile, rungs: list[int], given: object, eta: bool) -> tuple[Fraction, ...]:
    path = ("pruning", "shares")
    if given == []:
        return ()
    if not isinstance(given, list) or not all(type(share) in (int, float) and 0 < share < 1 for share in given):
        raise file.error(path, f"shares must be a list of numbers between 0 and 1, as in [0.4, 0.1], got {given!r}")
    if any(a <= b for a, b in itertools.pairwise(given)):
        raise file.error(path, f"shares must fall: fewer and fewer trials go on, got {given}")
    if len(given) != len(rungs) - 1:
        hint = "one for each rung but the last, of all trials; they need rungs of their own"
        raise file.error(path, f"there are {len(given)} shares for {len(rungs)} rungs", hint)
    if eta:
        raise file.error(path, "shares and eta say the same in two ways", "leave one of them out")
    return tuple(Fraction(str(share)) for share in given)


# Small readers


def _settings(file: TomlFile, table: str) -> Iterable[Entry]:
    content = file.content.get(table, {})
    if not isinstance(content, dict):
        raise file.error((table,), f"{table} must be a table of settings, got {content!r}", f"write [{table}]")
    return _flatten(file, (table,), content)


def _flatten(file: TomlFile, path: tuple[str, ...], content: dict[str, Any]) -> Iterable[Entry]:
    """(dotted name, key path, value) of each setting, written as train.epochs = 1, "train.epochs" = 1 or nested."""
    seen: set[str] = set()
    for key, value in content.items():
        if key in _SECTIONS and isinstance(value, dict):
            entries = [(f"{key}.{inner}", (*path, key, inner), inner_value) for inner, inner_value in value.items()]
        else:
            entries = [(key, (*path, key), value)]
        for name, where, setting in entries:
            if name not in setting_types():
                raise file.error(where, f"there is no setting {name!r}", _nearest(name, setting_types()))
            if name in seen:
                raise file.error(where, f"{name} is given twice")
            seen.add(name)
            yield name, where, setting


def _try(file: TomlFile, path: tuple[str, ...], changes: Mapping[str, Value], prefix: str = "") -> Config:
    """The Config with `changes`; its refusal becomes ours, with the line."""
    for name, value in changes.items():
        numeric = not isinstance(value, str) or setting_types()[name] not in (int, float)
        if not numeric or isinstance(value, list | dict):
            raise file.error(path, f"{prefix}{name} must be a number, got {value!r}")
    try:
        return vary(Config(), changes)
    except SettingError as error:
        raise file.error(path, prefix + error.message, error.hint) from error


def _known_keys(file: TomlFile, path: tuple[str, ...], table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise file.error((*path, key), f"unknown key {key!r}", _nearest(key, known))


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    tails: dict[str, str] = {full.split(".")[-1]: full for full in names}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    near = near or [tails[tail] for tail in difflib.get_close_matches(name.split(".")[-1], tails, n=1, cutoff=0.6)]
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(names)


def _one_of(file: TomlFile, path: tuple[str, ...], value: Any, options: Iterable[str]) -> str:
    names = list(options)
    if not isinstance(value, str) or value not in names:
        test = isinstance(value, str) and value.startswith("test")
        hint = "a search may not look at a test split" if test else _nearest(str(value), names)
        raise file.error(path, f"{path[-1]} must be one of {', '.join(names)}, got {value!r}", hint)
    return value


def _number(file: TomlFile, path: tuple[str, ...], what: str, value: Any, *, whole: bool) -> None:
    right: Callable[[Any], bool] = (lambda v: type(v) is int) if whole else (lambda v: type(v) in (int, float))
    if not right(value) or not math.isfinite(value):
        raise file.error(path, f"{what} must be a {'whole' if whole else 'finite'} number, got {value!r}")


def _count(file: TomlFile, path: tuple[str, ...], value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise file.error(path, f"{path[-1]} must be a whole number from {least} on, got {value!r}")
    return value


def _words(point: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in point.items())
