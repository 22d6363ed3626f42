"""The documents hold: every command of the pages for each task runs, and the exit codes are those of the errors."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dftrack import __main__ as entry
from dftrack import config, errors
from dftrack.study.file import COUNTS, KEYS, PRUNING_KEYS
from tests.makers import make_faces
from tests.test_tree import commands_in, root_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "train-on-your-photos",
    "runs",
    "judge-and-verify",
    "search",
    "release",
    "serve",
)  # in the order they are tried
SMALL = ("--set", "data.image_size=16", "--set", "train.batch_size=8", "--epochs", "1")
# What is added to the words of a document, so that it takes seconds: the last one of an option counts.
SMALLER: dict[str, tuple[str, ...]] = {
    "baseline": SMALL,
    "study": SMALL[:4],
    "promote": ("--min-pictures", "4", "--override", "tiny data: only the way is tried"),
    "serve": ("--port", "0"),
    "ui": ("--port", "5200"),
}
CODES: dict[str, tuple[int, ...]] = {"serve": (143,)}  # else 0
EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # a format that needs what may not be installed
STUDY = """
name = "{name}"
trials = 2
final_seeds = 1
[base]
train.epochs = 1
[space]
train.learning_rate = {{ low = 1e-4, high = 1e-2, log = true }}
[pruning]
kind = "none"
"""
SERVERS = ("ui", "serve")


@dataclass
class Desk:
    """A folder with everything the documents speak of, and the store behind it."""

    folder: Path
    store: Path
    runs: dict[str, str]  # what a document calls a run -> its id

    def words(self, words: Sequence[str]) -> list[str]:
        """A document's command as it is tried."""
        words = [self.runs.get(word, word) for word in words]
        if words[0] == "study" and words[1] == "status":
            return words
        more = list(SMALLER.get(words[0], ()))
        if words[0] == "study":
            more += [] if "--study" in words else ["--study", "default.toml"]
            more += ["--trials", "2"]
        return [*words, *more]

    def try_out(self, words: Sequence[str]) -> str | None:
        """Carry out a command; what is wrong, None if nothing."""
        typed = self.words(words)
        into = None
        if ">" in typed:
            place = typed.index(">")
            into = self.folder / typed[place + 1]
            del typed[place : place + 2]
        if typed[0] in SERVERS:
            return serve_and_ask(typed)
        code, out, err = typed_at_a_terminal(typed)
        if into is not None:
            into.write_text(out)
        if code not in CODES.get(typed[0], (0,)):
            return f"exit code {code}: {err.strip()[-600:]}"
        return None


def typed_at_a_terminal(words: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command, in this process: torch is loaded once for all of them."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dftrack", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                entry.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def serve_and_ask(words: Sequence[str]) -> str | None:
    """Start a server, ask it once, end it; what is wrong, None if nothing."""
    command = [sys.executable, "-m", "dftrack", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        said = ""
        while (line := server.stdout.readline()) and line != "}\n":
            said += line
        if not said:
            return f"said nothing: {server.stderr.read()[-600:]}"
        try:
            with urllib.request.urlopen(json.loads(said + "}")["url"], timeout=60) as answer:
                status = answer.status
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    if status != 200 or code not in CODES.get(words[0], (0,)):
        return f"answered {status} and ended with {code}"
    return None


@pytest.fixture
def desk(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    faces = make_faces(folder / "faces", train=14, val=8, test=8)
    shutil.copytree(faces / "test-dev", folder / "other-faces" / "test-dev")
    for name in ("holiday", "more/deep"):
        shutil.copytree(faces / "val" / "real", folder / name)
    shutil.copy2(faces / "val" / "fake" / "val-fake-000.jpg", folder / "face.jpg")
    for name in ("default", "my-search"):
        (folder / f"{name}.toml").write_text(STUDY.format(name=name))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DFTRACK_STORE", str(store))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Desk(folder, store, {})


def a_baseline(seed: int) -> str:
    code, out, err = typed_at_a_terminal(
        ["baseline", "--data", "faces/", *SMALL, "--seed", str(seed), "--set", "train.learning_rate=0.001", "--json"]
    )
    assert code == 0, err
    return str(json.loads(out)["run_id"])


def missing(words: Sequence[str]) -> bool:
    """Does a command ask for a format whose libraries are not installed here?"""
    from importlib.util import find_spec

    return any(not all(map(find_spec, EXTRAS[word])) for word in words if word in EXTRAS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_pages_for_a_task_runs(desk: Desk) -> None:
    desk.runs |= {"3f2a": a_baseline(1)[:12], "9c41": a_baseline(2)[:12]}
    faults, tried = [], 0
    for page in PAGES:
        if page == "release":  # so that there is something to go back to
            assert desk.try_out(["promote", "3f2a"]) is None
        for line, words in commands_in((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
            if words[0] != "dftrack" or missing(words):
                continue
            tried += 1
            if fault := desk.try_out(words[1:]):
                faults.append(f"docs/{page}.md:{line}: {shlex.join(words)}: {fault}")
    assert tried > 25, f"only {tried} commands were found"
    assert not faults, "\n" + "\n".join(faults)


def test_every_page_for_a_task_is_linked_from_the_readme_and_holds_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"(docs/{page}.md)" in readme, f"README.md does not link docs/{page}.md"
        commands = [words for _, words in commands_in((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))]
        assert commands and all(words[0] == "dftrack" for words in commands), f"docs/{page}.md: {commands}"


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [
        name for name in root_command().commands if f"`dftrack {name}" not in readme and f"`{name}`" not in readme
    ]
    assert not missing, f"README.md says nothing of {missing}"


def test_the_tables_name_every_setting_and_every_key_of_a_study_file() -> None:
    def first_cells(page: str) -> set[str]:
        return set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE))

    assert first_cells("train-on-your-photos.md") == set(config.setting_types())
    sections = {"base": "[base]", "space": "[space]", "pruning": "[pruning]"}
    keys = {sections.get(key, key) for key in (*KEYS, *COUNTS)} | set(PRUNING_KEYS)
    assert first_cells("studies.md") == keys


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = {int(code): name for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", readme, flags=re.MULTILINE)}
    kinds = [errors.DftrackError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    own = {kind.exit_code: kind.__name__ for kind in kinds if "exit_code" in vars(kind)}
    assert documented == own, "the table of exit codes in README.md and dftrack/errors.py disagree"
    row = re.search(r"^\| (\d+), (\d+) \|", readme, flags=re.MULTILINE)
    assert row and (int(row[1]), int(row[2])) == (errors.EXIT_INTERRUPTED, errors.EXIT_TERMINATED)


def test_exit_codes_that_commands_name_are_documented() -> None:
    known = {
        0,
        1,
        errors.EXIT_INTERRUPTED,
        errors.EXIT_TERMINATED,
        *(k.exit_code for k in errors.DftrackError.__subclasses__()),
    }
    for name, command in root_command().commands.items():
        told = (command.epilog or "").partition("Exit codes:")[2]
        codes = {int(code) for code in re.findall(r"(?:^|[,:] |or )(\d{1,3})(?= [a-zA-Z])", told)}
        assert codes <= known, f"dftrack {name} --help names exit codes {sorted(codes - known)}"


def test_the_store_of_this_test_is_not_the_person_s(desk: Desk) -> None:
    assert os.environ["DFTRACK_STORE"] == str(desk.store) and Path.cwd() == desk.folder
