"""Differentiable LSTM layers by our CUDA kernels, on an emulated GPU.

Against torch.nn.LSTM in float64 and against the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from emulated_gpu import emulated_gpu
from lstm_case import DTYPES, assert_near, tolerance
from lstm_work import NAMES, Results, Work, assert_close, same
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import choose
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda.lstm_plan import Device
from kernels.cuda.products import Pattern
from kernels.launches import applied, settings_of
from kernels.native import lstm as native_lstm
from kernels.ops import block_sparse_lstm, lstm_kernel, lstm_refusal

ELEMENTS = [name for name in DTYPES if name != "Tf32"]
INPUTS = ["same blocks", "other blocks", "dense"]


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with emulated_gpu():
        yield


@pytest.fixture
def tf32() -> Iterator[None]:
    """Allowed, and afterwards as before."""
    with applied(settings_of("float32", "tf32")):
        yield


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_outputs_and_gradients_against_float64(element: str, inputs: str) -> None:
    work = Work(element, inputs)
    found = work.computed()
    work.check(found)
    assert same(found, work.computed())
    with torch.no_grad():
        y, (h, c) = work.run(work.operands)
    assert same({"y": y, "h": h, "c": c}, {name: found[name] for name in "yhc"})


@pytest.mark.parametrize("inputs", INPUTS)
def test_against_plain_torch(inputs: str) -> None:
    work = Work("Float32", inputs, batch=40)
    assert_close(work.computed(), work.computed("torch"))


@pytest.mark.usefixtures("by_steps")
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_launch_a_step(element: str) -> None:
    work = Work(element)
    assert lstm_kernel(work.recurrent, 5).endswith(f"{element}, a launch a step")
    found = work.computed()
    work.check(found)
    assert same(found, work.computed())


@pytest.mark.usefixtures("tf32")
def test_tf32_where_torch_allows_it() -> None:
    work = Work("Tf32")
    assert "sm_90a Tf32, " in lstm_kernel(work.recurrent, 5)
    work.check(work.computed())


def check_interleaved() -> None:
    """Two layers of one pattern, both forward passes before the first way back."""
    works = [Work("Bfloat16") for _ in range(2)]
    works[1].recurrent = works[0].recurrent
    works[1].operands |= {name: 0.5 * works[1].operands[name] for name in ("x", "recurrent", "h0")}
    alone = [work.computed() for work in works]
    leaves = [work.leaves() for work in works]
    outputs = [work.run(each) for work, each in zip(works, leaves, strict=True)]
    with torch.no_grad():
        works[0].run(works[0].operands)
    for place in (0, 1):
        y, (h, c) = outputs[place]
        found = {"y": y, "h": h, "c": c} | works[place].backward((y, h, c), leaves[place])
        assert same(found, alone[place])
    assert not torch.equal(alone[0]["y"], alone[1]["y"])


def test_passes_may_interleave() -> None:
    check_interleaved()


@pytest.mark.usefixtures("by_steps")
def test_passes_may_interleave_step_by_step() -> None:
    check_interleaved()


def test_a_way_back_may_be_gone_twice() -> None:
    work = Work("Float16")
    leaves = work.leaves()
    y, _ = work.run(leaves)
    grads = [torch.autograd.grad(y, list(leaves.values()), work.grads[0], retain_graph=True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("wanted", NAMES)
def test_gradients_of_one_operand_alone(wanted: str) -> None:
    work = Work("Float32")
    leaf = work.operands[wanted].clone().requires_grad_()
    y, (h, c) = work.run(work.operands | {wanted: leaf})
    (found,) = torch.autograd.grad((y, h, c), leaf, work.grads)
    assert torch.equal(found, work.computed()[f"grad_{wanted}"])


@pytest.mark.parametrize("output", [0, 1, 2])
def test_gradients_of_one_output_alone(output: int) -> None:
    work, leaves = Work("Float32"), None
    found = []
    for kernel, dtype in (("cuda", torch.float32), ("torch", torch.float64)):
        leaves = work.leaves(dtype)
        y, (h, c) = work.run(leaves, kernel)
        found.append(torch.autograd.grad((y, h, c)[output], list(leaves.values()), work.grads[output].to(dtype)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", ["same blocks", "dense"])
def test_gradients_by_finite_differences(inputs: str) -> None:
    """Along a direction.

    (f(v + e d) - f(v - e d)) / 2e, the function by the kernel itself, is the gradient's product with d.
    """
    work = Work("Float32", inputs)
    leaves = work.leaves()

    def value(operands: Results) -> Tensor:
        y, (h, c) = work.run(operands)
        return sum(
            ((each * grad).double().sum() for each, grad in zip((y, h, c), work.grads, strict=True)), torch.zeros(())
        )

    grads = dict(zip(leaves, torch.autograd.grad(value(leaves), list(leaves.values())), strict=True))
    generator, epsilon = torch.Generator().manual_seed(4), 3e-2
    with torch.no_grad():
        for name, each in work.operands.items():
            way = torch.nn.functional.normalize(torch.randn(each.shape, generator=generator).flatten(), dim=0).view(
                each.shape
            )
            ahead, behind = (value(work.operands | {name: each + sign * epsilon * way}) for sign in (1, -1))
            wanted = float((grads[name] * way).double().sum())
            assert abs(float(ahead - behind) / (2 * epsilon) - wanted) <= 5e-3 * max(1.0, abs(wanted)), name


@pytest.mark.parametrize("inputs", ["same blocks", "dense"])
def test_forward_mode_of_the_operator_against_float64(inputs: str) -> None:
    """As it is called in a graph that was exported: by the steps of kernels.steps, their products by our kernels."""
    work = Work("Float32", inputs)
    given = {name: each[0] if name in ("h0", "c0") else each for name, each in work.operands.items()}
    if work.dense is not None:
        given["x"] = given["x"] @ work.dense.T
    operands = tuple(given.values())
    tangents = tuple(map(torch.cos, operands))
    ran = list[Any]()

    def operator(*given: Tensor) -> tuple[Tensor, ...]:
        x, h0, c0, into, recurrent, *biases = given
        listed = [] if work.dense is not None else [into, *work.into.index]
        states, h, c, *kept = cuda_lstm.lstm(x, *biases, h0, c0, [recurrent, *work.recurrent.index], listed)
        ran.extend(each.isnan().all() for each in kept)  # by the formula: nobody may go back from there
        return states, h, c

    def wanted(*given: Tensor) -> tuple[Tensor, ...]:
        x, h0, c0, into, recurrent, *biases = given
        weight = work.into.with_data(into) if work.dense is None else torch.eye(4 * 48, dtype=torch.float64)
        layer = x, (h0[None], c0[None]), weight, work.recurrent.with_data(recurrent), *biases
        y, (h, c) = block_sparse_lstm(*layer, kernel="torch")
        return torch.cat([h0[None], y]), h[0], c[0]

    found = torch.func.jvp(operator, operands, tangents)
    expected = torch.func.jvp(wanted, *(tuple(each.double() for each in both) for both in (operands, tangents)))
    assert len(ran) == 2 and all(ran)
    for name, got, value in zip(("value", "tangent"), found, expected, strict=True):
        for each, other in zip(got, value, strict=True):
            assert_near(each, other, tolerance(work.layer, "Float32"), name)


def test_the_operators_keep_torchs_rules() -> None:
    work, checks = Work("Float32"), ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = work.leaves()
    x, h0, c0, into, recurrent, *biases = leaves.values()
    lists = [recurrent, *work.recurrent.index], [into, *work.into.index]
    projected = torch.randn(3, 5, 4 * 48).requires_grad_()
    for inputs, other in ((x, lists[1]), (projected, [])):
        given = inputs, *biases, h0[0], c0[0], lists[0], other
        torch.library.opcheck(cuda_lstm.lstm, given, test_utils=checks)
        states, _, _, cells, gates = cuda_lstm.lstm(
            *(each if isinstance(each, list) else each.detach() for each in given)
        )
        kept = [states, cells, gates, c0[0], *([inputs] if other else [])]
        back = (
            work.grads[0],
            None,
            None,
            [each.detach() for each in kept],
            lists[0],
            other,
            [True, True, True, bool(other)],
        )
        torch.library.opcheck(cuda_lstm.lstm_backward, back, test_utils=("test_schema", "test_faketensor"))


def test_the_operators_states_begin_with_h0() -> None:
    """Also on the way back: whose gradient of the first row is one of h0."""
    work = Work("Float32")
    leaves = work.leaves()
    x, h0, c0, into, recurrent, *biases = leaves.values()
    lists = [recurrent, *work.recurrent.index], [into, *work.into.index]
    states, *_ = cuda_lstm.lstm(x, *biases, h0[0], c0[0], *lists)
    assert torch.equal(states[:1], h0) and torch.equal(states[1:], work.run(leaves)[0])
    first = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(2))
    grad = torch.autograd.grad(states, h0, torch.cat([first, work.grads[0]]))[0]
    torch.testing.assert_close(grad, first + torch.autograd.grad(work.run(leaves)[0], h0, work.grads[0])[0])


@pytest.mark.parametrize("inputs", ["same blocks", "dense"])
def test_the_way_back_reads_the_states_where_they_lie(inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were once copied, h0 before them, at each way back."""
    work, read = Work("Float32", inputs), list[int]()
    sdd = Pattern.sdd
    monkeypatch.setattr(Pattern, "sdd", lambda own, grad, x: read.append(x.data_ptr()) or sdd(own, grad, x))
    leaves = work.leaves()
    y, (h, c) = work.run(leaves)
    work.backward((y, h, c), leaves)
    assert y[0].data_ptr() - h.numel() * 4 in read


