"""Grad-CAM against a derivation by hand; wrong layers and flat maps are said, not drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from dftrack.config import ModelConfig
from dftrack.data.cache import Split
from dftrack.data.pictures import encode_png
from dftrack.learning.evaluation import Predictions, predict
from dftrack.learning.explain import (
    ExplanationError,
    check_last_convolution,
    choose_examples,
    grad_cam,
    gradcam_row,
    gradcam_rows,
    heat_maps,
    read_mask,
)
from dftrack.learning.model import FaceCNN, build_model, normalise

SIZE = 32


@pytest.fixture
def model() -> FaceCNN:
    torch.manual_seed(11)
    return build_model(ModelConfig(), SIZE)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def by_hand(model: FaceCNN, images: torch.Tensor, target: int) -> torch.Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, with hooks and autograd only."""
    kept: list[torch.Tensor] = []
    hook = model.conv3.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = model.eval()(images)
    hook.remove()
    gradient = torch.autograd.grad(logits[:, target].sum(), kept[0])[0]
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = functional.relu((weights * kept[0]).sum(dim=1, keepdim=True))
    cam = functional.interpolate(cam, (SIZE, SIZE), mode="bilinear")[:, 0].detach()
    return cam / cam.amax(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("target", [0, 1])
def test_the_map_is_grad_cam_as_published_divided_by_its_peak(
    model: FaceCNN, images: torch.Tensor, target: int
) -> None:
    heat = grad_cam(model, images, target)
    assert heat.shape == (4, SIZE, SIZE) and heat.dtype == np.float32
    assert heat == pytest.approx(by_hand(model, images, target).numpy(), abs=1e-5)
    assert heat.min() >= 0 and heat.max(axis=(1, 2)).tolist() == [1.0] * 4


def test_without_a_target_each_picture_is_explained_for_the_class_it_is_given(
    model: FaceCNN, images: torch.Tensor
) -> None:
    with torch.no_grad():
        called = model.eval()(images).argmax(dim=1)
    maps = heat_maps(model, images)
    assert maps.targets.tolist() == called.tolist()
    for i, target in enumerate(called.tolist()):
        assert maps.heat[i] == pytest.approx(grad_cam(model, images[i : i + 1], target)[0], abs=1e-5)


def test_a_map_does_not_depend_on_the_other_pictures_of_the_batch(model: FaceCNN, images: torch.Tensor) -> None:
    together = heat_maps(model, images, 1)
    apart = [heat_maps(model, images[i : i + 1], 1) for i in range(4)]
    assert together.heat == pytest.approx(np.concatenate([maps.heat for maps in apart]), abs=1e-5)
    assert together.peak == pytest.approx(np.concatenate([maps.peak for maps in apart]), rel=1e-4)


def test_explaining_leaves_the_model_untouched_and_works_where_gradients_are_off(
    model: FaceCNN, images: torch.Tensor
) -> None:
    model.train().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        heat = grad_cam(model, images * 1, 1)
    assert heat.max() == 1.0
    assert model.training and model.dropout.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv3._forward_hooks, "hooks were left behind"


def test_a_map_that_points_nowhere_is_flagged_and_zero(model: FaceCNN, images: torch.Tensor) -> None:
    with torch.no_grad():
        model.fc2.weight.zero_()  # the logits are constants: no place matters
    maps = heat_maps(model, images, 1)
    assert maps.flat.all() and not maps.heat.any() and not maps.peak.any()


def test_a_constant_map_is_flat_and_not_everywhere_hot() -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv3 = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv3(x).mean(dim=(2, 3))[:, :2]

    even = Even()
    with torch.no_grad():
        even.conv3.bias.fill_(5.0)
    maps = heat_maps(even, torch.ones(2, 3, 8, 8), 1)
    assert maps.flat.all() and not maps.heat.any()
    assert (maps.peak > 0).all(), "there was evidence, but at no place in particular"


def test_only_the_last_convolution_is_accepted(model: FaceCNN, images: torch.Tensor) -> None:
    assert check_last_convolution(model) is model.conv3
    with pytest.raises(ExplanationError, match="needs the last convolution, conv3; got conv2"):
        heat_maps(model, images, 1, layer=model.conv2)
    with pytest.raises(ExplanationError, match="got a layer outside the model"):
        heat_maps(model, images, 1, layer=nn.Conv2d(3, 3, 1))
    model.conv4 = nn.Conv2d(1, 1, 1)
    with pytest.raises(ExplanationError, match="needs the last convolution, conv4; got conv3"):
        heat_maps(model, images, 1)
    with pytest.raises(ExplanationError, match="no convolution"):
        heat_maps(nn.Linear(2, 2), images, 1)


def test_a_class_that_is_none_and_gradients_that_are_not_finite_are_refused(
    model: FaceCNN, images: torch.Tensor
) -> None:
    with pytest.raises(ExplanationError, match="no class 2"):
        grad_cam(model, images, 2)
    with torch.no_grad():
        model.fc1.weight.fill_(float("nan"))
    with pytest.raises(ExplanationError, match="not finite"):
        grad_cam(model, images, 1)


def test_no_pictures_give_no_maps(model: FaceCNN) -> None:
    assert heat_maps(model, torch.empty(0, 3, SIZE, SIZE), 1).heat.shape == (0, SIZE, SIZE)


def make_predictions(labels: list[int], scores: list[float]) -> Predictions:
    names = tuple("abcdefghij"[: len(labels)])
    return Predictions("test", names, names, np.array(labels, np.int64), np.array(scores, float))


def test_examples_are_the_surest_hits_and_the_worst_misses_of_both_classes() -> None:
    found = choose_examples(make_predictions([1, 1, 1, 1, 0, 0, 0, 0], [0.9, 0.7, 0.6, 0.1, 0.2, 0.3, 0.55, 0.99]), 2)
    assert [(e.kind, e.name, e.label, e.score) for e in found] == [
        ("caught fake", "a", 1, 0.9),
        ("caught fake", "b", 1, 0.7),
        ("passed real", "e", 0, 0.2),
        ("passed real", "f", 0, 0.3),
        ("missed fake", "d", 1, 0.1),
        ("false alarm", "h", 0, 0.99),
        ("false alarm", "g", 0, 0.55),
    ]
    assert found[0].index == 0


def test_examples_with_equal_scores_go_by_name_and_unfit_scores_are_never_shown() -> None:
    found = choose_examples(make_predictions([0, 0, 0, 0], [0.2, 0.2, float("nan"), 0.2]), 2)
    assert [e.name for e in found] == ["a", "b"]
    assert choose_examples(make_predictions([], [])) == []


def make_split(folder: Path) -> Split:
    mask = np.zeros((SIZE * 2, SIZE * 2), np.uint8)
    mask[: SIZE // 2] = 255
    (folder / "mask.png").write_bytes(encode_png(mask))
    pixels = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    names = tuple("abcdef")
    masks = (None, folder / "mask.png") * 3
    return Split("val", pixels, np.array([0, 1] * 3), names, names, tuple(map(Path, names)), masks)


def test_the_rows_of_a_panel_carry_photo_heat_and_mask_of_the_same_picture(model: FaceCNN, tmp_path: Path) -> None:
    split = make_split(tmp_path)
    predictions = predict(model, split)
    rows = gradcam_rows(model, split, predictions)
    assert rows
    for row in rows:
        index = split.names.index(row.name)
        assert np.array_equal(row.photo, split.pixels[index]), row.name
        assert row.score == predictions.scores[index] and row.label == split.labels[index]
        assert row.target == 1 and row.heat == pytest.approx(
            grad_cam(model, normalise(torch.from_numpy(split.pixels[[index]])), 1)[0], abs=1e-5
        ), "the heat is not of this picture"
        assert (row.mask is not None) == (row.label == 1)
        if row.mask is not None:
            assert row.mask[: SIZE // 4].all() and not row.mask[SIZE // 4 :].any(), (
                "the mask is not scaled to the photo"
            )


def test_rows_need_the_predictions_of_that_split_and_a_score(model: FaceCNN, tmp_path: Path) -> None:
    split = make_split(tmp_path)
    with pytest.raises(ExplanationError, match="not those of the pictures of val"):
        gradcam_rows(model, split, make_predictions([0, 1], [0.1, 0.9]))
    with pytest.raises(ExplanationError, match=r"a\.jpg has no score"):
        gradcam_row(model, split.pixels[0], name="a.jpg", score=None)
    assert gradcam_row(model, split.pixels[0], name="a.jpg", score=0.3).label is None


def test_a_mask_is_read_at_the_size_the_network_sees(tmp_path: Path) -> None:
    make_split(tmp_path)
    mask = read_mask(tmp_path / "mask.png", 16)
    assert mask.shape == (16, 16) and mask.dtype == bool and mask.mean() == 0.25
    clear = Image.new("RGBA", (16, 16), (255, 255, 255, 0))  # as an editor of pictures saves it
    clear.paste((255, 255, 255, 255), (4, 4, 8, 8))
    clear.save(tmp_path / "clear.png")
    mask = read_mask(tmp_path / "clear.png", 16)
    assert mask[4:8, 4:8].all() and mask.sum() == 16, "what is transparent is not forged"
