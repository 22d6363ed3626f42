"""One `dftrack study`: data, storage, parent run, workers, the winner's final trainings, the report.

Every step can be killed and done again: the trials are Optuna's, runs and checkpoints go by names that the next start
finds, and the parent run is written anew from what the storage says.
"""

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dftrack import __version__
from dftrack.config import INCIDENTAL, SEEDS, TrainConfig, Value, flatten
from dftrack.data.cache import DataSet, open_data
from dftrack.errors import (
    DataError,
    DeviceError,
    DftrackError,
    Interrupted,
    MetricError,
    StoreError,
    TrainingError,
    require,
)
from dftrack.experiment import Event as ExperimentEvent
from dftrack.experiment import Notice, Plan, Result, Stage, run_experiment
from dftrack.recording import TESTS_OPENED, record_start
from dftrack.runtime import StopRequests, catch_stop_requests, pick_device, pick_precision
from dftrack.study.case import KEY
from dftrack.study.definition import StudyDefinition
from dftrack.study.events import Event, TrialEnded
from dftrack.study.fingerprint import fingerprint
from dftrack.study.jobs import Ended
from dftrack.study.liveness import Life
from dftrack.study.naming import final_key, trial_key
from dftrack.study.opening import OpenStudy, open_study
from dftrack.study.plots import plots
from dftrack.study.records import Reader, Record
from dftrack.study.report import html, markdown
from dftrack.study.storage import Storage
from dftrack.study.summary import FailedFinal, FinalTraining, StudySummary, cost, ranking, trials_table, verdict
from dftrack.study.trials import TrialCloser, TrialTrainer
from dftrack.study.verdict import spread
from dftrack.study.worker import Work
from dftrack.study.workers import run_workers
from dftrack.tracking import REASON_TAG, Run, RunRecord, Tracker, open_tracker

REFRESH_SECONDS = 60.0  # at least so long between two reports while trials train,
REFRESH_TIMES = 20  # and so many times what the last one took: meanwhile nobody listens to the workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a study."""

    definition: StudyDefinition
    store: Path
    storage: str = ""  # path or URL of the Optuna storage; "": optuna.db in the store
    trials: int | None = None  # the total; None: as before, or as the file says
    workers: int = 1
    new: bool = False
    command: str = ""  # what a person types to go on with it; "": made from the study's name


@dataclass(frozen=True, slots=True)
class Opened:
    """The study is open and its parent run exists."""

    name: str
    run_id: str
    data: DataSet
    total: int
    ended: int  # trials that earlier starts brought to their end


