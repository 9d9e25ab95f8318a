"""Differentiable products and LSTM layers with block-sparse weights, and which kernel computes them.

Y = W X (dsd), dX = W^T dY (dsd with block rows and columns exchanged) and dW = dY X^T at the kept blocks only (sdd).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix, FrozenBSRMatrix, require_sparse
from kernels.cuda import choose
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda.lstm import Weight
from kernels.cuda.products import kept_pattern, pattern_for
from kernels.native import library as native_library
from kernels.native import lstm as native_lstm
from kernels.native import products as native_products
from kernels.products import NativeProducts, Registered, product, recorded, writable
from kernels.products import dsd as dsd
from kernels.products import sdd as sdd
from kernels.steps import in_steps
from kernels.system.resources import UnsupportedError
from kernels.system.threads import in_force
from kernels.tensors.autocast import autocast_type, is_any_autocast, lowered
from kernels.tensors.dense import DENSE, linear
from kernels.tensors.exchange import refuse_sparse
from kernels.tensors.operands import require, require_memory
from kernels.tensors.padding import heightened, shortened
from kernels.tensors.tracing import refuse_lost_derivatives, transformed, watched

KERNELS = ("auto", "cuda", "native", "torch")


def kernel_for(
    kernel: str, dtype: torch.dtype, device: torch.device, *, layer: bool = False, block_size: int = 16, nnzb: int = 0
) -> str:
    """'cuda', 'native' or 'torch': which one runs products, or an LSTM `layer`, when `kernel` is asked for.

    'auto' is one of our own wherever it can. block_size, nnzb: of the weight, for 'cuda' depends on them. ValueError
    where a kernel is asked for by name and cannot run, saying why; ResourceError where one that could cannot be
    compiled today.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; accepted: {', '.join(KERNELS)}")
    for ours in ("cuda", "native"):
        if kernel in ("auto", ours):
            try:
                if ours == "cuda":
                    choose.require_kernel(dtype, block_size, nnzb, device)
                else:
                    native_library.require_kernel(dtype, device, layer)
                return ours
            except UnsupportedError:
                if kernel == ours:
                    raise
    return "torch"


# As torch.compiler.assume_constant_result does, which imports the compiler: one asks, and does not look inside.
kernel_for._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lstm_refusal(weight_hh: BSRMatrix, batch: int) -> str | None:
    """Why the CUDA kernels cannot go through the steps of a layer whose products they can compute, or None.

    Such a layer is computed step by step, its products by them and its gates by torch. The first call prepares the
    layer.
    """
    if torch.compiler.is_compiling():  # no pattern can be looked at then; the operator will say it
        return None
    require_sparse("weight_hh", weight_hh)
    try:
        cuda_lstm.recurrence_of(pattern_for(weight_hh), weight_hh.data.dtype, batch)
    except UnsupportedError as reason:
        return str(reason)
    return None


def lstm_kernel(weight_hh: BSRMatrix, batch: int, kernel: str = "auto") -> str:
    """What goes through the steps of `block_sparse_lstm` for this `kernel`, in words; and why, where it is a loop."""
    data = require_sparse("weight_hh", weight_hh).data
    chosen = kernel_for(kernel, data.dtype, data.device, layer=True, **_sizes(weight_hh))
    if chosen == "native":
        return native_library.describe(native_library.library("dsd", data.dtype), in_force())
    if chosen == "torch":
        return "torch, step by step"
    try:
        return cuda_lstm.describe(pattern_for(weight_hh), data.dtype, batch)
    except UnsupportedError as reason:
        return f"cuda products and torch gates, step by step: {reason}"


def _sizes(weight: BSRMatrix) -> dict[str, Any]:
    return {"block_size": weight.block_size, "nnzb": weight.nnzb}


def is_inference(*tensors: Tensor) -> bool:
    """Whether no gradient can be asked for: kernels are called directly, and a weight's packed values kept."""
    return not watched(*tensors) and not recorded(*tensors)


