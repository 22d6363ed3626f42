"""What a person types: commands parse, call and show. Heavy imports wait inside the commands."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dftrack.errors import EXIT_INTERRUPTED, DftrackError, Interrupted, SettingError

if TYPE_CHECKING:
    from dftrack.config import Config, Value
    from dftrack.experiment import Result

app = typer.Typer(
    name="dftrack",
    help="Train, search, judge and release CNNs that tell deepfake faces from real ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare and check data sets.", no_args_is_help=True, rich_markup_mode=None)
study_app = typer.Typer(help="Search the settings: a study that survives anything.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")

Store = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="DFTRACK_STORE",
        callback=lambda path: path.expanduser(),
        help="Folder of mlflow.db, artifacts/, the decoded pictures and checkpoints.",
    ),
]
STORE = Path("mlruns")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, all else on stderr.")]


def main() -> None:
    """Run the command line; the exit code says what happened (see `dftrack --help`)."""
    try:
        app()
    except DftrackError as error:
        _exit(error, error.exit_code)
    except Interrupted as stopped:
        _exit(stopped, stopped.exit_code)
    except KeyboardInterrupt as stopped:
        _exit(stopped, EXIT_INTERRUPTED)


def _exit(error: DftrackError | Interrupted | KeyboardInterrupt, code: int) -> None:
    from dftrack import render

    render.show_error(error)
    sys.exit(code)


@app.command(
    epilog="Example: dftrack baseline --data faces/ --epochs 3 --set model.dropout=0.3  ·  Exit codes: 0 done, "
    "2 setting, 3 data, 4 store, 5 device, 6 training, 130 Ctrl-C, 143 SIGTERM (the same command goes on)."
)
def baseline(
    data: Annotated[
        str, typer.Option(help="'sample', a folder of real and fake pictures, or a manifest.csv.")
    ] = "sample",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures [10].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, dropout and augmentation [0].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda [auto].")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16 [auto].")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, for example model.dropout=0.3."),
    ] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Train the reference network, judge it, and record everything in MLflow."""
    shorthand = {
        "data.source": data,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.device": device,
        "train.precision": precision,
    }
    config = _configure({name: value for name, value in shorthand.items() if value is not None}, settings or [])
    result = _run(config, store)

    from dftrack import render

    assert result.final is not None, "a baseline always trains to its end"
    final = result.final
    if as_json:
        render.print_json(
            {
                "run_id": result.run_id,
                "status": "FINISHED",
                "metrics": final.flat(),
                "settings": {**final.settings},
                "data_digest": final.data_digest,
                "store": str(store.resolve()),
            }
        )
        return
    render.show_results({r.split: r.metrics for r in final.reports}, {r.split: r.always_fake for r in final.reports})
    where = "" if store == STORE else f" --store {shlex.quote(str(store))}"
    render.say(f"run {result.run_id} is FINISHED. Pictures, curves and the model:  dftrack ui{where}")
    render.say(f"score your own pictures:  dftrack predict PICTURE... --run {result.run_id[:8]}{where}")


def _configure(shorthand: "dict[str, Value]", settings: list[str]) -> "Config":
    """The baseline's settings with the command line's on top."""
    from dftrack.config import Config, vary

    return vary(Config(), {**shorthand, **_pairs(settings)})


def _pairs(settings: list[str]) -> "dict[str, Value]":
    """What `--set NAME=VALUE` said, by name."""
    pairs: dict[str, Value] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set wants NAME=VALUE, got {text!r}", "for example --set model.dropout=0.3")
        pairs[name.strip()] = value.strip()
    return pairs


def _run(config: "Config", store: Path) -> "Result":
    """Run one experiment with a live screen; returns its result."""
    from dftrack.experiment import Result, run_experiment
    from dftrack.runtime import catch_stop_requests
    from dftrack.screens import Screen

    with catch_stop_requests() as stop, Screen() as screen:
        for event in run_experiment(config, store, stop=stop, watch=screen.show):
            screen.show(event)
            if isinstance(event, Result):
                return event
    raise AssertionError("an experiment ends with its Result")


@app.command(epilog="Example: dftrack predict face.jpg --run 3f2a --gradcam why.png")
def predict(
    images: Annotated[list[Path], typer.Argument(help="Picture files (JPEG, PNG, WebP).", metavar="IMAGE...")],
    run: Annotated[
        str | None, typer.Option(help="Run id, or its first letters [the newest finished baseline].")
    ] = None,
    gradcam: Annotated[Path | None, typer.Option(help="Write a panel that shows where the model looked.")] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Score picture files with a run's model: P(fake) and the verdict at its threshold."""
    from dftrack import render
    from dftrack.judging import explain_files, fetch_detector

    detector, run_id = fetch_detector(store, run)
    verdicts = list(detector.judge(images))
    if gradcam is not None:
        explain_files(detector, list(zip(images, verdicts, strict=True)), gradcam)
    if as_json:
        rows = [
            {"file": v.name, "score": v.score, "verdict": v.verdict or None, "status": v.status, "reason": v.reason}
            for v in verdicts
        ]
        render.print_json({"run_id": run_id, "threshold": detector.threshold, "pictures": rows})
    else:
        rows_shown = [(v.name, render.number(v.score), v.verdict or f"{v.status}: {v.reason}") for v in verdicts]
        render.show_table(
            f"run {run_id}, fake from {detector.threshold:g} on", ["picture", "P(fake)", "verdict"], rows_shown
        )
    if any(v.status != "ok" for v in verdicts):
        from dftrack.errors import DataError

        raise DataError("some pictures could not be read", "their rows above say why")


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="Port [the first free one from 5000 on].")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    store: Store = STORE,
) -> None:
    """Open the MLflow page on this store, until Ctrl-C."""
    import time

    from dftrack import render
    from dftrack.runtime import catch_stop_requests
    from dftrack.tracking import serve_ui

    with catch_stop_requests() as stop, serve_ui(store, host=host, port=port) as page:
        render.say(f"MLflow is at {page.url} (Ctrl-C ends it)")
        while stop.exit_code is None:
            time.sleep(0.2)


