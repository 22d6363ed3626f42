"""Fill a cache: decode every listed file into one array on disk, all or nothing.

Rows are written straight to their place in the file (never through mapped memory: a full disk is then an error, not a
SIGBUS, and no more than a few pictures are in memory at a time).
"""

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from dftrack.data.folder import Listing, Picture, Progress
from dftrack.data.parallel import QUICK, spread
from dftrack.data.pictures import MAX_BYTES, PictureError, decode, open_regular
from dftrack.errors import DataError
from dftrack.files import sync_folder

PIXELS, INDEX = "pixels.u8", "index.json"

Stamp = tuple[int, int, int]  # (bytes, mtime, ctime in nanoseconds): what a file looks like from outside


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


def build(place: Path, listing: Listing, stamps: Sequence[Stamp | None], size: int, progress: Progress | None) -> None:
    """Decode into a temporary folder beside `place` and rename it. The caller holds the lock of `place`."""
    _remove_leftovers(place.parent)
    shutil.rmtree(place, ignore_errors=True)  # only a damaged cache can be there
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        with FileLock(aside.with_suffix(".alive")):  # while this is held, nobody takes the folder for a leftover
            aside.mkdir()
            _fill(aside, listing, stamps, size, progress)
            os.replace(aside, place)
            sync_folder(place.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        aside.with_suffix(".alive").unlink(missing_ok=True)
    family = place.name.partition("-")[0]
    for older in place.parent.glob(f"{family}-*"):
        if older.is_dir() and older != place:  # of the same source before it changed; who has it open keeps it
            shutil.rmtree(older, ignore_errors=True)


def _fill(folder: Path, listing: Listing, stamps: Sequence[Stamp | None], size: int, progress: Progress | None) -> None:
    """Write pixels and index of the listed pictures into `folder`, and sync them."""
    total, row_bytes = len(listing.pictures), size * size * 3
    target = os.open(folder / PIXELS, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _reserve(target, total * row_bytes)  # a full disk says so now, not after an hour

        def work(row: int) -> Decoded:
            return _decode_into(target, row * row_bytes, listing.pictures[row], stamps[row], size)

        results: list[Decoded] = []
        with (
            warnings.catch_warnings(),
            closing(spread(work, range(total), together=QUICK)) as stream,
        ):  # closed before `target` is: nobody writes after that
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF blocks, which cost nothing
            for result in stream:
                results.append(result)
                if progress:
                    progress("decoding pictures", len(results), total)
        reasons = {row: result.reason for row, result in enumerate(results) if result.reason}
        _close_gaps(target, reasons.keys(), total, row_bytes)
        os.fsync(target)
    finally:
        os.close(target)
    content = {
        "shape": [total - len(reasons), size, size, 3],
        "digest": _digest(listing.pictures, results),
        "unreadable": reasons,
    }
    body = json.dumps(content).encode()
    with open(folder / INDEX, "wb") as handle:
        handle.write(body + b"\n" + sha256(body).hexdigest().encode())
        handle.flush()
        os.fsync(handle.fileno())
    sync_folder(folder)


def _decode_into(target: int, offset: int, picture: Picture, stamp: Stamp | None, size: int) -> Decoded:
    """Decode one file and write its pixels at `offset` of the file handle `target`."""
    try:
        with open_regular(picture.path) as handle:
            status = os.fstat(handle.fileno())
            if _of(status) != stamp:
                raise DataError(
                    f"{picture.name!r} changed while it was being read",
                    "run it again when nothing writes to the pictures",
                )
            if status.st_size > MAX_BYTES:
                return Decoded(reason=f"over {MAX_BYTES >> 20} MiB")
            content = handle.read()
        pixels = decode(content, size).data.cast("B")
    except PictureError as error:
        return Decoded(reason=error.message)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return Decoded(reason=getattr(error, "strerror", None) or str(error))
    _write_all(target, pixels, offset)
    return Decoded(content=sha256(content).hexdigest())


def _write_all(target: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(target, content, offset)
        content, offset = content[written:], offset + written


def _reserve(target: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(target, 0, size)
    else:
        os.ftruncate(target, size)


def _close_gaps(target: int, gaps: Collection[int], total: int, row_bytes: int) -> None:
    """Move the rows after unreadable ones up, and cut the file to the rows that are left."""
    empty = set(gaps)
    place = min(empty, default=total)
    for row in range(place, total):
        if row not in empty:
            _write_all(target, memoryview(os.pread(target, row_bytes, row * row_bytes)), place * row_bytes)
            place += 1
    os.ftruncate(target, place * row_bytes)


def _remove_leftovers(folder: Path) -> None:
    """Remove what builders left that were killed: those whose lock nobody holds any more."""
    for leftover in folder.glob(".*.tmp"):
        try:
            with FileLock(leftover.with_suffix(".alive"), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
            leftover.with_suffix(".alive").unlink(missing_ok=True)
        except Timeout:
            continue


def _digest(pictures: Sequence[Picture], results: Sequence[Decoded]) -> str:
    """32 hex digits over the readable pictures, whatever their order and wherever they lie."""
    lines = sorted(
        json.dumps([picture.name, picture.label, picture.split, picture.group, result.content])
        for picture, result in zip(pictures, results, strict=True)
        if result.content
    )
    return sha256("\n".join(lines).encode()).hexdigest()[:32]
