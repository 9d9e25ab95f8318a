"""The self-check of a prepared launch against float64, on the launch's own operands.

Products: any order of summing k terms, with or without fused multiply-adds, is within gamma_k |A| |B| of the exact A B,
element by element, where gamma_k = k u / (1 - k u) and u is the unit roundoff of the accumulation (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). k is counted row by row: only non-zero weights round. Tensor cores add
in float32 but cut off instead of rounding, so that their u is twice as large (Fasi et al., Numerical behavior of NVIDIA
tensor cores, 2021). TF32 moreover keeps 10 bits of the fraction of both factors: 2^-11 each if they are rounded, 2^-10
if they are cut off as the hardware does by itself, which is allowed here since nobody says which of the two a library
does.

LSTM layers: the rigorous bound grows exponentially with the steps, so errors are compared with the largest element of
each output, and with what rounding errors are expected to reach. Summing k terms errs by about sqrt(k) u (Higham and
Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019); the operations of the gates add GATE_ERRORS u. At
the weights of a problem, of scale 1 / sqrt(hidden), a step passes on the error of the one before it undamped at most,
so that `steps` such errors add up; the backward pass doubles them. Layers in 16 bits, or whose factors are TF32, also
round what goes from step to step, with the larger u of these types. Such roundings are independent, so GATE_ERRORS of
them make sqrt(GATE_ERRORS) u; they do not add up over the steps, for a forget gate near 1/2 halves them each time; but
a gradient of a weight that is a sum of `steps` terms in 16 bits makes another sqrt(steps) u. torch's own loop in
bfloat16 and float16 reaches half of that (2.5 u in outputs, 6 u in gradients of weights at 70 steps).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from kernels.problem import GemmProblem, Launch, LstmProblem, Problem

ACCUMULATION_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-23,  # 16-bit types are multiplied exactly and summed in float32
    torch.float16: 2.0**-23,
}
OUTPUT_ROUNDOFF = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TF32_ACCUMULATION, TF32_FACTOR = 2.0**-23, 2.0**-10
GATE_ERRORS = 16

Expected = dict[str, tuple[Tensor, Tensor]]  # by name: the float64 result, and the largest error of each element


def gamma(terms: Tensor, roundoff: float) -> Tensor:
    """gamma_k = k u / (1 - k u) for float64 counts `terms`."""
    return terms * roundoff / (1 - terms * roundoff)


def error_bound(left: Tensor, right: Tensor, expected: Tensor, math: str = "ieee") -> Tensor:
    """Largest error of each element of left @ right that a correct kernel can make: float64[rows, cols].

    Zero where a row of `left` is empty. math: of float32, 'ieee' or 'tf32'.
    """
    dtype = right.dtype
    roundoff = TF32_ACCUMULATION if math == "tf32" else ACCUMULATION_ROUNDOFF[dtype]
    factors = (1 + TF32_FACTOR) ** 2 - 1 if math == "tf32" else 0.0
    terms = (left != 0).sum(dim=1, keepdim=True).double()
    sums = gamma(terms, roundoff) * (1 + factors) + factors
    sums += gamma(terms, 2.0**-53)  # the reference itself rounds in float64
    underflow = terms * torch.finfo(dtype).tiny
    bound = sums * (left.double().abs() @ right.double().abs()) + underflow
    return bound + OUTPUT_ROUNDOFF[dtype] * (expected.abs() + bound)


def lstm_tolerance(problem: LstmProblem) -> float:
    """Largest error of an LSTM layer's outputs and gradients, relative to the largest element of each."""
    samples = problem.batch_size * problem.steps  # summed by the gradients of weights and biases
    terms = max(problem.input_size + problem.hidden_size, 4 * problem.hidden_size, samples)
    tf32 = problem.math == "tf32"
    accumulation = TF32_ACCUMULATION if tf32 else ACCUMULATION_ROUNDOFF[problem.torch_dtype]
    between = TF32_FACTOR if tf32 else OUTPUT_ROUNDOFF[problem.torch_dtype]  # of what goes from step to step
    sums = 2 * problem.steps * (sqrt(terms) + GATE_ERRORS) * accumulation
    return sums + (sqrt(GATE_ERRORS) + sqrt(problem.steps)) * between


def expected_outputs(problem: Problem, dense: bool, own_weight: Tensor | None = None) -> Expected:
    """What a right launch gives, and how far from it it may be. own_weight: of dsd, in place of the problem's."""
    if isinstance(problem, LstmProblem):
        results = lstm_reference(problem, dense)
        tolerance = lstm_tolerance(problem)
        largest = {name: result.abs().max() if result.numel() else result.sum() for name, result in results.items()}
        return {name: (result, tolerance * largest[name].expand_as(result)) for name, result in results.items()}
    left, right = problem.factors(dense)
    left = left if own_weight is None else own_weight
    product = left.double() @ right.double()
    bound = error_bound(left, right, product, problem.math)
    return {"output": (problem.wanted(product), problem.wanted(bound))}


