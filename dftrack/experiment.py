"""One experiment, from settings to a recorded result. Read `run_experiment` first: the rest serves it."""

import dataclasses
import hashlib
import json
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dftrack.config import INCIDENTAL, Config, Value, flatten
from dftrack.data.batches import Batches
from dftrack.data.cache import DataSet, open_data
from dftrack.errors import Abandoned, BusyExperiment, DataError, DftrackError, Interrupted, StoreError, TrainingError
from dftrack.files import write_text
from dftrack.learning.checkpoint import Checkpoints
from dftrack.learning.model import build_model
from dftrack.learning.training import Epoch, NonFiniteError, State, Step, fit, let_go, new_state, set_precision
from dftrack.recording import Final, Trained, evaluate_and_record, record_start
from dftrack.runtime import StopRequests, pick_device, pick_precision
from dftrack.tracking import Run, Tracker, open_tracker


@dataclass(frozen=True, slots=True)
class Stage:
    """Some preparation is going on: `done` of `total` pictures, files or steps."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Started:
    """The run exists in the tracker and training is about to begin, or to go on from `epoch` and `step`."""

    run_id: str
    config: Config  # with nothing left open: the image size is a number
    device: str
    precision: str
    data: DataSet
    epoch: int  # from 1
    step: int  # steps of it already done


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know, though nothing ends by it."""

    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """How an experiment ended. `end` is "complete", "paused" or "pruned"."""

    run_id: str
    end: str
    final: Final | None  # None unless complete
    history: tuple[Mapping[str, float | None], ...]  # one entry an epoch


Event = Stage | Started | Notice | Step | Epoch | Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What kind of experiment it is and what becomes of it; the settings say what is computed."""

    name: str = "baseline"  # the run's name in MLflow
    kind: str = "baseline"  # "baseline", "trial" or "final"
    parent: str | None = None  # run id of the study
    key: str = ""  # names this very experiment; "": the one with these settings that was not finished, or a new one
    tags: Mapping[str, str] = field(default_factory=dict)
    data_digest: str = ""  # of the only data that will do: others would not be comparable; "": any
    open_tests: bool = True  # score the test splits at the end
    pictures: bool = True  # record curves, confusion matrices and explanations, not only numbers
    keep_model: bool = True  # record the trained model
    keep_checkpoints: bool = False  # at the end, too: whoever asks calls `forget` when nothing can want them any more
    go_on: Callable[[Epoch], str] = lambda epoch: ""  # after an epoch: "" to go on, else "paused" or "pruned"


def run_experiment(
    config: Config,
    store: Path,
    *,
    plan: Plan | None = None,
    stop: StopRequests | None = None,
    watch: Callable[[Stage], None] = lambda stage: None,
) -> Iterator[Event]:
    """Train the model `config` describes, judge it, record everything; the last event is the Result.

    If the same experiment was interrupted before (kill, power cut, Ctrl-C), it goes on from its last checkpoint in the
    same run, and ends as it would have ended undisturbed. Raises DftrackError when it cannot be done (the run is then
    FAILED, with the reason) and Interrupted when `stop` asked for it (KILLED, can go on). `watch` is told how far
    preparations are while they go on.
    """
    plan, stop, store = plan or Plan(), stop or StopRequests(), store.expanduser()
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    tracker = open_tracker(store, known=plan.parent is not None)  # the study has written there

    def prepare(what: str, done: int, total: int) -> None:
        stop.check()
        watch(Stage(what, done, total))

    data = open_data(config.data, store, prepare)
    if plan.data_digest not in ("", data.digest):
        raise DataError(
            f"the data have changed: {data.source} is {data.digest} now, the study began with {plan.data_digest}",
            "bring them back as they were, or start a fresh study with --new",
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=data.image_size))
    name = plan.key or _identity(config, data, device, precision)
    with _alone(store / "checkpoints" / name) as folder:
        run = _start_run(tracker, folder, config, data, plan, {"run.device": device, "run.precision": precision})
        with _closing(run, folder):
            record_start(run, data, opened=("train", "val", *(data.test_splits if plan.open_tests else ())))
            prepare("getting ready to train", 0, 1)  # some seconds the first time on a machine: see learning/fused.py
            training = Training(config, data, device, precision, folder)
            prepare("getting ready to train", 1, 1)
            yield Started(
                run.run_id, config, device, training.state.precision, data, training.state.epoch, training.state.step
            )
            if plan.pictures and data.review is not None:
                for text in data.review.notices():
                    yield Notice(text)
            final = None
            end = yield from training.go(run, plan, stop)
            if not end:
                yield Stage("judging the model", 0, 0)
                stop.check()
                let_go(training.state)
                final = evaluate_and_record(
                    run,
                    Trained(training.state.model, config, data, training.state.history, device),
                    tests=plan.open_tests,
                    pictures=plan.pictures,
                    keep_model=plan.keep_model,
                    progress=prepare,
                )
            run.finish("KILLED" if end else "FINISHED", end=end or "complete")
        if end != "paused" and not plan.keep_checkpoints:
            forget(store, name)
    yield Result(run.run_id, end or "complete", final, tuple(training.state.history))


def forget(store: Path, name: str) -> None:
    """Remove what an experiment that has ended kept to go on: its checkpoints and the key of its run."""
    folder = store / "checkpoints" / name
    Checkpoints(folder, every_seconds=0).remove()
    (folder / "run.json").unlink(missing_ok=True)


class Training:
    """A training with its checkpoints: goes on from the last one, falls back to fp32 once."""

    def __init__(self, config: Config, data: DataSet, device: str, precision: str, folder: Path) -> None:
        self._config, self._data, self._device = config, data, device
        every = config.train.checkpoint_seconds
        self.checkpoints = Checkpoints(folder, every_seconds=every, behind=device != "cpu")
        self.state = self._restored(precision)

    def go(self, run: Run, plan: Plan, stop: StopRequests) -> Generator[Event, None, str]:
        """Train to the end, yielding events. Returns "" when all epochs are done, or plan.go_on's word."""
        try:
            return (yield from self._train(run, plan, stop))
        except NonFiniteError as error:
            if self.state.precision == "fp32":
                raise
            yield Notice(f"{error.message}: going on in fp32 from the last good state")
            run.set_tags({"dftrack.fp32_retry": error.message})
        self.state = self._restored("fp32")
        set_precision(self.state, "fp32")
        run.forget_epochs(self.state.epoch)
        return (yield from self._train(run, plan, stop))

    def _train(self, run: Run, plan: Plan, stop: StopRequests) -> Generator[Event, None, str]:
        train = self._config.train
        batches = Batches(
            self._data.splits["train"], batch_size=train.batch_size, seed=train.seed, augmentation=train.augmentation,
            device=self._device,
        )  # fmt: skip
        with self.checkpoints:
            for event in fit(self.state, batches, self._data.splits["val"], train):
                if isinstance(event, Epoch):
                    run.log_epoch(event.number, event.metrics)
                yield event
                try:
                    if isinstance(event, Epoch) and (end := plan.go_on(event)):
                        if end == "paused":
                            self.checkpoints.save(self.state)
                        return end
                    stop.check()
                except Interrupted:
                    self.checkpoints.save(self.state)
                    raise
                self.checkpoints.save_if_due(self.state)
        return ""

    def _restored(self, precision: str) -> State:
        torch.manual_seed(self._config.train.seed)
        model = build_model(self._config.model, self._data.image_size)
        images = len(self._data.splits["train"].labels)
        state = new_state(model, self._config.train, images=images, precision=precision, device=self._device)
        self.checkpoints.restore(state)
        return state


