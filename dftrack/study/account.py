"""How a study stands, gathered from storage and MLflow, and written into its parent run: numbers, tables, pictures."""

from collections.abc import Callable

from dftrack.recording import TESTS_OPENED
from dftrack.study.begun import Begun
from dftrack.study.finals import failed_finals, final_metrics, finals
from dftrack.study.plots import plots
from dftrack.study.report import html, markdown
from dftrack.study.summary import StudySummary, best_record, cost, trials_table
from dftrack.tracking import RunRecord, Tracker


class Account:
    """The account of a study, given anew whenever it is asked for."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self._times: dict[str, float] = {}  # run id -> seconds of training

    def summary(self) -> StudySummary:
        """How the study stands, as plain values."""
        begun = self.begun
        definition, data_digest, run_id = begun.definition, begun.data.digest, begun.run.run_id
        records = begun.records()
        runs = begun.tracker.runs(parent=run_id)
        of_trials = {int(run.tags["dftrack.trial"]): run for run in runs if run.tags.get("dftrack.kind") == "trial"}
        finished = finals(begun)
        openers = openings(begun.tracker, data_digest)
        baseline = definition.baseline()
        return StudySummary(
            name=begun.study.name,
            definition=definition,
            records=records,
            trials=begun.total(),
            data_digest=data_digest,
            finals=finished,
            failed_finals=failed_finals(begun),
            baseline=next((r.value for r in records if r.params == baseline and r.status == "complete"), None),
            seconds={number: self._seconds(run) for number, run in of_trials.items()},
            final_seconds=sum(self._seconds(begun.tracker.find_run(final.run_id)) for final in finished) or None,
            run_ids={number: run.run_id for number, run in of_trials.items()},
            tests_opened_before=sum(parent != run_id for parent, _ in openers),
            tests_opened_after=len(openers),
            started=min((r.started for r in records if r.started), default=None),
            ended=max((r.ended for r in records if r.ended), default=None)
            if all(r.is_ended for r in records)
            else None,
            command=begun.request.command or f"dftrack study --study {definition.name}",
        )

    def _seconds(self, run: RunRecord) -> float:
        """Seconds that the epochs of a run took; asked once for a run that has ended for good."""
        if run.run_id in self._times:
            return self._times[run.run_id]
        taken = sum(seconds for _, seconds in self.begun.tracker.metric_history(run.run_id, "time/epoch_seconds"))
        if run.end in ("complete", "pruned", "failed"):
            self._times[run.run_id] = taken
        return taken

    def write(self, check: Callable[[], None]) -> None:
        """Write everything that the parent run shows anew: pictures, tables, report, numbers.

        check: asked between two pictures whether this process shall stop.
        """
        summary, run = self.summary(), self.begun.run
        pictures = plots(self.begun.study, self.begun.definition, check=check)
        for path, content in pictures.items():
            run.log_bytes(content, path)
        run.log_table(trials_table(summary), "study/trials.csv")
        run.log_text(markdown(summary), "study/report.md")
        run.log_text(html(summary, pictures), "study/report.html")
        spent, best = cost(summary), best_record(summary.records, summary.definition.direction)
        run.log_metrics(
            {
                "study/best": best.value if best else None,
                "study/baseline": summary.baseline,
                "study/trials_ended": sum(record.is_ended for record in summary.records),
                "study/epochs": spent.epochs,
                "study/epochs_full_search": spent.full_epochs,
                "study/tests_opened": summary.tests_opened_after,
                **final_metrics(summary.finals),
            }
        )


def openings(tracker: Tracker, data_digest: str) -> set[tuple[str, str]]:
    """Who has opened the test splits of these data: (run id, "") or, of a study, (its run id, number of a winner).

    The trainings of one winner count as one; another winner of the same study, found later, is another opening.
    """
    runs = tracker.runs(tags={"dftrack.data_digest": data_digest})
    return {(run.parent or run.run_id, run.tags.get("dftrack.trial", "")) for run in runs if run.tags.get(TESTS_OPENED)}
