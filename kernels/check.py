"""The self-check of a prepared launch against the float64 reference, on the launch's own operands.

Any order of summing k products, with or without fused multiply-adds, is within gamma_k |w| |x| of the exact value, where
gamma_k = k u / (1 - k u) and u is the unit roundoff of the accumulation (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1). k is counted row by row: only non-zero weights round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.problem import Launch

ACCUMULATION_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-24,  # 16-bit types are multiplied exactly and summed in float32
    torch.float16: 2.0**-24,
}
OUTPUT_ROUNDOFF = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def gamma(terms: Tensor, roundoff: float) -> Tensor:
    """gamma_k = k u / (1 - k u) for float64 counts `terms`."""
    return terms * roundoff / (1 - terms * roundoff)


def error_bound(weight: Tensor, x: Tensor, expected: Tensor) -> Tensor:
    """Largest error of each output element a correct kernel can make: float64[m, n]. Zero where a row has no weights."""
    dtype = x.dtype
    terms = (weight != 0).sum(dim=1, keepdim=True).double()
    sums = gamma(terms, ACCUMULATION_ROUNDOFF[dtype]) + gamma(terms, 2.0**-53)  # the reference itself rounds in float64
    underflow = terms * torch.finfo(dtype).tiny
    bound = sums * (weight.double().abs() @ x.double().abs()) + underflow
    return bound + OUTPUT_ROUNDOFF[dtype] * (expected.abs() + bound)


def check(launch: Launch, weight: Tensor, x: Tensor) -> tuple[float, str | None]:
    """Run `launch` into a NaN-filled output: (largest |error| / bound, None or one line saying what is wrong).

    weight: [m, k], what the launch multiplies; x: [k, n]. The ratio is infinite where the output is unusable.
    """
    launch.poison()
    launch()
    output = launch.output()
    if output.shape != (weight.shape[0], x.shape[1]) or output.dtype != x.dtype:
        wanted = (weight.shape[0], x.shape[1])
        return float("inf"), f"output is {output.dtype} {tuple(output.shape)}, wanted {x.dtype} {wanted}"
    bad = int((~torch.isfinite(output)).sum())
    if bad:
        return float(
            "inf"
        ), f"{bad} of {output.numel()} output elements are NaN or infinite (unwritten elements show as NaN)"
    expected = weight.double() @ x.double()
    error = (output.double() - expected).abs()
    bound = error_bound(weight, x, expected)
    ratio = torch.where(error == 0, 0.0, error / bound)
    worst = int(ratio.argmax())
    largest = float(ratio.flatten()[worst])
    if largest <= 1.0:
        return largest, None
    row, col = divmod(worst, output.shape[1])
    got, wanted_value = float(output[row, col]), float(expected[row, col])
    return (
        largest,
        f"output[{row}, {col}] is {got:.9g}, expected {wanted_value:.9g}: {largest:.3g} times the error bound",
    )
