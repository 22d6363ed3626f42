"""The commands that use a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store, existing, keep_to_processors

app = typer.Typer()

Model = Annotated[
    str | None,
    typer.Option(help="NAME@ALIAS, NAME/VERSION or a run id [dftrack@champion, else the newest baseline]."),
]


@app.command(
    epilog="Example: dftrack predict holiday/ 'more/**/*.jpg' --csv > scores.csv  ·  Exit codes: 0 every picture was "
    "scored, 1 a library is missing or nobody reads the rows, 2 option, 3 some pictures could not be read (their rows "
    "say why, all others are complete) or none was found, 4 store, no such model or a heat map that "
    "cannot be written, 8 damaged model, 130 Ctrl-C, 143 SIGTERM."
)
def predict(
    pictures: Annotated[
        list[str],
        typer.Argument(help="Files, folders (JPEG, PNG and WebP in them) and patterns.", metavar="PATH"),
    ],
    model: Model = None,
    run: Annotated[str | None, typer.Option(help="Run id, or its first letters, instead of --model.")] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Comma-separated rows: file,score,verdict,probability,status,reason.")
    ] = False,
    gradcam: Annotated[
        Path | None,
        typer.Option(help="Show where the model looked: a folder for a PNG each, or one FILE.png for the first 16."),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Find the faces in whole scenes: a row a face. Needs dftrack[faces].")
    ] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Score pictures: P(fake), the verdict at the model's threshold, and the calibrated probability.

    A row a picture on standard output, as they come.
    """
    from dataclasses import replace

    from dftrack import render
    from dftrack.data.faces import FaceFinder
    from dftrack.data.named import find_pictures
    from dftrack.errors import DataError, DftrackError, Interrupted, SettingError, StoreError
    from dftrack.judging import Panels, fetch_detector, judge_files
    from dftrack.render_verdicts import JudgingScreen, rows_to
    from dftrack.runtime import catch_stop_requests

    if model and run:
        raise SettingError("--model and --run both name the model", "give one of them")
    if as_csv and as_json:
        raise SettingError("--csv and --json both name the form of the rows", "give one of them")
    named = find_pictures(pictures)
    finder = FaceFinder() if faces else None
    detector, run_id, described, caution = fetch_detector(existing(store), model or run)
    keep_to_processors()
    render.warn(caution)
    panels = Panels(detector, gradcam) if gradcam is not None else None
    rows = rows_to("csv" if as_csv else "json" if as_json else "plain", faces=faces)
    found = dict.fromkeys(("fake", "real", *(["no face"] if faces else []), "unreadable"), 0)
    for note in named.notes:
        render.say(f"note: {note}")
    without_map = 0
    about: dict[str, object] = {
        "model": described,
        "run_id": run_id,
        "threshold": detector.threshold,
        "temperature": detector.temperature,
        "counts": found,
        "notes": list(named.notes),
    }
    with catch_stop_requests() as stop, JudgingScreen(None if faces else len(named.paths)) as screen:
        try:
            for judged in judge_files(detector, named.paths, finder):
                verdict, heat_map = judged.verdict, None
                try:
                    heat_map = panels.add(judged) if panels else None
                except DftrackError as error:
                    verdict = replace(verdict, reason=f"no heat map: {error.message}")
                    without_map += 1
                rows.add(verdict, str(heat_map) if heat_map else None, judged.face)
                found[verdict.verdict or verdict.status] += 1
                screen.advance()
                if stop.exit_code is not None:
                    raise Interrupted(stop.exit_code, goes_on=False)
        except (DftrackError, Interrupted):  # what was judged until now can be read
            rows.finish({**about, "complete": False, "images_per_second": screen.images_per_second})
            raise
        speed = screen.images_per_second
    undrawn: DftrackError | None = None
    try:
        panel = panels.finish() if panels else None
    except DftrackError as error:
        panel, undrawn = None, error
    drawn = {"heat_map": str(panel)} if panel else {}
    rows.finish({**about, **drawn, "complete": True, "images_per_second": speed})
    told = ", ".join(f"{count:,} {word}" for word, count in found.items())
    render.say(f"{described}, fake from {detector.threshold:g} on: {told} ({speed:.1f} images/s)")
    if detector.temperature is None:
        render.say("this model was not calibrated: P(fake) orders pictures, but is no probability")
    if undrawn:
        raise undrawn
    if without_map:
        raise StoreError(f"{without_map:,} heat maps could not be made", "their rows say why; all scores count")
    if bad := found["unreadable"]:
        raise DataError(
            f"{bad:,} of {len(named.paths):,} pictures could not be read", "their rows above say why; all others count"
        )


