"""Rows of a file: the same as those of the array, without the array."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dftrack.data.pixel_file import map_pixels, read_rows
from dftrack.errors import StoreError

SHAPE = (64, 32, 32, 3)


@pytest.fixture
def made(tmp_path: Path) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    pixels.tofile(tmp_path / "pixels.u8")
    return pixels


@pytest.fixture
def mapped(made: NDArray[np.uint8], tmp_path: Path) -> NDArray[np.uint8]:
    return map_pixels(tmp_path / "pixels.u8", SHAPE)


@pytest.mark.parametrize("rows", [[5], [3, 3, 0, 63], range(10, 20), [], np.array([63, 1])])
@pytest.mark.parametrize("part", [slice(None), slice(7, None), slice(None, None, 2), slice(None, None, -1)])
def test_rows_are_those_of_the_array(
    made: NDArray[np.uint8], mapped: NDArray[np.uint8], rows: list[int], part: slice
) -> None:
    assert (mapped == made).all() and not mapped.flags.writeable
    rows = [row % len(made[part]) for row in rows]
    found = read_rows(mapped[part], rows)
    assert found.dtype == np.uint8 and found.flags.writeable
    assert np.array_equal(found, made[part][np.array(rows, int)]) and type(found) is np.ndarray
    assert np.array_equal(read_rows(made[part], rows), found), "an array that is no file does as well"


def test_what_was_made_of_a_mapped_array_is_not_read_from_its_file(mapped: NDArray[np.uint8]) -> None:
    assert (read_rows(255 - mapped, [9]) == 255 - mapped[9]).all()
    assert (read_rows(mapped[[4, 2]], [1]) == mapped[2]).all()
    assert (read_rows(mapped.transpose(0, 3, 1, 2), [1]) == mapped[1].transpose(2, 0, 1)).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_leaves_nothing_in_the_memory_of_the_process(tmp_path: Path) -> None:
    def in_files() -> int:
        return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) << 10

    (tmp_path / "pixels.u8").write_bytes(bytes(512 * 96 * 96 * 3))  # 14 MB
    pixels = map_pixels(tmp_path / "pixels.u8", (512, 96, 96, 3))
    before = in_files()
    for row in range(512):
        read_rows(pixels, [row])
    assert in_files() - before < 1 << 20
    pixels.sum()
    assert in_files() - before > 13 << 20, "or this test sees nothing"


def test_a_file_that_was_replaced_is_read_as_it_was_and_one_that_was_cut_is_said(
    made: NDArray[np.uint8], mapped: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Touching a page behind a file's end would end the process."""
    path = tmp_path / "pixels.u8"
    path.rename(tmp_path / "old")
    path.write_bytes(b"new")
    assert np.array_equal(read_rows(mapped, [63]), made[[63]])
    os.truncate(tmp_path / "old", 10 * 32 * 32 * 3 + 5)
    assert np.array_equal(read_rows(mapped, [9]), made[[9]])
    with pytest.raises(StoreError, match="it ends too early") as caught:
        read_rows(mapped, [10])
    assert "decoded again" in caught.value.hint


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
def test_the_file_is_closed_with_the_last_view_of_the_array(made: NDArray[np.uint8], tmp_path: Path) -> None:
    def is_open() -> bool:
        targets = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return str(tmp_path / "pixels.u8") in targets

    view = map_pixels(tmp_path / "pixels.u8", SHAPE)[5:9]
    gc.collect()
    assert is_open() and np.array_equal(read_rows(view, [0]), made[[5]])
    del view
    gc.collect()
    assert not is_open()
