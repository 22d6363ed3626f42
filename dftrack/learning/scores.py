"""Pixels -> P(fake): the one way to score a picture, in validation, in tests and in a saved detector."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dftrack.data.pixel_file import read_rows
from dftrack.learning.model import CHANNELS, CLASSES, FaceCNN, normalise

BATCH_SIZE = 32  # images; enough to keep two cores busy, 0.4 GB of maps at 224 px
ROWS = 4  # a batch is filled up to a multiple: for 1 to 3 rows matrix kernels add up in another order (2e-6 in P(fake))
MAP_BYTES = (
    32 << 20
)  # of the largest map held at once on a CPU: glibc reuses blocks up to this size, and caches love it
NEVER_CERTAIN = 2.0**-53  # scores keep this distance from 0 and 1, so that the log loss of a model is finite


def score_pixels(
    model: FaceCNN,
    pixels: NDArray[np.uint8],
    *,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    amp: torch.dtype | None = None,
) -> NDArray[np.float64]:
    """P(fake) of each picture, (n,) float64 in (0, 1).

    pixels: (n, S, S, 3) uint8 RGB, those of a file are read batch by batch. `model` lies on `device`; it is put into
    evaluation for the call and left as it was. `amp`: the type to multiply in (bfloat16, float16); None is float32,
    in full (no TF32), and then a picture's score does not depend on its company beyond 1e-6.
    A model that overflows gives NaN: the caller decides what that means.
    In float32 the network is computed as `_logits` does, the same function in half the time.
    """
    logits = [torch.empty((0, CLASSES), device=device)]
    autocast = torch.autocast(torch.device(device).type, amp) if amp else nullcontext()
    with evaluating(model), torch.inference_mode(), full_float32(), autocast:
        blocks = None if amp else fold_norms(model)
        for start in range(0, len(pixels), batch_size):
            count = min(batch_size, len(pixels) - start)
            filling = [start + count - 1] * (-count % ROWS)
            images = torch.from_numpy(read_rows(pixels, [*range(start, start + count), *filling])).to(device)
            found = model(normalise(images)) if blocks is None else _logits(model, blocks, images)
            logits.append(found[:count].float())
        return fake_probability(torch.cat(logits))  # once: to fetch a number from a card is to wait for it


Block = tuple[Tensor, Tensor]  # weights (out, in, k, k) and biases (out,) of a convolution


def fold_norms(model: FaceCNN) -> list[Block]:
    """The three convolutions with their BatchNorm in evaluation folded in: one pass over the maps less for each.

    Worked out in float64: P(fake) differs by about 1e-7 from that of the two steps.
    """
    blocks = []
    for conv, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2), (model.conv3, model.bn3)):
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = (conv.weight.double() * gain[:, None, None, None]).float()
        bias = (norm.bias.double() - norm.running_mean.double() * gain).float()
        blocks.append((weight.detach().contiguous(memory_format=torch.channels_last), bias.detach()))
    return blocks


def _logits(model: FaceCNN, blocks: Sequence[Block], images: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 2) logits, as the model in evaluation gives them.

    On a CPU the maps are made for a few pictures at a time; the matrix of `fc1` (206 MB at 224 px) is read once.
    """
    map_bytes = 4 * CHANNELS[1] * model.image_size**2  # of one picture behind the first convolution
    at_once = max(1, MAP_BYTES // map_bytes) if images.device.type == "cpu" else len(images)
    parts = []
    for part in torch.split(images, at_once):
        maps = normalise(part)  # (b, 3, S, S)
        for weight, bias in blocks:
            maps = functional.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2)
            maps = functional.relu(functional.max_pool2d(maps, 2, stride=2), inplace=True)
        parts.append(torch.flatten(maps, start_dim=1))
    hidden = functional.relu(model.fc1(torch.cat(parts)))  # (B, 512)
    logits: Tensor = model.fc2(hidden)
    return logits


def fake_probability(logits: Tensor) -> NDArray[np.float64]:
    """(B, 2) logits -> (B,) P(fake), the softmax in float64: float32 would tie all surer than 1 - 6e-8 with 1."""
    margins = (logits[:, 1].double() - logits[:, 0].double()).cpu()
    scores: NDArray[np.float64] = torch.sigmoid(margins).numpy()
    return np.clip(scores, NEVER_CERTAIN, 1 - NEVER_CERTAIN)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off and BatchNorm on its running statistics while the block runs; then every part as it was."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def full_float32() -> Iterator[None]:
    """CUDA multiplies float32 as float32 while the block runs, not as TF32 (10 bits), its default for convolutions."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    precision = torch.backends.cuda.matmul.fp32_precision  # "none" until set; a compiled program is bound to it
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
        torch.backends.cuda.matmul.fp32_precision = precision
