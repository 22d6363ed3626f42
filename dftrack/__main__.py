"""The first thing that runs. A question for help is answered from the pages in `help/`; all else goes to `cli`.

Importing Typer takes ten times as long as starting Python. The pages are what Typer says at 80 columns; a test holds
the two together, `make help-pages` writes them anew.
"""

import gc
import os
import sys

COLUMNS = 80  # the width of the pages
COLLECT = (10_000, 10, 10)  # objects and rounds between two looks for rubbish; Python's own are 700, 10, 10


def main() -> None:
    """Carry out the command line."""
    page = help_page(sys.argv[1:])
    if page is not None:
        sys.stdout.write(page)
        return
    gc.set_threshold(*COLLECT)  # half a million objects of torch and MLflow last: walking them took 0.9 s of a start
    from dftrack.cli import main as run
    from dftrack.runtime import end_quickly

    end_quickly()
    run()


def help_page(words: list[str]) -> str | None:
    """The page for `words` = COMMAND... --help, None if Typer has to answer (another width, or no such page)."""
    *commands, last = words or [""]
    if last != "--help" or not all(word.isalpha() for word in commands) or narrow():
        return None
    name = "-".join(["dftrack", *commands])
    try:
        with open(os.path.join(os.path.dirname(__file__), "help", f"{name}.txt"), encoding="utf-8") as page:
            return page.read()
    except FileNotFoundError:
        return None


def narrow() -> bool:
    """Has the terminal fewer columns than the pages?"""
    try:
        return os.get_terminal_size().columns < COLUMNS
    except OSError:  # a pipe or a file has any width
        return False


if __name__ == "__main__":
    main()
