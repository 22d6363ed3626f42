"""A model held against data of any kind: everything is recorded, nothing is invented, what is undefined says so."""

import contextlib
import html
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dftrack import __main__ as entry
from dftrack.errors import DataError, SettingError, StoreError
from dftrack.learning.assessment import choose
from dftrack.reassessment import Evaluated, Request, evaluate
from dftrack.scored import stored_predictions
from dftrack.study.doctor import Finding, examine
from dftrack.tracking import RunRecord, Tracker, open_tracker
from dftrack.verification import verify
from tests.released import hard_faces, opened, release_candidate

MADE = (
    "evaluation.json", "audit.json", "report/evaluation.html", "errors/gallery.html", "robustness/curves.png",
    "calibration/test-dev.png", "slices/test-dev.png", "slices/test-dev.csv", "grad-cam/test-dev.png",
    "confusion/val.png", "curves/roc.png", "predictions/test-dev.csv",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, template_store: Path) -> Path:
    """A store with one released-like run; the faces lie beside it."""
    folder = tmp_path_factory.mktemp("judged")
    hard_faces(folder / "faces")
    shutil.copytree(template_store, folder / "store")
    tracker = open_tracker(folder / "store")
    release_candidate(tracker, opened(folder / "faces", folder / "store"))
    return folder


@pytest.fixture(scope="module")
def own(place: Path) -> tuple[Tracker, RunRecord, Evaluated]:
    tracker = open_tracker(place / "store")
    found = run(place)
    return tracker, tracker.find_run(found.run_id), found


def run(place: Path, **more: object) -> Evaluated:
    tracker = open_tracker(place / "store")
    model = tracker.latest_run(tags={"dftrack.kind": "baseline"}).run_id
    return evaluate(tracker, place / "store", Request(model, **more), lambda what, done, total: None)


