"""One picture's row of the decoded array: its file read, checked and decoded, its pixels written to their place."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dftrack.data.pictures import decode
from dftrack.data.upright import MAX_BYTES, PictureError, open_regular
from dftrack.errors import DataError

Stamp = tuple[int, int, int]  # (bytes, mtime, ctime in nanoseconds): what a file looks like from outside


@dataclass(frozen=True, slots=True)
class Row:
    """A picture that is to be decoded."""

    offset: int  # bytes, where its pixels begin in the array's file
    path: Path
    name: str  # for messages
    stamp: Stamp | None  # what its file looked like when it was listed


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of one file."""

    content: str = ""  # hex sha256 of the file
    reason: str = ""  # why it cannot be read; its row is then empty


def stamp_of(path: Path) -> Stamp | None:
    """What the file looks like from outside; None if it is not there."""
    try:
        return _of(path.stat())
    except (OSError, ValueError):
        return None


def _of(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def fill_row(target: int, row: Row, size: int) -> Decoded:
    """Decode one file and write its `size` x `size` pixels into the file handle `target`.

    Raises DataError if the file is not what was listed.
    """
    try:
        with open_regular(row.path) as handle:
            status = os.fstat(handle.fileno())
            if _of(status) != row.stamp:
                raise DataError(
                    f"{row.name!r} changed while it was being read",
                    "run it again when nothing writes to the pictures",
                )
            if status.st_size > MAX_BYTES:
                return Decoded(reason=f"over {MAX_BYTES >> 20} MiB")
            content = handle.read()
        pixels = decode(content, size)
    except PictureError as error:
        return Decoded(reason=error.message)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return Decoded(reason=getattr(error, "strerror", None) or str(error))
    write_all(target, pixels.data.cast("B"), row.offset)
    return Decoded(content=sha256(content).hexdigest())


def write_all(target: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(target, content, offset)
        content, offset = content[written:], offset + written
