"""Kernels that Numba compiles: made, kept between processes, tried before they are trusted, run on torch's threads.

For training on a CPU only; what only scores, or trains on a card, never comes here.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from filelock import FileLock
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

Kernel = TypeVar("Kernel", bound=Callable[..., None])
Array = NDArray[Any]

prange = numba.prange

_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # the simplest of Numba's thread pools ends a process that uses it from two threads


def compiled(kernel: Kernel) -> Kernel:
    """A kernel for one thread, with arguments (arrays..., first, last): what of them it is to do."""
    return _kept(kernel, parallel=False)


def compiled_in_parts(kernel: Kernel) -> Kernel:
    """A kernel for several threads, with arguments (arrays..., parts)."""
    return _kept(kernel, parallel=True)


def compiled_exactly(kernel: Kernel) -> Kernel:
    """`compiled`, each operation rounded as it is written."""
    return _kept(kernel, parallel=False, exactly=True)


def compiled_exactly_in_parts(kernel: Kernel) -> Kernel:
    """`compiled_in_parts`, each operation rounded as it is written."""
    return _kept(kernel, parallel=True, exactly=True)


def _kept(kernel: Kernel, *, parallel: bool, exactly: bool = False) -> Kernel:
    """`kernel`, compiled at its first call and kept beside its file or in the user's cache, where either can be."""
    # A product and a sum may be rounded once. Nothing else may be changed: NaN and infinity must come through.
    rules = set() if exactly else {"contract"}
    options: Any = {"nogil": True, "parallel": parallel, "fastmath": rules, "error_model": "numpy"}
    njit: Any = numba.njit
    try:
        compiled: Any = njit(cache=True, **options)(kernel)
    except RuntimeError:  # neither can be written to
        return cast(Kernel, njit(**options)(kernel))
    kept = (
        compiled._cache._cache_file
    )  # Numba looks whether the kernel's own file has changed; what it calls counts too
    kept._source_stamp = (kept._source_stamp, _called())
    return cast(Kernel, compiled)


@cache
def _called() -> str:
    """Names the code that kernels call."""
    digest = hashlib.sha256()
    for name in ("compiled.py", "lanes.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def load(kernels: Sequence[Kernel], works: Callable[[], bool]) -> None:
    """Compile `kernels`, all of one file, or read them from where they were kept; `works` tries them.

    What was kept is tried first. If it does not do its work (cut off, or another's), or nothing more can be kept (a
    full disk), all is compiled for this process alone.
    """
    dispatchers: Sequence[Any] = kernels
    kept = dispatchers[0].stats.cache_path
    with FileLock(Path(kept, "dftrack.lock")) if kept else nullcontext():  # Numba keeps without regard to others
        try:
            if works():
                return
        except Exception as error:  # whatever a damaged file leads to
            _log.debug("kernels kept in %s: %s", kept, error)
        for dispatcher in dispatchers:
            dispatcher._cache.disable()
            dispatcher.overloads.clear()
            dispatcher._reset_overloads()
    assert works(), "the compiled kernels compute something else than torch"


def run(alone: Kernel, in_parts: Kernel, count: int, *arrays: Array) -> None:
    """Run a kernel over all `count` items of `arrays`, with as many threads as torch has."""
    threads = torch.get_num_threads()
    if threads == 1:  # no pool of threads: it would not outlive a fork
        alone(*arrays, 0, count)
        return
    with _one_at_a_time:
        # OpenMP first: its calls end in the library that torch has loaded, so the threads are the same. Others would
        # wait for a core on which torch's still spin: 10 % of a step at 96 px.
        settings: Any = numba.config
        settings.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
        numba.set_num_threads(min(threads, settings.NUMBA_NUM_THREADS))
        if torch.get_num_threads() != threads:  # Numba's first call has told the common library: all cores
            torch.set_num_threads(threads)
        in_parts(*arrays, threads)


def bits(tensor: Tensor) -> Array:
    """The memory of a tensor as NumPy sees it; bfloat16, which NumPy has not, as its 16 bits."""
    detached = tensor.detach()
    array: Array = (detached.view(torch.uint16) if tensor.dtype == torch.bfloat16 else detached).numpy()
    return array


# What kernels call.


def wide(value: Any) -> Any:
    """A number of `bits` as float32. Only for compiled code: see `_wide`."""
    raise NotImplementedError


def narrow(value: Any, array: Any) -> Any:
    """A float32 as `array` holds it, to nearest, ties to even. Only for compiled code: see `_narrow`."""
    raise NotImplementedError


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of three float32, rounded once. Only for compiled code."""
    kind = numba.types.float32

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return kind(kind, kind, kind), code


fma: Any = intrinsic(_fma)


@overload(wide, inline="always")
def _wide(value: Any) -> Any:
    def from_bits(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    def as_it_is(value: Any) -> Any:
        return value

    return from_bits if isinstance(value, numba.types.Integer) else as_it_is


@overload(narrow, inline="always")
def _narrow(value: Any, array: Any) -> Any:
    def to_bits(value: Any, array: Any) -> Any:
        whole = np.float32(value).view(np.uint32)
        return np.uint16((whole + np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def as_it_is(value: Any, array: Any) -> Any:
        return np.float32(value)

    return to_bits if isinstance(array.dtype, numba.types.Integer) else as_it_is
