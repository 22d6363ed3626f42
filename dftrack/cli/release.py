"""The commands that compare runs and release one of them: compare, promote, rollback."""

from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store, existing
from dftrack.errors import SettingError

app = typer.Typer()

Model = Annotated[str, typer.Option(help="Name of the registered model.")]
Alias = Annotated[str, typer.Option(help="The name that points at one version of it.")]


@app.command(
    epilog="Example: dftrack compare 3f2a 9c41 --out report/  ·  Exit codes: 0 done (whatever the verdict), 2 option, "
    "4 store or no such run."
)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run ids, or their first letters; the others are measured against the first.", metavar="RUN"
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Compare the best trials of this study.")] = "",
    top: Annotated[int | None, typer.Option(help="How many of its trials [5].")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.html and .png [comparisons/ in the store].")
    ] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Say what differs between runs, and whether one is better on the same pictures beyond chance."""
    from dftrack import comparison, comparison_page, render, render_release
    from dftrack.tracking import open_tracker

    if top is not None and not study:
        raise SettingError("--top belongs to --study", "leave it out, or name a study")
    tracker = open_tracker(existing(store))
    named = comparison.find_runs(tracker, runs or [], study, 5 if top is None else top)
    found = comparison.compare(tracker, named)
    folder = out or tracker.store.folder / "comparisons" / comparison_page.folder_name(found.runs)
    page = comparison_page.write(found, folder)
    if as_json:
        render.print_json({**comparison_page.plain(found), "page": str(page)})
        return
    render_release.show_comparison(found)
    render.say(f"curves and tables: {page}")


@app.command(
    epilog="Example: dftrack promote 3f2a --explain  ·  Exit codes: 0 promoted (or it is the champion already), 2 "
    "option, 3 data, 4 store or no such run, 9 refused by a gate, also with --explain: no alias was moved."
)
def promote(
    run: Annotated[str, typer.Argument(help="Run id, or its first letters.")],
    model: Model = "dftrack",
    alias: Alias = "champion",
    explain: Annotated[bool, typer.Option("--explain", help="Show the gates and change nothing.")] = False,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Pass over failed gates for this reason; it is recorded.")
    ] = "",
    min_pictures: Annotated[int, typer.Option(help="Test pictures that there must be.")] = 200,
    margin: Annotated[float, typer.Option(help="AUC that may be missing against the champion.")] = 0.02,
    robustness_margin: Annotated[float, typer.Option(help="Mean AUC under corruption that may be missing.")] = 0.03,
    max_ece: Annotated[float, typer.Option(help="Largest calibration error, after the temperature.")] = 0.15,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Release a run's model if it passes every gate: it becomes a version, and the alias points at it."""
    from dftrack import render, render_release
    from dftrack.gates import Limits
    from dftrack.registry import Request
    from dftrack.registry import promote as promote_run
    from dftrack.screens import Screen
    from dftrack.tracking import open_tracker

    limits = Limits(pictures=min_pictures, margin=margin, robustness=robustness_margin, ece=max_ece)
    request = Request(run=run, model=model, alias=alias, limits=limits, override=override, explain=explain)
    with Screen() as screen:
        found = promote_run(open_tracker(existing(store)), request, screen.advance, render.say)
    if as_json:
        render.print_json(found.plain())
    else:
        render_release.show_gates(found)
    if found.outcome == "refused":
        raise found.refusal()


@app.command(
    epilog="Example: dftrack rollback  ·  Exit codes: 0 done, 2 option, 4 store, 9 there is nothing to go back to."
)
def rollback(
    model: Model = "dftrack",
    alias: Alias = "champion",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Let the alias point again at the version that the present one replaced."""
    import dataclasses

    from dftrack import render
    from dftrack.registry import rollback as roll_back
    from dftrack.tracking import open_tracker

    done = roll_back(open_tracker(existing(store)), model, alias, render.say)
    if as_json:
        render.print_json(dataclasses.asdict(done))
    else:
        render.say(f"{model}@{alias} is version {done.version} again (run {done.run_id[:12]}), not {done.left}")
