"""The linear layer on its two paths, against torch.nn.Linear with the same masked weight."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from torch import nn

from bench.models.linear import LinearLayer
from bench.training.paths import missing_kernel
from kernels.blockmask import BlockMask

NO_KERNEL = missing_kernel(layer=False)
pytestmark = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
INPUTS, SIZE, BATCH = 24, 16, 5
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def mask_of(sparsity: float, block_size: int = 8, seed: int = 0) -> BlockMask:
    return BlockMask.random(SIZE, INPUTS, block_size, sparsity, torch.Generator().manual_seed(seed))


def twins(mask: BlockMask, sparse: bool = True) -> tuple[LinearLayer, nn.Linear]:
    """Our layer and torch's, with equal weights that are zero where `mask` is empty."""
    torch.manual_seed(0)
    ours, theirs = LinearLayer(INPUTS, SIZE), nn.Linear(INPUTS, SIZE)
    with torch.no_grad():
        ours.weight.mul_(mask.expand())
    theirs.load_state_dict(ours.state_dict())
    ours.follow({"weight": mask} if sparse else {})
    return ours, theirs


def measured(layer: nn.Module, dtype: torch.dtype, *, autocast: bool = False, given: bool = True) -> list[torch.Tensor]:
    """The result and the gradients of one call. given: whether x asks for one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, INPUTS, generator=generator).to(dtype).requires_grad_(given)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(torch.randn(y.shape, generator=generator).to(y.dtype))
    return [y, *(parameter.grad for parameter in layer.parameters()), *([x.grad] if given else [])]


def test_parameters_names_and_initial_values_are_torchs() -> None:
    torch.manual_seed(3)
    theirs = nn.Linear(INPUTS, SIZE).state_dict()
    torch.manual_seed(3)
    ours = LinearLayer(INPUTS, SIZE).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("given", [True, False], ids=["x too", "weights alone"])
@pytest.mark.parametrize("block_size", [1, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sparse", [True, False])
def test_values_and_gradients_are_torchs(
    sparse: bool, dtype: torch.dtype, sparsity: float, block_size: int, given: bool
) -> None:
    mask = mask_of(sparsity, block_size)
    ours, theirs = (layer.to(dtype) for layer in twins(mask, sparse))
    found, wanted = measured(ours, dtype, given=given), measured(theirs, dtype, given=given)
    if sparse:
        wanted[1].mul_(mask.expand())
        assert (found[1][~mask.expand()] == 0).all()
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        atol = TOLERANCE[dtype] * max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("sparse", [True, False])
def test_autocast_rounds_to_bfloat16_and_leaves_float64_alone(sparse: bool) -> None:
    mask = mask_of(0.5)
    ours, theirs = twins(mask, sparse)
    exact = measured(theirs, torch.float32)
    exact[1].mul_(mask.expand() if sparse else 1.0)
    for got, expected in zip(measured(ours, torch.float32, autocast=True), exact, strict=True):
        assert got.dtype == torch.float32 and not torch.equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03 * float(expected.detach().abs().max()))
    found, wanted = (measured(layer.double(), torch.float64, autocast=True) for layer in (ours, theirs))
    wanted[1].mul_(mask.expand() if sparse else 1.0)
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_type_that_no_kernel_has_is_computed_as_the_dense_path_is(dtype: torch.dtype) -> None:
    mask = mask_of(0.5)
    ours, theirs = twins(mask)
    exact = measured(theirs, torch.float32)
    exact[1].mul_(mask.expand())
    for got, expected in zip(measured(ours.to(dtype), dtype), exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, rtol=0.03, atol=0.03 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("sparse", [True, False])
def test_the_time_inside_the_layer_is_counted(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first layer, too, whose x asks for no gradient."""
    ours, _ = twins(mask_of(0.5), sparse)
    multiply = LinearLayer._multiply

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):  # noqa: ARG004
            time.sleep(0.03)
            return y.view_as(y)

        @staticmethod
        def backward(ctx, grad):  # noqa: ARG004
            time.sleep(0.05)
            return grad

    measured(ours, torch.float32)
    assert ours.seconds > 0.0
    monkeypatch.setattr(LinearLayer, "_multiply", lambda *given: Slow.apply(multiply(*given)))
    for given in (True, False):
        ours.seconds, began = 0.0, time.perf_counter()
        measured(ours, torch.float32, given=given)
        assert 0.08 <= ours.seconds <= time.perf_counter() - began
    with torch.no_grad():
        before = ours.seconds
        ours(torch.randn(2, INPUTS))
        assert ours.seconds == before
    ours.requires_grad_(False)
    assert not ours(torch.randn(2, INPUTS)).requires_grad and ours.seconds > before
    x = torch.randn(2, INPUTS, requires_grad=True)
    ours(x).sum().backward()  # through a frozen layer
    assert x.grad is not None


def test_evaluation_is_on_the_sparse_path_too_and_a_copy_is_on_its_own() -> None:
    mask = mask_of(0.5)
    ours, theirs = twins(mask)
    x = torch.randn(4, 3, INPUTS)
    expected = theirs(x)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.sparse and torch.equal(copied(x), ours(x)) and copied.stopwatch is not ours.stopwatch
        ours.seconds = copied.seconds = 0.0
        copied(x).sum().backward()
        assert ours.weight.grad is None and ours.seconds == 0.0 < copied.seconds
        copied.follow({})
        assert ours.sparse and not copied.sparse
    with torch.no_grad():
        ours.weight[~mask.expand()] = 1e6  # what no kernel reads
        torch.testing.assert_close(ours(x), expected)
        ours.follow({})
        assert not torch.allclose(ours(x), expected)


def test_gradients_of_two_calls_are_added() -> None:
    ours, theirs = twins(mask := mask_of(0.5))
    for layer in (ours, theirs):
        x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(2))
        (layer(x).square().sum() + layer(2 * x).sum()).backward()
        layer(x).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad * mask.expand())
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_masks_of_anything_else_are_refused() -> None:
    layer = LinearLayer(INPUTS, SIZE)
    with pytest.raises(ValueError, match=r"^masks: there are those of weight_hh; accepted: weight$"):
        layer.follow({"weight_hh": mask_of(0.5)})
    with pytest.raises(ValueError, match=r"^weight is \[16, 24\], and the mask it follows \[8, 8\]$"):
        layer.follow({"weight": BlockMask.full(8, 8, 8)})
    assert not layer.sparse
