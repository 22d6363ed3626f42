"""The commands that compare runs and release one of them: compare, promote, rollback."""

import typer

app = typer.Typer()
