"""Options and small readings that several commands share."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dftrack.errors import SettingError

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


def pairs(settings: list[str], option: str = "--set", example: str = "model.dropout=0.3") -> "dict[str, Value]":
    """What `--set NAME=VALUE`, or another option of that form, said, by name."""
    pairs: dict[str, Value] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"{option} wants NAME=VALUE, got {text!r}", f"for example {option} {example}")
        pairs[name.strip()] = value.strip()
    return pairs


def elsewhere(store: Path) -> str:
    """The words that name this store in a further command; "" for the usual one."""
    return "" if store == STORE else f" --store {shlex.quote(str(store))}"
