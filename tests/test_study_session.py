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
from dftrack.experiment import Notice
from dftrack.learning import training
from dftrack.runtime import StopRequests
from dftrack.study import finals, session
from dftrack.study import search as module
from dftrack.study.account import Account, openings
from dftrack.study.begun import Begun, Request, begin
from dftrack.study.events import TrialEnded
from dftrack.study.jobs import Job, Queue
from dftrack.study.liveness import Life
from dftrack.study.naming import trial_key
from dftrack.study.plots import plots
from dftrack.study.records import Reader
from dftrack.study.report import markdown
from dftrack.study.search import Search

TEXT = standins.STUDY.replace("trials = 30", "trials = 5\nfinal_seeds = 0\nkeep_weights = 1")


@pytest.fixture(scope="module")
def search(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """A study whose trials have all ended, each with its run. Made once: no test leaves a trace in it."""
    begun = _searched(tmp_path_factory.mktemp("home"), template_store, TEXT)
    yield Search(begun, Account(begun), lambda event: None, StopRequests())
    begun.study.storage.close()


def _searched(home: Path, template_store: Path, text: str, **base: Value) -> Begun:
    (home / "store" / "artifacts").mkdir(parents=True)
    shutil.copy(template_store / "mlflow.db", home / "store" / "mlflow.db")
    faces = make_faces(home / "faces", train=8, val=4, test=4)
    definition = standins.definition(text).revised({"data.source": str(faces), **base})
    begun = begin(Request(definition=definition, store=home / "store"), lambda what, done, total: None)
    _search(begun)
    return begun


def _search(begun: Begun) -> None:
    life = Life(begun.lives)
    queue = Queue(begun.study, begun.definition, life.worker)
    while isinstance(job := queue.next_job(), Job):
        begun.tracker.start_run(
            f"trial {job.trial}",
            key=trial_key(begun.key, job.trial),
            settings=dict(job.params),
            tags={"dftrack.kind": "trial", "dftrack.trial": str(job.trial)},
            parent=begun.run.run_id,
        )
        queue.finish(job, standins.train(job, lambda epoch, value, job=job: queue.report(job, epoch, value)))
    life.end()


def make_flaky(begun: Begun, failures: int, monkeypatch: pytest.MonkeyPatch, patience: float = 20) -> standins.Flaky:
    """From now on the storage fails this often before it answers again. patience: seconds."""
    backend = standins.make_flaky(begun.study.storage, failures, monkeypatch, patience)
    monkeypatch.setattr(begun, "reader", Reader(backend, begun.study.study_id))
    return backend


READINGS: dict[str, Callable[[Search], object]] = {
    "the ranking": lambda search: search.begun.ranked(),
    "the end of the search": lambda search: search.run(),
    "the summary": lambda search: search.account.summary(),
    "the mending": lambda search: search._mend(),
    "the plots": lambda search: plots(search.begun.study, search.begun.definition),
}


def test_a_study_goes_on_with_as_many_workers_as_it_was_begun_with_unless_told_otherwise(
    template_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(template_store / "mlflow.db", store / "mlflow.db")
    faces = make_faces(tmp_path / "faces", train=8, val=4, test=4)
    definition = standins.definition(TEXT).revised({"data.source": str(faces), "data.image_size": 16})
    monkeypatch.setattr("dftrack.study.begun.how_many_pay", lambda device: 3)
    asked, at_work, noted = (None, None, 1, None, 2), [], []
    for number, workers in enumerate(asked):
        if number == 1:
            monkeypatch.setattr("dftrack.study.begun.how_many_pay", lambda device: 4)  # more memory is free now
        request = Request(definition=definition, store=store, workers=workers, new=number == 4)
        begun = begin(request, lambda what, done, total: None)
        at_work.append(begun.workers)
        noted.append(begun.tracker.find_run(begun.run.run_id).settings["study.workers"])
        begun.study.storage.close()
    assert at_work == [3, 3, 1, 3, 2]
    assert noted == ["3", "3", "3", "3", "2"], "what the suggestions are spaced for does not change"


@pytest.mark.parametrize("what", READINGS)
def test_a_storage_that_fails_for_a_moment_does_not_end_the_command(
    what: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TrialCloser", lambda store, key: lambda ended: None)
    monkeypatch.setattr("dftrack.study.plots.draw", lambda records, definition, **options: {})
    backend = make_flaky(search.begun, 2, monkeypatch)
    READINGS[what](search)
    assert backend.failures == 0, "the failures must have been met"


@pytest.mark.parametrize("what", READINGS)
def test_a_storage_that_stays_away_is_told_in_one_line(
    what: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flaky(search.begun, 10**9, monkeypatch, patience=0)
    with pytest.raises(StoreError, match="fails: the server closed the connection") as caught:
        READINGS[what](search)
    assert caught.value.exit_code == 4 and "go on later" in caught.value.hint


def test_the_weights_of_a_trial_are_asked_for_once_however_many_trials_end_after_it(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    begun = search.begun
    [best, *_] = begun.ranked()
    ranked = [dataclasses.replace(best, number=number) for number in range(3)]
    monkeypatch.setattr(search, "_dropped", set())
    monkeypatch.setattr(begun, "ranked", lambda: ranked)
    monkeypatch.setattr(begun.tracker, "runs", lambda *, tags: asked.append(tags["dftrack.key"]) or [])
    search._keep_the_best()
    assert asked == [trial_key(begun.key, 1), trial_key(begun.key, 2)], "all but the best"
    ranked.insert(0, dataclasses.replace(best, number=3))
    search._keep_the_best()
    search._keep_the_best()
    assert asked[2:] == [trial_key(begun.key, 0)], "only the one that is among the best no longer"


def test_the_weights_of_a_registered_model_stay_however_many_better_trials_come(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, tracker = search.begun, search.begun.tracker
    [best, *_] = begun.ranked()
    ranked = [dataclasses.replace(best, number=number) for number in range(3)]
    monkeypatch.setattr(begun, "ranked", lambda: ranked)
    ids = [tracker.runs(tags={"dftrack.key": trial_key(begun.key, number)})[0].run_id for number in (1, 2)]
    client = tracker._client
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "file:///somewhere", ids[0])  # as in the MLflow page
    dropped: list[str] = []
    monkeypatch.setattr(search, "_dropped", set())
    monkeypatch.setattr(tracker, "drop_model", dropped.append)
    search._keep_the_best()
    client.delete_registered_model("theirs")
    assert dropped == [ids[1]]


def test_a_study_that_goes_on_beside_a_stopped_command_does_not_end_as_stopped(search: Search) -> None:
    begun = search.begun
    with session._recorded(begun, StopRequests()):
        begun.tracker.open_run(begun.run.run_id).finish("KILLED", end="interrupted", reason="stopped on request")
    run = begun.tracker.find_run(begun.run.run_id)
    assert (run.status, run.end, run.tags.get("dftrack.reason", "")) == ("FINISHED", "complete", "")


def test_an_evaluation_without_test_splits_is_no_opening(search: Search) -> None:
    tracker = search.begun.tracker
    before = openings(tracker, "f" * 32)
    for key, opened in (("val only", ""), ("tests", "test-dev")):
        tags = {"dftrack.data_digest": "f" * 32, "dftrack.tests_opened": opened}
        tracker.start_run("evaluation", key=key, settings={}, tags=tags).finish("FINISHED")
    assert (len(before), len(openings(tracker, "f" * 32))) == (0, 1)


@pytest.mark.parametrize(("taken", "pause"), [(0.5, 60), (12, 1200)])
def test_a_report_that_takes_long_is_written_more_rarely(
    taken: float, pause: float, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = 0.0, []

    def write(check: object) -> None:
        nonlocal now
        written.append(now)
        now += taken

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(search, "_report_due", 0.0)
    monkeypatch.setattr(search, "_keep_the_best", lambda: None)
    monkeypatch.setattr(search.account, "write", write)
    while now < 5000:
        now += 1
        search._hear(TrialEnded(0, 1, "complete", 0.5, ""))
    gaps = [later - earlier - taken for earlier, later in itertools.pairwise(written)]
    assert gaps and all(pause <= gap <= pause + 2 for gap in gaps), gaps


def test_a_stop_request_while_the_report_is_drawn_is_heard_after_the_next_picture(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw() -> bytes:
        drawn.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        return b""

    monkeypatch.setattr("dftrack.study.plots._pictures", lambda scene, found: [("a.png", draw), ("b.png", draw)])
    with pytest.raises(Interrupted) as caught:
        search._refresh()
    assert caught.value.exit_code == 143 and len(drawn) == 1
    with pytest.raises(Interrupted):
        monkeypatch.setattr(search.stop, "exit_code", 130)
        search.account.write(search.stop.check)
    assert len(drawn) == 1, "the last report hears the command's own requests"


def test_a_final_training_that_fails_is_reported_and_does_not_block_the_study(
    tmp_path: Path, template_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("final_seeds = 0", "final_seeds = 2").replace("trials = 5", "trials = 1")
    begun = _searched(tmp_path, template_store, text, **{"data.image_size": 16})
    real = training._train_step

    def diverges(state: training.State, batch: object) -> object:
        loss = real(state, batch)
        return dataclasses.replace(loss, mean=loss.mean * float("nan"))

    def broken(state: training.State, batch: object) -> object:
        raise RuntimeError("cuDNN error")

    heard: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_step", diverges)
        finals.train_finals(begun, lambda event: None, StopRequests())
    failed = finals.failed_finals(begun)
    assert [one.seed for one in failed] == [1, 2], "the second is tried though the first failed"
    assert all("not finite" in one.reason for one in failed)
    assert finals.finals(begun) == []
    report = markdown(Account(begun).summary())
    assert "mean of 0 of 2 final trainings" in report and "not finite" in report
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_step", broken)
        finals.train_finals(begun, heard.append, StopRequests())
    notices = [event.text for event in heard if isinstance(event, Notice)]
    assert notices == [f"the final training with seed {seed} failed: RuntimeError: cuDNN error" for seed in (1, 2)]
    again: list[int] = []
    monkeypatch.setattr(finals, "_train", lambda begun, winner, seed, *_: again.append(seed))
    finals.train_finals(begun, lambda event: None, StopRequests())
    assert again == [1, 2], "the next start tries them again"
    asked = StopRequests()
    asked.exit_code = 143
    with pytest.raises(Interrupted):
        finals.train_finals(begun, heard.append, asked)
    assert again == [1, 2], "who was asked to stop begins nothing"
    begun.study.storage.close()
