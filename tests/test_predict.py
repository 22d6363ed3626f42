"""Pictures are found, scored and told row by row: a bad file is a row, and every other row is there."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dftrack.config import Config, ModelConfig, flatten, vary
from dftrack.data.faces import FaceFinder
from dftrack.data.named import find_pictures
from dftrack.errors import DataError, DetectorError
from dftrack.learning import figures
from dftrack.learning.detector import Detector, Verdict
from dftrack.learning.model import build_model
from dftrack.render_verdicts import COLUMNS, rows_to
from dftrack.tracking import open_tracker
from tests.test_cli import Terminal, refused

SIZE = 16


def make_detector(seed: int = 0, temperature: float | None = 2.0) -> Detector:
    torch.manual_seed(seed)
    settings = flatten(vary(Config(), {"data.image_size": SIZE}))
    model = build_model(ModelConfig(), SIZE).eval()
    return Detector(model=model, settings=settings, threshold=0.5, temperature=temperature)


@pytest.fixture
def released(store: Path, tmp_path: Path) -> Detector:
    """A detector that the newest finished baseline of `store` recorded."""
    detector = make_detector()
    detector.save(tmp_path / "detector")
    run = open_tracker(store).start_run("baseline", key="a", settings={}, tags={"dftrack.kind": "baseline"})
    run.log_model(tmp_path / "detector", {})
    run.finish("FINISHED")
    return detector


@pytest.fixture
def dftrack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def make_pictures(folder: Path, count: int, kind: str = "jpg", size: int = 24) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(count)
    paths = [folder / f"{number:03}.{kind}" for number in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)
    return paths


def test_a_folder_with_10_broken_files_among_100_gives_100_rows(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    paths = make_pictures(tmp_path / "photos", 100)
    broken = paths[3::10]
    for number, path in enumerate(broken):
        content = path.read_bytes()
        path.write_bytes((b"", content[:200], b"GIF89a", b"\0" * 300, content[:-400])[number % 5])
    said = dftrack("predict", tmp_path / "photos", "--csv", "--store", store)
    refused(said, 3, "10 of 100 pictures could not be read")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert {row["file"] for row in rows if row["status"] == "unreadable"} == {str(path) for path in broken}
    for row, verdict in zip(rows, released.judge(paths), strict=True):
        if row["status"] == "ok":
            assert float(row["score"]) == pytest.approx(verdict.score, abs=1e-6)
            assert row["verdict"] == verdict.verdict
            assert float(row["probability"]) == released.calibrated(float(row["score"]))
        else:
            assert (row["score"], row["verdict"], row["probability"]) == ("", "", "") and row["reason"]


def test_json_is_one_object_with_a_row_for_each_picture(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    good, bad = make_pictures(tmp_path, 1)[0], tmp_path / "none.png"
    said = dftrack("predict", good, bad, "--json", "--store", store)
    told = json.loads(said.out)
    assert said.code == 3
    assert (told["threshold"], told["temperature"]) == (0.5, 2.0)
    assert told["run_id"] == open_tracker(store).latest_run().run_id and told["run_id"][:12] in told["model"]
    assert told["counts"]["unreadable"] == 1 and sum(told["counts"].values()) == 2
    [first, second] = told["pictures"]
    assert first["file"] == str(good) and first["probability"] == released.calibrated(first["score"])
    assert second == {
        "file": str(bad), "score": None, "verdict": None, "probability": None, "status": "unreadable",
        "reason": "No such file or directory",
    }  # fmt: skip


def test_rows_for_the_eye_stand_in_columns_and_the_summary_on_standard_error(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "photos", 3)
    said = dftrack("predict", tmp_path / "photos", "--store", store)
    lines = said.out.splitlines()
    assert said.code == 0 and len(lines) == 4
    assert lines[0].split() == ["verdict", "P(fake)", "calibrated", "picture"]
    assert all(line.split()[0] in ("real", "fake") and line.split()[3].endswith(".jpg") for line in lines[1:])
    assert "images/s" in said.err and "fake from 0.5 on" in said.err


def test_names_patterns_and_folders_are_each_found_once_and_in_order(tmp_path: Path) -> None:
    first = make_pictures(tmp_path / "b", 2)
    second = make_pictures(tmp_path / "a" / "deep", 1, "webp")
    make_pictures(tmp_path / "a" / ".hidden", 1)
    (tmp_path / "a" / ".secret.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")  # whoever opened it would wait for ever
    strange = tmp_path / "[1] *.png"
    strange.write_bytes(b"")
    named = find_pictures(
        [str(first[1]), str(tmp_path / "b"), str(tmp_path / "b" / ".." / "b" / "000.jpg"), str(tmp_path / "a"),
         str(tmp_path / "**" / "*.webp"), str(strange), "missing.jpg", str(tmp_path / "a" / "notes.txt")]
    )  # fmt: skip
    assert list(named.paths) == [
        first[1], first[0], *second, strange, Path("missing.jpg"), tmp_path / "a" / "notes.txt"
    ]  # fmt: skip
    assert named.notes == ()
    assert list(find_pictures([str(tmp_path / "?")]).paths) == [*second, *first]


def test_nothing_found_is_said_and_what_found_nothing_beside_others_is_noted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pattern = str(tmp_path / "*.gif")
    with pytest.raises(DataError, match=r"no pictures in .*empty; no pictures in .*\*\.gif"):
        find_pictures([str(tmp_path / "empty"), pattern])
    assert find_pictures([str(tmp_path / "empty"), "x.jpg"]).notes == (f"no pictures in {tmp_path / 'empty'}",)


@pytest.mark.parametrize("kind", ["=cmd()", "+1", "-1", "@sum", "\tx"])
def test_no_cell_of_a_csv_acts_as_a_formula_and_the_file_is_still_the_one_named(kind: str) -> None:
    out = io.StringIO()
    rows = rows_to("csv", out)
    rows.add(Verdict(f"{kind}.jpg", 0.5, "fake", "ok", ""))
    rows.add(Verdict('a,"b"\n.jpg', None, "", "unreadable", f"{kind} is the reason"))
    rows.finish({})
    header, first, second = list(csv.reader(io.StringIO(out.getvalue(), newline="")))
    assert tuple(header) == COLUMNS
    assert Path(first[0]) == Path(f"{kind}.jpg") and first[0].startswith("./")
    assert second[0] == 'a,"b"\n.jpg' and second[5] == f"'{kind} is the reason"


def test_a_file_name_cannot_command_the_terminal() -> None:
    out = io.StringIO()
    rows_to("plain", out).add(Verdict("\x1b[2Jx\n\udce9.jpg", 0.5, "fake", "ok", ""))
    assert "\x1b" not in out.getvalue() and len(out.getvalue().splitlines()) == 2
    out.getvalue().encode()  # a name that is no UTF-8 is spelled out
    assert "\\x1b[2Jx\\n\\udce9.jpg" in out.getvalue()


def test_heat_maps_go_into_a_folder_one_each_or_into_one_file(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "a", 2), make_pictures(tmp_path / "b", 1)
    (tmp_path / "b" / "001.jpg").write_bytes(b"broken")
    said = dftrack("predict", tmp_path / "a", tmp_path / "b", "--store", store, "--json", "--gradcam", tmp_path / "why")
    assert said.code == 3
    shown = [row.get("heat_map") for row in json.loads(said.out)["pictures"]]
    assert shown == [str(tmp_path / "why" / name) for name in ("000.jpg.png", "001.jpg.png", "000.jpg-2.png")] + [None]
    for name in shown[:3]:
        with Image.open(name) as panel:
            assert panel.format == "PNG" and panel.width > 300
    said = dftrack("predict", tmp_path / "a", "--store", store, "--gradcam", tmp_path / "all.png")
    assert said.code == 0 and (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    said = dftrack("predict", tmp_path / "a", "--store", store, "--gradcam", tmp_path / "all.jpg")
    refused(said, 2, "writes PNG")


def test_a_map_that_cannot_be_written_is_told_in_its_row_and_all_others_are_there(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    [path] = make_pictures(tmp_path / "a", 1)
    names = [tmp_path / "a" / f"{'é' * 124}{end}.jpg" for end in ("ab", "ac", "ad")]  # 254 bytes
    for name in names:
        name.write_bytes(path.read_bytes())
    why = tmp_path / "why"
    (why / f"{'é' * 90}-2.png").mkdir(parents=True)  # in the way of one of them
    said = dftrack("predict", path, *names, "--store", store, "--json", "--gradcam", why)
    refused(said, 4, "1 heat maps could not be made")
    told = json.loads(said.out)
    assert told["complete"] and [row["status"] for row in told["pictures"]] == ["ok"] * 4
    maps = [row.get("heat_map") for row in told["pictures"]]
    assert len({*maps}) == 4 and all(Path(place).is_file() for place in maps if place)
    assert [row["reason"][:27] for row in told["pictures"]] == ["", "", "no heat map: cannot write " + str(why)[:1], ""]


def test_a_map_that_cannot_be_drawn_is_told_in_its_row_and_all_others_are_there(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = figures.gradcam_panel

    def stumble(rows: list[figures.PanelRow]) -> bytes:
        if rows[0].name == "001.jpg":
            raise TypeError("no letters")
        return draw(rows)

    monkeypatch.setattr(figures, "gradcam_panel", stumble)
    make_pictures(tmp_path / "a", 3)
    said = dftrack("predict", tmp_path / "a", "--store", store, "--json", "--gradcam", tmp_path / "why")
    refused(said, 4, "1 heat maps could not be made")
    told = json.loads(said.out)
    assert told["complete"] and ["heat_map" in row for row in told["pictures"]] == [True, False, True]
    assert told["pictures"][1]["reason"] == "no heat map: it cannot be drawn: TypeError: no letters"


def test_a_picture_whose_name_is_no_utf_8_gets_its_map(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    [path] = make_pictures(tmp_path / "a", 1)
    odd = path.rename(tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg"))
    said = dftrack("predict", odd, "--store", store, "--json", "--gradcam", tmp_path / "why")
    assert said.code == 0, said.err
    [row] = json.loads(said.out)["pictures"]
    assert Path(row["heat_map"]).read_bytes().startswith(b"\x89PNG")
    assert dftrack("predict", odd, "--store", store, "--gradcam", tmp_path / "all.png").code == 0


def test_json_names_the_panel_of_all_only_if_it_was_written(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "a", 2)
    said = dftrack("predict", tmp_path / "a", "--store", store, "--json", "--gradcam", tmp_path / "all.png")
    assert said.code == 0 and json.loads(said.out)["heat_map"] == str(tmp_path / "all.png")
    (tmp_path / "file").touch()
    unwritten = tmp_path / "file" / "all.png"
    said = dftrack("predict", tmp_path / "a", "--store", store, "--json", "--gradcam", unwritten)
    refused(said, 4, "cannot make the folder")
    told = json.loads(said.out)
    assert told["complete"] and len(told["pictures"]) == 2
    assert "heat_map" not in said.out, "a heat map is named that was never written"


def test_rows_are_one_object_also_if_the_network_fails_in_between(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(detector: Detector, sources: list[Path]) -> Iterator[Verdict]:
        yield Verdict("a.jpg", 0.25, "real", "ok", "")
        raise DetectorError("the network gives no finite score for 1 pictures")

    monkeypatch.setattr(Detector, "judge", judge)
    said = dftrack("predict", "a.jpg", "b.jpg", "--store", store, "--json")
    refused(said, 8, "no finite score")
    told = json.loads(said.out)
    assert [row["file"] for row in told["pictures"]] == ["a.jpg"] and told["complete"] is False


def test_a_request_to_stop_is_carried_out_after_the_picture_at_hand(
    dftrack: Terminal, released: Detector, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(detector: Detector, sources: list[Path]) -> Iterator[Verdict]:
        for number in range(3):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield Verdict(f"{number}.jpg", 0.25, "real", "ok", "")

    monkeypatch.setattr(Detector, "judge", judge)
    said = dftrack("predict", "a.jpg", "b.jpg", "c.jpg", "--store", store, "--json")
    assert said.code == 143 and "stopped." in said.err and "goes on" not in said.err
    told = json.loads(said.out)
    assert [row["file"] for row in told["pictures"]] == ["0.jpg", "1.jpg"] and told["complete"] is False


class OneFace:
    """Stands in for OpenCV: the bright square is the face."""

    def find(self, scene: np.ndarray) -> list[tuple[int, int, int, int]]:
        rows, columns = np.nonzero(scene.min(axis=2) > 240)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1] if len(rows) else []
        return [tuple(map(int, box))] if box else []


def test_each_face_of_a_scene_is_a_row_that_says_where(
    dftrack: Terminal, released: Detector, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = np.random.default_rng(1).integers(0, 200, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(scene).save(tmp_path / "empty.png")
    scene[30:60, 100:130] = 255
    Image.fromarray(scene).save(tmp_path / "scene.png")
    (tmp_path / "broken.png").write_bytes(b"")
    monkeypatch.setattr("dftrack.data.faces.FaceFinder", OneFace)
    names = [tmp_path / f"{name}.png" for name in ("scene", "empty", "broken")]
    said = dftrack("predict", *names, "--faces", "--csv", "--store", store)
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [(row["status"], row["face"]) for row in rows] == [
        ("ok", "100 30 30 30"),
        ("no face", ""),
        ("unreadable", ""),
    ]
    crop = Image.fromarray(scene[21:69, 91:139]).resize((256, 256), Image.Resampling.LANCZOS)  # 0.3 on each side
    near = released.score(np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))[None])[0]
    assert float(rows[0]["score"]) == pytest.approx(near, abs=1e-3)
    refused(said, 3, "1 of 3 pictures could not be read")
    said = dftrack("predict", *names[:2], "--faces", "--json", "--store", store, "--gradcam", tmp_path / "why")
    told = json.loads(said.out)
    assert said.code == 0 and told["counts"]["no face"] == 1
    assert told["pictures"][0]["face"] == [100, 30, 30, 30] and Path(told["pictures"][0]["heat_map"]).is_file()


def test_opencv_brings_a_cascade_that_calls_noise_no_face() -> None:
    pytest.importorskip("cv2", reason="the extra `faces` is not installed")
    noise = np.random.default_rng(0).integers(0, 255, (200, 1700, 3), dtype=np.uint8)
    assert FaceFinder().find(noise) == []


def test_without_opencv_faces_are_refused_with_what_installs_it(
    dftrack: Terminal, released: Detector, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(dftrack("predict", "x.jpg", "--faces", "--store", store), 1, "OpenCV", "dftrack[faces]")


@pytest.mark.parametrize("words", [("predict", "a.jpg", "--run"), ("export", "--format", "safetensors")])
def test_the_model_of_a_run_that_did_not_finish_is_used_with_a_warning(
    dftrack: Terminal,
    released: Detector,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path, 1)[0].rename("a.jpg")
    [run] = open_tracker(store).runs()
    said = dftrack(*words, run.run_id, "--store", store)
    assert said.code == 0 and "warning" not in said.err, said.err
    open_tracker(store).close_run(run.run_id, "FAILED")
    said = dftrack(*words, run.run_id, "--store", store)
    warning = f"warning: run {run.run_id[:12]} (baseline) did not finish: it is FAILED"
    assert said.code == 0 and said.err.splitlines().count(warning) == 1, said.err
    assert "warning" not in said.out


def test_contradicting_options_are_refused(dftrack: Terminal, store: Path) -> None:
    refused(dftrack("predict", "x.jpg", "--model", "a@b", "--run", "c", "--store", store), 2, "--model and --run")
    refused(dftrack("predict", "x.jpg", "--csv", "--json", "--store", store), 2, "--csv and --json")
    refused(dftrack("predict", "x.jpg", "--model", "none@champion", "--store", store), 4, "none")


@pytest.mark.slow
def test_rows_come_while_later_pictures_are_still_to_be_judged_and_sigterm_ends_it_between_two(
    released: Detector, store: Path, tmp_path: Path
) -> None:
    [picture] = make_pictures(tmp_path, 1)
    (tmp_path / "photos").mkdir()
    for number in range(3000):  # their rows are more than a pipe holds: the command waits for its reader
        (tmp_path / "photos" / f"{number:04}.jpg").symlink_to(picture)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "dftrack", "predict", str(tmp_path / "photos"), "--csv", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as told:
        assert told.stdout is not None and told.stderr is not None
        assert told.stdout.readline().strip() == ",".join(COLUMNS), told.stderr.read()
        assert told.stdout.readline().startswith(str(tmp_path / "photos" / "0000.jpg"))
        told.send_signal(signal.SIGTERM)
        rows = list(csv.reader(told.stdout))
        assert told.wait(60) == 143
        assert len(rows) < 2900 and all(len(row) == len(COLUMNS) for row in rows)
        said = told.stderr.read()
        assert "stopped." in said and "goes on" not in said and "Traceback" not in said
