"""The grid of damages: seeded, the same in any company, stronger by level; and what is told of a detector by it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from dftrack.errors import SettingError
from dftrack.learning import corruption
from dftrack.learning.corruption import KINDS, LEVELS, STRENGTHS, Outcome, damage, robustness, subset


def pictures(count: int = 3, size: int = 56, seed: int = 0) -> np.ndarray:
    """Coloured blobs, as fine as a face's features and as its eyelashes, away from black and white."""
    rng = np.random.default_rng(seed)
    values = np.full((count, size, size, 3), 128.0)
    for width, contrast in ((size / 12, 35), (size / 100, 22)):
        blobs = ndimage.gaussian_filter(rng.normal(size=values.shape), (0, width, width, 0))
        values += contrast * blobs / blobs.std()
    return np.clip(values, 20, 235).astype(np.uint8)


def change(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean((first.astype(float) - second) ** 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [96, 224])
def test_each_kind_gets_stronger_with_the_level(kind: str, size: int) -> None:
    clean = pictures(2, size)
    changes = [change(clean, damage(clean, kind, level)) for level in LEVELS]
    assert changes == sorted(changes) and changes[0] < 0.6 * changes[4], changes
    assert changes[0] < 12, f"level 1 is seen at once: {changes}"
    assert changes[4] > 8, f"level 5 is weak: {changes}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_damaged_alike_in_any_company_and_at_any_place(kind: str) -> None:
    clean = pictures(4)
    before = clean.copy()
    whole = damage(clean, kind, 4)
    assert whole.shape == clean.shape and whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, damage(clean, kind, 4), "not the same twice")
    np.testing.assert_array_equal(whole[2:3], damage(clean[2:3], kind, 4), "its company matters")
    np.testing.assert_array_equal(whole[::-1], damage(clean[::-1], kind, 4), "its place matters")
    np.testing.assert_array_equal(clean, before, "the pictures themselves were damaged")
    other = damage(clean, kind, 4, seed=1)
    assert (kind in ("gaussian_noise", "block_masks")) == bool(np.any(other != whole))


def test_noise_has_the_deviation_it_claims_and_differs_between_pictures() -> None:
    grey = np.full((2, 96, 96, 3), 128, np.uint8)
    grey[1, 0, 0] = 127
    noisy = damage(grey, "gaussian_noise", 3).astype(float) - grey
    assert noisy.std() == pytest.approx(STRENGTHS["gaussian_noise"][3], rel=0.03)
    assert abs(noisy.mean()) < 0.5
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.05


def test_blur_is_a_gaussian_of_the_width_it_claims_scaled_with_the_picture() -> None:
    for size in (96, 224):
        edge = np.zeros((1, size, size, 3), np.uint8)
        edge[:, :, size // 2 :] = 200
        sigma = STRENGTHS["blur"][4] * size / 224
        expected = ndimage.gaussian_filter1d(edge[0, 0, :, 0].astype(float), sigma)
        assert np.abs(damage(edge, "blur", 4)[0, 5, :, 0] - expected).max() < 8


def test_jpeg_is_what_pillow_reads_back_of_the_quality_named() -> None:
    clean = pictures(1)
    target = io.BytesIO()
    Image.fromarray(clean[0]).save(target, "JPEG", quality=10, subsampling="4:2:0")
    with Image.open(target) as image:
        np.testing.assert_array_equal(damage(clean, "jpeg", 5)[0], np.asarray(image))
    assert [STRENGTHS["jpeg"][level] for level in (1, 5)] == [95, 10]


def test_saturation_and_contrast_are_those_of_pillow_within_rounding() -> None:
    clean = pictures(1)
    image = Image.fromarray(clean[0])
    for level in LEVELS:
        for kind, enhance in (("saturation", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast)):
            oracle = np.asarray(enhance(image).enhance(STRENGTHS[kind][level])).astype(int)
            assert np.abs(damage(clean, kind, level)[0] - oracle).max() <= 1, (kind, level)
    grey = damage(clean, "saturation", 5)[0]
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])


