"""Work on many items at once: every answer, in order, few at a time, and an end whenever it is wanted."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dftrack.data import parallel
from dftrack.data.parallel import cores, spread


@pytest.mark.parametrize("together", [1, 4, 100])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_every_answer_comes_once_and_in_order(count: int, together: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(spread(work, iter(range(count)), 3, together=together)) == [item * item for item in range(count)]


@pytest.mark.parametrize("together", [1, 4])
def test_few_items_are_taken_before_their_answers_are_wanted(together: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    stream = spread(str, items(), 2, together=together)
    assert next(stream) == "0"
    assert len(taken) <= (4 * 2 + 1) * together
    stream.close()


def test_the_first_exception_is_raised() -> None:
    def work(item: int) -> int:
        if item in (5, 6):
            raise ValueError(f"item {item}")
        return item

    found = []
    with pytest.raises(ValueError, match="item 5"):
        for answer in spread(work, range(100), 2):
            found.append(answer)
    assert found == list(range(5))


def test_who_stops_early_waits_for_one_item_and_not_for_all_that_a_thread_took() -> None:
    done: list[int] = []
    begun, goes_on = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 17:  # the second of what is taken next
            begun.set()
            assert goes_on.wait(20)
        done.append(item)
        return item

    stream = spread(work, range(64), 1, together=16)
    assert next(stream) == 0 and begun.wait(20)
    threading.Timer(0.2, goes_on.set).start()
    stream.close()
    assert done == list(range(18))


def test_a_container_s_share_of_the_processors_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second, first = (tmp_path / "cpu.max",), (tmp_path / "quota", tmp_path / "period")
    monkeypatch.setattr(parallel, "PROCESSOR_LIMITS", (second, first))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert cores() == 16
    for text, number in (("max 100000", 16), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 16)):
        second[0].write_text(text + "\n")
        assert cores() == number, text
    second[0].unlink()
    for quota, number in (("-1", 16), ("400000", 4)):
        first[0].write_text(quota + "\n")
        first[1].write_text("100000\n")
        assert cores() == number, f"{quota} by the first version"
