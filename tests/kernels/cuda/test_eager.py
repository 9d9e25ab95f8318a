"""Past torch's dispatcher where nobody watches, through it where somebody does.

The same results and rules, on an emulated GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from emulated_gpu import emulated_gpu
from lstm_work import Work, same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda.products import Pattern, pattern_for
from kernels.ops import block_sparse_matmul
from kernels.tensors.tracing import watched


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with emulated_gpu():
        yield


class Seen(TorchDispatchMode):
    """The operators of ours that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "block_sparse_bench":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def operands(n: int = 5) -> tuple[BSRMatrix, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    mask = BlockMask.random(32, 16, 8, 0.5, generator)
    weight, x = (torch.randn(shape, generator=generator) for shape in (mask.shape, (n, 16)))
    return BSRMatrix.from_dense(weight, mask), x.mT


def test_a_mode_sees_the_operators_there_and_back() -> None:
    weight, x = operands()
    alone = block_sparse_matmul(weight, x, "cuda")
    leaves = weight.data.requires_grad_(), x.requires_grad_()
    grads = torch.autograd.grad(block_sparse_matmul(weight, x, "cuda").sum(), leaves)
    with Seen() as seen:
        y = block_sparse_matmul(weight, x, "cuda")
    assert seen.names == ["dsd"] and torch.equal(y, alone)
    for given in (y, block_sparse_matmul(weight, x, "cuda")):
        with Seen() as seen:
            found = torch.autograd.grad(given.sum(), leaves)
        assert sorted(seen.names) == ["dsd", "sdd"]
        assert all(torch.equal(one, other) for one, other in zip(found, grads, strict=True))


def test_a_mode_sees_the_layer_there_and_back() -> None:
    work = Work("Float32")
    alone, leaves = work.computed(), work.leaves()
    y, (h, c) = work.run(leaves)
    with Seen() as seen:
        found = {"y": y, "h": h, "c": c} | work.backward((y, h, c), leaves)
    assert seen.names == ["cuda_lstm_backward"] and same(found, alone)
    with Seen() as seen:
        assert same(work.computed(), alone)
    assert seen.names == ["cuda_lstm", "cuda_lstm_backward"]


def test_fake_tensors_get_the_shape_and_order_of_real_ones() -> None:
    weight, x = operands()
    real = block_sparse_matmul(weight, x, "cuda")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = block_sparse_matmul(weight.with_data(mode.from_tensor(weight.data)), mode.from_tensor(x), "cuda")
    assert fake.shape == real.shape and fake.stride() == real.stride() and fake.dtype == real.dtype


def test_many_at_once_by_vmap() -> None:
    weight, x = operands()
    several = torch.stack([x, 2 * x])
    found = torch.func.vmap(lambda each: block_sparse_matmul(weight, each, "cuda"))(several)
    for one, each in zip(found, several, strict=True):
        torch.testing.assert_close(one, block_sparse_matmul(weight, each, "cuda"))
    y = block_sparse_matmul(weight, x.requires_grad_(), "cuda")
    (rows,) = torch.autograd.grad(y, x, torch.stack([torch.ones_like(y), -torch.ones_like(y)]), is_grads_batched=True)
    torch.testing.assert_close(rows[0], -rows[1])


def test_gradients_of_gradients() -> None:
    weight, x = operands()
    found = []
    for kernel in ("cuda", "torch"):
        leaves = weight.data.clone().requires_grad_(), x.clone().requires_grad_()
        y = block_sparse_matmul(weight.with_data(leaves[0]), leaves[1], kernel)
        firsts = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in firsts), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_values_changed_before_the_way_back_are_noticed() -> None:
    weight, x = operands()
    y = block_sparse_matmul(weight, x.requires_grad_(), "cuda")
    weight.data.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_kept_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = operands()
    y = block_sparse_matmul(weight, x, "cuda")
    with pytest.raises(ValueError, match="no float64 kernel"):
        block_sparse_matmul(weight.with_data(weight.data.double()), x.double(), "cuda")
    with pytest.raises(ValueError, match="one type"):
        block_sparse_matmul(weight, x.double(), "cuda")
    monkeypatch.setattr(Pattern, "dsd", None)
    for kernel in ("native", "torch"):
        torch.testing.assert_close(block_sparse_matmul(weight, x, kernel), y)
    with pytest.raises(TypeError):
        block_sparse_matmul(weight, x)


