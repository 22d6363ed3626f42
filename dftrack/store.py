"""Where results lie: the folder with `mlflow.db` and `artifacts/`, made and opened safely by many processes at once.

Together with `tracking` and `page` this is the one door to MLflow.
"""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from dftrack.database import ROOT_TAG, check_database, make_database, mend_moved
from dftrack.speaking import speaking

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dftrack.errors import StoreError
from dftrack.redaction import scrub

T = TypeVar("T")
FIRST_ANSWER_SECONDS = 5.0  # for each of the tries to reach a server before any work starts
FIRST_TRIES = 3
PATIENCE = 60.0  # seconds that a PostgreSQL which answered before is asked again
ASK_AGAIN_SECONDS = 0.25
KIND_TAG = "mlflow.experimentKind"  # the page shows training's tables and charts, not those of language models
_POSTGRES_LOCK = 0x6466_7472  # "dftr": advisory lock held while a schema is made


@dataclass(frozen=True, slots=True)
class Store:
    """The folder that holds everything: results, pictures of them, studies, caches and checkpoints."""

    folder: Path  # absolute, symbolic links resolved

    @staticmethod
    def at(folder: Path) -> "Store":
        """The store at `folder`. Nothing is made. Raises StoreError for a name that no database URL can hold."""
        resolved = Path(folder).expanduser().resolve()
        if bad := sorted(set(str(resolved)) & set("?#%")):
            raise StoreError(
                f"the store's path {resolved} contains {' '.join(bad)}", "choose a folder without ? # and % in its path"
            )
        return Store(resolved)

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def studies(self) -> Path:
        return self.folder / "optuna.db"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}"  # absolute: four slashes in all


@dataclass(frozen=True, slots=True)
class Connection:
    """An open way to MLflow; stays behind the door."""

    client: MlflowClient
    uri: str  # may hold credentials: scrub before showing
    store: Store
    serves_artifacts: bool  # a server decides where artifacts go; otherwise they lie in store.artifacts


def tracking_uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the database of `store`. Raises StoreError for a kind not served."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return store.uri
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:  # brackets that do not close
        raise StoreError(f"MLFLOW_TRACKING_URI is {scrub(uri)!r}, which is no address: {error}") from error
    if scheme in ("http", "https", "sqlite"):
        return uri
    if scheme in ("postgresql", "postgres"):  # MLflow alone would look for psycopg2, which we do not bring
        driver = urlsplit(uri).scheme.partition("+")[2] or "psycopg"
        return f"postgresql+{driver}://{uri.partition('://')[2]}"
    raise StoreError(
        f"MLFLOW_TRACKING_URI is {scrub(uri)!r}, which is not served",
        "use http(s)://..., postgresql://... or sqlite:////absolute/path.db, or unset it for a local store",
    )


def public_address(uri: str) -> str:
    """A server's address without user and password: to show, and to ask where they are not needed."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def prepare_store(folder: Path) -> None:
    """Make the local store ready, or do nothing if it is; any number of threads and processes may call this at once.

    It takes 2 to 8 s the first time and can run in a thread while data are read. Raises StoreError.
    """
    store = Store.at(folder)
    if tracking_uri(store) == store.uri:
        make_database(store.database, store.artifacts)


def connect(folder: Path, *, known: bool = False) -> Connection:
    """Open the store at `folder` (or what MLFLOW_TRACKING_URI names), making it where it is missing.

    known: it has answered before, so a PostgreSQL that does not is being started again: it is asked for `PATIENCE`.
    Raises StoreError, else within about 20 s, if it cannot be reached, written or understood.
    """
    store = Store.at(folder)
    uri = tracking_uri(store)
    server = uri.startswith("http")
    if uri == store.uri:
        make_database(store.database, store.artifacts)
        check_database(store.database)
        mend_moved(store.database, store.artifacts)
    elif server:
        _reach_server(uri)
    postgres = uri.startswith("postgresql")
    with speaking(uri):
        client = _Patience().ask(lambda: _open_client(uri)) if known and postgres else _open_client(uri)
    return Connection(cast(MlflowClient, _PatientClient(client)) if postgres else client, uri, store, server)


def _open_client(uri: str) -> MlflowClient:
    with _schema_lock(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(connection: Connection, name: str) -> str:
    """The id of the experiment `name`, made if missing; two processes may try at once. Raises StoreError."""
    client, store = connection.client, connection.store
    folder = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "experiment"
    location, tags = None, {KIND_TAG: "custom_model_development"}
    if not connection.serves_artifacts:
        location = (store.artifacts / folder).as_uri()
        tags[ROOT_TAG] = str(store.artifacts)
    with speaking(connection.uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=location, tags=tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)
    assert found is not None, f"experiment {name!r} exists and cannot be read"
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"the experiment {name!r} has been deleted in MLflow",
            f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}",
        )
    return str(found.experiment_id)


def local_path(uri: str) -> Path | None:
    """The folder that an artifact URI means, or None if it lies elsewhere (a server, a bucket)."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


@contextmanager
def _schema_lock(uri: str) -> Iterator[None]:
    """On PostgreSQL, one process at a time makes the schema (four at once: three die); elsewhere nothing is needed."""
    if not uri.startswith("postgresql"):
        yield
        return
    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": int(FIRST_ANSWER_SECONDS)})
    try:
        with engine.connect() as session:
            lock = sqlalchemy.text("select pg_advisory_lock(:key)")
            session.execute(lock, {"key": _POSTGRES_LOCK})  # freed with the session, also by a kill
            session.commit()
            yield
    finally:
        engine.dispose()


def _reach_server(uri: str) -> None:
    """Raise StoreError unless something answers at `uri`; later calls may be patient, the first one must not be.

    Whoever needs user and password answers without them, too: that they are missing.
    """
    reason, address = "", public_address(uri) + "/health"
    for attempt in range(FIRST_TRIES):
        try:
            with urllib.request.urlopen(address, timeout=FIRST_ANSWER_SECONDS):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return  # it answers; MLflow's own client will say what it minds
            reason = f"HTTP {error.code}"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
        except http.client.HTTPException as error:
            reason = type(error).__name__  # its words may repeat the address, password and all
        time.sleep(min(1.0, attempt + 0.2))
    raise StoreError(
        f"the MLflow server {scrub(uri)} does not answer: {reason}",
        "start it, correct MLFLOW_TRACKING_URI, or unset it for a local store",
    )


# ---- waiting ------------------------------------------------------------------------------------------------------


class _Patience:
    """Asks a database that is away for a moment again, until it has been away for `PATIENCE` in all."""

    def __init__(self) -> None:
        self._away_since: float | None = None  # monotonic; None: its last word was an answer

    def ask(self, call: Callable[[], T]) -> T:
        """What `call` returns, made again while the database is away."""
        while True:
            try:
                answer = call()
            except (MlflowException, sqlalchemy.exc.OperationalError) as error:
                if isinstance(error, MlflowException) and error.error_code != "TEMPORARILY_UNAVAILABLE":
                    raise
                now = time.monotonic()
                self._away_since = now if self._away_since is None else self._away_since
                if now - self._away_since > PATIENCE:
                    raise
                time.sleep(ASK_AGAIN_SECONDS)
            else:
                self._away_since = None
                return answer


class _PatientClient:
    """An MlflowClient for a database, patient as MLflow's own is with a server.

    A call whose answer was lost is made again, as that one does: runs and versions made twice are told by their key.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client, self._patience = client, _Patience()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *given, **named: self._patience.ask(lambda: found(*given, **named))
