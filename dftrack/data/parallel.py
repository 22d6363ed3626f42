"""The same work on many items, on all cores at once."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TypeVar

# Where Linux says how much time of its processors a container may have, by the second and the first version of its
# control groups: quota and period.
PROCESSOR_LIMITS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
QUICK = 16  # files of pictures that a thread reads, decodes or hashes at once

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def cores() -> int:
    """How many processors this process may use: those it may run on, or what its container may have of their time."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([here, *(math.ceil(quota / period) for quota, period in _quotas())])


def _quotas() -> Iterator[tuple[int, int]]:
    """(microseconds of work, microseconds in which that may be done), where Linux limits them."""
    for limit in PROCESSOR_LIMITS:
        with suppress(OSError, ValueError):  # no such file; too few or other words in it, as "max"
            quota, period = " ".join(path.read_text() for path in limit).split()
            if int(quota) > 0 < int(period):  # -1: no limit
                yield int(quota), int(period)


def spread(
    work: Callable[[Item], Answer],
    items: Iterable[Item],
    workers: int | None = None,
    *,
    together: int = 1,
) -> Generator[Answer, None, None]:
    """Yield work(item) in the order of `items`, on `workers` threads (one per core); few items are in flight at a time.

    together: how many items a thread takes at once. Of quick work (a file of some kB) many: threads that come for each
    item hinder each other: on two cores JPEGs of 224 px were decoded at 1,600 a second, and at 2,000 sixteen together.
    Threads, as simplejpeg, Pillow, hashlib and file calls release the interpreter lock. The first exception of `work`
    is raised here; when the caller stops early, waiting items are dropped.
    """
    pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="dftrack-data")
    waiting: deque[Future[list[Answer]]] = deque()
    left, stopped = iter(items), Event()

    def several(part: list[Item]) -> list[Answer]:
        return [work(item) for item in part if not stopped.is_set()]

    try:
        while part := list(islice(left, together)):
            waiting.append(pool.submit(several, part))
            if len(waiting) > 4 * (workers or cores()):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
