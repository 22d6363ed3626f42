"""One worker: a process that takes jobs from the queue until there are none, or until it is told to stop."""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dftrack.errors import (
    EXIT_TERMINATED,
    BusyExperiment,
    DataError,
    DeviceError,
    DftrackError,
    Interrupted,
    StoreError,
)
from dftrack.runtime import StopRequests, catch_stop_requests, end_quickly
from dftrack.study.definition import StudyDefinition
from dftrack.study.events import Event, Finished, Idle, Left, Progress, Refused, Started, TrialEnded
from dftrack.study.jobs import Done, Ended, Job, Outcome, Queue, Superseded, Wait
from dftrack.study.liveness import GRACE, Heart, Life, Watch
from dftrack.study.opening import reopen
from dftrack.study.storage import PATIENCE, Storage

Emit = Callable[[int, float], None]  # epoch, value: to be called after each epoch; raises what ends the training
Train = Callable[[Job, Emit, StopRequests], Outcome]  # looks at the requests wherever stopping is safe
OnEnded = Callable[[Ended], None]

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between two looks for work
BUSY_SECONDS = 15.0  # that a trial is left alone whose former worker has not let go of its checkpoints yet
EXIT_REFUSED = 70  # of a worker that could not go on and has said why
EXIT_BROKEN = 71  # of a worker whose card answers nothing any more: a fresh process takes up its trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker needs to know. Travels to another process: callables must be importable functions, or partials."""

    url: str  # of the storage, with the password
    study: str  # its name in the storage
    definition: StudyDefinition
    lives: Path  # folder for the workers' locked files
    train: Train
    on_ended: OnEnded | None = None  # called by the worker that ends a trial, after the storage knows
    patience: float = PATIENCE  # seconds
    grace: float = GRACE  # seconds
    busy: float = BUSY_SECONDS


def run_worker(work: Work, index: int, pipe: Connection) -> None:
    """The main function of a worker process.

    pipe: events go up; down comes one word, "stop", or the end of file when the parent has died. Both end the work at
    the next safe point, as SIGTERM does: the trial is released and can be taken up again.
    """
    end_quickly()
    os.setpgrp()  # Ctrl-C is the parent's business: it tells us once
    send = _Sender(pipe)
    with catch_stop_requests() as requests:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which our parent held back while we started
        threading.Thread(target=_obey, args=(pipe, requests), name="obey", daemon=True).start()
        life: Life | None = None
        try:
            storage = Storage(work.url, patience=work.patience)
            life = Life(work.lives)
            queue = Queue(
                reopen(storage, work.study),
                work.definition,
                life.worker,
                watch=Watch(work.grace),
                on_ended=lambda ended: _pass_on(ended, work, index, send),
            )
            _work(queue, work, index, send, requests)
            life.end()
        except Interrupted:
            if life:
                life.end()
            raise SystemExit(EXIT_TERMINATED) from None
        except KeyboardInterrupt:  # a second request: no time to let go in good order
            raise SystemExit(EXIT_TERMINATED) from None
        except DftrackError as error:
            send(Refused(index, error))
            raise SystemExit(EXIT_REFUSED) from error


def _work(queue: Queue, work: Work, index: int, send: Callable[[Event], None], requests: StopRequests) -> None:
    pause = FIRST_WAIT
    while True:
        requests.check()
        job = queue.next_job()
        if isinstance(job, Done):
            send(Finished(index, job.reason))
            return
        if isinstance(job, Wait):
            if pause == FIRST_WAIT:
                send(Idle(index))
            threading.Event().wait(pause)
            pause = min(LONGEST_WAIT, pause * 1.5)
            continue
        pause = FIRST_WAIT
        send(Started(index, job.trial, job.params, job.start_epoch, job.stop_epoch, job.attempt))
        how, reason = _do(queue, job, work, index, send, requests)
        send(Left(index, job.trial, how, reason))


def _do(
    queue: Queue, job: Job, work: Work, index: int, send: Callable[[Event], None], requests: StopRequests
) -> tuple[str, str]:
    """Carry out one job and give it back. Returns how it ended and why."""

    def emit(epoch: int, value: float) -> None:
        queue.report(job, epoch, value)
        send(Progress(index, job.trial, epoch, value))
        requests.check()

    heart = Heart(lambda: queue.beat(job))
    heart.start()
    stop: BaseException | None = None
    try:
        requests.check()
        outcome = work.train(job, emit, requests)
    except Superseded as news:
        return "superseded", str(news)
    except (Interrupted, KeyboardInterrupt) as request:
        stop, outcome = request, Outcome("released", reason="interrupted")
    except BusyExperiment as error:  # its former worker was silent, not dead, and has yet to hear of this one
        outcome = Outcome("released", reason=error.message)
        queue.leave_alone(job.trial, work.busy)
    except (StoreError, DataError, DeviceError) as error:  # not the trial's fault: every other would fail by it, too
        stop, outcome = error, Outcome("released", reason=error.message)
    except BaseException as error:  # a trial's failure, out of memory included, is not the study's
        if is_broken(error):
            raise SystemExit(EXIT_BROKEN) from error
        text = f"{type(error).__name__}: {error}".strip().rstrip(":")
        outcome = Outcome("failed", reason=text, traceback="".join(traceback.format_exception(error)))
    finally:
        heart.stop()
    try:
        queue.finish(job, outcome)
    except Superseded as news:
        return "superseded", str(news)
    if stop is not None:
        send(Left(index, job.trial, outcome.kind, outcome.reason))
        raise stop
    return outcome.kind, outcome.reason


def is_broken(error: BaseException) -> bool:
    """Whether nothing on the card works in this process any more: after most of CUDA's errors it is so."""
    return "CUDA error" in str(error) and "out of memory" not in str(error)


class _Sender:
    """Sends events to the parent; a parent that is gone hears nothing, and nothing happens."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, event: Event) -> None:
        with suppress(OSError):  # broken pipe: `_obey` has noticed as well
            self._pipe.send(event)


def _obey(pipe: Connection, requests: StopRequests) -> None:
    """Note the parent's word, or its death, as a request to stop.

    Not as a signal: where SIGTERM reached the whole group (systemd, Slurm) it would be the second one, and cut short
    the saving that the first one asked for.
    """
    with suppress(EOFError, OSError):
        pipe.recv()
    requests.exit_code = requests.exit_code or EXIT_TERMINATED


def _pass_on(ended: Ended, work: Work, index: int, send: Callable[[Event], None]) -> None:
    if work.on_ended:
        work.on_ended(ended)
    send(TrialEnded(index, ended.trial, ended.status, ended.value, ended.reason))