def test_blocks_cover_the_share_named_and_those_of_a_level_stay_at_the_next() -> None:
    clean = np.zeros((1, 112, 112, 3), np.uint8)
    before = np.zeros((112, 112), bool)
    for level in LEVELS:
        masked = np.all(damage(clean, "block_masks", level)[0] == corruption.BLOCK, axis=2)
        assert masked.mean() == pytest.approx(STRENGTHS["block_masks"][level], abs=0.003)
        assert not np.any(before & ~masked)
        before = masked


def test_an_unknown_damage_is_refused_by_name() -> None:
    for kind, level in (("fog", 1), ("blur", 0), ("blur", 6)):
        with pytest.raises(SettingError, match=f"no damage '{kind}' of level {level}") as caught:
            damage(pictures(1), kind, level)
        assert "gaussian_noise" in caught.value.hint


def test_no_pictures_give_no_pictures() -> None:
    assert damage(pictures(1)[:0], "jpeg", 1).shape == (0, 56, 56, 3)


# ---- a detector on damaged pictures


def test_robustness_is_the_metrics_of_the_damaged_pictures_and_what_is_lost() -> None:
    clean, labels = pictures(8, 28), np.arange(8) % 2
    clean[labels == 1, ..., 0] = np.minimum(clean[labels == 1, ..., 0], 215) + 20  # fakes are redder
    seen: list[int] = []

    def score(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        redness = pixels[..., 0].mean((1, 2)) - pixels[..., 1:].mean((1, 2, 3))
        return 1 / (1 + np.exp(-(redness - 5) / 10))

    told: list[tuple[str, int, int]] = []
    found = robustness(score, clean, labels, progress=lambda *news: told.append(news))
    assert seen == [8] * 36 and found.pictures == 8 and found.fakes == 4
    assert [news[1] for news in told] == list(range(36)) and told[-1][2] == 35
    assert found.damaged["saturation"][4].auc is None, "grey pictures all score the same: nothing is ranked"
    assert found.clean.auc is not None and found.clean.auc > 0.7
    assert found.drop("saturation", 5).auc is None, "what is undefined has not fallen"
    again = score(damage(clean, "blur", 2))
    assert found.damaged["blur"][1].accuracy == np.mean((again >= 0.5) == labels)
    assert set(found.damaged) == set(KINDS) and {len(outcomes) for outcomes in found.damaged.values()} == {5}


def test_what_is_undefined_stays_undefined() -> None:
    one_class = robustness(lambda pixels: np.linspace(0.1, 0.9, len(pixels)), pictures(4, 14), np.ones(4, int))
    assert one_class.clean == Outcome(None, 0.5)
    assert one_class.drop("jpeg", 1) == Outcome(None, 0.0)
    broken = robustness(lambda pixels: np.full(len(pixels), np.nan), pictures(4, 14), np.arange(4) % 2)
    assert {outcome for outcomes in broken.damaged.values() for outcome in outcomes} == {Outcome(None, None)}


# ---- which pictures


def test_a_subset_keeps_the_shares_of_the_classes_and_as_many_groups_as_it_can() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(1000) < 0.3).astype(np.int64)
    groups = [f"g{i}" for i in np.minimum(rng.geometric(0.02, 1000), 120)]
    rows = subset(labels, groups)
    assert len(rows) == 160 and np.all(np.diff(rows) > 0)
    assert labels[rows].mean() == pytest.approx(labels.mean(), abs=0.005)
    for label in (0, 1):
        all_groups = {groups[i] for i in np.flatnonzero(labels == label)}
        chosen = {groups[i] for i in rows if labels[i] == label}
        assert len(chosen) == min(len(all_groups), int(np.sum(labels[rows] == label)))
    assert np.array_equal(rows, subset(labels, groups)) and not np.array_equal(rows, subset(labels, groups, seed=1))


def test_a_small_set_is_taken_whole_and_a_rare_class_is_kept() -> None:
    assert subset(np.arange(9) % 2, list("abcdefghi"), 9).tolist() == list(range(9))
    labels = np.zeros(1000, int)
    labels[500] = 1
    rows = subset(labels, [str(i) for i in range(1000)], 20)
    assert len(rows) == 20 and 500 in rows
    assert len(subset(np.ones(50, int), ["a"] * 50, 10)) == 10
