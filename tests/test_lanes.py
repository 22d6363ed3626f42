"""Sixteen numbers at once, against torch and NumPy one by one."""

import numba
import numpy as np
import torch

from dftrack.learning.compiled import bits
from dftrack.learning.lanes import LANES, above, as_held, at_most, choose, fill, fill_bytes, fma, put, same, take


def numbers(seed: int) -> np.ndarray:
    """float32 of every size, among them those between two bfloat16, zeros, infinities; no NaN."""
    some = np.random.default_rng(seed).integers(0, 2**32, LANES * 64, dtype=np.uint32)
    some[::3] = some[::3] & np.uint32(0xFFFF0000) | np.uint32(0x8000)  # exactly in the middle
    found = some.view(np.float32)
    found[np.isnan(found)] = np.inf
    found[:4] = [0.0, -0.0, np.inf, -np.inf]
    return found


def test_bfloat16_is_read_and_rounded_as_torch_does_it() -> None:
    @numba.njit
    def through(source: np.ndarray, target: np.ndarray) -> None:
        for place in range(0, len(source), LANES):
            put(target, place, take(source, place))

    @numba.njit
    def rounded(source: np.ndarray, like: np.ndarray, target: np.ndarray) -> None:
        for place in range(0, len(source), LANES):
            put(target, place, as_held(take(source, place), like))

    wide = torch.from_numpy(numbers(0))
    narrow, back, held = torch.zeros(wide.shape, dtype=torch.bfloat16), torch.zeros_like(wide), torch.zeros_like(wide)
    through(bits(wide), bits(narrow))
    through(bits(narrow), bits(back))
    rounded(bits(wide), bits(narrow), bits(held))
    assert torch.equal(narrow, wide.bfloat16()), "rounded otherwise than by torch"
    assert torch.equal(back, narrow.float()) and torch.equal(held, narrow.float())


def test_a_product_and_a_sum_are_rounded_once() -> None:
    @numba.njit
    def joined(a: np.ndarray, b: np.ndarray, c: np.ndarray, result: np.ndarray) -> None:
        for place in range(0, len(a), LANES):
            put(result, place, fma(take(a, place), take(b, place), take(c, place)))

    a, b, c = np.random.default_rng(1).normal(size=(3, LANES * 8)).astype(np.float32)
    found = np.zeros_like(a)
    joined(a, b, c, found)
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)  # a product of two float32 is exact
    np.testing.assert_array_equal(found, exact.astype(np.float32))
    assert (found != a * b + c).any(), "numbers on which it makes no difference show nothing"


def test_comparisons_are_false_of_nan_and_choose_lane_by_lane() -> None:
    @numba.njit
    def compared(a: np.ndarray, b: np.ndarray, marks: np.ndarray, results: np.ndarray) -> None:
        yes, no = fill(np.float32(1)), fill(np.float32(0))
        put(results[0], 0, choose(above(take(a, 0), take(b, 0)), yes, no))
        put(results[1], 0, choose(at_most(take(a, 0), take(b, 0)), yes, no))
        put(results[2], 0, choose(same(take(marks, 0), fill_bytes(200)), yes, no))

    a, b = numbers(2)[:LANES], numbers(3)[:LANES]
    a[4], b[5], a[6], b[6], a[7] = np.nan, np.nan, np.nan, np.nan, b[7]
    marks = np.arange(193, 193 + LANES, dtype=np.uint8)
    results = np.full((3, LANES), 7, np.float32)
    compared(a, b, marks, results)
    np.testing.assert_array_equal(results, np.stack([a > b, a <= b, marks == 200]))
