"""The commands that use a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store

app = typer.Typer()


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
