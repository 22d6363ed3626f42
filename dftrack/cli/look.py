"""The commands that show what has been recorded."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dftrack.cli.options import STORE, Json, Store
from dftrack.errors import SettingError, StoreError

app = typer.Typer()
Kind = Literal["baseline", "trial", "final", "study", "rerun", "evaluation"]


@app.command(
    epilog="Example: dftrack runs --kind baseline --where 'test-dev/roc_auc>=0.8' --sort -test-dev/roc_auc  ·  Exit "
    "codes: 0 done (also if no run fits), 2 option or unknown name, 4 store."
)
def runs(
    kind: Annotated[list[str] | None, typer.Option(help="baseline, trial, final, study, ...; can be repeated.")] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="FINISHED, FAILED, KILLED, RUNNING, or pruned, ...; can be repeated.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="NAME<VALUE, <=, >, >=, =, !=, or ~ for contains; all of them must hold."
        ),
    ] = None,
    sort: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Sort by it; -NAME: the highest first [-started].")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="Settings, metrics and tags to show.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many to show; 0: all.")] = 30,
    names: Annotated[bool, typer.Option("--names", help="List the names that can be asked for instead.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated rows on standard output.")] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """List runs: filter, sort and choose columns by the names of settings, metrics and tags."""
    from dftrack.conditions import Condition
    from dftrack.listing import Query, find_runs, known_names, open_source

    if as_csv and as_json:
        raise SettingError("--csv and --json both name the form of the rows", "give one of them")
    if names and (kind or status or where or sort or columns):
        raise SettingError("--names lists all names: it takes no filter, order or columns", "leave out one of the two")
    query = Query(
        where=[Condition.read(text) for text in where or ()],
        kinds=kind or (),
        statuses=status or (),
        sort=sort or (),
        columns=[name.strip() for text in columns or () for name in text.split(",") if name.strip()],
        limit=limit,
    )
    with open_source(store) as source:
        known = known_names(source) if names else None
        found = find_runs(source, query)

    from dftrack import render, render_runs

    if as_json:
        render.print_json(found.plain() if known is None else known)
    elif known is not None:
        show = render_runs.write_names if as_csv else render_runs.show_names
        show(known)
    elif as_csv:
        render_runs.write_csv(found)
    else:
        render_runs.show_runs(found)
    if known is None:
        render_runs.say_how_many(found)


@app.command(
    epilog="Example: dftrack ui --kind baseline --open  ·  Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 option, 4 "
    "store, no free port, or the server died."
)
def ui(
    port: Annotated[int | None, typer.Option(help="Port [the first free one from 5000 on].")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    kind: Annotated[
        Kind | None, typer.Option(help="Begin with the runs of this kind only.", case_sensitive=False)
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the list of runs in the browser.")] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Serve the MLflow page on this store until Ctrl-C, and name the address of the runs, ready to compare."""
    import time
    import webbrowser

    from dftrack import render
    from dftrack.page_view import ready_view
    from dftrack.runtime import catch_stop_requests
    from dftrack.tracking import open_tracker, serve_ui

    with catch_stop_requests() as stop, serve_ui(store, host=host, port=port) as page:
        tracker = open_tracker(store)
        runs_url = page.url + tracker.offer_view(ready_view(_metrics(store), kind))
        if as_json:
            render.print_json({"url": page.url, "runs": runs_url, "experiment_id": tracker.experiment_id})
        render.say(f"MLflow is at {page.url} (Ctrl-C ends it)")
        render.say(f"finished runs, the best first, ready to compare: {runs_url}")
        if browser and not webbrowser.open(runs_url):
            render.say("no browser could be opened: open the address yourself")
        while stop.exit_code is None:
            if not page.alive():
                raise StoreError(f"the MLflow page has ended: {page.last_words()}", "run the command again")
            time.sleep(0.2)


def _metrics(store: Path) -> list[str]:
    """The names of the metrics that runs have."""
    from dftrack.listing import open_source

    with open_source(store) as source:
        return source.names("metric")
