"""A logged model loads in a fresh process, without dftrack and without pickle, and gives the same numbers there."""

import base64
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dftrack.config import Config, ModelConfig, flatten
from dftrack.errors import DftrackError, StoreError
from dftrack.learning.detector import Detector
from dftrack.learning.model import build_model
from dftrack.logged_model import requirements
from dftrack.tracking import Run, Tracker, open_tracker

SIZE = 16  # pixels

# -I: no PYTHONPATH, no working directory. A dftrack that is installed all the same is taken off the path.
SCORE = """
import json, os, sys
model_folder, texts = sys.argv[1], json.load(sys.stdin)
import importlib.abc, importlib.machinery, importlib.util
class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "dftrack":
            found = importlib.machinery.PathFinder.find_spec(name, [p for p in sys.path if p.startswith(model_folder)])
            if found is None:
                raise ModuleNotFoundError("dftrack is not installed here")
            return found
sys.meta_path.insert(0, NotInstalled())
try:
    import dftrack
    sys.exit("dftrack could be imported before the model was loaded")
except ModuleNotFoundError:
    pass
import mlflow
model = mlflow.pyfunc.load_model(model_folder)
import dftrack
assert dftrack.__file__.startswith(model_folder), dftrack.__file__
def pickled(*args, **kwargs):
    raise AssertionError("something is unpickled")
import pickle, torch
pickle.load = pickle.loads = torch.load = pickled
table = model.predict(texts)
from mlflow.pyfunc.scoring_server import invocations
served = invocations(json.dumps({"inputs": texts}), "application/json", model, model.metadata.get_input_schema())
print(json.dumps({
    "columns": list(table.columns),
    "rows": table.astype(object).where(table.notna(), None).values.tolist(),
    "served": json.loads(served.response)["predictions"],
}))
"""


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(7)
    model = build_model(ModelConfig(), SIZE).eval()
    return Detector(model=model, settings=flatten(Config()), threshold=0.5, temperature=2.0)


@pytest.fixture
def saved(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "any name")
    return tmp_path / "any name"


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


@pytest.fixture
def run(tracker: Tracker) -> Run:
    return tracker.start_run("baseline", key="one", settings={"train.epochs": 3}, tags={})


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(3)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.webp"]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return paths


def model_folder(run: Run, uri: str) -> Path:
    location = run._client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"))


def test_a_fresh_process_scores_files_and_base64_text_with_the_same_numbers(
    run: Run, detector: Detector, saved: Path, pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(run, run.log_model(saved, {"val/roc_auc": 0.9}))
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    (tmp_path / "broken.jpg").write_bytes(pictures[1].read_bytes()[:300])
    bad = [
        str(tmp_path / "none.png"),
        "no picture!",
        "",
        base64.b64encode(b"text").decode(),
        str(tmp_path / "broken.jpg"),
    ]
    texts = [str(path) for path in pictures] + encoded + [f"data:image/png;base64,{encoded[0]}"] + bad
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCORE, str(folder)],
        input=json.dumps(texts), capture_output=True, text=True, timeout=170, cwd=tmp_path,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["columns"] == ["score", "verdict", "probability", "status", "reason"]
    expected = list(detector.judge(pictures))
    expected = [*expected, *expected, expected[0]]
    for (score, verdict, probability, status, _), judged in zip(answer["rows"], expected, strict=False):
        assert (score, verdict, status) == (pytest.approx(judged.score, abs=1e-6), judged.verdict, "ok")
        assert probability == pytest.approx(judged.probability, abs=1e-6) != score
    for score, verdict, probability, status, reason in answer["rows"][len(expected) :]:
        assert (score, verdict, probability, status) == (None, "", None, "unreadable") and reason
    assert [row["score"] for row in answer["served"][: len(expected)]] == [
        row[0] for row in answer["rows"][: len(expected)]
    ]


def test_a_model_is_named_files_and_no_pickle(run: Run, saved: Path) -> None:
    folder = model_folder(run, run.log_model(saved, {}))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "artifacts/model.safetensors", "artifacts/detector.json", "code/dftrack/files.py"} <= files
    kinds = {Path(name).suffix for name in files}
    assert kinds <= {"", ".py", ".json", ".yaml", ".txt", ".safetensors", ".toml", ".typed", ".html"}, (
        f"unexpected kinds of files: {kinds}"
    )
    assert not [name for name in files if "__pycache__" in name]
    assert (folder / "artifacts" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    required = (folder / "requirements.txt").read_text().split()
    assert required == requirements()
    assert all(re.fullmatch(r"[a-z]+==[0-9][0-9a-z.]*", line) for line in required), required


def test_the_same_weights_logged_twice_are_one_model(tracker: Tracker, run: Run, saved: Path, store: Path) -> None:
    run.log_metrics({"val/roc_auc": 0.9})
    first = run.log_model(saved, {"val/roc_auc": 0.9})
    assert open_tracker(store).resume_run(run.run_id).log_model(saved, {"val/roc_auc": 0.9}) == first
    assert tracker.metric_history(run.run_id, "val/roc_auc") == [(0, 0.9)]
    [model] = run._client.get_run(run.run_id).outputs.model_outputs
    known = run._client.get_logged_model(model.model_id)
    assert str(known.status) == "READY"
    assert {metric.key: metric.value for metric in known.metrics} == {"val/roc_auc": 0.9}


def test_the_detector_of_a_run_is_fetched_and_checked(
    tracker: Tracker, run: Run, saved: Path, detector: Detector, pictures: list[Path], store: Path
) -> None:
    with pytest.raises(StoreError, match="has no model"):
        tracker.detector_folder(run.run_id)
    run.log_model(saved, {})
    folder = tracker.detector_folder(run.run_id[:8])
    assert folder.is_relative_to(store), "a local store needs no copy"
    assert list(Detector.load(folder).judge(pictures)) == list(detector.judge(pictures))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(DftrackError, match="sha256"):
        Detector.load(folder)


def test_a_failure_while_a_model_is_logged_leaves_no_half_model(
    tracker: Tracker, run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("mlflow.pyfunc.save_model", full)
        with pytest.raises(StoreError, match="No space left"):
            run.log_model(saved, {})
    with pytest.raises(StoreError, match="has no model"):
        tracker.detector_folder(run.run_id)
    assert run.log_model(saved, {"a": math.nan}).startswith("models:/m-")
    assert tracker.detector_folder(run.run_id).is_dir()


def test_artifacts_and_models_travel_where_the_store_is_not_a_local_folder(
    tracker: Tracker, run: Run, saved: Path, detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dftrack.tracking", "dftrack.logged_model"):
        monkeypatch.setattr(f"{module}.local_path", lambda uri: None)  # as with a server's or a bucket's address
    run.log_text("hello", "deep/er/a.txt")
    run.log_bytes(b"\x89PNG", "top.png")
    assert tracker.download(run.run_id, "deep/er/a.txt").read_text() == "hello"
    assert tracker.download(run.run_id, "top.png").read_bytes() == b"\x89PNG"
    run.log_model(saved, {"a": 1.0})
    fetched = Detector.load(tracker.detector_folder(run.run_id))
    assert list(fetched.judge(pictures)) == list(detector.judge(pictures))