@pytest.mark.parametrize("inputs", ["same blocks", "dense"])
def test_compiled_layers_are_the_same(inputs: str) -> None:
    work = Work("Float32", inputs)
    wanted, leaves = work.computed(), work.leaves()
    y, (h, c) = torch.compile(work.run, backend="aot_eager")(leaves)
    assert same({"y": y, "h": h, "c": c} | work.backward((y, h, c), leaves), wanted)


def test_other_steps_and_batches_one_after_another() -> None:
    first = Work("Bfloat16", batch=5, steps=3)
    for batch, steps in ((5, 1), (17, 4), (5, 3)):
        work = Work("Bfloat16", batch=batch, steps=steps)
        work.recurrent = first.recurrent.with_data(work.recurrent.data)
        work.check(work.computed())


def test_strided_and_misaligned_operands() -> None:
    work = Work("Float32")
    plain = work.computed()
    for name in ("x", "h0", "recurrent", "bias_ih"):
        each = work.operands[name]
        wide = torch.zeros(each.numel() + 1)[1:].view(each.shape).copy_(each)
        transposed = each.mT.contiguous().mT if each.ndim > 1 else each.repeat_interleave(2)[::2]
        for other in (wide, transposed):
            work.operands[name] = other
            leaves = {key: value.detach().requires_grad_() for key, value in work.operands.items()}
            y, (h, c) = work.run(leaves)
            assert same({"y": y, "h": h, "c": c} | work.backward((y, h, c), leaves), plain), name
        work.operands[name] = each


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_full_and_empty_patterns(sparsity: float) -> None:
    work = Work("Float32")
    work.recurrent = BSRMatrix.from_dense(
        work.recurrent.to_dense(), BlockMask.random(4 * 48, 48, 16, sparsity, torch.Generator().manual_seed(0))
    )
    work.operands["recurrent"] = work.recurrent.data
    work.check(work.computed())


