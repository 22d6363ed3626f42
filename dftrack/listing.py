"""Which runs there are: conditions, order and columns by dotted name, over the store's file or over the Tracker.

Nothing heavy is imported unless the store is no local file: a list of runs must come at once.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from dftrack.conditions import Condition, number_of
from dftrack.config import nearest, setting_types
from dftrack.errors import SettingError
from dftrack.run_index import (
    KINDS,
    UNDEFINED,
    UNDEFINED_TAG,
    Kind,
    Known,
    RunLine,
    database_of,
    open_index,
    read_metric,
    undefined_names,
)

if TYPE_CHECKING:
    from dftrack.tracking import RunRecord

ATTRIBUTES = ("run_id", "name", "status", "started", "ended", "seconds")
TIMES = ("started", "ended")
SHORT_NAMES = {  # of tags that people ask for
    "kind": "dftrack.kind",
    "end": "dftrack.end",
    "study": "dftrack.study",
    "trial": "dftrack.trial",
    "parent": "mlflow.parentRunId",
    "user": "mlflow.user",
    "commit": "mlflow.source.git.commit",
}
USUAL = ("run_id", "started", "name", "kind", "status", "val/roc_auc")  # and the AUC of each test split
TEST_AUC = re.compile(r"test[^/]*/roc_auc")
STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
ENDS = ("complete", "interrupted", "pruned", "paused", "failed")
LIMIT = 30
SUGGESTED = 3


class Source(Protocol):
    """Something that knows runs: `run_index.RunIndex`, or what the Tracker found."""

    def lines(self) -> list[RunLine]: ...
    def names(self, kind: Kind) -> list[str]: ...
    def has(self, kind: Kind, name: str) -> bool: ...
    def values(self, kind: Kind, name: str, runs: Collection[str] | None = None) -> dict[str, Known]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which runs, in which order, with which columns."""

    where: Sequence[Condition] = ()
    kinds: Sequence[str] = ()  # any of these
    statuses: Sequence[str] = ()  # any of these, MLflow's (FINISHED) or ours (pruned)
    sort: Sequence[str] = ()  # names, "-name" for the highest first; what has no number comes last
    columns: Sequence[str] = ()  # none: the usual ones, and those that are asked about
    limit: int = LIMIT  # runs shown; 0: all


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the answer: an attribute of a run, or one of its settings, metrics or tags."""

    title: str  # as it was asked for
    kind: Literal["attribute", "setting", "metric", "tag"]
    name: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The runs that were found."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Known | None, ...], ...]  # a row for each run shown; None: it has no such thing
    run_ids: tuple[str, ...]  # of the rows
    found: int  # runs that fit, shown or not
    all: int  # runs in the store
    kinds: tuple[str, ...] = ()  # the kinds there are, if the one asked for was not among them

    def plain(self) -> dict[str, object]:
        """For JSON: what is not a finite number is text ("nan", "inf", "undefined")."""
        return {
            "runs": [
                {"run_id": run_id, **{c.title: _plain(value) for c, value in zip(self.columns, row, strict=True)}}
                for run_id, row in zip(self.run_ids, self.rows, strict=True)
            ],
            "columns": [column.title for column in self.columns],
            "found": self.found,
            "all": self.all,
        }


@contextmanager
def open_source(store: Path) -> Iterator[Source]:
    """The runs of `store`: from its own file where it is one, else through MLflow. Raises StoreError."""
    database = database_of(store)
    if database is not None:
        with open_index(database) as index:
            if index is not None:
                yield index
                return
    from dftrack.tracking import open_tracker

    yield Recorded(open_tracker(store).runs())


def find_runs(source: Source, query: Query) -> Listing:
    """Carry out `query`. Raises SettingError for a name that no run bears, with the nearest right ones."""
    if query.limit < 0:
        raise SettingError(f"--limit must be 0 (all) or more, got {query.limit}")
    everything = source.lines()
    if not everything:
        return Listing((), (), (), 0, 0)
    table = _Table(source, everything)
    lines = _of_status(table, everything, query)
    missing_kinds: tuple[str, ...] = ()
    if query.kinds:
        kinds = table.column(Column("kind", "tag", "dftrack.kind"), None)
        if not set(query.kinds) <= set(map(str, kinds.values())):
            missing_kinds = tuple(sorted(set(map(str, kinds.values()))))
        lines = [line for line in lines if kinds.get(line.run_id) in query.kinds]
    for condition in query.where:
        values = table.column(table.resolve(condition.name), None)
        holds: Callable[..., bool] = condition.holds_at if condition.name in TIMES else condition.holds
        lines = [line for line in lines if line.run_id in values and holds(values[line.run_id])]
    for order in reversed(query.sort):
        lines = _sorted(lines, table.column(table.resolve(order.removeprefix("-")), None), order.startswith("-"))
    shown = lines[: query.limit] if query.limit else lines
    columns = [table.resolve(name) for name in query.columns] or table.usual(query)
    ids = [line.run_id for line in shown]
    cells = [table.column(column, ids) for column in columns]
    if not query.columns:  # what none of them has is no column
        kept = [place for place, values in enumerate(cells) if values.keys() & set(ids) or not ids]
        columns, cells = [columns[place] for place in kept], [cells[place] for place in kept]
    rows = tuple(tuple(values.get(run_id) for values in cells) for run_id in ids)
    return Listing(tuple(columns), rows, tuple(ids), len(lines), len(everything), missing_kinds)


def known_names(source: Source) -> dict[str, list[str]]:
    """Everything that can be asked for, by what it is."""
    return {"attribute": [*ATTRIBUTES, *SHORT_NAMES], **{kind: source.names(kind) for kind in KINDS}}


class _Table:
    """Columns of the source's runs, each read once."""

    def __init__(self, source: Source, lines: Sequence[RunLine]) -> None:
        self._source, self._lines = source, lines
        self._by_id = {line.run_id: line for line in lines}
        self._whole: dict[Column, Mapping[str, Known]] = {}

    def column(self, column: Column, runs: Sequence[str] | None) -> Mapping[str, Known]:
        """Run id -> value, where there is one; `runs`: at least of these, all if None."""
        if column in self._whole:
            return self._whole[column]
        if column.kind == "attribute":
            lines = self._lines if runs is None else [self._by_id[run_id] for run_id in runs]
            cells = {line.run_id: _attribute(line, column.name) for line in lines}
            known: Mapping[str, Known] = {run_id: value for run_id, value in cells.items() if value is not None}
            return self._whole.setdefault(column, known) if runs is None else known
        found = self._source.values(column.kind, column.name, runs)
        return self._whole.setdefault(column, found) if runs is None else found

    def resolve(self, name: str) -> Column:
        """What a name means: an attribute, else a setting, a metric or a tag that some run has."""
        if name in ATTRIBUTES:
            return Column(name, "attribute", name)
        if name in SHORT_NAMES:
            return Column(name, "tag", SHORT_NAMES[name])
        for kind in KINDS:
            if self._source.has(kind, name):
                return Column(name, kind, name)
        if name in setting_types():
            return Column(name, "setting", name)
        raise _unknown(name, self._source)

    def usual(self, query: Query) -> list[Column]:
        """The columns of a list that was asked for none, and those that the question was about."""
        tests = [name for name in self._source.names("metric") if TEST_AUC.fullmatch(name)]
        usual = [name for name in (*USUAL, *tests) if "/" not in name or self._source.has("metric", name)]
        asked = [*(c.name for c in query.where), *(name.removeprefix("-") for name in query.sort)]
        found = [self.resolve(name) for name in dict.fromkeys([*usual, *asked])]
        by_meaning = {(column.kind, column.name): column for column in reversed(found)}  # dftrack.kind is kind
        return [column for column in found if by_meaning[column.kind, column.name] is column]


