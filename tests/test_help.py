"""The pages that answer --help are what Typer would say. How quickly they come: benchmarks/help.py."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dftrack import __main__ as entry
from dftrack.cli import app

PAGES = Path(entry.__file__).with_name("help")


def written_by_typer() -> dict[str, str]:
    """File name -> the help that Typer writes at the width of the pages, for every command."""

    def walk(command: Any, words: list[str], parent: Any) -> Iterator[tuple[str, str]]:
        wide = {"terminal_width": entry.COLUMNS, "max_content_width": entry.COLUMNS}
        context = type(command).context_class(command, info_name=words[-1], parent=parent, **wide)
        yield "-".join(words) + ".txt", command.get_help(context) + "\n"
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name], context)

    return dict(walk(typer.main.get_command(app), ["dftrack"], None))


def write_pages() -> None:
    """What `make help-pages` does."""
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob("*.txt"):
        old.unlink()
    for name, text in written_by_typer().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def test_every_help_page_is_what_typer_says() -> None:
    said = written_by_typer()
    stored = {page.name: page.read_text(encoding="utf-8") for page in PAGES.glob("*.txt")}
    assert stored == said, "the pages in dftrack/help are out of step with the commands: run `make help-pages`"


@pytest.mark.parametrize(
    "words", [[], ["baseline"], ["--help", "baseline"], ["nonsense", "--help"], ["../cli", "--help"]]
)
def test_what_is_no_question_for_a_known_page_goes_to_typer(words: list[str]) -> None:
    assert entry.help_page(words) is None


def test_a_narrow_terminal_is_answered_by_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    assert entry.help_page(["--help"]) is None
