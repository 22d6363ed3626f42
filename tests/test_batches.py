"""Batches: (seed, epoch, sample) decides everything."""

import numpy as np
import pytest
import torch

from dftrack.data.batches import Batches, keyed_uniform
from tests.makers import made_split


def test_an_epoch_shows_every_image_once_with_its_own_label() -> None:
    split = made_split("train", 21)
    batches = list(Batches(split, batch_size=8, seed=3).epoch(1))
    assert [len(b.labels) for b in batches] == [8, 8, 5]
    seen = np.concatenate([b.pixels.numpy() for b in batches])
    labels = np.concatenate([b.labels.numpy() for b in batches])
    order = Batches(split, batch_size=8, seed=3).order(1)
    assert sorted(order) == list(range(21))
    np.testing.assert_array_equal(seen, split.pixels[order])
    np.testing.assert_array_equal(labels, split.labels[order])


def test_the_order_changes_with_the_epoch_and_the_seed_and_with_nothing_else() -> None:
    split = made_split("train", 40)
    base = Batches(split, batch_size=8, seed=3)
    same = Batches(split, batch_size=5, seed=3)
    assert (base.order(1) == same.order(1)).all()
    assert (base.order(1) != base.order(2)).any()
    assert (base.order(1) != Batches(split, batch_size=8, seed=4).order(1)).any()


@pytest.mark.parametrize("augmentation", ["none", "flip", "flip-color"])
def test_going_on_in_the_middle_of_an_epoch_gives_the_same_batches(augmentation: str) -> None:
    split = made_split("train", 30)
    batches = Batches(split, batch_size=4, seed=1, augmentation=augmentation)
    whole = [b.pixels for b in batches.epoch(2)]
    rest = [b.pixels for b in batches.epoch(2, skip=5)]
    assert len(rest) == len(whole) - 5
    for one, other in zip(whole[5:], rest, strict=True):
        assert torch.equal(one, other)


def test_flipping_mirrors_about_half_of_the_pictures_and_changes_with_the_epoch() -> None:
    split = made_split("train", 200, size=8)
    batches = Batches(split, batch_size=200, seed=1, augmentation="flip")

    def flipped(epoch: int) -> np.ndarray:
        got = next(iter(batches.epoch(epoch))).pixels.numpy()
        original = split.pixels[batches.order(epoch)]
        same = (got == original).all(axis=(1, 2, 3))
        mirrored = (got == original[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same ^ mirrored).all(), "a picture was neither left alone nor mirrored left to right"
        result = np.empty(200, dtype=bool)
        result[batches.order(epoch)] = mirrored
        return result

    first, second = flipped(1), flipped(2)
    assert 70 < first.sum() < 130
    assert 60 < (first != second).sum() < 140, "every epoch must draw anew"


def test_colour_augmentation_keeps_values_in_the_range_of_a_picture() -> None:
    batch = next(iter(Batches(made_split("train", 50), batch_size=50, seed=1, augmentation="flip-color").epoch(1)))
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.min() >= 0
    assert batch.pixels.max() <= 255


def test_keyed_numbers_are_uniform_and_independent_of_the_company_they_are_drawn_in() -> None:
    from scipy import stats

    samples = np.arange(20_000)
    drawn = keyed_uniform(7, 3, samples, 0)
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert keyed_uniform(7, 3, samples[123:124], 0)[0] == drawn[123]
    for other in (keyed_uniform(8, 3, samples, 0), keyed_uniform(7, 4, samples, 0), keyed_uniform(7, 3, samples, 1)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03, "two keys give related numbers"
