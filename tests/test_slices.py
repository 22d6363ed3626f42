"""Slices by what the files are like: who is in which, with which numbers, and which one is surely worse."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from dftrack.data.look import Traits, read_traits, sharpness
from dftrack.errors import MetricError
from dftrack.learning import metrics
from dftrack.learning.evaluation import Predictions
from dftrack.learning.slices import Slice, slice_table, worst
from dftrack.learning.statistics import Interval


def face(seed: int, size: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(size, size, 3)), (2, 2, 0))
    return Image.fromarray(np.clip(120 + 60 * blobs / blobs.std(), 0, 255).astype(np.uint8))


def traits_of(rng: np.random.Generator) -> Traits:
    side = float(rng.choice([96, 128, 224]))
    brightness, sharp = float(rng.uniform(30, 220)), float(rng.gamma(3, 100))
    return {"width": side, "height": side, "brightness": brightness, "sharpness": sharp,
            "JPEG quality": float(rng.integers(60, 100))}  # fmt: skip


def case(n: int = 400, seed: int = 0) -> tuple[Predictions, list[Traits | None]]:
    """200 groups of two; pictures with a brightness under 70 are judged by a coin."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    traits = [traits_of(rng) for _ in range(n)]
    dark = np.array([one["brightness"] < 70 for one in traits])  # type: ignore[operator]
    scores = 1 / (1 + np.exp(-rng.normal(np.where(dark, 0, 3.0 * labels - 1.5))))
    names = tuple(f"{i}.jpg" for i in range(n))
    return Predictions("val", names, tuple(f"g{i // 2}" for i in range(n)), labels, scores), list(traits)


def test_the_slices_are_quarters_of_each_trait_and_the_classes_with_their_numbers() -> None:
    predictions, traits = case()
    slices = slice_table(predictions, traits, 0.4)
    whole = slices[0]
    assert (whole.kind, whole.n, whole.reals, whole.fakes) == ("all", 400, 200, 200)
    assert whole.accuracy == metrics.accuracy(predictions.scores, predictions.labels, 0.4)
    assert whole.roc_auc == metrics.roc_auc(predictions.scores, predictions.labels)
    kinds = [part.kind for part in slices[1:]]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "class": 2, "size (px)": 3, "brightness": 4, "sharpness": 4, "JPEG quality": 4
    }  # fmt: skip
    for kind in dict.fromkeys(kinds):
        assert sum(part.n for part in slices if part.kind == kind) == 400, f"{kind} does not part the pictures"
    for part in slices:
        if part.kind in ("brightness", "sharpness"):
            assert 95 <= part.n <= 105
        for value, interval in ((part.accuracy, part.accuracy_interval), (part.roc_auc, part.roc_auc_interval)):
            assert (value is None) == (interval is None)
            assert value is None or interval is None or interval.low < value < interval.high
        assert (part.roc_auc is None) == (part.kind == "class"), "an AUC needs both classes"
    darkest = next(part for part in slices if part.kind == "brightness")
    low, high = (float(end) for end in darkest.name.split(" to "))
    inside = np.array([low <= round(one["brightness"], 1) <= high for one in traits])  # type: ignore[index,arg-type]
    assert inside.sum() == darkest.n
    assert darkest.accuracy == metrics.accuracy(predictions.scores[inside], predictions.labels[inside], 0.4)


def test_the_slice_that_is_surely_worse_is_named() -> None:
    found = worst(slice_table(*case()))
    assert found is not None and found.kind == "brightness" and found.name.startswith("3"), found


def test_a_detector_that_is_equally_good_everywhere_has_no_worst_slice_nearly_always() -> None:
    named = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        predictions, traits = case(200, seed)
        even = 1 / (1 + np.exp(-rng.normal(2.0 * predictions.labels - 1)))
        fair = Predictions("val", predictions.names, predictions.groups, predictions.labels, even)
        named += worst(slice_table(fair, traits)) is not None
    assert named <= 1, f"a slice was called surely worse in {named} of 6 fair splits"


