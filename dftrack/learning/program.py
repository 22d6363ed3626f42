"""The pass forward and its loss, as it is written or as one program that torch.compile makes of it.

One program serves every model of a shape: weights and dropout are what it is given, so the second trial of a study
compiles nothing. Making one takes from seconds to a minute, and imports torch's compiler, which takes six more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from dftrack.errors import DeviceError
from dftrack.learning.model import FaceCNN, normalise, normalising

SHAPES = 64  # programs that a process may hold; torch's own limit of 8 is met by a study over kernel and batch size


def loss_and_logits(model: FaceCNN, pixels: Tensor, labels: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """() cross-entropy in nats, the mean over the batch, and (B, 2) float32 logits.

    pixels: (B, S, S, 3) as a Batch has them. dtype: of autocast, None: float32.
    """
    return _pass(model, pixels, labels, dtype, normalising(pixels.device), None)


def compiled_loss_and_logits(
    model: FaceCNN, pixels: Tensor, labels: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """`loss_and_logits`, compiled at the first batch of a shape. Draws another dropout, from the same generator.

    The backward pass is compiled by the first call of `backward`. Neither `spare` nor `narrow` may be set in `model`:
    the program makes gradients as torch does.
    """
    keep = torch.full((), 1 - model.dropout.p, device=pixels.device)  # filled there: sending it would be waiting
    return _program()(model, pixels, labels, dtype, normalising(pixels.device), keep)


def _pass(
    model: FaceCNN,
    pixels: Tensor,
    labels: Tensor,
    dtype: torch.dtype | None,
    constants: tuple[Tensor, Tensor],
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """constants, keep: see `normalise` and `FaceCNN.forward`."""
    with torch.autocast(pixels.device.type, dtype) if dtype else nullcontext():
        logits = model(normalise(pixels, constants), keep)
    logits = logits.float()
    return functional.cross_entropy(logits, labels), logits


@cache
def _program() -> Callable[..., tuple[Tensor, Tensor]]:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = SHAPES
    return torch.compile(_pass, fullgraph=True, dynamic=False)


@contextmanager
def compiling() -> Iterator[None]:
    """Around a compiled pass there and back. Raises DeviceError where torch cannot compile it."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())  # pages of traces and advice follow
        raise DeviceError(
            f"train.compile: torch.compile fails on this machine: {reason}",
            "it needs a C++ compiler for a CPU, Triton and a C compiler for a card; train.compile=false trains without",
        ) from error
