"""A GPU that is emulated on the CPU, put in the place of a real one: the whole Python path runs, on tensors of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import emulator

from kernels.backends import arithmetic, cuda_operators, cuda_rungs
from kernels.backends.arithmetic import Setting, settings_of
from kernels.backends.cuda_rungs import Gpu
from kernels.problem import Problem

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def _settings(problem: Problem) -> list[Setting]:
    """As on a GPU, though the operands are on the CPU."""
    return settings_of(problem.dtype, problem.math)


@contextmanager
def emulated_gpu(capability: int = 90, multiprocessors: int = 132) -> Iterator[Gpu]:
    """Inside, our CUDA kernels run on tensors of the CPU, as on a GPU of `capability`."""
    found = Gpu(capability, multiprocessors, SHARED_BYTES[capability], emulator.load)
    kept = dict(cuda_operators._patterns)
    cuda_operators._patterns.clear()
    try:
        with (
            mock.patch.object(cuda_rungs, "gpu", return_value=found),
            mock.patch.object(cuda_operators, "KEPT", object()),
            mock.patch.object(arithmetic, "settings", _settings),
        ):
            yield found
    finally:
        cuda_operators._patterns.clear()
        cuda_operators._patterns.update(kept)
