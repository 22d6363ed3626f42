"""The network: three convolution blocks and two linear layers, after the origin's CNN for OpenForensics faces.

It computes what the published network computes, arranged so that it costs less:
ReLU comes after the pooling (max and ReLU commute, so the numbers are the same on a quarter of the values), and the
convolutions have no bias (BatchNorm takes the mean away again; see `fold_biases` for weights that have one).
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dftrack.config import POOLINGS, ModelConfig
from dftrack.errors import SettingError

if TYPE_CHECKING:
    from dftrack.learning.narrow import NarrowWeight

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
CHANNELS = (3, 32, 64, 128)
HIDDEN = 512
CLASSES = 2  # real 0, fake 1


class FaceCNN(nn.Module):
    """(B, 3, S, S) normalised pictures -> (B, 2) logits for real and fake."""

    def __init__(self, *, kernel_size: int, dropout: float, image_size: int) -> None:
        super().__init__()
        if image_size < 2**POOLINGS:
            raise SettingError(
                f"data.image_size must be at least {2**POOLINGS} pixels, got {image_size}",
                f"the network halves the picture {POOLINGS} times",
            )
        self.image_size = image_size
        self.spare: Tensor | None = None  # memory for the next gradient of `fc1.weight`, see `reuse_gradient`
        self.narrow: NarrowWeight | None = None  # of `fc1.weight`, while it trains in bfloat16 on a CPU

        def convolution(block: int) -> nn.Conv2d:
            ins, outs = CHANNELS[block - 1 : block + 1]
            return nn.Conv2d(ins, outs, kernel_size, padding=kernel_size // 2, bias=False)

        self.conv1, self.bn1 = convolution(1), nn.BatchNorm2d(CHANNELS[1])
        self.conv2, self.bn2 = convolution(2), nn.BatchNorm2d(CHANNELS[2])
        self.conv3, self.bn3 = convolution(3), nn.BatchNorm2d(CHANNELS[3])
        self.fc1 = nn.Linear(CHANNELS[3] * (image_size // 2**POOLINGS) ** 2, HIDDEN)  # 128 x 28 x 28 at 224 px
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: () the share of hidden units that dropout is to leave, in place of `dropout`, for a compiled program:
        a number it would be compiled for again.
        """
        maps = images  # (B, 3, S, S)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            maps = self._reduce(conv(maps), norm)
        hidden = functional.relu(self._linear(torch.flatten(maps, start_dim=1)))  # (B, 512)
        dropped = self.dropout(hidden) if keep is None else dropped_by(hidden, keep)
        logits: Tensor = self.fc2(dropped)  # (B, 2)
        return logits

    def reuse_gradient(self) -> None:
        """Forget the gradient of `fc1.weight`; the next one is written where it was (CPU).

        Adding a new one to a zeroed one takes its memory twice, 206 MB at 224 px, and goes over it four times.
        """
        if self.fc1.weight.grad is not None:
            self.spare, self.fc1.weight.grad = self.fc1.weight.grad, None

    def _linear(self, maps: Tensor) -> Tensor:
        """(B, M) -> (B, 512), before ReLU; the bits and the type of `fc1` whichever way it goes."""
        hidden: Tensor
        if self.narrow is not None and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            hidden = self.narrow.linear(maps, self.fc1.bias)
        elif self.spare is None or torch.is_autocast_enabled("cpu"):
            hidden = self.fc1(maps)
        else:
            hidden = _SparingLinear.apply(maps, self.fc1.weight, self.fc1.bias, self)
        return hidden

    def _reduce(self, maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2): BatchNorm, pooling, ReLU."""
        ours = maps.device.type == "cpu" and maps.dtype in (torch.float32, torch.bfloat16)
        if norm.training and ours and not torch.compiler.is_compiling():
            from dftrack.learning.fused import norm_pool_relu  # here: what only scores needs no compiler

            return norm_pool_relu(maps, norm)
        return functional.relu(functional.max_pool2d(norm(maps), 2, stride=2), inplace=True)


class _SparingLinear(torch.autograd.Function):
    """A linear layer, bit for bit, whose weight's gradient is written into the `spare` memory of its model."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, model: FaceCNN) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.model = model
        return torch.addmm(bias, inputs, weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        spare, ctx.model.spare = ctx.model.spare, None  # the second, as in a sum over two losses, gets new memory
        return grad.mm(weight), torch.mm(grad.t(), inputs, out=spare), grad.sum(0), None


def dropped_by(hidden: Tensor, keep: Tensor) -> Tensor:
    """Dropout that leaves the share `keep` of `hidden`, scaled up for what is missing."""
    drawn = torch.rand(hidden.shape, device=hidden.device)  # [0, 1), in float32 whatever `hidden` is in
    return torch.where(drawn < keep, hidden / keep.to(hidden.dtype), 0.0)


def build_model(config: ModelConfig, image_size: int) -> FaceCNN:
    """A new network on the CPU, its weights drawn from torch's global generator (seed it first)."""
    model = FaceCNN(kernel_size=config.kernel_size, dropout=config.dropout, image_size=image_size)
    return model.to(memory_format=torch.channels_last)


def normalise(pixels: Tensor, constants: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32, scaled to [0, 1], ImageNet mean taken off, channels last.

    constants: of `normalising`, for a compiled program: it would make, and send, them in each step.
    """
    scale, shift = constants or normalising(pixels.device)
    return torch.addcmul(shift, pixels.to(torch.float32), scale).permute(0, 3, 1, 2)


def normalising(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3,) factors and (3,) summands that `normalise` takes. A card is sent them once: to send is to wait for it."""
    return _sent_once(device) if device.type == "cuda" else _scale_and_shift(device)


def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * std) for std in STD], device=device)
    return scale, torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)], device=device)


@cache
def _sent_once(device: torch.device) -> tuple[Tensor, Tensor]:
    """Not for the CPU: a tracer's stand-ins would be kept."""
    with torch.inference_mode(False):
        return _scale_and_shift(device)


def fold_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the published network (convolutions with bias) -> the same function without those biases.

    BatchNorm in evaluation computes (x + b - running_mean) / deviation, so b moves into the running mean.
    """
    folded = dict(state)
    for block in range(1, len(CHANNELS)):
        bias = folded.pop(f"conv{block}.bias", None)
        if bias is not None:
            folded[f"bn{block}.running_mean"] = folded[f"bn{block}.running_mean"] - bias
    return folded
