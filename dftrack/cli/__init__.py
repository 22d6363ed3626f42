"""What a person types: commands parse, call and show. Heavy imports wait inside the commands.

Each file holds the commands of one task; here they are joined, and errors become exit codes.
"""

import sys
from collections.abc import Sequence

import typer

from dftrack.cli import data, judge, look, release, search, train, use
from dftrack.errors import EXIT_INTERRUPTED, DftrackError, Interrupted, SettingError

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
        _refuse_empty(sys.argv[1:])
        app()
    except DftrackError as error:
        _exit(error, error.exit_code)
    except Interrupted as stopped:
        _exit(stopped, stopped.exit_code)
    except KeyboardInterrupt as stopped:
        _exit(stopped, EXIT_INTERRUPTED)


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise SettingError for an empty word, as an unset "$RUN" is: it would mean the default, or this folder."""
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value:
            raise SettingError(f"{option} is empty", "give it a value, or leave it out")
        if not word:
            where = f" after {before}" if before else ""
            raise SettingError(f"the word{where} is empty", "give it a value, or leave it out")


def _exit(error: DftrackError | Interrupted | KeyboardInterrupt, code: int) -> None:
    from dftrack import render

    render.show_error(error)
    sys.exit(code)
