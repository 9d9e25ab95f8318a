"""block_sparse_matmul: values, gradients, and no gradient at empty blocks, with either kernel."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native import products as native_products
from kernels.ops import block_sparse_linear, block_sparse_lstm, block_sparse_matmul, dsd, kernel_for, sdd
from kernels.system.resources import UnsupportedError, refusal

NO_NATIVE = refusal(native_library.require_kernel, torch.float64, torch.device("cpu"))
KERNELS = ["torch"] if NO_NATIVE else ["native", "torch"]
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")


def operands(kept: torch.Tensor, size: int, n: int, seed: int = 0) -> tuple[BSRMatrix, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask(kept, size)
    weight = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return BSRMatrix.from_dense(weight, mask), torch.randn(mask.shape[1], n, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    size=st.sampled_from([1, 2, 4, 5]),
    n=st.integers(1, 5),
    kernel=st.sampled_from(KERNELS),
    data=st.data(),
)
def test_fuzz_against_dense(rows: int, cols: int, size: int, n: int, kernel: str, data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))
    bsr, x = operands(torch.tensor(picked).view(rows, cols), size, n)
    leaf = bsr.data.clone().requires_grad_()
    sparse = BSRMatrix(leaf, bsr.indices, bsr.indptr, bsr.shape)
    x.requires_grad_()
    output = block_sparse_matmul(sparse, x, kernel)
    grad = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(output, (leaf, x), grad)
    expected_output = sparse.to_dense() @ x
    expected = torch.autograd.grad(expected_output, (leaf, x), grad)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("watched", ["forward", "backward"])
def test_a_mode_may_watch_one_way_alone(kernel: str, watched: str) -> None:
    """Activation checkpointing takes what the recomputation saves for what the forward pass has saved."""
    generator = torch.Generator().manual_seed(0)
    weight = BSRMatrix.from_dense(torch.randn(32, 48, generator=generator), BlockMask.random(32, 48, 8, 0.5, generator))
    weight = weight.with_data(weight.data.clone().requires_grad_())
    x = torch.randn(48, 5, generator=generator).requires_grad_()
    modes = [FlopCounterMode(display=False) if way == watched else nullcontext() for way in ("forward", "backward")]
    with modes[0]:
        y = checkpoint(lambda a: block_sparse_matmul(weight, a, kernel).relu(), x, use_reentrant=False)
    with modes[1]:
        y.sum().backward()
    dense, z = weight.to_dense().detach(), (weight.to_dense().detach() @ x.detach())
    assert torch.allclose(x.grad, dense.T @ (z > 0).float(), atol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("recorded", [False, True])
def test_what_traces_before_dispatch_sees_the_operator(kernel: str, recorded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = BSRMatrix.from_dense(torch.randn(32, 48, generator=generator), BlockMask.random(32, 48, 8, 0.5, generator))
    data, x = weight.data.clone().requires_grad_(recorded), torch.randn(48, 5, generator=generator)

    def product(data: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return block_sparse_matmul(weight.with_data(data), x, kernel)

    traced = make_fx(product, pre_dispatch=True)(data, x)
    assert "block_sparse_bench.dsd" in traced.code
    assert torch.allclose(traced(2.0 * data, x), product(2.0 * data, x))


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_result_may_be_written_to_in_place(kernel: str, by_columns: bool) -> None:
    """As that of a dense product: autograd goes through what was written."""
    generator = torch.Generator().manual_seed(0)
    mask = BlockMask.random(32, 48, 8, 0.5, generator)
    weight = BSRMatrix.from_dense(torch.randn(32, 48, generator=generator), mask)
    weight = weight.with_data(weight.data.clone().requires_grad_())
    x = torch.randn(5, 48, generator=generator).T if by_columns else torch.randn(48, 5, generator=generator)
    y = block_sparse_matmul(weight, x, kernel)
    y.mul_(3.0).add_(1.0)
    y[0] = 0.0
    y.sum().backward()
    dense = weight.to_dense().detach().requires_grad_()
    z = dense @ x
    z.mul_(3.0).add_(1.0)
    z[0] = 0.0
    z.sum().backward()
    blocks = BSRMatrix.from_dense(dense.grad, mask).data
    assert torch.allclose(weight.data.grad, blocks, atol=1e-5)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "kept", [torch.eye(3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)]
)
def test_gradcheck(kept: torch.Tensor, kernel: str, by_columns: bool) -> None:
    bsr, x = operands(kept, 2, 3)
    leaf, x = bsr.data.clone().requires_grad_(), (x.T.contiguous() if by_columns else x).requires_grad_()

    def product(data: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return block_sparse_matmul(bsr.with_data(data), columns.T if by_columns else columns, kernel)

    assert torch.autograd.gradcheck(product, (leaf, x))
    assert torch.autograd.gradgradcheck(product, (leaf, x))


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_operators_keep_torchs_rules(kernel: str, transposed: bool, by_columns: bool) -> None:
    bsr, x = operands(torch.eye(2, 3, dtype=torch.bool), 2, 3)
    grad = torch.randn(4, 3, dtype=torch.float64)
    if by_columns:
        x, grad = x.T.contiguous().T, grad.T.contiguous().T
    leaf = bsr.data.requires_grad_()
    torch.library.opcheck(dsd, (leaf, *bsr.index, (grad if transposed else x).requires_grad_(), transposed, kernel))
    torch.library.opcheck(sdd, (grad.requires_grad_(), x.requires_grad_(), *bsr.index, kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_output_has_the_memory_order_of_the_input(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    assert block_sparse_matmul(bsr, x, kernel).is_contiguous()
    assert block_sparse_matmul(bsr, x.T.contiguous().T, kernel).T.is_contiguous()


def test_which_kernel_runs_can_be_asked_and_demanded() -> None:
    cpu = torch.device("cpu")
    assert kernel_for("auto", torch.float64, cpu) == KERNELS[0]
    assert kernel_for("torch", torch.float64, cpu) == "torch"
    assert kernel_for("auto", torch.float16, cpu) == "torch"
    with pytest.raises(ValueError, match="no float16 kernel"):
        kernel_for("native", torch.float16, cpu)
    with pytest.raises(ValueError, match="unknown kernel 'fast'; accepted: auto, cuda, native, torch"):
        kernel_for("fast", torch.float32, cpu)


def test_without_a_compiler_torch_runs_and_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("no C++ compiler found")

    monkeypatch.setattr(native_library, "require_kernel", refuse)
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    torch.testing.assert_close(block_sparse_matmul(bsr, x), bsr.to_dense() @ x)
    with pytest.raises(ValueError, match="no C"):
        block_sparse_matmul(bsr, x, "native")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_on_torch(dtype: torch.dtype) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    output = block_sparse_matmul(bsr.with_data(bsr.data.to(dtype)), x.to(dtype), "torch")
    torch.testing.assert_close(output.double(), bsr.to_dense() @ x, rtol=0.1, atol=0.1)


def test_strided_operands() -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    for strided in (x.T.contiguous().T, x.repeat(1, 2)[:, ::2], x[:, :1].expand(-1, 5)):
        torch.testing.assert_close(block_sparse_matmul(bsr, strided), bsr.to_dense() @ strided)


def test_operands_that_do_not_fit_are_refused() -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    with pytest.raises(ValueError, match=r"must be \[12, n\]"):
        block_sparse_matmul(bsr, x[:8])
    with pytest.raises(ValueError, match="one type"):
        block_sparse_matmul(bsr, x.float())
    with pytest.raises(ValueError, match="on one device"):
        block_sparse_matmul(bsr, x.to("meta"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_columns_leave_no_gradient(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 0)
    leaf = bsr.data.clone().requires_grad_()
    output = block_sparse_matmul(bsr.with_data(leaf), x, kernel)
    assert output.shape == (8, 0)
    torch.full((bsr.data.numel(),), torch.nan, dtype=torch.float64)  # what uninitialised memory may hold
    assert torch.equal(torch.autograd.grad(output.sum(), leaf)[0], torch.zeros_like(leaf))


def test_with_data_shares_what_the_pattern_tells() -> None:
    bsr, _ = operands(torch.eye(2, 3, dtype=torch.bool), 4, 5)
    other = bsr.with_data(2 * bsr.data)
    assert other.index is bsr.index and torch.equal(other.to_dense(), 2 * bsr.to_dense())


def by_optimizer(parameter: torch.nn.Parameter, kind: type[torch.optim.Optimizer]) -> None:
    """Fused: torch does not count that change."""
    parameter.grad = torch.ones_like(parameter)
    kind([parameter], lr=0.5, fused=True).step()


def by_exchange(parameter: torch.nn.Parameter) -> None:
    parameter.data = 3 * parameter.data


CHANGES: dict[str, Callable[[torch.nn.Parameter], object]] = {
    "fused AdamW": lambda parameter: by_optimizer(parameter, torch.optim.AdamW),
    "fused SGD": lambda parameter: by_optimizer(parameter, torch.optim.SGD),
    "in place": lambda parameter: parameter.detach().mul_(2.0),
    ".data": lambda parameter: parameter.data.mul_(2.0),
    "numpy": lambda parameter: np.multiply(parameter.detach().numpy(), 2.0, out=parameter.detach().numpy()),
    "dlpack": lambda parameter: torch.from_dlpack(parameter.detach()).mul_(2.0),
    "set_": lambda parameter: parameter.data.set_(3 * parameter.detach()),
    "exchange": by_exchange,  # as an optimizer's averages are put in for evaluation, and taken out again
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_are_read_anew_however_they_changed(kernel: str, how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    into, recurrent = (
        BSRMatrix.from_dense(torch.randn(64, cols, generator=generator) / 4, BlockMask.full(64, cols, 8))
        for cols in (24, 16)
    )
    parameters = [torch.nn.Parameter(weight.data.clone()) for weight in (into, recurrent)]
    into, recurrent = into.with_data(parameters[0]), recurrent.with_data(parameters[1])
    x, inputs = torch.randn(24, 20, generator=generator), torch.randn(3, 5, 24, generator=generator)
    for change in (None, CHANGES[how], CHANGES[how]):
        for parameter in parameters if change else ():
            change(parameter)
        with torch.no_grad():
            y, (found, _) = (
                block_sparse_matmul(into, x, kernel),
                block_sparse_lstm(inputs, None, into, recurrent, kernel=kernel),
            )
            plain = [weight.to_dense() for weight in (into, recurrent)]
            zeros = torch.zeros(1, 5, 16)
            wanted = torch.lstm(inputs, (zeros, zeros), plain, False, 1, 0.0, False, False, False)[0]
        torch.testing.assert_close(y, plain[0] @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_native
def test_a_frozen_matrix_is_packed_once_and_an_ordinary_one_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    packs, pack = [], native_products.pack
    monkeypatch.setattr(native_products, "pack", lambda *given, **named: packs.append(given) or pack(*given, **named))
    weight = BSRMatrix.from_dense(
        torch.randn(32, 48), BlockMask.random(32, 48, 8, 0.5, torch.Generator().manual_seed(0))
    )
    x, frozen, wanted = torch.randn(48, 20), weight.freeze(), weight.to_dense()
    for matrix, expected_packs in ((weight, 1), (weight, 2), (frozen, 3), (frozen, 3)):
        torch.testing.assert_close(block_sparse_matmul(matrix, x), wanted @ x)
        assert len(packs) == expected_packs
    with torch.inference_mode():
        torch.testing.assert_close(block_sparse_matmul(frozen, x), wanted @ x)
        torch.testing.assert_close(block_sparse_matmul(weight.freeze(), x), wanted @ x)
    assert len(packs) == 4
    for other in (frozen.unfreeze(), frozen.with_data(frozen.data)):
        assert not other.frozen and torch.equal(other.data, weight.data)
        torch.testing.assert_close(block_sparse_matmul(other, x), wanted @ x)
    assert len(packs) == 6 and frozen.freeze() is frozen and frozen.frozen and not weight.frozen


@needs_native
@pytest.mark.parametrize("kernel", ["auto", "native"])
@pytest.mark.parametrize("shape", [(5, 48), (1, 48), (2, 3, 48), (1, 1, 48)], ids=str)
def test_a_product_that_is_asked_for_again_is_looked_up(
    shape: tuple[int, ...], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever names the kernel, and of activations in any number of dimensions: neither is looked at again."""
    prepared: list[object] = []
    frozen_dsd = native_products.frozen_dsd
    monkeypatch.setattr(native_products, "frozen_dsd", lambda *given: prepared.append(given) or frozen_dsd(*given))
    weight = BSRMatrix.from_dense(
        torch.randn(32, 48), BlockMask.random(32, 48, 8, 0.5, torch.Generator().manual_seed(0))
    )
    frozen, first, second = weight.freeze(), torch.randn(shape), torch.randn(shape)
    for _ in range(3):
        for x in (first, second):
            y = block_sparse_linear(x, frozen, kernel=kernel)
            torch.testing.assert_close(y, F.linear(x, weight.to_dense()), rtol=1e-4, atol=1e-4)
            assert y.is_contiguous()
    assert len(prepared) == 1
    block_sparse_linear(first.requires_grad_(), frozen, kernel=kernel).sum().backward()
    assert first.grad is not None and len(prepared) == 1, "not where a gradient is wanted"


