"""One `dftrack study`: data, storage, parent run, workers, the winner's final trainings, the report.

Every step can be killed and done again: the trials are Optuna's, runs and checkpoints go by names that the next start
finds, and the parent run is written anew from what the storage says.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dftrack.errors import DataError, DeviceError, DftrackError, Interrupted, StoreError
from dftrack.experiment import Event as ExperimentEvent
from dftrack.experiment import Stage
from dftrack.recording import record_start
from dftrack.runtime import StopRequests
from dftrack.study.account import Account
from dftrack.study.begun import Begun, Request, begin
from dftrack.study.events import Event, FinalStarted, Opened
from dftrack.study.finals import final_metrics, train_finals
from dftrack.study.liveness import Life
from dftrack.study.search import Search
from dftrack.study.summary import StudySummary, best_record, cost, verdict

Watch = Callable[[Opened | Event | FinalStarted | ExperimentEvent], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study came to."""

    run_id: str
    summary: StudySummary

    def plain(self) -> dict[str, object]:
        """For programs: the winner, its final trainings, what it cost."""
        summary = self.summary
        best = best_record(summary.records, summary.definition.direction)
        found = verdict(summary)
        return {
            "run_id": self.run_id,
            "status": "FINISHED",
            "study": summary.name,
            "trials": len(summary.records),
            "metrics": final_metrics(summary.finals),
            "best": {"trial": best.number, "value": best.value, "params": dict(best.params)} if best else None,
            "baseline": summary.baseline,
            "finals": [{"seed": f.seed, "run_id": f.run_id, "value": f.val} for f in summary.finals],
            "finals_failed": [dataclasses.asdict(failed) for failed in summary.failed_finals],
            "verdict": {"word": found.word, "reason": found.reason},
            "epochs": cost(summary).epochs,
            "epochs_full_search": cost(summary).full_epochs,
            "tests_opened": summary.tests_opened_after,
        }


def run_study(request: Request, watch: Watch = lambda event: None, stop: StopRequests | None = None) -> Outcome:
    """Begin the study, or go on with it, until all its trials have ended and its winner is known.

    Raises DftrackError with what is wrong (nothing is lost: the same command goes on), Interrupted on request.
    """
    requests = stop or StopRequests()

    def show(what: str, done: int, total: int) -> None:
        requests.check()
        watch(Stage(what, done, total))

    begun = begin(request, show)
    account = Account(begun)
    with _recorded(begun, requests):
        Search(begun, account, watch, requests).run()
        train_finals(begun, watch, requests)
        account.write(requests.check)
        outcome = Outcome(begun.run.run_id, account.summary())
    return outcome


@contextlib.contextmanager
def _recorded(begun: Begun, stop: StopRequests) -> Iterator[None]:
    """Close the parent run as what it is, however the work ends. Until then this process counts as at work."""
    run = begun.run
    life: Life | None = None
    try:
        stop.check()
        life = Life(begun.lives)
        record_start(run, begun.data)
        run.log_text(begun.definition.text, "study/study.toml")
        yield
    except (Interrupted, KeyboardInterrupt):
        run.finish("KILLED", end="interrupted", reason="stopped on request; the same command goes on")
        raise
    except (StoreError, DataError, DeviceError) as error:
        with contextlib.suppress(StoreError):  # it passes, and the same command goes on
            run.finish("KILLED", end="interrupted", reason=error.message)
        raise
    except BaseException as error:
        reason = error.message if isinstance(error, DftrackError) else f"{type(error).__name__}: {error}"
        run.finish("FAILED", end="failed", reason=reason)
        raise
    else:
        begun.tracker.close_run(run.run_id, "FINISHED", end="complete")  # not "stopped", as another command said
    finally:
        if life:
            life.end()
        begun.study.storage.close()
