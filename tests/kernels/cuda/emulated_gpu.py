"""A GPU that is emulated on the CPU, put in the place of a real one.

The whole Python path runs, on tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import emulator

from kernels import launches
from kernels.cuda import choose
from kernels.cuda import products as cuda_products
from kernels.cuda.choose import Gpu
from kernels.launches import Setting, settings_of
from kernels.problem import Problem

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def _settings(problem: Problem) -> list[Setting]:
    """As on a GPU, though the operands are on the CPU."""
    return settings_of(problem.dtype, problem.math)


@contextmanager
def emulated_gpu(capability: int = 90, multiprocessors: int = 132) -> Iterator[Gpu]:
    """Inside, our CUDA kernels run on tensors of the CPU, as on a GPU of `capability`."""
    found = Gpu(capability, multiprocessors, SHARED_BYTES[capability], emulator.load)
    kept = dict(cuda_products._patterns)
    cuda_products._patterns.clear()
    try:
        with (
            mock.patch.object(choose, "gpu", return_value=found),
            mock.patch.object(cuda_products, "KEPT", object()),
            mock.patch.object(launches, "settings", _settings),
        ):
            yield found
    finally:
        cuda_products._patterns.clear()
        cuda_products._patterns.update(kept)