def saved(matrix: BSRMatrix) -> BSRMatrix:
    """As torch.load brings it back."""
    file = io.BytesIO()
    torch.save(matrix, file)
    file.seek(0)
    found: BSRMatrix = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), saved])
def test_a_copy_of_a_frozen_matrix_is_frozen(copied: Callable[[BSRMatrix], BSRMatrix]) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    frozen = bsr.freeze()
    block_sparse_matmul(frozen, x)
    other = copied(frozen)
    assert other.frozen and other is not frozen and not copied(bsr).frozen
    for each in (other, copied(bsr)):
        assert torch.equal(each.data, bsr.data) and each.dtype == bsr.dtype and each.shape == bsr.shape
        torch.testing.assert_close(block_sparse_matmul(each, x), bsr.to_dense() @ x)


def public(matrix: object) -> Iterator[Tensor]:
    """Every tensor that a public attribute hands out, inside tuples, lists and dictionaries too."""
    for name in dir(matrix):
        if not name.startswith("_"):
            yield from (each for each in tree_leaves(getattr(matrix, name)) if isinstance(each, Tensor))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_public_attribute_of_a_frozen_matrix_can_be_written_through(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    frozen, wanted = bsr.freeze(), bsr.to_dense()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(block_sparse_matmul(frozen, x, kernel), wanted @ x)
            torch.testing.assert_close(frozen.unfreeze().data, bsr.data)
        found = list(public(frozen))
        assert len(found) > 8
        for each in found:
            each.data.fill_(2**20)


@pytest.mark.parametrize("kernel", KERNELS)
def test_freezing_inside_a_transform(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    wanted = bsr.to_dense() @ x

    def loss(x: Tensor) -> Tensor:  # of what was there before
        return block_sparse_matmul(bsr.freeze(), x, kernel)

    torch.testing.assert_close(torch.func.vmap(loss)(torch.stack([x, x])), torch.stack([wanted, wanted]))
    torch.testing.assert_close(torch.func.vjp(loss, x)[1](wanted)[0], bsr.to_dense().T @ wanted)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (x,))[1], wanted)

    def own(data: Tensor) -> Tensor:  # of what the transform is about
        return block_sparse_matmul(bsr.with_data(data).freeze(), x, kernel)

    torch.testing.assert_close(torch.func.vjp(own, bsr.data)[0], wanted)
    with pytest.raises(ValueError, match=r"^data must be a plain tensor, got one of vmap's$"):
        torch.func.vmap(own)(torch.stack([bsr.data] * 2))
    with FakeTensorMode() as mode:
        assert bsr.freeze().frozen
        with pytest.raises(ValueError, match=r"^data must be a plain tensor, got a FakeTensor$"):
            bsr.with_data(mode.from_tensor(bsr.data)).freeze()
    with pytest.raises(ValueError, match=r"^data is on the device meta"):
        BSRMatrix(bsr.data.to("meta"), bsr.indices.to("meta"), bsr.indptr.to("meta"), bsr.shape).freeze()


