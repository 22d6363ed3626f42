"""What is exported gives the detector's numbers in the other runtime, by itself, or is not kept."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dftrack import export as module
from dftrack.errors import DetectorError, DftrackError
from dftrack.export import Exported, export
from dftrack.learning.detector import Detector
from dftrack.tracking import open_tracker
from tests.test_cli import Terminal, refused
from tests.test_predict import SIZE, make_detector

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime")

# A process that knows nothing of dftrack.
ALONE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pictures = np.load(sys.argv[2])
scores = [session.run(None, {"pictures": part})[0].tolist() for part in (pictures[:1], pictures[1:], pictures[:0])]
print(json.dumps(sum(scores, [])))
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "dftrack")]
"""


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = make_detector(temperature=1.7)
    for norm in (made.model.bn1, made.model.bn2, made.model.bn3):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return made


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def written(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The detector as ONNX: the export takes seconds."""
    return export(detector, "onnx", tmp_path_factory.mktemp("onnx") / "a" / "face.onnx")


def test_onnx_takes_uint8_pictures_of_any_number_and_knows_what_it_is(detector: Detector, written: Exported) -> None:
    assert [path.name for path in written.path.parent.iterdir()] == ["face.onnx"], "something else was left"
    assert written.largest_difference < 1e-6 and written.bytes == written.path.stat().st_size
    onnx.checker.check_model(str(written.path), full_check=True)
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    parts = (pictures(8)[:1], pictures(8)[1:], pictures(0))
    scores = np.concatenate([session.run(None, {"pictures": part})[0] for part in parts])
    assert scores.tolist() == pytest.approx(detector.score(pictures(8)).tolist(), abs=1e-6)
    assert np.ptp(scores) > 1e-3, "scores that are all alike prove nothing"
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["real", "fake"]
    assert (float(told["threshold"]), json.loads(told["temperature"]), told["image_size"]) == (0.5, 1.7, str(SIZE))


def test_onnx_gives_its_numbers_in_a_process_that_knows_nothing_of_dftrack(
    detector: Detector, written: Exported, tmp_path: Path
) -> None:
    np.save(tmp_path / "pictures.npy", pictures(8))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(written.path), str(tmp_path / "pictures.npy")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(detector.score(pictures(8)).tolist(), abs=1e-6)


def test_a_torch_export_program_gives_the_same_numbers_without_the_network_class(
    detector: Detector, tmp_path: Path
) -> None:
    written = export(detector, "torchexport", tmp_path)
    assert written.path == tmp_path / "detector.pt2", "a folder gets the usual name inside it"
    extra = {"facts.json": ""}
    program = torch.export.load(str(written.path), extra_files=extra).module()
    for n in (1, 5):
        with torch.no_grad():
            scores = program(torch.from_numpy(pictures(n)))
        assert scores.tolist() == pytest.approx(detector.score(pictures(n)).tolist(), abs=1e-6)
    assert json.loads(json.loads(extra["facts.json"])["temperature"]) == 1.7


def test_safetensors_is_the_detectors_own_folder(detector: Detector, tmp_path: Path) -> None:
    written = export(detector, "safetensors", tmp_path / "mine")
    loaded = Detector.load(written.path)
    assert (loaded.threshold, loaded.temperature) == (0.5, 1.7)
    assert np.array_equal(loaded.score(pictures(3)), detector.score(pictures(3)))
    assert sorted(path.name for path in written.path.iterdir()) == ["detector.json", "model.safetensors"]


def test_a_folder_whose_numbers_are_others_is_not_written(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(detector, "safetensors", tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    loaded = make_detector(seed=5)
    monkeypatch.setattr(Detector, "load", lambda folder: loaded)
    with pytest.raises(DetectorError, match="the exported model gives"):
        export(detector, "safetensors", tmp_path / "mine")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    with pytest.raises(DetectorError, match="the exported model gives"):
        export(detector, "safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [lambda p: np.full(len(p), 0.4), lambda p: np.full(len(p), np.nan), lambda p: p[:0]])
def test_other_numbers_are_refused_and_what_was_there_stays(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong
) -> None:
    (tmp_path / "detector.pt2").write_text("the old one")
    monkeypatch.setattr(module, "_write_program", lambda detector, path: path.write_bytes(b"x"))
    monkeypatch.setattr(module, "_score_program", lambda path: wrong)
    with pytest.raises(DetectorError, match="the exported model gives"):
        export(detector, "torchexport", tmp_path / "detector.pt2")
    assert (tmp_path / "detector.pt2").read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 1, "something was left behind"


def test_a_missing_library_is_named_with_what_installs_it(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(DftrackError, match="needs onnxscript, which is not") as caught:
        export(detector, "onnx", tmp_path / "x.onnx")
    assert "dftrack[export]" in caught.value.hint and not (tmp_path / "x.onnx").exists()


def test_the_command_exports_the_model_of_a_run(
    detector: Detector, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.save(tmp_path / "saved")
    run = open_tracker(store).start_run("baseline", key="a", settings={}, tags={"dftrack.kind": "baseline"})
    run.log_model(tmp_path / "saved", {})
    run.finish("FINISHED")
    dftrack = Terminal(capsys, monkeypatch)
    out = tmp_path / "out"
    said = dftrack("export", run.run_id[:8], "--format", "safetensors", "--out", out, "--store", store, "--json")
    told = json.loads(said.out)
    assert said.code == 0 and told["path"] == str(out) and told["largest_difference"] == 0
    assert Detector.load(out).temperature == 1.7
    folder = f"{tmp_path}/models/"
    said = dftrack("export", run.run_id[:8], "--format", "torchexport", "--out", folder, "--store", store, "--json")
    assert json.loads(said.out)["path"] == f"{folder}detector.pt2", "what ends in a slash is a folder"
    refused(dftrack("export", "--format", "pickle", "--store", store), 2, "no format 'pickle'", "onnx")
