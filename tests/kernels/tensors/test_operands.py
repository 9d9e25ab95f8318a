"""Operands as they come.

Views, types, devices and defaults of torch's, each right or refused in one line by every kernel.

What once ended the process runs in one of its own: `python tests/kernels/tensors/test_operands.py` runs that, and says
what passed.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import launches
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.native import library as native_library
from kernels.native import lstm as native_lstm
from kernels.ops import block_sparse_linear, block_sparse_lstm, block_sparse_matmul, dsd, lstm_kernel, lstm_refusal, sdd
from kernels.problem import GemmProblem, LstmProblem
from kernels.registry import BACKENDS
from kernels.system.resources import refusal
from kernels.tensors.index import own_copy
from kernels.tensors.operands import address

CPU = torch.device("cpu")
NO_NATIVE = refusal(native_library.require_kernel, torch.float32, CPU)
KERNELS = ["torch"] if NO_NATIVE else ["native", "torch"]
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")
SIZE, HIDDEN, STEPS, BATCH = 16, 32, 3, 4


def pattern(grid_rows: int) -> tuple[Tensor, Tensor]:
    """Block columns 0 and 2 of even block rows, 0 and 1 of odd ones, of three: indices and indptr."""
    indices = torch.tensor([0, 2, 0, 1] * (grid_rows // 2), dtype=torch.int32, device="cpu")
    return indices, torch.arange(0, 2 * grid_rows + 1, 2, dtype=torch.int32, device="cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


def strided(x: Tensor) -> Tensor:
    """As a column of a table."""
    return torch.stack([x + 7, x], dim=-1)[..., 1]


def negated(x: Tensor) -> Tensor:
    """A view that torch negates when it is read, as the imaginary part of a conjugate is."""
    return torch._neg_view(-x) if not x.is_floating_point() else torch.complex(x, -x).conj().imag


def backwards(x: Tensor) -> Tensor:
    """Column by column."""
    return x.mT.contiguous().mT if x.ndim > 1 else x


def shifted(x: Tensor) -> Tensor:
    """At an odd place of larger memory."""
    wide = torch.zeros(x.numel() + 3, dtype=x.dtype, device=x.device)
    return wide[3:].view(x.shape).copy_(x)


VIEWS = {each.__name__: each for each in (strided, negated, backwards, shifted)}


def matrix(grid_rows: int = 8, view: Callable[[Tensor], Tensor] = Tensor.clone) -> BSRMatrix:
    """[16 grid_rows, 48], its pattern seen through `view`."""
    indices, indptr = pattern(grid_rows)
    return BSRMatrix(normal(len(indices), SIZE, SIZE) / 6, view(indices), view(indptr), (grid_rows * SIZE, 48))


def square(view: Callable[[Tensor], Tensor] = Tensor.clone) -> BSRMatrix:
    """A recurrent weight [128, 32], its one block column's pattern seen through `view`."""
    indices = torch.zeros(8, dtype=torch.int32, device="cpu")
    indptr = torch.arange(9, dtype=torch.int32, device="cpu")
    return BSRMatrix(normal(8, SIZE, SIZE, seed=1) / 6, view(indices), view(indptr), (4 * HIDDEN, HIDDEN))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def layer(into: BSRMatrix, recurrent: BSRMatrix, kernel: str, view: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
    """A layer and its gradients against torch's own, every operand seen through `view`."""
    x, h0, c0 = normal(STEPS, BATCH, 48, seed=2), normal(1, BATCH, HIDDEN, seed=3), normal(1, BATCH, HIDDEN, seed=4)
    biases = [normal(4 * HIDDEN, seed=seed) for seed in (5, 6)]
    given = [view(each) for each in (x, h0, c0, *biases, into.data, recurrent.data)]
    with torch.no_grad():
        y, _ = block_sparse_lstm(
            given[0], (given[1], given[2]), into.with_data(given[5]), recurrent.with_data(given[6]), *given[3:5], kernel
        )
    leaves = [each.detach().requires_grad_() for each in given]
    weights = into.with_data(leaves[5]), recurrent.with_data(leaves[6])
    trained, (h, c) = block_sparse_lstm(leaves[0], (leaves[1], leaves[2]), *weights, *leaves[3:5], kernel)
    grad = normal(STEPS, BATCH, HIDDEN, seed=7)
    grads = torch.autograd.grad((trained, h, c), leaves, (view(grad), view(grad[:1]), view(grad[:1])))
    theirs = [each.clone().requires_grad_() for each in (x, h0, c0, *biases, into.data, recurrent.data)]
    dense = [weight.with_data(each).to_dense() for weight, each in zip((into, recurrent), theirs[5:], strict=True)]
    flat = [*dense, *theirs[3:5]]
    wanted = torch.lstm(theirs[0], (theirs[1], theirs[2]), flat, True, 1, 0.0, True, False, False)
    close(y, wanted[0])
    for one, other in zip((trained, h, c), wanted, strict=True):
        close(one, other)
    for one, other in zip(grads, torch.autograd.grad(wanted, theirs, (grad, grad[:1], grad[:1])), strict=True):
        close(one, other)


def product(weight: BSRMatrix, kernel: str, view: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
    """A product and its gradients against torch's own, every operand seen through `view`."""
    x, grad = normal(48, 5, seed=8), normal(weight.shape[0], 5, seed=9)
    data, seen = view(weight.data), view(x)
    with torch.no_grad():
        y = block_sparse_matmul(weight.with_data(data), seen, kernel)
    leaves = data.detach().requires_grad_(), seen.detach().requires_grad_()
    trained = block_sparse_matmul(weight.with_data(leaves[0]), leaves[1], kernel)
    grads = torch.autograd.grad(trained, leaves, view(grad))
    theirs = weight.data.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = weight.with_data(theirs[0]).to_dense() @ theirs[1]
    close(y, wanted)
    close(trained, wanted)
    for one, other in zip(grads, torch.autograd.grad(wanted, theirs, grad), strict=True):
        close(one, other)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_operand_may_be_a_view(view: str, kernel: str) -> None:
    seen = VIEWS[view]
    product(matrix(view=seen), kernel)
    product(matrix(), kernel, seen)
    layer(matrix(view=seen), square(seen), kernel)
    layer(matrix(), square(), kernel, seen)


# What ended the process, or may end it: each by itself right, or a ValueError of one line.


def expanded_indices() -> None:
    zeros, indptr = torch.zeros(1, dtype=torch.int32).expand(8), torch.arange(9, dtype=torch.int32)
    weight = BSRMatrix(normal(8, SIZE, SIZE), zeros, indptr, (4 * HIDDEN, HIDDEN))
    for kernel in KERNELS:
        close(block_sparse_matmul(weight, normal(HIDDEN, 3), kernel), weight.to_dense() @ normal(HIDDEN, 3))
        layer(matrix(), weight.with_data(weight.data / 6), kernel)


def expanded_values() -> None:
    data = normal(1, SIZE, SIZE).expand(8, SIZE, SIZE)
    for kernel in KERNELS:
        product(matrix(4).with_data(data), kernel)


def changed_pattern() -> None:
    """Whoever holds the tensors that a matrix was made of may write to them; and to its own, whatever it says."""
    indices, indptr = pattern(8)
    weight = BSRMatrix(normal(16, SIZE, SIZE), indices, indptr, (128, 48))
    wanted = weight.to_dense()
    indices.fill_(2**30), indptr.fill_(2**30)
    for kernel in KERNELS:
        product(weight, kernel)
    weight.indices.fill_(2**30), weight.indptr.numpy().fill(2**30)
    for kernel in KERNELS:
        product(weight, kernel)
    assert torch.equal(weight.to_dense(), wanted)


WRITES: dict[str, Callable[[Tensor, int], object]] = {
    "in place": lambda each, value: each.fill_(value),
    "data": lambda each, value: each.data.fill_(value),
    "numpy": lambda each, value: each.numpy().fill(value),
    "dlpack": lambda each, value: torch.from_dlpack(each.__dlpack__()).fill_(value),
    "inference mode": lambda each, value: torch.inference_mode()(each.fill_)(value),
    "other memory": lambda each, value: setattr(each, "data", torch.full_like(each, value)),
    "smaller": lambda each, value: each.resize_(1).fill_(value),
    "none": lambda each, _: each.untyped_storage().resize_(0),
}


CONTENT = ("in place", "data", "numpy", "dlpack", "inference mode")  # which change what lies there, not where
UNCOUNTED = ("data", "numpy", "dlpack")  # others autograd sees itself, when it goes back


def changed_index() -> None:
    """And to what was derived of it and looked at.

    Kernels read copies of their own, and see where memory was exchanged.
    """
    for how, kernel, value in itertools.product(WRITES, KERNELS, (2**30, -(2**30))):
        written_index(how, kernel, value)


def written_index(how: str, kernel: str, value: int) -> None:
    weight, recurrent, x, grad = matrix(), square(), normal(48, 5), normal(128, 5)
    frozen, wanted = weight.freeze(), weight.to_dense()
    with torch.no_grad():
        close(block_sparse_matmul(frozen, x, kernel), wanted @ x)
    leaf = x.clone().requires_grad_()
    tape = block_sparse_matmul(weight, leaf, kernel)

    def back() -> None:
        tape.sum().backward()
        close(leaf.grad, wanted.T @ torch.ones_like(tape))

    for each in (*weight.index, *weight.transposed_index, weight.row_indices, *recurrent.index):
        WRITES[how](each, value)
    calls: dict[str, Callable[[], object]] = {
        "matmul": lambda: close(block_sparse_matmul(weight, x, kernel), wanted @ x),
        "frozen": lambda: close(block_sparse_matmul(frozen, x, kernel), wanted @ x),
        "dsd_t": lambda: close(dsd(weight.data, *weight.index, grad, True, kernel), wanted.T @ grad),
        "sdd": lambda: sdd(grad, x, *weight.index, kernel),
        "layer": lambda: layer(weight, recurrent, kernel),
        "dense": lambda: close(weight.to_dense(), wanted),
        "tape": back,
    }
    for name, call in calls.items():
        packed_before = name == "frozen" and kernel == "native"
        if packed_before or (how in CONTENT and (name != "tape" or how in UNCOUNTED)):
            call()
        else:
            with pytest.raises((ValueError, RuntimeError)):
                call()


def resized_results() -> None:
    """Results as large as those whose memory is used again, made larger or smaller in place, or written to by torch."""
    n = native_library.SMALLEST // (4 * 128) + 5
    weight, x = matrix(), normal(48, n)
    wanted = weight.to_dense() @ x
    for kernel in KERNELS:
        for _ in range(3):
            y = block_sparse_matmul(weight, x, kernel)
            transposed = block_sparse_matmul(weight, x.T.contiguous().T, kernel)
            close(y, wanted), close(transposed, wanted)
            more = torch.ones(3 * n, 128)
            torch.add(more, more, out=y.resize_(0))
            assert y.shape == more.shape and bool((y == 2).all())
            y.resize_(40 * n, 128).fill_(3.0)
            transposed.untyped_storage().resize_(1 << 25)
            close(transposed, wanted)
            close(block_sparse_matmul(weight, x, kernel), wanted)
            assert bool((y == 3).all())


def nothing_kept_or_no_columns() -> None:
    """Zero blocks, zero columns, and both, in every operator and its gradients.

    Blocks and grids of nothing are refused.
    """
    for kept in (torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)):
        weight = BSRMatrix.from_dense(normal(32, 48), BlockMask(kept, 16))
        dense, shape = weight.to_dense(), weight.data.shape
        for kernel in KERNELS:
            for n in (0, 1, 5):
                for order in (Tensor.clone, backwards):
                    data, x = weight.data.clone().requires_grad_(), order(normal(48, n)).requires_grad_()
                    y = block_sparse_matmul(weight.with_data(data), x, kernel)
                    close(y, dense @ x)
                    close(block_sparse_matmul(weight.freeze(), x.detach(), kernel), dense @ x)
                    grads = torch.autograd.grad(y, (data, x), order(normal(32, n)), create_graph=True)
                    close(grads[1], dense.T @ normal(32, n))
                    close(grads[0], BSRMatrix.from_dense(normal(32, n) @ x.T, weight.mask).data)
                    second = torch.autograd.grad(grads[0].sum() + grads[1].sum(), (data, x), allow_unused=True)
                    assert second[0] is None or second[0].shape == shape
    nothing = torch.zeros(8, 2, dtype=torch.bool)
    recurrent = BSRMatrix.from_dense(torch.zeros(128, 32), BlockMask(nothing, SIZE))
    into = BSRMatrix.from_dense(torch.zeros(128, 48), BlockMask(torch.zeros(8, 3, dtype=torch.bool), SIZE))
    for kernel in KERNELS:
        for weights in ((into, recurrent), (matrix(), recurrent), (into, square())):
            layer(*weights, kernel)
    if NO_NATIVE:
        return
    weight, x = matrix(), normal(48, 5)
    for bad in (weight.data[:, :0, :0], weight.data[:, 0, 0], weight.data[0, 0, 0], weight.data.double().float()[:0]):
        refused("data must be", dsd, bad, *weight.index, x, False, "native")
    empty = weight.index._replace(
        indices=torch.zeros(0, dtype=torch.int32), column_indptr=torch.zeros(1, dtype=torch.int32)
    )
    refused("column_indptr", dsd, weight.data[:0], *empty, x[:0], False, "native")
    refused("grad must have blocks", sdd, normal(0, 5), normal(0, 5), *weight.index, "native")


def shrunk_values() -> None:
    weight, x = matrix(), normal(48, 5)
    _ = weight.index
    weight.data.resize_(2, SIZE, SIZE)
    for kernel in KERNELS:
        refused("data", block_sparse_matmul, weight, x, kernel)


def no_memory() -> None:
    """As sharded training leaves its parameters."""
    weight, x = matrix(), normal(48, 5)
    weight.data.untyped_storage().resize_(0)
    if not NO_NATIVE:
        refused("has no memory", block_sparse_matmul, weight, x, "native")
    refused("has no memory", address, weight.data)
    for bad in (x.to("meta"), negated(x)):
        refused("cannot read", address, bad)
    assert address(None) is address(x[:0]) is None and address(x) == x.data_ptr()


def operands_elsewhere() -> None:
    """On a device that has no memory, which is what a tensor of another device is to a kernel of the CPU's."""
    x, weights = normal(STEPS, BATCH, 48), (matrix(), square())
    meta = torch.zeros(4 * HIDDEN, dtype=torch.float32, device="meta")
    state = torch.zeros(1, BATCH, HIDDEN, dtype=torch.float32, device="meta")
    for kernel in KERNELS:
        refused("biases", block_sparse_lstm, x, None, *weights, meta, kernel=kernel)
        refused("h0", block_sparse_lstm, x, (state, state), *weights, kernel=kernel)
        refused("one device", block_sparse_matmul, weights[0], x[0].T.to("meta"), kernel)
    indices, indptr = pattern(8)
    refused("one device", BSRMatrix, weights[0].data, indices.to("meta"), indptr, (128, 48))
    refused("one device", BSRMatrix, weights[0].data.to("meta"), indices, indptr, (128, 48))


def foreign_index() -> None:
    """The operators by themselves, with tensors that nobody has looked at."""
    weight, x, grad = matrix(), normal(48, 5), normal(128, 5)
    index = weight.index
    copies = [each.clone() for each in index]
    assert own_copy(index) is not None and own_copy(type(index)(*copies)) is None
    wrong = {
        "indices must lie": index._replace(indices=index.indices + 2**20),
        "indptr must rise": index._replace(indptr=index.indptr * 2**20),
        "rows is not": index._replace(rows=index.rows + 2**20),
        "column_rows is not": index._replace(column_rows=index.column_rows + 2**20),
        "column_indptr is not": index._replace(column_indptr=index.column_indptr * 2**10),
        "positions is not": index._replace(positions=index.positions - 2**20),
        "indices must be int32": index._replace(indices=index.indices.long()),
        "indptr must be": index._replace(indptr=index.indptr[::2].long()),
        "indptr must rise from": index._replace(indptr=index.indptr[:-1]),
    }
    for kernel in [] if NO_NATIVE else ["native"]:
        close(dsd(weight.data, *copies, x, False, kernel), weight.to_dense() @ x)
        for message, given in wrong.items():
            for transposed in (False, True):
                taken = grad if transposed else x
                refused(message, dsd, weight.data, *given, taken, transposed, kernel)
            refused(message, sdd, grad, x, *given, kernel)
        for bad in (x[:16], x[:, :0].double(), grad):
            refused("x must be", dsd, weight.data, *index, bad, False, kernel)
            refused("must be", sdd, grad, bad, *index, kernel)
        refused("data must be", dsd, weight.data[:3], *index, x, False, kernel)


def foreign_layer() -> None:
    """The layer's operators by themselves, each operand too small in turn."""
    if NO_NATIVE:
        return
    into, recurrent = matrix(), square()
    lists = [recurrent.data, *recurrent.index], [into.data, *into.index]
    given = [normal(STEPS, BATCH, 48), normal(4 * HIDDEN), normal(BATCH, HIDDEN), normal(BATCH, HIDDEN)]
    y, _, _, saved = native_lstm.lstm(*given, *lists)
    for place, each in enumerate(given):
        short = [*given[:place], each[..., :-1].contiguous(), *given[place + 1 :]]
        refused("must be", native_lstm.lstm, *short, *lists)
    states, wanted = [given[0], y, saved, *given[2:]], [True, True, True]
    for place, each in enumerate(states):
        short = [*states[:place], each[..., :-1].contiguous(), *states[place + 1 :]]
        refused("must be", native_lstm.lstm_backward, y, None, None, short, *lists, wanted)
    refused("grad_y must be", native_lstm.lstm_backward, y[:1], None, None, states, *lists, wanted)
    refused("4 x 48 rows", native_lstm.lstm, *given, lists[1], lists[1])


def refused(message: str, call: Callable[..., object], *given: object, **named: object) -> None:
    """By a ValueError of one line that says `message`."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call(*given, **named)
    assert "\n" not in str(caught.value)


@contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Inside, they are torch's defaults."""
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def masks_and_factories() -> None:
    """Every factory of a pattern names what it makes."""
    generator = torch.Generator().manual_seed(0)
    full, random = BlockMask.full(32, 48, 16), BlockMask.random(32, 48, 16, 0.5, generator)
    scored = BlockMask.from_scores(normal(2, 3), 0.5, 16)
    dense = BlockMask.from_dense(normal(32, 48), 16)
    for mask, kept in ((full, 6), (random, 3), (scored, 3), (dense, 6), (BlockMask(full.kept[:, :2], 16), 4)):
        assert mask.kept.device == CPU and mask.nnzb == kept
        bsr = BSRMatrix.from_dense(normal(*mask.shape), mask)
        assert bsr.data.dtype == torch.float32 and torch.equal(bsr.mask.kept, mask.kept)
        close(bsr.to_dense(), normal(*mask.shape) * mask.expand("cpu"))


def under_other_defaults() -> None:
    """Products, layers, factories and every backend, whatever torch's default device and type are."""
    launches.ROUNDS = 1  # baselines need not be the fastest here
    for device, dtype in (("meta", torch.float64), ("meta", torch.bfloat16), ("cpu", torch.float16)):
        with defaults(device, dtype):
            masks_and_factories()
            assert native_library.POOL.empty((native_library.SMALLEST,), torch.float32).device == CPU
            for kernel in KERNELS:
                product(matrix(), kernel)
                layer(matrix(), square(), kernel)
                y, _ = block_sparse_lstm(normal(STEPS, BATCH, 48), None, matrix(), square(), kernel=kernel)
                assert y.dtype == torch.float32 and y.device == CPU
            for name in BACKENDS:
                for problem in (
                    *(GemmProblem(32, 48, 20, 16, 0.5, op=op) for op in ("dsd", "dsd_t", "sdd")),
                    LstmProblem(48, 32, 4, 3, 16, 0.5),
                ):
                    if BACKENDS[name].unsupported(problem) is None:
                        assert check(BACKENDS[name].prepare(problem), problem)[1] is None, name


ONCE_FATAL = [
    expanded_indices,
    expanded_values,
    changed_pattern,
    changed_index,
    resized_results,
    nothing_kept_or_no_columns,
    shrunk_values,
    no_memory,
    operands_elsewhere,
    foreign_index,
    foreign_layer,
    under_other_defaults,
]


def test_nothing_ends_the_process() -> None:
    where = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    given = {"env": {**os.environ, "PYTHONPATH": where}, "timeout": 280}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, **given)
    assert done.stdout.split() == [each.__name__ for each in ONCE_FATAL] and done.returncode == 0, done.stderr[-4000:]


