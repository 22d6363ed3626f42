"""Decoded pictures in a file: an array to look at one or the other, and a file to read many from.

Reading copies what is wanted and leaves nothing behind. Going through a mapped array instead costs a page fault for
every 4 KiB, counts all that was ever looked at as this process's memory, and ends the process where the disk fails.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dftrack.errors import StoreError

Rows = NDArray[np.int64] | Sequence[int]


class _Source:
    """The open file behind a mapped array; it is closed when the last view of the array goes."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, os.open(path, os.O_RDONLY)
        self.address = 0  # of the array's first byte in memory
        weakref.finalize(self, os.close, self.number)


class _Mapped(np.memmap[Any, np.dtype[np.uint8]]):
    """A memory map whose views know the file they show."""

    source: _Source | None = None

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.source = getattr(obj, "source", None) if np.may_share_memory(self, obj) else None


def map_pixels(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The file as an array of `shape`, read-only. OSError if it cannot be opened, ValueError if it is shorter."""
    source = _Source(path)
    with open(source.number, "rb", closefd=False) as file:
        mapped = _Mapped(file, np.uint8, "r", shape=shape)
    mapped.source, source.address = source, _address(mapped)
    return mapped


def read_rows(pixels: NDArray[np.uint8], rows: Rows) -> NDArray[np.uint8]:
    """Copies of these rows, (len(rows), ...), in their order: what np.take gives.

    Rows of `map_pixels` and its slices are read from the file. StoreError if that cannot be, or the file was cut.
    """
    source = getattr(pixels, "source", None)
    if not isinstance(source, _Source) or not pixels.flags.c_contiguous:
        return np.take(np.asarray(pixels), np.asarray(rows, np.int64), axis=0)
    found = np.empty((len(rows), *pixels.shape[1:]), np.uint8)
    start, length = _address(pixels) - source.address, pixels.strides[0]
    for row, target in zip(rows, found, strict=True):
        assert 0 <= row < len(pixels), f"row {row} of {len(pixels)}"
        _read(source, target.data.cast("B"), start + int(row) * length)
    return found


def _read(source: _Source, target: memoryview, offset: int) -> None:
    try:
        while target:
            count = os.preadv(source.number, [target], offset)
            if not count:
                raise OSError("it ends too early")
            target, offset = target[count:], offset + count
    except OSError as error:
        raise StoreError(
            f"cannot read the decoded pictures in {source.path.parent}: {error.strerror or error}",
            "remove that folder, and they are decoded again",
        ) from error


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
