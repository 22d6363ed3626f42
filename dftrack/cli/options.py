"""Options and small readings that several commands share."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dftrack.errors import SettingError, StoreError

if TYPE_CHECKING:
    from dftrack.config import Value

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
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, for example model.dropout=0.3."),
]


def pairs(
    settings: list[str], option: str = "--set", example: str = "model.dropout=0.3", *, once: bool = False
) -> "dict[str, Value]":
    """What `--set NAME=VALUE`, or another option of that form, said, by name.

    Of a name given twice the last counts, as for every option; `once`: it is refused.
    """
    pairs: dict[str, Value] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"{option} wants NAME=VALUE, got {text!r}", f"for example {option} {example}")
        name, value = name.strip(), value.strip()
        if once and name in pairs:
            raise SettingError(
                f"{option} {name} was given twice: {pairs[name]!r} and {value!r}", "leave out one of them"
            )
        pairs[name] = value
    return pairs


def keep_to_processors() -> None:
    """Let torch, which this imports, compute with as many threads as this process may use processors."""
    from dftrack.data.parallel import cores
    from dftrack.runtime import limit_threads

    limit_threads(cores())


def existing(store: Path) -> Path:
    """`store`, for a command that uses what is recorded: a mistyped one is refused, not made anew.

    Raises StoreError. Where MLFLOW_TRACKING_URI names the store, the folder may be missing, but not a file it names.
    """
    from dftrack.run_index import sqlite_file

    if uri := os.environ.get("MLFLOW_TRACKING_URI", "").strip():
        database = sqlite_file(uri)
        if database is not None and not os.path.exists(database):
            raise StoreError(
                f"there is no {database.absolute()}, which MLFLOW_TRACKING_URI names",
                "correct it, or unset it for a local store (four slashes begin an absolute path)",
            )
    elif not os.path.exists(store / "mlflow.db"):  # unlike Path, it says no where it may not look
        raise StoreError(
            f"there is no store at {store}" + (": the folder holds no mlflow.db" if os.path.isdir(store) else ""),
            "name it with --store; dftrack baseline makes one",
        )
    return store


def elsewhere(store: Path) -> str:
    """The words that name this store in a further command; "" for the usual one."""
    return "" if store == STORE else f" --store {shlex.quote(str(store))}"
