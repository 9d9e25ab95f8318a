"""A GPU whose driver does nothing, on tensors of the CPU: what is left of a call is the time that Python takes to launch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

from kernels.backends import cuda_operators, cuda_rungs
from kernels.backends.cuda_kernel import LoadedKernel, Variant
from kernels.backends.cuda_rungs import Gpu


def nothing(pointers: int) -> Callable[..., int]:
    """A C function that takes a launch's arguments, does nothing and returns success: labs(0), for the handle is 0."""
    function = ctypes.CDLL(None)["labs"]
    function.argtypes = ctypes.c_void_p, *(ctypes.c_uint,) * 7, *(ctypes.c_void_p,) * pointers
    return function


@cache
def load(variant: Variant) -> LoadedKernel:
    """`variant` as if loaded."""
    kernel = object.__new__(LoadedKernel)
    kernel.variant, kernel.device, kernel.handle, kernel.context = variant, 0, 0, ctypes.c_void_p()
    kernel.shape = (variant.threads, 1, 1, variant.shared_bytes)
    kernel.launch, kernel.launch_together = nothing(3), nothing(2)
    kernel.stream = abs  # of device 0: stream 0
    return kernel


@contextmanager
def stubbed_gpu() -> Iterator[None]:
    """Inside, tensors of the CPU are multiplied by kernels that are launched and never run."""
    cuda_operators._patterns.clear()
    try:
        with mock.patch.object(cuda_rungs, "gpu", return_value=Gpu(90, 132, 227 * 1024, load)):
            yield
    finally:
        cuda_operators._patterns.clear()
