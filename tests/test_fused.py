"""BatchNorm, pooling and ReLU in one walk, against torch's own three in float64."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numba.core import caching
from torch import Tensor, nn
from torch.nn import functional

from dftrack.learning import compiled, fused
from dftrack.learning.fused import norm_pool_relu

SHAPES = [(4, 32, 16, 16), (3, 48, 9, 7), (1, 16, 2, 3)]  # even; odd sides; hardly anything


def some_norm(channels: int, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    """Its numbers are those that float32 can hold, whatever `dtype`."""
    norm, generator = nn.BatchNorm2d(channels), torch.Generator().manual_seed(channels)
    nn.init.uniform_(norm.weight, -1, 2, generator)  # negative ones turn the order round
    nn.init.uniform_(norm.bias, -1, 1, generator)
    return norm.to(dtype)


def torchs(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return functional.relu(functional.max_pool2d(norm(maps), 2))


def there_and_back(function: object, maps: Tensor, norm: nn.BatchNorm2d) -> list[Tensor]:
    """Results, the gradients below and of weight and bias, and the running statistics, all in float64."""
    maps = maps.clone().requires_grad_()
    pooled = function(maps, norm)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    pooled.backward(grad.to(pooled.dtype))
    moved = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [t.detach().double() for t in (pooled, maps.grad, norm.weight.grad, norm.bias.grad, *moved)]


def some_maps(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 5


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_as_exact_as_float32_can_be(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    maps = some_maps(shape).contiguous(memory_format=layout)
    found = there_and_back(norm_pool_relu, maps, some_norm(shape[1]))
    expected = there_and_back(torchs, maps.double(), some_norm(shape[1], torch.float64))
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("outlier", [0.0, 1e4])
def test_a_mean_far_from_zero_and_one_odd_pixel_cost_no_digits_that_torch_keeps(outlier: float) -> None:
    maps = torch.randn((4, 16, 32, 32), generator=torch.Generator().manual_seed(2)) + 1000
    maps[0, :, 0, 0] += outlier
    ours = there_and_back(norm_pool_relu, maps, some_norm(16))
    theirs = there_and_back(torchs, maps, some_norm(16))
    exact = there_and_back(torchs, maps.double(), some_norm(16, torch.float64))
    for own, their, best in zip(ours, theirs, exact, strict=True):
        rounding = 4e-5  # of a mean of 1,000 in float32, which either may have the better of
        assert (own - best).abs().mean() <= 1.01 * (their - best).abs().mean() + rounding * best.abs().mean()


def test_a_channel_of_equal_numbers_has_no_variance_below_zero() -> None:
    maps = torch.full((16, 16, 64, 64), 7.34)
    maps[0, :, 0, 0] = 0
    assert all(found.isfinite().all() for found in there_and_back(norm_pool_relu, maps, some_norm(16)))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_is_not_less_exact_than_torch(shape: tuple[int, ...]) -> None:
    maps = some_maps(shape).bfloat16()
    ours = there_and_back(norm_pool_relu, maps, some_norm(shape[1]))
    theirs = there_and_back(torchs, maps, some_norm(shape[1]))
    exact = there_and_back(torchs, maps.double(), some_norm(shape[1], torch.float64))
    for own, their, best in zip(ours, theirs, exact, strict=True):
        assert (own - best).abs().mean() <= 1.01 * (their - best).abs().mean() + 1e-4 * best.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_maxima_the_first_gets_the_gradient_as_in_torch(dtype: torch.dtype) -> None:
    maps = (some_maps((2, 16, 8, 8)) / 4).round().to(dtype)  # 0 to 3: every other window has a tie
    norm, again = some_norm(16), some_norm(16)
    own, their = there_and_back(norm_pool_relu, maps, norm), there_and_back(torchs, maps, again)
    torch.testing.assert_close(own[1], their[1], rtol=1e-2, atol=1e-3)
    assert (own[1] - their[1]).abs().mean() < 1e-3 * their[1].abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_bits_do_not_depend_on_the_number_of_threads_nor_on_another_thread_of_python(dtype: torch.dtype) -> None:
    maps = some_maps((5, 32, 12, 12)).to(dtype)

    def with_threads(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return there_and_back(norm_pool_relu, maps, some_norm(32))
        finally:
            torch.set_num_threads(before)

    alone = with_threads(1)
    with ThreadPoolExecutor(2) as pool:
        runs = [with_threads(2), with_threads(3), *pool.map(with_threads, [2] * 6)]
    for run in runs:
        assert all(map(torch.equal, run, alone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_comes_through(dtype: torch.dtype, bad: float) -> None:
    maps = some_maps((2, 16, 6, 6)).to(dtype)
    maps[1, 2, 3, 3] = bad
    pooled, below, *_ = there_and_back(norm_pool_relu, maps, some_norm(16))
    assert pooled[:, 2].isnan().all(), "a NaN that ReLU swallows is trained on"
    others = [channel for channel in range(16) if channel != 2]
    assert pooled[:, others].isfinite().all() and below[:, others].isfinite().all()


def test_it_keeps_the_maps_and_one_byte_for_each_result() -> None:
    maps, kept = some_maps((2, 16, 6, 6)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_pool_relu(maps, some_norm(16))
    assert sorted((t.numel(), t.element_size()) for t in kept) == [(2 * 16 * 9, 1), (2 * 16 * 36, 4)]


def test_the_gradient_lies_where_the_maps_were_and_a_second_backward_pass_is_refused() -> None:
    start = some_maps((2, 16, 6, 6)).contiguous(memory_format=torch.channels_last).requires_grad_()
    maps = start * 1
    maps.register_hook(lambda grad: addresses.append(grad.data_ptr()))
    addresses: list[int] = []
    pooled = norm_pool_relu(maps, some_norm(16))
    pooled.sum().backward(retain_graph=True)
    assert addresses == [maps.data_ptr()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pooled.sum().backward()


def test_maps_in_another_layout_are_left_alone() -> None:
    maps = some_maps((2, 16, 6, 6)).requires_grad_()
    before = maps.detach().clone()
    norm_pool_relu(maps, some_norm(16)).sum().backward()
    assert torch.equal(maps, before)


def test_a_kernel_that_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(fused._sum_up.py_func)
    kernel = compiled.compiled(fused._sum_up.py_func)
    maps, sums = torch.ones(1, 2, 2, 16), torch.zeros(1, 2, 16, dtype=torch.float64)
    kernel(maps.numpy(), torch.zeros(16).numpy(), sums.numpy(), 0, 1)
    assert sums.tolist() == [[[4.0] * 16] * 2]


def load_in_a_process(cache: Path, dtype: str, threads: int = 1) -> int:
    """Returns the number of threads that torch has behind it."""
    code = (
        f"import torch; from dftrack.learning import fused\nfused.load(torch.{dtype})\nprint(torch.get_num_threads())"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_NUM_THREADS": "5",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all kernels for float32."""
    folder = tmp_path_factory.mktemp("kernels")
    load_in_a_process(folder, "float32")
    return folder


def test_kept_kernels_that_are_damaged_or_anothers_are_not_used(compiled_once: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled_once, tmp_path, dirs_exist_ok=True)
    kept = sorted(tmp_path.rglob("*.nbc"))
    assert len(kept) == 4
    first, *_, last = kept
    whole = first.read_bytes()
    first.write_bytes(last.read_bytes())  # as when two processes have kept theirs at the same moment
    load_in_a_process(tmp_path, "float32")
    first.write_bytes(whole[:100])  # as after a power cut
    load_in_a_process(tmp_path, "float32")


def test_kept_kernels_are_compiled_again_when_what_they_call_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel.py").write_text("def add(numbers, first, last):\n    numbers[first:last] += 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from kernel import add

    def hits() -> int:
        kernel = compiled.compiled(add)
        kernel(np.zeros(4), 0, 4)
        return sum(kernel.stats.cache_hits.values())

    assert (hits(), hits()) == (0, 1)
    monkeypatch.setattr(compiled, "_called", lambda: "changed")
    assert (hits(), hits()) == (0, 1)


def test_torch_keeps_its_number_of_threads(compiled_once: Path) -> None:
    """Numba's first call sets that of the library they share to all cores."""
    assert load_in_a_process(compiled_once, "float32", threads=2) == 2
