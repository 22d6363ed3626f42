"""What lies in the repository: nothing private, a lock that can be trusted, documents whose commands exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIGGEST = 2_000_000  # bytes of one file

# Put together here, so that this file does not contain what it forbids.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("proxy", "golang", "org"),
        ("anaconda", "org"),
        ("ghcr", "io"),
        ("docker", "io"),
    )
)
# Places of one person's machine. Addresses inside the container image (docker/) are no such places.
MACHINE_PATHS = re.compile(r"(?<![\w.~/-])/(?:root|home|Users|work|mnt|opt/(?!venv\b)\w+)/[\w.-]+")
SECRETS = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
            r"\bAKIA[0-9A-Z]{16}\b",
            r"\bgh[pousr]_[A-Za-z0-9]{30,}",
            r"\bglpat-[\w-]{20,}",
            r"\bxox[abprs]-[\w-]{10,}",
            r"\bsk-[A-Za-z0-9_-]{24,}",
            r"\bAIza[\w-]{35}\b",
            r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
            r"\bdapi[0-9a-f]{32}\b",
        )
    )
)
MADE_UP = re.compile(r"example|made.?up|not.?real|0123456789|abcdefgh", re.IGNORECASE)  # of the tests of redaction


def committed() -> list[Path]:
    """Every file that is in the repository or would be with the next `git add`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is committed cannot be told")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in sorted(set(listed.stdout.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line of a text file; nothing for a binary one."""
    content = path.read_bytes()
    if b"\0" not in content[:8192]:
        for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
            yield f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{number}", line


def private_in(path: Path) -> list[str]:
    """What no stranger should read in a file: "file:line: what"."""
    faults = []
    for where, line in lines_of(path):
        faults += [f"{where}: the registry host {host}" for host in REGISTRIES if host in line]
        if found := MACHINE_PATHS.search(line):
            faults.append(f"{where}: the path {found[0]} of some machine")
        if (found := SECRETS.search(line)) and not MADE_UP.search(line):
            faults.append(f"{where}: {found[0][:8]}... looks like a secret")
    return faults


def test_no_committed_file_holds_a_registry_host_a_machine_s_path_or_a_secret() -> None:
    faults = [fault for path in committed() for fault in private_in(path)]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        "index: https://" + REGISTRIES[0] + "/simple",
        "data = '" + "/".join(("", "home", "ann", "faces")) + "'",
        "see " + "/".join(("", "root", ".cache")),
        "key = AKIA" + "Q" * 16,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ],
)
def test_a_planted_private_line_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "file.txt").write_text(f"harmless\n{line}\n")
    assert [fault.split(": ")[0] for fault in private_in(tmp_path / "file.txt")] == ["file.txt:2"]


def test_no_committed_file_is_big_or_made_by_a_run() -> None:
    for path in committed():
        name = path.relative_to(ROOT).as_posix()
        assert path.stat().st_size <= BIGGEST, f"{name} has {path.stat().st_size} bytes"
        assert path.suffix not in (".db", ".safetensors", ".pt", ".pth", ".pkl", ".pyc"), f"{name} is made by a run"


# The lock


def locked() -> dict[str, list[str]]:
    """Name -> the locked versions (more than one where Python versions differ)."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if found := re.match(r"([a-z0-9-]+)==(\S+)", line):
            pins.setdefault(found[1], []).append(found[2])
    return pins


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_every_requirement_is_locked_to_a_version_in_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = project()["dependencies"] + [r for extra in project()["optional-dependencies"].values() for r in extra]
    pins = locked()
    for requirement in map(Requirement, wanted):
        if requirement.name != "dftrack":
            versions = pins.get(canonicalize_name(requirement.name), [])
            assert versions, f"{requirement.name} is not in requirements.lock: run `make lock`"
            outside = [version for version in versions if version not in requirement.specifier]
            assert not outside, f"{requirement} is locked to {outside}: run `make lock`"


def test_every_locked_package_carries_hashes_and_the_lock_names_no_index_and_no_path() -> None:
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    bare = [block.split()[0] for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)]
    assert not bare, f"without a hash: {bare}"
    for forbidden in ("://", "--index", "--find", "file:", " @ "):
        assert forbidden not in text, f"requirements.lock contains {forbidden!r}"


def test_a_build_needs_only_what_is_locked() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [re.split(r"[<>=~!]", need)[0] for need in needs] == ["hatchling"], "the Makefile installs without isolation"
    assert "hatchling" in locked()


# Documents and the commands in them


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def root_command() -> Any:
    import typer.main

    from dftrack.cli import app

    return typer.main.get_command(app)


def fault_of_dftrack(words: list[str]) -> str | None:
    """What is wrong with the words after `dftrack`, by the command line's own definition; None if nothing."""
    command = root_command()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"there is no command {words[0]!r} (there are {', '.join(sorted(command.commands))})"
        command, words = command.commands[words[0]], words[1:]
    options = {
        "--help",
        *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)),
    }
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]
    return f"{command.name} has no option {unknown[0]}" if unknown else None