def _of_status(table: _Table, lines: Sequence[RunLine], query: Query) -> list[RunLine]:
    """The runs whose status, or how they ended, is one of those asked for."""
    wanted = {status.upper() for status in query.statuses} & set(STATUSES)
    ends = {status.lower() for status in query.statuses} & set(ENDS)
    for status in query.statuses:
        if status.upper() not in STATUSES and status.lower() not in ENDS:
            near = difflib.get_close_matches(status.lower(), [s.lower() for s in (*STATUSES, *ENDS)], n=1)
            raise SettingError(
                f"there is no status {status!r}",
                f"did you mean {near[0].upper() if near[0].upper() in STATUSES else near[0]}?"
                if near
                else f"one of {', '.join((*STATUSES, *ENDS))}",
            )
    if not query.statuses:
        return list(lines)
    how = table.column(Column("end", "tag", "dftrack.end"), None) if ends else {}
    return [line for line in lines if line.status in wanted or how.get(line.run_id) in ends]


def _sorted(lines: Sequence[RunLine], values: Mapping[str, Known], descending: bool) -> list[RunLine]:
    """By value, numbers before texts; runs without a finite value last, whichever way. Equal ones keep their order."""

    def rank(line: RunLine) -> tuple[float, str]:
        value = values[line.run_id]
        number = number_of(value)
        return (number, "") if number is not None else (-math.inf if descending else math.inf, str(value))

    usable = [line for line in lines if line.run_id in values and _sortable(values[line.run_id])]
    chosen = {line.run_id for line in usable}
    return sorted(usable, key=rank, reverse=descending) + [line for line in lines if line.run_id not in chosen]


