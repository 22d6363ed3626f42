"""Memory of N workers on one data set: the pixels once, not N times.

Wanted: as much for N workers as for one. Workers are processes that open the same data and go through an epoch of
batches; all are held in the middle of it while memory is counted. PSS shares a page out among those who map it, so
the sum over workers is what they take together. Taken off: what the same workers take before they open the data.
The peer reads all pictures into an array of its own in each worker, as a script does that "loads the data to RAM".
"""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from material import open_faces
from side_by_side import Check, Report, arguments, show

KINDS = ("own array in each", "dftrack")


def pss(pid: int) -> int:
    """Bytes that a process takes, shared pages in shares (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def worker(kind: str, faces: str, size: int, store: Path, pipe: Connection) -> None:
    """Says when it is ready, opens the data, goes half way through an epoch, says so, and waits."""
    from dftrack.data.batches import Batches
    from dftrack.data.pixel_file import read_rows

    pipe.send("ready")
    pipe.recv()
    split = open_faces(faces, size, store).splits["train"]
    if kind == KINDS[0]:
        held = read_rows(split.pixels, range(len(split.pixels)))
        held[: len(held) // 2].sum()
    else:
        batches = Batches(split, batch_size=32, seed=os.getpid()).epoch(1)
        for _ in range(-(-len(split.labels) // 64)):
            next(batches)
    pipe.send("half way")
    pipe.recv()


def bytes_for(kind: str, count: int, faces: str, size: int, store: Path) -> int:
    """What `count` workers take together for the data, at the middle of the epoch."""
    context = multiprocessing.get_context("spawn")
    crew = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(kind, faces, size, store, theirs))
        process.start()
        crew.append((process, ours))

    def together() -> int:
        for _, pipe in crew:
            pipe.recv()
        time.sleep(0.5)
        taken = sum(pss(process.pid or 0) for process, _ in crew)
        for _, pipe in crew:
            pipe.send("on")
        return taken

    before, after = together(), together()
    for process, _ in crew:
        process.join()
    return after - before


def main() -> None:
    """Count for one worker and for more."""
    parser = arguments(__doc__, size=96)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="how many at once [1 2 4]")
    given = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("not measured: memory is counted through /proc, which this system has not")
        return
    data = open_faces(given.faces, given.size, given.store).splits["train"]
    megabytes: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for count in given.workers:
        for kind in KINDS:
            taken = bytes_for(kind, count, given.faces, given.size, given.store)
            megabytes[kind].append(taken / 2**20)
    last, pixels = given.workers[-1], data.pixels.nbytes / 2**20
    for kind, values in megabytes.items():
        counted = ", ".join(f"{n} workers {v:,.0f} MiB" for n, v in zip(given.workers, values, strict=True))
        print(f"{kind}: {counted}")
    each = (megabytes["dftrack"][-1]) / last
    show(
        Report(
            claim=f"memory for the data in {last} workers, {given.size} px",
            wanted="the data once, not N times",
            base=KINDS[0],
            unit="MiB",
            samples={kind: [values[-1]] for kind, values in megabytes.items()},
            more_is_better=False,
            setting={"pixels": f"{pixels:,.0f} MiB", "workers": given.workers},
            checks=[Check("together no more than the data once (and 40 MiB a worker to work with)",
                          megabytes["dftrack"][-1] <= pixels + 40 * last, f"{each:,.0f} MiB a worker")],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
