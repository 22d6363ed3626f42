"""Results -> the terminal: tables and messages. Only this module and `screens` (what moves) print."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dftrack.errors import DftrackError, Interrupted

if TYPE_CHECKING:  # they bring torch and scikit-learn with them, which an error message does not need
    from dftrack.data.audit import Audit
    from dftrack.data.openforensics import Prepared
    from dftrack.learning.evaluation import Report
    from dftrack.learning.statistics import Interval

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
    reports: "Sequence[Report]",
    intervals: "Mapping[str, Mapping[str, Interval | None]]",
    floor: float | None,
) -> None:
    """A table on standard output: one row a split; under each its interval, and what it must be held against.

    intervals: split -> metric; floor: the AUC that the traits of the files alone reach.
    """
    table = Table(title="Results (fake = positive)", title_justify="left")
    table.add_column("split")
    table.add_column("pictures", justify="right")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    for found in reports:
        known = found.metrics
        table.add_row(found.split, f"{known['n'] or 0:,.0f}", *(number(known[name], 3) for name in SHOWN))
        if spans := intervals.get(found.split):
            for word, end in (("from", 0), ("to", 1)):
                cells = (_end(spans.get(name), end) for name in SHOWN)
                table.add_row(f"  95 % sure: {word}", "", *cells, style="cyan")
        base = found.always_fake
        table.add_row(
            "  always fake", "", *(number(base[name], 3) for name in SHOWN), style="dim", end_section=floor is None
        )
        if floor is not None:
            from dftrack.data.findings import floor_words

            cells = (floor_words(floor) if name == "roc_auc" else "" for name in SHOWN)
            table.add_row("  files alone", "", *cells, style="dim", end_section=True)
    out().print(table)


def _end(interval: "Interval | None", end: int) -> str:
    return UNDEFINED if interval is None else number((interval.low, interval.high)[end], 3)


def show_audit(audit: "Audit") -> None:
    """The counts and every finding, the worst first."""
    show_table(
        f"{audit.source}",
        ["split", "real", "fake"],
        [(split, f"{of['real']:,}", f"{of['fake']:,}") for split, of in audit.counts.items()],
    )
    console, colours = out(), {"error": "red", "warning": "yellow", "note": "cyan"}
    for finding in audit.findings:
        console.print(f"[{colours[finding.severity]}]{finding.severity}[/]: {plain(finding.message)}", soft_wrap=True)
        for example in finding.examples:
            console.print(f"    {plain(example)}", soft_wrap=True)
    if not audit.findings:
        console.print("nothing is wrong with it")


def show_prepared(made: "Prepared") -> None:
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
    out().print(table)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error (so that --json and --csv stay clean)."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def warn(text: str) -> None:
    """A warning on standard error; nothing for "", where there is nothing to warn of."""
    if text:
        say(f"warning: {text}")


def show_error(error: DftrackError | Interrupted | KeyboardInterrupt) -> None:
    """Two lines: what went wrong, what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, DftrackError):
        console.print(f"[red bold]error:[/] {plain(error.message)}")
        if error.hint:
            console.print(f"[dim]hint:[/]  {plain(error.hint)}")
    elif isinstance(error, Interrupted) and not error.goes_on:
        console.print("[yellow]stopped.[/]")
    else:
        command = error.command if isinstance(error, Interrupted) else ""
        how = f"{plain(command)}  goes on" if command else "The same command goes on"
        console.print(f"[yellow]stopped.[/] {how} where this one ended.")


def plain(text: str) -> str:
    """Text in which nothing is markup."""
    return text.replace("[", r"\[")


def out() -> Console:
    """Standard output; wide enough for a table when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
