"""One piece of work at a time, done by a thread while training goes on; what goes wrong with it comes out of `wait`."""

from collections.abc import Callable
from concurrent import futures


class Behind:
    """A thread for work that training should not wait for. Python does not end before that work does."""

    def __init__(self) -> None:
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._work: futures.Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Is something being done at this moment?"""
        return self._work is not None and not self._work.done()

    def begin(self, work: Callable[[], None]) -> None:
        """Do this behind. Only after `wait`, so that neither a piece of work nor an error of one is lost."""
        assert self._work is None, "the last piece of work was not waited for"
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Until nothing is being done any more, also when Ctrl-C asks for less; then raise what went wrong, once."""
        interrupted = False
        while self.busy:
            try:
                futures.wait([self._work] if self._work else [])
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt
        work, self._work = self._work, None
        if work is not None:
            work.result()
