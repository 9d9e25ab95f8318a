"""What only a GPU can show of the differentiable layer; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.backends.cuda import BACKEND
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.cuda.device import unavailable
from kernels.ops import block_sparse_lstm, block_sparse_matmul, lstm_kernel
from kernels.problem import PASSES, LstmProblem

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_there_and_back_runs_on_the_current_stream(dtype: torch.dtype) -> None:
    """Also where that is being captured: a replay must write what was poisoned."""
    mask = BlockMask.random(256, 128, 16, 0.8, torch.Generator().manual_seed(0))
    weight = BSRMatrix.from_dense(torch.randn(mask.shape, dtype=dtype, device="cuda") / 16, mask)
    x, grad = (torch.randn(20, width, dtype=dtype, device="cuda").mT for width in (128, 256))
    leaves = weight.data.requires_grad_(), x.requires_grad_()

    def there_and_back(kernel: str = "cuda") -> list[Tensor]:
        y = block_sparse_matmul(weight, x, kernel)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    expected, stream = there_and_back(), torch.cuda.Stream()
    for found, wanted in zip(expected, there_and_back("torch"), strict=True):
        assert (found - wanted).abs().max() <= (1e-3 if dtype == torch.float32 else 3e-2) * wanted.abs().max()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        found = there_and_back()
    stream.synchronize()
    assert all(torch.equal(each, wanted) for each, wanted in zip(found, expected, strict=True))
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        captured = there_and_back()
    for each in captured:
        each.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(each, wanted) for each, wanted in zip(captured, expected, strict=True))


@pytest.mark.parametrize(("batch", "how"), [(20, "all steps in one cooperative launch"), (30000, "a launch a step")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_there_and_back_is_captured_as_a_graph(dtype: torch.dtype, batch: int, how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [BlockMask.random(4 * 256, width, 16, 0.8, generator) for width in (128, 256)]
    weights = [BSRMatrix.from_dense(torch.randn(mask.shape, dtype=dtype, device="cuda") / 16, mask) for mask in masks]
    x, grad = (torch.randn(5, batch, width, dtype=dtype, device="cuda") for width in (128, 256))
    leaves = [each.requires_grad_() for each in (x, *(weight.data for weight in weights))]

    def there_and_back(kernel: str = "cuda") -> list[Tensor]:
        into, recurrent = (weight.with_data(leaf) for weight, leaf in zip(weights, leaves[1:], strict=True))
        y, _ = block_sparse_lstm(leaves[0], None, into, recurrent, kernel=kernel)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    assert lstm_kernel(weights[1], batch).endswith(how)
    expected = there_and_back()
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for found, wanted in zip(expected, there_and_back("torch"), strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    with torch.cuda.stream(torch.cuda.Stream()):
        there_and_back()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        captured = there_and_back()
    for each in captured:
        each.fill_(float("nan"))
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(found, wanted) for found, wanted in zip(captured, expected, strict=True))


@pytest.mark.parametrize("scope", ["all", "weight_hh"])
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize(("batch", "how"), [(20, "cooperative launch; "), (30000, "replayed as a CUDA graph")])
def test_a_layer_is_right_as_it_is_timed(batch: int, how: str, passes: str, scope: str) -> None:
    """Also where a launch a step, its way back by autograd, was captured."""
    problem = LstmProblem(128, 256, batch, 5, 16, 0.8, passes, scope, "bfloat16", "cuda")
    launch = BACKEND.prepare(problem)
    assert how in launch.kernel
    for _ in range(2):
        assert check(launch, problem)[1] is None
