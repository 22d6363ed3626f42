"""The command of a study while workers work: it rides out a storage that fails, and asks and draws no more than needed.

The trials are stand-ins: what is tried here is the process that starts, hears and reports, not the training.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standins
from makers import make_faces
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from dftrack.errors import StoreError
from dftrack.runtime import StopRequests
from dftrack.study import session as module
from dftrack.study.jobs import Job, Queue
from dftrack.study.liveness import Life
from dftrack.study.naming import trial_key
from dftrack.study.plots import plots
from dftrack.study.records import Reader
from dftrack.study.session import Request, _Session

TEXT = standins.STUDY.replace("trials = 30", "trials = 5\nfinal_seeds = 0\nkeep_weights = 1")


class Flaky:
    """A storage's backend that fails now and then, as PostgreSQL does while it is started again."""

    def __init__(self, real: BaseStorage) -> None:
        self.real, self.failures = real, 0

    def __getattr__(self, name: str) -> Any:
        if self.failures and callable(getattr(self.real, name)):
            self.failures -= 1
            raise StorageInternalError("the server closed the connection unexpectedly")
        return getattr(self.real, name)


@pytest.fixture(scope="module")
def session(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Session]:
    """A study whose trials have all ended, each with its run. Made once: no test leaves a trace in it."""
    home = tmp_path_factory.mktemp("home")
    (home / "store" / "artifacts").mkdir(parents=True)
    shutil.copy(template_store / "mlflow.db", home / "store" / "mlflow.db")
    faces = make_faces(home / "faces", train=8, val=4, test=4)
    definition = standins.definition(TEXT).revised({"data.source": str(faces)})
    session = _Session(Request(definition=definition, store=home / "store"), lambda event: None, StopRequests())
    _search(session)
    yield session
    session.storage.close()


def _search(session: _Session) -> None:
    life = Life(session.request.store / "studies" / "workers")
    queue = Queue(session.study, session.definition, life.worker)
    while isinstance(job := queue.next_job(), Job):
        session.tracker.start_run(
            f"trial {job.trial}",
            key=trial_key(session.key, job.trial),
            settings=dict(job.params),
            tags={"dftrack.kind": "trial", "dftrack.trial": str(job.trial)},
            parent=session.run.run_id,
        )
        queue.finish(job, standins.train(job, lambda epoch, value, job=job: queue.report(job, epoch, value)))
    life.end()


def make_flaky(session: _Session, failures: int, monkeypatch: pytest.MonkeyPatch, patience: float = 20) -> Flaky:
    """From now on the storage fails this often before it answers again. patience: seconds."""
    backend = Flaky(session.storage.backend)
    monkeypatch.setattr(session.storage, "backend", backend)
    monkeypatch.setattr(session.storage, "patience", patience)
    monkeypatch.setattr("dftrack.study.storage.time.sleep", lambda seconds: None)
    monkeypatch.setattr(session, "reader", Reader(session.storage.backend, session.study.study_id))
    backend.failures = failures
    return backend


READINGS: dict[str, Callable[[_Session], object]] = {
    "the ranking": lambda session: session.ranked(),
    "the end of the search": lambda session: session.search(),
    "the summary": lambda session: session.summary(),
    "the mending": lambda session: session._mend(),
    "the plots": lambda session: plots(session.study, session.definition),
}


@pytest.mark.parametrize("what", READINGS)
def test_a_storage_that_fails_for_a_moment_does_not_end_the_command(
    what: str, session: _Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TrialCloser", lambda store, key: lambda ended: None)
    monkeypatch.setattr("dftrack.study.plots.draw", lambda records, definition, name: {})
    backend = make_flaky(session, 2, monkeypatch)
    READINGS[what](session)
    assert backend.failures == 0, "the failures must have been met"


@pytest.mark.parametrize("what", READINGS)
def test_a_storage_that_stays_away_is_told_in_one_line(
    what: str, session: _Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flaky(session, 10**9, monkeypatch, patience=0)
    with pytest.raises(StoreError, match="fails: the server closed the connection") as caught:
        READINGS[what](session)
    assert caught.value.exit_code == 4 and "go on later" in caught.value.hint