def _repeated(weight: FrozenBSRMatrix, x: Tensor, kernel: str, rows: bool) -> Tensor | None:
    """`block_sparse_matmul` by the CPU's kernel where it has multiplied an x like this one before; else None.

    rows: `block_sparse_linear` of an x: [..., in].
    """
    if kernel not in ("auto", "native") or type(x) is not Tensor or is_any_autocast() or not is_inference(x):
        return None
    inner = weight._operand
    return native_products.repeated_rows(inner, x) if rows else native_products.repeated(inner, x)


def block_sparse_matmul(weight: BSRMatrix, x: Tensor, kernel: str = "auto") -> Tensor:
    """Y[m, n] = W[m, k] @ X[k, n]; differentiable in `weight.data` and `x`, so no gradient exists at empty blocks.

    Values are packed at each call, for they may change in ways that torch does not count; of a frozen weight
    (`BSRMatrix.freeze`) once, where no gradient is wanted. Y has the memory order of X: for activations [n, k],
    `block_sparse_matmul(weight, activations.T).T` copies nothing and is contiguous. kernel: 'auto', 'cuda', 'native' or
    'torch'; `kernel_for` says which one 'auto' is. Native is for float32, float64, and bfloat16 where the CPU has
    instructions for it: summed in float32, the result rounded once. Derivatives of every order, forward mode and the
    transforms of torch.func as for a dense product; under torch.autocast operands and result are of its type, as those
    of torch.nn.functional.linear are. A padded weight (`BSRMatrix.from_dense`, pad) takes X and gives Y of its own
    sizes, `weight.unpadded`: X is copied to be padded, and so is a Y that lies column by column.
    """
    if type(weight) is FrozenBSRMatrix and (found := _repeated(weight, x, kernel, False)) is not None:
        return found
    require_memory("x", x)
    refuse_lost_derivatives()
    (rows, cols), shape, dtype, device = require_sparse("weight", weight).unpadded, x.shape, x.dtype, x.device
    if len(shape) != 2 or shape[0] != cols:
        raise ValueError(f"the weight is {(rows, cols)}, so x must be [{cols}, n], got {tuple(shape)}")
    if weight.shape != (rows, cols):
        return shortened(block_sparse_matmul(weight.whole, heightened(x, weight.shape[1]), kernel), rows)
    frozen, weight = weight.frozen, weight._operand
    data = weight.data
    if is_any_autocast() and (wanted := autocast_type(device)) is not None:
        return _matmul_as(wanted, weight, x, kernel)
    if dtype != data.dtype:
        raise ValueError(f"the weight is {data.dtype} and x is {dtype}; they must be of one type")
    if device != data.device:
        raise ValueError(f"the weight is on {data.device} and x on {device}; they must be on one device")
    seen = watched(data, x)
    if not seen and kernel in ("auto", "cuda") and (pattern := kept_pattern(weight, dtype, device)) is not None:
        return product(pattern, data, x)
    chosen = kernel_for(kernel, dtype, device, **_sizes(weight))
    if not seen and chosen == "cuda":
        return product(pattern_for(weight), data, x)
    if not seen and chosen == "native":
        if recorded(data, x):
            return product(NativeProducts(weight.index, weight.block_size), data, x)
        if frozen:
            return native_products.frozen_dsd(weight, x)
        lies = not native_products.by_rows(x)
        return native_products.dsd(native_products.packed(weight, shape[1], lies=lies), x)
    return product(Registered(weight.index, chosen), data, x)