@dataclass(frozen=True, slots=True)
class FinalStarted:
    """The winner is trained once more, with another seed."""

    trial: int
    seed: int
    number: int  # from 1
    count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study came to."""

    run_id: str
    summary: StudySummary

    def plain(self) -> dict[str, object]:
        """For programs: the winner, its final trainings, what it cost."""
        summary = self.summary
        ranked = ranking(summary.records, summary.definition.direction)
        found = verdict(summary)
        return {
            "run_id": self.run_id,
            "status": "FINISHED",
            "study": summary.name,
            "trials": len(summary.records),
            "metrics": final_metrics(summary.finals),
            "best": {"trial": ranked[0].number, "value": ranked[0].value, "params": dict(ranked[0].params)}
            if ranked
            else None,
            "baseline": summary.baseline,
            "finals": [{"seed": f.seed, "run_id": f.run_id, "value": f.val} for f in summary.finals],
            "finals_failed": [dataclasses.asdict(failed) for failed in summary.failed_finals],
            "verdict": {"word": found.word, "reason": found.reason},
            "epochs": cost(summary).epochs,
            "epochs_full_search": cost(summary).full_epochs,
            "tests_opened": summary.tests_opened_after,
        }


Watch = Callable[[Stage | Opened | Event | FinalStarted | ExperimentEvent], None]


def run_study(request: Request, watch: Watch = lambda event: None, stop: StopRequests | None = None) -> Outcome:
    """Begin the study, or go on with it, until all its trials have ended and its winner is known.

    Raises DftrackError with what is wrong (nothing is lost: the same command goes on), Interrupted on request.
    """
    session = _Session(request, watch, stop or StopRequests())
    with session.recorded():
        session.search()
        session.train_finals()
        session.write_report()
        outcome = Outcome(session.run.run_id, session.summary())
    return outcome


class _Session:
    """The study while this process works on it."""

    def __init__(self, request: Request, watch: Watch, stop: StopRequests) -> None:
        require(request.workers >= 1, f"--workers must be at least 1, got {request.workers}")
        request = dataclasses.replace(request, store=request.store.expanduser())
        self.request, self.watch, self.stop = request, watch, stop
        _require_device(request.definition.config({}).train)
        self.data = open_data(request.definition.config({}).data, request.store, self._stage)
        self.definition = _at_size(request.definition, self.data.image_size)
        mark = fingerprint(self.definition, self.data.digest, {"dftrack": __version__})
        self.storage = Storage(request.storage or request.store / "optuna.db")
        self.study = open_study(self.storage, self.definition, mark, trials=request.trials, new=request.new)
        self.key = self.storage.steady(lambda: _study_key(self.study))
        self.reader = Reader(self.storage.backend, self.study.study_id)
        self.tracker: Tracker = open_tracker(request.store)
        self.run: Run = self._parent_run()
        self._report_due = time.monotonic() + REFRESH_SECONDS
        self._dropped: set[int] = set()  # trials whose weights are known to be gone
        self._times: dict[str, float] = {}  # run id -> seconds of training

    def _stage(self, what: str, done: int, total: int) -> None:
        self.stop.check()
        self.watch(Stage(what, done, total))

    def _parent_run(self) -> Run:
        definition = self.definition
        settings: dict[str, Value] = {
            "study.name": self.study.name,
            "study.metric": definition.metric,
            "study.direction": definition.direction,
            "study.sampler": definition.sampler,
            "study.seed": definition.seed,
            "study.rungs": ", ".join(map(str, definition.rungs)),
            "study.final_seeds": definition.final_seeds,
            **{f"space.{name}": str(dimension) for name, dimension in definition.space.items()},
        }
        shared = {k: v for k, v in flatten(definition.config({})).items() if k not in definition.space}
        return self.tracker.start_run(
            f"study {self.study.name}",
            key=f"{self.key}-parent",
            settings=settings | {k: v for k, v in shared.items() if k not in INCIDENTAL},
            tags={"dftrack.kind": "study", "dftrack.study": self.study.name, "dftrack.data_digest": self.data.digest},
        )

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Close the parent run as what it is, however the work ends. Until then this process counts as at work."""
        life: Life | None = None
        try:
            self.stop.check()
            life = Life(self.request.store / "studies" / "workers")
            record_start(self.run, self.data)
            self.run.log_text(self.definition.text, "study/study.toml")
            yield
        except (Interrupted, KeyboardInterrupt):
            self.run.finish("KILLED", end="interrupted", reason="stopped on request; the same command goes on")
            raise
        except (StoreError, DataError, DeviceError) as error:
            with contextlib.suppress(StoreError):  # it passes, and the same command goes on
                self.run.finish("KILLED", end="interrupted", reason=error.message)
            raise
        except BaseException as error:
            reason = error.message if isinstance(error, DftrackError) else f"{type(error).__name__}: {error}"
            self.run.finish("FAILED", end="failed", reason=reason)
            raise
        else:
            self.run.finish("FINISHED", end="complete")
        finally:
            if life:
                life.end()
            self.storage.close()

    def search(self) -> None:
        """Let workers bring all trials to their end."""
        records = self._records()
        total = max(self._total(), len(records))  # what was begun is brought to its end
        ended = sum(record.is_ended for record in records)
        self.watch(Opened(self.study.name, self.run.run_id, self.data, total, ended))
        work = Work(
            url=self.storage.url,
            study=self.study.name,
            definition=self.definition,
            lives=self.request.store / "studies" / "workers",
            train=TrialTrainer(self.definition, self.request.store, self.key, self.run.run_id, self._digest()),
            on_ended=TrialCloser(self.request.store, self.key),
        )
        if ended < total:  # else only the winner's trainings are left
            run_workers(work, self.request.workers, self._hear, check=self.stop.check)
        self._mend()

    def _digest(self) -> str:
        """Of the data that every training must have; "" if the study itself searches what is left out of them."""
        return "" if "data.leaks" in self.definition.space else self.data.digest

    def _hear(self, event: Event) -> None:
        self.watch(event)
        if isinstance(event, TrialEnded):
            self._keep_the_best()
            if time.monotonic() > self._report_due:
                self._refresh()

    def _refresh(self) -> None:
        """Write the report while trials train. Asked to stop meanwhile, raise Interrupted after the next picture."""
        begun = time.monotonic()
        try:
            with catch_stop_requests() as requests:  # who watches the workers cannot look while this thread draws
                self.write_report(requests.check)
            requests.check()
        finally:
            now = time.monotonic()
            self._report_due = now + max(REFRESH_SECONDS, REFRESH_TIMES * (now - begun))

    def _mend(self) -> None:
        """Bring runs whose worker was killed between the trial's end and the run's to the state Optuna knows."""
        close = TrialCloser(self.request.store, self.key)
        self.reader = Reader(self.storage.backend, self.study.study_id)  # read anew: workers wrote meanwhile
        for record in self._records():
            if record.is_ended:
                close(Ended(record.number, record.status, record.value, record.reason))
        self._keep_the_best()

    def _keep_the_best(self) -> None:
        """Delete the weights of trials that are not among the best: they never come back, so each is asked for once."""
        for record in self.ranked()[self.definition.keep_weights :]:
            if record.number in self._dropped:
                continue
            for run in self.tracker.runs(tags={"dftrack.key": trial_key(self.key, record.number)}):
                self.tracker.drop_model(run.run_id)
            self._dropped.add(record.number)

    def ranked(self) -> list[Record]:
        """The complete trials, the best first; ties go to the lower number."""
        return ranking(self._records(), self.definition.direction)

    def _records(self) -> list[Record]:
        """All trials; a storage that fails for a moment is waited for, as the workers wait for it.

        Under the lock, like every reading that goes on from an earlier one: see `Reader`.
        """
        return self.storage.steady(self.reader.read)

    def _total(self) -> int:
        """How many trials there are in the end, as the latest start said."""
        return self.definition.total(self.storage.patiently(self.study.trials))

    def train_finals(self) -> None:
        """Train the winner again with other seeds, and open the test splits for it. One process at a time.

        A seed whose training fails is left to the report; the next start of the command tries it again.
        """
        ranked = self.ranked()
        if not ranked or not self.definition.final_seeds:
            return
        winner = ranked[0]
        lock = self.request.store / "studies" / f"{self.key}.finals.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with self._waited(FileLock(lock)):
            done = {final.seed for final in self.finals()}
            for number, seed in enumerate(unused_seeds(self.definition), start=1):
                if seed not in done:
                    self.watch(FinalStarted(winner.number, seed, number, self.definition.final_seeds))
                    try:
                        self._train_final(winner, seed)
                    except (TrainingError, MetricError) as error:
                        self.watch(Notice(f"the final training with seed {seed} failed: {error.message}"))

    @contextlib.contextmanager
    def _waited(self, lock: FileLock) -> Iterator[None]:
        """Hold the lock; while another process holds it, look whether somebody wants this one to stop."""
        while not lock.is_locked:
            self.stop.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
        try:
            yield
        finally:
            lock.release()

    def _train_final(self, winner: Record, seed: int) -> None:
        config = self.definition.config({**winner.params, "train.seed": seed})
        plan = Plan(
            name=f"final of trial {winner.number}: seed {seed}",
            kind="final",
            parent=self.run.run_id,
            key=final_key(self.key, winner.number, seed),
            tags={"dftrack.study": self.study.name, "dftrack.trial": str(winner.number), "dftrack.seed": str(seed)},
            data_digest=self._digest(),
        )
        for event in run_experiment(config, self.request.store, plan=plan, stop=self.stop):
            if not isinstance(event, Result):
                self.watch(event)

    def finals(self) -> list[FinalTraining]:
        """The final trainings of the winner that are finished, by seed."""
        ranked = self.ranked()
        if not ranked:
            return []
        found = []
        for seed in unused_seeds(self.definition):
            key = final_key(self.key, ranked[0].number, seed)
            for run in self.tracker.runs(tags={"dftrack.key": key}, status="FINISHED"):
                tests: Mapping[str, Mapping[str, float | None]] = {
                    split: {
                        name.removeprefix(f"{split}/"): value
                        for name, value in run.metrics.items()
                        if name.startswith(f"{split}/") and "always_fake" not in name
                    }
                    for split in self.data.test_splits
                }
                found.append(FinalTraining(seed, run.run_id, run.metrics[self.definition.metric], tests))
        return found

    def failed_finals(self) -> list[FailedFinal]:
        """The final trainings of the winner that failed, by seed."""
        ranked = self.ranked()
        return [
            FailedFinal(seed, run.run_id, run.tags.get(REASON_TAG, "no reason was recorded"))
            for seed in (unused_seeds(self.definition) if ranked else ())
            for run in self.tracker.runs(
                tags={"dftrack.key": final_key(self.key, ranked[0].number, seed)}, status="FAILED"
            )
        ]

    def summary(self) -> StudySummary:
        """How the study stands, as plain values."""
        records = self._records()
        runs = self.tracker.runs(parent=self.run.run_id)
        of_trials = {int(run.tags["dftrack.trial"]): run for run in runs if run.tags.get("dftrack.kind") == "trial"}
        finals = self.finals()
        openers = openings(self.tracker, self.data.digest)
        baseline = self.definition.baseline()
        return StudySummary(
            name=self.study.name,
            definition=self.definition,
            records=records,
            trials=self._total(),
            data_digest=self.data.digest,
            finals=finals,
            failed_finals=self.failed_finals(),
            baseline=next((r.value for r in records if r.params == baseline and r.status == "complete"), None),
            seconds={number: self._seconds(run) for number, run in of_trials.items()},
            final_seconds=sum(self._seconds(self.tracker.find_run(final.run_id)) for final in finals) or None,
            run_ids={number: run.run_id for number, run in of_trials.items()},
            tests_opened_before=sum(parent != self.run.run_id for parent, _ in openers),
            tests_opened_after=len(openers),
            started=min((r.started for r in records if r.started), default=None),
            ended=max((r.ended for r in records if r.ended), default=None)
            if all(r.is_ended for r in records)
            else None,
            command=self.request.command or f"dftrack study --study {self.definition.name}",
        )

    def _seconds(self, run: RunRecord) -> float:
        """Seconds that the epochs of a run took; asked once for a run that has ended for good."""
        if run.run_id in self._times:
            return self._times[run.run_id]
        taken = sum(seconds for _, seconds in self.tracker.metric_history(run.run_id, "time/epoch_seconds"))
        if run.end in ("complete", "pruned", "failed"):
            self._times[run.run_id] = taken
        return taken

    def write_report(self, check: Callable[[], None] | None = None) -> None:
        """Write everything that the parent run shows anew: pictures, tables, report, numbers.

        check: asked between two pictures, by default whether this process shall stop.
        """
        summary = self.summary()
        pictures = plots(self.study, self.definition, check=check or self.stop.check)
        for path, content in pictures.items():
            self.run.log_bytes(content, path)
        self.run.log_table(trials_table(summary), "study/trials.csv")
        self.run.log_text(markdown(summary), "study/report.md")
        self.run.log_text(html(summary, pictures), "study/report.html")
        spent, ranked = cost(summary), self.ranked()
        self.run.log_metrics(
            {
                "study/best": ranked[0].value if ranked else None,
                "study/baseline": summary.baseline,
                "study/trials_ended": sum(record.is_ended for record in summary.records),
                "study/epochs": spent.epochs,
                "study/epochs_full_search": spent.full_epochs,
                "study/tests_opened": summary.tests_opened_after,
                **final_metrics(summary.finals),
            }
        )


