"""Which workers are alive: by a lock that the system takes from the dead; across machines, by a counter that stops.

On one machine each worker holds a lock on a file of its own for as long as it lives; `kill -9` frees it at once, and
no clock is asked. For a worker of another machine the observer watches the counter that the worker counts up in the
storage: if it stood still for `GRACE` seconds of the observer's own monotonic clock, the worker is taken for dead.
So it is on this machine, too, where the file system knows no such locks: what a killed worker left looks held for ever.
Clocks of different machines are never compared.
"""

import errno
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from dftrack.study.records import Record

BEAT_SECONDS = 5.0  # between two signs of life
GRACE = 60.0  # seconds without one, after which a worker of another machine is taken for dead
FORGOTTEN = 7 * 86400.0  # seconds
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system answers that has none
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """Who claims trials."""

    name: str  # unique for ever
    machine: str
    life: Path  # the file it holds locked


class Life:
    """This process's life as a worker: a locked file, freed by its end however it ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.alive"):  # of the killed, long forgotten
            with suppress(FileNotFoundError):  # it ended just now
                if time.time() - old.stat().st_mtime > FORGOTTEN and is_free(old):
                    old.unlink(missing_ok=True)
        machine = this_machine()
        name = f"{machine.split('/')[0]}-{secrets.token_hex(6)}"
        self.worker = Worker(name, machine, (folder / f"{name}.alive").absolute())
        self._lock = filelock.FileLock(self.worker.life, timeout=1, thread_local=False)  # s: `is_free` may just look
        self._lock.acquire()

    def end(self) -> None:
        """End it in good order: nothing is claimed any more."""
        self._lock.release()
        self.worker.life.unlink(missing_ok=True)


class Watch:
    """Judges other workers. Its memory is its own: a new observer waits a whole `grace` before it judges a far one."""

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._machine = this_machine()
        self._seen: dict[tuple[int, int], tuple[str, float]] = {}  # (trial, token) -> beat, since when (monotonic)

    def is_dead(self, record: Record) -> bool:
        """Whether the owner of a claimed trial is known to be dead."""
        claim = record.claim
        assert claim is not None
        assert claim.state == "claimed"
        life = Path(claim.life)
        if claim.machine == self._machine and life.exists() and (held := _is_held(life)) is not None:
            return not held
        beat = record.beat if record.beat.startswith(f"{claim.token}:") else ""
        now = time.monotonic()
        before, since = self._seen.get((record.number, claim.token), (None, now))
        if beat != before:
            since = now
        self._seen[record.number, claim.token] = (beat, since)
        return now - since > self._grace

    def silence(self, record: Record) -> float:
        """Seconds since `is_dead` saw a new sign of life of a claimed trial's owner: 0 if its lock is held.

        Of a worker on another machine it is 0 at the first look, too: only looking again can tell.
        """
        claim = record.claim
        assert claim is not None
        life = Path(claim.life)
        if claim.machine == self._machine and _is_held(life):
            return 0.0
        now = time.monotonic()
        _, since = self._seen.get((record.number, claim.token), ("", now))
        return now - since


class Heart(threading.Thread):
    """Counts up a sign of life while a trial is worked on. No failing storage stops it."""

    def __init__(self, beat: Callable[[], None], seconds: float = BEAT_SECONDS) -> None:
        super().__init__(name="heart", daemon=True)
        self._beat = beat
        self._seconds = seconds
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._beat()
            except Exception as error:  # a locked or silent database: the next beat may get through
                _log.debug("a sign of life was lost: %s", error)

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=1)  # a beat that waits for a locked database must not hold up the work


def is_free(life: Path) -> bool:
    """Whether nobody holds the file: its worker is dead. A file that is not there is free; nothing is ever made.

    One that cannot be opened (another user's) or locked at all counts as held: nobody is taken for dead by it.
    """
    return _is_held(life) is False


def _is_held(life: Path) -> bool | None:
    """Whether somebody holds the file; None: its file system has no locks, which tells nothing."""
    try:
        handle = os.open(life, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what filelock.FileLock holds
    except OSError as error:
        return None if error.errno in NO_LOCKS else True
    finally:
        os.close(handle)  # and with it the lock
    return False


def this_machine() -> str:
    """A name for this machine that outlives its restart: its host name and, where it has one, its machine id."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()
    except OSError:
        identity = ""
    return f"{socket.gethostname()}/{identity}"
