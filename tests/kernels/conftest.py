"""Guards around every buffer that a CPU kernel writes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

from kernels.backends import native_library

GUARD = 64


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
    assert held and all(bool(each[:GUARD].isnan().all() and each[-GUARD:].isnan().all()) for each in held)


@pytest.fixture(scope="session")
def guards() -> Callable[[], AbstractContextManager[None]]:
    """Inside `with guards():` every buffer begins full of NaN, between NaN guards that must be untouched at the end."""
    return _guards
