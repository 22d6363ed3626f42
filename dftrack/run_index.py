"""The runs of a store read straight from its SQLite file, read-only: answers in the time that `import mlflow` takes.

Only the tables that MLflow 3 has had from its beginning are read, and only the columns asked for. Where the store is
no such file (PostgreSQL, a server, another schema), `open_index` says so and the Tracker answers instead.
"""

import os
import sqlite3
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from dftrack.errors import StoreError

Kind = Literal["setting", "metric", "tag"]
KINDS: tuple[Kind, ...] = ("setting", "metric", "tag")  # a name is looked up in this order

UNDEFINED_TAG = "dftrack.undefined"  # names of metrics without a value, "name@step" for those of one epoch
UNDEFINED = "undefined"
SPECIAL = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
BUSY_SECONDS = 20.0  # how long another process may hold the file
SQL_VARIABLES = 500  # ids in one query
TABLES: Mapping[Kind, str] = {"setting": "params", "metric": "latest_metrics", "tag": "tags"}
SCHEMA = {
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
    "runs": {"run_uuid", "name", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id"},
    "params": {"key", "value", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
    "latest_metrics": {"key", "value", "step", "is_nan", "run_uuid"},
}

Known = str | float  # a metric that has no value is "undefined"


@dataclass(frozen=True, slots=True)
class RunLine:
    """What stands in the table of runs itself."""

    run_id: str
    name: str
    status: str
    start_time: float  # seconds since 1970
    end_time: float | None  # None while it runs


def database_of(store: Path) -> Path | None:
    """The SQLite file that holds the runs of `store`, None if MLFLOW_TRACKING_URI names something else.

    Raises StoreError if there is no such file: nothing has been recorded.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    path = store.expanduser() / "mlflow.db"
    if uri:
        named = sqlite_file(uri)
        if named is None or "?" in uri:
            return None
        path = named
    if not os.path.isfile(path) or path.stat().st_size == 0:
        raise StoreError(f"there is no {path}, so no run yet", "train one first: dftrack baseline")
    return path.resolve()


def sqlite_file(uri: str) -> Path | None:
    """The file that sqlite:///relative.db or sqlite:////absolute.db names; None if the URI names none."""
    scheme, _, place = uri.partition("://")
    path = unquote(place.partition("?")[0]).removeprefix("/")
    if scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:") or path.startswith("file:"):
        return None
    return Path(path)


@contextmanager
def open_index(database: Path, experiment: str = "dftrack") -> Iterator["RunIndex | None"]:
    """The runs of `experiment`, to read from while the block runs; None if the file has another schema.

    Raises StoreError if the file cannot be read or is no SQLite database.
    """
    try:
        with closing(_opened(database)) as raw:
            yield RunIndex(raw, experiment) if _fits(raw) else None
    except sqlite3.Error as error:
        raise StoreError(f"{database} cannot be read: {error}", "is it an MLflow database?") from error


def _opened(database: Path) -> sqlite3.Connection:
    """Read-only. On a disk that cannot be written SQLite reads only a file that it is told nobody writes."""
    address = f"file:{quote(str(database))}?mode=ro"
    raw = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        raw.execute("select 1 from sqlite_master").fetchone()
    except sqlite3.Error as error:
        raw.close()
        if not isinstance(error, sqlite3.OperationalError) or os.access(database.parent, os.W_OK):
            raise
        raw = sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)
    return raw


def _fits(raw: sqlite3.Connection) -> bool:
    return all(
        columns <= {row[1] for row in raw.execute(f"pragma table_info({table})")} for table, columns in SCHEMA.items()
    )


class RunIndex:
    """Reads runs, and of their settings, metrics and tags the columns asked for. Deleted runs are not there."""

    def __init__(self, raw: sqlite3.Connection, experiment: str) -> None:
        self._raw = raw
        found = raw.execute(
            "select experiment_id from experiments where name = ? and lifecycle_stage = 'active' "
            "order by experiment_id limit 1",
            (experiment,),
        ).fetchone()
        self._experiment: int | None = found[0] if found else None
        self._undefined: dict[str, str] | None = None  # run id -> the tag that names what has no value

    def lines(self) -> list[RunLine]:
        """All runs, the latest first (and then by id, as MLflow sorts them)."""
        rows = self._raw.execute(
            "select run_uuid, name, status, start_time, end_time from runs "
            "where experiment_id = ? and lifecycle_stage = 'active' order by start_time desc, run_uuid",
            (self._experiment,),
        )
        return [
            RunLine(run_id, name or "", status, start / 1000, end / 1000 if end and status != "RUNNING" else None)
            for run_id, name, status, start, end in rows
        ]

    def names(self, kind: Kind) -> list[str]:
        """Every name of a setting, metric or tag, sorted: one look into the index for each, however many runs."""
        table = TABLES[kind]
        rows = self._raw.execute(
            f"with recursive found(name) as (select min(key) from {table} union all "
            f"select (select min(key) from {table} where key > name) from found where name is not null) "
            "select name from found where name is not null"
        )
        return [name for (name,) in rows]

    def has(self, kind: Kind, name: str) -> bool:
        """Whether any run bears this name; a metric may also be one that has no value anywhere."""
        query = f"select 1 from {TABLES[kind]} where key = ? limit 1"
        if self._raw.execute(query, (name,)).fetchone():
            return True
        return kind == "metric" and any(name in undefined_names(tag) for tag in self._undefined_tags().values())

    def values(self, kind: Kind, name: str, runs: Collection[str] | None = None) -> dict[str, Known]:
        """Run id -> value, where there is one. runs: of these only, all runs if None."""
        if kind != "metric":
            return dict(self._read(kind, "value", name, runs))
        found: dict[str, Known] = {}
        steps: dict[str, int] = {}
        for run_id, value, step, is_nan in self._read(kind, "value, step, is_nan", name, runs):
            found[run_id], steps[run_id] = read_metric(value, bool(is_nan)), step
        for run_id, tag in self._undefined_tags().items():
            asked = runs is None or run_id in runs
            if asked and undefined_names(tag).get(name, -1) > steps.get(run_id, -1):
                found[run_id] = UNDEFINED
        return found

    def _undefined_tags(self) -> dict[str, str]:
        if self._undefined is None:
            self._undefined = dict(self._read("tag", "value", UNDEFINED_TAG, None))
        return self._undefined

    def _read(self, kind: Kind, columns: str, name: str, runs: Collection[str] | None) -> Iterator[tuple[Any, ...]]:
        query = f"select run_uuid, {columns} from {TABLES[kind]} where key = ?"
        if runs is None:
            yield from self._raw.execute(query, (name,))
            return
        wanted = list(runs)
        for start in range(0, len(wanted), SQL_VARIABLES):
            part = wanted[start : start + SQL_VARIABLES]
            yield from self._raw.execute(f"{query} and run_uuid in ({', '.join('?' * len(part))})", (name, *part))


def undefined_names(tag: str) -> dict[str, int]:
    """Metric -> the last epoch in which it had no value (0: as a whole), from the text of the tag."""
    found: dict[str, int] = {}
    for entry in filter(None, tag.split(", ")):
        name, at, step = entry.rpartition("@")
        if not at or not step.isdigit():
            name, step = entry, "0"
        found[name] = max(found.get(name, 0), int(step))
    return found


def read_metric(value: float, is_nan: bool = False) -> float:
    """A metric as it was meant: MLflow stores an infinity as the largest float."""
    if is_nan:
        return SPECIAL["nan"]
    if abs(value) >= sys.float_info.max:
        return SPECIAL["inf" if value > 0 else "-inf"]
    return value