def _identity(config: Config, data: DataSet, device: str, precision: str) -> str:
    """Names what is computed: the same name means the same numbers. 16 hex characters.

    The thread count is part of it (sums are split among threads), and so are torch, Numba and the code that computes.
    """
    settings = {
        name: value for name, value in flatten(config).items() if name not in INCIDENTAL and name != "data.source"
    }
    libraries = [torch.__version__, metadata.version("numba")]
    words = [settings, data.digest, device, precision, torch.get_num_threads(), libraries, _code_digest()]
    return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _code_digest() -> str:
    """Names the code that decides numbers: a change in it makes another experiment. 16 hex characters."""
    digest = hashlib.sha256()
    for package in ("dftrack.learning", "dftrack.data"):
        for file in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Hold the folder for this process alone; its lock falls with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=1.0)  # seconds: somebody may just be looking whether it is held
        lock.acquire()
    except Timeout as error:
        raise BusyExperiment(
            "this very experiment (same settings, data and seed) is being trained by another process",
            "wait for it, or change a setting, for example --seed",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot use the folder {folder}: {error.strerror}") from error
    try:
        yield folder
    finally:
        lock.release()


def _start_run(
    tracker: Tracker, folder: Path, config: Config, data: DataSet, plan: Plan, resolved: Mapping[str, Value]
) -> Run:
    """The run this experiment was begun in, or a new one. Its key is on disk before the tracker hears of it."""
    note = folder / "run.json"
    if not note.exists():
        write_text(note, json.dumps({"key": plan.key or uuid.uuid4().hex}))
    return tracker.start_run(
        plan.name,
        key=json.loads(note.read_text())["key"],
        settings={**flatten(config), **resolved, "run.threads": torch.get_num_threads()},
        tags={"dftrack.kind": plan.kind, "dftrack.data_digest": data.digest, **plan.tags},
        parent=plan.parent,
    )


@contextmanager
def _closing(run: Run, folder: Path) -> Iterator[None]:
    """Close the run as what it is if the block does not end well; nothing stays RUNNING, nothing fails unexplained."""
    try:
        yield
    except Abandoned:
        raise
    except (Interrupted, KeyboardInterrupt, GeneratorExit) as error:
        run.finish("KILLED", end="interrupted", reason=str(error) or "stopped on request")
        raise
    except StoreError as error:  # a full disk, a server that is away: it passes, and nothing may be lost by it
        with suppress(StoreError):
            run.finish("KILLED", end="interrupted", reason=error.message)
        raise
    except BaseException as error:
        failure = _explained(error)
        run.finish("FAILED", end="failed", reason=str(failure), trace=traceback.format_exc())
        forget(folder.parents[1], folder.name)  # the next attempt is a run of its own
        if failure is error:
            raise
        raise failure from error


def _explained(error: BaseException) -> BaseException:
    """Exhausted memory as the user's error it is; anything else as it came."""
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if exhausted and not isinstance(error, DftrackError):
        return TrainingError(
            f"memory is exhausted: {str(error).splitlines()[0] if str(error) else 'no more to be had'}",
            "a smaller train.batch_size or data.image_size needs less",
        )
    return error
