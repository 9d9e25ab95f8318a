"""The dense product with its weight packed beforehand by MKL or oneDNN, as torch's compiler has it on a CPU.

The faster of the two is taken (`kernels.backends.dense` says why they differ).

A block-sparse weight is packed beforehand too, so this is the dense rival where weights do not change. It is no public
operator of torch's; `dense` is what torch.mm and torch.nn.Linear do.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kernels.launches import ProductLaunch, fastest
from kernels.problem import CALLS, LAYOUTS, Backend, GemmProblem
from kernels.system.resources import UnsupportedError
from kernels.tensors.dense import has_onednn, onednn_linear


class PackedLaunch(ProductLaunch):
    dense = True

    def __init__(self, problem: GemmProblem) -> None:
        left, right = problem.factors(dense=True)
        self.problem, self.n = problem, right.shape[1]
        self.weight, self.rows = left.contiguous(), right.T.contiguous()
        by_mkl = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, self.n)
        arguments = self.rows, by_mkl, self.weight, None, self.n
        candidates = {"torch's mkl_linear, packed weight": partial(torch.ops.mkl._mkl_linear, *arguments)}
        if has_onednn(left) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
            by_onednn = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.n)
            candidates["oneDNN, packed weight"] = partial(onednn_linear, self.rows, by_onednn)
        self.kernel = fastest(candidates, problem.device)
        self.run = candidates[self.kernel]
        self.weight_bytes = self.weight.numel() * self.weight.element_size()
        self()

    def __call__(self) -> None:
        self.result = self.run()

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.problem.wanted(self.result.T)}


def _require_mkl(_: GemmProblem) -> None:
    if not hasattr(torch.ops.mkl, "_mkl_linear"):
        raise UnsupportedError("this torch is built without MKL's packed products")


BACKEND = Backend(
    name="dense_packed",
    blocks=(),
    product=PackedLaunch,
    no_sdd="sdd has no weight to pack",
    devices=("cpu",),
    layouts=LAYOUTS,  # it takes and gives activations [n, k], and allocates in each launch
    calls=CALLS,
    dtypes=("float32",),
    elsewhere="dense_packed is float32 on a CPU only",
    no_dtype="dense_packed is float32 on a CPU only",
    needs=_require_mkl,
)