def block_sparse_linear(x: Tensor, weight: BSRMatrix, bias: Tensor | None = None, kernel: str = "auto") -> Tensor:
    """torch.nn.functional.linear with a block-sparse weight: Y = X W^T + bias.

    x: [..., in], row by row as torch's users hold it; weight: [out, in]; bias: [out]; Y: [..., out]. Differentiable in
    x, `weight.data` and bias. Neither X nor Y is copied to be transposed; the CPU's kernel turns X inside where that is
    faster. An x that lies in no order of its own (a slice, an expanded view) is copied row by row. Y is contiguous
    where x is. A matrix x that lies column by column is multiplied as it lies, and Y lies as it does. Types, devices,
    derivatives, torch.autocast and kernel: as of `block_sparse_matmul`; the bias is of the type of x.
    """
    if type(weight) is FrozenBSRMatrix and bias is None and (found := _repeated(weight, x, kernel, True)) is not None:
        return found
    require_memory("x", x)
    outside, inside = require_sparse("weight", weight).unpadded
    if not x.ndim or x.shape[-1] != inside:
        raise ValueError(f"the weight is {weight.unpadded}, so x must be [..., {inside}], got {tuple(x.shape)}")
    if bias is not None:
        require_memory("bias", bias)
    rows = x.reshape(-1, inside)
    if not rows.is_contiguous() and not rows.mT.is_contiguous():
        rows = rows.contiguous()
    y = block_sparse_matmul(weight, rows.mT, kernel).mT
    inference = is_inference(y) if bias is None else is_inference(y, bias)
    if bias is not None:
        bias = bias if (wanted := autocast_type(x.device)) is None else lowered(bias, wanted)
        require("bias", bias, (outside,), y.dtype, y.device)
        y = y.add_(bias) if inference else y + bias
    elif not inference:
        y = y.clone() if watched(y) else writable(y)
    if rows.is_contiguous() and not y.is_contiguous():  # of one column: it lies in either order
        y = y.contiguous()
    return y.view(*x.shape[:-1], outside) if x.ndim != 2 else y


def computed_in(dtype: torch.dtype, kernel: str, device: torch.device, **weight: Any) -> torch.dtype:
    """What operands of `dtype` are computed in: float32, where it holds them and only then there is a kernel of ours.

    weight: as of `kernel_for`.
    """
    for each in (dtype, torch.float32) if dtype.itemsize < torch.float32.itemsize else ():
        with suppress(ValueError):
            if kernel_for(kernel, each, device, **weight) != "torch":
                return each
    return dtype


computed_in._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a refusal inside would end the compiler


def _matmul_as(dtype: torch.dtype, weight: BSRMatrix, x: Tensor, kernel: str) -> Tensor:
    """`block_sparse_matmul` under a torch.autocast that wants `dtype`."""
    data, x = lowered(weight.data, dtype), lowered(x, dtype)
    with torch.autocast(x.device.type, enabled=False):
        if not data.dtype == x.dtype == dtype:
            return block_sparse_matmul(weight.with_data(data), x, kernel)
        inside = computed_in(dtype, kernel, x.device, **_sizes(weight))
        return block_sparse_matmul(weight.with_data(data.to(inside)), x.to(inside), kernel).to(dtype)


def _check_shapes(x: Tensor, state: tuple[Tensor, Tensor], shape: tuple[int, ...], weight_hh: BSRMatrix) -> None:
    if len(shape) != 2:
        raise ValueError(f"weight_ih must be [rows, in], got {list(shape)}")
    (rows, into), hidden = shape, weight_hh.shape[1]
    if weight_hh.shape[0] != 4 * hidden or rows != 4 * hidden:
        raise ValueError(f"the weights must have 4 x {hidden} rows, got {rows} and {weight_hh.shape[0]}")
    if x.ndim != 3 or x.shape[0] < 1 or x.shape[1] < 1 or x.shape[2] != into:
        raise ValueError(f"x must be [steps, batch, {into}], got {tuple(x.shape)}")
    for name, each in zip(("h0", "c0"), state, strict=True):
        if each.shape != (1, x.shape[1], hidden):
            raise ValueError(f"{name} must be {(1, x.shape[1], hidden)}, got {tuple(each.shape)}")
        if each.device != x.device or weight_hh.data.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} on {each.device} and the weight on {weight_hh.data.device}")
        if each.dtype != x.dtype or weight_hh.data.dtype != x.dtype:
            raise ValueError(f"x is {x.dtype}, {name} {each.dtype} and the weight {weight_hh.data.dtype}: not one type")


def _check_input_weight(x: Tensor, values: Tensor) -> None:
    if values.dtype != x.dtype or values.device != x.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device} and the input weight {values.dtype} on {values.device}: not alike"
        )


def _check_biases(biases: list[Tensor], x: Tensor, rows: int) -> None:
    for each in biases:
        require("biases", each, (rows,), x.dtype, x.device)


