"""The commands that show what has been recorded."""

from typing import Annotated

import typer

from dftrack.cli.options import STORE, Store

app = typer.Typer()


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
