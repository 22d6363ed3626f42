"""Figures are PNG files of a readable size, for odd data too; they leave no trace in matplotlib's global state."""

import io
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dftrack.learning import figures
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.figures import PanelRow


def make_predictions(name: str = "val", n: int = 60, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    names = tuple(str(i) for i in range(n))
    return Predictions(name, names, names, labels, 1 / (1 + np.exp(-rng.normal(labels * 2.0 - 1))))


def only(label: int, n: int = 5) -> Predictions:
    names = tuple(str(i) for i in range(n))
    return Predictions("one", names, names, np.full(n, label), np.linspace(0.1, 0.9, n))


def row(i: int = 0, *, flat: bool = False, mask: bool = True, label: int | None = 1, warning: str = "") -> PanelRow:
    rng = np.random.default_rng(i)
    area = np.zeros((24, 24), bool)
    area[5:15, 8:20] = True
    return PanelRow(
        photo=rng.integers(0, 256, (24, 24, 3), dtype=np.uint8),
        heat=rng.random((24, 24), dtype=np.float32),
        name=f"test/fake/{i}.jpg", label=label, score=0.2, threshold=0.5, target=1,
        mask=area if mask else None, flat=flat, warning=warning,
    )  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of the figures drawn in the test."""
    texts: list[str] = []
    draw = figures.to_png

    def listen(figure: Figure) -> bytes:
        png = draw(figure)
        texts.extend(text.get_text() for text in figure.findobj(Text))
        return png

    monkeypatch.setattr(figures, "to_png", listen)
    return texts


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10, "the figure is empty"
        return image.size


def test_the_confusion_matrix_states_counts_shares_classes_and_threshold(said: list[str]) -> None:
    counted = report(
        Predictions("val", tuple("abcde"), tuple("abcde"), np.array([0, 0, 0, 1, 1]), np.full(5, 0.7)), 0.6
    )
    width, height = size(figures.confusion_matrix(counted))
    assert 400 < width < 1200 and 400 < height < 1200
    text = "\n".join(said)
    for piece in ("3", "100.0%", "0.0%", "n = 3", "n = 2", "true class", "called fake", "val", "0.6"):
        assert piece in text, f"{piece!r} is missing"


def test_a_class_that_is_absent_has_no_share(said: list[str]) -> None:
    size(figures.confusion_matrix(report(only(1))))
    assert said.count("undefined") == 2


@pytest.mark.parametrize("draw", [figures.roc_curves, figures.pr_curves])
def test_curves_show_every_split_and_say_which_have_none(draw: object, said: list[str]) -> None:
    broken = Predictions("broken", ("a", "b"), ("a", "b"), np.array([0, 1]), np.array([0.1, np.nan]))
    empty = Predictions("empty", (), (), np.empty(0, int), np.empty(0))
    width, height = size(draw([make_predictions(), make_predictions("test", 40, 1), only(1), broken, empty]))  # type: ignore[operator]
    assert 600 < width < 1600 and 400 < height < 1200
    text = "\n".join(said)
    for piece in ("val: A", "30 real + 30 fake", "test: A", "one: undefined (only fakes, n = 5)", "chance",
                  "broken: undefined (scores that are not finite)", "empty: undefined (no pictures)"):  # fmt: skip
        assert piece in text, f"{piece!r} is missing from {text}"


@pytest.mark.parametrize("scores", [np.full(6, 0.5), np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.9])])
def test_curves_of_equal_and_of_perfect_scores_can_be_drawn(scores: np.ndarray) -> None:
    split = Predictions("val", tuple("abcdef"), tuple("abcdef"), np.array([0, 0, 0, 1, 1, 1]), scores)
    size(figures.roc_curves([split]))
    size(figures.pr_curves([split]))


def test_no_splits_and_no_epochs_give_an_empty_picture_and_no_error() -> None:
    for png in (figures.roc_curves([]), figures.pr_curves([]), figures.loss_curves([])):
        size(png)


def test_loss_curves_leave_gaps_for_what_is_undefined_and_name_the_best_epoch(said: list[str]) -> None:
    history = [
        {"train/loss": 0.7, "val/loss": 0.6, "train/roc_auc": 0.6, "val/roc_auc": None},
        {"train/loss": 0.5, "val/loss": 0.4, "train/roc_auc": 0.8, "val/roc_auc": 0.75},
        {"train/loss": 0.3, "val/loss": 0.5, "val/roc_auc": 0.7},
    ]
    size(figures.loss_curves(history))
    assert "best val: 0.400, epoch 2" in said and "best val: 0.750, epoch 2" in said
    assert "epoch" in said and "cross-entropy (nats)" in said
    size(figures.loss_curves([{"train/loss": 1.0, "val/roc_auc": None}]))


@pytest.mark.parametrize("rows", [0, 1, 3, 8])
def test_a_panel_has_room_for_any_number_of_pictures(rows: int) -> None:
    width, height = size(figures.gradcam_panel([row(i) for i in range(rows)]))
    assert width < 1600, "wider than the page"
    assert height > 100 * rows / 2


def test_a_panel_says_name_class_score_and_whether_it_was_right(said: list[str]) -> None:
    size(figures.gradcam_panel([row(1), row(2, label=0), row(3, label=None, mask=False)], "val"))
    text = "\n".join(said)
    assert "test/fake/1.jpg\nWRONG: fake, called real, P(fake) = 0.200" in text
    assert "test/fake/2.jpg\nright: real, called real, P(fake) = 0.200" in text
    assert "test/fake/3.jpg\ncalled real, P(fake) = 0.200" in text


def test_flat_maps_and_maps_not_to_be_trusted_are_marked_in_the_picture(said: list[str]) -> None:
    size(figures.gradcam_panel([row(1, flat=True), row(2, warning="not trusted: as with random weights")]))
    text = "\n".join(said)
    assert "flat map:\nno place speaks\nfor fake" in text
    assert "not trusted: as with random weights" in text
    assert text.count("for fake") == 2, "a flat map must not be labelled as heat"


def test_drawing_touches_no_global_state_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is now an error
    before = dict(matplotlib.rcParams.copy().items())
    first = figures.roc_curves([make_predictions()])
    assert first == figures.roc_curves([make_predictions()]), "the same data gave two pictures"
    assert dict(matplotlib.rcParams.copy().items()) == before, "rcParams were changed"


def test_a_name_with_two_dollars_is_a_name_and_no_formula() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    row = PanelRow(photo=photo, heat=np.zeros((8, 8), np.float32), name=r"a$\frac$.png", label=None, score=0.5,
                   threshold=0.5, target=1)  # fmt: skip
    assert figures.gradcam_panel([row]).startswith(b"\x89PNG")


@pytest.mark.parametrize("name, shown", [("caf\udce9.jpg", r"caf\udce9.jpg"), ("\u7167\u7247.jpg", "\u7167\u7247.jpg")])
def test_a_name_that_no_font_can_write_is_no_error_and_no_warning(name: str, shown: str, said: list[str]) -> None:
    size(figures.gradcam_panel([replace(row(1), name=name)], name))
    assert shown in said, f"the title is not shown as {shown!r}: {said}"
    assert any(text.startswith(shown + "\n") for text in said), f"the picture's heading lacks {shown!r}: {said}"