def block_sparse_lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor | BSRMatrix,
    weight_hh: BSRMatrix,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    kernel: str = "auto",
    dense: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer of `torch.nn.LSTM` (gates i, f, g, o) with block-sparse weights: (y, (h, c)).

    x: [steps, batch, in]; state: h0 and c0, [1, batch, hidden] each, or None for zeros; weight_ih: [4 hidden, in];
    weight_hh: [4 hidden, hidden]; y: [steps, batch, hidden]. Differentiable in x, the state, the kept values and the
    biases: once, or as often as wanted with kernel = 'torch', by which the steps are taken one by one; so they are,
    with products by `kernel`, under a transform of torch.func and in forward mode. Under torch.autocast operands and
    results are of its type. Values are packed as in `block_sparse_matmul`. kernel: as there; `kernel_for` says which
    one 'auto' is, and `lstm_kernel` what goes through the steps. dense: how x is multiplied by a weight_ih that is not
    block-sparse: 'torch' as torch.nn.functional.linear does, to the digit, 'auto' by oneDNN where MKL, which that
    calls, leaves half of the processor unused.
    """
    if dense not in DENSE:
        raise ValueError(f"unknown dense {dense!r}; accepted: {', '.join(DENSE)}")
    _check_operands(x, state, weight_ih, weight_hh, bias_ih, bias_hh)
    weight_hh = weight_hh._operand
    weight_ih = weight_ih._operand if isinstance(weight_ih, BSRMatrix) else weight_ih
    if is_any_autocast() and (wanted := autocast_type(x.device)) is not None:
        return _lstm_as(wanted, x, state, weight_ih, weight_hh, bias_ih, bias_hh, kernel, dense)
    if state is None:
        zeros = x.new_zeros(1, *x.shape[1:2], weight_hh.shape[1])
        state = zeros, zeros
    _check_shapes(x, state, tuple(weight_ih.shape), weight_hh)
    _check_input_weight(x, weight_ih.data)
    chosen = kernel_for(kernel, x.dtype, x.device, layer=True, **_sizes(weight_hh))
    biases = [bias for bias in (bias_ih, bias_hh) if bias is not None]
    _check_biases(biases, x, weight_hh.shape[0])
    h0, c0 = (each.squeeze(0) for each in state)
    by_steps = transformed()
    if chosen == "cuda" and not by_steps and lstm_refusal(weight_hh, x.shape[1]) is None:
        return _cuda_lstm(x, (h0, c0), weight_ih, weight_hh, (bias_ih, bias_hh), kernel)
    bias = sum(biases[1:], biases[0]) if biases else x.new_zeros(weight_hh.shape[0])
    same_blocks = isinstance(weight_ih, BSRMatrix) and weight_ih.block_size == weight_hh.block_size
    whole = chosen == "native" and not by_steps
    into = weight_ih if isinstance(weight_ih, BSRMatrix) and same_blocks and whole else None
    weighing = kernel if chosen == "cuda" else chosen  # cuda was chosen for the recurrent weight's blocks
    inputs = x if into else _weighted(x, weight_ih, weighing, dense)
    if not whole:
        y, h, c = in_steps(inputs + bias, h0, c0, lambda x: block_sparse_matmul(weight_hh, x, chosen))
    elif is_inference(inputs, bias, h0, c0, weight_hh.data, *([into.data] if into else [])):
        y, c = native_lstm.infer(inputs, bias, h0, c0, weight_hh, into)
        h = y[-1].clone()
    else:
        listed = [into.data, *into.index] if into else []
        y, h, c, _ = native_lstm.lstm(inputs, bias, h0, c0, [weight_hh.data, *weight_hh.index], listed)
    return y, (h[None], c[None])


def _check_operands(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor | BSRMatrix,
    weight_hh: BSRMatrix,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> None:
    """What each operand of a layer is, before their shapes are looked at."""
    for name, each in (("x", x), ("weight_ih", weight_ih), ("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if not (name == "weight_ih" and isinstance(each, BSRMatrix)) and not (each is None and name.startswith("bias")):
            if name == "weight_ih":
                refuse_sparse(name, each)
            require_memory(name, each)
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise ValueError(f"state must be (h0, c0) or None, got {type(state).__name__}")
    for name, each in zip(("h0", "c0"), state or (), strict=False):
        require_memory(name, each)
    refuse_lost_derivatives()
    for name, each in (("weight_ih", weight_ih), ("weight_hh", require_sparse("weight_hh", weight_hh))):
        if isinstance(each, BSRMatrix) and each.shape != each.unpadded:
            raise ValueError(
                f"{name} is padded, and its gates are not by themselves; accepted: BlockSparseLSTM, pad=True"
            )


def _lstm_as(
    dtype: torch.dtype,
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor | BSRMatrix,
    weight_hh: BSRMatrix,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    kernel: str,
    dense: str,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`block_sparse_lstm` under a torch.autocast that wants `dtype`."""
    given = [lowered(each, dtype) for each in (x, weight_hh.data)]
    inside = None
    if all(each.dtype == dtype for each in given):
        inside = computed_in(dtype, kernel, x.device, layer=True, **_sizes(weight_hh))

    def cast(each: Tensor) -> Tensor:
        each = lowered(each, dtype)
        return each.to(inside) if inside is not None and each.dtype == dtype else each

    into = weight_ih.with_data(cast(weight_ih.data)) if isinstance(weight_ih, BSRMatrix) else cast(weight_ih)
    first, second = (bias if bias is None else cast(bias) for bias in (bias_ih, bias_hh))
    states = None if state is None else (cast(state[0]), cast(state[1]))
    with torch.autocast(x.device.type, enabled=False):
        recurrent = weight_hh.with_data(cast(weight_hh.data))
        y, (h, c) = block_sparse_lstm(cast(x), states, into, recurrent, first, second, kernel, dense)
    return (y, (h, c)) if inside is None else (y.to(dtype), (h.to(dtype), c.to(dtype)))


