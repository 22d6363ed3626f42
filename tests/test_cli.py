"""The command line as a person meets it: results, exit codes, and two clear lines for every mistake."""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dftrack import __main__ as entry
from dftrack.errors import Interrupted
from dftrack.tracking import open_tracker
from tests.makers import make_faces


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class Terminal:
    """Types a command in this process and reads what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object) -> Said:
        self._monkeypatch.setattr("sys.argv", ["dftrack", *map(str, words)])
        self._capsys.readouterr()
        try:
            entry.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)


@pytest.fixture
def dftrack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces", train=10, val=5, test=4)


SMALL = ("--epochs", 1, "--set", "data.image_size=16", "--set", "train.batch_size=8")


def refused(said: Said, code: int, *words: str) -> None:
    """Exit code, two lines, no traceback, and the words that tell what is wrong."""
    assert said.code == code, f"exit code {said.code}: {said.err}"
    lines = said.err.strip().splitlines()
    error = next((i for i, line in enumerate(lines) if line.startswith("error:")), None)
    assert error is not None, f"no error line: {said.err}"
    assert len(lines) - error <= 2, f"more than two lines: {said.err}"
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in "\n".join(lines[error:]), f"{word!r} is not said in: {said.err}"


def test_a_baseline_prints_a_table_and_where_to_look(dftrack: Terminal, faces: Path, store: Path) -> None:
    said = dftrack("baseline", "--data", faces, "--store", store, *SMALL)
    assert said.code == 0, said.err
    assert "ROC AUC" in said.out and "always fake" in said.out and "test-dev" in said.out
    assert "dftrack ui --store" in said.err and "epoch   1" in said.err


def test_json_is_one_object_on_standard_output_and_all_else_on_standard_error(
    dftrack: Terminal, faces: Path, store: Path, tmp_path: Path
) -> None:
    said = dftrack("baseline", "--data", faces, "--store", store, "--json", *SMALL)
    result = json.loads(said.out)
    assert result["status"] == "FINISHED"
    assert result["run_id"] == open_tracker(store).latest_run().run_id
    assert {"val/roc_auc", "test-dev/accuracy", "val/always_fake/f1"} <= result["metrics"].keys()
    assert "epoch" in said.err

    # its model scores files, explains them and names the unreadable
    good = sorted((faces / "test-dev" / "fake").iterdir())[:2]
    panel = tmp_path / "why.png"
    said = dftrack("predict", *good, "--store", store, "--gradcam", panel, "--json")
    pictures = json.loads(said.out)["pictures"]
    assert [p["status"] for p in pictures] == ["ok", "ok"] and all(0 < p["score"] < 1 for p in pictures)
    with Image.open(panel) as shown:
        assert shown.width > 300
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(good[0].read_bytes()[:200])
    said = dftrack("predict", good[0], broken, "--store", store, "--json")
    assert [p["status"] for p in json.loads(said.out)["pictures"]] == ["ok", "unreadable"]
    refused(said, 3, "could not be read")


def test_data_check_reads_a_clean_set_and_refuses_a_leak(dftrack: Terminal, faces: Path, store: Path) -> None:
    assert dftrack("data", "check", faces, "--store", store).code == 0
    source = next((faces / "train" / "real").iterdir())
    (faces / "val" / "real" / "copy.jpg").write_bytes(source.read_bytes())
    said = dftrack("data", "check", faces, "--store", store)
    refused(said, 3, "1 picture of val")
    assert "copy.jpg" in said.out


def test_data_check_refuses_what_cannot_be_trained_on(dftrack: Terminal, faces: Path, store: Path) -> None:
    for picture in (faces / "val" / "fake").iterdir():
        picture.unlink()
    refused(dftrack("data", "check", faces, "--store", store), 3, "val")


def huge_png(path: Path, side: int = 20_000) -> None:
    """A PNG that claims side x side pixels in its header and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def no_folder(faces: Path) -> tuple[str, ...]:
    for path in sorted(faces.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    faces.rmdir()
    return ("there is no",)


def empty_class(faces: Path) -> tuple[str, ...]:
    for path in (faces / "val" / "fake").iterdir():
        path.unlink()
    return ("val", "fake")


def no_val(faces: Path) -> tuple[str, ...]:
    for path in (faces / "val").rglob("*.jpg"):
        path.unlink()
    for path in (faces / "val" / "fake", faces / "val" / "real", faces / "val"):
        path.rmdir()
    return ("val",)


def one_class(faces: Path) -> tuple[str, ...]:
    for split in ("train", "val", "test-dev"):
        for path in (faces / split / "fake").iterdir():
            path.unlink()
        (faces / split / "fake").rmdir()
    return ("fake",)


def truncated(faces: Path) -> tuple[str, ...]:
    path = next((faces / "train" / "real").iterdir())
    path.write_bytes(path.read_bytes()[:300])
    return (path.name, "up to 1% of a split is left out")


def zero_bytes(faces: Path) -> tuple[str, ...]:
    path = next((faces / "train" / "real").iterdir())
    path.write_bytes(b"")
    return (path.name,)


def too_many_pixels(faces: Path) -> tuple[str, ...]:
    huge_png(faces / "train" / "real" / "huge.png")
    return ("huge.png", "20000")


SPOILED = (no_folder, empty_class, no_val, one_class, truncated, zero_bytes, too_many_pixels)


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_data_that_are_no_good_are_refused_in_two_lines(
    dftrack: Terminal, faces: Path, store: Path, spoil: object
) -> None:
    words = spoil(faces)
    refused(dftrack("baseline", "--data", faces, "--store", store, *SMALL), 3, *words)
    assert open_tracker(store).runs() == [], "a run was begun although the data are no good"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "model.kernelsize=3"), ("model.kernelsize", "model.kernel_size")),
        (("--set", "train.lr=3"), ("train.lr", "train.learning_rate")),
        (("--set", "model.kernel_size=4"), ("model.kernel_size must be odd", "4")),
        (("--set", "model.kernel_size=-3"), ("model.kernel_size must be odd", "-3")),
        (("--set", "data.image_size=7"), ("at least 8 pixels", "7")),
        (("--set", "train.learning_rate=inf"), ("train.learning_rate must be a positive number",)),
        (("--set", "dropout"), ("NAME=VALUE",)),
        (("--epochs", "0"), ("train.epochs must be at least 1",)),
        (("--precision", "fp8"), ("train.precision", "fp8")),
        (("--device", "tpu"), ("train.device", "tpu")),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    dftrack: Terminal, faces: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    store = tmp_path / "untouched"
    refused(dftrack("baseline", "--data", faces, "--store", store, *arguments), 2, *words)
    assert not store.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card: it cannot be missing")
