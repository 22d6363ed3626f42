"""Stand-ins for training: curves made of the parameters, with every accident there is; and a study to run them."""

import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from dftrack.errors import BusyExperiment, DataError, DeviceError, Interrupted
from dftrack.study.definition import StudyDefinition
from dftrack.study.file import parse_study
from dftrack.study.fingerprint import Fingerprint, fingerprint
from dftrack.study.jobs import Job, Outcome
from dftrack.study.opening import OpenStudy, open_study
from dftrack.study.storage import Storage
from dftrack.study.worker import Emit, Work

if TYPE_CHECKING:  # workers import this file, too
    import pytest

STUDY = """
name = "stand-in"
trials = 30
enqueue = "baseline"
[base]
train.epochs = 10
[space]
train.learning_rate = { low = 1e-5, high = 1e-2, log = true }
model.dropout = { low = 0.0, high = 0.7 }
model.kernel_size = [3, 5, 7]
[pruning]
rungs = [1, 3, 10]
"""


def definition(text: str = STUDY) -> StudyDefinition:
    return parse_study(text)


def mark(study: StudyDefinition, digest: str = "d" * 32) -> Fingerprint:
    return fingerprint(study, digest)


def opened(place: str | Path, study: StudyDefinition, **options: object) -> OpenStudy:
    return open_study(Storage(place, patience=20), study, mark(study), **options)  # type: ignore[arg-type]


def curve(params: dict[str, object], epoch: int) -> float:
    """A value that rises with the epoch, faster and higher near lr 1e-3, dropout 0.4, kernel 5; deterministic."""
    rate = float(str(params.get("train.learning_rate", 1e-4)))
    distance = abs(math.log10(rate) + 3) / 2 + abs(float(str(params.get("model.dropout", 0.5))) - 0.4)
    distance += abs(int(str(params.get("model.kernel_size", 3))) - 5) / 20
    return 0.95 - 0.3 * distance - 0.2 / (epoch + 1)


def train(job: Job, emit: Emit, _stop: object = None, *, notes: str = "", seconds: float = 0.0) -> Outcome:
    """Report the curve. `notes`: a folder in which each (trial, epoch) leaves a line, to count what was trained."""
    for epoch in range(job.start_epoch + 1, job.stop_epoch + 1):
        time.sleep(seconds)
        if notes:
            with open(Path(notes) / f"{job.trial}.txt", "a") as file:
                file.write(f"{epoch} {os.getpid()}\n")
        emit(epoch, curve(job.params, epoch))
    return Outcome("paused")


def train_badly(job: Job, emit: Emit, _stop: object = None, *, notes: str = "") -> Outcome:
    """Every accident, by the number of the trial."""
    if job.trial == 1:
        raise MemoryError
    if job.trial == 2:
        emit(1, math.nan)
    if job.trial == 3:
        raise RuntimeError("CUDA error: out of memory")
    if job.trial == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.trial == 5:
        sys.exit(3)
    if job.trial == 6:
        return Outcome("paused")  # without a value
    if job.trial == 7:
        return Outcome("complete", value=math.inf)
    return train(job, emit, notes=notes)


class Flaky:
    """A storage's backend that fails now and then, as PostgreSQL does while it is started again."""

    def __init__(self, real: BaseStorage) -> None:
        self.real, self.failures, self.answers = real, 0, 0  # answers: how many it gives before it fails

    def __getattr__(self, name: str) -> Any:
        def ask(*words: Any, **options: Any) -> Any:
            if self.answers:
                self.answers -= 1
            elif self.failures:
                self.failures -= 1
                raise StorageInternalError("the server closed the connection unexpectedly")
            return getattr(self.real, name)(*words, **options)

        return ask


def make_flaky(storage: Storage, failures: int, monkeypatch: "pytest.MonkeyPatch", patience: float = 20) -> Flaky:
    """From now on the storage fails this often before it answers again. patience: seconds."""
    backend = Flaky(storage.backend)
    monkeypatch.setattr(storage, "backend", backend)
    monkeypatch.setattr(storage, "patience", patience)
    monkeypatch.setattr("dftrack.study.storage.time.sleep", lambda seconds: None)
    backend.failures = failures
    return backend


def train_without_data(_job: Job, _emit: Emit, _stop: object = None) -> Outcome:
    """The folder of the pictures was unmounted."""
    raise DataError("there is no folder 'faces'", "mount it")


def train_without_device(_job: Job, _emit: Emit, _stop: object = None) -> Outcome:
    """The card is gone."""
    raise DeviceError("train.device is cuda, but PyTorch sees no CUDA card", "use --device cpu")


def train_on_a_card_that_breaks(job: Job, emit: Emit, _stop: object = None, *, notes: str) -> Outcome:
    """In the first process, from the third trial on, nothing works on the card."""
    broken = Path(notes) / "broken.txt"
    if job.trial >= 2 and (not broken.exists() or broken.read_text() == str(os.getpid())):
        broken.write_text(str(os.getpid()))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return train(job, emit)


def train_what_another_holds(job: Job, emit: Emit, _stop: object = None, *, notes: str) -> Outcome:
    """Trial 1 is in the hands of a process that does not let go until it was asked for twice."""
    asked = Path(notes) / "asked.txt"
    if job.trial == 1 and (not asked.exists() or len(asked.read_text()) < 2):
        with open(asked, "a") as file:
            file.write("!")
        raise BusyExperiment("this very experiment is being trained by another process")
    return train(job, emit)


def work(study: OpenStudy, design: StudyDefinition, folder: Path, **options: object) -> Work:
    """Work for stand-in workers; `options` go to `train`."""
    return Work(
        url=study.storage.url,
        study=study.name,
        definition=design,
        lives=folder / "workers",
        train=partial(train, **options),  # type: ignore[arg-type]
        patience=30.0,
    )


def die(_job: Job, _emit: Emit, _stop: object = None) -> Outcome:
    """A training that takes its process with it, whatever the trial."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome("paused")


def main(place: str, folder: str, workers: str, seconds: str) -> None:
    """`python standins.py`: the command of a user, with stand-ins, in a process that a test may kill."""
    from dftrack.study.workers import run_workers

    design = definition()
    study = opened(place, design)
    notes = Path(folder) / "notes"
    notes.mkdir(parents=True, exist_ok=True)
    job = work(study, design, Path(folder), notes=str(notes), seconds=float(seconds))
    try:
        run_workers(job, int(workers), gpus=())
    except Interrupted as request:
        sys.exit(request.exit_code)


if __name__ == "__main__":
    from standins import main as importable  # so that the workers find the functions under this name

    importable(*sys.argv[1:])
