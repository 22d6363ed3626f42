"""The commands that judge a model anew and prove recorded numbers."""

import dataclasses
import math
from decimal import Decimal
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store, elsewhere, existing, keep_to_processors, pairs
from dftrack.errors import SettingError

MOST_DIGITS = 15  # that a float can tell apart

app = typer.Typer()


@app.command(
    epilog="Example: dftrack evaluate 3f2a --data other-faces/ --split test  ·  Exit codes: 0 done, 2 setting, 3 data, "
    "4 store or no such model, 8 damaged model."
)
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="A run's first letters, NAME@alias or NAME/3 [the champion, else the newest baseline]."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="'sample', a folder, or a manifest.csv [what the model was trained on].")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="A split, can be given again [val and the test splits].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Hold a model against a data set: intervals, thresholds, calibration, weak spots, robustness, explanations.

    --json prints the metrics and all that the run's evaluation.json holds; null is what is undefined.
    """
    from dftrack import render
    from dftrack.reassessment import Request, evaluate
    from dftrack.screens import Screen
    from dftrack.tracking import open_tracker

    keep_to_processors()
    with Screen() as screen:
        found = evaluate(
            open_tracker(existing(store)), store, Request(model, data, tuple(split or ()), device), screen.advance
        )
    render.warn(found.caution)
    if as_json:
        render.print_json(
            {
                "run_id": found.run_id,
                "status": "FINISHED",
                "model": found.model,
                "metrics": found.flat(),
                "data_digest": found.data_digest,
                "notices": list(found.notices),
                **found.plain(),
            }
        )
        return
    render.show_results(found.reports, found.intervals, found.floor)
    for notice in found.notices:
        if notice != found.caution:
            render.say(f"note: {notice}")
    render.say(f"{found.model}: run {found.run_id} holds the report and the errors:  dftrack ui{elsewhere(store)}")


@app.command(
    epilog="Example: dftrack verify 3f2a, or dftrack verify --published accuracy=.8278 --published precision=.8918  ·  "
    "Exit codes: 0 everything follows, 1 something does not, 2 setting, 4 store or no such run."
)
def verify(
    run: Annotated[str | None, typer.Argument(help="Run id, or its first letters [the newest baseline].")] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Check a printed table: accuracy, precision, recall, f1, share_fake."),
    ] = None,
    digits: Annotated[
        int | None, typer.Option(help="Digits after the point that were printed [as many as each was typed with].")
    ] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Compute every logged metric again from the stored predictions, and say which do not follow."""
    from dftrack import render, render_judgement
    from dftrack.tracking import open_tracker
    from dftrack.verification import check_published
    from dftrack.verification import verify as verify_run

    if published:
        if run is not None:
            raise SettingError("--published checks a printed table, not a run", "leave out one of the two")
        numbers, typed = _numbers(published)
        table = check_published(numbers, typed if digits is None else digits)
        if as_json:
            possible = not table.contradictions if table.checked else None
            verdict = render_judgement.verdict(table)
            render.print_json({**dataclasses.asdict(table), "possible": possible, "verdict": verdict})
        else:
            render_judgement.show_published(table)
        raise typer.Exit(1 if table.contradictions else 0)
    if digits is not None:
        raise SettingError("--digits belongs to --published", "leave it out")
    tracker = open_tracker(existing(store))
    found = verify_run(tracker, run or tracker.latest_run(tags={"dftrack.kind": "baseline"}).run_id)
    if as_json:
        render.print_json({**dataclasses.asdict(found), "holds": found.holds})
    else:
        render_judgement.show_verification(found)
    if not found.holds:
        raise typer.Exit(1)


def _numbers(published: list[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Name -> value, and name -> digits after the point, as typed."""
    known = ("accuracy", "precision", "recall", "f1", "share_fake")
    numbers: dict[str, float] = {}
    typed: dict[str, int] = {}
    for name, text in pairs(published, "--published", "accuracy=.8278", once=True).items():
        if name not in known:
            raise SettingError(f"--published knows no {name!r}", f"it knows {', '.join(known)}")
        try:
            numbers[name] = float(str(text))
        except ValueError:
            raise SettingError(f"--published {name} must be a number, got {text!r}") from None
        if math.isfinite(numbers[name]):
            typed[name] = max(0, -int(Decimal(str(text)).as_tuple().exponent))
    # a bare 0 or 1 is short for 0.0 or 1.00: as exact as the least exact of the others
    usual = min((count for count in typed.values() if count), default=1)
    return numbers, {name: min(typed.get(name, 0) or usual, MOST_DIGITS) for name in numbers}
