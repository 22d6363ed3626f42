"""Several workers on this machine: started, watched, replaced when they die, stopped at a safe point."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil

from dftrack.data.parallel import cores
from dftrack.errors import TrainingError, require
from dftrack.runtime import THREAD_VARIABLES, catch_stop_requests
from dftrack.study.events import Event, Finished, Progress, Refused, WorkerDied
from dftrack.study.worker import Work, run_worker

MOST_ON_A_PROCESSOR = 4  # workers, unless more are asked for: the sampler learns from fewer trials the more there are
MEMORY_EACH = 4 << 30  # bytes for a worker to be started unasked; one takes 2.7 GB at 224 px in fp32
STOP_SECONDS = 120.0  # a worker that has not come to a safe point by then is killed; its trial is taken up again later
MOST_DEATHS_IN_A_ROW = 8  # per worker, without an epoch done by anybody
# Where Linux says how much memory a container may have, by the second and the first version of its control groups.
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(slots=True)
class _Crew:
    """The workers that are alive now."""

    work: Work
    environments: list[dict[str, str]]
    pipes: dict[Connection, int] = field(default_factory=dict)  # to each worker
    processes: dict[int, SpawnProcess] = field(default_factory=dict)

    def start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_worker, args=(self.work, index, theirs), name=f"worker-{index}")
        with _environment(self.environments[index]), _no_interrupt():  # before the child imports what reads it
            process.start()
        theirs.close()  # so that the death of the worker is the end of the file
        self.pipes[ours] = index
        self.processes[index] = process

    def leave(self, pipe: Connection) -> tuple[int, int]:
        """Bury the worker behind a pipe that has ended. Returns its index and its exit code."""
        index = self.pipes.pop(pipe)
        pipe.close()
        process = self.processes.pop(index)
        process.join()
        assert process.exitcode is not None
        return index, process.exitcode


def run_workers(
    work: Work,
    count: int,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    gpus: tuple[str, ...] | None = None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Let `count` processes work until the study is done. Returns why there is nothing left to do.

    check: asked all the time; what it raises ends the work as a request does.
    gpus: names for CUDA_VISIBLE_DEVICES that the workers get in turn; None: all of this machine; (): a CPU shared out.
    A worker that dies is replaced. Ctrl-C or SIGTERM stops all of them at a safe point, a second one kills them (their
    trials can be taken up again either way); then Interrupted is raised. If this process is killed, they stop as well.
    Raises TrainingError if workers die one after the other without an epoch done, and what a worker cannot go on by:
    StoreError, DataError or DeviceError.
    """
    require(count >= 1, f"--workers must be at least 1, got {count}")
    crew = _Crew(work, environments(count, find_gpus() if gpus is None else gpus))
    with catch_stop_requests() as requests:
        try:
            for index in range(count):
                crew.start(index)

            def both() -> None:
                check()
                requests.check()

            reason = _watch(crew, count, on_event, both)
        except BaseException:
            _stop(crew, on_event)
            raise
    requests.check()  # one that came after the last look: whoever called is not to begin anything new
    return reason


def _watch(crew: _Crew, count: int, on_event: Callable[[Event], None], check: Callable[[], None]) -> str:
    deaths = 0  # since the last epoch that somebody finished
    reason = ""
    while crew.pipes:
        check()
        for pipe in wait(list(crew.pipes), timeout=0.2):
            assert isinstance(pipe, Connection)
            event = _receive(pipe)
            if event is not None:
                on_event(event)
                deaths = 0 if isinstance(event, Progress) else deaths
                if isinstance(event, Finished):
                    reason = event.reason
                elif isinstance(event, Refused):
                    raise event.error
                continue
            index, exit_code = crew.leave(pipe)
            if exit_code == 0:
                continue
            deaths += 1
            on_event(WorkerDied(index, exit_code))
            if deaths > MOST_DEATHS_IN_A_ROW * count:
                hint = "out of memory? try fewer --workers; the study can go on with the same command"
                raise TrainingError(f"{deaths} workers died one after the other (exit code {exit_code})", hint)
            crew.start(index)
    return reason


def _receive(pipe: Connection) -> Event | None:
    """The next event; None if the worker has ended, or was killed in the middle of a word."""
    try:
        event: Event = pipe.recv()
    except (EOFError, OSError):
        return None
    return event


def _stop(crew: _Crew, on_event: Callable[[Event], None]) -> None:
    """Tell all workers to stop, and wait for their safe points; kill those that find none."""
    for pipe in crew.pipes:
        with suppress(OSError):
            pipe.send("stop")
    deadline = time.monotonic() + STOP_SECONDS
    try:
        with catch_stop_requests() as again:
            while crew.pipes and time.monotonic() < deadline and again.exit_code is None:
                for ready in wait(list(crew.pipes), timeout=0.2):
                    assert isinstance(ready, Connection)
                    if (event := _receive(ready)) is None:
                        crew.leave(ready)
                    else:
                        on_event(event)
    finally:
        for process in crew.processes.values():
            process.kill()
        for pipe in list(crew.pipes):
            crew.leave(pipe)


def how_many_pay(device: str) -> int:
    """How many workers this machine is best used by: one for each GPU, a few for a processor.

    The threads of one training wait for each other many times a step, so two trainings of one thread do more in an hour
    than one of two: see docs/performance.md. Who has set how many threads a process may have is not second-guessed.
    """
    if device == "cuda":
        return max(1, len(find_gpus()))
    if any(os.environ.get(name) for name in THREAD_VARIABLES):
        return 1
    return max(1, min(MOST_ON_A_PROCESSOR, cores(), _memory() // MEMORY_EACH))


def _memory() -> int:
    """Bytes of memory that this machine has left, or that the container has which this process is in."""
    found = [psutil.virtual_memory().available]
    for limit in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(limit.read_text()))
    return min(found)


def environments(count: int, gpus: tuple[str, ...], processors: int | None = None) -> list[dict[str, str]]:
    """What each worker's environment adds: a GPU in turn, and its share of the processor's threads (at least one)."""
    threads = str(max(1, (processors or cores()) // count))
    shared = {name: os.environ.get(name, threads) for name in THREAD_VARIABLES}
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}) for index in range(count)]


def find_gpus() -> tuple[str, ...]:
    """The CUDA devices this process may use, asked of the driver: PyTorch would occupy one to answer."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(answer.stdout.split())


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits; what is started meanwhile has it held back until it is ready to hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
