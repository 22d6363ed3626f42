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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from dftrack.data.folder import Listing, Picture, Progress
from dftrack.data.parallel import QUICK, spread
from dftrack.data.rows import Decoded, Row, Stamp, fill_row, write_all
from dftrack.files import sync_folder

PIXELS, INDEX = "pixels.u8", "index.json"
SYNC_BYTES = 64 << 20  # decoded between two syncs: the disk works while the processors do


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
    rows = [
        Row(place * row_bytes, picture.path, picture.name, stamp)
        for place, (picture, stamp) in enumerate(zip(listing.pictures, stamps, strict=True))
    ]
    target = os.open(folder / PIXELS, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _reserve(target, total * row_bytes)  # a full disk says so now, not after an hour
        results = _decode(target, rows, size, progress)
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


def _decode(target: int, rows: Sequence[Row], size: int, progress: Progress | None) -> list[Decoded]:
    """What became of each row; the pixels are in `target`, and most of them on the disk."""
    results: list[Decoded] = []
    synced: list[Future[None]] = []
    rows_a_sync = max(1, SYNC_BYTES // (size * size * 3))

    def work(row: Row) -> Decoded:
        return fill_row(target, row, size)

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(1, thread_name_prefix="dftrack-sync") as syncing,
        closing(spread(work, rows, together=QUICK)) as stream,
    ):  # all ended before `target` is closed: nobody writes after that
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF blocks, which cost nothing
        for result in stream:
            results.append(result)
            if len(results) % rows_a_sync == 0 and (not synced or synced[-1].done()):
                synced.append(syncing.submit(os.fsync, target))
            if progress:
                progress("decoding pictures", len(results), len(rows))
    for each in synced:
        each.result()  # of a write that failed the kernel tells once
    return results


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
            write_all(target, memoryview(os.pread(target, row_bytes, row * row_bytes)), place * row_bytes)
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