def commands_in(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every shell command in the fenced blocks of a Markdown text; continued lines are joined."""
    language, waiting, start = None, "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            language = None if language is not None else line.strip().removeprefix("```").strip()
        elif language in ("sh", "bash", "shell", "console"):
            if not waiting:
                start = number
                if language == "console" and not line.startswith("$ "):
                    continue  # what the command answers
                line = line.removeprefix("$ ")
            waiting += line.removesuffix("\\")
            if not line.endswith("\\"):
                for part in re.split(r"&&|\|\||[;|]", waiting):
                    if words := shlex.split(part, comments=True):
                        yield start, words
                waiting = ""


def fault_in_command(words: list[str]) -> str | None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case [program, *rest] if program.rpartition("/")[2] == "dftrack":
            return fault_of_dftrack([word for word in rest if not re.match(r"[<>&]", word)])
        case [python, "-m", "dftrack", *rest] if "python" in python:
            return fault_of_dftrack(rest)
        case ["make", *rest]:
            targets = [word for word in rest if "=" not in word and not word.startswith("-")]
            unknown = [target for target in targets if target not in make_targets()]
            return f"the Makefile has no target {unknown[0]}" if unknown else None
        case ["bash" | "sh", script, *_] if not script.startswith("-") and not (ROOT / script).is_file():
            return f"there is no file {script}"
    return None


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "mlruns" / "README.md"]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_document_exists(path: Path) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: `{shlex.join(words)}`: {fault}"
        for line, words in commands_in(path.read_text(encoding="utf-8"))
        if (fault := fault_in_command(words))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_in_a_document_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (path.parent / link).exists()]
    assert not missing, f"{path.relative_to(ROOT)} links to {missing}"


def test_the_readme_names_the_one_command_that_installs_and_the_one_that_tests() -> None:
    commands = [words for _, words in commands_in((ROOT / "README.md").read_text(encoding="utf-8"))]
    for target in ("baseline", "test"):
        assert any(words[:2] == ["make", target] for words in commands), f"README.md does not say `make {target}`"


def test_a_planted_wrong_command_is_found() -> None:
    lines = [
        "```sh",
        "make tset",
        "$ FOO=1 dftrack baseline --epoch 3 \\",
        "  --seed 1",
        "dftrack traim && make test",
        "```",
    ]
    text = "\n".join([*lines, "`dftrack no`"])
    faults = [(line, fault) for line, words in commands_in(text) if (fault := fault_in_command(words))]
    assert [line for line, _ in faults] == [2, 3, 5], faults
    assert [fault.partition(" (")[0] for _, fault in faults] == [
        "the Makefile has no target tset",
        "baseline has no option --epoch",
        "there is no command 'traim'",
    ]


# Installation, CI and containers


def test_make_says_which_python_it_needs_when_it_finds_none() -> None:
    run = subprocess.run(
        ["make", "--no-print-directory", "setup", "PYTHON=false", "VENV=no-such-venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert "error: none of these is a Python 3.11, 3.12 or 3.13: false" in run.stderr, run.stderr
    assert not (ROOT / "no-such-venv").exists()


@pytest.mark.parametrize(
    "target", ["setup", "baseline", "test", "test-all", "lint", "types", "lock", "screenshots", "clean"]
)
def test_make_explains_every_target(target: str) -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(rf"^{target} +\S", said, flags=re.MULTILINE), f"`make help` does not explain {target}"


def test_the_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "git keeps this bit: chmod +x .ci/run"
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    for step in ("test", "lint", "types"):
        assert step in make_targets() and re.search(rf"\b{step}\b", script.read_text())


def test_the_containers_name_files_and_commands_that_exist() -> None:
    folder = ROOT / "docker"
    composed = yaml.safe_load((folder / "compose.yaml").read_text())
    assert set(composed["services"]) == {"database", "page", "worker"}
    for name, service in composed["services"].items():
        if build := service.get("build"):
            context = folder / build["context"]
            assert (context / build["dockerfile"]).is_file()
            fault = fault_of_dftrack(list(service["command"]))
            assert fault is None, f"service {name}: {fault}"
        for source, _, _ in (volume.partition(":") for volume in service["volumes"]):
            known = (folder / source).is_file() if source.startswith(".") else source in composed["volumes"]
            assert known, f"service {name} mounts {source}, which does not exist"
        published = [port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")]
        assert not published, f"service {name} is open to the network: {published}"
    extra = yaml.safe_load((folder / "compose.gpu.yaml").read_text())
    assert set(extra["services"]) <= set(composed["services"])


def copied_in(dockerfile: str) -> list[str]:
    """What (a part of) the Dockerfile takes from the checkout."""
    lines = [line for line in dockerfile.splitlines() if line.startswith("COPY ") and "--from" not in line]
    return [word for line in lines for word in line.split()[1:-1]]


def test_the_package_can_be_built_from_what_the_image_copies(tmp_path: Path) -> None:
    source = tmp_path / "src"
    _, first_stage, _ = (ROOT / "docker" / "Dockerfile").read_text().split("\nFROM ")
    for name in copied_in(first_stage):
        place = source / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "out").iterdir()
    assert "dftrack/studies/default.toml" in zipfile.ZipFile(wheel).namelist(), "`dftrack study` finds no study there"


def test_the_image_copies_what_exists_and_runs_as_nobody_in_particular() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    copied = copied_in(dockerfile)
    missing = [name for name in copied if not (ROOT / name).exists()]
    assert not missing, f"the Dockerfile copies {missing}"
    admitted = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(admitted), "the engine is not given what the Dockerfile copies"
    users = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0"), "the container runs as root"
