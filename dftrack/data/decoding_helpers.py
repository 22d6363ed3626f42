"""Other processes that decode, too: of small files the threads of one process decode hardly more than one thread.

A helper is another Python that imports Pillow and little else (no NumPy: that would take longer than all the rest). It
is asked for some rows at a time (a line of JSON on its stdin), writes their pixels into the array's file, whose handle
it has inherited, and answers what became of them (a line on its stdout). What it does not do, for whatever reason, is
done again by who asked. It ends at once, by itself, when its stdin does: then who asked is gone.
"""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType

import PIL

from dftrack.data.parallel import cores
from dftrack.data.rows import Decoded, Row, fill_row

EACH = 1_200  # small pictures for each process, this one included: to start one takes as long as decoding 300
SMALL = 64 << 10  # bytes of a file, in the mean; larger ones are decoded outside of the interpreter: threads do as well
CODE = f"from {__name__} import help_out; help_out()"


def how_many(rows: Sequence[Row]) -> int:
    """How many helpers pay: one for each further core, none for few or large files."""
    sizes = [row.stamp[0] for row in rows if row.stamp]
    if sum(sizes) > SMALL * len(sizes):
        return 0
    return max(0, min(cores(), len(sizes) // EACH) - 1)


class Helpers:
    """So many helpers, while the block runs, for the file handle `target` of pictures of `size` x `size` pixels.

    When the block ends they are ended, in the middle of a picture if need be: after that none of them writes.
    """

    def __init__(self, count: int, target: int, size: int) -> None:
        self._count, self._target, self._size = count, target, size
        self._all: list[_Helper] = []
        self._free: queue.SimpleQueue[_Helper] = queue.SimpleQueue()

    def __enter__(self) -> "Helpers":
        with suppress(OSError):  # one that cannot be started is done without
            for _ in range(self._count):
                self._all.append(_Helper(self._target, self._size))
                self._free.put(self._all[-1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._all:
            helper.process.kill()
        for helper in self._all:
            helper.close()

    def fill(self, rows: Sequence[Row]) -> list[Decoded] | None:
        """What became of the rows, when a helper was free and did them all; None: they are to be done here."""
        try:
            helper = self._free.get_nowait()
        except queue.Empty:
            return None
        if not helper.has_spoken():
            self._free.put(helper)
            return None
        done = helper.fill(rows)
        if done:  # one that failed is not asked again
            self._free.put(helper)
        return done


class _Helper:
    """One of them, as seen from here."""

    def __init__(self, target: int, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, str(target), str(size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[target],
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self._to, self._from = self.process.stdin, self.process.stdout
        self._spoken = self._known = False

    def has_spoken(self) -> bool:
        """Whether it has said that it is there, or ended; until then who asks would wait for its imports."""
        if not self._spoken:
            look = select.poll()
            look.register(self._from, select.POLLIN)
            self._spoken = bool(look.poll(0))
        return self._spoken

    def fill(self, rows: Sequence[Row]) -> list[Decoded] | None:
        """Let it fill the rows; None if it did not, or not all."""
        try:
            if not self._known and self._from.readline() != _greeting():
                return None  # other code, or another Pillow, might decode otherwise
            self._known = True
            self._to.write(_line([(row.offset, str(row.path), row.name, row.stamp) for row in rows]))
            self._to.flush()
            answer = json.loads(self._from.readline() or b"null")
        except (OSError, ValueError):  # it was killed: the pipe is broken, the line cut off, or closed already
            return None
        return [Decoded(*one) for one in answer] if answer else None

    def close(self) -> None:
        """When it has been killed."""
        self.process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was not sent yet cannot be
                pipe.close()


# ---- the other process


def help_out() -> None:
    """What a helper does: fill the rows that it is asked for until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; who asked decides
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the process that asks
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_work, args=[asked, int(sys.argv[1]), int(sys.argv[2])], daemon=True).start()
    for line in sys.stdin.buffer:
        asked.put(line)
    os._exit(0)  # whatever is being decoded


def _work(asked: "queue.SimpleQueue[bytes]", target: int, size: int) -> None:
    _say(_greeting())
    while True:
        try:
            _say(_line([astuple(fill_row(target, row, size)) for row in _rows(asked.get())]))
        except Exception:  # a changed file, a full disk: told by who asked, who will meet it, too
            _say(_line(None))


def _rows(line: bytes) -> Iterator[Row]:
    for offset, path, name, stamp in json.loads(line):
        yield Row(offset, Path(path), name, None if stamp is None else (stamp[0], stamp[1], stamp[2]))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _line(content: object) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _greeting() -> bytes:
    """Who it is that decodes."""
    return _line([__file__, PIL.__version__])
