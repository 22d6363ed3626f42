"""A run becomes the champion only if it earns it; whatever happens, the alias points at the old one or the new one."""

import dataclasses
import json
import pickle
import py_compile
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dftrack import logged_model, registered, registry
from dftrack.config import Config, flatten, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.data_place import place_tag
from dftrack.dossier import INTERVALS_TAG
from dftrack.errors import DetectorError, PromotionRefused, SettingError, StoreError
from dftrack.gates import Gate, Limits
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import report
from dftrack.learning.statistics import METHOD
from dftrack.recording import flat_metrics, prediction_columns
from dftrack.registered import Registered, Version
from dftrack.registry import Promotion, Request, promote, resolve_model, rollback
from dftrack.scored import stored_predictions
from dftrack.tracking import Tracker, open_tracker
from tests import kills_promotion
from tests.released import hard_faces, opened, release_candidate
from tests.test_cli import Terminal, refused

LIMITS = Limits(pictures=100, ece=0.3)
IN_A_CLEAN_PROCESS = registered.score_apart


class Made(NamedTuple):
    """What a store is made of once: runs that differ in how good they are. Every test works on a copy."""

    store: Path
    faces: Path
    runs: Mapping[str, str]  # name -> run id


@pytest.fixture(scope="module")
def made(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    store = tmp_path_factory.mktemp("made") / "store"
    shutil.copytree(template_store, store)
    faces = hard_faces(tmp_path_factory.mktemp("faces") / "faces")
    data, tracker = opened(faces, store), open_tracker(store)
    kinds = {"good": (0, 0.0), "twin": (0, 0.0), "triplet": (0, 0.0), "other": (1, 0.0), "worse": (3, 20.0)}
    runs = {
        name: release_candidate(tracker, data, seed=seed, spoil=spoil).run_id for name, (seed, spoil) in kinds.items()
    }
    return Made(store, faces, runs)


@pytest.fixture
def store(made: Made, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", made.store, tmp_path / "store"], check=True)  # 866 files: shutil takes twice as long
    return tmp_path / "store"


@pytest.fixture
def data(made: Made, store: Path) -> DataSet:
    return opened(made.faces, store)


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean process takes 5 s: one test has it, the others load the model here."""

    def score(folder: Path, pictures: Sequence[Path]) -> list[float | None]:
        return [verdict.score for verdict in Detector.load(folder / logged_model.FOLDER).judge(pictures)]

    monkeypatch.setattr(registered, "score_apart", score)


def ask(tracker: Tracker, run: str, **more: object) -> Promotion:
    return promote(tracker, Request(**{"run": run, "limits": LIMITS, **more}))


def champion(tracker: Tracker) -> int | None:
    version = tracker.registered("dftrack").at("champion")
    return version.number if version else None


def failed(found: Promotion) -> list[str]:
    return [gate.name for gate in found.gates if gate.passed is False]


# ---- promoting


def test_the_first_good_run_becomes_the_champion_and_its_version_says_why(
    tracker: Tracker, made: Made, data: DataSet
) -> None:
    run = made.runs["good"]
    found = ask(tracker, run)
    assert (found.outcome, found.version, found.previous) == ("promoted", 1, None), found.gates
    version = tracker.registered("dftrack").at("champion")
    assert version.run_id == run and version.aliases == ("champion",)
    tags = version.tags
    assert tags["dftrack.promotion"] == "done" and tags["dftrack.replaces"] == "none"
    assert tags["dftrack.data_digest"] == data.digest and tags["dftrack.threshold"] == "0.5"
    auc = tracker.find_run(run).metrics["test-dev/roc_auc"]
    assert float(tags["dftrack.auc.test-dev"]) == pytest.approx(auc, abs=1e-4)
    assert json.loads(tags["dftrack.gates"])["round trip"] == "passed"
    assert run in tags["dftrack.report"] and tags["dftrack.promoted_by"] and tags["dftrack.promoted_at"]
    assert resolve_model(tracker).run_id == run, "the champion is not what is used by default"


def plant_byte_code(module: Path) -> None:
    """Lay code beside a module that Python would run in its place."""
    bad = module.with_name("bad.py")
    bad.write_text("raise SystemExit('planted byte code was run')")
    place = module.parent / "__pycache__" / f"{module.stem}.{sys.implementation.cache_tag}.pyc"
    place.parent.mkdir(exist_ok=True)
    py_compile.compile(str(bad), str(place), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    bad.unlink()


def test_the_model_is_tried_in_a_clean_process_with_the_code_that_was_logged(
    tracker: Tracker, made: Made, data: DataSet
) -> None:
    code = tracker.model_folder(made.runs["good"]) / "scoring.py"
    text = code.read_text()
    code.write_text(text.replace("else verdict.score", "else verdict.score + 0.25"))
    assert code.read_text() != text
    plant_byte_code(next(code.parent.rglob("dftrack/errors.py")))  # it is in no digest
    recorded = stored_predictions(tracker, made.runs["good"])["test-dev"]
    paths = dict(zip(data.splits["test-dev"].names, data.splits["test-dev"].paths, strict=True))
    scores = IN_A_CLEAN_PROCESS(code.parent, [paths[name] for name in recorded.names[:3]])
    assert scores == pytest.approx((recorded.scores[:3] + 0.25).tolist(), abs=1e-5)


def test_explain_shows_every_gate_and_changes_nothing(tracker: Tracker, made: Made) -> None:
    found = ask(tracker, made.runs["good"], explain=True)
    assert found.outcome == "allowed" and len(found.gates) == 13
    assert tracker.registered("dftrack").versions() == []


def test_the_same_run_again_changes_nothing(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    ask(tracker, run)
    again = ask(tracker, run)
    assert (again.outcome, again.version) == ("already", 1)
    assert len(tracker.registered("dftrack").versions()) == 1


def test_an_equal_run_replaces_the_champion_and_a_worse_one_does_not(tracker: Tracker, made: Made) -> None:
    ask(tracker, made.runs["good"])
    second = ask(tracker, made.runs["other"])
    assert (second.outcome, second.version, second.previous) == ("promoted", 2, 1), second.gates
    assert tracker.registered("dftrack").number(2).tags["dftrack.replaces"] == "1"
    worse = ask(tracker, made.runs["worse"])
    assert worse.outcome == "refused" and failed(worse) == ["against the champion"], worse.gates
    assert champion(tracker) == 2


# ---- each refusal for its own reason


def test_a_run_trained_on_leaks_is_refused(tracker: Tracker, made: Made) -> None:
    tracker.open_run(made.runs["good"]).set_tags({"dftrack.leaks": "12"})
    found = ask(tracker, made.runs["good"])
    assert failed(found) == ["no leaks"] and "12 leaks" in str(found.refusal().message)
    assert champion(tracker) is None and tracker.registered("dftrack").versions() == []


def change_json(tracker: Tracker, run: str, name: str, **more: object) -> None:
    """Change fields of a JSON artifact."""
    content = json.loads(tracker.download(run, name).read_text())
    tracker.open_run(run).log_json({**content, **more}, name)


def test_leaks_are_found_in_the_audit_and_the_settings_too_and_no_audit_is_no_pass(
    tracker: Tracker, made: Made, store: Path, tmp_path: Path
) -> None:
    run = made.runs["good"]
    change_json(tracker, run, "audit.json", allowed=7)
    found = ask(tracker, run, explain=True)
    assert failed(found) == ["no leaks"] and "7 leaks were trained on, says audit.json" in found.refusal().message
    tracker.download(run, "audit.json").unlink()
    found = ask(tracker, run, explain=True)
    assert failed(found) == ["no leaks"] and "no audit" in found.refusal().message
    faces = hard_faces(tmp_path / "leaky", test=52)
    shutil.copy(faces / "train/fake/train-fake-000.jpg", faces / "test-dev/fake/test-dev-fake-000.jpg")
    config = vary(Config(), {"data.source": str(faces), "data.image_size": 16, "data.leaks": "allow"})
    leaky = release_candidate(tracker, open_data(config.data, store), settings=flatten(config)).run_id
    change_json(tracker, leaky, "audit.json", allowed=0)
    found = ask(tracker, leaky, explain=True)
    assert failed(found) == ["no leaks"] and "data.leaks=allow" in found.refusal().message, found.gates


def test_numbers_that_the_files_hold_are_missed_where_they_are_not_logged(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    audit = json.loads(tracker.download(run, "audit.json").read_text())
    audit["audit"]["shortcut"]["auc"] = 0.99
    tracker.open_run(run).log_json(audit, "audit.json")
    found = ask(tracker, run, explain=True)
    assert failed(found) == ["metrics"] and "shortcut/roc_auc is 0.9900 in the run's files" in found.refusal().message
    other = made.runs["other"]
    damaged = {"jpeg": [{"auc": 0.4, "accuracy": None}]}
    tracker.open_run(other).log_json({"robustness": {"damaged": damaged}}, "evaluation.json")
    found = ask(tracker, other, explain=True)
    assert failed(found) == ["metrics"] and "robustness/jpeg/1 is 0.4000" in found.refusal().message
    tracker.open_run(other).log_metrics({"robustness/jpeg/1": 0.9})
    assert "is logged as 0.9000 and 0.4000" in ask(tracker, other, explain=True).refusal().message
    tracker.open_run(other).log_metrics({"robustness/jpeg/1": 0.4})
    said = {gate.name: gate.found for gate in ask(tracker, other, explain=True).gates}["metrics"]
    assert "robustness/" not in said, said


def test_a_champion_whose_predictions_were_made_worse_is_judged_again_from_its_model(
    tracker: Tracker, made: Made
) -> None:
    ask(tracker, made.runs["good"])
    honest = stored_predictions(tracker, made.runs["good"])["test-dev"]
    spoilt = np.random.default_rng(0).permutation(honest.scores)
    rewrite(tracker, made.runs["good"], "test-dev", scores=spoilt)  # its metrics too: the version's tag is left
    found = ask(tracker, made.runs["worse"])
    assert failed(found) == ["against the champion"], found.gates
    said = {gate.name: gate.found for gate in found.gates}["same data"]
    assert "judged again" in said and "not those of its release" in said


def test_a_run_with_an_infinite_metric_is_refused(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    tracker._client.log_metric(run, "train/loss", float("inf"), step=3)  # as a foreign program would
    found = ask(tracker, run)
    assert failed(found) == ["metrics"] and "train/loss is infinite" in found.refusal().message


def test_a_run_with_a_prettier_metric_is_refused(tracker: Tracker, made: Made) -> None:
    tracker.open_run(made.runs["good"]).log_metrics({"test-dev/roc_auc": 0.99})
    found = ask(tracker, made.runs["good"])
    assert failed(found) == ["metrics"] and "test-dev/roc_auc is logged as 0.9900" in found.refusal().message


def test_a_run_with_a_narrower_interval_than_its_predictions_give_is_refused(tracker: Tracker, made: Made) -> None:
    run = tracker.open_run(made.runs["good"])
    run.set_tags({INTERVALS_TAG: METHOD})
    run.log_metrics({"interval/test-dev/roc_auc/low": 0.74})
    found = ask(tracker, made.runs["good"])
    assert failed(found) == ["metrics"] and "interval/test-dev/" in found.refusal().message


def test_an_unfinished_run_and_one_without_a_model_are_refused(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    tracker.close_run(run, "KILLED")
    assert failed(ask(tracker, run)) == ["run finished"]
    other = made.runs["other"]
    tracker.drop_model(other)
    found = ask(tracker, other)
    assert failed(found) == ["files", "predictions", "round trip"] and "has no model" in found.refusal().message


@pytest.mark.parametrize("file", ["artifacts/model.safetensors", "artifacts/detector.json", "scoring.py", "MLmodel"])
def test_one_flipped_bit_anywhere_in_the_model_is_found(tracker: Tracker, made: Made, file: str) -> None:
    run = made.runs["good"]
    place = tracker.model_folder(run) / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(bytes(content))
    found = ask(tracker, run)
    assert "files" in failed(found) and champion(tracker) is None
    assert ask(tracker, run, override="it will do").outcome == "refused", "a broken file cannot be passed over"


def rewrite(tracker: Tracker, run: str, split: str, **more: object) -> None:
    """Give a run other stored predictions, with the metrics and intervals that follow from them, as a forger would."""
    found = dataclasses.replace(stored_predictions(tracker, run)[split], **more)
    opened_run = tracker.open_run(run)
    opened_run.log_table(prediction_columns(found), f"predictions/{split}.csv")
    opened_run.log_metrics(flat_metrics(report(found)))


def beautified(tracker: Tracker, run: str, split: str = "test-dev") -> np.ndarray:
    """Scores nearer to the truth, but for those that the round trip tries."""
    found = stored_predictions(tracker, run)[split]
    better = 0.5 * found.scores + 0.5 * np.where(found.labels == 1, 0.99, 0.01)
    tried = np.round(np.linspace(0, len(found) - 1, 16)).astype(int)
    better[tried] = found.scores[tried]
    return better


def test_beautified_predictions_with_metrics_that_follow_from_them_are_refused(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    rewrite(tracker, run, "test-dev", scores=beautified(tracker, run))
    found = ask(tracker, run)
    assert failed(found) == ["predictions"] and "other scores" in found.refusal().message, found.gates


def test_predictions_with_other_labels_groups_or_pictures_than_the_data_are_refused(
    tracker: Tracker, made: Made
) -> None:
    run = made.runs["good"]
    honest = stored_predictions(tracker, run)["test-dev"]
    groups = tuple(str(row) for row in range(len(honest)))
    rewrite(tracker, run, "test-dev", groups=groups, names=tuple(f"new/{name}" for name in honest.names))
    assert "pictures without a prediction" in ask(tracker, run, explain=True).refusal().message
    rewrite(tracker, run, "test-dev", names=honest.names)
    assert "another group" in ask(tracker, run, explain=True).refusal().message
    rewrite(tracker, run, "test-dev", groups=honest.groups, labels=(honest.scores >= 0.5).astype(np.int64))
    found = ask(tracker, run, explain=True)
    assert "predictions" in failed(found) and "another label" in found.refusal().message


def test_a_split_whose_predictions_were_removed_is_missed(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    (tracker.download(run, "predictions") / "val.csv").unlink()
    found = ask(tracker, run)
    assert "metrics" in failed(found) and "val was scored and has no stored predictions" in found.refusal().message
    other = made.runs["other"]
    tracker.open_run(other).set_tags({"dftrack.tests_opened": "test-dev, test-hard"})
    found = ask(tracker, other)
    assert failed(found) == ["metrics"] and "test-hard was scored" in found.refusal().message
    third = made.runs["twin"]
    tracker.open_run(third).log_json({"counts": {"train": {}, "val": {}, "test-far": {}}}, "data.json")
    assert ask(tracker, third, explain=True).outcome == "allowed", "a split that was never scored is not missed"
    tracker.open_run(third).log_metrics({"interval/test-far/roc_auc/low": 0.4})
    assert "test-far was scored" in ask(tracker, third).refusal().message


def test_the_floor_is_held_against_what_the_val_predictions_give(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    tracker.open_run(run).log_metrics({"val/roc_auc": 1.0, "shortcut/roc_auc": 0.999})
    assert "shortcut floor" in failed(ask(tracker, run))


class Harmful:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('the pickle was run')",))


def plant_pickle(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Harmful()))


def plant_disguised_pickle(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(pickle.dumps(Harmful(), protocol=0))


def plant_torch_file(folder: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, folder / "artifacts" / "weights.json")
    assert zipfile.is_zipfile(folder / "artifacts" / "weights.json")


def plant_loader(folder: Path) -> None:
    path = folder / "MLmodel"
    path.write_text(path.read_text().replace("mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model"))


def plant_link(folder: Path) -> None:
    (folder / "link.txt").symlink_to("/etc/hostname")


@pytest.mark.parametrize("plant", [plant_pickle, plant_disguised_pickle, plant_torch_file, plant_loader, plant_link])
def test_a_model_with_a_pickle_in_it_is_refused_and_never_loaded(tracker: Tracker, made: Made, plant) -> None:
    run = made.runs["good"]
    folder = tracker.model_folder(run)
    plant(folder)
    tag = {logged_model.CONTENT_TAG: logged_model.content_digest(folder)}  # as if it had been logged so
    [output] = tracker._client.get_run(run).outputs.model_outputs
    tracker._client.set_logged_model_tags(output.model_id, tag)
    found = ask(tracker, run)
    assert "files" in failed(found), found.gates
    said = next(gate.found for gate in found.gates if gate.name == "files")
    assert any(word in said for word in ("pickle", "loaded from code", "is a link")), said
    assert "not done" in found.gates[-1].found


def test_too_few_pictures_are_refused_unless_fewer_are_asked_for(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    assert failed(ask(tracker, run, limits=Limits(ece=0.3), explain=True)) == ["test pictures"]


def test_a_network_that_gives_other_scores_than_recorded_is_refused(
    tracker: Tracker, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made.runs["good"]
    honest = registered.score_apart
    monkeypatch.setattr(registered, "score_apart", lambda *asked: [score + 2e-5 for score in honest(*asked)])
    assert failed(ask(tracker, run)) == ["round trip"]


def test_a_run_whose_pictures_are_gone_or_have_changed_is_refused(
    tracker: Tracker, store: Path, tmp_path: Path
) -> None:
    faces = hard_faces(tmp_path / "mine", test=52)
    run = release_candidate(tracker, opened(faces, store)).run_id
    changed = faces / "test-dev" / "real" / "test-dev-real-000.jpg"
    shutil.copy(faces / "test-dev" / "real" / "test-dev-real-001.jpg", changed)
    found = ask(tracker, run, explain=True)
    assert failed(found) == ["predictions", "round trip"] and "have changed" in found.gates[-1].found
    shutil.rmtree(faces)
    found = ask(tracker, run, explain=True)
    assert failed(found) == ["predictions", "round trip"], "a run that nobody can try again was let pass"


def test_a_run_of_a_relative_folder_is_judged_from_any_working_directory(
    tracker: Tracker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard_faces(tmp_path / "mine", test=52)
    monkeypatch.chdir(tmp_path)
    run = release_candidate(tracker, opened(Path("mine"), store), tags=place_tag("mine")).run_id
    monkeypatch.chdir(store)
    assert ask(tracker, run, explain=True).outcome == "allowed"


def test_a_champion_of_other_data_is_judged_again_on_the_new_pictures(
    tracker: Tracker, made: Made, store: Path, tmp_path: Path
) -> None:
    ask(tracker, made.runs["good"])
    other = opened(hard_faces(tmp_path / "other", seed=9), store)
    run = release_candidate(tracker, other).run_id
    gate = {gate.name: gate for gate in ask(tracker, run, explain=True).gates}
    assert gate["same data"].passed and "judged again" in gate["same data"].found
    assert "test-dev" in gate["against the champion"].found
    (tracker.model_folder(made.runs["good"]) / "artifacts" / "model.safetensors").unlink()
    found = ask(tracker, run)
    assert "same data" in failed(found) and "cannot be judged" in found.refusal().message


def test_an_override_promotes_and_is_recorded(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    tracker.open_run(run).set_tags({"dftrack.leaks": "1"})
    found = ask(tracker, run, override="the leak is a calibration chart")
    assert found.outcome == "promoted"
    tags = tracker.registered("dftrack").at("champion").tags
    assert tags["dftrack.override"] == "the leak is a calibration chart" and tags["dftrack.overridden"] == "no leaks"
    with pytest.raises(SettingError, match="reason"):
        Request(run=run, override="  ")


@pytest.mark.parametrize(
    "names",
    [
        {"model": "a/b"},
        {"model": ""},
        {"alias": "latest"},
        {"alias": "v3"},
        {"alias": "a@b"},
        {"alias": "a.b"},
        {"alias": "my alias"},
    ],
)
def test_names_that_mlflow_would_refuse_are_refused_before_any_work(names: dict[str, str]) -> None:
    with pytest.raises(SettingError):
        Request(run="a", **names)


# ---- rollback


def test_rollback_goes_back_one_more_each_time_and_says_when_there_is_nothing_left(
    tracker: Tracker, made: Made
) -> None:
    with pytest.raises(PromotionRefused, match="points at no version"):
        rollback(tracker)
    runs = [made.runs[name] for name in ("good", "twin", "triplet")]
    for run in runs:
        assert ask(tracker, run).outcome == "promoted"
    assert [rollback(tracker).version for _ in range(2)] == [2, 1]
    assert resolve_model(tracker).run_id == runs[0]
    assert tracker.registered("dftrack").number(3).tags["dftrack.rollback"].startswith("done: to version 2")
    with pytest.raises(PromotionRefused, match="nothing before dftrack/1"):
        rollback(tracker)
    assert ask(tracker, runs[2]).version == 4, "what was rolled back may be promoted again"
    assert tracker.registered("dftrack").number(4).tags["dftrack.replaces"] == "1"


def test_rollback_to_a_damaged_or_deleted_version_is_refused(tracker: Tracker, made: Made) -> None:
    for name in ("good", "twin"):
        ask(tracker, made.runs[name])
    first = tracker.registered("dftrack").number(1)
    weights = tracker.registered("dftrack").model_folder(first) / "artifacts" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PromotionRefused, match="cannot be used"):
        rollback(tracker)
    tracker.registered("dftrack").delete(1)
    with pytest.raises(PromotionRefused, match="has been deleted"):
        rollback(tracker)
    assert champion(tracker) == 2


def retouch(tracker: Tracker, number: int) -> None:
    """Change the weights of a version as somebody would who knows the files: every hash in them fits again."""
    folder = tracker.registered("dftrack").model_folder(tracker.registered("dftrack").number(number)) / "artifacts"
    detector = Detector.load(folder)
    with torch.no_grad():
        detector.model.fc2.bias.add_(0.5)
    detector.save(folder)


def test_a_version_whose_files_were_changed_is_not_used_compared_with_or_gone_back_to(
    tracker: Tracker, made: Made
) -> None:
    for name in ("good", "twin"):
        ask(tracker, made.runs[name])
    retouch(tracker, 1)
    with pytest.raises(PromotionRefused, match="not those that were logged"):
        rollback(tracker)
    retouch(tracker, 2)
    for reference in (None, "dftrack@champion", "dftrack/1"):
        with pytest.raises(DetectorError, match="not what was released"):
            resolve_model(tracker, reference)
    again = ask(tracker, made.runs["twin"])
    assert again.outcome == "refused" and failed(again) == ["files"], "a changed champion was called the champion"
    (tracker.download(made.runs["twin"], "predictions") / "test-dev.csv").unlink()  # so that it is judged again
    found = ask(tracker, made.runs["triplet"])
    assert "same data" in failed(found) and "not those that were logged" in found.refusal().message
    assert champion(tracker) == 2


def test_what_another_alias_replaced_is_not_what_this_one_goes_back_to(tracker: Tracker, made: Made) -> None:
    for name in ("good", "twin"):
        ask(tracker, made.runs[name], alias="staging")
    tracker.registered("dftrack").set_alias("champion", 2)
    with pytest.raises(PromotionRefused, match="promoted as staging"):
        rollback(tracker)
    assert rollback(tracker, alias="staging").version == 1


def test_a_champion_that_another_machine_named_meanwhile_is_not_replaced_unjudged(
    tracker: Tracker, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lock is a file of this store; on a common server another store's command is not held by it."""
    ask(tracker, made.runs["good"])
    registered = tracker.registered("dftrack")
    real = Registered.create

    def slow(self: Registered, *given: Any, **named: Any) -> Version:
        theirs = real(self, made.runs["triplet"], key="theirs", tags={})
        self.set_alias("champion", theirs.number)
        return real(self, *given, **named)

    monkeypatch.setattr(Registered, "create", slow)
    with pytest.raises(StoreError, match="moved by somebody else meanwhile"):
        ask(tracker, made.runs["twin"])
    champion = registered.at("champion")
    assert champion and champion.run_id == made.runs["triplet"]
    assert {version.run_id for version in registered.versions()} == {made.runs["good"], made.runs["triplet"]}


def test_an_alias_that_somebody_else_set_has_no_known_past(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    version = tracker.registered("dftrack").create(run, key="by hand", tags={})
    tracker.registered("dftrack").set_alias("champion", version.number)
    with pytest.raises(PromotionRefused, match="not promoted by dftrack"):
        rollback(tracker)


# ---- what a reference means


def test_a_model_is_found_by_alias_number_and_run(tracker: Tracker, made: Made) -> None:
    run = made.runs["good"]
    assert resolve_model(tracker).run_id == made.runs["worse"], "without a champion, the newest baseline"
    ask(tracker, run)
    other = made.runs["other"]
    for reference in (None, "", "dftrack@champion", "dftrack/1", "models:/dftrack@champion", run[:10]):
        found = resolve_model(tracker, reference)
        assert found.run_id == run and (found.folder / "detector.json").is_file(), reference
    assert resolve_model(tracker, other).run_id == other
    for wrong in ("dftrack@nobody", "dftrack/9", "other@champion", "xyz"):
        with pytest.raises(StoreError):
            resolve_model(tracker, wrong)
    with pytest.raises(StoreError) as caught:
        resolve_model(tracker, "dftrack@nobody")
    assert caught.value.hint == "known: dftrack@champion"
    for wrong in ("it's/3", "it's@champion", 'it\'s "so"/3'):
        with pytest.raises(StoreError, match=r"no version 3|is called 'champion'|there is no model"):
            resolve_model(tracker, wrong)


# ---- at once, and killed


@pytest.mark.slow
def test_two_promotions_at_once_are_one_after_the_other(store: Path, tracker: Tracker, made: Made) -> None:
    said = run_script("race", store, made.runs["good"], made.runs["twin"])
    assert sorted(said["outcomes"]) == ["promoted", "promoted"], said
    versions = {
        version.number: version.tags["dftrack.replaces"] for version in tracker.registered("dftrack").versions()
    }
    assert versions == {1: "none", 2: "1"} and champion(tracker) == 2, "the second did not see the first"


class Killed(BaseException):
    """The process ends here: nothing of ours is carried out any more."""


def deadly(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, step: int, *, after: bool) -> None:
    """Let everything end before or after the change number `step` to the registry."""
    done: list[str] = []

    def wrap(name: str) -> None:
        honest = getattr(tracker._client, name)

        def call(*arguments: object, **options: object) -> object:
            done.append(name)
            if len(done) == step and not after:
                raise Killed
            try:
                return honest(*arguments, **options)
            finally:
                if len(done) == step:
                    raise Killed

        monkeypatch.setattr(tracker._client, name, call)

    for name in kills_promotion.CHANGES:
        wrap(name)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gate lets every run pass."""
    monkeypatch.setattr(registry, "judge", lambda *_: [Gate("open", "", "", True)])


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_cut_off_at_any_step_leaves_the_old_champion_or_the_new(
    tracker: Tracker, made: Made, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    seen = []
    for step in range(1, 6):
        model = f"m{step}"
        assert ask(tracker, made.runs["good"], model=model).version == 1
        with monkeypatch.context() as broken:
            deadly(tracker, broken, step, after=after)
            try:
                ask(tracker, made.runs["twin"], model=model)
                break
            except Killed:
                pass
        there = tracker.registered(model).at("champion")
        seen.append(there.number)
        assert there.run_id == made.runs["good" if there.number == 1 else "twin"]
        assert resolve_model(tracker, f"{model}@champion").folder.is_dir()
        ask(tracker, made.runs["twin"], model=model)  # the same command again
        versions = tracker.registered(model).versions()
        assert tracker.registered(model).at("champion").run_id == made.runs["twin"]
        assert len(versions) == 2 and {v.tags["dftrack.promotion"] for v in versions} == {"done"}, (
            "something half is left"
        )
    assert seen == ([1, 1, 2, 2] if after else [1, 1, 1, 2]), "the alias moves in one step of four, and only there"


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("after", [False, True])
def test_a_rollback_cut_off_at_any_step_is_told_as_what_it_was(
    tracker: Tracker, made: Made, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    seen = []
    for step in range(1, 5):
        model = f"m{step}"
        for name in ("good", "twin"):
            ask(tracker, made.runs[name], model=model)
        with monkeypatch.context() as broken:
            deadly(tracker, broken, step, after=after)
            try:
                rollback(tracker, model)
                break
            except Killed:
                pass
        there = tracker.registered(model).at("champion").number
        seen.append(there)
        ask(tracker, made.runs["triplet"], model=model)  # whoever comes next puts the record right
        words = tracker.registered(model).number(2).tags.get("dftrack.rollback", "")
        assert words.startswith("done: " if there == 1 else "not done: ") or (not words and step == 1), words
    assert seen == ([2, 1, 1] if after else [2, 2, 1])


@pytest.mark.slow
def test_a_promotion_or_rollback_killed_with_9_at_any_step_leaves_the_old_champion_or_the_new(
    store: Path, made: Made
) -> None:
    said = run_script("kill", store, made.runs["good"], made.runs["twin"])
    assert said["kills"] == 14, said
    assert set(said["champions"]) == {"old", "new"}, said
    assert said["pending"] == 0 and said["half"] == 0, said


def run_script(*words: object) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills_promotion", *map(str, words)],
        cwd=Path(kills_promotion.__file__).parents[1], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- at the terminal


@pytest.fixture
def dftrack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def test_the_commands_show_promote_refuse_and_roll_back(
    dftrack: Terminal,
    tracker: Tracker,
    made: Made,
    store: Path,
) -> None:
    good, leaky = made.runs["good"], made.runs["twin"]
    tracker.open_run(leaky).set_tags({"dftrack.leaks": "3"})
    options = ("--store", store, "--min-pictures", 100, "--max-ece", 0.3)
    said = dftrack("promote", good[:8], "--explain", *options)
    assert said.code == 0 and "round trip" in said.out and "nothing stands against it" in said.out
    said = dftrack("promote", good, *options)
    assert said.code == 0 and "dftrack@champion is version 1" in said.out, said.err
    said = dftrack("promote", leaky, *options)
    refused(said, 9, "no leaks: 3 leaks were trained on", "no alias was moved")
    assert "failed" in said.out
    said = dftrack("promote", leaky, "--json", *options, "--override", "known")
    assert said.code == 0 and json.loads(said.out)["version"] == 2
    said = dftrack("rollback", "--store", store, "--json")
    assert said.code == 0 and json.loads(said.out)["version"] == 1
    refused(dftrack("rollback", "--store", store), 9, "nothing before dftrack/1")
    said = dftrack("compare", good, leaky, "--store", store)
    assert said.code == 0 and "not told apart" in said.out and "comparison.html" in said.err
