"""What several processes want at once is made by one of them; the others wait, and say so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dftrack.data.folder import Progress
from dftrack.files import locked


@contextmanager
def one_process(lock: Path, doing: str, progress: Progress | None) -> Iterator[None]:
    """Hold the lock; while another process does, `progress` is told so, and may raise, to wait no longer.

    doing: what is done under it, as in "makes the sample". Raises OSError if the lock cannot be made.
    """

    def wait() -> None:
        if progress:
            progress(f"waiting for another process that {doing}", 0, 1)

    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, wait):
        yield
