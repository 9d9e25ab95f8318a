"""The LSTM layer on its two paths, against torch.nn.LSTM with the same masked weights."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from twins import BLOCK, INPUTS, SCOPES, SIZE, close, masks, train, twins

from bench.models.layers import LSTMLayer
from bench.models.patterns import Pattern
from bench.pruning.lasso import Lasso
from bench.training.paths import missing_kernel
from kernels.blockmask import BlockMask
from kernels.tensors import dense

NO_KERNEL = missing_kernel()
pytestmark = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")


def test_parameters_names_and_initial_values_are_torchs():
    torch.manual_seed(3)
    theirs = nn.LSTM(INPUTS, SIZE).state_dict()
    torch.manual_seed(3)
    ours = LSTMLayer(INPUTS, SIZE).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scope", SCOPES)
def test_outputs_states_and_gradients_are_torchs(scope: str, sparsity: float):
    wanted = masks(SCOPES[scope], sparsity)
    ours, theirs = twins(wanted)
    results = []
    for layer in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(7, 5, INPUTS, generator=generator).requires_grad_()
        state = tuple(torch.randn(1, 5, SIZE, generator=generator) for _ in range(2))
        y, (h, c) = layer(x, state)
        (y * torch.randn(y.shape, generator=generator)).sum().backward()
        results.append([y, h, c, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for name, mask in wanted.items():
        getattr(theirs, f"{name}_l0").grad.mul_(mask.expand())
        assert (getattr(ours, f"{name}_l0").grad[~mask.expand()] == 0).all()
    for got, expected in zip(*results, strict=True):
        close(got, expected)


def test_evaluation_is_on_the_sparse_path_too():
    wanted = masks(SCOPES["all"], 0.5)
    ours, theirs = twins(wanted)
    with torch.no_grad():
        x = torch.randn(4, 3, INPUTS)
        expected = theirs(x)[0]
        ours.weight_hh_l0[~wanted["weight_hh"].expand()] = 1e6  # what no kernel reads
        close(ours(x)[0], expected)
        ours.follow({})
        assert not torch.allclose(ours(x)[0], expected)


def test_gradients_are_added_as_torch_adds_them():
    wanted = masks(SCOPES["all"], 0.5)
    ours, _ = twins(wanted)
    alone = []
    for seed in (1, 2):
        ours.zero_grad()
        train(ours, seed)
        alone.append({name: parameter.grad.clone() for name, parameter in ours.named_parameters()})
    for set_to_none in (True, False):
        ours.zero_grad(set_to_none=set_to_none)
        train(ours, 1)
        train(ours, 2)
        for name, parameter in ours.named_parameters():
            close(parameter.grad, alone[0][name] + alone[1][name])


@pytest.mark.parametrize("penalty_first", [True, False])
def test_another_gradient_of_the_weight_is_added(penalty_first: bool):
    ours, _ = twins(masks(SCOPES["all"], 0.5))
    lasso = Lasso("subgradient", 0.1, BLOCK)
    weights = [ours.weight_ih_l0, ours.weight_hh_l0]
    train(ours, 1)
    expected = [weight.grad.clone() for weight in weights]
    ours.zero_grad()
    lasso.penalty(weights).backward()
    expected = [grad + weight.grad for grad, weight in zip(expected, weights, strict=True)]
    ours.zero_grad()
    x = torch.randn(3, 2, INPUTS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    parts = [lambda: lasso.penalty(weights), lambda: ours(x)[0].square().sum()]
    first, second = (part() for part in (parts if penalty_first else parts[::-1]))
    (first + second).backward()
    for weight, wanted in zip(weights, expected, strict=True):
        close(weight.grad, wanted)


def test_a_tighter_mask_leaves_nothing_of_the_old_gradient():
    wide = masks(SCOPES["all"], 0.25)
    ours, _ = twins(wide)
    train(ours, 1)
    ours.zero_grad()
    tight = {kind: BlockMask(mask.kept & masks((kind,), 0.5, seed=4)[kind].kept, BLOCK) for kind, mask in wide.items()}
    with torch.no_grad():
        for kind, mask in tight.items():
            getattr(ours, f"{kind}_l0").mul_(mask.expand())
    ours.follow(tight)
    train(ours, 2)
    for kind, mask in tight.items():
        grad = getattr(ours, f"{kind}_l0").grad
        assert (grad[~mask.expand()] == 0).all() and (grad != 0).any()


def test_an_index_is_made_only_where_a_mask_changed(monkeypatch: pytest.MonkeyPatch):
    made = []
    init = Pattern.__init__
    monkeypatch.setattr(
        Pattern, "__init__", lambda self, weight, mask, gates: made.append(mask) or init(self, weight, mask, gates)
    )
    wanted = masks(SCOPES["all"], 0.5)
    ours, _ = twins(wanted)
    ours.follow(dict(wanted))
    ours.follow({**wanted, "weight_hh": BlockMask(wanted["weight_hh"].kept.clone(), BLOCK)})
    assert len(made) == 3
    assert ours.patterns["weight_ih"].matrix.with_data(ours.patterns["weight_ih"].matrix.data).index is (
        ours.patterns["weight_ih"].matrix.index
    )


BY = {"y": (0,), "h": (1,), "c": (2,), "all": (0, 1, 2)}  # which results the loss is made of


@pytest.mark.parametrize("sparse", [True, False])
def test_the_time_inside_the_layer_is_counted(sparse: bool, monkeypatch: pytest.MonkeyPatch):
    ours, _ = twins(masks(SCOPES["all"], 0.5))
    if not sparse:
        ours.follow({})
    multiply = LSTMLayer._multiply

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *results):  # noqa: ARG004
            time.sleep(0.03)
            return tuple(each.view_as(each) for each in results)

        @staticmethod
        def backward(ctx, *grads):  # noqa: ARG004
            time.sleep(0.05)
            return grads

    def slowed(self, x, state):
        y, (h, c) = multiply(self, x, state)
        y, h, c = Slow.apply(y, h, c)
        return y, (h, c)

    train(ours, 1)
    monkeypatch.setattr(LSTMLayer, "_multiply", slowed)
    for given in ("x", "the weights", "the state"):
        for by in BY.values():
            x = torch.randn(3, 2, INPUTS, requires_grad=given == "x")
            state = 2 * (torch.randn(1, 2, SIZE, requires_grad=given == "the state"),) if given == "the state" else None
            ours.requires_grad_(given != "the state")
            ours.seconds = 0.0
            began = time.perf_counter()
            y, (h, c) = ours(x, state)
            sum((y, h, c)[each].sum() for each in by).backward()
            assert 0.08 <= ours.seconds <= time.perf_counter() - began
    ours.requires_grad_(False)
    assert not ours(torch.randn(2, 2, INPUTS))[0].requires_grad
    with torch.no_grad():
        before = ours.seconds
        ours(torch.randn(2, 2, INPUTS))
        assert ours.seconds == before


def test_a_backward_pass_without_an_end_leaves_nothing_to_the_next():
    ours, _ = twins(masks(SCOPES["all"], 0.5))
    y, _ = ours(torch.randn(3, 2, INPUTS, requires_grad=True))
    torch.autograd.grad(y.sum(), ours.weight_hh_l0, retain_graph=True)  # never comes to x
    time.sleep(0.3)
    ours.seconds = 0.0
    y.sum().backward()
    assert 0 < ours.seconds < 0.3


def test_states_are_detached_in_place_as_those_of_torchs_layer():
    layer = LSTMLayer(INPUTS, SIZE)
    y, (h, c) = layer(torch.randn(3, 2, INPUTS))
    h.detach_()
    c.detach_()
    y.sum().backward()
    assert not h.requires_grad and layer.weight_hh_l0.grad is not None


def test_a_result_that_is_overwritten_is_refused_as_that_of_torchs_layer():
    for layer in twins(masks(SCOPES["all"], 0.5)):
        y, _ = layer(torch.randn(3, 2, INPUTS))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.mul_(2.0).sum().backward()


def measured(layer: nn.LSTM, dtype: torch.dtype, autocast: bool) -> list[torch.Tensor]:
    """Results and gradients of one call, x and the state of type `dtype`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 5, INPUTS, generator=generator).to(dtype).requires_grad_()
    state = tuple(torch.randn(1, 5, SIZE, generator=generator).to(dtype) for _ in range(2))
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, (h, c) = layer(x, state)
    (y.sum() + c.sum()).backward()
    return [y, h, c, x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("sparse", [True, False])
def test_autocast_leaves_float64_alone(sparse: bool):
    ours, theirs = twins(wanted := masks(SCOPES["all"], 0.5))
    ours.follow(wanted if sparse else {})
    results = [measured(layer.double(), torch.float64, autocast=True) for layer in (ours, theirs)]
    for kind, mask in wanted.items() if sparse else ():
        getattr(theirs, f"{kind}_l0").grad.mul_(mask.expand())
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", ["autocast", "half", "bfloat16"])
def test_a_type_that_no_kernel_has_is_computed_as_the_dense_path_is(scope: str, way: str):
    ours, theirs = twins(wanted := masks(SCOPES[scope], 0.5))
    exact = measured(theirs, torch.float32, autocast=False)
    dtype = torch.float32 if way == "autocast" else getattr(torch, way)
    found = measured(ours.to(dtype), dtype, autocast=way == "autocast")
    for name, mask in wanted.items():
        exact[4 + ("weight_ih", "weight_hh").index(name)].mul_(mask.expand())
    for got, expected in zip(found, exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, rtol=0.03, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize("kinds", [("weight_ih",), ("weight_hh", "weight_hx"), ("weight_hh", "bias_hh")])
def test_masks_that_no_layer_follows_are_refused(kinds: tuple[str, ...]):
    layer, mask = LSTMLayer(INPUTS, SIZE), masks(("weight_hh",), 0.5)["weight_hh"]
    with pytest.raises(ValueError, match=r"^masks: .*; accepted: weight_hh, or weight_ih and weight_hh$"):
        layer.follow(dict.fromkeys(kinds, mask))
    assert not layer.sparse
    with pytest.raises(ValueError, match=r"^weight_hh_l0 is .*, and the mask it follows \[8, 8\]$"):
        layer.follow({"weight_hh": BlockMask.full(8, 8, 8)})


def test_what_a_run_computes_does_not_depend_on_which_dense_library_is_faster(monkeypatch: pytest.MonkeyPatch):
    ours, _ = twins(masks(SCOPES["weight_hh"], 0.5))
    asked: list[None] = []
    monkeypatch.setattr(dense, "onednn_linear", lambda *_: asked.append(None))
    monkeypatch.setattr(dense, "mkl_is_held_back", lambda: True)
    train(ours, 1)
    assert not asked and ours.weight_ih_l0.grad is not None
