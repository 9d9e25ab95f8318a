"""block_sparse_lstm against torch.nn.LSTM with the masked dense weights: outputs and every gradient."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from layer import Case
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native import lstm as native_lstm
from kernels.ops import block_sparse_lstm, lstm_kernel
from kernels.system.resources import refusal

Guards = Callable[[], AbstractContextManager[None]]
Threads = Callable[[int], AbstractContextManager[None]]
NO_NATIVE = refusal(native_library.require_kernel, torch.float64, torch.device("cpu"))
KERNELS = ["torch"] if NO_NATIVE else ["native", "torch"]
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")
TOLERANCE = {torch.float64: 2e-13, torch.float32: 1e-4}


def assert_equal_within_rounding(computed: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(computed, expected, strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=TOLERANCE[wanted.dtype] * max(scale, 1e-30))


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([1, 2, 4, 5, 8, 12, 16, 32, 40]),
    units=st.integers(1, 3),
    inputs=st.integers(1, 3),
    steps=st.one_of(st.integers(1, 6), st.sampled_from([35, 70])),
    batch=st.one_of(st.integers(1, 80), st.sampled_from([1, 15, 16, 17, 20, 80, 100])),
    density=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    dense_input=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fuzz_against_torchs_lstm(
    guards: Guards,
    kernel: str,
    size: int,
    units: int,
    inputs: int,
    steps: int,
    batch: int,
    density: float,
    dtype: torch.dtype,
    dense_input: bool,
    seed: int,
) -> None:
    if size > 12 and steps > 6:
        steps = 7
    case = Case(size, units, inputs, steps, batch, density, dtype, seed)
    if kernel == "torch":
        computed = case.computed(kernel, dense_input)
    else:
        with guards():
            computed = case.computed(kernel, dense_input)
    assert_equal_within_rounding(computed, case.expected())


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_steps(kernel: str) -> None:
    case = Case(16, 4, 2, 70, 20)
    assert_equal_within_rounding(case.computed(kernel), case.expected())


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel: str) -> None:
    case = Case(2, 2, 1, 3, 2)
    x, h0, c0, *biases = (each.requires_grad_() for each in (case.x, *case.states, *case.biases))
    data = [weight.data.requires_grad_() for weight in case.weights]

    def layer(
        x: Tensor, h0: Tensor, c0: Tensor, into: Tensor, recurrent: Tensor, *biases: Tensor
    ) -> tuple[Tensor, ...]:
        weights = [weight.with_data(values) for weight, values in zip(case.weights, (into, recurrent), strict=True)]
        y, (h, c) = block_sparse_lstm(x, (h0, c0), weights[0], weights[1], *biases, kernel=kernel)
        return y, h, c

    assert torch.autograd.gradcheck(layer, (x, h0, c0, *data, *biases))


@needs_native
def test_the_operator_keeps_torchs_rules() -> None:
    case = Case(2, 2, 1, 3, 2)
    projected = torch.randn(3, 2, 16, dtype=torch.float64).requires_grad_()
    states = [state[0].requires_grad_() for state in case.states]
    bias = case.biases[0].requires_grad_()
    into, recurrent = ([weight.data.requires_grad_(), *weight.index] for weight in case.weights)
    torch.library.opcheck(native_lstm.lstm, (projected, bias, *states, recurrent, []))
    torch.library.opcheck(native_lstm.lstm, (case.x.requires_grad_(), bias, *states, recurrent, into))


@needs_native
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_gradients_of_one_output_alone(wanted: int) -> None:
    case = Case(4, 2, 1, 3, 5)
    case.grads = [grad if place == wanted else torch.zeros_like(grad) for place, grad in enumerate(case.grads)]
    x = case.x.clone().requires_grad_()
    y, (h, c) = block_sparse_lstm(x, (case.states[0], case.states[1]), *case.weights, *case.biases)
    (grad,) = torch.autograd.grad((y, h, c)[wanted], x, case.grads[wanted])
    assert_equal_within_rounding([grad], [case.expected()[3]])


@needs_native
def test_repeats_and_threads_change_no_bit(pinned_threads: Threads) -> None:
    case, results = Case(8, 6, 3, 4, 120, dtype=torch.float32), []
    for threads in (1, 1, 2, 3, 3):
        with pinned_threads(threads):
            results.append(case.computed("native"))
    assert_equal_within_rounding(results[0], case.expected())
    for other in results[1:]:
        assert all(torch.equal(got, wanted) for got, wanted in zip(other, results[0], strict=True))


FEWER = """
import torch
from layer import Case
from kernels.native import library
torch.set_num_threads(4)
library.in_force = lambda: 4  # which would know of the limit
library.WORK_OF_A_THREAD = 1
assert library.pool_for(1000).threads == 4
torch.save(Case(8, 6, 3, 4, 30, dtype=torch.float32).computed("native"), {path!r})
"""


@needs_native
@pytest.mark.parametrize("limit", [1, 2])
def test_a_pool_may_send_fewer_threads_than_were_asked_for(pinned_threads: Threads, tmp_path: Path, limit: int) -> None:
    """As inside of another parallel region: whoever came computes what the others would have."""
    path = str(tmp_path / "results")
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", FEWER.format(path=path)], env=environment, check=True, timeout=120)
    with pinned_threads(1):
        expected = Case(8, 6, 3, 4, 30, dtype=torch.float32).computed("native")
    assert all(torch.equal(got, wanted) for got, wanted in zip(torch.load(path), expected, strict=True))


@needs_native
@settings(max_examples=12, deadline=None)
@given(
    size=st.sampled_from([4, 8, 16]),
    units=st.integers(1, 5),
    steps=st.sampled_from([1, 7, 60]),
    batch=st.sampled_from([1, 5, 33, 100]),
    threads=st.sampled_from([2, 3, 7]),
)
def test_threads_that_wait_for_each_other_at_each_step(
    pinned_threads: Threads, size: int, units: int, steps: int, batch: int, threads: int
) -> None:
    """More of them than there are processors, and than there are items: some come late, or find nothing to do."""
    case, results = Case(size, units, 2, steps, batch, dtype=torch.float32), []
    for each in (1, threads):
        with pinned_threads(each):
            results.append([*case.computed("native"), *case.inferred(), *case.inferred(dense_input=True)])
    assert all(torch.equal(got, wanted) for got, wanted in zip(*results, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_are_accurate_everywhere(dtype: torch.dtype) -> None:
    """Without weights, y = sigmoid(o) tanh(sigmoid(i) tanh(g)): tiny, moderate and saturated sums."""
    hidden = 4096
    exponents = torch.linspace(-30, 2.5, hidden // 2, dtype=torch.float64)
    sums = torch.cat([-(10**exponents), 10**exponents]).to(dtype)
    bias = torch.stack([torch.full_like(sums, 40.0), sums, sums, sums.flip(0)]).flatten()  # i is open
    weight = BSRMatrix.from_dense(
        torch.zeros(4 * hidden, hidden, dtype=dtype), BlockMask(torch.zeros(4, 1) > 0, hidden)
    )
    y, (_, c) = block_sparse_lstm(
        torch.zeros(1, 1, 1, dtype=dtype), None, torch.zeros(4 * hidden, 1, dtype=dtype), weight, bias
    )
    cell = sums.double().tanh()
    expected = sums.flip(0).double().sigmoid() * cell.tanh()
    few_ulps = 8 * torch.finfo(dtype).eps
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(c.flatten().double(), cell, rtol=few_ulps, atol=tiny)
    torch.testing.assert_close(y.flatten().double(), expected, rtol=few_ulps, atol=4 * tiny)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_spreads_and_infinity_saturates(kernel: str) -> None:
    case = Case(4, 1, 1, 2, 3)
    case.x[0, 1, 0] = float("nan")
    case.biases[0][:] = float("inf")
    y, _ = block_sparse_lstm(case.x, None, case.weights[0].to_dense() * 0 + 1, case.weights[1], *case.biases, kernel)
    assert bool(y[:, 1].isnan().all()) and bool(y[:, [0, 2]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_extreme_sums_give_torchs_gates(kernel: str, dtype: torch.dtype) -> None:
    """Each gate by itself; a cell that is as large as can be shows a gate that is not quite shut."""
    bound, large = (-200.0, 1e37) if dtype == torch.float32 else (-1500.0, 1e307)
    sums = [float("-inf"), 10 * bound, bound, -50.0, 50.0, -bound, float("inf"), float("nan")]
    hidden, weight = (
        len(sums),
        BSRMatrix.from_dense(torch.zeros(32, 8, dtype=dtype), BlockMask(torch.zeros(4, 1) > 0, 8)),
    )
    layer = torch.nn.LSTM(1, hidden, dtype=dtype)
    for cell in (0.5, large, float("inf")):
        for gate in range(4):
            bias = torch.full((4, hidden), 0.25, dtype=dtype)
            bias[gate] = torch.tensor(sums, dtype=dtype)
            leaves = [bias.flatten(), *(torch.full((1, 1, hidden), each, dtype=dtype) for each in (0.5, cell))]
            bias, h, c = (each.requires_grad_() for each in leaves)
            x, into = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(32, 1, dtype=dtype)
            y, states = block_sparse_lstm(x, (h, c), into, weight, bias, kernel=kernel)
            given = {"weight_ih_l0": into, "weight_hh_l0": into.expand(-1, hidden)}
            given |= {"bias_ih_l0": bias, "bias_hh_l0": torch.zeros_like(bias)}
            theirs, their_states = torch.func.functional_call(layer, given, (x, (h, c)))
            torch.testing.assert_close([y, *states], [theirs, *their_states], equal_nan=True)
            found, wanted = (torch.autograd.grad(each, (bias, c), torch.ones_like(each)) for each in (y, theirs))
            torch.testing.assert_close(found, wanted, equal_nan=True)


@needs_native
@pytest.mark.parametrize("changed", ["x", "input weight", "weighted inputs"])
def test_what_no_wanted_gradient_needs_may_be_changed(changed: str) -> None:
    """x beside a frozen input weight, that weight beside an x without gradient, and sums that came from outside."""
    case, results = Case(2, 2, 2, 3, 4), []
    recurrent, index = case.weights[1], case.weights[0].index
    for change in (False, True):
        into = case.weights[0].data.clone().requires_grad_(changed == "input weight")
        x = case.x.clone().requires_grad_(changed != "input weight")
        data = recurrent.data.clone().requires_grad_()
        inputs, listed = x * 1, into * 1
        if changed == "weighted inputs":
            inputs = inputs @ case.weights[0].to_dense().T
        lists = [data, *recurrent.index], [] if changed == "weighted inputs" else [listed, *index]
        y, *_ = native_lstm.lstm(inputs, case.biases[0], case.states[0][0], case.states[1][0], *lists)
        if change:
            with torch.no_grad():
                (listed if changed == "input weight" else inputs).add_(1)
        results.append(torch.autograd.grad(y.sum(), [data, into if changed == "input weight" else x]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_states_and_biases_may_be_missing() -> None:
    case = Case(4, 2, 1, 3, 5)
    zeros = torch.zeros(1, 5, 8, dtype=torch.float64)
    y, _ = block_sparse_lstm(case.x, None, *case.weights)
    same, _ = block_sparse_lstm(case.x, (zeros, zeros), *case.weights, torch.zeros(32, dtype=torch.float64))
    assert torch.equal(y, same)


def test_operands_that_do_not_fit_are_refused() -> None:
    case = Case(4, 2, 1, 3, 5)
    states = (case.states[0], case.states[1])
    with pytest.raises(ValueError, match=r"x must be \[steps, batch, 4\]"):
        block_sparse_lstm(case.x[..., :3], states, *case.weights)
    with pytest.raises(ValueError, match=r"h0 must be \(1, 5, 8\)"):
        block_sparse_lstm(case.x, (states[0][0], states[1]), *case.weights)
    with pytest.raises(ValueError, match="4 x 8 rows"):
        block_sparse_lstm(case.x, states, case.weights[0].to_dense()[:-1], case.weights[1])
    with pytest.raises(ValueError, match="not one type"):
        block_sparse_lstm(case.x.float(), states, *case.weights)
    short, wide = torch.zeros(3, dtype=torch.float64), torch.zeros(32, dtype=torch.float32)
    for bias in (short, short[:1], wide):
        with pytest.raises(ValueError, match=r"biases must be torch.float64 \[32\]"):
            block_sparse_lstm(case.x, states, *case.weights, bias)


@needs_native
def test_what_computes_a_layer_is_said() -> None:
    weight = BSRMatrix.from_dense(torch.ones(32, 8), BlockMask(torch.ones(4, 1, dtype=torch.bool), 8))
    assert lstm_kernel(weight, 5, "native").startswith("native ")
    assert lstm_kernel(weight, 5, "torch") == "torch, step by step"


@needs_native
def test_a_nan_of_any_bits_stays_nan() -> None:
    """Sanitizers look at what becomes of its bits (`nox -s sanitize`)."""
    weight = BSRMatrix.from_dense(torch.zeros(32, 8), BlockMask(torch.zeros(4, 1, dtype=torch.bool), 8))
    for bits in (-1, 0x7FFFFFFF, 0x7FC00000, 0x7F800001):
        x = torch.zeros(1, 1, 1)
        x.view(torch.int32).fill_(bits)
        y, (_, c) = block_sparse_lstm(x, None, torch.ones(32, 1), weight, kernel="native")
        assert y.isnan().all() and c.isnan().all()
