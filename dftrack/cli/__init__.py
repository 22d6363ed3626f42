"""What a person types: commands parse, call and show. Heavy imports wait inside the commands.

Each file holds the commands of one task; here they are joined, and errors become exit codes.
"""

import sys

import typer

from dftrack.cli import data, judge, look, release, search, train, use
from dftrack.errors import EXIT_INTERRUPTED, DftrackError, Interrupted

app = typer.Typer(
    name="dftrack",
    help="Train, search, judge and release CNNs that tell deepfake faces from real ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(train.app)
app.add_typer(search.app)
app.add_typer(judge.app)
app.add_typer(release.app)
app.add_typer(use.app)
app.add_typer(look.app)
app.add_typer(data.app, name="data")
app.add_typer(search.study_app, name="study")


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
