"""The differentiable products and LSTM layers by our CUDA kernels, on an emulated GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from emulated_gpu import emulated_gpu
from lstm_work import Work, same

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda import products as cuda_products
from kernels.ops import block_sparse_lstm, block_sparse_matmul, dsd, kernel_for, sdd

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with emulated_gpu():
        yield


def operands(rows: int, cols: int, size: int, n: int, dtype: torch.dtype) -> tuple[BSRMatrix, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + n)
    mask = BlockMask.random(rows, cols, size, 0.5, generator)
    weight, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, cols), (cols, n)))
    return BSRMatrix.from_dense(weight, mask), x


def test_auto_is_cuda_where_it_can() -> None:
    assert kernel_for("auto", torch.bfloat16, CPU) == kernel_for("cuda", torch.float16, CPU) == "cuda"
    assert kernel_for("auto", torch.float32, CPU, block_size=12) != "cuda"
    with pytest.raises(ValueError, match="blocks of 8, 16, 32, 64, 128, not 12"):
        kernel_for("cuda", torch.float32, CPU, block_size=12)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients(dtype: torch.dtype, by_columns: bool) -> None:
    bsr, x = operands(48, 32, 16, 5, dtype)
    x = (x.T.contiguous().T if by_columns else x).requires_grad_()
    leaf = bsr.data.clone().requires_grad_()
    weight = bsr.with_data(leaf)
    output = block_sparse_matmul(weight, x, "cuda")
    assert (output.mT if by_columns else output).is_contiguous()
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = [output, *torch.autograd.grad(output, (leaf, x), grad)]
    with torch.no_grad():
        assert torch.equal(block_sparse_matmul(weight, x, "cuda"), output)
    leaf64, x64 = leaf.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    expected = weight.with_data(leaf64).to_dense() @ x64
    wanted = [expected, *torch.autograd.grad(expected, (leaf64, x64), grad.double())]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


SAID = {  # how a user may have told torch what float32 is multiplied by; True: by TF32
    "torch.backends.fp32_precision = 'tf32'": True,
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": True,
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
    "torch.backends.cuda.matmul.allow_tf32 = True": True,
    "torch.set_float32_matmul_precision('high')": True,
    "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
}


@pytest.mark.parametrize("said", SAID)
def test_float32_is_multiplied_as_torch_was_told_by_whichever_name(said: str) -> None:
    """In a process of its own: what was set by a newer name hides an older one from then on."""
    lines = [
        "import torch",
        "from kernels.cuda.products import allows_tf32",
        "from kernels.launches import applied, settings_of",
        said,
        "print(allows_tf32())",
        "for math in ('ieee', 'tf32'):",
        "    with applied(settings_of('float32', math)):",
        "        print(allows_tf32(), torch.backends.cuda.matmul.allow_tf32)",
        "print(allows_tf32())",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.split() == [str(each) for each in (SAID[said], False, False, True, True, SAID[said])], (
        done.stderr
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_keep_torchs_rules(transposed: bool) -> None:
    bsr, x = operands(32, 16, 8, 3, torch.float32)
    grad = torch.randn(32, 3)
    leaf, checks = bsr.data.requires_grad_(), ("test_schema", "test_autograd_registration", "test_faketensor")
    taken = (grad if transposed else x).requires_grad_()
    torch.library.opcheck(dsd, (leaf, *bsr.index, taken, transposed, "cuda"), test_utils=checks)
    torch.library.opcheck(sdd, (grad.requires_grad_(), x.requires_grad_(), *bsr.index, "cuda"), test_utils=checks)


def test_strided_and_misaligned_operands() -> None:
    bsr, x = operands(16, 16, 8, 6, torch.float32)
    wide = torch.zeros(6 * 16 + 1)
    misaligned = wide[1:].view(6, 16).copy_(x.T).T
    for strided in (x.repeat(1, 2)[:, ::2], x[:, :1].expand(-1, 6), misaligned):
        torch.testing.assert_close(block_sparse_matmul(bsr, strided, "cuda"), bsr.to_dense() @ strided)


def imaginary(x: torch.Tensor) -> torch.Tensor:
    """A view that torch negates when it is read."""
    return torch.complex(x, -x).conj().imag


@pytest.mark.parametrize("view", [imaginary, lambda each: torch.stack([each, each], dim=-1)[..., 0]])
def test_views_and_a_pattern_seen_through_them(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    bsr, x = operands(16, 32, 8, 6, torch.float32)
    pattern = [torch.stack([each, each + 9], dim=-1)[..., 0] for each in (bsr.indices, bsr.indptr)]
    weight = BSRMatrix(view(bsr.data), *pattern, bsr.shape)
    leaves = weight.data.detach().requires_grad_(), view(x).requires_grad_()
    y = block_sparse_matmul(weight.with_data(leaves[0]), leaves[1], "cuda")
    with torch.no_grad():
        assert torch.equal(block_sparse_matmul(weight, view(x), "cuda"), y)
    theirs = bsr.data.clone().requires_grad_(), x.clone().requires_grad_()
    wanted, grad = bsr.with_data(theirs[0]).to_dense() @ theirs[1], torch.randn(16, 6)
    torch.testing.assert_close(y, wanted)
    for one, other in zip(
        torch.autograd.grad(y, leaves, view(grad)), torch.autograd.grad(wanted, theirs, grad), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_zeros_without_memory() -> None:
    bsr, x = operands(16, 32, 8, 6, torch.float32)
    leaves = bsr.data.clone().requires_grad_(), x.clone().requires_grad_()
    y = block_sparse_matmul(bsr.with_data(leaves[0]), leaves[1], "cuda")
    zeros = torch._efficientzerotensor(y.shape)
    assert not any(bool(each.any()) for each in torch.autograd.grad(y, leaves, zeros))
    assert not block_sparse_matmul(bsr, torch._efficientzerotensor(x.shape), "cuda").any()
    assert not block_sparse_matmul(bsr.with_data(torch._efficientzerotensor(bsr.data.shape)), x, "cuda").any()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_whatever_torchs_defaults_are(device: str) -> None:
    """Plans, buffers and outputs name their device and type."""
    work = Work("Float32")
    wanted, (bsr, x) = work.computed(), operands(64, 64, 16, 5, torch.bfloat16)
    product = block_sparse_matmul(bsr, x, "cuda")
    before = torch.get_default_dtype()
    with emulated_gpu():
        torch.set_default_device(device)
        torch.set_default_dtype(torch.float64)
        try:
            work.recurrent, work.into = (
                BSRMatrix(each.data, each.indices, each.indptr, each.shape) for each in (work.recurrent, work.into)
            )
            found = work.computed()
            other = block_sparse_matmul(BSRMatrix(bsr.data, bsr.indices, bsr.indptr, bsr.shape), x, "cuda")
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(before)
    assert same(found, wanted) and torch.equal(other, product)


def test_raw_operands_that_do_not_fit_are_refused() -> None:
    bsr, x = operands(64, 64, 16, 5, torch.float32)
    for data, columns in ((bsr.data[:1], x), (bsr.data, x[:16]), (bsr.data.double(), x)):
        with pytest.raises(ValueError, match="must be"):
            dsd(data, *bsr.index, columns, False, "cuda")
    for grad in (x[:16], x[:, :1], x.double()):
        with pytest.raises(ValueError, match="must be"):
            sdd(grad, x, *bsr.index, "cuda")
    work = Work("Float32")
    given = [work.operands["x"], *work.layer.biases.values(), work.operands["h0"][0], work.operands["c0"][0]]
    lists = [[weight.data, *weight.index] for weight in (work.recurrent, work.into)]
    for place, each in enumerate(given):
        short = [*given[:place], each[..., :-1].contiguous(), *given[place + 1 :]]
        with pytest.raises(ValueError, match="must be"):
            cuda_lstm.lstm(*short, *lists)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_multiply(n: int) -> None:
    empty = BSRMatrix.from_dense(torch.zeros(16, 32), BlockMask(torch.zeros(2, 4, dtype=torch.bool), 8))
    output = block_sparse_matmul(empty, torch.randn(32, n), "cuda")
    assert torch.equal(output, torch.zeros(16, n))
    assert cuda_products.pattern_for(empty).sdd(torch.randn(16, n), torch.randn(32, n)).shape == (0, 8, 8)


@pytest.mark.parametrize("dense_input", [False, True])
def test_a_layer_against_torchs(dense_input: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [BlockMask.random(4 * 32, into, 8, 0.5, generator) for into in (16, 32)]
    into, recurrent = (BSRMatrix.from_dense(torch.randn(mask.shape, generator=generator) / 6, mask) for mask in masks)
    x = torch.randn(3, 5, 16, generator=generator)
    leaf = recurrent.data.clone().requires_grad_()
    y, _ = block_sparse_lstm(
        x, None, into.to_dense() if dense_input else into, recurrent.with_data(leaf), kernel="cuda"
    )
    layer = torch.nn.LSTM(16, 32, bias=False)
    layer.weight_ih_l0.data, layer.weight_hh_l0.data = into.to_dense(), recurrent.to_dense()
    expected, _ = layer(x)
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    (wanted,) = torch.autograd.grad(expected.sum(), layer.weight_hh_l0)
    torch.testing.assert_close(grad, BSRMatrix.from_dense(wanted, masks[1]).data)
