"""The whole way of a model, from training to release and back, as a person goes it at the terminal.

Run: python tests/whole_way.py STORE [DATA] [trials] [SHOTS]. baseline -> study -> compare -> promote -> predict by
alias -> serve -> promote another -> rollback -> verify, each through the command line, with small settings. DATA:
`sample` (the default, at 48 px), or a folder (at 16 px, trained in seconds). SHOTS: a folder for pictures of the
registry and of the drop page, taken by a browser. Prints what came of each step; ends with 1 at the first that fails.
"""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SMALL_STUDY = """
name = "small"
final_seeds = 1
[base]
train.epochs = {epochs}
[space]
train.learning_rate = {{ low = 1e-4, high = 1e-2, log = true }}
[pruning]
kind = "none"
"""


def main(store: Path, data: str = "sample", trials: int = 3, shots: Path | None = None) -> dict[str, Any]:
    """Go the whole way; returns what came of each step."""
    sample = data == "sample"
    size, batch, epochs, rate = (48, 32, 4, 3e-4) if sample else (16, 8, 2, 1e-3)
    base = ("--store", store, "--data", data, "--set", f"data.image_size={size}", "--set", f"train.batch_size={batch}")
    way: dict[str, Any] = {}
    way["baseline"] = dftrack("baseline", *base, "--epochs", epochs, "--set", f"train.learning_rate={rate}")
    file = store / "small.toml"
    file.write_text(SMALL_STUDY.format(epochs=epochs))
    way["study"] = dftrack("study", "--trials", trials, "--study", file, *base)
    first, winner = way["baseline"]["run_id"], way["study"]["finals"][0]["run_id"]
    way["compare"] = dftrack("compare", first, winner, "--store", store)
    lenient = () if sample else ("--min-pictures", 10, "--override", "small data: only the way is tried")
    way["refused or promoted"] = dftrack("promote", winner, "--explain", "--store", store, codes=(0, 9))
    way["promote"] = dftrack("promote", first, "--store", store, *lenient)
    pictures = pictures_of(store, data)
    way["predict"] = dftrack("predict", *pictures, "--model", "dftrack@champion", "--store", store)
    with serving(store) as url:
        way["serve"] = ask(url, pictures[0])
        if shots is not None:
            from screenshots import drop_page, open_browser

            with open_browser() as page:
                drop_page(url, page, pictures[0], shots / "drop-page.png")
    way["promote another"] = dftrack("promote", winner, "--store", store, *lenient, codes=(0, 9))
    if shots is not None:
        from screenshots import registry

        registry(store, shots / "registry.png")
    if way["promote another"].get("outcome") != "promoted":
        reason = "the gates refused it; only to have something to roll back"
        way["promote all the same"] = dftrack("promote", winner, "--override", reason, "--store", store)
    way["rollback"] = dftrack("rollback", "--store", store)
    way["verify"] = dftrack("verify", first, "--store", store)
    return way


def dftrack(*words: object, codes: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run a command with --json in this process, as the console script would; the object it printed."""
    from dftrack.cli import main as run

    said, argv = io.StringIO(), sys.argv
    sys.argv = ["dftrack", *map(str, words), "--json"]
    code: object = 0
    try:
        with contextlib.redirect_stdout(said):
            run()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert code in codes, f"dftrack {' '.join(map(str, words))} ended with {code}"
    return dict(json.loads(said.getvalue()))


def pictures_of(store: Path, data: str) -> list[Path]:
    """A few pictures of the test split."""
    root = store / "data" if data == "sample" else Path(data)
    found = sorted(path for path in root.rglob("*.jpg") if any(part.startswith("test") for part in path.parts))
    return (found or sorted(root.rglob("*.jpg")))[:8]


@contextlib.contextmanager
def serving(store: Path) -> Iterator[str]:
    """`dftrack serve` in a process of its own; yields its address, and ends it as Ctrl-C does."""
    command = [sys.executable, "-m", "dftrack", "serve", "--port", "0", "--store", str(store), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, f"the server said {text!r} and ended"
            text += line
        yield str(json.loads(text)["url"])
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130, f"the server ended with {process.returncode}"


def ask(url: str, picture: Path) -> dict[str, Any]:
    """What the server says of a picture."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/judge", picture.read_bytes(), {"Content-Type": "application/octet-stream"}
    )
    for _ in range(60):
        with contextlib.suppress(ConnectionError), urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


if __name__ == "__main__":
    words = sys.argv[1:]
    came = main(
        Path(words[0]),
        *words[1:2],
        *(int(word) for word in words[2:3]),
        **({"shots": Path(words[3])} if len(words) > 3 else {}),
    )
    for step, value in came.items():
        print(f"{step}: {json.dumps(value)[:300]}")