def unused_seeds(definition: StudyDefinition) -> list[int]:
    """Seeds that no trial was trained with: those after the study's own; after the last one comes 0."""
    own = definition.config({}).train.seed
    return [(own + 1 + index) % SEEDS for index in range(definition.final_seeds)]


def openings(tracker: Tracker, data_digest: str) -> set[tuple[str, str]]:
    """Who has opened the test splits of these data: (run id, "") or, of a study, (its run id, number of a winner).

    The trainings of one winner count as one; another winner of the same study, found later, is another opening.
    """
    runs = tracker.runs(tags={"dftrack.data_digest": data_digest})
    return {(run.parent or run.run_id, run.tags.get("dftrack.trial", "")) for run in runs if TESTS_OPENED in run.tags}


def final_metrics(finals: Sequence[FinalTraining]) -> dict[str, float | None]:
    """Mean and standard deviation of the final trainings: on val, and of each metric on each test split."""
    found: dict[str, float | None] = {}
    columns = {"final/val": [final.val for final in finals]}
    for split, metrics in finals[0].tests.items() if finals else ():
        for name in metrics:
            values = [value for final in finals if (value := final.tests[split].get(name)) is not None]
            columns[f"final/{split}/{name}"] = values
    for name, values in columns.items():
        if known := spread(values):
            found |= {f"{name}/mean": known.mean, f"{name}/sd": known.sd}
    return found


def _require_device(train: TrainConfig) -> None:
    """Raise DeviceError, before any work, if the device or the precision asked for is not to be had here."""
    device = pick_device(train.device)
    if train.precision != "auto":  # to answer that, a card would be occupied; it is never refused
        pick_precision(train.precision, device)


def _study_key(study: OpenStudy) -> str:
    """A name for the study that no other study of any storage has; made once."""
    backend = study.storage.backend
    known = backend.get_study_user_attrs(study.study_id).get(KEY)
    if known is None:
        known = f"{study.name}-{uuid.uuid4().hex[:8]}"
        backend.set_study_user_attr(study.study_id, KEY, known)
    return str(known)


def _at_size(definition: StudyDefinition, size: int) -> StudyDefinition:
    """The definition with the picture size that the data came at, so that a change of it is seen."""
    return definition if "data.image_size" in definition.space else definition.revised({"data.image_size": size})