class Marked(Tensor):
    """A subclass that does nothing."""


class Wrapped(Tensor):
    """A subclass with another tensor inside, as sharded and quantised ones are."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(each.inner if isinstance(each, Wrapped) else each for each in args), **(kwargs or {}))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [Marked, Wrapped])
def test_subclasses_are_multiplied_as_what_they_are(kind: type[Tensor], kernel: str) -> None:
    weight, x = matrix(), normal(48, 5)
    wrap = Wrapped if kind is Wrapped else lambda each: each.as_subclass(Marked)
    for data, columns in ((weight.data, wrap(x)), (wrap(weight.data), x), (wrap(weight.data), wrap(x))):
        y = block_sparse_matmul(weight.with_data(data), columns, kernel)
        close(y.as_subclass(Tensor), weight.to_dense() @ x)
    indices, indptr = pattern(8)
    for given in ((wrap(indices), indptr), (indices, wrap(indptr))):
        other = BSRMatrix(weight.data, *given, (128, 48))
        if kind is Wrapped:  # whose copy is what it wraps
            close(block_sparse_matmul(other, x, kernel), weight.to_dense() @ x)
        else:
            with pytest.raises(ValueError, match="must be a plain tensor, got a Marked"):
                block_sparse_matmul(other, x, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_no_memory_is_refused_in_a_line(kernel: str) -> None:
    weight, recurrent, x = matrix(), square(), normal(48, 5)
    inputs, nested = normal(STEPS, BATCH, 48), torch.nested.nested_tensor([normal(48, 5), normal(48, 3)])
    for bad in (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn(), nested, x.numpy()):
        refused("x must be a", block_sparse_matmul, weight, bad, kernel)
        refused("x must be a", block_sparse_lstm, bad, None, weight, recurrent, kernel=kernel)
        refused("weight_ih must be a", block_sparse_lstm, inputs, None, bad, recurrent, kernel=kernel)
        refused("bias_ih must", block_sparse_lstm, inputs, None, weight, recurrent, bad, kernel=kernel)
        refused("h0 must be a", block_sparse_lstm, inputs, (bad, bad), weight, recurrent, kernel=kernel)
        refused("data must be a", weight.with_data, bad)
        refused("indices must be a", BSRMatrix, weight.data, bad, weight.indptr, weight.shape)
        refused("weight must be a", BSRMatrix.from_dense, bad, weight.mask)
        refused("kept must be a", BlockMask, bad, 4)
    for bad in (inputs[0], inputs[0, 0], inputs[:0], inputs[:, :0], inputs[..., :-1]):
        refused("x must be [", block_sparse_lstm, bad, None, weight, recurrent, kernel=kernel)
    refused("weight_ih must be [", block_sparse_lstm, inputs, None, normal(128), recurrent, kernel=kernel)
    meta = x.to("meta")
    refused("scores is on the device meta", BlockMask.from_scores, meta, 0.5, 4)
    refused("weight is on the device meta", BlockMask.from_dense, meta, 4)
    refused("kept is on the device meta", BlockMask, meta > 0, 4)
    refused("weight is on the device meta", BSRMatrix.from_dense, weight.to_dense().to("meta"), weight.mask)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_that_is_not_block_sparse_is_refused_in_a_line(autocast: bool) -> None:
    weight, recurrent, x = matrix(), square(), normal(48, 5)
    inputs, h0 = normal(STEPS, BATCH, 48), normal(1, BATCH, HIDDEN)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for bad in (weight.to_dense(), weight.to_dense().numpy(), weight.mask, None):
            refused("weight must be a BSRMatrix", block_sparse_matmul, bad, x)
            refused("weight_hh must be a BSRMatrix", block_sparse_lstm, inputs, None, weight, bad)
            refused("weight_hh must be a BSRMatrix", lstm_kernel, bad, BATCH)
            refused("weight_hh must be a BSRMatrix", lstm_refusal, bad, BATCH)
        for bad in (h0, (h0,), (h0, h0, h0), 7):
            refused("state must be (h0, c0) or None", block_sparse_lstm, inputs, bad, weight, recurrent)
        refused("c0 must be a tensor", block_sparse_lstm, inputs, (h0, None), weight, recurrent)
        refused("x must be a tensor", block_sparse_matmul, weight, weight)
        refused("weight_ih must be a tensor", block_sparse_lstm, inputs, None, None, recurrent)


def test_functionalize_is_refused_in_a_line() -> None:
    weight, recurrent, x = matrix(), square(), normal(48, 5)
    functionalize = torch.func.functionalize
    message = "torch.func.functionalize has no rule"
    refused(message, functionalize(lambda x: block_sparse_matmul(weight, x)), x)
    refused(
        message, functionalize(lambda x: block_sparse_lstm(x, None, weight, recurrent)[0]), normal(STEPS, BATCH, 48)
    )
    refused(message, torch.func.grad(functionalize(lambda x: block_sparse_matmul(weight, x).sum())), x)
    refused(message, functionalize(torch.func.grad(lambda x: block_sparse_matmul(weight, x).sum())), x)


@pytest.mark.parametrize("way", ["inference mode", "vmap", "grad"])
def test_a_pattern_first_met_inside_a_mode_or_transform_outlives_it(way: str) -> None:
    weight, x = matrix(), normal(48, 5)

    def multiply(each: Tensor) -> Tensor:
        assert weight.index.rows is not None
        return each.sum()

    if way == "inference mode":
        with torch.inference_mode():
            multiply(x)
    elif way == "vmap":
        torch.func.vmap(multiply)(x[None])
    else:
        torch.func.grad(multiply)(x)
    assert not any(
        each.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(each) for each in weight.index
    )
    for kernel in KERNELS:
        product(weight, kernel)


def test_a_mask_is_nobody_elses() -> None:
    kept = torch.eye(3, dtype=torch.bool)
    mask = BlockMask(kept, 4)
    kept.fill_(True)
    assert mask.nnzb == 3


def without_memory(x: Tensor) -> Tensor:
    """Zeros of that shape as derivatives of torch's make them: no memory is behind them."""
    zeros: Tensor = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    assert not zeros.data_ptr()
    return zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_zeros_without_memory_are_zeros(kernel: str, dtype: torch.dtype) -> None:
    indices, indptr = pattern(4)
    weight = BSRMatrix(normal(8, SIZE, SIZE).to(dtype), indices, indptr, (4 * SIZE, 3 * SIZE))
    x = normal(3 * SIZE, 5).to(dtype)
    for zeros in (without_memory(x), without_memory(x.T).T):
        for each in (weight, weight.freeze()):
            assert block_sparse_matmul(each, zeros + x, kernel).any()
            for _ in range(2):  # a frozen weight knows the second
                assert not block_sparse_matmul(each, zeros, kernel).any()
                assert not block_sparse_linear(zeros.T, each, kernel=kernel).any()
    assert not block_sparse_matmul(weight.with_data(without_memory(weight.data)), x, kernel).any()
    leaves = weight.data.clone().requires_grad_(), x.clone().requires_grad_()
    y = block_sparse_matmul(weight.with_data(leaves[0]), leaves[1], kernel)
    firsts = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    for outputs, grads in ((y, without_memory(y)), (firsts, [without_memory(each) for each in leaves])):
        for found in torch.autograd.grad(outputs, leaves, grads, retain_graph=True):
            assert not found.any()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", range(7))
