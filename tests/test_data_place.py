"""A run's pictures are found again from any working directory."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from dftrack.config import BASELINE_DATA
from dftrack.data_place import PATH_TAG, data_source_of, place_tag
from dftrack.recording import record_start
from dftrack.tracking import RunRecord, open_tracker
from tests.released import Recipe, hard_faces, opened, record, scored

KNOWN = RunRecord(
    run_id="a" * 32, name="", status="FINISHED", tags={}, settings={}, metrics={}, start_time=0.0, end_time=None,
    parent=None, artifact_uri="", experiment_id="1",
)  # fmt: skip


def run_of(source: str) -> RunRecord:
    """A run that was given `source` in the present working directory."""
    return dataclasses.replace(KNOWN, tags=place_tag(source), settings={"data.source": source})


def test_a_relative_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here/faces", "there/faces"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    run = run_of("faces")
    assert data_source_of(run) == "faces", "the name that the cache knows was given up"
    monkeypatch.chdir(tmp_path / "there")
    assert data_source_of(run) == str(tmp_path / "here" / "faces"), "another folder of this name was taken for it"
    shutil.rmtree(tmp_path / "here")
    assert data_source_of(run) == "faces", "it may have been moved here"


def test_the_sample_and_runs_without_the_tag_keep_their_source() -> None:
    assert place_tag(BASELINE_DATA) == {} and data_source_of(run_of(BASELINE_DATA)) == BASELINE_DATA
    assert data_source_of(dataclasses.replace(KNOWN, settings={"data.source": "faces"})) == "faces"


def test_a_training_keeps_where_its_pictures_lie(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard_faces(tmp_path / "faces", test=4)
    monkeypatch.chdir(tmp_path)
    data = dataclasses.replace(opened(Path("faces"), store), review=None)
    tracker = open_tracker(store)
    run = record(tracker, [scored("val", 20, skill=1.0)], Recipe(model=False, settings={"data.source": "faces"}))
    record_start(run, data)
    monkeypatch.chdir(store)
    found = tracker.find_run(run.run_id)
    assert found.tags[PATH_TAG] == data_source_of(found) == str(tmp_path / "faces")