def test_what_is_prepared_goes_with_the_pattern_and_into_no_copy() -> None:
    weight, x = operands()
    block_sparse_matmul(weight, x, "cuda")
    other = weight.with_data(2 * weight.data)
    assert pattern_for(other) is pattern_for(weight) and other.plans is weight.plans
    again = copy.deepcopy(weight)
    assert again.plans == {} and torch.equal(
        block_sparse_matmul(again, x, "cuda"), block_sparse_matmul(weight, x, "cuda")
    )


def test_who_watches() -> None:
    x = torch.ones(2)
    assert not watched(x, torch.nn.Parameter(x))
    with Seen():
        assert watched(x)
    with torch.autograd.forward_ad.dual_level():
        assert watched(x)
    assert torch.func.vmap(lambda each: each * watched(each))(x).tolist() == [1.0, 1.0]
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert watched(fake) and watched(x, fake)


def test_a_layer_refuses_many_gradients_at_once() -> None:
    """As an operator with lists of tensors does, whose values torch cannot take one by one."""
    work = Work("Float32")
    for seen in (nullcontext(), Seen()):
        leaves = work.leaves()
        with seen:
            y, _ = work.run(leaves)
        several = torch.stack([work.grads[0], -work.grads[0]])
        with pytest.raises(ValueError, match=r"^an LSTM layer goes back with one gradient at a time, .*$"):
            torch.autograd.grad(y, list(leaves.values()), several, is_grads_batched=True)


@pytest.mark.parametrize("watched", [False, True])
def test_checkpointed_layers_are_the_same(watched: bool) -> None:
    work = Work("Float32")
    leaves = work.leaves()
    with Seen() if watched else nullcontext():
        wanted = torch.autograd.grad(work.run(leaves)[0].cos().sum(), list(leaves.values()))
        y = checkpoint(lambda: work.run(leaves)[0].cos(), use_reentrant=False)
        found = torch.autograd.grad(y.sum(), list(leaves.values()))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_tangents_and_gradients_by_transforms() -> None:
    weight, x = operands()
    columns = torch.stack([x, -x])
    for kernel in ("cuda", "torch"):

        def run(data: torch.Tensor, x: torch.Tensor, kernel: str = kernel) -> torch.Tensor:
            return block_sparse_matmul(weight.with_data(data), x, kernel)

        def cost(data: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return run(data, x).square().sum()

        tangent = torch.func.jvp(run, (weight.data, x), (weight.data.cos(), x.sin()))[1]
        samples = torch.func.vmap(torch.func.grad(cost, (0, 1)), (None, 0))(weight.data, columns)
        if kernel == "cuda":
            found = tangent, *samples
    for one, other in zip(found, (tangent, *samples), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_layer_has_tangents_and_refuses_a_second_derivative() -> None:
    work = Work("Float32")
    found = [
        torch.func.jvp(
            lambda x, kernel=kernel: work.run(work.operands | {"x": x}, kernel)[0],
            (work.operands["x"],),
            (work.operands["x"].sin(),),
        )[1]
        for kernel in ("cuda", "torch")
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    leaves = work.leaves()
    (first,) = torch.autograd.grad(work.run(leaves)[0].square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(ValueError, match="second derivatives of an LSTM layer: accepted: kernel = 'torch'"):
        first.sum().backward()


@pytest.mark.parametrize("inputs", ["same blocks", "dense"])
@pytest.mark.parametrize("wanted", ["x", "h0", "bias_ih"])
def test_a_layer_refuses_a_second_derivative_of_what_is_linear_in_its_outputs(inputs: str, wanted: str) -> None:
    """Then only the layer itself knows that its gradients change with its operands."""
    work = Work("Float32", inputs)
    leaf = work.operands[wanted].clone().requires_grad_()
    (first,) = torch.autograd.grad(work.run(work.operands | {wanted: leaf})[0].sum(), leaf, create_graph=True)
    with pytest.raises(ValueError, match="second derivatives of an LSTM layer: accepted: kernel = 'torch'"):
        torch.autograd.grad(first.sum(), leaf)