@pytest.mark.parametrize("kernel", KERNELS)
def test_freezing_inside_a_compiled_or_exported_function(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    wanted = BSRMatrix(bsr.data, bsr.indices, bsr.indptr, bsr.shape).to_dense() @ x

    class Layer(torch.nn.Module):
        def __init__(self, matrix: BSRMatrix) -> None:
            super().__init__()
            self.matrix = matrix

        def forward(self, x: Tensor) -> Tensor:
            return block_sparse_matmul(self.matrix.freeze(), x, kernel)

    exported = torch.export.export(Layer(bsr), (x,), strict=False)  # the pattern was never looked at before
    torch.testing.assert_close(exported.module()(x), wanted)
    torch._dynamo.reset()
    for fullgraph in (False, True):
        compiled = torch.compile(Layer(bsr), backend="eager", fullgraph=fullgraph)
        torch.testing.assert_close(compiled(x), wanted)


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_changes_a_frozen_matrix(kernel: str, how: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    wanted, parameter = bsr.to_dense(), torch.nn.Parameter(bsr.data.clone())
    frozen = bsr.with_data(parameter).freeze()
    handed_out = torch.nn.Parameter(frozen.data)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(block_sparse_matmul(frozen, x, kernel), wanted @ x)
        assert torch.equal(frozen.to_dense(), wanted) and torch.equal(frozen.data, bsr.data)
        CHANGES[how](parameter)
        CHANGES[how](handed_out)
    assert (frozen.nnzb, frozen.block_size, frozen.grid) == (bsr.nnzb, bsr.block_size, bsr.grid)
    assert (frozen.values_nbytes, frozen.index_nbytes) == (bsr.values_nbytes, bsr.index_nbytes)
    assert torch.equal(frozen.mask.kept, bsr.mask.kept)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_pass_through_a_frozen_matrix_and_do_not_reach_it(kernel: str) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    frozen = bsr.with_data(bsr.data.requires_grad_()).freeze()
    y = block_sparse_matmul(frozen, x.requires_grad_(), kernel)
    y.sum().backward()
    torch.testing.assert_close(x.grad, bsr.to_dense().detach().T @ torch.ones_like(y))
    assert bsr.data.grad is None and not frozen.data.requires_grad and not frozen.to_dense().requires_grad


@needs_native
def test_an_lstm_without_gradients_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [
        BSRMatrix.from_dense(torch.randn(4 * 48, into), BlockMask.random(4 * 48, into, 8, 0.5, generator))
        for into in (32, 48)
    ]
    for steps, batch in ((1, 1), (9, 5), (200, 1), (3, 130)):
        x = torch.randn(steps, batch, 32)
        with torch.no_grad():
            y, (h, c) = block_sparse_lstm(x, None, *weights)
        trained = block_sparse_lstm(x.requires_grad_(), None, *weights)
        for got, wanted in zip((y, h, c), (trained[0], *trained[1]), strict=True):
            assert torch.equal(got, wanted)


def as_slice(x: Tensor) -> Tensor:
    """Columns of a wider table."""
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


def by_columns(x: Tensor) -> Tensor:
    """The last two dimensions the other way round in memory."""
    return x.mT.contiguous().mT if x.ndim > 1 else x


def expanded(x: Tensor) -> Tensor:
    """All rows of it are the first one."""
    return x[:1].expand(x.shape) if x.ndim > 1 else x


AS_HELD = {each.__name__: each for each in (Tensor.clone, as_slice, by_columns, expanded)}


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(
    kept=st.sampled_from([torch.eye(2, 3), torch.zeros(2, 3), torch.ones(2, 1), torch.ones(1, 1)]),
    size=st.sampled_from([1, 4, 5]),
    leading=st.sampled_from([(), (0,), (1,), (6,), (2, 3), (2, 0, 3), (1, 1)]),
    held=st.sampled_from(sorted(AS_HELD)),
    biased=st.booleans(),
)
def test_fuzz_linear_against_torchs(
    kernel: str, kept: Tensor, size: int, leading: tuple[int, ...], held: str, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = BlockMask(kept > 0, size)
    weight = BSRMatrix.from_dense(normal(*mask.shape), mask)
    data, bias = weight.data.clone().requires_grad_(), normal(mask.shape[0]).requires_grad_() if biased else None
    x = AS_HELD[held](normal(*leading, mask.shape[1])).requires_grad_()
    leaves = [each for each in (x, data, bias) if each is not None]
    y = block_sparse_linear(x, weight.with_data(data), bias, kernel)
    wanted = F.linear(x, weight.with_data(data).to_dense(), bias)
    assert y.shape == wanted.shape and (y.is_contiguous() or not x.is_contiguous())
    grad = normal(*wanted.shape)
    torch.testing.assert_close(y, wanted)
    found = torch.autograd.grad(y, leaves, grad)
    for one, other in zip(found, torch.autograd.grad(wanted, leaves, grad), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(block_sparse_linear(x, weight.freeze(), bias, kernel), wanted)


@needs_native
def test_linear_copies_neither_x_nor_y(monkeypatch: pytest.MonkeyPatch) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    taken: list[Tensor] = []
    multiply = native_products.dsd
    monkeypatch.setattr(native_products, "dsd", lambda packed, x: taken.append(x) or multiply(packed, x))
    for held, strides in ((x.T.contiguous(), (8, 1)), (x.T, (1, 5))):
        y = block_sparse_linear(held, bsr, torch.ones(8, dtype=torch.float64), "native")
        assert taken.pop().data_ptr() == held.data_ptr() and y.stride() == strides and not taken


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_what_linear_gives_may_be_written_to(kernel: str, biased: bool, leading: tuple[int, ...]) -> None:
    """As by an activation in place."""
    bsr, _ = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    bias = torch.randn(8, dtype=torch.float64) if biased else None
    x = torch.randn(*leading, 12, dtype=torch.float64)
    leaf, dense = bsr.data.clone().requires_grad_(), bsr.to_dense().requires_grad_()
    torch.relu_(block_sparse_linear(x, bsr.with_data(leaf), bias, kernel)).sum().backward()
    torch.relu_(F.linear(x, dense, bias)).sum().backward()
    torch.testing.assert_close(leaf.grad, BSRMatrix.from_dense(dense.grad, bsr.mask).data)
    given = torch.func.grad(lambda x: torch.relu_(block_sparse_linear(x, bsr, bias, kernel)).sum())(x)
    torch.testing.assert_close(given, torch.func.grad(lambda x: torch.relu(F.linear(x, bsr.to_dense(), bias)).sum())(x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("biased", [False, True])
def test_second_derivatives_and_transforms_of_linear(kernel: str, biased: bool) -> None:
    bsr, x = operands(torch.eye(2, 3, dtype=torch.bool), 2, 3)
    bias = torch.randn(4, dtype=torch.float64) if biased else None

    def linear(data: Tensor, x: Tensor, *bias: Tensor) -> Tensor:
        return block_sparse_linear(x, bsr.with_data(data), *(bias or [None]), kernel=kernel)

    given = [each for each in (bsr.data, x.T.contiguous(), bias) if each is not None]
    assert torch.autograd.gradgradcheck(linear, [each.requires_grad_() for each in given])
    many = torch.func.vmap(linear, in_dims=(None, 0, None)[: len(given)])(given[0], given[1][None], *given[2:])
    torch.testing.assert_close(many[0], linear(*given))
    dense = torch.func.jvp(lambda x: F.linear(x, bsr.to_dense(), bias), (given[1],), (given[1],))[1]
    torch.testing.assert_close(torch.func.jvp(lambda x: linear(given[0], x, *given[2:]), *[(given[1],)] * 2)[1], dense)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_linear_under_autocast_is_of_torchs_type(kernel: str, kind: torch.dtype) -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    bsr, x, bias = bsr.with_data(bsr.data.to(kind)), x.T.contiguous().to(kind), torch.ones(8, dtype=kind)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = block_sparse_linear(x, bsr, bias, kernel), F.linear(x, bsr.to_dense(), bias)
    assert y.dtype == wanted.dtype == (torch.bfloat16 if kind == torch.float32 else kind)
    torch.testing.assert_close(y, wanted, rtol=0.02, atol=0.05)


def test_linear_refuses_in_one_line_what_does_not_fit() -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    x, bias = x.T.contiguous(), torch.ones(8, dtype=torch.float64)
    for said, operand in {
        r"the weight is \(8, 12\), so x must be \[\.\.\., 12\], got \(5, 11\)": (x[:, 1:], bsr),
        r"so x must be \[\.\.\., 12\], got \(\)": (x[0, 0], bsr),
        "x must be a tensor, got ndarray": (x.numpy(), bsr),
        "x is torch.float32; they must be of one type": (x.float(), bsr),
        r"bias must be torch.float64 \[8\] on cpu, got torch.float64 \[7\]": (x, bsr, bias[1:]),
        "bias must be torch.float64 .* got torch.float32": (x, bsr, bias.float()),
        "bias must be a tensor, got float": (x, bsr, 1.0),
        "weight must be a BSRMatrix, got Tensor; BSRMatrix.from_dense makes one": (x, bsr.to_dense()),
    }.items():
        with pytest.raises(ValueError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
            block_sparse_linear(*operand)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor_of_torchs_or_scipys_gets_a_line_that_says_what_takes_it() -> None:
    bsr, x = operands(torch.ones(8, 2, dtype=torch.bool), 4, 5)
    inputs, bias = torch.zeros(3, 2, 8, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    theirs = bsr.to_dense()
    for weight, taker in (
        (bsr.to_torch(), "from_torch makes one of it"),
        (theirs.to_sparse_coo(), r"from_torch makes one of its to_sparse_bsr\(\(b, b\)\)"),
        (theirs.to_sparse_csr(), r"from_torch makes one of its to_sparse_bsr\(\(b, b\)\)"),
        (bsr.to_scipy(), r"from_scipy makes one of its tobsr\(\(b, b\)\)"),
    ):
        for name, call in {
            "weight": lambda weight=weight: block_sparse_matmul(weight, x),
            "weight ": lambda weight=weight: block_sparse_linear(x.T, weight),
            "weight_hh": lambda weight=weight: block_sparse_lstm(inputs, None, bsr, weight, bias),
            "weight_ih": lambda weight=weight: block_sparse_lstm(inputs, None, weight, bsr, bias),
        }.items():
            with pytest.raises(ValueError, match=rf"\A{name.strip()} must be a[^\n]*BSRMatrix.{taker}\Z"):
                call()


def laid_out(x: Tensor) -> list[Tensor]:
    """The same values in several places and memory orders."""
    rows, columns = x.contiguous(), x.T.contiguous().T
    wide = torch.randn(x.shape[0], 2 * x.shape[1], dtype=x.dtype)
    wide[:, ::2] = x
    return [rows, columns, wide[:, ::2], torch.cat([x[:1], x])[1:], torch._neg_view(-rows)]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_a_frozen_weight_are_the_same_when_they_are_repeated(dtype: torch.dtype) -> None:
    mask = BlockMask.random(48, 64, 16, 0.5, torch.Generator().manual_seed(0))
    weight = BSRMatrix.from_dense(torch.randn(48, 64, dtype=dtype), mask)
    frozen, dense, threads = weight.freeze(), weight.to_dense(), torch.get_num_threads()
    try:
        for n in (1, 3, 20, 1, 20):
            x = torch.randn(64, n, dtype=dtype)
            for each in laid_out(x):
                torch.set_num_threads(1 + n % 2)
                first, *more = (block_sparse_matmul(frozen, each) for _ in range(3))
                torch.testing.assert_close(first, dense @ x)
                assert all(torch.equal(first, one) and first.stride() == one.stride() for one in more)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_a_repeated_product_sees_gradients_autocast_modes_and_what_is_no_memory() -> None:
    mask = BlockMask.random(32, 32, 8, 0.5, torch.Generator().manual_seed(0))
    frozen = BSRMatrix.from_dense(torch.randn(32, 32), mask).freeze()
    x, dense = torch.randn(32, 4), frozen.to_dense()
    for _ in range(2):
        block_sparse_matmul(frozen, x)
    (grad,) = torch.autograd.grad(block_sparse_matmul(frozen, x.requires_grad_()).sum(), x)
    torch.testing.assert_close(grad, dense.T @ torch.ones(32, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert block_sparse_matmul(frozen, x.detach()).dtype == torch.bfloat16
    batch = torch.randn(3, 32, 4)
    found = torch.func.vmap(lambda one: block_sparse_matmul(frozen, one))(batch)
    torch.testing.assert_close(found, dense @ batch)
    _, tangent = torch.func.jvp(lambda one: block_sparse_matmul(frozen, one), (x.detach(),), (torch.ones(32, 4),))
    torch.testing.assert_close(tangent, dense @ torch.ones(32, 4))
    lost = x.detach().clone()
    lost.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="no memory"):
        block_sparse_matmul(frozen, lost)
    with pytest.raises(ValueError, match="on one device"):
        block_sparse_matmul(frozen, x.detach().to("meta"))
    with pytest.raises(ValueError, match="of one type"):
        block_sparse_matmul(frozen, x.detach().double())


@needs_native
def test_a_frozen_weight_keeps_something_of_so_many_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_products, "MOST_SHAPES", 5)
    mask = BlockMask.random(32, 32, 8, 0.5, torch.Generator().manual_seed(0))
    frozen = BSRMatrix.from_dense(torch.randn(32, 32), mask).freeze()
    dense = frozen.to_dense()
    for n in [*range(1, 20), 3, 3]:
        x = torch.randn(32, n)
        torch.testing.assert_close(block_sparse_matmul(frozen, x), dense @ x)
        kept = frozen._operand.__dict__["_packed"]
        assert len(kept) <= 6
        assert all(len(each.plans) <= 5 for each in kept.values() if isinstance(each, native_products.Packed))


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)), size=st.integers(1, 8),
    leading=st.lists(st.integers(0, 4), min_size=1, max_size=3), threads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_repeated_rows_are_torchs(grid: tuple[int, int], size: int, leading: list[int], threads: int) -> None:
    """A linear product of a frozen weight again and again, each into memory of its own, of every edge of the shapes."""
    rows, cols = (size * each for each in grid)
    mask = BlockMask.random(rows, cols, size, 0.3, torch.Generator().manual_seed(size))
    weight = BSRMatrix.from_dense(torch.randn(rows, cols, dtype=torch.float64), mask).freeze()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for call in range(4):
            x = torch.randn(*leading, cols, dtype=torch.float64)
            x = torch._neg_view(x) if call == 3 else x
            found.append((block_sparse_linear(x, weight), torch.nn.functional.linear(x, weight.to_dense())))
        for y, wanted in found:
            torch.testing.assert_close(y, wanted)
            assert y.is_contiguous() and y.shape == wanted.shape
    finally:
        torch.set_num_threads(before)


@needs_native
def test_a_repeated_product_has_a_buffer_of_its_own_in_every_thread() -> None:
    weight = BSRMatrix.from_dense(torch.randn(64, 64), BlockMask.full(64, 64, 16)).freeze()
    xs = [torch.randn(48, 64) for _ in range(8)]
    wanted = [torch.nn.functional.linear(x, weight.to_dense()) for x in xs]
    block_sparse_linear(xs[0], weight)

    def many(which: int) -> bool:
        return all(torch.allclose(block_sparse_linear(xs[which], weight), wanted[which], atol=1e-4) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(8)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("by", ["matmul", "linear", "operator", "sampled"])
@pytest.mark.parametrize("trained", [0, 1])
def test_a_factor_whose_gradient_alone_is_wanted_may_be_changed(trained: int, by: str, kernel: str) -> None:
    """As of dense products: each factor is needed for the gradient of the other, and for no more."""
    mask = BlockMask(torch.tensor([[True, False, True], [False, True, True]]), 2)
    weight = BSRMatrix.from_dense(torch.randn(4, 6, dtype=torch.float64), mask)
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "matmul": lambda data, x: block_sparse_matmul(weight.with_data(data), x, kernel),
        "linear": lambda data, x: block_sparse_linear(x.mT, weight.with_data(data), None, kernel),
        "operator": lambda data, x: dsd(data, *weight.index, x, False, kernel),
        "sampled": lambda grad, x: sdd(grad, x, *weight.index, kernel),
    }
    factors = [torch.randn(4, 3).double() if by == "sampled" else weight.data, torch.randn(6, 3).double()]
    leaf = factors[trained].requires_grad_()
    wanted = torch.autograd.grad(products[by](*factors).sum(), leaf)
    own = [each * 1 for each in factors]
    y = products[by](*own)
    with torch.no_grad():
        own[trained].add_(1)
    assert torch.equal(*torch.autograd.grad(y.sum(), leaf, retain_graph=True), *wanted)
    with torch.no_grad():
        own[1 - trained].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), leaf)