def test_states_and_biases_may_be_missing() -> None:
    work = Work("Float32")
    x, bias = work.operands["x"], torch.zeros(4 * 48)
    zeros = torch.zeros(1, 5, 48)
    wanted, _ = block_sparse_lstm(x, (zeros, zeros), work.into, work.recurrent, bias, bias, "torch")
    for biases in ((), (bias,), (None, bias)):
        y, _ = block_sparse_lstm(x, None, work.into, work.recurrent, *biases, kernel="cuda")
        torch.testing.assert_close(y, wanted)


def test_which_kernel_runs_is_told() -> None:
    work = Work("Bfloat16")
    assert lstm_kernel(work.recurrent, 5) == "cuda lstm sm_90a Bfloat16, all steps in one cooperative launch"
    assert lstm_kernel(work.recurrent, 5, "torch") == "torch, step by step"
    with emulated_gpu(86, multiprocessors=1):
        assert lstm_kernel(work.recurrent, 4000) == "cuda lstm sm_86 Bfloat16, a launch a step"


def test_a_layer_that_does_not_fit_goes_step_by_step_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work("Float32")
    wanted = work.computed()
    with emulated_gpu():
        monkeypatch.setattr(cuda_lstm, "device_of", lambda _: Device(132, 2048, 1024))
        reason = lstm_refusal(work.recurrent, 5)
        assert reason is not None and "48 hidden units at batch 5 keeps more columns" in reason and "\n" not in reason
        assert lstm_kernel(work.recurrent, 5) == f"cuda products and torch gates, step by step: {reason}"
        found = work.computed()
        assert_close(found, wanted)


def test_input_blocks_that_cuda_does_not_know() -> None:
    work = Work("Float32")
    mask = BlockMask.random(4 * 48, 24, 12, 0.5, torch.Generator().manual_seed(0))
    into, x = BSRMatrix.from_dense(torch.randn(mask.shape) / 6, mask), torch.randn(3, 5, 24)
    y, _ = block_sparse_lstm(x, None, into, work.recurrent)
    wanted, _ = block_sparse_lstm(x, None, into, work.recurrent, kernel="torch")
    torch.testing.assert_close(y, wanted)
    with pytest.raises(ValueError, match="not 12"):
        block_sparse_lstm(x, None, into, work.recurrent, kernel="cuda")


def test_an_input_weight_of_another_type_is_refused() -> None:
    work = Work("Float32")
    for weight in (work.into.with_data(work.into.data.double()), work.into.to_dense().bfloat16()):
        with pytest.raises(ValueError, match="the input weight"):
            block_sparse_lstm(work.operands["x"], None, weight, work.recurrent, kernel="cuda")


def test_nothing_waits_for_the_gpu_once_a_layer_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph's capture demands: no value of a tensor is asked for, and nothing is prepared."""
    work = Work("Bfloat16", "other blocks")
    work.computed()

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{name} waits for the GPU")

    for name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, partial(refuse, name))
    monkeypatch.setattr(choose, "prepare_by", partial(refuse, "prepare_by"))
    monkeypatch.setattr(cuda_lstm, "_prepare", partial(refuse, "_prepare"))
    leaves = work.leaves()
    y, (h, c) = work.run(leaves)
    work.backward((y, h, c), leaves)
    with torch.no_grad():
        work.run(work.operands)


def test_native_is_not_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_lstm, "forward", None)
    work = Work("Float32")
    leaves = work.leaves()
    assert work.run(leaves, "auto")[0].grad_fn is not None
