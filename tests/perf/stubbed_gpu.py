"""A GPU whose driver does nothing, on tensors of the CPU.

What is left of a call is the time that Python takes to launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import torch

from kernels.cuda import choose
from kernels.cuda import products as cuda_products
from kernels.cuda.choose import Gpu
from kernels.cuda.device import LoadedKernel, Variant


@cache
def load(variant: Variant) -> LoadedKernel:
    """`variant` as if loaded.

    C's labs takes a launch's arguments, does nothing and returns success, for the handle is 0.
    """
    kernel = object.__new__(LoadedKernel)
    kernel.variant, kernel.device, kernel.handle, kernel.context = variant, 0, ctypes.c_void_p(), ctypes.c_void_p()
    kernel.shape, kernel.resident = (variant.threads, 1, 1, variant.shared_bytes), 32
    kernel.launch = kernel.launch_together = ctypes.CDLL(None).labs
    kernel.stream, kernel.current_device = abs, int  # of device 0: stream 0
    return kernel


@contextmanager
def stubbed_gpu() -> Iterator[None]:
    """Inside, tensors of the CPU are multiplied by kernels that are launched and never run."""
    cuda_products._patterns.clear()
    device, found = torch.device("cpu"), Gpu(90, 132, 227 * 1024, load)
    try:
        with (
            mock.patch.object(choose, "gpu", {device: found}.__getitem__),  # a mock that is called costs 15 us
            mock.patch.object(cuda_products, "KEPT", object()),
        ):
            yield
    finally:
        cuda_products._patterns.clear()
