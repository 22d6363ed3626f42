"""BatchNorm, 2 x 2 max pooling and ReLU as one operation, for training on a CPU, compiled by Numba.

torch walks over maps of 100 to 200 MB some ten times for these three, to and fro; here it is four times, what
BatchNorm gives is never written down, and the gradient of the maps is written over them: a line of memory that was just
read is written in half the time. What is computed is the same: float32 inside, each result rounded once to the
type of the maps. Only the order in which means are added up differs, and it depends on no number of threads.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dftrack.learning import compiled
from dftrack.learning.compiled import Array, bits, prange, run
from dftrack.learning.lanes import (
    LANES,
    above,
    add,
    as_held,
    at_most,
    choose,
    fill,
    fill_bytes,
    fma,
    multiply,
    put,
    same,
    subtract,
    take,
)

NOWHERE = 4  # instead of the place 0 to 3 of the maximum: ReLU took it, no gradient comes from there


def norm_pool_relu(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """relu(max_pool2d(norm(maps), 2)) of a `norm` that trains; its running statistics move as torch's would.

    maps: (B, C, H, W) float32 or bfloat16, on the CPU; C a multiple of LANES. They are spent: the backward pass, which
    there can be only one of, writes their gradient over them.
    Returns (B, C, H // 2, W // 2), channels last, of the same type.
    """
    assert maps.shape[1] % LANES == 0, f"{maps.shape[1]} channels are no multiple of {LANES}"
    pooled: Tensor = _NormPoolRelu.apply(maps, norm.weight, norm.bias, norm)
    return pooled


def load(dtype: torch.dtype) -> None:
    """Compile what maps of `dtype` need (5 to 10 s), or read it from where it was kept (1 s), once in a process."""
    compiled.load(KERNELS, partial(_works, dtype))


def _works(dtype: torch.dtype) -> bool:
    """Whether a small example comes out as by torch's own, to and fro."""
    some = (torch.arange(-27.0, 45.0).reshape(2, 1, 6, 6).sin() * 2).to(dtype).repeat(1, LANES, 1, 1)
    found = []
    for function in (norm_pool_relu, _by_torch):
        maps, norm = some.clone().requires_grad_(), nn.BatchNorm2d(LANES)
        pooled = function(maps, norm)
        above = torch.arange(1.0, 19.0).reshape(2, 1, 3, 3).to(dtype).repeat(1, LANES, 1, 1)
        torch.autograd.backward(pooled, above)
        found.append([pooled.detach(), maps.grad, norm.weight.grad, norm.bias.grad, norm.running_var])
    return all(
        own is not None and their is not None and torch.allclose(own.float(), their.float(), rtol=0.02, atol=0.02)
        for own, their in zip(*found, strict=True)
    )


def _by_torch(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return functional.relu(functional.max_pool2d(norm(maps), 2))


class _NormPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        maps = maps.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = maps.shape
        shift = _some_mean(maps)
        sums = np.empty((batch, 2, channels))
        run(_sum_up, _sum_up_parts, batch, _rows(maps), shift, sums)
        with np.errstate(invalid="ignore", over="ignore"):  # where a map is not finite all of it becomes NaN
            first, second = sums.sum(axis=0) / (batch * height * width)
            mean, variance = first + shift, np.maximum(second - first**2, 0)  # of equal numbers it may come out below 0
        _move_statistics(norm, mean, variance, batch * height * width)
        inverse = 1 / np.sqrt(variance + norm.eps)
        gain = weight.detach().numpy() * inverse
        offset = bias.detach().numpy() - mean * gain
        sizes, layout = (batch, channels, height // 2, width // 2), torch.channels_last
        pooled = torch.empty(sizes, dtype=maps.dtype, memory_format=layout)
        places = torch.empty(sizes, dtype=torch.uint8, memory_format=layout)
        run(_pool, _pool_parts, batch, _rows(maps), _single(gain), _single(offset), _rows(pooled), _rows(places))
        ctx.save_for_backward(maps, places)
        ctx.mean, ctx.inverse, ctx.gain = mean, inverse, gain
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        maps, places = ctx.saved_tensors
        batch, channels, height, width = maps.shape
        rows, where = _rows(maps), _rows(places)
        above = _rows(grad.contiguous(memory_format=torch.channels_last))
        sums = np.empty((batch, 2, channels))
        run(_sum_gradients, _sum_gradients_parts, batch, rows, where, above, _single(ctx.mean), sums)
        of_bias, of_weight = sums.sum(axis=0)
        of_weight = of_weight * ctx.inverse
        # d/dx = gain * (g - mean(g) - xhat * mean(g * xhat)), written as gain * g + slope * x + offset
        slope = -ctx.gain * ctx.inverse * of_weight / (batch * height * width)
        offset = -ctx.gain * of_bias / (batch * height * width) - slope * ctx.mean
        factors = (_single(ctx.gain), _single(slope), _single(offset))
        run(_spread, _spread_parts, batch, rows, where, above, *factors)
        torch.autograd.graph.increment_version(maps)  # a second backward pass is refused, as it would read gradients
        return maps, torch.from_numpy(_single(of_weight)), torch.from_numpy(_single(of_bias)), None


def _some_mean(maps: Tensor) -> NDArray[np.float32]:
    """A mean of a few pixels of each channel, away from the border: the sums of squares lose few digits around it."""
    height, width = maps.shape[2:]
    few = maps[0, :, height // 8 :: max(1, height // 4), width // 8 :: max(1, width // 4)]
    mean: NDArray[np.float32] = few.float().numpy().mean(axis=(1, 2), dtype=np.float32)
    return mean


def _move_statistics(norm: nn.BatchNorm2d, mean: Array, variance: Array, count: int) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(torch.from_numpy(_single(mean)), norm.momentum)
    norm.running_var.lerp_(torch.from_numpy(_single(variance * (count / (count - 1)))), norm.momentum)
    norm.num_batches_tracked += 1


def _rows(maps: Tensor) -> Array:
    """(B, C, H, W) channels last -> the same memory as (B, H, W, C)."""
    return bits(maps.permute(0, 2, 3, 1))


def _single(vector: Array) -> NDArray[np.float32]:
    return vector.astype(np.float32)


# The kernels. Each does the pictures `first` to `last` and knows nothing of the others. Channels lie side by side and
# are taken `LANES` at a time. A row is added up in float32, rows in float64.


@compiled.compiled
def _sum_up(maps: Array, shift: Array, sums: Array, first: int, last: int) -> None:
    """sums[picture] = (sum of x - shift, sum of its squares) for each channel."""
    _, height, width, channels = maps.shape
    flat, row = maps.reshape(-1), np.empty((2, channels), np.float32)
    total, squares = row[0], row[1]
    for picture in range(first, last):
        sums[picture] = 0
        for y in range(height):
            row[:] = 0
            for x in range(width):
                here = ((picture * height + y) * width + x) * channels
                for c in range(0, channels, LANES):
                    value = subtract(take(flat, here + c), take(shift, c))
                    put(total, c, add(take(total, c), value))
                    put(squares, c, fma(value, value, take(squares, c)))
            for c in range(channels):
                sums[picture, 0, c] += total[c]
                sums[picture, 1, c] += squares[c]


@compiled.compiled
def _pool(maps: Array, gain: Array, offset: Array, pooled: Array, places: Array, first: int, last: int) -> None:
    """pooled = relu(max of 2 x 2 (gain * x + offset)); places = which of the four is the first largest, or NOWHERE."""
    height, width = maps.shape[1:3]
    _, rows, columns, channels = pooled.shape
    flat, flat_pooled, flat_places = maps.reshape(-1), pooled.reshape(-1), places.reshape(-1)
    zero, nowhere = fill(np.float32(0)), fill_bytes(NOWHERE)
    for picture in range(first, last):
        for y in range(rows):
            for x in range(columns):
                there = ((picture * rows + y) * columns + x) * channels
                upper = ((picture * height + 2 * y) * width + 2 * x) * channels
                lower = upper + width * channels
                for c in range(0, channels, LANES):
                    g, o = take(gain, c), take(offset, c)
                    v0 = as_held(fma(take(flat, upper + c), g, o), pooled)
                    v1 = as_held(fma(take(flat, upper + channels + c), g, o), pooled)
                    v2 = as_held(fma(take(flat, lower + c), g, o), pooled)
                    v3 = as_held(fma(take(flat, lower + channels + c), g, o), pooled)
                    more = above(v1, v0)
                    best, place = choose(more, v1, v0), choose(more, fill_bytes(1), fill_bytes(0))
                    more = above(v2, best)
                    best, place = choose(more, v2, best), choose(more, fill_bytes(2), place)
                    more = above(v3, best)
                    best, place = choose(more, v3, best), choose(more, fill_bytes(3), place)
                    none = at_most(best, zero)  # a NaN, then all are, goes on
                    put(flat_pooled, there + c, choose(none, zero, best))
                    put(flat_places, there + c, choose(none, nowhere, place))


@compiled.compiled
def _sum_gradients(maps: Array, places: Array, grad: Array, mean: Array, sums: Array, first: int, last: int) -> None:
    """sums[picture] = (sum of g, sum of g * (x - mean)) for each channel, g the gradient at the place it comes from."""
    height, width = maps.shape[1:3]
    _, rows, columns, channels = places.shape
    flat, flat_places, flat_grad = maps.reshape(-1), places.reshape(-1), grad.reshape(-1)
    row, zero = np.empty((2, channels), np.float32), fill(np.float32(0))
    total, product = row[0], row[1]
    for picture in range(first, last):
        sums[picture] = 0
        for y in range(rows):
            row[:] = 0
            for x in range(columns):
                there = ((picture * rows + y) * columns + x) * channels
                upper = ((picture * height + 2 * y) * width + 2 * x) * channels
                lower = upper + width * channels
                for c in range(0, channels, LANES):
                    place = take(flat_places, there + c)
                    g = choose(same(place, fill_bytes(NOWHERE)), zero, take(flat_grad, there + c))
                    x0, x1 = take(flat, upper + c), take(flat, upper + channels + c)
                    x2, x3 = take(flat, lower + c), take(flat, lower + channels + c)
                    value = choose(same(place, fill_bytes(2)), x2, x3)
                    value = choose(same(place, fill_bytes(1)), x1, value)
                    value = choose(same(place, fill_bytes(0)), x0, value)
                    put(total, c, add(take(total, c), g))
                    put(product, c, fma(g, subtract(value, take(mean, c)), take(product, c)))
            for c in range(channels):
                sums[picture, 0, c] += total[c]
                sums[picture, 1, c] += product[c]


@compiled.compiled
def _spread(
    maps: Array, places: Array, grad: Array, gain: Array, slope: Array, offset: Array, first: int, last: int
) -> None:
    """maps = gain * g + slope * maps + offset, g = 0 where no maximum was, as in a last odd row or column."""
    height, width = maps.shape[1:3]
    _, rows, columns, channels = places.shape
    flat, flat_places, flat_grad = maps.reshape(-1), places.reshape(-1), grad.reshape(-1)
    zero = fill(np.float32(0))
    for picture in range(first, last):
        for y in range(rows):
            for x in range(columns):
                there = ((picture * rows + y) * columns + x) * channels
                upper = ((picture * height + 2 * y) * width + 2 * x) * channels
                lower = upper + width * channels
                for c in range(0, channels, LANES):
                    place, s, o = take(flat_places, there + c), take(slope, c), take(offset, c)
                    g = multiply(take(gain, c), take(flat_grad, there + c))
                    for number, here in enumerate((upper, upper + channels, lower, lower + channels)):
                        rest = fma(take(flat, here + c), s, o)
                        put(flat, here + c, add(choose(same(place, fill_bytes(number)), g, zero), rest))
        for y in range(height):
            for x in range(0 if y >= 2 * rows else 2 * columns, width):
                here = ((picture * height + y) * width + x) * channels
                for c in range(0, channels, LANES):
                    put(flat, here + c, fma(take(flat, here + c), take(slope, c), take(offset, c)))


@compiled.compiled_in_parts
def _sum_up_parts(maps: Array, shift: Array, sums: Array, parts: int) -> None:
    for part in prange(parts):
        _sum_up(maps, shift, sums, part * len(maps) // parts, (part + 1) * len(maps) // parts)


@compiled.compiled_in_parts
def _pool_parts(maps: Array, gain: Array, offset: Array, pooled: Array, places: Array, parts: int) -> None:
    for part in prange(parts):
        _pool(maps, gain, offset, pooled, places, part * len(maps) // parts, (part + 1) * len(maps) // parts)


@compiled.compiled_in_parts
def _sum_gradients_parts(maps: Array, places: Array, grad: Array, mean: Array, sums: Array, parts: int) -> None:
    for part in prange(parts):
        _sum_gradients(maps, places, grad, mean, sums, part * len(maps) // parts, (part + 1) * len(maps) // parts)


@compiled.compiled_in_parts
def _spread_parts(
    maps: Array, places: Array, grad: Array, gain: Array, slope: Array, offset: Array, parts: int
) -> None:
    for part in prange(parts):
        start, end = part * len(maps) // parts, (part + 1) * len(maps) // parts
        _spread(maps, places, grad, gain, slope, offset, start, end)


KERNELS = (_sum_up, _pool, _sum_gradients, _spread, _sum_up_parts, _pool_parts, _sum_gradients_parts, _spread_parts)
