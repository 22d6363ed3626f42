"""Results -> the terminal: tables and messages. Only this module and `screens` (what moves) print."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dftrack.data.audit import Audit
from dftrack.data.openforensics import Prepared
from dftrack.errors import DftrackError, Interrupted
from dftrack.study.case import Finding
from dftrack.study.naming import trial_name
from dftrack.study.report import StudySummary, cost, ranking, verdict
from dftrack.study.status import StudyStatus
from dftrack.study.verdict import spread

SHOWN = {  # metric -> heading; the rest is in MLflow
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "AP",
    "eer": "EER",
    "log_loss": "log loss",
    "brier": "Brier",
}
UNDEFINED = "undefined"


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; None is "undefined"."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def show_results(
    metrics: Mapping[str, Mapping[str, float | None]], always_fake: Mapping[str, Mapping[str, float | None]]
) -> None:
    """A table on standard output: one row a split, and under each what answering "fake" every time would get."""
    table = Table(title="Results (fake = positive)", title_justify="left")
    table.add_column("split")
    table.add_column("pictures", justify="right")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    for split, found in metrics.items():
        table.add_row(split, f"{found['n'] or 0:,.0f}", *(number(found[name], 3) for name in SHOWN))
        base = always_fake[split]
        table.add_row("  always fake", "", *(number(base[name], 3) for name in SHOWN), style="dim", end_section=True)
    _out().print(table)


def show_audit(audit: Audit) -> None:
    """The counts and every finding, the worst first."""
    show_table(
        f"{audit.source}",
        ["split", "real", "fake"],
        [(split, f"{of['real']:,}", f"{of['fake']:,}") for split, of in audit.counts.items()],
    )
    out, colours = _out(), {"error": "red", "warning": "yellow", "note": "cyan"}
    for finding in audit.findings:
        out.print(f"[{colours[finding.severity]}]{finding.severity}[/]: {_plain(finding.message)}", soft_wrap=True)
        for example in finding.examples:
            out.print(f"    {_plain(example)}", soft_wrap=True)
    if not audit.findings:
        out.print("nothing is wrong with it")


def show_prepared(made: Prepared) -> None:
    """What was cut out of how many scenes, and what was left out."""
    rows = [
        (split, f"{made.scenes.get(split, 0):,}", f"{of.get('real', 0):,}", f"{of.get('fake', 0):,}")
        for split, of in made.counts.items()
    ]
    show_table(f"{made.manifest}", ["split", "scenes", "real", "fake"], rows)
    if made.already_done:
        say(f"{made.already_done:,} scenes had been done before")
    for what, groups in (("left out", made.skipped), ("without a mask", made.unmasked)):
        for skipped in groups:
            say(f"{what}: {skipped.count:,} ({skipped.reason}), for example {', '.join(skipped.examples[:3])}")
    if made.absent:
        say(f"no annotations for: {', '.join(made.absent)}")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on standard output."""
    table = Table(*columns, title=Text(title), title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _out().print(table)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error (so that --json and --csv stay clean)."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def show_error(error: DftrackError | Interrupted | KeyboardInterrupt) -> None:
    """Two lines: what went wrong, what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, DftrackError):
        console.print(f"[red bold]error:[/] {_plain(error.message)}")
        if error.hint:
            console.print(f"[dim]hint:[/]  {_plain(error.hint)}")
    elif isinstance(error, Interrupted) and not error.goes_on:
        console.print("[yellow]stopped.[/]")
    else:
        console.print("[yellow]stopped.[/] The same command goes on where this one ended.")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _out() -> Console:
    """Standard output; wide enough for a table when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


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
    out = _out()
    out.print(
        f"against the baseline ({number(summary.baseline)}): {found.word}: {_plain(found.reason)}", soft_wrap=True
    )
    out.print(f"epochs: {spent.epochs} of the {spent.full_epochs} of a full search", soft_wrap=True)


def show_status(status: StudyStatus, metric: str) -> None:
    """How far a study is."""
    counts = ", ".join(f"{count} {name}" for name, count in status.counts.items() if count)
    rows = [
        ("trials", f"{status.ended} of {status.total} ended ({counts or 'none begun'})"),
        ("epochs", f"{status.epochs_spent} of {status.epochs_planned}"),
        ("workers", str(len(status.workers)) if status.workers else "none alive"),
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
    out = _out()
    for finding in found:
        if finding in done:
            mark, what = "[green]mended[/]", finding.mend
        elif finding.mend:
            mark, what = "[yellow]found[/]", f"--fix: {finding.mend}"
        else:
            mark, what = "[cyan]found[/]", ""
        out.print(f"{mark} {_plain(finding.message)}" + (f" ({_plain(what)})" if what else ""), soft_wrap=True)
    if not found:
        out.print("Optuna and MLflow agree; nothing is left behind")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNDEFINED
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
