"""A study, its status and its check-up -> the terminal."""

from collections.abc import Sequence

from dftrack.render import UNDEFINED, number, out, plain, show_table
from dftrack.study.case import Finding
from dftrack.study.naming import trial_name
from dftrack.study.status import StudyStatus
from dftrack.study.summary import StudySummary, cost, ranking, verdict
from dftrack.study.verdict import spread


def show_study(summary: StudySummary) -> None:
    """The best trials, the winner's final trainings, and whether it beats the baseline."""
    definition, ranked, spent = (
        summary.definition,
        ranking(summary.records, summary.definition.direction),
        cost(summary),
    )
    rows = [
        (str(r.number), number(r.value), str(r.epoch), trial_name(r.number, r.params).partition(": ")[2])
        for r in ranked[:10]
    ]
    show_table(
        f"Study {summary.name}: trials trained to the end", ["trial", definition.metric, "epochs", "settings"], rows
    )
    finals = [
        (str(final.seed), number(final.val), *(number(m.get("roc_auc")) for m in final.tests.values()))
        for final in summary.finals
    ]
    if summary.finals:
        mean = spread([final.val for final in summary.finals])
        assert mean is not None
        tests = list(summary.finals[0].tests)
        finals.append(("mean", number(mean.mean), *("" for _ in tests)))
        finals.append(("sd", number(mean.sd), *("" for _ in tests)))
        show_table("The winner, trained again", ["seed", definition.metric, *(f"{t} AUC" for t in tests)], finals)
    found = verdict(summary)
    console = out()
    for failed in summary.failed_finals:
        console.print(f"[red]failed[/] with seed {failed.seed}: {plain(failed.reason)}", soft_wrap=True)
    console.print(
        f"against the baseline ({number(summary.baseline)}): {found.word}: {plain(found.reason)}", soft_wrap=True
    )
    console.print(f"epochs: {spent.epochs} of the {spent.full_epochs} of a full search", soft_wrap=True)


def show_status(status: StudyStatus, metric: str) -> None:
    """How far a study is."""
    counts = ", ".join(f"{count} {name}" for name, count in status.counts.items() if count)
    rows = [
        ("trials", f"{status.ended} of {status.total} ended ({counts or 'none begun'})"),
        ("epochs", f"{status.epochs_spent} of {status.epochs_planned}"),
        ("workers", f"{len(status.workers) or 'none'} alive, begun with {status.begun_with}"),
        ("final trainings", f"{status.finals_done} of {status.finals_planned}"),
        ("elapsed", _duration(status.seconds_elapsed)),
        ("left", _duration(status.seconds_left)),
    ]
    if status.interrupted:
        rows.insert(1, ("interrupted", f"{status.interrupted}: the same command takes them up again"))
    if status.best:
        best = status.best
        rows.insert(
            0,
            (
                "best so far",
                f"{trial_name(best.trial, best.params)}: {metric} {number(best.value)} after epoch {best.epoch}",
            ),
        )
    show_table(f"Study {status.name}", ["", ""], rows)
    if status.workers:
        working = [
            (w.name, f"trial {w.trial}", f"epoch {w.epoch} of {w.stop_epoch}", f"{w.seconds_silent:.0f} s ago")
            for w in status.workers
        ]
        show_table("Workers", ["worker", "trains", "done", "last sign"], working)


def show_findings(found: Sequence[Finding], mended: Sequence[Finding]) -> None:
    """What a check-up found, and what of it was mended."""
    done = set(mended)
    console = out()
    for finding in found:
        if finding in done:
            mark, what = "[green]mended[/]", finding.mend
        elif finding.mend:
            mark, what = "[yellow]found[/]", f"--fix: {finding.mend}"
        else:
            mark, what = "[cyan]found[/]", ""
        console.print(f"{mark} {plain(finding.message)}" + (f" ({plain(what)})" if what else ""), soft_wrap=True)
    if not found:
        console.print("Optuna and MLflow agree; nothing is left behind")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNDEFINED
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
