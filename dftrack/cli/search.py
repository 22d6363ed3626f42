"""The commands of a study: search, its status, and the doctor who compares Optuna with MLflow."""

import dataclasses
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store, elsewhere, existing, keep_to_processors, pairs
from dftrack.errors import Interrupted, SettingError

app = typer.Typer()
study_app = typer.Typer(help="Search the settings: a study that survives anything.", rich_markup_mode=None)

StudyFile = Annotated[
    str, typer.Option("--study", help="A study file (.toml), or the name of one: default, rich, grid.")
]
Database = Annotated[
    str, typer.Option("--storage", help="Optuna storage: a path or postgresql://... [optuna.db in the store].")
]


@study_app.callback(
    invoke_without_command=True,
    epilog="Example: dftrack study --trials 30 --workers 2. The same command goes on with a study that was stopped.",
)
def study(
    context: typer.Context,
    trials: Annotated[
        int | None, typer.Option(help="How many trials there are in the end [as before, else the study file's].")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that train trials at the same time [as before; at first as this machine does best]."
        ),
    ] = None,
    study_file: StudyFile = "default",
    data: Annotated[str | None, typer.Option(help="'sample', a folder, or a manifest.csv [sample].")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of a trial that is trained to the end [the study file's].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda [auto].")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16 [auto].")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting that all trials share.")
    ] = None,
    storage: Database = "",
    new: Annotated[bool, typer.Option("--new", help="Start a fresh study beside the one of this name.")] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Search the settings; train the winner again with other seeds, and only then open the test splits."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from dftrack.study.definition import check_trials, find_study_file
    from dftrack.study.file import read_study

    if trials is not None:
        check_trials(trials)
    shorthand = {"data.source": data, "train.epochs": epochs, "train.device": device, "train.precision": precision}
    changes = {name: value for name, value in shorthand.items() if value is not None} | pairs(settings or [])
    definition = read_study(find_study_file(study_file)).revised(changes)

    from dftrack import render, render_study
    from dftrack.runtime import catch_stop_requests
    from dftrack.screens import StudyScreen
    from dftrack.study.begun import Request
    from dftrack.study.session import run_study

    request = Request(
        definition=definition,
        store=store,
        storage=storage,
        trials=trials,
        workers=workers,
        new=new,
        command=_again(sys.argv[1:]),
    )
    keep_to_processors()
    try:
        with catch_stop_requests() as stop, StudyScreen(definition) as screen:
            outcome = run_study(request, screen.show, stop)
    except Interrupted as request_to_stop:
        request_to_stop.command = request.command if new else ""
        raise
    if as_json:
        render.print_json(outcome.plain())
        return
    render_study.show_study(outcome.summary)
    where = elsewhere(store)
    render.say(f"run {outcome.run_id} holds the report, every trial and the plots:  dftrack ui{where}")


def _refuse_options(context: typer.Context) -> None:
    """Options before a subcommand belong to the search itself: dropped silently, they would mislead."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise SettingError(
                f"{option} stands before {context.invoked_subcommand}", "give options after the subcommand"
            )


def _again(words: list[str]) -> str:
    """The command that goes on with a study: what was typed, without what holds for one start only."""
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "--trials":
            words[:1] = []
        elif word not in ("--new", "--json") and not word.startswith("--trials="):
            kept.append(word)
    from dftrack.redaction import scrub

    return scrub(shlex.join(["dftrack", *kept]))


@study_app.command("status", epilog="Example: dftrack study status --study default")
def study_status(
    study_file: StudyFile = "default",
    storage: Database = "",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """How far a study is: trials, epochs, workers alive, the best so far. Only reads."""
    from dftrack import render, render_study
    from dftrack.study.definition import find_study_file
    from dftrack.study.file import read_study
    from dftrack.study.opening import latest
    from dftrack.study.status import status
    from dftrack.study.storage import Storage
    from dftrack.tracking import open_tracker

    definition = read_study(find_study_file(study_file))
    with Storage(_existing(storage or store / "optuna.db")) as place:
        found = status(latest(place, definition.name), definition, open_tracker(existing(store)))
    if as_json:
        render.print_json(dataclasses.asdict(found))
    else:
        render_study.show_status(found, definition.metric)


@app.command(epilog="Example: dftrack doctor --fix. Exit code 1 if something is left that is not as it should be.")
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended, from what Optuna says.")] = False,
    storage: Database = "",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Compare Optuna with MLflow: zombies, doubles, missing runs, wrong states, checkpoints left behind."""
    from dftrack import render, render_study
    from dftrack.study import doctor as clinic
    from dftrack.study.storage import Storage
    from dftrack.tracking import open_tracker

    place = storage or store / "optuna.db"
    tracker = open_tracker(existing(store))
    with ExitStack() as opened:
        there = storage or Path(place).exists()
        studies = clinic.studies_in(opened.enter_context(Storage(_existing(place)))) if there else ()
        found = clinic.examine(tracker, studies)
        mended = clinic.fix(found, tracker, studies) if fix else ()
    left = [finding for finding in found if not fix or not finding.mend]
    if as_json:
        render.print_json(
            {"found": [dataclasses.asdict(f) for f in found], "mended": [dataclasses.asdict(f) for f in mended]}
        )
    else:
        render_study.show_findings(found, mended)
    if left:
        raise typer.Exit(1)


def _existing(place: str | Path) -> str | Path:
    """A storage to look at; a file that is not there is no study, and is not made."""
    from dftrack.errors import StoreError

    if "://" not in str(place) and not Path(place).exists():
        raise StoreError(f"there is no {place}, so no study yet", "start one: dftrack study --trials 30")
    return place
