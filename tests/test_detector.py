"""A saved detector judges as the network did, and nothing that was changed on the way is ever used."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dftrack.config import Config, ModelConfig, flatten, vary
from dftrack.data.pictures import decode, encode_jpeg, encode_png
from dftrack.errors import DetectorError
from dftrack.learning import detector as module
from dftrack.learning.detector import CARD, WEIGHTS, Detector
from dftrack.learning.model import FaceCNN, build_model, normalise

SIZE = 16


def small_model(seed: int = 0, size: int = SIZE) -> FaceCNN:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(), size)
    for norm in (model.bn1, model.bn2, model.bn3):  # as if trained: running statistics that are not 0 and 1
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def make_detector(threshold: float = 0.5, temperature: float | None = None) -> Detector:
    settings = flatten(vary(Config(), {"data.image_size": SIZE, "model.dropout": 0.25}))
    return Detector(model=small_model(), settings=settings, threshold=threshold, temperature=temperature)


def pictures(n: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_detector(threshold=0.4).save(tmp_path / "detector")
    return tmp_path / "detector"


@pytest.fixture
def change_card(saved: Path) -> Iterator[Callable[..., None]]:
    """Change the JSON and its own checksum, so that only the meaning is wrong."""

    def change(edit: Callable[[dict[str, Any]], object]) -> None:
        card = json.loads((saved / CARD).read_text())
        del card["sha256"]
        edit(card)
        (saved / CARD).write_text(json.dumps(card | {"sha256": module._digest(card)}))

    yield change


def test_a_loaded_detector_gives_the_numbers_of_the_network_that_was_saved(saved: Path) -> None:
    loaded = Detector.load(saved)
    assert (loaded.threshold, loaded.image_size) == (0.4, SIZE)
    assert loaded.settings == make_detector().settings
    assert np.array_equal(loaded.score(pictures(5)), make_detector().score(pictures(5)))


def test_a_verdict_follows_the_training_preprocessing_exactly(saved: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode_jpeg(pictures(1, 40)[0]))
    verdict = next(Detector.load(saved).judge([photo]))
    model = small_model().eval()
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(decode(photo, SIZE))[None]))
    assert verdict.score == pytest.approx(float(torch.softmax(logits, 1)[0, 1]), abs=1e-6)
    assert verdict.verdict == ("fake" if verdict.score >= 0.4 else "real")
    assert (verdict.name, verdict.status, verdict.reason) == (str(photo), "ok", "")


def test_a_score_does_not_depend_on_the_company_in_the_batch() -> None:
    model, size = small_model(size=64), 64
    judge = Detector(model=model, settings={})
    many = pictures(9, size)
    together = judge.score(many)
    for batch_size in (1, 2, 4):
        apart = judge.score(many, batch_size=batch_size)
        assert np.abs(together - apart).max() < 1e-6, f"batches of {batch_size} differ"
    assert np.abs(together[::-1] - judge.score(many[::-1].copy())).max() < 1e-6


@pytest.mark.parametrize("size", [17, 130])  # odd: the pooling drops a row; 130 px: maps are made in parts
def test_folded_normalisation_and_parts_change_no_score_beyond_1e_6(size: int) -> None:
    model = small_model(size=size).eval()
    with torch.no_grad():
        for norm in (model.bn1, model.bn2, model.bn3):
            norm.weight.uniform_(-2, 2)  # negative: the pooling picks what was smallest before
            norm.bias.normal_()
    many = pictures(21, size)
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(many))).double()
    expected = torch.softmax(logits, 1)[:, 1].numpy()
    assert np.abs(Detector(model=model, settings={}).score(many) - expected).max() < 1e-6
    assert np.ptp(expected) > 1e-3, "scores that are all alike prove nothing"


def test_the_threshold_decides_and_a_score_at_it_is_fake(saved: Path) -> None:
    content = encode_png(pictures(1)[0])
    score = next(Detector.load(saved).judge([content])).score
    assert score is not None
    for threshold, word in ((score, "fake"), (min(score + 1e-9, 1), "real"), (0.0, "fake")):
        judge = Detector(model=small_model(), settings={}, threshold=threshold)
        assert next(judge.judge([content])).verdict == word, f"score {score}, threshold {threshold}"


def test_a_temperature_is_kept_and_gives_the_calibrated_probability(tmp_path: Path) -> None:
    make_detector(temperature=2.5).save(tmp_path)
    loaded = Detector.load(tmp_path)
    content = encode_png(pictures(1)[0])
    verdict = next(loaded.judge([content]))
    assert verdict.score is not None and loaded.temperature == 2.5
    logit = np.log(verdict.score / (1 - verdict.score))
    assert verdict.probability == pytest.approx(1 / (1 + np.exp(-logit / 2.5)), abs=1e-12)
    assert loaded.calibrated(verdict.score) == verdict.probability
    assert next(loaded.judge([b""])).probability is None


def test_a_description_from_before_there_was_a_temperature_is_not_calibrated(
    saved: Path, change_card: Callable[..., None]
) -> None:
    change_card(lambda card: card.pop("temperature"))
    loaded = Detector.load(saved)
    assert (loaded.temperature, loaded.calibrated(0.5)) == (None, None)
    assert next(loaded.judge([encode_png(pictures(1)[0])])).probability is None


def test_a_bad_file_gets_its_reason_and_the_others_their_scores_in_order(saved: Path, tmp_path: Path) -> None:
    good = [encode_png(picture) for picture in pictures(5)]
    missing, gif = tmp_path / "nowhere.jpg", b"GIF89a" + bytes(50)
    sources = [good[0], b"", missing, good[1], good[2][:60], gif, tmp_path, *good[3:]]
    verdicts = list(Detector.load(saved).judge(sources, batch_size=3))
    assert [v.status for v in verdicts] == [
        "ok", "unreadable", "unreadable", "ok", "unreadable", "unreadable", "unreadable", "ok", "ok",
    ]  # fmt: skip
    for verdict in verdicts:
        assert (verdict.score is None) == (verdict.verdict == "") == bool(verdict.reason), verdict
    assert "empty" in verdicts[1].reason
    assert "No such file" in verdicts[2].reason
    scores = [v.score for v in verdicts if v.score is not None]
    assert scores == pytest.approx(Detector.load(saved).score(pictures(5))[[0, 1, 3, 4]].tolist(), abs=1e-6)
    assert verdicts[0].name == "picture 1" and verdicts[2].name == str(missing)


def test_nothing_to_judge_gives_nothing_and_sources_are_taken_as_they_come(saved: Path) -> None:
    judge = Detector.load(saved)
    assert list(judge.judge([])) == []
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield encode_png(pictures(1)[0])

    verdicts = judge.judge(endless(), batch_size=4)
    next(verdicts)
    assert taken == 8, f"{taken} sources were taken for the first batch of 4 and the one that is decoded meanwhile"
    verdicts.close()


def test_one_flipped_bit_anywhere_in_the_weights_is_refused(saved: Path) -> None:
    weights = saved / WEIGHTS
    whole = weights.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, 7, 8, len(whole) - 1, *rng.integers(0, len(whole), 30).tolist()]:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        weights.write_bytes(broken)
        with pytest.raises(DetectorError, match="sha256"):
            Detector.load(saved)
    weights.write_bytes(whole[:-1])
    with pytest.raises(DetectorError, match="sha256"):
        Detector.load(saved)


def test_no_flipped_bit_in_the_description_changes_what_is_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = saved / CARD
    whole = card.read_bytes()
    meant = module._read_card(card)
    refused = 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 7)
        card.write_bytes(broken)
        try:
            assert module._read_card(card) == meant, f"byte {place} changed the meaning unnoticed"
        except DetectorError:
            refused += 1
    assert refused > len(whole) / 2, "most bytes carry meaning"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda card: card.update(format_version=2), "has the format 2, this version of dftrack reads 1"),
        (lambda card: card.pop("format_version"), "no format_version"),
        (lambda card: card.pop("threshold"), "'threshold' is missing"),
        (lambda card: card.update(threshold="0.5"), "'threshold' is missing or of the wrong kind"),
        (lambda card: card.update(threshold=True), "'threshold' is missing or of the wrong kind"),
        (lambda card: card.update(threshold=1.5), r"must be in \[0, 1\], got 1.5"),
        (lambda card: card.update(temperature="2"), "'temperature' must be a number or null, got '2'"),
        (lambda card: card.update(temperature=True), "'temperature' must be a number or null, got True"),
        (lambda card: card.update(temperature=0), "temperature of a detector must be positive, got 0"),
        (lambda card: card.pop("weights_sha256"), "'weights_sha256' is missing"),
        (lambda card: card.update(classes=["fake", "real"]), "classes must be"),
        (lambda card: card["preprocessing"].pop("image_size"), "image_size must be a whole number, got None"),
        (lambda card: card["preprocessing"].update(mean=[0, 0, 0]), "another preprocessing"),
        (lambda card: card["preprocessing"].update(resize="cut, nearest"), "another preprocessing"),
        (lambda card: card["preprocessing"].update(image_size=32), r"fc1.weight is \(512, 512\)"),
        (lambda card: card["preprocessing"].update(image_size=10**9), "should be|describes no network"),
        (lambda card: card["settings"].update({"model.kernel_size": 5}), "conv1.weight is"),
        (lambda card: card["settings"].update({"model.kernel_size": 4}), "describes no network: model.kernel_size"),
        (lambda card: card["settings"].update({"model.flux": 4}), "describes no network: there is no setting"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_the_reason(
    saved: Path, change_card: Callable[..., None], edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    change_card(edit)
    with pytest.raises(DetectorError, match=words):
        Detector.load(saved)


def replace_weights(folder: Path, change_card: Callable[..., None], state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, folder / WEIGHTS)
    change_card(lambda card: card.update(weights_sha256=module.sha256(folder / WEIGHTS)))


def test_weights_with_the_right_hash_but_not_of_this_network_are_refused(
    saved: Path, change_card: Callable[..., None]
) -> None:
    good = {name: tensor.contiguous() for name, tensor in small_model().state_dict().items()}
    for state, words in (
        (good | {"fc2.bias": torch.tensor([0.0, float("nan")])}, "fc2.bias are not all finite"),
        ({k: v for k, v in good.items() if k != "fc2.bias"}, "fc2.bias is absent, should be"),
        (good | {"extra": torch.zeros(1)}, "extra is .* should be absent"),
        (good | {"fc2.bias": torch.zeros(3)}, r"fc2.bias is \(3,\) float32, should be \(2,\)"),
        (good | {"fc2.bias": torch.zeros(2, dtype=torch.float64)}, "float64"),
    ):
        replace_weights(saved, change_card, state)
        with pytest.raises(DetectorError, match=words):
            Detector.load(saved)
    (saved / WEIGHTS).write_bytes(b"not weights")
    change_card(lambda card: card.update(weights_sha256=module.sha256(saved / WEIGHTS)))
    with pytest.raises(DetectorError, match="does not hold weights"):
        Detector.load(saved)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b'{"format_version": 1}'])
def test_a_description_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    (saved / CARD).write_bytes(content)
    with pytest.raises(DetectorError):
        Detector.load(saved)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DetectorError, match=f"cannot read .*{name}"):
        Detector.load(saved)


def test_a_network_that_is_not_finite_is_not_saved_and_never_scores(tmp_path: Path) -> None:
    broken = make_detector()
    with torch.no_grad():
        broken.model.fc2.bias[1] = float("nan")
    with pytest.raises(DetectorError, match=r"fc2.bias"):
        broken.save(tmp_path / "detector")
    assert not (tmp_path / "detector" / CARD).exists()
    with pytest.raises(DetectorError, match="no finite score for 2 pictures"):
        broken.score(pictures(2))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_weights_can_be_read_by_whoever_can_read_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        make_detector().save(tmp_path)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in (WEIGHTS, CARD)}
    assert modes == {WEIGHTS: mode, CARD: mode}, "a colleague could not load the model"


def test_a_kill_between_the_two_files_leaves_no_mixture_of_two_detectors(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        Detector(model=small_model(seed=1), settings={}).save(saved)
    monkeypatch.undo()
    with pytest.raises(DetectorError, match=f"cannot read .*{CARD}"):
        Detector.load(saved)
    make_detector().save(saved)
    assert Detector.load(saved).threshold == 0.5


def test_a_fresh_process_scores_the_same_without_any_heavy_library(saved: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(pictures(1, 50)[0]))
    code = f"""
import json, sys
from pathlib import Path
from dftrack.learning.detector import Detector
verdict, = Detector.load(Path({str(saved)!r})).judge([Path({str(photo)!r})])
heavy = [name for name in ("sklearn", "scipy", "matplotlib", "captum", "mlflow", "optuna") if name in sys.modules]
print(json.dumps([verdict.score, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    score, heavy = json.loads(done.stdout)
    here = next(Detector.load(saved).judge([photo])).score
    assert score == pytest.approx(here, abs=1e-6)
    assert heavy == [], f"scoring loads {heavy}"
