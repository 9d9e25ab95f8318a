"""Dense products of ours: torch's function, or oneDNN's with the same values and derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernels.backends import loop_lstm
from kernels.blockmask import BlockMask
from kernels.modules import BlockSparseGRU, BlockSparseLSTM
from kernels.ops import block_sparse_lstm
from kernels.problem import LstmProblem
from kernels.tensors import dense
from kernels.tensors.dense import has_onednn, linear

NEEDS = pytest.mark.skipif(not has_onednn(torch.zeros(1)), reason="no oneDNN here")
LAID: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda each: each,
    "columns": lambda each: each.mT.contiguous().mT,
    "apart": lambda each: F.pad(each, (0, 3))[..., : each.shape[-1]],
}


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor whose AVX-512 MKL does not use; how many products oneDNN was asked for is counted."""
    calls: list[int] = []
    inner = dense.onednn_linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(x.numel())
        return inner(x, weight, bias)

    monkeypatch.setattr(dense, "mkl_is_held_back", lambda: True)
    monkeypatch.setattr(dense, "onednn_linear", counted)
    return calls


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@NEEDS
@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), max_size=2),
    into=st.integers(1, 40),
    out=st.integers(1, 40),
    laid=st.tuples(*[st.sampled_from(sorted(LAID))] * 2),
    biased=st.booleans(),
)
def test_onednn_is_torchs_function_with_its_derivatives(
    leading: list[int], into: int, out: int, laid: tuple[str, str], biased: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "mkl_is_held_back", lambda: True)
        x, weight, bias, grad = leaves((*leading, into), (out, into), (out,), (*leading, out))
        x = LAID[laid[0]](x) if leading else x
        operands = [x, LAID[laid[1]](weight), *([bias] if biased else [])]
        found = []
        for function in (linear, F.linear):
            given_to = [each.detach().requires_grad_() for each in operands]
            y = function(*given_to)
            grads = torch.autograd.grad(y, given_to, grad, create_graph=True)
            second = torch.autograd.grad(sum(each.square().sum() for each in grads), given_to, allow_unused=True)
            found.append([y, *grads, *(each for each in second if each is not None)])
        with torch.no_grad():
            assert torch.equal(linear(*operands), found[0][0])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_the_choice_is_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "has_mkl", True)
    for capability, maker, wanted in (
        ("AVX2", "AuthenticAMD", False), ("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        monkeypatch.setattr(dense.Path, "read_text", lambda *_, name=maker: f"vendor_id\t: {name}\n")
        assert dense.mkl_is_held_back.__wrapped__() is wanted, (capability, maker)


@NEEDS
def test_layers_with_one_dense_weight_go_by_it(held_back: list[int]) -> None:
    mask = BlockMask.random(4 * 8, 8, 4, 0.5, torch.Generator().manual_seed(0))
    layer = BlockSparseLSTM(6, 8, {"weight_hh_l0": mask})
    x = torch.randn(3, 2, 6)
    y, _ = layer(x)
    assert held_back == [x.numel()]
    recurrent = layer.weight_hh_l0.matrix
    operands = x, None, layer.weight_ih_l0, recurrent, layer.bias_ih_l0, layer.bias_hh_l0
    as_torch, _ = block_sparse_lstm(*operands, dense="torch")
    assert held_back == [x.numel()]
    torch.testing.assert_close(y, as_torch)
    grads = [torch.autograd.grad(each.square().sum(), list(layer.parameters())) for each in (y, as_torch)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown dense 'mkl'; accepted: auto, torch"):
        block_sparse_lstm(*operands, dense="mkl")
    calls = len(held_back)
    gru = BlockSparseGRU(6, 8, {"weight_hh_l0": BlockMask.full(24, 8, 4)})
    gru(x)
    assert len(held_back) == calls + 1  # the inputs of all steps


@NEEDS
def test_what_watches_sees_torchs_function(held_back: list[int]) -> None:
    x, weight = leaves((3, 4), (5, 4))
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, weight)
    torch.func.vmap(linear, (0, None))(x[None], weight)
    linear(x.double(), weight.double())
    linear(x[:0], weight)
    assert not held_back
    linear(x, weight)
    assert len(held_back) == 1


@NEEDS
def test_the_loop_has_both_libraries() -> None:
    problem = LstmProblem(8, 8, 2, 3, 4, 0.5)
    loops = [loop_lstm.loop_launch(problem, onednn) for onednn in (False, True)]
    assert [each.kernel for each in loops] == [loop_lstm.KERNEL, loop_lstm.BY_ONEDNN]
    for each in loops:
        each()
    one, other = (each.outputs() for each in loops)
    for name, result in one.items():
        torch.testing.assert_close(result, other[name], rtol=1e-4, atol=1e-5)
    assert loop_lstm.lstm_launch(problem).kernel in (loop_lstm.KERNEL, loop_lstm.BY_ONEDNN)
