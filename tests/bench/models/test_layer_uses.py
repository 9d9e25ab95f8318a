"""The sparse path under everything that torch allows with a layer, its weights and their gradients.

It does as torch's own layer does.
"""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint
from twins import BLOCK, INPUTS, SCOPES, SIZE, close, masks, train, twins

from bench.measuring.clocks import Stopwatch
from bench.models.layers import LSTMLayer
from bench.models.patterns import OURS
from bench.training.paths import missing_kernel
from kernels.blockmask import BlockMask
from kernels.native.library import GRAIN, SMALLEST

NO_KERNEL = missing_kernel()
pytestmark = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
WIDE = 256  # units and inputs of a layer whose gradients are large buffers
KINDS = SCOPES["all"]
assert 4 * WIDE * WIDE * 4 >= SMALLEST


def wide_twins() -> tuple[LSTMLayer, nn.LSTM, dict[str, BlockMask]]:
    wanted = masks(KINDS, 0.75, inputs=WIDE, size=WIDE)
    return *twins(wanted, WIDE, WIDE), wanted


def weights(layer: nn.Module) -> list[nn.Parameter]:
    return [getattr(layer, f"{kind}_l0") for kind in KINDS]


def gradients(layer: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in weights(layer)]  # type: ignore[misc]


def masked(found: list[Tensor], wanted: dict[str, BlockMask]) -> list[Tensor]:
    return [each * mask.expand() for each, mask in zip(found, wanted.values(), strict=True)]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_is_added_to_a_gradient_is_gone_with_it(set_to_none: bool):
    ours, theirs, wanted = wide_twins()
    for seed in range(4):
        found = []
        for layer in (ours, theirs):
            layer.zero_grad(set_to_none=set_to_none)
            train(layer, seed)
            found.append([each.clone() for each in gradients(layer)])
            with torch.no_grad():
                for each in gradients(layer):
                    each.sub_(2.0)
        for one, other in zip(found[0], masked(found[1], wanted), strict=True):
            close(one, other)


def test_a_step_that_gave_nan_leaves_nothing():
    ours, _, _ = wide_twins()
    train(ours, 1)
    before = [each.clone() for each in gradients(ours)]
    for each in gradients(ours):
        each.fill_(torch.nan)
    ours.zero_grad()
    train(ours, 1)
    assert all(torch.equal(one, other) for one, other in zip(gradients(ours), before, strict=True))


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda held: held,
    "a view": lambda held: held[4:5],
    "data": lambda held: held.data,
    "numpy": lambda held: held.numpy(),
    "storage": lambda held: held.untyped_storage(),
    "dlpack": lambda held: torch.utils.dlpack.to_dlpack(held),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_gradient_that_is_held_is_not_written_to(holder: str):
    ours, _, _ = wide_twins()
    train(ours, 1)
    held = [HOLDERS[holder](each) for each in gradients(ours)]
    places = [each.data_ptr() for each in gradients(ours)]
    for seed in (2, 3):
        ours.zero_grad()
        gc.collect()
        train(ours, seed)
        assert not {each.data_ptr() for each in gradients(ours)} & set(places)
    del held


def test_memory_of_gradients_is_used_again():
    ours, _, _ = wide_twins()
    places: list[int] = []
    for seed in range(4):
        ours.zero_grad()
        train(ours, seed)
        places += [each.data_ptr() for each in gradients(ours)]
    assert len(set(places)) <= 4 and not any(place % GRAIN for place in places)


def test_a_weight_of_two_layers_gets_both_gradients():
    ours, theirs, wanted = wide_twins()
    first, its_twin = copy.deepcopy(ours), copy.deepcopy(theirs)
    first.follow({kind: BlockMask.full(*mask.shape, BLOCK) for kind, mask in wanted.items()})  # one with more blocks
    first.weight_ih_l0, first.weight_hh_l0 = ours.weight_ih_l0, ours.weight_hh_l0
    x = torch.randn(3, 2, WIDE)
    theirs(its_twin(x)[0])[0].square().sum().backward()
    expected = [one + other for one, other in zip(masked(gradients(theirs), wanted), gradients(its_twin), strict=True)]
    for _ in range(3):
        ours.zero_grad()
        ours(first(x)[0])[0].square().sum().backward()
        for one, two in zip(gradients(ours), expected, strict=True):
            close(one, two)


def test_a_gradient_is_an_ordinary_tensor():
    ours, _, _ = wide_twins()
    y, _ = ours(torch.randn(3, 2, WIDE))
    for each, weight in zip(torch.autograd.grad(y.sum(), weights(ours)), weights(ours), strict=True):
        each.mul_(weight).sum().backward()
        assert weight.grad is not None


