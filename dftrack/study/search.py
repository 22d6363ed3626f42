"""The search itself: workers bring all trials to their end; weights and report are kept in order meanwhile."""

import time
from collections.abc import Callable

from dftrack.runtime import StopRequests, catch_stop_requests
from dftrack.study.account import Account
from dftrack.study.begun import Begun
from dftrack.study.events import Event, Opened, TrialEnded
from dftrack.study.jobs import Ended
from dftrack.study.naming import trial_key
from dftrack.study.trials import TrialCloser, TrialTrainer
from dftrack.study.worker import Work
from dftrack.study.workers import run_workers
from dftrack.tracking import KEY_TAG

REFRESH_SECONDS = 60.0  # at least so long between two reports while trials train,
REFRESH_TIMES = 100  # and so many times what the last one took: it takes a core from those who train


class Search:
    """The search of a study, as the process sees it that starts the workers."""

    def __init__(
        self, begun: Begun, account: Account, watch: Callable[[Opened | Event], None], stop: StopRequests
    ) -> None:
        self.begun, self.account, self.watch, self.stop = begun, account, watch, stop
        self._report_due = time.monotonic() + REFRESH_SECONDS
        self._dropped: set[int] = set()  # trials whose weights are known to be gone

    def run(self) -> None:
        """Let workers bring all trials to their end."""
        begun = self.begun
        records = begun.records()
        total = max(begun.total(), len(records))  # what was begun is brought to its end
        ended = sum(record.is_ended for record in records)
        self.watch(Opened(begun.study.name, begun.run.run_id, total, ended))
        work = Work(
            url=begun.study.storage.url,
            study=begun.study.name,
            definition=begun.definition,
            lives=begun.lives,
            train=TrialTrainer(begun.definition, begun.request.store, begun.key, begun.run.run_id, begun.data.digest),
            on_ended=TrialCloser(begun.request.store, begun.key),
        )
        if ended < total:  # else only the winner's trainings are left
            run_workers(work, begun.workers, self._hear, check=self.stop.check)
        self._mend()

    def _hear(self, event: Event) -> None:
        self.watch(event)
        if isinstance(event, TrialEnded):
            self._keep_the_best()
            if time.monotonic() > self._report_due:
                self._refresh()

    def _refresh(self) -> None:
        """Write the report while trials train. Asked to stop meanwhile, raise Interrupted after the next picture."""
        since = time.monotonic()
        try:
            with catch_stop_requests() as requests:  # who watches the workers cannot look while this thread draws
                self.account.write(requests.check)
            requests.check()
        finally:
            now = time.monotonic()
            self._report_due = now + max(REFRESH_SECONDS, REFRESH_TIMES * (now - since))

    def _mend(self) -> None:
        """Bring runs whose worker was killed between the trial's end and the run's to the state Optuna knows."""
        close = TrialCloser(self.begun.request.store, self.begun.key)
        self.begun.read_anew()  # workers wrote meanwhile
        for record in self.begun.records():
            if record.is_ended:
                close(Ended(record.number, record.status, record.value, record.reason))
        self._keep_the_best()

    def _keep_the_best(self) -> None:
        """Delete the weights of trials that are not among the best: they never come back, so each is asked for once.

        What was registered meanwhile, by `promote` or in the MLflow page, is a model of its own right and stays.
        """
        begun = self.begun
        for record in begun.ranked()[begun.definition.keep_weights :]:
            if record.number in self._dropped:
                continue
            for run in begun.tracker.runs(tags={KEY_TAG: trial_key(begun.key, record.number)}):
                if not begun.tracker.is_registered(run.run_id):
                    begun.tracker.drop_model(run.run_id)
            self._dropped.add(record.number)
