"""Where a study lives: an SQLite file or a PostgreSQL database, opened safely, with one lock around each decision."""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self, TypeVar

import filelock
import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from dftrack.errors import StoreError
from dftrack.files import write_aside

T = TypeVar("T")
PATIENCE = 60.0  # seconds that a lock or a database that does not answer is waited for
ADVISORY_KEY = int.from_bytes(hashlib.sha256(b"dftrack study").digest()[:8], "big", signed=True)
# A client whose machine lost power holds its locks until the server notices: after 10 + 3 x 5 seconds.
_KEEPALIVES = ("SET tcp_keepalives_idle = 10", "SET tcp_keepalives_interval = 5", "SET tcp_keepalives_count = 3")
_TRANSIENT = (optuna.exceptions.StorageInternalError, DBAPIError)


class Storage:
    """An open storage: Optuna's tables, and a lock that one process at a time can hold."""

    def __init__(self, place: str | Path, *, patience: float = PATIENCE) -> None:
        """Open the SQLite file or the URL `place`, making what is missing.

        patience: seconds; after so long without an answer, or without the lock, it is an error.
        Raises StoreError if the place is of an unknown kind, locked, damaged, foreign, too new, or does not answer.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.patience = patience
        self._url = read_url(place)
        self.place = self._url.render_as_string(hide_password=True)
        self._locks: Engine | None = None
        self._engines: list[Engine] = []
        try:
            self._open(patience)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, patience: float) -> None:
        if self._url.get_backend_name() == "sqlite":
            assert self._url.database is not None
            path = Path(self._url.database)
            self.place = str(path)
            self._file_lock = filelock.FileLock(f"{path}.lock", timeout=patience, poll_interval=0.005)
            self._make_sqlite(path)
            self.backend: BaseStorage = self._connect({"connect_args": {"timeout": patience}}, make_tables=False)
        else:
            options = {"connect_args": {"connect_timeout": max(2, min(10, round(patience)))}, "pool_pre_ping": True}
            self._locks = _engine(self._url, {**options, "pool_size": 1, "isolation_level": "AUTOCOMMIT"})
            self._engines.append(self._locks)
            tables = self._tables_of_server()
            with self.lock():
                self.backend = self._connect(options, make_tables="studies" not in tables)

    @property
    def url(self) -> str:
        """With the password, for opening it again; `place` is for people."""
        return _text(self._url)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the one lock of this storage. A holder that is killed gives it back. Raises StoreError in the end."""
        if self._locks is None:
            try:
                with self._file_lock:
                    yield
            except filelock.Timeout as error:
                raise self._busy() from error
            return
        with self._locks.connect() as connection:
            self._lock_server(connection)
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({ADVISORY_KEY})")

    def steady(self, step: Callable[[], T]) -> T:
        """Carry out a step under the lock; if the storage fails for a moment, do it again.

        The step must be right however often it is begun. Raises StoreError after `patience` seconds of failures.
        Not within another one: in PostgreSQL the inner lock would wait for the outer one.
        """

        def locked() -> T:
            with self.lock():
                return step()

        return self.patiently(locked)

    def patiently(self, step: Callable[[], T]) -> T:
        """The same without the lock: for who only looks, and must not hold up those at work."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return step()
            except _TRANSIENT as error:
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.place} fails: {_reason(error)}", "the study can go on later") from error
                time.sleep(0.25)

    def close(self) -> None:
        """Let go of the connections."""
        for engine in self._engines:
            engine.dispose()

    def _make_sqlite(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._file_lock:
                if not path.exists():
                    for left in path.parent.glob(f".{path.name}.*.tmp*"):  # a maker that was killed
                        left.unlink()
                    with write_aside(path) as aside:
                        RDBStorage(_text(URL.create("sqlite", database=str(aside)))).engine.dispose()
                        with closing(sqlite3.connect(aside)) as connection:
                            connection.execute("PRAGMA journal_mode = wal")
        except filelock.Timeout as error:
            raise self._busy() from error
        except OSError as error:
            raise StoreError(f"cannot make {path}: {error.strerror or error}", "may you write there?") from error
        self._check_sqlite(path)

    def _check_sqlite(self, path: Path) -> None:
        """Refuse a file that is damaged, locked for good, or something else's."""
        try:
            with closing(sqlite3.connect(path, timeout=self.patience, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                message = f"{path} is locked by another program (waited {self.patience:g} s)"
                raise StoreError(message, "end the program that holds it open, and start again") from error
            raise StoreError(f"cannot use {path}: {error}", "may you read and write it?") from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, str(error)) from error
        if verdict != "ok":
            raise _damaged(path, verdict)
        if "studies" not in tables:
            what = "an empty database" if not tables else "another program's database"
            raise StoreError(f"{path} is {what}, not one of studies", "move it away, or give --storage another place")

    def _tables_of_server(self) -> set[str]:
        assert self._locks is not None
        try:
            tables = set(sqlalchemy.inspect(self._locks).get_table_names())
        except OperationalError as error:
            raise StoreError(f"{self.place} does not answer: {_reason(error)}", "is the server up?") from error
        except DBAPIError as error:
            raise StoreError(f"{self.place} cannot be used: {_reason(error)}") from error
        if "alembic_version" in tables and "studies" not in tables:
            hint = "give it a database or a schema of its own: ...?options=-csearch_path%3Ddftrack"
            raise StoreError(f"{self.place} holds another program's tables", hint)
        return tables

    def _lock_server(self, connection: Connection) -> None:
        try:
            for statement in (*_KEEPALIVES, f"SET lock_timeout = {round(self.patience * 1000)}"):
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({ADVISORY_KEY})")
        except OperationalError as error:
            if "lock timeout" in str(error):
                raise self._busy() from error
            raise

    def _connect(self, options: dict[str, object], *, make_tables: bool) -> BaseStorage:
        try:
            storage = RDBStorage(self.url, options, skip_table_creation=not make_tables)
            self._engines.append(storage.engine)
            return get_storage(storage)
        except RuntimeError as error:  # Optuna's word for a schema of another version
            raise StoreError(f"{self.place} was made by another version of Optuna", str(error).strip()) from error
        except _TRANSIENT as error:
            raise StoreError(f"{self.place} cannot be opened: {_reason(error)}") from error

    def _busy(self) -> StoreError:
        message = f"{self.place} is busy: nobody let go of its lock for {self.patience:g} s"
        return StoreError(message, "a process of dftrack may hang; end it, and start again")


def read_url(place: str | Path) -> URL:
    """The database meant by a path or a URL. Raises StoreError if it is of a kind that studies cannot live in."""
    text = str(place)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).absolute()))
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise StoreError("the storage URL cannot be read", "postgresql://user@host/database, or a path") from error
    kind = url.drivername.split("+")[0]
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if kind == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite", database=str(Path(str(url.database)).absolute()))
    hint = "give the path of an SQLite file, or postgresql://user@host/database"
    raise StoreError(f"a study cannot live in {url.render_as_string(hide_password=True)}", hint)


def _text(url: URL) -> str:
    """The URL as text, password and all, with what means something in a URL (`?`, `%`) written so that it does not."""
    return url.render_as_string(hide_password=False)


def _engine(url: URL, options: dict[str, object]) -> Engine:
    try:
        return sqlalchemy.create_engine(url, **options)
    except ImportError as error:
        raise StoreError("PostgreSQL needs the package psycopg", "pip install 'dftrack[postgres]'") from error


def _damaged(path: Path, reason: str) -> StoreError:
    hint = "move it away to start afresh, or put a copy of yours back; the runs in MLflow are not touched"
    return StoreError(f"{path} is damaged: {reason}", hint)


def _reason(error: BaseException) -> str:
    """The first line of the deepest cause: what the database itself said."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", error) or error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
