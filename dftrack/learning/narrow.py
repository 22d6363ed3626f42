"""A large weight in bfloat16 on a CPU: the copy that is multiplied with, its gradient, and the optimizer's step.

Under autocast torch casts the weight in every step and the gradient back, 0.6 GB to and fro for the first linear layer
at 224 px, and holds a float32 gradient, 0.2 GB. Here the optimizer reads the gradient as it comes, in bfloat16, and
writes the new weight over it in that type, ready for the next step. Every bit is that of torch's autocast and of its
fused optimizers on processors with AVX2 or AVX-512 (except in the last few numbers where no vector is filled).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from dftrack.config import Optimizer, TrainConfig
from dftrack.learning import compiled
from dftrack.learning.compiled import Array, Kernel, bits, fma, narrow, prange, run, wide
from dftrack.learning.optimizers import new_optimizer


class NarrowWeight:
    """The weight (N, M) of a linear layer that trains in bfloat16. Its gradient is bfloat16 until `let_go`."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._memory: Tensor | None = None  # (N, M) bfloat16, spent on the weight and on its gradient in turn
        self._version = -1  # of the weight that lies there; -1: none does
        weight.grad = None
        weight.grad_dtype = torch.bfloat16

    def linear(self, inputs: Tensor, bias: Tensor) -> Tensor:
        """(B, M) bfloat16 and the bias (N,) -> (B, N) bfloat16."""
        memory, self._memory = self._memory, None  # a second forward before the backward gets new memory
        if memory is None:
            memory, self._version = torch.empty_like(self.weight, dtype=torch.bfloat16), -1
        if self._version != self.weight._version:
            memory.copy_(self.weight.detach())
        hidden: Tensor = _Linear.apply(inputs, self.weight, bias.to(torch.bfloat16), _Lent(memory))
        return hidden

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what `optimizer` would do to this weight in its next step; that one will pass over it."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is None:
            return
        self._memory, self._version = gradient, -1
        if bool(getattr(optimizer, "found_inf", False)):  # as the fused optimizers do
            return
        group = next(group for group in optimizer.param_groups if any(one is self.weight for one in group["params"]))
        update = _step_sgd if isinstance(optimizer, torch.optim.SGD) else _step_adam
        update(self.weight, gradient, optimizer.state[self.weight], group)
        torch.autograd.graph.increment_version(self.weight)
        self._version = self.weight._version

    def let_go(self) -> None:
        """Give the memory back; the weight is as any other again."""
        self._memory = self.weight.grad = None
        self.weight.grad_dtype = self.weight.dtype


class _Lent:
    """Memory that one pass holds, and gives away: autograd takes a gradient as it is only if nobody else has it."""

    def __init__(self, memory: Tensor) -> None:
        self.memory: Tensor | None = memory