@data_app.command("check", epilog="Example: dftrack data check faces/")
def data_check(
    path: Annotated[str, typer.Argument(help="'sample', a folder, or a manifest.csv.")],
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Read every picture of a data set and say what is wrong: leaks between splits, unreadable files, shortcuts."""
    from dftrack import render
    from dftrack.data.audit import audit, blocking
    from dftrack.data.sources import find_pictures
    from dftrack.errors import DataError
    from dftrack.screens import Screen

    with Screen() as screen:
        listing = find_pictures(path, store, screen.advance)
        found = audit(listing, thorough=True, progress=screen.advance)
    if as_json:
        render.print_json({**dataclasses.asdict(found), "blocking": [finding.kind for finding in blocking(found)]})
    else:
        render.show_audit(found)
    if leaks := blocking(found):
        raise DataError(leaks[0].message, "a result on these data would not be worth its name; see the findings above")


@data_app.command("prepare", epilog="Example: dftrack data prepare openforensics OpenForensics/ crops/")
def data_prepare(
    kind: Annotated[str, typer.Argument(help="openforensics")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with the *_poly.json files and the scenes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the face crops, masks and manifest.csv.")],
    as_json: Json = False,
) -> None:
    """Cut the faces out of the OpenForensics scenes, with masks and a manifest. Can be stopped and continued."""
    from dftrack import render
    from dftrack.data.openforensics import prepare
    from dftrack.screens import Screen

    if kind != "openforensics":
        raise SettingError(f"there is no way to prepare {kind!r}", "known: openforensics")
    with Screen() as screen:
        made = prepare(
            source, out, progress=lambda done, total: screen.advance("cutting faces out of scenes", done, total)
        )
    if as_json:
        render.print_json(dataclasses.asdict(made))
    else:
        render.show_prepared(made)


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
    trials: Annotated[int | None, typer.Option(help="How many trials there are in the end [30].")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train trials at the same time.")] = 1,
    study_file: StudyFile = "default",
    data: Annotated[str | None, typer.Option(help="'sample', a folder, or a manifest.csv [sample].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial that is trained to the end [10].")] = None,
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
    changes = {name: value for name, value in shorthand.items() if value is not None} | _pairs(settings or [])
    definition = read_study(find_study_file(study_file)).revised(changes)

    from dftrack import render
    from dftrack.runtime import catch_stop_requests
    from dftrack.screens import StudyScreen
    from dftrack.study.session import Request, run_study

    request = Request(
        definition=definition,
        store=store,
        storage=storage,
        trials=trials,
        workers=workers,
        new=new,
        command=_again(sys.argv[1:]),
    )
    with catch_stop_requests() as stop, StudyScreen(definition) as screen:
        outcome = run_study(request, screen.show, stop)
    if as_json:
        render.print_json(outcome.plain())
        return
    render.show_study(outcome.summary)
    where = "" if store == STORE else f" --store {shlex.quote(str(store))}"
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
    from dftrack import render
    from dftrack.study.definition import find_study_file
    from dftrack.study.file import read_study
    from dftrack.study.opening import latest
    from dftrack.study.status import status
    from dftrack.study.storage import Storage
    from dftrack.tracking import open_tracker

    definition = read_study(find_study_file(study_file))
    opened = latest(Storage(_existing(storage or store / "optuna.db")), definition.name)
    found = status(opened, definition, open_tracker(store))
    if as_json:
        render.print_json(dataclasses.asdict(found))
    else:
        render.show_status(found, definition.metric)


@app.command(epilog="Example: dftrack doctor --fix. Exit code 1 if something is left that is not as it should be.")
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended, from what Optuna says.")] = False,
    storage: Database = "",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Compare Optuna with MLflow: zombies, doubles, missing runs, wrong states, checkpoints left behind."""
    from dftrack import render
    from dftrack.study import doctor as clinic
    from dftrack.study.storage import Storage
    from dftrack.tracking import open_tracker

    place = storage or store / "optuna.db"
    tracker = open_tracker(store)
    studies = clinic.studies_in(Storage(place)) if storage or Path(place).exists() else ()
    found = clinic.examine(tracker, studies)
    mended = clinic.fix(found, tracker, studies) if fix else ()
    left = [finding for finding in found if not fix or not finding.mend]
    if as_json:
        render.print_json(
            {"found": [dataclasses.asdict(f) for f in found], "mended": [dataclasses.asdict(f) for f in mended]}
        )
    else:
        render.show_findings(found, mended)
    if left:
        raise typer.Exit(1)


def _existing(place: str | Path) -> str | Path:
    """A storage to look at; a file that is not there is no study, and is not made."""
    from dftrack.errors import StoreError

    if "://" not in str(place) and not Path(place).exists():
        raise StoreError(f"there is no {place}, so no study yet", "start one: dftrack study --trials 30")
    return place
