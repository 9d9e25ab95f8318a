"""Which arithmetic torch's own GPU products use while a baseline runs: the problem's, whatever the process has set.

float32: exactly or by TF32, as `problem.math` says; cuDNN's layers are on TF32 unless told otherwise. 16-bit types: summed
in float32 to the end, as our kernels do and the check expects, while cuBLAS may otherwise add parts of a sum in 16 bits.
The settings are put back after each launch: about 2 us on the processor, nothing in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from kernels.problem import Problem

T = TypeVar("T")

Setting = tuple[Any, str, Any]  # of an object, its attribute, the value


def settings(problem: Problem) -> list[Setting]:
    """What is to be set for `problem`: nothing on a CPU, where there is no choice."""
    return settings_of(problem.dtype, problem.math) if problem.device == "cuda" else []


def settings_of(dtype: str, math: str) -> list[Setting]:
    """What is to be set for products of `dtype`. allow_tf32 keeps torch's older and newer names for it consistent; cuDNN's has one."""
    matmul, layers = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    wanted: dict[str, list[Setting]] = {
        "float32": [(matmul, "allow_tf32", math == "tf32"), (layers, "fp32_precision", math)],
        "bfloat16": [(matmul, "allow_bf16_reduced_precision_reduction", False)],
        "float16": [(matmul, "allow_fp16_reduced_precision_reduction", False)],
    }
    return wanted.get(dtype, [])


@contextmanager
def applied(chosen: Sequence[Setting]) -> Iterator[None]:
    """Inside, the settings are as chosen; then as before."""
    before = [getattr(owner, name) for owner, name, _ in chosen]
    for owner, name, value in chosen:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(chosen, before, strict=True):
            setattr(owner, name, value)


def under(problem: Problem, run: Callable[[], T]) -> Callable[[], T]:
    """`run` with the arithmetic of `problem`; itself where nothing is to be set."""
    chosen = settings(problem)
    if not chosen:
        return run

    def launch() -> T:
        with applied(chosen):
            return run()

    return launch
