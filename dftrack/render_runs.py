"""Lists of runs -> the terminal: a table, or comma-separated rows. Imports nothing heavy."""

import csv
import sys
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from dftrack.listing import Column, Listing
from dftrack.render import out, say
from dftrack.run_index import Known

SHORT_ID = 8  # characters of a run id that people read
COLOURS = {"FINISHED": "green", "FAILED": "red", "KILLED": "yellow", "RUNNING": "cyan"}


def show_runs(listing: Listing) -> None:
    """A table on standard output; nothing if no run fits."""
    if not listing.rows:
        return
    table = Table()
    for column in listing.columns:
        table.add_column(column.title, justify="right" if column.kind == "metric" else "left", overflow="fold")
    for row in listing.rows:
        table.add_row(*(_cell(column, value) for column, value in zip(listing.columns, row, strict=True)))
    out().print(table)


def write_csv(listing: Listing) -> None:
    """Comma-separated rows on standard output: whole run ids, numbers in full; what is not there is an empty cell."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    titles = [column.title for column in listing.columns]
    named = "run_id" in titles
    writer.writerow(titles if named else ["run_id", *titles])
    for run_id, row in zip(listing.run_ids, listing.rows, strict=True):
        cells = ["" if value is None else value for value in row]
        writer.writerow(cells if named else [run_id, *cells])
    sys.stdout.flush()


def write_names(names: Mapping[str, Sequence[str]]) -> None:
    """What can be asked for, as comma-separated rows on standard output."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["kind", "name"])
    writer.writerows((kind, name) for kind, of_kind in names.items() for name in of_kind)
    sys.stdout.flush()


def show_names(names: Mapping[str, Sequence[str]]) -> None:
    """What can be asked for: a line each, with what it is."""
    table = Table("is a", "name")
    for kind, of_kind in names.items():
        for name in of_kind:
            table.add_row(Text(kind, style="dim"), Text(name))
    out().print(table)


def say_how_many(listing: Listing) -> None:
    """How many runs fit, on standard error."""
    shown = len(listing.rows)
    text = f"{listing.found:,} of {listing.all:,} runs"
    if shown < listing.found:
        text += f", the first {shown:,} shown (--limit 0 shows all)"
    if listing.kinds:
        text += f"; kinds in this store: {', '.join(listing.kinds)}"
    say(text)


def _cell(column: Column, value: Known | None) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, float):
        return Text(_short(value))
    if (column.kind, column.name) == ("attribute", "run_id"):
        return Text(value[:SHORT_ID])
    if (column.kind, column.name) == ("attribute", "status"):
        return Text(value, style=COLOURS.get(value, ""))
    if column.name == "mlflow.parentRunId":
        return Text(value[:SHORT_ID])
    return Text(value)


def _short(value: float) -> str:
    """Four digits after the point; counts whole, small numbers with their exponent."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 2 and value.is_integer() else f"{value:.4f}"