def test_everything_is_recorded_in_a_run_of_its_own(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    tracker, record, found = own
    assert (record.status, record.tags["dftrack.kind"]) == ("FINISHED", "evaluation")
    assert record.tags["dftrack.tests_opened"] == "test-dev"
    assert record.tags["dftrack.data_digest"] == found.data_digest
    for path in MADE:
        assert tracker.download(record.run_id, path).stat().st_size > 100, path
    low, value, high = (
        record.metrics[name]
        for name in ("interval/test-dev/roc_auc/low", "test-dev/roc_auc", "interval/test-dev/roc_auc/high")
    )
    assert low < value < high
    for name in (
        "robustness/jpeg/5", "robustness_accuracy/blur/1", "calibration/temperature", "calibration/test-dev/ece",
        "operating/test-dev/tpr_at_10pct_fpr", "by_group/test-dev/roc_auc", "shortcut/roc_auc",
    ):  # fmt: skip
        assert name in record.metrics, f"{name} is missing from {sorted(record.metrics)}"


def test_what_it_logs_follows_from_what_it_stores(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    tracker, record, _ = own
    found = verify(tracker, record.run_id)
    assert found.holds, found.faults
    assert any(claim.name.startswith("interval/") and claim.verdict == "follows" for claim in found.claims)


def test_the_command_prints_all_that_it_measured(
    own: tuple[Tracker, RunRecord, Evaluated],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker, record, found = own
    monkeypatch.setattr("dftrack.reassessment.evaluate", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["dftrack", "evaluate", "--store", str(place / "store"), "--json"])
    with contextlib.suppress(SystemExit):
        entry.main()
    said = json.loads(capsys.readouterr().out)
    stored = json.loads(tracker.download(record.run_id, "evaluation.json").read_text())
    assert {name: said[name] for name in stored} == stored
    part = said["splits"]["test-dev"]
    assert part["intervals"]["roc_auc"]["low"] == record.metrics["interval/test-dev/roc_auc/low"]
    assert part["by_group"]["roc_auc"] == record.metrics["by_group/test-dev/roc_auc"]
    assert part["calibration"]["ece"] == record.metrics["calibration/test-dev/ece"]
    assert said["chosen"]["thresholds"] and part["operating"][0]["threshold"] == part["threshold"]


def test_the_pages_need_nothing_from_elsewhere(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    tracker, record, _ = own
    for path in ("report/evaluation.html", "errors/gallery.html"):
        text = tracker.download(record.run_id, path).read_text()
        assert "http://" not in text and "https://" not in text, f"{path} asks for something from elsewhere"
    gallery = tracker.download(record.run_id, "errors/gallery.html").read_text()
    wrong = record.metrics["test-dev/n"] * (1 - record.metrics["test-dev/accuracy"])
    assert wrong > 0 and gallery.count('class="card"') >= min(wrong, 12), "the misses of both splits are shown"
    assert "test-dev/fake/" in gallery or "test-dev/real/" in gallery, "each says which file it is"


def test_the_numbers_are_those_of_the_run_it_judges(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    tracker, record, found = own
    judged = tracker.find_run(record.tags["dftrack.evaluated_run"])
    for name, value in found.flat().items():
        if name in judged.metrics:
            assert value == pytest.approx(judged.metrics[name], abs=1e-5), name


def test_a_folder_with_one_class_gives_undefined_not_zero(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "faces" / "test-dev" / "fake", tmp_path / "only" / "test" / "fake")
    for picture in sorted((tmp_path / "only" / "test" / "fake").iterdir())[5:]:
        picture.unlink()
    found = run(place, source=str(tmp_path / "only"))
    record = open_tracker(place / "store").find_run(found.run_id)
    assert found.flat()["test/roc_auc"] is None
    assert not any("roc_auc" in name and name.startswith("test/") for name in record.metrics)
    assert "test/roc_auc" in record.tags["dftrack.undefined"]
    stored = json.loads(open_tracker(place / "store").download(found.run_id, "evaluation.json").read_text())
    assert stored["splits"]["test"]["intervals"]["roc_auc"] is None


def test_what_val_decided_at_training_decides_on_other_data(place: Path, tmp_path: Path) -> None:
    tracker = open_tracker(place / "store")
    judged = tracker.latest_run(tags={"dftrack.kind": "baseline"})
    decided = choose(stored_predictions(tracker, judged.run_id)["val"])
    shutil.copytree(place / "faces" / "test-dev", tmp_path / "other" / "test")
    found = run(place, source=str(tmp_path / "other"))
    stored = json.loads(tracker.download(found.run_id, "evaluation.json").read_text())
    assert stored["chosen"]["temperature"] == pytest.approx(decided.temperature)
    assert [report.split for report in found.reports] == ["test"]
    again = verify(tracker, found.run_id)
    assert again.holds, again.faults


def test_pictures_that_the_model_was_trained_on_are_counted_whatever_their_names(place: Path, tmp_path: Path) -> None:
    for label in ("real", "fake"):
        (tmp_path / "seen" / "test" / label).mkdir(parents=True)
        for number, picture in enumerate(sorted((place / "faces" / "train" / label).iterdir())[:3]):
            shutil.copy(picture, tmp_path / "seen" / "test" / label / f"new-{number}.jpg")
    found = run(place, source=str(tmp_path / "seen"))
    assert found.notices == (
        "the model was trained on 6 of these pictures: what it says of them is no measure of skill",
    )
    assert open_tracker(place / "store").find_run(found.run_id).tags["dftrack.trained_on"] == "6"


def test_what_the_model_knows_and_what_is_wrong_with_the_data_is_said_everywhere(place: Path, tmp_path: Path) -> None:
    """Pictures of train and val saved anew as PNG, and one picture twenty times with both labels."""
    for label in ("real", "fake"):
        folder = tmp_path / "judged" / "test" / label
        folder.mkdir(parents=True)
        for split, count in (("train", 3), ("val", 2)):
            for picture in sorted((place / "faces" / split / label).iterdir())[:count]:
                Image.open(picture).save(folder / f"{split}-{picture.stem}.png")
        for number in range(10):
            shutil.copy(place / "faces" / "test-dev" / "real" / "test-dev-real-000.jpg", folder / f"again-{number}.jpg")
    found = run(place, source=str(tmp_path / "judged"))
    assert found.notices == (
        "the model was trained on 6 of these pictures: what it says of them is no measure of skill",
        "4 of these pictures are of the model's val split, which chose its thresholds and temperature: "
        "what it says of them is flattered",
        "1 picture is labelled both real and fake: no answer is right",
        "1 picture comes more than once in a split: 19 too many, each counted as one of its own",
    )
    tracker = open_tracker(place / "store")
    tags = tracker.find_run(found.run_id).tags
    assert (tags["dftrack.trained_on"], tags["dftrack.chosen_on"]) == ("6", "4")
    report = html.unescape(tracker.download(found.run_id, "report/evaluation.html").read_text())
    stored = json.loads(tracker.download(found.run_id, "evaluation.json").read_text())
    assert stored["notices"] == list(found.notices)
    for notice in found.notices:
        assert notice in report


def test_the_model_of_a_run_that_did_not_finish_is_judged_with_a_warning_that_is_recorded(
    own: tuple[Tracker, RunRecord, Evaluated],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker, found = own[0], own[2]
    judged = tracker.latest_run(tags={"dftrack.kind": "baseline"}).run_id
    recorded: list[str] = []

    def judge(*words: object) -> object:  # as it did before: what becomes of its notices is tested above
        recorded.extend(words[5])  # type: ignore[call-overload]
        return found.reports, found.assessment

    monkeypatch.setattr("dftrack.reassessment._judge", judge)
    monkeypatch.setattr("sys.argv", ["dftrack", "evaluate", judged, "--store", str(place / "store")])
    tracker.close_run(judged, "FAILED")
    try:
        with contextlib.suppress(SystemExit):
            entry.main()
    finally:
        tracker.close_run(judged, "FINISHED")
    caution = f"run {judged[:12]} (baseline) did not finish: it is FAILED"
    said = capsys.readouterr().err
    assert f"warning: {caution}" in said.splitlines() and said.count(caution) == 1, said
    assert recorded == [caution], "who reads the report does not hear of it"


def test_numbers_that_a_deleted_run_decided_are_not_called_wrong(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    tracker, record, _ = own
    judged = record.tags["dftrack.evaluated_run"]
    assert verify(tracker, record.run_id).holds
    tracker.delete_run(judged)
    try:
        with pytest.raises(StoreError, match="whose model was judged, is not there"):
            verify(tracker, record.run_id)
    finally:
        tracker.restore_run(judged)


def test_the_doctor_leaves_an_evaluation_alone_while_it_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[Finding, ...]] = []

    def judge(*_: object) -> None:
        looks.append(examine(open_tracker(place / "store"), ()))
        raise KeyboardInterrupt

    monkeypatch.setattr("dftrack.reassessment._judge", judge)
    with pytest.raises(KeyboardInterrupt):
        run(place, splits=("test-dev",))
    assert looks == [()], "nothing trains, but the evaluation does work"
    stopped = open_tracker(place / "store").runs(tags={"dftrack.kind": "evaluation"}, limit=1)[0]
    assert stopped.status == "KILLED"
    assert not (place / "store" / "checkpoints" / stopped.tags["dftrack.key"]).exists(), "an empty folder is left"


def test_of_its_own_val_split_nothing_needs_to_be_said(own: tuple[Tracker, RunRecord, Evaluated]) -> None:
    assert [report.split for report in own[2].reports] == ["val", "test-dev"]
    assert own[2].notices == ()


def test_a_split_that_is_not_there_is_refused_with_those_that_are(place: Path) -> None:
    with pytest.raises(SettingError, match="no split 'holdout'") as caught:
        run(place, splits=("holdout",))
    assert "test-dev" in caught.value.hint


def test_data_that_are_gone_are_refused(place: Path) -> None:
    with pytest.raises(DataError):
        run(place, source=str(place / "nowhere"))
