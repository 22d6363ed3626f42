"""The commands that judge a model anew and prove recorded numbers."""

import typer

app = typer.Typer()
