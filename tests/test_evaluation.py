"""From a model and a split to a report: the right numbers for the right pictures, and the model left as it was."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dftrack.config import ModelConfig
from dftrack.data.cache import Split
from dftrack.data.pixel_file import map_pixels
from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions, by_group, predict, report
from dftrack.learning.model import FaceCNN, build_model, normalise
from dftrack.learning.scores import NEVER_CERTAIN, fake_probability
from tests.makers import made_split

SIZE = 16


@pytest.fixture
def model() -> FaceCNN:
    torch.manual_seed(3)
    return build_model(ModelConfig(), SIZE)


def make_split(n: int = 11) -> Split:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    pixels.flags.writeable = False  # as the cache gives them
    names = tuple(f"{i:02d}.jpg" for i in range(n))
    return Split(
        name="val",
        pixels=pixels,
        labels=np.arange(n) % 2,
        names=names,
        groups=tuple(f"scene {i // 3}" for i in range(n)),
        paths=tuple(Path(name) for name in names),
        masks=(None,) * n,
    )


def make_predictions(labels: list[int], scores: list[float], groups: list[str] | None = None) -> Predictions:
    names = tuple(str(i) for i in range(len(labels)))
    return Predictions("test", names, tuple(groups or names), np.array(labels, np.int64), np.array(scores, float))


def test_predictions_are_the_softmax_of_the_network_for_each_picture_in_order(model: FaceCNN) -> None:
    split = make_split()
    found = predict(model, split, batch_size=4)
    with torch.no_grad():
        logits = model.eval()(normalise(torch.from_numpy(split.pixels.copy())))
    assert found.scores == pytest.approx(torch.softmax(logits.double(), 1)[:, 1].numpy(), abs=1e-6)
    assert (found.split, found.names, found.groups) == ("val", split.names, split.groups)
    assert np.array_equal(found.labels, split.labels)
    assert len(found) == 11 and found.scores.dtype == np.float64


def test_predicting_leaves_the_model_its_modes_gradients_and_statistics(model: FaceCNN) -> None:
    model.train()
    model.bn2.eval()  # frozen by somebody: it must stay so
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, make_split())
    assert model.training and model.dropout.training and not model.bn2.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_failing_batch_still_leaves_the_training_mode(model: FaceCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    model.train()
    monkeypatch.setattr(model.fc2, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(model, make_split())
    assert model.training and model.dropout.training


def test_batches_and_company_do_not_change_a_score(model: FaceCNN) -> None:
    split = make_split()
    with torch.no_grad():
        model.fc2.weight.mul_(20)  # a network that is sure of itself shows differences that others hide
    whole = predict(model, split).scores
    for size in (1, 2, 3, 5, 8):
        assert np.abs(predict(model, split, batch_size=size).scores - whole).max() < 1e-7, f"batches of {size}"
    assert np.abs(Detector(model=model, settings={}).score(split.pixels) - whole).max() < 1e-6, (
        "the saved detector differs"
    )


def test_low_precision_is_close_and_only_used_when_asked_for(model: FaceCNN) -> None:
    split = make_split()
    exact = predict(model, split).scores
    rough = predict(model, split, amp=torch.bfloat16).scores
    assert 0 < np.abs(exact - rough).max() < 0.03


def test_a_network_that_is_not_finite_gives_scores_that_say_so(model: FaceCNN) -> None:
    with torch.no_grad():
        model.fc2.bias.fill_(float("inf"))
    assert np.isnan(predict(model, make_split()).scores).all()


def test_sure_scores_keep_their_order_and_stay_off_0_and_1() -> None:
    margins = torch.tensor([-2000.0, -40.0, -1.0, 0.0, 1.0, 20.0, 30.0, 2000.0])
    scores = fake_probability(torch.stack([torch.zeros(8), margins], dim=1))
    assert scores.min() == NEVER_CERTAIN and scores.max() == 1 - NEVER_CERTAIN
    assert (np.diff(scores[1:]) > 0).all(), f"order lost: {scores}"
    assert scores[3] == 0.5
    assert metrics.log_loss(scores[[0, 7]], np.array([1, 0])) == pytest.approx(53 * np.log(2))


def test_an_empty_split_gives_no_predictions(model: FaceCNN) -> None:
    assert len(predict(model, make_split(0))) == 0


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(MetricError, match=r"different lengths: \[1, 2\]"):
        Predictions("val", ("a", "b"), ("a", "b"), np.array([0, 1]), np.array([0.5]))


def test_a_report_holds_metrics_confusion_and_the_answer_to_beat() -> None:
    found = report(make_predictions([0, 0, 1, 1, 1], [0.2, 0.6, 0.3, 0.6, 0.9]), threshold=0.6)
    assert found.confusion == ((1, 1), (1, 2))
    assert found.metrics["accuracy"] == 0.6
    assert found.metrics["recall"] == pytest.approx(2 / 3)
    assert found.always_fake["accuracy"] == 0.6
    assert (found.split, found.threshold) == ("test", 0.6)


@pytest.mark.parametrize("scores", [[], [float("nan")]])
def test_nothing_to_report_is_an_error(scores: list[float]) -> None:
    with pytest.raises(MetricError):
        report(make_predictions([1] * len(scores), scores))


def test_groups_are_scored_by_their_mean_and_never_mix_classes() -> None:
    mixed = make_predictions([1, 0, 1, 1, 0], [0.9, 0.2, 0.5, 0.3, 0.4], ["b", "a", "b", "a", "a"])
    found = by_group(mixed)
    assert found.names == ("a/real", "a/fake", "b/fake")
    assert found.groups == ("a", "a", "b")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.scores == pytest.approx([0.3, 0.3, 0.7])
    assert len(by_group(make_predictions([], []))) == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_scored_pictures_leave_the_memory_of_the_process(tmp_path: Path) -> None:
    def mapped() -> int:
        return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) << 10

    made = made_split("val", 4, size=96)
    (tmp_path / "pixels.u8").write_bytes(bytes(512 * 96 * 96 * 3))  # 14 MB
    pixels = map_pixels(tmp_path / "pixels.u8", (512, 96, 96, 3))
    split = dataclasses.replace(
        made, pixels=pixels, labels=made.labels.repeat(128), names=made.names * 128, groups=made.groups * 128
    )
    model = build_model(ModelConfig(), 96)
    predict(
        model, dataclasses.replace(split, pixels=pixels[:4], labels=made.labels, names=made.names, groups=made.groups)
    )
    before = mapped()
    assert len(predict(model, split)) == 512
    assert mapped() - before < 4 << 20
