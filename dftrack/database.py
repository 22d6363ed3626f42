"""The SQLite file of a local store: made whole by one of many processes, checked, and mended after a move."""

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from dftrack.speaking import explained, speaking

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
from filelock import FileLock, Timeout
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from dftrack.errors import StoreError
from dftrack.files import write_aside

LOCK_SECONDS = 120.0  # a schema is made in 2 to 8 s; longer than this means that somebody is stuck
ROOT_TAG = "dftrack.artifacts"  # on an experiment: the artifacts folder its absolute paths were made for


def make_database(database: Path, artifacts: Path) -> None:
    """Build the schema in memory, then put the file in place whole. The kernel frees the lock of a killed process."""
    if _has_content(database):
        return
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".mlflow.lock", timeout=LOCK_SECONDS):
            if _has_content(database):
                return
            for left_over in folder.glob(".mlflow.db.*"):  # of a killed process: we hold the lock
                left_over.unlink(missing_ok=True)
            artifacts.mkdir(exist_ok=True)
            with speaking(f"sqlite:///{database}"), write_aside(database) as aside:
                _write_schema(aside, artifacts.as_uri())
    except Timeout as error:
        raise StoreError(f"{folder} has been locked for {LOCK_SECONDS:.0f} s", "is another dftrack stuck?") from error
    except OSError as error:
        raise StoreError(
            f"cannot make the store {folder}: {error.strerror or error}",
            "choose a folder you may write to with --store",
        ) from error


def _has_content(database: Path) -> bool:
    """False for a missing file, and for an empty one: SQLite makes that before the first page, and it holds nothing."""
    try:
        return database.is_dir() or database.stat().st_size > 0
    except OSError:
        return False


def _write_schema(target: Path, artifacts: str) -> None:
    """An empty MLflow database at `target`. In memory the forty migrations cost no disk access."""
    memory = f"file:dftrack-{secrets.token_hex(8)}?mode=memory&cache=shared"
    with closing(sqlite3.connect(memory, uri=True)) as keeper, closing(sqlite3.connect(target)) as copy:
        made = SqlAlchemyStore(f"sqlite:///{memory}&uri=true", artifacts)  # type: ignore[no-untyped-call]
        made.engine.dispose()  # `keeper` holds what is in memory
        keeper.backup(copy)
        copy.execute("pragma journal_mode=wal")  # kept in the file: readers never wait for a writer


def check_database(database: Path) -> None:
    """Raise StoreError unless `database` is an MLflow database that can be written; leaves it as it is."""
    if database.is_dir():
        raise StoreError(f"{database} is a folder, not a database", "choose another folder with --store")
    try:
        with closing(_raw(database)) as raw:
            tables = {row[0] for row in raw.execute("select name from sqlite_master where type = 'table'")}
            if not {"alembic_version", "experiments", "runs"} <= tables:
                raise StoreError(f"{database} is not an MLflow database", "choose another folder with --store")
            raw.execute("begin immediate")  # fails on a read-only file or folder
            raw.execute("rollback")
    except sqlite3.Error as error:
        raise explained(str(error), f"sqlite:///{database}") from error


def _raw(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=20, isolation_level=None)


def mend_moved(database: Path, artifacts: Path) -> None:
    """MLflow keeps absolute artifact paths: after the folder was moved or copied, give them their new prefix."""
    select = "select distinct value from experiment_tags where key = ? and value <> ?"
    here = str(artifacts)
    try:
        with closing(_raw(database)) as raw:
            if not [old for (old,) in raw.execute(select, (ROOT_TAG, here)) if not _same_folder(old, here)]:
                return
            raw.execute("begin immediate")
            for (old,) in raw.execute(select, (ROOT_TAG, here)).fetchall():
                for before, after in ((Path(old).as_uri(), artifacts.as_uri()), (old, here)):
                    _replace_prefix(raw, before, after)
                raw.execute("update experiment_tags set value = ? where key = ? and value = ?", (here, ROOT_TAG, old))
            raw.execute("commit")
    except sqlite3.Error as error:
        raise explained(str(error), f"sqlite:///{database}") from error


def _replace_prefix(raw: sqlite3.Connection, before: str, after: str) -> None:
    for table, column in (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
        ("model_versions", "source"),
    ):
        raw.execute(
            f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or substr({column}, 1, ?) = ?",
            (after, len(before) + 1, before, len(before) + 1, before + "/"),
        )


def _same_folder(one: str, other: str) -> bool:
    """The same folder under two names, as with a bind mount: nothing has moved."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
