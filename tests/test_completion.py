"""The shell completes commands, options and their values, without loading anything heavy."""

import os
import subprocess
import sys

import pytest

COMPLETE = (
    "import sys; sys.argv = ['dftrack']\nfrom dftrack.__main__ import main\n"
    "try:\n    main()\nfinally:\n"
    "    heavy = {m.partition('.')[0] for m in sys.modules} & {'torch', 'mlflow', 'numpy', 'optuna', 'sklearn'}\n"
    "    print('heavy:', *sorted(heavy), file=sys.stderr)\n"
)


def completed(*words: str) -> tuple[list[str], str]:
    """What bash would be offered after these words, the last one unfinished; and what was loaded for it."""
    line = " ".join(["dftrack", *words])
    environment = os.environ | {
        "_DFTRACK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ru",), {"runs"}),
        (("re",), {"rerun"}),
        (("runs", "--so"), {"--sort"}),
        (("rerun", "--any"), {"--anyway"}),
        (("data", "ch"), {"check"}),
        (("ui", "--kind", "ba"), {"baseline"}),
    ],
)
def test_commands_options_and_values_are_completed(words: tuple[str, ...], offered: set[str]) -> None:
    found, loaded = completed(*words)
    assert offered <= set(found), f"after {words} the shell is offered {found}"
    assert loaded.strip().splitlines()[-1] == "heavy:", f"completing loads {loaded}"


def test_the_shell_is_told_how_to_ask() -> None:
    environment = os.environ | {"_DFTRACK_COMPLETE": "source_bash"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "complete -o default -F _dftrack_completion dftrack" in done.stdout, done.stdout
