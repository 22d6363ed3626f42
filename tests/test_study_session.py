"""The command of a study while workers work: it rides out a storage that fails, and asks and draws no more than needed.

The trials are stand-ins: what is tried here is the process that starts, hears and reports, not the training.
"""

import dataclasses
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import standins
from makers import make_faces

from dftrack.config import Value
from dftrack.errors import Interrupted, StoreError
from dftrack.learning import training
from dftrack.runtime import StopRequests
from dftrack.study import session as module
from dftrack.study.events import TrialEnded
from dftrack.study.jobs import Job, Queue
from dftrack.study.liveness import Life
from dftrack.study.naming import trial_key
from dftrack.study.plots import plots
from dftrack.study.records import Reader
from dftrack.study.report import markdown
from dftrack.study.session import Request, _Session

TEXT = standins.STUDY.replace("trials = 30", "trials = 5\nfinal_seeds = 0\nkeep_weights = 1")


@pytest.fixture(scope="module")
def session(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Session]:
    """A study whose trials have all ended, each with its run. Made once: no test leaves a trace in it."""
    session = _searched(tmp_path_factory.mktemp("home"), template_store, TEXT)
    yield session
    session.storage.close()


def _searched(home: Path, template_store: Path, text: str, **base: Value) -> _Session:
    (home / "store" / "artifacts").mkdir(parents=True)
    shutil.copy(template_store / "mlflow.db", home / "store" / "mlflow.db")
    faces = make_faces(home / "faces", train=8, val=4, test=4)
    definition = standins.definition(text).revised({"data.source": str(faces), **base})
    session = _Session(Request(definition=definition, store=home / "store"), lambda event: None, StopRequests())
    _search(session)
    return session


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


def make_flaky(
    session: _Session, failures: int, monkeypatch: pytest.MonkeyPatch, patience: float = 20
) -> standins.Flaky:
    """From now on the storage fails this often before it answers again. patience: seconds."""
    backend = standins.make_flaky(session.storage, failures, monkeypatch, patience)
    monkeypatch.setattr(session, "reader", Reader(session.storage.backend, session.study.study_id))
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
    monkeypatch.setattr("dftrack.study.plots.draw", lambda records, definition, **options: {})
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


def test_the_weights_of_a_trial_are_asked_for_once_however_many_trials_end_after_it(
    session: _Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    [best, *_] = session.ranked()
    ranked = [dataclasses.replace(best, number=number) for number in range(3)]
    monkeypatch.setattr(session, "_dropped", set())
    monkeypatch.setattr(session, "ranked", lambda: ranked)
    monkeypatch.setattr(session.tracker, "runs", lambda *, tags: asked.append(tags["dftrack.key"]) or [])
    session._keep_the_best()
    assert asked == [trial_key(session.key, 1), trial_key(session.key, 2)], "all but the best"
    ranked.insert(0, dataclasses.replace(best, number=3))
    session._keep_the_best()
    session._keep_the_best()
    assert asked[2:] == [trial_key(session.key, 0)], "only the one that is among the best no longer"


@pytest.mark.parametrize(("taken", "pause"), [(0.5, 60), (47, 940)])
def test_a_report_that_takes_long_is_written_more_rarely(
    taken: float, pause: float, session: _Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = 0.0, []

    def write(check: object) -> None:
        nonlocal now
        written.append(now)
        now += taken

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(session, "_report_due", 0.0)
    monkeypatch.setattr(session, "_keep_the_best", lambda: None)
    monkeypatch.setattr(session, "write_report", write)
    while now < 5000:
        now += 1
        session._hear(TrialEnded(0, 1, "complete", 0.5, ""))
    gaps = [later - earlier - taken for earlier, later in itertools.pairwise(written)]
    assert gaps and all(pause <= gap <= pause + 2 for gap in gaps), gaps


def test_a_stop_request_while_the_report_is_drawn_is_heard_after_the_next_picture(
    session: _Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw() -> bytes:
        drawn.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        return b""

    monkeypatch.setattr("dftrack.study.plots._pictures", lambda scene, found: [("a.png", draw), ("b.png", draw)])
    with pytest.raises(Interrupted) as caught:
        session._refresh()
    assert caught.value.exit_code == 143 and len(drawn) == 1
    with pytest.raises(Interrupted):
        monkeypatch.setattr(session.stop, "exit_code", 130)
        session.write_report()
    assert len(drawn) == 1, "the last report hears the command's own requests"


def test_a_final_training_that_fails_is_reported_and_does_not_block_the_study(
    tmp_path: Path, template_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("final_seeds = 0", "final_seeds = 2").replace("trials = 5", "trials = 1")
    session = _searched(tmp_path, template_store, text, **{"data.image_size": 16})
    real = training._train_step

    def diverges(state: training.State, batch: object) -> object:
        loss = real(state, batch)
        return dataclasses.replace(loss, mean=loss.mean * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_step", diverges)
        session.train_finals()
    failed = session.failed_finals()
    assert [one.seed for one in failed] == [1, 2], "the second is tried though the first failed"
    assert all("not finite" in one.reason for one in failed)
    assert session.finals() == []
    report = markdown(session.summary())
    assert "mean of 0 of 2 final trainings" in report and "not finite" in report
    again: list[int] = []
    monkeypatch.setattr(session, "_train_final", lambda winner, seed: again.append(seed))
    session.train_finals()
    assert again == [1, 2], "the next start tries them again"
    session.storage.close()
