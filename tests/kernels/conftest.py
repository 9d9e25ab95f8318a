"""Guards around every buffer that a CPU kernel writes, and a fixed number of threads."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.native import library as native_library

sys.path.insert(0, str(Path(__file__).parent))
import builds

GUARD = 64
if builds.is_sanitized():
    GUARD = 0  # the sanitizer's own begin at the first element outside, and see what is read too
    native_library.empty = torch.empty  # buffers that are used again have room at their ends
    os.environ.pop("LD_PRELOAD", None)  # the compiler needs no sanitizer


@contextmanager
def _guards() -> Iterator[None]:
    held: list[Tensor] = []
    real = native_library.empty

    def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = int(torch.tensor(shape).prod())
        held.append(torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype))
        return held[-1][GUARD : GUARD + size].view(shape)

    native_library.empty = guarded
    try:
        yield
    finally:
        native_library.empty = real
    assert held
    for each in held:
        assert bool(each[:GUARD].isnan().all() and each[each.numel() - GUARD :].isnan().all())


@contextmanager
def _pinned_threads(threads: int) -> Iterator[None]:
    """That many threads, however small the work."""
    before, worth = torch.get_num_threads(), native_library.WORK_OF_A_THREAD
    torch.set_num_threads(threads)
    native_library.WORK_OF_A_THREAD = 1
    try:
        yield
    finally:
        torch.set_num_threads(before)
        native_library.WORK_OF_A_THREAD = worth


@pytest.fixture(scope="session")
def pinned_threads() -> Callable[[int], AbstractContextManager[None]]:
    """`with pinned_threads(3):` runs kernels on three threads, however small their work."""
    return _pinned_threads


@pytest.fixture(scope="session")
def guards() -> Callable[[], AbstractContextManager[None]]:
    """Inside `with guards():` every buffer begins full of NaN, between NaN guards that must be untouched at the end."""
    return _guards
