"""Checks of heat maps must fail where maps are known to be worthless, and pass where they are known to be right."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dftrack.config import ModelConfig
from dftrack.data.cache import Split
from dftrack.data.pictures import encode_png
from dftrack.learning.evaluation import Predictions, predict
from dftrack.learning.explain import HeatMaps
from dftrack.learning.model import FaceCNN, build_model, normalise
from dftrack.learning.trust import (
    FEWEST,
    Check,
    Trust,
    check_maps,
    check_skill,
    examine,
    marked,
    mask_agreement,
    randomised,
    similarity,
)

SIZE = 32


def make_split(folder: Path, n: int = 48) -> Split:
    """Fakes bear a bright blue square at a place of their own; the mask says where. Reals bear nothing."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(90, 160, (n, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.arange(n) % 2
    masks: list[Path | None] = []
    for i in range(n):
        if not labels[i]:
            masks.append(None)
            continue
        x, y = rng.integers(2, SIZE - 12, 2)
        pixels[i, y : y + 10, x : x + 10] = (20, 20, 250)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + 10, x : x + 10] = 255
        masks.append(folder / f"{i}.png")
        (folder / f"{i}.png").write_bytes(encode_png(mask))
    names = tuple(map(str, range(n)))
    return Split("val", pixels, labels, names, names, tuple(map(Path, names)), tuple(masks))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def trained(split: Split) -> FaceCNN:
    torch.manual_seed(0)
    model = build_model(ModelConfig(dropout=0.0), SIZE).train()
    images, labels = normalise(torch.from_numpy(split.pixels)), torch.from_numpy(split.labels)
    momenta = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    for _ in range(14):  # SGD by hand: making a torch optimizer imports its compiler, for seconds
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        for (parameter, momentum), gradient in zip(
            momenta.items(), torch.autograd.grad(loss, list(momenta)), strict=True
        ):
            momentum.mul_(0.9).add_(gradient)
            parameter.data.sub_(0.01 * momentum)
    return model


def test_a_network_that_sees_the_forgery_passes_and_its_heat_lies_on_the_mask(trained: FaceCNN, split: Split) -> None:
    [found] = examine(trained, [split], [predict(trained, split)])
    assert found.warnings == (), [check for check in found.checks if not check.passed]
    assert [check.name for check in found.checks] == [
        "better than chance", "random weights", "other class", "heat on the forged area",
    ]  # fmt: skip
    assert found.right.n + found.right.flat == 24 and found.wrong.n == 0
    assert found.right.lift is not None and found.right.lift > 1.5, found.right


def test_random_weights_are_marked(trained: FaceCNN, split: Split) -> None:
    stranger = randomised(trained, seed=5)
    [found] = examine(stranger, [split], [predict(stranger, split)])
    assert any("no better than chance" in warning or "than chance" in warning for warning in found.warnings), found