class _Linear(torch.autograd.Function):
    """A linear layer whose weight's gradient is written over the narrow weight, which nobody needs any more then."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, lent: _Lent) -> Tensor:
        assert lent.memory is not None
        ctx.save_for_backward(inputs)
        ctx.lent = lent
        return torch.addmm(bias, inputs, lent.memory.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (inputs,) = ctx.saved_tensors
        memory, ctx.lent.memory = ctx.lent.memory, None
        below = grad.mm(memory)
        return below, torch.mm(grad.t(), inputs, out=memory), grad.sum(0), None


def _step_adam(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Adam, or AdamW where the group says so, and the weight over the gradient."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    state["step"] += 1
    steps, rate, decay, (beta1, beta2) = int(state["step"]), group["lr"], group["weight_decay"], group["betas"]
    decoupled = group["decoupled_weight_decay"]
    factors = (
        0 if decoupled else decay,
        1 - rate * decay if decoupled else 1,
        1 - beta1,
        beta2,
        1 - beta2,
        -rate / (1 - beta1**steps),
        math.sqrt(1 - beta2**steps),
        group["eps"],
    )
    _run(_adam, _adam_in_parts, (weight, state["exp_avg"], state["exp_avg_sq"], gradient), factors)


def _step_sgd(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """SGD with momentum, and the weight over the gradient."""
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(weight)
    factors = (group["weight_decay"], group["momentum"], -group["lr"])
    _run(_sgd, _sgd_in_parts, (weight, state["momentum_buffer"], gradient), factors)


def _run(alone: Kernel, in_parts: Kernel, tensors: Sequence[Tensor], factors: Sequence[float]) -> None:
    run(alone, in_parts, tensors[0].numel(), *(bits(one.view(-1)) for one in tensors), np.array(factors, np.float32))


def load(optimizer: torch.optim.Optimizer) -> None:
    """Compile what the step of `optimizer` needs (Adam, AdamW, SGD), or read it from where it was kept."""
    if isinstance(optimizer, torch.optim.SGD):
        compiled.load((_sgd, _sgd_in_parts), partial(_works, "sgd"))
    else:
        compiled.load((_adam, _adam_in_parts), partial(_works, "adam"))


def _works(kind: Optimizer) -> bool:
    """Whether two small steps come out as by torch's own."""
    own, their = (Parameter(torch.linspace(-1, 1, 40).reshape(5, 8)) for _ in range(2))
    config = TrainConfig(optimizer=kind, learning_rate=0.1)
    ours, theirs = (new_optimizer([one], config) for one in (own, their))
    narrow_weight = NarrowWeight(own)
    for scale in (3.0, -1.0):
        gradient = (torch.arange(40.0).sin() * scale).reshape(5, 8).bfloat16()
        own.grad, their.grad = gradient.clone(), gradient.float()
        narrow_weight.step(ours)
        theirs.step()
    kept = narrow_weight._memory
    return torch.allclose(own, their) and kept is not None and torch.allclose(kept.float(), their, rtol=0.01)


# The kernels. Each does the numbers `first` to `last`. Every rounding is that of torch's fused optimizers: `fma` where
# they multiply and add at once, nothing else is to be joined.


@compiled.compiled_exactly
def _adam(
    weights: Array, means: Array, squares: Array, gradients: Array, factors: Array, first: int, last: int
) -> None:
    decay, shrink, mean_rate, beta2, square_rate, step, root, eps = factors
    w, m, v, g = weights[first:last], means[first:last], squares[first:last], gradients[first:last]
    for i in range(len(w)):
        gradient = fma(w[i], decay, wide(g[i]))
        mean = fma(gradient - m[i], mean_rate, m[i])
        square = fma(square_rate * gradient, gradient, v[i] * beta2)
        weight = w[i] * shrink + step * mean / (np.sqrt(square) / root + eps)
        m[i], v[i], w[i], g[i] = mean, square, weight, narrow(weight, gradients)


@compiled.compiled_exactly
def _sgd(weights: Array, moments: Array, gradients: Array, factors: Array, first: int, last: int) -> None:
    decay, momentum, step = factors
    w, m, g = weights[first:last], moments[first:last], gradients[first:last]
    for i in range(len(w)):
        moment = m[i] * momentum + fma(w[i], decay, wide(g[i]))
        weight = fma(step, moment, w[i])
        m[i], w[i], g[i] = moment, weight, narrow(weight, gradients)


@compiled.compiled_exactly_in_parts
def _adam_in_parts(weights: Array, means: Array, squares: Array, gradients: Array, factors: Array, parts: int) -> None:
    for part in prange(parts):
        start, end = part * len(weights) // parts, (part + 1) * len(weights) // parts
        _adam(weights, means, squares, gradients, factors, start, end)


@compiled.compiled_exactly_in_parts
def _sgd_in_parts(weights: Array, moments: Array, gradients: Array, factors: Array, parts: int) -> None:
    for part in prange(parts):
        start, end = part * len(weights) // parts, (part + 1) * len(weights) // parts
        _sgd(weights, moments, gradients, factors, start, end)