def test_cuda_asked_for_and_not_there_is_refused(dftrack: Terminal, faces: Path, store: Path) -> None:
    refused(dftrack("baseline", "--data", faces, "--store", store, "--device", "cuda"), 5, "cuda", "--device cpu")
    refused(dftrack("baseline", "--data", faces, "--store", store, "--precision", "fp16"), 5, "fp16")


def test_a_store_that_cannot_be_written_is_refused(dftrack: Terminal, faces: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    refused(dftrack("baseline", "--data", faces, "--store", blocked / "store", *SMALL), 4, str(blocked))
    assert blocked.read_text() == "not a folder"


def test_a_run_that_does_not_exist_is_said(dftrack: Terminal, faces: Path, store: Path) -> None:
    picture = next((faces / "val" / "real").iterdir())
    refused(dftrack("predict", picture, "--store", store), 4, "there is no FINISHED run", "dftrack baseline")
    refused(dftrack("predict", picture, "--store", store, "--run", "abc123"), 4, "there is no run abc123")


SMALL_STUDY = """
name = "small"
trials = 2
enqueue = "baseline"
final_seeds = 1
[base]
train.epochs = 2
[space]
train.learning_rate = { low = 1e-4, high = 1e-2, log = true }
[pruning]
kind = "halving"
rungs = [1, 2]
"""


def test_a_study_runs_reports_goes_on_and_is_looked_after(
    dftrack: Terminal, faces: Path, store: Path, tmp_path: Path
) -> None:
    """The whole of `dftrack study` in small, with a real worker process and real trainings."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL_STUDY)
    begin = ("study", "--study", file, "--data", faces, "--store", store, *SMALL[2:])
    said = dftrack(*begin, "--trials", 3, "--json")
    assert said.code == 0, said.err
    first = json.loads(said.out)
    assert first["trials"] == 3 and first["status"] == "FINISHED"
    said = dftrack(*begin, "--trials", 3, "--json")
    second = json.loads(said.out)
    assert (second["run_id"], second["trials"]) == (first["run_id"], 3), "the same command goes on with the same study"
    tracker = open_tracker(store)
    children = tracker.runs(parent=first["run_id"])
    trials = [run for run in children if run.tags["dftrack.kind"] == "trial"]
    finals = [run for run in children if run.tags["dftrack.kind"] == "final"]
    assert len(trials) == 3 and {run.status for run in children} <= {"FINISHED", "KILLED"}
    assert all(not any(name.startswith("test") for name in run.metrics) for run in trials), "a trial saw a test split"
    assert finals and all("test-dev/roc_auc" in run.metrics for run in finals)
    for path in ("study/report.html", "study/report.md", "study/trials.csv", "study/plots.html", "study/study.toml"):
        assert tracker.download(first["run_id"], path).stat().st_size > 100, path
    assert (
        json.loads(dftrack("study", "status", "--study", file, "--store", store, "--json").out)["counts"]["running"]
        == 0
    )
    assert dftrack("doctor", "--store", store).code == 0
    changed = dftrack(*begin[:-1], "train.batch_size=4", "--trials", 3)
    assert changed.code == 4
    assert "train.batch_size: was 8, is 4" in changed.err and "--new" in changed.err
    assert not [file.path for file in psutil.Process().open_files() if "optuna.db" in file.path], "each lets go of it"


def test_a_fresh_start_that_is_stopped_names_the_command_that_goes_on(
    dftrack: Terminal, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command would begin anew."""

    def stopped(*_: object) -> None:
        raise Interrupted(130)

    monkeypatch.setattr("dftrack.study.session.run_study", stopped)
    said = dftrack("study", "--new", "--epochs", 2, "--store", store)
    assert said.code == 130
    assert said.err.strip() == f"stopped. dftrack study --epochs 2 --store {store}  goes on where this one ended."
    assert "The same command goes on" in dftrack("study", "--store", store).err


def test_a_study_on_a_device_that_is_not_there_is_refused_before_any_trial(dftrack: Terminal, store: Path) -> None:
    if not torch.cuda.is_available():
        refused(dftrack("study", "--device", "cuda", "--store", store), 5, "train.device is cuda")
    refused(dftrack("study", "--device", "cpu", "--precision", "fp16", "--store", store), 5, "fp16 needs a CUDA card")
    said = dftrack("study", "--workers", 1, "--device", "cpu", "--precision", "fp16", "--store", store)
    refused(said, 5, "fp16 needs a CUDA card")
    assert not (store / "optuna.db").exists(), "nothing must have begun"


def test_a_study_that_cannot_be_is_refused(dftrack: Terminal, store: Path, tmp_path: Path) -> None:
    refused(dftrack("study", "--trials", 0, "--store", store), 2, "--trials must be at least 1, got 0")
    refused(dftrack("study", "--study", "nonsense", "--store", store), 2, "nonsense", "default")
    refused(dftrack("study", "--storage", "mysql://host/db", "--store", store, "--data", tmp_path), 3)
    refused(dftrack("study", "status", "--store", store), 4, "no study yet")
    open_tracker(store)
    refused(dftrack("doctor", "--store", store, "--storage", tmp_path / "no" / "typo.db"), 4, "no study yet")
    assert not (tmp_path / "no").exists(), "to look at a storage is not to make one"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "3f2a", "--digits", 3), "--digits belongs to --published"),
        (("compare", "a", "b", "--top", 3), "--top belongs to --study"),
        (("runs", "--names", "--kind", "baseline"), "--names lists all names"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    dftrack: Terminal, store: Path, words: tuple[object, ...], said: str
) -> None:
    refused(dftrack(*words, "--store", store), 2, said)