def test_maps_that_ignore_the_weights_or_the_class_are_marked(
    trained: FaceCNN, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brightness(_model: object, images: torch.Tensor, _target: int) -> HeatMaps:  # an edge detector would do as well
        heat = images.mean(dim=1).sub(images.amin()).numpy()
        none = np.zeros(len(heat), bool)
        return HeatMaps(heat / heat.max(), none, none.astype(np.float32), none.astype(np.int64))

    monkeypatch.setattr("dftrack.learning.explain.heat_maps", brightness)
    [[random_weights, other_class]] = check_maps(trained, [split.pixels[:12]])
    assert random_weights.value == pytest.approx(1.0) and random_weights.passed is False
    assert other_class.value == pytest.approx(1.0) and other_class.passed is False
    assert "random weights give the same maps" in random_weights.warning
    assert "the same" in other_class.warning


def test_the_random_weights_are_drawn_several_times_and_a_map_inside_out_is_the_same_map(
    trained: FaceCNN, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, calls = np.random.default_rng(0), [0]
    own = noise.random((12, 24, 24)).astype(np.float32)
    alike = {3: own, 4: 1 - own, 5: 1 - own}

    def maps(_model: object, images: torch.Tensor, _target: int) -> HeatMaps:
        calls[0] += 1  # the model's own, the other class's, then the strangers': one of five is alike by luck
        heat = {1: own, **alike}.get(calls[0], noise.random(own.shape).astype(np.float32))
        none = np.zeros(len(heat), bool)
        return HeatMaps(heat, none, none.astype(np.float32), none.astype(np.int64))

    monkeypatch.setattr("dftrack.learning.explain.heat_maps", maps)
    [[check, _]] = check_maps(trained, [split.pixels[:12]])
    assert (check.draws, check.passed, check.value) == (5, False, pytest.approx(1.0)), "three of five draws are alike"
    alike = {3: own}
    calls[0] = 0
    [[check, _]] = check_maps(trained, [split.pixels[:12]])
    assert (check.draws, check.passed) == (5, True), "one of five is no verdict"


def test_redrawn_weights_differ_leave_the_model_alone_and_disturb_no_random_numbers(trained: FaceCNN) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    stranger = randomised(trained, seed=1)
    assert torch.equal(torch.rand(3), expected), "training after the check would go another way"
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    for name in ("conv1.weight", "conv3.weight", "fc1.weight", "fc2.bias", "bn2.running_mean"):
        assert not torch.equal(stranger.state_dict()[name], before[name]), f"{name} was not drawn anew"
    again = randomised(trained, seed=1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in stranger.state_dict().items())


def make_predictions(labels: list[int], scores: list[float]) -> Predictions:
    names = tuple(map(str, range(len(labels))))
    return Predictions("val", names, names, np.array(labels), np.array(scores, float))


def test_what_is_said_of_the_maps_names_the_checks_that_could_not_be_made() -> None:
    def told(*passed: bool | None) -> str:
        nothing = mask_agreement(np.empty((0, 8, 8), np.float32), np.empty((0, 8, 8), bool))
        return Trust(
            tuple(Check("a", None, 0.5, 9, one, "not to be trusted") for one in passed), nothing, nothing
        ).verdict

    assert told(True, True) == "Every check was passed."
    assert told(None, None) == "No check could be made: too few pictures."
    assert told(True, None, True).startswith("2 of 3 checks were passed")
    assert told(None, False) == "not to be trusted."


def test_skill_counts_groups_not_pictures() -> None:
    labels, scores = [0, 1] * 40, list(np.random.default_rng(1).normal([0.0, 1.0] * 40, 0.5))
    one_of_each = make_predictions(labels, scores)
    assert check_skill(one_of_each).passed is True
    few = dataclasses.replace(one_of_each, groups=tuple(f"video {i % 2}" for i in range(80)))
    assert check_skill(few).passed is None, "two videos show no skill, however many pictures they have"


def test_skill_is_judged_only_where_there_are_enough_pictures() -> None:
    half = [0, 1] * 20
    assert check_skill(make_predictions(half, [0.2, 0.8] * 20)).passed is True
    assert check_skill(make_predictions(half, [0.8, 0.2] * 20)).passed is False
    assert check_skill(make_predictions(half, [0.5] * 40)).passed is False
    for labels, scores in (([0, 1], [0.1, 0.9]), ([1] * 40, [0.9] * 40), ([], []), (half, [float("nan")] * 40)):
        check = check_skill(make_predictions(labels, scores))
        assert (check.value, check.passed) == (None, None), check


def test_energy_lift_and_pointing_of_a_case_counted_by_hand() -> None:
    heat, masks = np.zeros((2, 2, 5), np.float32), np.zeros((2, 2, 5), bool)
    masks[:, 0, :2] = True  # 2 of 10 places
    heat[0, 0, 0], heat[0, 1, 4] = 1.0, 0.25  # 80 % inside, hottest inside
    heat[1, 0, 1], heat[1, 1, :3] = 0.5, 0.5  # a quarter inside, four equal peaks, one of them inside
    found = mask_agreement(heat, masks)
    assert (found.n, found.flat) == (2, 0)
    assert found.energy == pytest.approx((0.8 + 0.25) / 2)
    assert found.area == pytest.approx(0.2)
    assert found.lift == pytest.approx((4 + 1.25) / 2)
    assert found.pointing == pytest.approx((1 + 0.25) / 2)
    assert found.p_value is None, "two pictures prove nothing"


def test_an_even_map_has_lift_one_and_a_random_map_is_not_above_chance() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((60, 20, 20), bool)
    masks[:, 4:12, 5:16] = True
    even = mask_agreement(np.full((60, 20, 20), 0.3, np.float32), masks)
    assert even.lift == pytest.approx(1.0) and even.pointing == pytest.approx(even.area)
    assert even.p_value is not None and even.p_value > 0.05
    noise = mask_agreement(rng.random((60, 20, 20), dtype=np.float32), masks)
    assert noise.lift == pytest.approx(1.0, abs=0.05)
    assert noise.p_value is not None and noise.p_value > 0.01
    inside = mask_agreement(masks.astype(np.float32), masks)
    assert inside.energy == inside.pointing == 1.0
    assert inside.p_value is not None and inside.p_value < 1e-6


def test_flat_maps_and_masks_without_an_inside_are_left_out_and_counted() -> None:
    heat = np.ones((4, 3, 3), np.float32)
    heat[0] = 0
    masks = np.zeros((4, 3, 3), bool)
    masks[0, 0], masks[1, 0], masks[2] = True, True, True
    found = mask_agreement(heat, masks)
    assert (found.n, found.flat) == (1, 1)
    nothing = mask_agreement(heat[:0], masks[:0])
    assert (nothing.n, nothing.energy, nothing.lift, nothing.pointing) == (0, None, None, None)


def test_a_split_without_masks_or_pictures_is_examined_as_far_as_it_goes(trained: FaceCNN, split: Split) -> None:
    few, columns = 4, (split.names[:4], split.groups[:4], split.paths[:4], (None,) * 4)
    bare = Split("test", split.pixels[:few], split.labels[:few], *columns)
    [found] = examine(trained, [bare], [predict(trained, bare)])
    assert found.right.n == found.wrong.n == 0
    assert all(check.passed is None for check in found.checks), f"fewer than {FEWEST} pictures allow no verdict"
    assert found.warnings == ()


def test_similarity_leaves_out_flat_maps_and_is_one_for_the_same_map() -> None:
    heat = np.random.default_rng(0).random((3, 6, 6), dtype=np.float32)
    flat = np.array([False, True, False])
    maps = HeatMaps(heat, flat, flat.astype(np.float32), flat.astype(np.int64))
    assert similarity(maps, maps) == pytest.approx([1, 1])
    upside_down = HeatMaps(1 - heat, flat, maps.peak, maps.targets)
    assert similarity(maps, upside_down) == pytest.approx([-1, -1])


def test_similarity_is_spearmans_correlation_with_ties_shared() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 9, (2, 4, 7, 7)).astype(np.float32)
    shown = np.zeros(4, bool)
    one, two = (HeatMaps(heat, shown, shown.astype(np.float32), shown.astype(np.int64)) for heat in (first, second))
    expected = [stats.spearmanr(a, b, axis=None).statistic for a, b in zip(*np.float64((first, second)), strict=True)]
    assert similarity(one, two) == pytest.approx(expected, abs=1e-12)


def test_a_map_that_ranks_nothing_is_left_out() -> None:
    heat = np.random.default_rng(0).random((2, 4, 4), dtype=np.float32)
    heat[1] = 0.5
    shown = np.zeros(2, bool)
    maps = HeatMaps(heat, shown, shown.astype(np.float32), shown.astype(np.int64))
    assert similarity(maps, maps) == pytest.approx([1])
    none = HeatMaps(heat[:0], shown[:0], maps.peak[:0], maps.targets[:0])
    assert len(similarity(none, none)) == 0


def test_splits_are_examined_together_as_each_alone_and_one_without_pictures_has_no_maps(
    trained: FaceCNN, split: Split
) -> None:
    most = dataclasses.replace(
        split, pixels=split.pixels[:40], labels=split.labels[:40], names=split.names[:40], groups=split.groups[:40],
        paths=split.paths[:40], masks=split.masks[:40],
    )  # fmt: skip
    splits, told = [most, split], []
    scored = [predict(trained, each) for each in splits]
    together = examine(trained, splits, scored, progress=lambda done, total: told.append((done, total)))
    assert together == [examine(trained, [each], [found])[0] for each, found in zip(splits, scored, strict=True)], (
        "each has its own seeded choice"
    )
    assert told == [(done, 14) for done in range(14)], "two splits, the model's two maps and five draws"
    pictures = [split.pixels[:9], split.pixels[:0], split.pixels[9:20]]
    first, none, last = check_maps(trained, pictures)
    assert none == [] and [first, last] == [check_maps(trained, [pixels])[0] for pixels in pictures[::2]]


def test_the_mark_on_a_picture_is_one_line() -> None:
    assert marked(()) == ""
    assert marked(["a"]) == "a"
    assert marked(["a", "b", "c"]) == "a (+2 more)"


def test_a_mask_that_is_gone_is_no_mask_and_ends_nothing(trained: FaceCNN, split: Split, tmp_path: Path) -> None:
    gone = dataclasses.replace(split, masks=tuple(mask and tmp_path / "gone.png" for mask in split.masks))
    [found] = examine(trained, [gone], [predict(trained, gone)])
    assert found.right.n == 0 and found.wrong.n == 0