@pytest.mark.builds
def test_compiled_autograd_gives_the_same():
    from torch._dynamo import compiled_autograd  # two seconds of each worker of the suite

    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    train(theirs, 1)
    with compiled_autograd._enable(lambda module: torch.compile(module, backend="eager")):
        train(ours, 1)
    for one, other in zip(gradients(ours), masked(gradients(theirs), wanted), strict=True):
        close(one, other)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_gives_the_same(reentrant: bool):
    found = []
    ours, _ = twins(masks(KINDS, 0.5))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        y, (_, c) = ours(x)
        return y.square(), c

    for given in (run, lambda x: checkpoint(run, x, use_reentrant=reentrant)):
        ours.zero_grad()
        x = torch.randn(3, 2, INPUTS, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y, c = given(x)
        (y.sum() + c.sum()).backward()
        found.append([x.grad, *(each.grad for each in ours.parameters())])
    for one, other in zip(*found, strict=True):
        close(one, other)


def test_a_layer_that_follows_masks_changes_its_type():
    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    train(ours, 1)
    for change in (torch.float64, torch.float32):
        for layer in (ours, theirs):
            layer.zero_grad()
            layer.to(change)
            train(layer, 1)
        for one, other in zip(gradients(ours), masked(gradients(theirs), wanted), strict=True):
            assert one.dtype == change
            close(one, other)


def test_a_layer_that_follows_masks_changes_its_device():
    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    train(theirs, 1)
    ours.to("meta")
    with pytest.raises(ValueError, match=r"^weight_ih_l0 is on the device meta, whose tensors have no values; .*$"):
        train(ours, 1)
    ours.to_empty(device="cpu").load_state_dict(kept)
    ours.zero_grad()
    train(ours, 1)
    for one, other in zip(gradients(ours), masked(gradients(theirs), wanted), strict=True):
        close(one, other)


def test_another_weight_than_the_masks_is_refused():
    ours, _ = twins(masks(KINDS, 0.5))
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(4 * SIZE, 2 * SIZE))
    with pytest.raises(ValueError, match=rf"^weight_hh_l0 is \[{4 * SIZE}, {2 * SIZE}\], and the mask it follows .*$"):
        train(ours, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_layer_that_follows_masks(copied: Callable[[LSTMLayer], LSTMLayer]):
    ours, _ = twins(masks(KINDS, 0.5))
    train(ours, 1)
    other = copied(ours)
    assert other.sparse and other.seconds == ours.seconds
    for layer in (ours, other):
        layer.zero_grad()
        train(layer, 2)
    for one, two in zip(gradients(ours), gradients(other), strict=True):
        assert torch.equal(one, two) and one.data_ptr() != two.data_ptr()


def test_copies_hold_no_events(monkeypatch: pytest.MonkeyPatch):
    """An event of a GPU is neither copied nor pickled; a generator cannot be either."""
    event, layer = (each for each in ()), LSTMLayer(INPUTS, SIZE)
    layer.stopwatch.add(event, event)  # type: ignore[arg-type]
    monkeypatch.setattr("bench.measuring.clocks.seconds_between", lambda *_: 0.25)
    again: Stopwatch = pickle.loads(pickle.dumps(copy.deepcopy(layer))).stopwatch
    assert again.seconds == layer.seconds == 0.25


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x.new_full((1, 1), 0.25).expand(x.shape),
}


@pytest.mark.parametrize("order", ORDERS)
def test_weights_in_any_order_of_memory(order: str):
    wanted = {kind: BlockMask.full(*mask.shape, BLOCK) for kind, mask in masks(KINDS, 0.5).items()}
    ours, theirs = twins(wanted)
    for kind in KINDS:
        weight = getattr(ours, f"{kind}_l0")
        weight.data = ORDERS[order](weight.data)
        getattr(theirs, f"{kind}_l0").data.copy_(weight)
    for layer in (ours, theirs):
        train(layer, 1)
        train(layer, 2)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        close(one, other)


@pytest.mark.parametrize("order", ["transposed", "strided", "sparse"])
def test_gradients_in_any_order_of_memory_are_added_to(order: str):
    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    for layer in (ours, theirs):
        for weight in weights(layer):
            ones = torch.ones_like(weight)
            weight.grad = ones.to_sparse() if order == "sparse" else ORDERS[order](ones)
        train(layer, 1)
    expected = masked([each.to_dense() - 1 for each in gradients(theirs)], wanted)
    for one, other in zip(gradients(ours), expected, strict=True):
        close(one.to_dense() - 1, other)


def test_a_sparse_weight_is_refused():
    ours, _ = twins(masks(KINDS, 0.5))
    ours.weight_ih_l0 = nn.Parameter(ours.weight_ih_l0.detach().to_sparse())
    with pytest.raises(ValueError, match=r"^weight_ih_l0 must be a dense tensor \(torch.strided\), got .*$"):
        ours(torch.randn(3, 2, INPUTS))


def test_masks_that_are_followed_in_inference_mode_serve_training():
    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    with torch.inference_mode():
        ours.follow({kind: BlockMask(mask.kept.clone(), BLOCK) for kind, mask in wanted.items()})
    x = torch.randn(3, 2, INPUTS)
    parameters = dict(ours.named_parameters())
    (alone,) = torch.autograd.grad(ours(x)[0].square().sum(), ours.weight_hh_l0, create_graph=True)
    found = grad(lambda given: functional_call(ours, given, (x,))[0].square().sum())(parameters)
    for layer in (ours, theirs):
        layer(x)[0].square().sum().backward()
    for kind, one, other in zip(KINDS, gradients(ours), masked(gradients(theirs), wanted), strict=True):
        close(one, other)
        close(found[f"{kind}_l0"], other)
    close(alone, gradients(ours)[1])


def test_many_gradients_at_once_are_refused_or_right(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = twins(wanted := masks(KINDS, 0.5))
    x = torch.randn(3, 2, INPUTS)
    several = torch.randn(4, 3, 2, SIZE)

    def found(layer: nn.LSTM) -> list[Tensor]:
        return list(torch.autograd.grad(layer(x)[0], weights(layer), several, is_grads_batched=True))

    with pytest.raises(ValueError, match=r"^an LSTM layer goes back with one gradient at a time, .*$"):
        found(ours)
    with pytest.raises(ValueError, match=r"^an LSTM layer goes back with one gradient at a time, .*$"):
        torch.autograd.functional.jacobian(lambda x: ours(x)[0].sum(0), x, vectorize=True)
    monkeypatch.setitem(OURS, "cpu", "torch")
    one_by_one = [torch.autograd.grad(theirs(x)[0], weights(theirs), each) for each in several]
    for one, others, mask in zip(found(ours), zip(*one_by_one, strict=True), wanted.values(), strict=True):
        close(one, torch.stack(others) * mask.expand())
