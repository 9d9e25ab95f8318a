"""The dense product with its weight packed beforehand by MKL, as torch's compiler has it for inference on a CPU.

A block-sparse weight is packed beforehand too, so this is the dense rival where weights do not change. It is no public
operator of torch's; `dense` is what torch.mm and torch.nn.Linear do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.problem import Domain, GemmProblem, Launch, Problem


class PackedLaunch:
    dense = True
    index_bytes = 0
    kernel = "torch's mkl_linear, packed weight"

    def __init__(self, problem: GemmProblem) -> None:
        left, right = problem.factors(dense=True)
        self.problem, self.n = problem, right.shape[1]
        self.weight, self.rows = left.contiguous(), right.T.contiguous()
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, self.n)
        self.weight_bytes = self.weight.numel() * self.weight.element_size()
        self()

    def __call__(self) -> None:
        self.result = torch.ops.mkl._mkl_linear(self.rows, self.packed, self.weight, None, self.n)

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.problem.wanted(self.result.T)}

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class PackedBackend(Domain):
    """float32 on a CPU where torch is built with MKL; products with a weight, so not sdd."""

    no_layer = "dense_packed has no LSTM layer"
    no_sdd = "sdd has no weight to pack"
    devices = ("cpu",)
    dtypes = ("float32",)
    elsewhere = no_dtype = "dense_packed is float32 on a CPU only"

    def lacking(self, problem: Problem) -> str | None:  # noqa: ARG002
        has = hasattr(torch.ops.mkl, "_mkl_linear")
        return None if has else "this torch is built without MKL's packed products"

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        return PackedLaunch(problem)


BACKEND = PackedBackend()
