"""The commands that compare runs and release one of them: compare, promote, rollback."""

from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store

app = typer.Typer()


@app.command(
    epilog="Example: dftrack compare 3f2a 9c41 --out report/  ·  Exit codes: 0 done (whatever the verdict), 2 option, "
    "4 store or no such run."
)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run ids, or their first letters; the others are measured against the first.", metavar="RUN..."
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Compare the best trials of this study.")] = "",
    top: Annotated[int, typer.Option(help="How many of its trials.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.html and .png [comparisons/ in the store].")
    ] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Say what differs between runs, and whether one is better on the same pictures beyond chance."""
    from dftrack import comparison, comparison_page, render, render_release
    from dftrack.tracking import open_tracker

    tracker = open_tracker(store)
    found = comparison.compare(tracker, comparison.find_runs(tracker, runs or [], study, top))
    folder = out or tracker.store.folder / "comparisons" / comparison_page.folder_name(found.runs)
    page = comparison_page.write(found, folder)
    if as_json:
        render.print_json({**comparison_page.plain(found), "page": str(page)})
        return
    render_release.show_comparison(found)
    render.say(f"curves and tables: {page}")