def test_a_store_with_a_name_that_no_folder_can_have_is_not_there(dftrack: Terminal, tmp_path: Path) -> None:
    refused(dftrack("runs", "--store", tmp_path / ("a" * 300)), 4, "there is no")
    refused(dftrack("verify", "--store", tmp_path / ("a" * 300)), 4, "there is no store")


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "a.jpg"), ("serve", "--port", 0), ("export",), ("evaluate",), ("verify",), ("compare", "a", "b"),
        ("promote", "a"), ("rollback",), ("rerun", "a"), ("doctor",),
    ],
)  # fmt: skip
def test_a_mistyped_store_is_refused_not_made_by_commands_that_use_one(
    dftrack: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    refused(dftrack(*words, "--store", tmp_path / "typo"), 4, f"there is no store at {tmp_path / 'typo'}", "--store")
    assert not (tmp_path / "typo").exists()
    refused(dftrack(*words, "--store", tmp_path), 4, "holds no mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///nowhere")
    refused(dftrack(*words, "--store", tmp_path / "typo"), 4, "MLFLOW_TRACKING_URI")
    for ending in ("", "?timeout=9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'typo.db'}{ending}")
        refused(dftrack(*words, "--store", tmp_path), 4, f"there is no {tmp_path / 'typo.db'}", "MLFLOW_TRACKING_URI")
    assert list(tmp_path.iterdir()) == [], "a command that uses what is recorded made something"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "a.jpg", "--run", ""), "the word after --run is empty"),
        (("predict", "a.jpg", "--model", ""), "the word after --model is empty"),
        (("predict", "a.jpg", "--model="), "--model is empty"),
        (("predict", "a.jpg", "--gradcam", ""), "the word after --gradcam is empty"),
        (("predict", ""), "the word after predict is empty"),
        (("export", ""), "the word after export is empty"),
        (("runs", "--store="), "--store is empty"),
        (("",), "the word is empty"),
    ],
)
def test_an_empty_value_is_refused_not_taken_for_the_default(
    dftrack: Terminal, words: tuple[object, ...], said: str
) -> None:
    refused(dftrack(*words), 2, said)


@pytest.mark.parametrize("words", [("predict", "nothing/*.jpg"), ("runs",), ("verify",), ("data", "check", "nowhere")])
def test_json_of_a_command_that_fails_before_its_result_is_empty(
    dftrack: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = dftrack(*words, "--json")
    assert said.code in (3, 4) and said.out == "" and said.err.startswith("error:"), f"{said}: see README"
