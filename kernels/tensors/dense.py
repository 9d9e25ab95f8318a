"""Dense products of ours on a CPU, by the library of torch's two that uses the whole processor.

torch.nn.functional.linear calls MKL, which on processors other than Intel's leaves half of AVX-512 unused; oneDNN,
which torch's compiler calls, does not. Where there is no AVX-512 both are about as fast, and MKL stays. The choice is
by the processor and not by a measurement, so the digits of a result are the same in every process.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.tensors.autocast import is_any_autocast
from kernels.tensors.tracing import batched, watched

DENSE = ("auto", "torch")  # what `linear` may be computed by


def has_onednn(left: Tensor) -> bool:
    """Whether torch has oneDNN's product for such a matrix."""
    there = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and left.device.type == "cpu" and left.dtype == torch.float32


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k] times weight [m, k] transposed, as [..., m]; weight may be packed by oneDNN. No gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def mkl_is_held_back() -> bool:
    """Whether torch multiplies by MKL here, on a processor whose AVX-512 that does not use."""
    if not torch._C.has_mkl or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        told = platform.processor()
    return "GenuineIntel" not in told


def by_onednn(*operands: Tensor) -> bool:
    """Whether `linear` of these goes by oneDNN where nothing watches them."""
    if not mkl_is_held_back() or not torch._C._get_mkldnn_enabled():
        return False
    return all(has_onednn(each) and each.numel() > 0 for each in operands)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dense: str = "auto") -> Tensor:
    """torch.nn.functional.linear, differentiable as that is: y [..., out]; x: [..., in]; weight: [out, in].

    dense: 'torch' is that function to the digit; 'auto' is oneDNN's where it is faster. Compilers, transforms, modes
    and torch.autocast see torch's function.
    """
    operands = (x, weight) if bias is None else (x, weight, bias)
    if dense == "torch" or watched(*operands) or is_any_autocast() or not by_onednn(*operands):
        return F.linear(x, weight, bias)
    return recorded_linear(x, weight, bias)


def recorded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`onednn_linear` with derivatives of every order."""
    if torch.is_grad_enabled():
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return onednn_linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """oneDNN's product, made of itself to any order of derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        multiply = F.linear if batched(grad) or watched(grad, x, weight) else recorded_linear
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = multiply(grad, weight.mT) if wanted[0] else None
        grad_weight = multiply(rows.mT, x.reshape(-1, x.shape[-1]).mT) if wanted[1] else None
        return grad_x, grad_weight, rows.sum(dim=0) if wanted[2] else None