def test_a_layer_takes_zeros_without_memory(place: int, dtype: torch.dtype) -> None:
    """In the place of x, a state, a bias, either weight, or the gradient that comes back."""
    (indices, indptr), into = pattern(4 * HIDDEN // SIZE), 3 * SIZE
    index = BSRMatrix(normal(len(indices), SIZE, SIZE).to(dtype), indices, indptr, (4 * HIDDEN, into))
    recurrent = BSRMatrix.from_dense(normal(4 * HIDDEN, HIDDEN).to(dtype), BlockMask(torch.ones(8, 2).bool(), SIZE))
    shapes = (STEPS, BATCH, into), (1, BATCH, HIDDEN), (1, BATCH, HIDDEN), (4 * HIDDEN,)
    operands = [normal(*shape).to(dtype) for shape in shapes] + [index.data, recurrent.data]
    operands.append(normal(STEPS, BATCH, HIDDEN).to(dtype))

    def run(zeros: Callable[[Tensor], Tensor], recorded: bool) -> list[Tensor]:
        given = [zeros(each) if here == place else each for here, each in enumerate(operands)]
        leaf = torch.zeros(shapes[3], dtype=dtype, requires_grad=recorded)
        x, h, c, bias, of_into, of_recurrent, grad = given
        weights = index.with_data(of_into), recurrent.with_data(of_recurrent)
        y, _ = block_sparse_lstm(x, (h, c), *weights, bias, leaf, "native")
        return [y, *(torch.autograd.grad(y, leaf, grad) if recorded else ())]

    for recorded in (False, True):
        for found, wanted in zip(run(without_memory, recorded), run(torch.zeros_like, recorded), strict=True):
            assert torch.equal(found, wanted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in ONCE_FATAL:
        case()
        print(case.__name__, flush=True)
