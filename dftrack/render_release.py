"""A comparison, and the gates of a promotion -> the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dftrack.comparison import SHORT_ID, Comparison, difference
from dftrack.registry import Promotion

KINDS = {
    "setting": "Settings that differ",
    "code": "Code that differs",
    "data": "Data that differ",
    "result": "Results",
}


def show_comparison(found: Comparison) -> None:
    """What differs, every test, and one sentence for each run."""
    out = _out()
    runs = [run.run_id[:SHORT_ID] for run in found.runs]
    for kind, title in KINDS.items():
        rows = [(each.name, *each.values) for each in found.differences if each.kind == kind]
        if rows:
            out.print(_table(title, ["", *runs], rows))
    if found.tests:
        rows = [
            (
                test.run[:SHORT_ID],
                test.split,
                test.metric,
                test.word,
                difference(test.paired),
                "undefined" if test.adjusted is None else f"{test.adjusted:.2g}",
                f"{test.pictures:,} / {test.groups:,}",
                test.method,
            )
            for test in found.tests
        ]
        columns = ["run", "split", "metric", "verdict", "difference", "p (Holm)", "pictures / groups", "test"]
        out.print(_table(f"Tests against {runs[0]} on the same pictures", columns, rows))
    for note in found.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)
    for sentence in found.verdicts():
        out.print(Text(sentence, style="bold"), soft_wrap=True)


def show_gates(found: Promotion) -> None:
    """Every gate with what it wanted and found, and what became of the run."""
    marks = {True: ("passed", "green"), False: ("failed", "red"), None: ("not judged", "yellow")}
    out = _out()
    if found.gates:
        table = Table("gate", "", "wanted", "found", title=Text(f"Run {found.run_id[:12]}"), title_justify="left")
        for gate in found.gates:
            word, colour = marks[gate.passed]
            table.add_row(Text(gate.name), Text(word, style=colour), Text(gate.wanted), Text(gate.found))
        out.print(table)
    name = f"{found.model}@{found.alias}"
    instead = f" instead of version {found.previous}" if found.previous else ""
    said = {
        "promoted": f"{name} is version {found.version}{instead}",
        "already": f"this run is {name} already: version {found.version}; nothing was done",
        "allowed": f"nothing stands against it: {name} would be a new version{instead}",
        "refused": f"refused: {name} stays {f'version {found.previous}' if found.previous else 'as it is'}",
    }
    out.print(Text(said[found.outcome], style="bold"), soft_wrap=True)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=Text(title), title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _out() -> Console:
    """Standard output; wide enough for a table when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