def _cuda_lstm(
    x: Tensor,
    states: tuple[Tensor, Tensor],
    weight_ih: Tensor | BSRMatrix,
    weight_hh: BSRMatrix,
    biases: tuple[Tensor | None, Tensor | None],
    kernel: str,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The layer by the CUDA kernels; a product with an input weight whose blocks they do not know by `kernel`."""
    into = None
    if isinstance(weight_ih, BSRMatrix) and kernel_for(kernel, x.dtype, x.device, **_sizes(weight_ih)) == "cuda":
        into = weight_ih
    inputs = x if into is not None else _weighted(x, weight_ih, kernel, "torch")
    first, second = (x.new_zeros(weight_hh.shape[0]) if bias is None else bias for bias in biases)
    operands = inputs, first, second, *states, weight_hh.data
    if watched(*operands, weight_ih.data):
        listed = [] if into is None else [into.data, *into.index]
        whole, h, c, _, _ = cuda_lstm.lstm(*operands[:5], [weight_hh.data, *weight_hh.index], listed)
        return whole.narrow(0, 1, x.shape[0]), (h.unsqueeze(0), c.unsqueeze(0))
    weight = Weight(weight_hh.data, pattern_for(weight_hh))
    across = None if into is None else Weight(into.data, pattern_for(into))
    values, pattern = (None, None) if across is None else across
    if recorded(*operands) or (values is not None and recorded(values)):
        y, h, c = cuda_lstm.record(*operands, values, weight.pattern, pattern)
    else:
        y, c, _ = cuda_lstm.forward(inputs, (first, second), states, weight, across, keep=False)
        h = y.select(0, -1).clone()
    return y, (h.unsqueeze(0), c.unsqueeze(0))


def _weighted(x: Tensor, weight: Tensor | BSRMatrix, kernel: str, dense: str) -> Tensor:
    """x W^T: [steps, batch, rows of W]. dense: as of `block_sparse_lstm`."""
    if isinstance(weight, BSRMatrix):
        return block_sparse_matmul(weight, x.flatten(0, 1).T, kernel).T.reshape(*x.shape[:2], weight.shape[0])
    return linear(x, weight, dense=dense)
