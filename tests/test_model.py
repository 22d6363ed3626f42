"""The network against a straight transcription of the published one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dftrack.config import ModelConfig
from dftrack.errors import SettingError
from dftrack.learning.model import MEAN, STD, build_model, fold_biases, normalise


class Published(nn.Module):
    """The origin's listing, word for word in behaviour."""

    def __init__(self, side: int, kernel: int = 3) -> None:
        super().__init__()
        pad = kernel // 2
        self.conv1, self.bn1 = nn.Conv2d(3, 32, kernel, padding=pad), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, kernel, padding=pad), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 128, kernel, padding=pad), nn.BatchNorm2d(128)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(128 * side * side, 512), nn.Linear(512, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        x = self.pool(functional.relu(self.bn2(self.conv2(x))))
        x = self.pool(functional.relu(self.bn3(self.conv3(x))))
        x = functional.relu(self.fc1(torch.flatten(x, start_dim=1)))
        return self.fc2(self.dropout(x))


@pytest.mark.parametrize(("kernel", "size"), [(3, 32), (5, 45), (7, 24)])
def test_it_computes_what_the_published_network_computes(kernel: int, size: int) -> None:
    torch.manual_seed(1)
    published = Published(size // 8, kernel)
    for norm in (published.bn1, published.bn2, published.bn3):  # as after some training
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, -1, 2)  # negative scales too: pooling and ReLU must still commute
    ours = build_model(ModelConfig(kernel_size=kernel), size)
    ours.load_state_dict(fold_biases(published.state_dict()))
    images = torch.randn(4, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), published.eval()(images), rtol=1e-4, atol=1e-5)


def test_in_training_the_loss_and_the_gradients_are_those_of_the_published_network() -> None:
    torch.manual_seed(2)
    published = Published(4)
    ours = build_model(ModelConfig(dropout=0.0), 32)
    published.dropout.p = 0.0
    ours.load_state_dict(fold_biases(published.state_dict()))
    images, labels = torch.randn(8, 3, 32, 32), torch.tensor([0, 1] * 4)
    for model in (published, ours):
        functional.cross_entropy(model.train()(images), labels).backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, published.get_parameter(name).grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_gradient_written_over_the_last_one_has_the_bits_of_a_new_one_and_takes_no_memory() -> None:
    torch.manual_seed(3)
    model = build_model(ModelConfig(dropout=0.0), 32).train()
    first, second = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)
    labels = torch.tensor([0, 1] * 4)

    def learn(*parts: Tensor) -> Tensor:
        sum(functional.cross_entropy(model(part), labels) for part in parts).backward()
        return model.fc1.weight.grad

    def gradients() -> list[Tensor]:
        return [parameter.grad.clone() for parameter in model.parameters()]

    learn(first)
    model.zero_grad()
    place = learn(second).data_ptr()
    expected = gradients()

    learn(first)  # something else lies there
    model.zero_grad(set_to_none=False)
    model.reuse_gradient()
    model.reuse_gradient()  # as after a step that was broken off
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    assert learn(second).data_ptr() == place
    assert all(map(torch.equal, gradients(), expected))

    model.zero_grad()
    learn(first, second)
    summed = gradients()
    model.reuse_gradient()
    model.zero_grad(set_to_none=False)
    learn(first, second)  # only one of the two can lie there
    assert all(map(torch.equal, gradients(), summed))


def test_at_224_pixels_it_has_the_size_of_the_published_network() -> None:
    model = build_model(ModelConfig(), 224)
    assert model.fc1.in_features == 128 * 28 * 28
    biases = 32 + 64 + 128  # of the convolutions: BatchNorm makes them idle
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in Published(28).parameters()) - biases


def test_a_picture_too_small_for_three_poolings_is_refused() -> None:
    with pytest.raises(SettingError, match="at least 8 pixels, got 7"):
        build_model(ModelConfig(), 7)


def test_normalising_is_imagenet_standardisation_in_channels_last() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    got = normalise(pixels)
    torch.testing.assert_close(got.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_norm_that_is_set_to_evaluate_keeps_its_statistics_in_a_model_that_trains() -> None:
    model = build_model(ModelConfig(), 16).train()
    model.bn1.eval()
    before = [norm.running_mean.clone() for norm in (model.bn1, model.bn2)]
    model(torch.randn(4, 3, 16, 16))
    assert torch.equal(model.bn1.running_mean, before[0])
    assert not torch.equal(model.bn2.running_mean, before[1])