def test_a_slice_that_is_only_a_little_worse_is_not_named() -> None:
    def part(kind: str, accuracy: float | None, high: float) -> Slice:
        interval = None if accuracy is None else Interval(0.5, high)
        return Slice(kind, "x", 50, 25, 25, accuracy, interval, None, None)

    whole = part("all", 0.9, 0.95)
    assert worst([whole, part("a", 0.8, 0.91), part("b", 0.7, 0.95)]) is None, "their intervals hold the whole"
    several = [whole, *(part(f"k{i}", 0.9, 0.95) for i in range(20))]
    assert worst([*several, part("a", 0.8, 0.895)]) is None, "one of 21 plain intervals may miss"
    assert worst([*several, part("a", 0.6, 0.7), part("b", 0.65, 0.7)]) == part("a", 0.6, 0.7)
    assert worst([whole, part("a", 0.0, 0.3)]) == part("a", 0.0, 0.3)
    assert worst([part("all", None, 0.0), part("a", 0.1, 0.2)]) is None
    assert worst([whole]) is None and worst([whole, part("a", None, 0.0)]) is None


def test_what_all_share_makes_no_slice_and_what_is_missing_makes_one() -> None:
    predictions, traits = case(60)
    same: list[Traits | None] = [{"width": 96.0, "height": 96.0, "brightness": 9.0, "sharpness": 1.0}] * 60
    assert {part.kind for part in slice_table(predictions, same)} == {"all", "class"}
    for row in range(10):
        traits[row] = {key: value for key, value in (traits[row] or {}).items() if key != "JPEG quality"}
    traits[10] = None
    slices = slice_table(predictions, traits)
    assert next(part.n for part in slices if part.name == "no JPEG") == 11
    assert [part.n for part in slices if part.name == "unknown"] == [1, 1, 1]
    lone = next(part for part in slices if part.name == "unknown")
    assert lone.accuracy is not None and lone.accuracy_interval is None and lone.roc_auc is None
    with pytest.raises(MetricError, match="59 traits for 60 pictures"):
        slice_table(predictions, traits[1:])


def test_no_pictures_give_one_empty_slice() -> None:
    empty = Predictions("val", (), (), np.empty(0, np.int64), np.empty(0))
    [whole] = slice_table(empty, [])
    assert whole == Slice("all", "pictures", 0, 0, 0, None, None, None, None)
    assert worst([whole]) is None


# ---- reading the traits


def test_the_traits_of_files_are_their_size_brightness_sharpness_and_quality(tmp_path: Path) -> None:
    paths = []
    for quality in range(5, 101, 5):
        paths.append(tmp_path / f"{quality}.jpg")
        face(1).save(paths[-1], quality=quality)
    for quality, found in zip(range(5, 101, 5), read_traits(paths), strict=True):
        assert found is not None and found["JPEG quality"] == quality and found["width"] == 64

    face(1).save(tmp_path / "a.png")
    face(1).filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "blurred.png")
    Image.new("RGB", (30, 20), (10, 10, 10)).save(tmp_path / "dark.webp", lossless=True)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    plain, blurred, dark, broken = read_traits(
        [tmp_path / n for n in ("a.png", "blurred.png", "dark.webp", "broken.jpg")]
    )
    assert plain and blurred and dark and broken is None
    assert "JPEG quality" not in plain
    assert float(blurred["sharpness"]) < 0.7 * float(plain["sharpness"])
    assert (dark["width"], dark["height"], dark["brightness"], dark["sharpness"]) == (30, 20, 10.0, 0.0)
    assert plain["brightness"] == pytest.approx(np.asarray(face(1).convert("L")).mean(), abs=1)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.int16)
    oracle = ndimage.laplace(greys.astype(float))[1:-1, 1:-1].var()
    assert sharpness(greys) == pytest.approx(oracle)
