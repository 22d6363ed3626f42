"""Pictures of robustness, calibration and slices: readable PNG files that say what they show, for odd data too."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dftrack.learning import figures
from dftrack.learning import judgement_figures as drawn
from dftrack.learning.calibration import reliability
from dftrack.learning.corruption import KINDS, Outcome, Robustness
from dftrack.learning.slices import Slice
from dftrack.learning.statistics import Interval


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures drawn in the test."""
    found: list[Figure] = []
    draw = figures.to_png

    def listen(figure: Figure) -> bytes:
        found.append(figure)
        return draw(figure)

    monkeypatch.setattr(figures, "to_png", listen)
    return found


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10, "the figure is empty"
        return image.size


def robust(auc: float | None = 0.9, *, pictures: int = 160, fakes: int = 100) -> Robustness:
    damaged = {
        kind: tuple(Outcome(auc and auc - 0.02 * level * place, 0.8 - 0.01 * level) for level in range(1, 6))
        for place, kind in enumerate(KINDS)
    }
    return Robustness(pictures, fakes, 0.4, Outcome(auc, 0.82), damaged)


def part(kind: str, name: str, accuracy: float | None, low: float = 0.0, auc: float | None = None) -> Slice:
    interval = Interval(low, 2 * accuracy - low) if accuracy and low else None
    return Slice(kind, name, 100, 50, 50, accuracy, interval, auc, interval if auc else None)


def test_robustness_curves_name_every_kind_and_start_at_the_clean_pictures(shown: list[Figure]) -> None:
    width, height = size(drawn.robustness_curves(robust()))
    assert 900 < width < 1600 and 400 < height < 1000
    text = said(shown[0])
    for piece in (*(kind.replace("_", " ") for kind in KINDS), "160 pictures (60 real + 100 fake)", "AUC", "0.4",
                  "undamaged", "chance", "strength of the damage (0: none)"):  # fmt: skip
        assert piece in text, f"{piece!r} is missing"
    lines = [line for line in shown[0].axes[0].lines if len(line.get_xdata()) == 6]
    assert len(lines) == 7 and all(line.get_ydata()[0] == 0.9 for line in lines)
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 7, "two kinds look alike"
    levels = {round(float(line.get_ydata()[0]), 3) for line in shown[0].axes[1].lines if len(line.get_xdata()) == 2}
    assert levels == {0.82, 0.625}, "the clean accuracy and the share of the larger class are lines"


def test_curves_without_an_auc_say_so_and_low_ones_are_not_cut_off(shown: list[Figure]) -> None:
    size(drawn.robustness_curves(robust(None, pictures=4, fakes=4)))
    assert "undefined for these pictures" in said(shown[0])
    size(drawn.robustness_curves(robust(0.3)))
    lowest = min(float(np.min(line.get_ydata())) for line in shown[1].axes[0].lines)
    assert shown[1].axes[0].get_ylim()[0] < lowest


def test_a_reliability_diagram_shows_both_curves_with_their_errors(shown: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(300), rng.integers(0, 2, 300)
    bins = reliability(scores, labels)
    size(drawn.reliability_diagram(bins, reliability(scores * 0.5, labels), 0.123, 0.045, "test-dev"))
    text = said(shown[0])
    for piece in ("test-dev", "300 pictures", "as scored: ECE 0.123", "with the temperature of val: ECE 0.045"):
        assert piece in text, f"{piece!r} is missing"
    [points] = [line for line in shown[0].axes[0].lines if str(line.get_label()).startswith("as scored")]
    np.testing.assert_allclose(points.get_ydata(), [one.share_fake for one in bins if one.n])


@pytest.mark.parametrize("bins", [reliability(np.array([0.2]), np.array([1])), ()])
def test_no_temperature_and_hardly_any_pictures_are_said_in_words(bins: tuple, shown: list[Figure]) -> None:
    size(drawn.reliability_diagram(bins, (), None, None, "val"))
    assert "as scored: ECE undefined" in said(shown[0])
    assert "no temperature: val gives none" in said(shown[0])


def test_a_slice_chart_names_each_slice_and_marks_the_one_that_is_surely_worse(shown: list[Figure]) -> None:
    rows = [part("all", "pictures", 0.8, 0.75, 0.9), part("class", "fake", 0.82, 0.7),
            part("brightness", "3 to 9", 0.5, 0.4, 0.6), part("brightness", "unknown", 0.3)]  # fmt: skip
    size(drawn.slice_chart(rows))
    text = said(shown[0])
    for piece in ("all pictures (n = 100)", "class: fake (n = 100)", "Surely worse than the whole: brightness: 3 to 9",
                  "undefined", "0.300, no interval", "Accuracy", "AUC"):  # fmt: skip
        assert piece in text, f"{piece!r} is missing from {text}"
    colours = [label.get_color() for label in shown[0].axes[0].get_yticklabels()]
    assert [colour == figures.COLOURS[1] for colour in colours] == [False, False, True, False]


def test_a_chart_without_a_worse_slice_says_so_and_any_number_of_rows_fits(shown: list[Figure]) -> None:
    rows = [part("all", "pictures", 0.8, 0.75), *(part(f"k{i}", "x", 0.8, 0.6) for i in range(25))]
    assert size(drawn.slice_chart(rows))[1] > 1000
    assert "No slice is surely worse" in said(shown[0])
    size(drawn.slice_chart([Slice("all", "pictures", 0, 0, 0, None, None, None, None)]))
    size(drawn.slice_chart([]))


DRAWINGS: tuple[Callable[[], bytes], ...] = (
    lambda: drawn.robustness_curves(robust()),
    lambda: drawn.slice_chart([part("all", "pictures", 0.8, 0.75, 0.9), part("class", "fake", 0.82, 0.7)]),
    lambda: drawn.reliability_diagram(reliability(np.linspace(0, 1, 9), np.arange(9) % 2), (), 0.1, None, "val"),
)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_no_words_lie_over_each_other(draw: Callable[[], bytes], shown: list[Figure]) -> None:
    draw()
    ticks = {label for axes in shown[0].axes for label in axes.get_xticklabels() + axes.get_yticklabels()}
    words = [text for text in shown[0].findobj(Text) if text.get_visible() and text.get_text() and text not in ticks]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words]
    for place, (text, box) in enumerate(boxes):
        over = [other for other, its in boxes[:place] if box.overlaps(its) and other != text]
        assert not over, f"{text!r} lies over {over}"