@app.command(
    epilog="Example: dftrack serve --model dftrack@champion  ·  Exit codes: 2 option, or the port is taken, 4 store or "
    "no such model, 8 damaged model, 130 Ctrl-C, 143 SIGTERM."
)
def serve(
    model: Model = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for any [the first free one from 5001 on].")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Serve a model over HTTP until Ctrl-C: a page to drop a picture on, and MLflow's /invocations.

    Pictures only, as bytes to /judge or base64 to /invocations; at most 16 MiB, 64 pictures and 50 million pixels in a
    request.
    """
    import time
    from functools import partial

    from dftrack import render
    from dftrack.errors import Interrupted
    from dftrack.runtime import catch_stop_requests
    from dftrack.server import listen

    with catch_stop_requests() as stop, listen(host, port) as taken:
        from dftrack.guard import Limits, names_for
        from dftrack.judging import fetch_detector, judge_and_explain
        from dftrack.server import make_app
        from dftrack.server import serve as serve_app

        detector, run_id, described, caution = fetch_detector(existing(store), model)
        keep_to_processors()
        render.warn(caution)
        judge = partial(judge_and_explain, detector)
        names = names_for(host, taken.getsockname()[0])
        app = make_app(detector, judge, described, limits=Limits(), names=names)
        with serve_app(taken, app) as serving:
            if as_json:
                render.print_json({"url": serving.url, "model": described, "run_id": run_id})
            render.say(f"{described} is at {serving.url} (Ctrl-C ends it)")
            while stop.exit_code is None and serving.alive():
                time.sleep(0.1)
        if stop.exit_code is not None:
            raise Interrupted(stop.exit_code, goes_on=False)


@app.command(
    epilog="Example: dftrack export dftrack@champion --format onnx --out face.onnx  ·  Exit codes: 0 written and "
    "checked, 1 a library is missing, 2 option, 4 store or no such model, or the place cannot be written, 8 damaged "
    "model, or other numbers in the other runtime (nothing is kept)."
)
def export(
    model: Annotated[
        str | None,
        typer.Argument(help="NAME@ALIAS, NAME/VERSION or a run id [dftrack@champion, else the newest baseline]."),
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, safetensors or torchexport.")] = "onnx",
    out: Annotated[
        str | None, typer.Option(help="Where to [detector.onnx, the folder detector/, or detector.pt2].")
    ] = None,
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Write a model for another runtime: pictures as uint8 in, P(fake) out, the same within 1e-4 or nothing."""
    from dftrack import render
    from dftrack.errors import SettingError
    from dftrack.export import TOLERANCE, USUAL_NAMES
    from dftrack.export import export as write
    from dftrack.judging import fetch_detector

    if kind not in USUAL_NAMES:
        raise SettingError(f"there is no format {kind!r}", f"choose one of {', '.join(USUAL_NAMES)}")
    detector, run_id, described, caution = fetch_detector(existing(store), model)
    render.warn(caution)
    place = Path(out) if out is not None else None
    if place is not None and str(out).endswith("/") and kind != "safetensors":  # a folder, though it is not there yet
        place /= USUAL_NAMES[kind]
    written = write(detector, kind, place)
    if as_json:
        render.print_json(
            {
                "path": str(written.path),
                "format": kind,
                "sha256": written.sha256,
                "bytes": written.bytes,
                "largest_difference": written.largest_difference,
                "model": described,
                "run_id": run_id,
                "threshold": detector.threshold,
                "temperature": detector.temperature,
                "image_size": detector.image_size,
            }
        )
    render.say(
        f"{described} is at {written.path} ({written.bytes / 1e6:.1f} MB); its scores are within "
        f"{max(written.largest_difference, 1e-7):.0e} of the model's (allowed: {TOLERANCE:g})"
    )
