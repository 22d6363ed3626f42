"""The commands that prepare and check data sets."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dftrack.cli.options import STORE, Json, Store
from dftrack.errors import SettingError

app = typer.Typer(help="Prepare and check data sets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("check", epilog="Example: dftrack data check faces/")
def data_check(
    path: Annotated[str, typer.Argument(help="'sample', a folder, or a manifest.csv.")],
    store: Store = STORE,
    as_json: Json = False,
) -> None:
    """Read every picture of a data set and say what is wrong: leaks between splits, unreadable files, shortcuts."""
    from dftrack import render
    from dftrack.data.audit import audit
    from dftrack.data.sources import find_pictures
    from dftrack.errors import DataError
    from dftrack.screens import Screen

    with Screen() as screen:
        listing = find_pictures(path, store, screen.advance)
        found = audit(listing, thorough=True, progress=screen.advance)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if as_json:
        render.print_json({**dataclasses.asdict(found), "blocking": [finding.kind for finding in errors]})
    else:
        render.show_audit(found)
    if errors:
        raise DataError(errors[0].message, "a result on these data would not be worth its name; see the findings above")


@app.command("prepare", epilog="Example: dftrack data prepare openforensics OpenForensics/ crops/")
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