def check(launch: Launch, problem: Problem) -> tuple[float, str | None]:
    """Run `launch` into NaN-filled outputs: (largest |error| / bound, None or one line saying what is wrong).

    The ratio is infinite where an output is unusable. A launch that prunes in another way has the weight that it
    multiplies as `own_weight`.
    """
    with _nan_filled_memory():
        launch.poison()
        launch()
        outputs = launch.outputs()
    expected, largest = expected_outputs(problem, launch.dense, getattr(launch, "own_weight", None)), 0.0
    if outputs.keys() != expected.keys():
        return float("inf"), f"outputs are {', '.join(outputs)}, wanted {', '.join(expected)}"
    for name, (wanted, bound) in expected.items():
        ratio, wrong = _compare(name, outputs[name], problem.torch_dtype, wanted, bound)
        largest = max(largest, ratio)
        if wrong is not None:
            return ratio, wrong
    return largest, None


def _compare(name: str, output: Tensor, dtype: torch.dtype, wanted: Tensor, bound: Tensor) -> tuple[float, str | None]:
    if output.shape != wanted.shape or output.dtype != dtype:
        got = f"{name} is {output.dtype} {tuple(output.shape)}"
        return float("inf"), f"{got}, wanted {dtype} {tuple(wanted.shape)}"
    bad = int((~torch.isfinite(output)).sum())
    if bad:
        share = f"{bad} of {output.numel()} {name} elements"
        return float("inf"), f"{share} are NaN or infinite (unwritten elements show as NaN)"
    if not output.numel():
        return 0.0, None
    error = (output.double() - wanted).abs()
    ratio = torch.where(error == 0, 0.0, error / bound)
    place = tuple(map(int, np.unravel_index(int(ratio.argmax()), ratio.shape)))  # torch's imports sympy: a second
    largest = float(ratio[place])
    if largest <= 1.0:
        return largest, None
    where = f"{name}[{', '.join(str(int(index)) for index in place)}]"
    values = f"{float(output[place]):.9g}, expected {float(wanted[place]):.9g}"
    return largest, f"{where} is {values}: {largest:.3g} times the error bound"


@contextmanager
def _nan_filled_memory() -> Iterator[None]:
    """Torch fills uninitialised tensors with NaN inside, so that what a launch allocates and leaves unwritten shows."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports torch's compiler: two seconds
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def lstm_reference(problem: LstmProblem, dense: bool) -> dict[str, Tensor]:
    """The outputs of a layer, and its gradients where they are asked for, by name; dense: of the full weights."""
    weights = problem.full_weights if dense else problem.weights
    leaves = {"x": problem.x, **weights, **problem.biases}
    leaves = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    h, c = (state[0].double() for state in problem.state)
    outputs = []
    for x in leaves["x"]:
        from_input = x @ leaves["weight_ih"].T + leaves["bias_ih"]
        i, f, g, o = (from_input + h @ leaves["weight_hh"].T + leaves["bias_hh"]).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    y = torch.stack(outputs)
    results = {"y": y.detach(), "h": h.detach()[None], "c": c.detach()[None]}
    if problem.passes == "forward_backward":
        grads = torch.autograd.grad(y, list(leaves.values()), problem.grad_y.double())
        for name, grad in zip(leaves, grads, strict=True):
            results[f"grad_{name}"] = problem.blocks_of(name, grad).data if name in problem.masks else grad
    return results


def product_by_blocks(problem: GemmProblem) -> Tensor:
    """The product of a problem, block after block, in float64."""
    bsr = problem.blocks_of("weight", problem.weight.double())
    size, rows, cols = bsr.block_size, bsr.row_indices.tolist(), bsr.indices.tolist()
    x, grad = (each.double().view(-1, size, problem.n) for each in (problem.x, problem.grad))
    if problem.op == "sdd":
        return torch.stack([grad[row] @ x[col].T for row, col in zip(rows, cols, strict=True)]) if rows else bsr.data
    result = torch.zeros_like(x if problem.op == "dsd_t" else grad)
    for block, row, col in zip(bsr.data, rows, cols, strict=True):
        if problem.op == "dsd":
            result[row] += block @ x[col]
        else:
            result[col] += block.T @ grad[row]
    return result.view(-1, problem.n)
