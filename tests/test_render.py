"""What is printed is what was said: names of files are no markup."""

import pytest

from dftrack import render
from dftrack.errors import DataError


@pytest.mark.parametrize("name", ["face [copy].jpg", "a[/b].jpg", "[bold]x[/bold].png"])
def test_brackets_in_a_name_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.show_table("[run] 1", ["picture", "verdict"], [(name, "real")])
    out = capsys.readouterr().out
    assert name in out
    assert "[run] 1" in out
    render.show_error(DataError(f"cannot read {name}", f"mend {name}"))
    assert capsys.readouterr().err.count(name) == 2


def test_the_command_that_goes_on_leaves_out_what_holds_for_one_start() -> None:
    from dftrack.cli.search import _again

    words = ["study", "--trials", "30", "--new", "--data", "my faces", "--trials=40", "--json"]
    assert _again(words) == "dftrack study --data 'my faces'"