def _sortable(value: Known) -> bool:
    number = number_of(value)
    return value != UNDEFINED if number is None else math.isfinite(number)


def _attribute(line: RunLine, name: str) -> Known | None:
    match name:
        case "started":
            return _clock(line.start_time)
        case "ended":
            return None if line.end_time is None else _clock(line.end_time)
        case "seconds":
            return None if line.end_time is None else round(line.end_time - line.start_time, 3)
    return str(getattr(line, name))


def _clock(seconds: float) -> str:
    """This machine's time, in an order that text has as well."""
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _plain(value: Known | None) -> Known | None:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unknown(name: str, source: Source) -> SettingError:
    """An error that names what may have been meant."""
    known = [*ATTRIBUTES, *SHORT_NAMES, *setting_types(), *(n for kind in KINDS for n in source.names(kind))]
    near = difflib.get_close_matches(name, known, n=SUGGESTED, cutoff=0.8)
    last = re.split(r"[./]", name)[-1]
    near = near or [n for n in known if re.split(r"[./]", n)[-1] == last and n.count("/") < 2][:SUGGESTED]
    near = near or [n for n in (nearest(name, setting_types()),) if n]
    near = near or difflib.get_close_matches(name, known, n=SUGGESTED, cutoff=0.6)
    return SettingError(
        f"no run has a setting, metric or tag {name!r}",
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "dftrack runs --names lists them",
    )


class Recorded:
    """A Source of runs that are in memory."""

    def __init__(self, runs: "Sequence[RunRecord]") -> None:
        self._runs = {run.run_id: run for run in runs}
        self._undefined = {
            run.run_id: undefined_names(run.tags[UNDEFINED_TAG]) for run in runs if UNDEFINED_TAG in run.tags
        }

    def lines(self) -> list[RunLine]:
        return [RunLine(r.run_id, r.name, r.status, r.start_time, r.end_time) for r in self._runs.values()]

    def names(self, kind: Kind) -> list[str]:
        return sorted({name for run in self._runs.values() for name in self._of(run, kind)})

    def has(self, kind: Kind, name: str) -> bool:
        undefined = kind == "metric" and any(name in names for names in self._undefined.values())
        return undefined or any(name in self._of(run, kind) for run in self._runs.values())

    def values(self, kind: Kind, name: str, runs: Collection[str] | None = None) -> dict[str, Known]:
        """MLflow's search does not tell the step of a value; the last epoch's number does."""
        found: dict[str, Known] = {}
        for run in self._runs.values() if runs is None else (self._runs[run_id] for run_id in runs):
            values = self._of(run, kind)
            step = self._undefined.get(run.run_id, {}).get(name, -1) if kind == "metric" else -1
            if step >= 0 and (name not in values or 0 < run.metrics.get("epoch", math.inf) <= step):
                found[run.run_id] = UNDEFINED
            elif name in values:
                value = values[name]
                found[run.run_id] = value if isinstance(value, str) else read_metric(value)
        return found

    @staticmethod
    def _of(run: "RunRecord", kind: Kind) -> Mapping[str, str] | Mapping[str, float]:
        if kind == "metric":
            return run.metrics
        return run.settings if kind == "setting" else run.tags
