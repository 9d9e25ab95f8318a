"""The LSTM layer of the models by our CUDA kernels, on an emulated GPU, against its own dense path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from emulated_gpu import emulated_gpu
from torch import Tensor

from bench.models import layers
from bench.models.layers import LSTMLayer
from kernels.backends.cuda import BACKEND
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda.products import Pattern
from kernels.cuda.recurrence import Recurrence
from kernels.problem import LstmProblem

SCOPES = {"all": ("weight_ih", "weight_hh"), "weight_hh": ("weight_hh",)}


@pytest.mark.parametrize("scope", SCOPES)
def test_both_paths_give_the_same(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.OURS, "cpu", "cuda")
    ran = []
    forward = cuda_lstm.forward
    monkeypatch.setattr(cuda_lstm, "forward", lambda *given, **more: ran.append(1) or forward(*given, **more))
    generator = torch.Generator().manual_seed(0)
    layer, widths = LSTMLayer(32, 48), {"weight_ih": 32, "weight_hh": 48}
    masks = {kind: BlockMask.random(4 * 48, widths[kind], 16, 0.5, generator) for kind in SCOPES[scope]}
    with torch.no_grad():
        for kind, mask in masks.items():
            getattr(layer, f"{kind}_l0").mul_(mask.expand())
    results = []
    with emulated_gpu():
        for chosen in ({}, masks):
            layer.follow(chosen)
            layer.zero_grad(set_to_none=True)
            x = torch.randn(3, 5, 32, generator=generator.manual_seed(1)).requires_grad_()
            y, state = layer(x)
            y, (h, c) = layer(y[..., :32], state)
            (y.square().sum() + h.sum() + c.sum()).backward()
            grads = [parameter.grad.clone() for parameter in layer.parameters()]
            results.append([y, h, c, x.grad, *grads])
            assert len(ran) == (2 if chosen else 0)
    for name, mask in masks.items():
        results[0][4 if name == "weight_ih" else 5].mul_(mask.expand())
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


OURS: list[tuple[Any, str]] = [
    *((cuda_lstm, name) for name in ("forward", "backward")),
    *((Recurrence, name) for name in ("forward", "backward")),
    *((Pattern, name) for name in ("dsd", "sdd")),
]


@contextmanager
def calls() -> Iterator[list[str]]:
    """Those of our functions inside, one after another."""
    found: list[str] = []

    def call(name: str, real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        found.append(name)
        return real(*given, **more)

    with ExitStack() as inside:
        for owner, name in OURS:
            seen = partial(call, f"{owner.__name__}.{name}", getattr(owner, name))
            inside.enter_context(mock.patch.object(owner, name, lambda *given, seen=seen, **more: seen(*given, **more)))
        yield found


def trained(problem: LstmProblem) -> dict[str, Tensor]:
    """Outputs and gradients of a model's layer, by the names of a launch's."""
    layer = LSTMLayer(problem.input_size, problem.hidden_size)
    parameters = {name: getattr(layer, f"{name}_l0") for name in (*problem.weights, *problem.biases)}
    with torch.no_grad():
        for name, value in {**problem.weights, **problem.biases}.items():
            parameters[name].copy_(value)
    layer.follow(problem.masks)
    x = problem.x.clone().requires_grad_()
    y, (h, c) = layer(x, problem.state)
    found = torch.autograd.grad(y, [x, *parameters.values()], problem.grad_y)
    grads = dict(zip(("x", *parameters), found, strict=True))
    grads |= {name: BSRMatrix.from_dense(grads[name], mask).data for name, mask in problem.masks.items()}
    return {"y": y, "h": h, "c": c} | {f"grad_{name}": grad for name, grad in grads.items()}


def check_timed_as_trained(scope: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.OURS, "cpu", "cuda")
    problem = LstmProblem(32, 48, 5, 3, 16, 0.5, scope=scope, seed=2)
    with emulated_gpu():
        launch = BACKEND.prepare(problem)
        assert how in launch.kernel
        with calls() as timed:
            launch()
        with calls() as training:
            wanted = trained(problem)
    found = launch.outputs()
    assert timed == training and timed.count("Recurrence.forward") == timed.count("Recurrence.backward") == 1
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_timed_is_what_trains(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions one after another, and the same bits, forward and backward."""
    check_timed_as_trained(scope, "all steps in one cooperative launch", monkeypatch)


@pytest.mark.usefixtures("by_steps")
@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_timed_is_what_trains_step_by_step(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_timed_as_trained(scope, "a launch a step", monkeypatch)
