"""The commands that train: the reference network, and a recorded run once more."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dftrack.cli.options import STORE, Json, Settings, Store, elsewhere, existing, keep_to_processors, pairs

if TYPE_CHECKING:
    from dftrack.config import Config, Value
    from dftrack.experiment import Result
    from dftrack.rerun import Request, Verdict

app = typer.Typer()


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
    settings: Settings = None,
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
    with _data_ahead(config, store):
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
                "floor": final.floor,
                "store": str(store.resolve()),
            }
        )
        return
    render.show_results(final.reports, final.intervals, final.floor)
    where = elsewhere(store)
    render.say(f"run {result.run_id} is FINISHED. Pictures, curves and the model:  dftrack ui{where}")
    render.say(f"score your own pictures:  dftrack predict PICTURE... --run {result.run_id[:8]}{where}")


@app.command(
    epilog="Example: dftrack rerun 3f2a --set train.seed=1  ·  Exit codes: 0 done (whatever the verdict), 2 setting, "
    "3 the pictures are not the same ones, 4 store or no such run, 5 device, 6 training, 130 Ctrl-C, 143 SIGTERM (the "
    "same command goes on)."
)
def rerun(
    run: Annotated[str, typer.Argument(help="Run id, or its first letters.")],
    data: Annotated[str | None, typer.Option(help="Where its pictures lie now [where they lay].")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting that is to differ, for example train.seed=1."),
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Train although the pictures have changed.")] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Train a recorded run again as a new one and say whether the same comes out, bit for bit, and if not, why."""
    from dftrack.rerun import Request

    verdict = _rerun(Request(run=run, changes=pairs(settings or []), source=data, anyway=anyway), store)

    from dftrack import render, render_rerun

    if as_json:
        render.print_json({**verdict.plain(), "status": "FINISHED", "store": str(store.resolve())})
        return
    render_rerun.show_verdict(verdict)
    render.say(verdict.sentence())
    render.say(f"run {verdict.run_id} holds the verdict:  dftrack ui{elsewhere(store)}")


def _rerun(request: "Request", store: Path) -> "Verdict":
    """Train with a live screen; returns the verdict."""
    from dftrack.render_rerun import say_rebuilt
    from dftrack.rerun import Rebuilt, Verdict, rerun
    from dftrack.runtime import catch_stop_requests
    from dftrack.screens import Screen

    with catch_stop_requests() as stop, Screen() as screen:
        for event in rerun(request, existing(store), stop=stop, watch=screen.show):
            if isinstance(event, Verdict):
                return event
            if isinstance(event, Rebuilt):
                say_rebuilt(event)
            else:
                screen.show(event)
    raise AssertionError("a rerun ends with its verdict")


def _configure(shorthand: "dict[str, Value]", settings: list[str]) -> "Config":
    """The baseline's settings with the command line's on top."""
    from dftrack.config import Config, vary

    return vary(Config(), {**shorthand, **pairs(settings)})


def _data_ahead(config: "Config", store: Path) -> AbstractContextManager[None]:
    """The sample is made and decoded, where it is wanted and missing, while torch and MLflow are imported."""
    from dftrack.config import BASELINE_DATA
    from dftrack.data.ahead import sample_ahead

    return sample_ahead(config.data, store.expanduser()) if config.data.source == BASELINE_DATA else nullcontext()


def _run(config: "Config", store: Path) -> "Result":
    """Run one experiment with a live screen; returns its result."""
    from dftrack.experiment import Result, run_experiment
    from dftrack.runtime import catch_stop_requests
    from dftrack.screens import Screen

    keep_to_processors()
    with catch_stop_requests() as stop, Screen() as screen:
        for event in run_experiment(config, store, stop=stop, watch=screen.show):
            screen.show(event)
            if isinstance(event, Result):
                return event
    raise AssertionError("an experiment ends with its Result")
