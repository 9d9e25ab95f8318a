"""dsd and sdd as torch operators, each the derivative of the other: the products that `kernels.ops` is made of.

Three kernels compute them: 'cuda' and 'native', our own on GPUs and on the CPU, and 'torch', plain arithmetic
everywhere: batched products of gathered blocks, added up by block row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad

from kernels.bsr import BSRIndex
from kernels.cuda.products import pattern_of
from kernels.native import products as native_products
from kernels.tensors.autocast import as_given
from kernels.tensors.forward import dual_product, primal, register_forward, tangent_of
from kernels.tensors.index import checked
from kernels.tensors.tracing import batched, transformed, watched


def _torch_dsd(data: Tensor, to_rows: Tensor, from_rows: Tensor, num_block_rows: int, x: Tensor) -> Tensor:
    """Add data[p] @ x[block from_rows[p]] to output block to_rows[p]. data: [nnzb, b, b], x: [k, n]."""
    size, n = data.shape[1], x.shape[1]
    products = torch.bmm(data, x.reshape(x.shape[0] // size, size, n)[from_rows])
    return x.new_zeros(num_block_rows, size, n).index_add(0, to_rows, products).view(num_block_rows * size, n)


def _torch_sdd(grad: Tensor, x: Tensor, rows: Tensor, cols: Tensor, size: int) -> Tensor:
    """The blocks (rows[p], cols[p]) of grad @ x^T, and no others: [nnzb, b, b]."""
    left, right = (each.reshape(each.shape[0] // size, size, each.shape[1]) for each in (grad, x))
    return torch.bmm(left[rows], right[cols].mT)


def _ordered_as(x: Tensor, rows: int) -> Tensor:
    """[rows, n], uninitialised, in the memory order and on the device of `x`: [k, n]."""
    n = x.shape[1]
    return x.new_empty(rows, n) if native_products.by_rows(x) else x.new_empty_strided((rows, n), (1, rows))


@torch.library.custom_op("block_sparse_bench::dsd", mutates_args=())
def dsd(
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
    x: Tensor,
    transposed: bool,
    kernel: str,
) -> Tensor:
    """Y = W X, or W^T X if `transposed`, in the memory order of X. data: [nnzb, b, b]; then a `BSRIndex`."""
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    if kernel == "native":
        return NativeProducts(index).dsd(data, x, transposed)
    if kernel == "cuda":
        return pattern_of(index, data.shape[1]).dsd(data, x, transposed)
    index = checked(index)
    to_rows, from_rows = (index.indices, index.rows) if transposed else (index.rows, index.indices)
    num_block_rows = (column_indptr if transposed else indptr).numel() - 1
    with as_given(x.device):
        summed = _torch_dsd(data.mT if transposed else data, to_rows, from_rows, num_block_rows, x)
    return _ordered_as(x, summed.shape[0]).copy_(summed)


@dsd.register_fake
def _(
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,  # noqa: ARG001
    rows: Tensor,  # noqa: ARG001
    column_indptr: Tensor,
    column_rows: Tensor,  # noqa: ARG001
    positions: Tensor,  # noqa: ARG001
    x: Tensor,
    transposed: bool,
    kernel: str,  # noqa: ARG001
) -> Tensor:
    return _ordered_as(x, ((column_indptr if transposed else indptr).shape[0] - 1) * data.shape[1])


@torch.library.custom_op("block_sparse_bench::sdd", mutates_args=())
def sdd(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
    kernel: str,
) -> Tensor:
    """The kept blocks of grad @ x^T: [nnzb, b, b]. grad: [m, n], x: [k, n]; then a `BSRIndex`."""
    size = grad.shape[0] // max(1, indptr.numel() - 1)
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    if kernel == "native":
        return NativeProducts(index, size).sdd(grad, x)
    if kernel == "cuda":
        return pattern_of(index, size).sdd(grad, x)
    index = checked(index)
    with as_given(x.device):
        return _torch_sdd(grad, x, index.rows, index.indices, size)


@sdd.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,  # noqa: ARG001
    column_indptr: Tensor,  # noqa: ARG001
    column_rows: Tensor,  # noqa: ARG001
    positions: Tensor,  # noqa: ARG001
    kernel: str,  # noqa: ARG001
) -> Tensor:
    size = grad.shape[0] // (indptr.shape[0] - 1)
    return x.new_empty(indices.shape[0], size, size)


class Products(Protocol):
    """Products with one pattern of blocks, by whichever kernel."""

    index: BSRIndex

    @property
    def kernel(self) -> str: ...

    def dsd(self, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """W x, or W^T x if `transposed`: [m, n] in the memory order of x. data: [nnzb, b, b]; x: [k, n]."""

    def sdd(self, grad: Tensor, x: Tensor) -> Tensor:
        """The kept blocks of grad @ x^T: [nnzb, b, b]. grad: [m, n], x: [k, n]."""


@dataclass(slots=True)
class Registered:
    """`Products` as torch's operators, which whatever watches can see; tens of microseconds slower than others."""

    index: BSRIndex
    kernel: str

    def dsd(self, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        found: Tensor = dsd(data, *self.index, x, transposed, self.kernel)
        return found

    def sdd(self, grad: Tensor, x: Tensor) -> Tensor:
        found: Tensor = sdd(grad, x, *self.index, self.kernel)
        return found


@dataclass(slots=True)
class NativeProducts:
    """`Products` on the CPU. block_size: what a product sampled at blocks is asked for; values have theirs."""

    index: BSRIndex
    block_size: int = 0
    kernel = "native"

    def dsd(self, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        lies = not native_products.by_rows(x)
        matrix = native_products.pack(data, self.index, x.shape[1], transposed, lies=lies)
        return _no_view(native_products.dsd(matrix, x))

    def sdd(self, grad: Tensor, x: Tensor) -> Tensor:
        return native_products.sdd(grad, x, self.index, self.block_size)


def _no_view(y: Tensor) -> Tensor:
    """`y`, or the same memory as no view of a tensor that nobody else has: autograd lets users write to that in place.

    A result that lies column by column is made row by row, and transposed.
    """
    if not y._is_view():
        return y
    made = y.new_empty(0)
    made.set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())
    return made


def recorded(*tensors: Tensor) -> bool:
    """Whether autograd will want a way back."""
    if is_grad_enabled():
        for each in tensors:  # a generator takes as long as all the rest
            if each.requires_grad:
                return True
    return False


def product(by: Products, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
    """`by.dsd`, with every derivative that is asked for. Nothing may be `watched` unless `by` is `Registered`."""
    if type(by) is Registered:
        if transformed():
            found: Tensor = Dsd.apply(data, x, by, transposed)  # type: ignore[no-untyped-call]
            return found
    elif recorded(data, x):
        return _record_dsd(data, x, by, transposed)
    return by.dsd(data, x, transposed)


def sampled(by: Products, grad: Tensor, x: Tensor) -> Tensor:
    """`by.sdd` likewise."""
    if type(by) is Registered:
        if transformed():
            found: Tensor = Sdd.apply(grad, x, by)  # type: ignore[no-untyped-call]
            return found
    elif recorded(grad, x):
        return _record_sdd(grad, x, by)
    return by.sdd(grad, x)


def conjugate(x: Tensor) -> Tensor:
    """`x` as the derivative of a product has it."""
    return x.conj() if x.is_complex() else x


Grads = tuple[Tensor | None, Tensor | None]


def needed(wanted: Sequence[bool], left: Tensor, right: Tensor) -> Grads:
    """The factors of a product that its way back needs: each for the gradient of the other.

    One that is not may be changed in place meanwhile, as torch has it of dense products.
    """
    return left if wanted[1] else None, right if wanted[0] else None


def _dsd_grads(
    wanted: Sequence[bool], data: Tensor | None, x: Tensor | None, grad: Tensor, by: Products, transposed: bool
) -> Grads:
    """Of data and x. wanted: which; the factor that none of them needs may be None."""
    grad_data = grad_x = None
    if wanted[0] and x is not None:
        left, right = (conjugate(x), grad) if transposed else (grad, conjugate(x))
        grad_data = sampled(by, left, right)
    if wanted[1] and data is not None:
        grad_x = product(by, conjugate(data), grad, not transposed)
    return grad_data, grad_x


def _sdd_grads(wanted: Sequence[bool], grad_data: Tensor, grad: Tensor | None, x: Tensor | None, by: Products) -> Grads:
    """Of grad and x likewise."""
    grad_grad = product(by, grad_data, conjugate(x)) if wanted[0] and x is not None else None
    return grad_grad, product(by, grad_data, conjugate(grad), True) if wanted[1] and grad is not None else None


def _save_dsd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    data, *index, x, ctx.transposed, ctx.kernel = inputs
    data, x = needed((ctx.needs_input_grad[0], ctx.needs_input_grad[7]), data, x)
    ctx.save_for_backward(data, *index, x)


def _dsd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (data, *index, x), needs = ctx.saved_tensors, ctx.needs_input_grad
    by = Registered(BSRIndex(*index), ctx.kernel)
    grad_data, grad_x = _dsd_grads((needs[0], needs[7]), data, x, grad, by, ctx.transposed)
    return grad_data, *[None] * 6, grad_x, None, None


def _save_sdd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    grad, x, *index, ctx.kernel = inputs
    ctx.save_for_backward(*needed(ctx.needs_input_grad, grad, x), *index)


def _sdd_backward(ctx: Any, grad_data: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, *index = ctx.saved_tensors
    by = Registered(BSRIndex(*index), ctx.kernel)
    return *_sdd_grads(ctx.needs_input_grad, grad_data, grad, x, by), *[None] * 7


# Of the operators in a graph that was compiled or exported, which knows nothing of the functions below
dsd.register_autograd(_dsd_backward, setup_context=_save_dsd)
sdd.register_autograd(_sdd_backward, setup_context=_save_sdd)


def _seen(by: Products, grad: Tensor, *factors: Tensor | None) -> Products:
    """`by`, or what whatever watches can see on the way back. grad: that came; factors: those that are needed."""
    if type(by) is not Registered and (batched(grad) or watched(grad, *(each for each in factors if each is not None))):
        return Registered(by.index, by.kernel)
    return by


class Dsd(torch.autograd.Function):
    """`Products.dsd`: recorded past torch's dispatcher, or for transforms of torch.func and forward mode, to any order.

    The dispatcher takes up to ten times as long as our kernels do, and has formulas for first derivatives only.
    """

    @staticmethod
    def forward(data: Tensor, x: Tensor, by: Products, transposed: bool) -> Tensor:
        return by.dsd(data, x, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Products, bool], output: Tensor) -> None:  # noqa: ARG004
        data, x, ctx.by, ctx.transposed = inputs
        left, right = needed(ctx.needs_input_grad, data, x)
        ctx.save_for_backward(left, *ctx.by.index, right)  # as the operator: one may go back the way of the other
        if type(ctx.by) is Registered:
            ctx.save_for_forward(data, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        data, *_, x = ctx.saved_tensors
        by = _seen(ctx.by, grad, data, x)
        return (*_dsd_grads(ctx.needs_input_grad, data, x, grad, by, ctx.transposed), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _tangent(ctx, lambda data, x: product(ctx.by, data, x, ctx.transposed), tangents)

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], data: Tensor, x: Tensor, by: Products, transposed: bool
    ) -> tuple[Tensor, int]:
        if in_dims[0] is None and in_dims[1] is not None:  # many operands of one matrix are one wide operand
            columns = x.movedim(in_dims[1], 1)  # [k, batch, n]
            wide = product(by, data, columns.flatten(1), transposed)
            return wide.reshape(wide.shape[0], *columns.shape[1:]), 1
        return _one_by_one(lambda one, other: product(by, one, other, transposed), info.batch_size, in_dims, data, x)


class Sdd(torch.autograd.Function):
    """`Products.sdd` likewise."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, by: Products) -> Tensor:
        return by.sdd(grad, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Products], output: Tensor) -> None:  # noqa: ARG004
        grad, x, ctx.by = inputs
        ctx.save_for_backward(*needed(ctx.needs_input_grad, grad, x), *ctx.by.index)
        if type(ctx.by) is Registered:
            ctx.save_for_forward(grad, x)

    @staticmethod
    def backward(ctx: Any, grad_data: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, *_ = ctx.saved_tensors
        by = _seen(ctx.by, grad_data, grad, x)
        return (*_sdd_grads(ctx.needs_input_grad, grad_data, grad, x, by), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _tangent(ctx, lambda grad, x: sampled(ctx.by, grad, x), tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], grad: Tensor, x: Tensor, by: Products) -> tuple[Tensor, int]:
        return _one_by_one(lambda one, other: sampled(by, one, other), info.batch_size, in_dims, grad, x)


# What Function.apply ends with; before, it looks for transforms, which `watched` has done
_record_dsd: Callable[..., Tensor] = super(torch.autograd.Function, Dsd).apply
_record_sdd: Callable[..., Tensor] = super(torch.autograd.Function, Sdd).apply

Bilinear = Callable[[Tensor, Tensor], Tensor]


def _forward_dsd(data: Tensor, *operands: Any) -> Tensor:
    *index, x, transposed, kernel = operands
    return dual_product(lambda data, x: dsd(data, *index, x, transposed, kernel), data, x)


def _forward_sdd(grad: Tensor, x: Tensor, *operands: Any) -> Tensor:
    return dual_product(lambda grad, x: sdd(grad, x, *operands), grad, x)


register_forward(dsd, _forward_dsd)
register_forward(sdd, _forward_sdd)


def _tangent(ctx: Any, call: Bilinear, tangents: Sequence[Tensor | None]) -> Tensor:
    """Of the product of what `ctx` saved."""
    with forward_ad._set_fwd_grad_enabled(True):  # off in here, so that the tangent would have none of outer levels
        return tangent_of(call, [*map(primal, ctx.saved_tensors)], tangents)


def _one_by_one(
    call: Bilinear, size: int, dims: Sequence[int | None], left: Tensor, right: Tensor
) -> tuple[Tensor, int]:
    """Of every member of a batch of `size`, stacked. dims: where the batch lies, None where all share an operand."""
    lefts, rights = (
        [each] * size if dim is None else list(each.movedim(dim, 0))
        for each, dim in zip((left, right), dims[:2], strict=True)
    )
    if not size:  # of no member, whose shapes are those of any
        one, other = (
            each if dim is None else each.new_zeros(each.movedim(dim, 0).shape[1:])
            for each, dim in zip((left, right), dims[:2], strict=True)
        )
        found = call(one, other)
        return found.new_empty(0, *found.shape), 0
    return torch.stack([call(one, other) for one, other in zip(lefts, rights, strict=True)]), 0


class Writable(torch.autograd.Function):
    """The identity. Autograd lets nobody write to a view that was made inside a function, as of a transposed result."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:  # noqa: ARG004
        return y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


def writable(y: Tensor) -> Tensor:
    """`y`, which nobody else holds, as a result that its users may write to in place."""
    found: Tensor = Writable.apply(y)  # type: ignore[no-untyped-call]
    return found
