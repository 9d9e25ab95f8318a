"""How long Python takes to launch.

Operators on a GPU whose driver does nothing, as multiples of an empty one. Without autograd that is an operator of
torch.library which only allocates its output, with it a torch.autograd.Function that does no more, and its backward
pass.

Times of a machine say little of another; what is called in turn with ours, and is made of the same parts, is slowed by
what slows ours. `nox -s bench -- -k overhead` prints the microseconds; other sessions skip it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from costs import Call, cost
from stubbed_gpu import stubbed_gpu
from torch import Tensor

from bench.timing import pinned_threads
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import products as cuda_products
from kernels.cuda.choose import Task
from kernels.ops import block_sparse_lstm, block_sparse_matmul

pytestmark = pytest.mark.alone
BATCH, SIZE, STEPS = 20, 256, 5

# The most that each may take, in empty ones: one and a half times what it took when this was written, on an AMD EPYC
# with AVX-512 beside other work.
MOST = {
    "prepared": 0.4,
    "matmul inference": 1.5,
    "matmul forward": 4.4,
    "matmul backward": 3.5,
    "lstm inference": 13.0,
    "lstm forward": 24.0,
    "lstm backward": 8.7,
}


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with stubbed_gpu(), pinned_threads(1):
        yield


@torch.library.custom_op("block_sparse_bench::nothing", mutates_args=())
def nothing(data: Tensor, x: Tensor) -> Tensor:
    """Y, uninitialised, as `block_sparse_matmul` returns it. x: [n, k]."""
    return x.new_empty(x.shape[0], SIZE)


class Nothing(torch.autograd.Function):
    """The same with a derivative, as uninitialised."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(data, x)
        return x.new_empty(x.shape[0], SIZE)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor]:
        data, x = ctx.saved_tensors
        return torch.empty_like(data), torch.empty_like(x)


def matrix(rows: int) -> BSRMatrix:
    mask = BlockMask.random(rows, SIZE, 16, 0.8, torch.Generator().manual_seed(0))
    return BSRMatrix.from_dense(torch.randn(mask.shape, dtype=torch.bfloat16), mask)


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)


def leaf_of(weight: BSRMatrix) -> tuple[BSRMatrix, Tensor]:
    leaf = weight.data.clone().requires_grad_()
    return weight.with_data(leaf), leaf


def matmul(part: str) -> Call:
    """Activations as torch.nn.Linear has them, so nothing is copied."""
    weight, x = matrix(SIZE), tensor(BATCH, SIZE)
    if part == "prepared":
        run, out = (
            cuda_products.pattern_of(weight.index, 16)(Task("dsd", "Bfloat16", 16, BATCH)).run,
            tensor(BATCH, SIZE),
        )
        return lambda: run(weight.data, x, out)
    if part == "inference":
        columns = x.mT
        return lambda: block_sparse_matmul(weight, columns)
    (weight, leaf), columns = leaf_of(weight), x.mT.requires_grad_()
    if part == "forward":
        return lambda: block_sparse_matmul(weight, columns)
    y, grad = block_sparse_matmul(weight, columns), tensor(BATCH, SIZE).mT
    return lambda: torch.autograd.grad(y, (leaf, columns), grad, retain_graph=True)


def lstm(part: str) -> Call:
    x, grad, state = tensor(STEPS, BATCH, SIZE), tensor(STEPS, BATCH, SIZE), (tensor(1, BATCH, SIZE),) * 2
    into, recurrent, biases = matrix(4 * SIZE), matrix(4 * SIZE), [tensor(4 * SIZE) for _ in range(2)]
    if part == "inference":
        return lambda: block_sparse_lstm(x, state, into, recurrent, *biases)
    leaves = [each.requires_grad_() for each in (x, *biases, into.data, recurrent.data)]
    if part == "forward":
        return lambda: block_sparse_lstm(x, state, into, recurrent, *biases)
    y, _ = block_sparse_lstm(x, state, into, recurrent, *biases)
    return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)


def prepare(name: str) -> Call:
    op, _, part = name.rpartition(" ")
    return lstm(part) if op == "lstm" else matmul(part)


def empty(name: str) -> Call:
    """What stands beside `name`."""
    data, x = tensor(1), tensor(BATCH, SIZE)
    part = name.rpartition(" ")[2]
    if part in ("prepared", "inference"):
        return lambda: nothing(data, x)
    leaves = data.requires_grad_(), x.requires_grad_()
    if part == "forward":
        return lambda: Nothing.apply(*leaves)
    y, grad = Nothing.apply(*leaves), tensor(BATCH, SIZE)
    return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)


@pytest.mark.parametrize("name", MOST)
def test_launches_stay_cheap(name: str, benchmark: Any) -> None:
    if benchmark.disabled:
        pytest.fail("pytest-benchmark is disabled here (xdist?), so nothing was measured")
    ours = prepare(name)
    ratio = cost(ours, empty(name))
    benchmark.extra_info |= {"empty_ones": ratio, "most": MOST[name]}
    benchmark.pedantic(ours, rounds=20, iterations=20, warmup_rounds=1)
    assert ratio <= MOST[name], f"{name} costs {ratio:.1f} empty ones, more than {MOST[name]}"
