"""LSTMLayer: torch's LSTM layer, able to multiply only the kept blocks of its weights.

The parameters are torch's and dense, so optimizers, penalties and pruning know nothing of the path: the dense path is
`nn.LSTM` itself, the sparse one gathers the kept blocks of the same parameters at each call.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.measuring.clocks import Moment, Stopwatch, moment
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native.library import POOL
from kernels.ops import block_sparse_lstm, computed_in
from kernels.tensors.autocast import multiplied_as
from kernels.tensors.operands import require_memory, require_values
from kernels.tensors.tracing import batched, lasting, transformed, watched

# Recurrent weights that are dropped anew at each call cannot lie where cuDNN would like them.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk of memory")

OURS = {"cpu": "native", "cuda": "cuda"}  # by device: what the sparse path is computed by; plain torch on others
State = tuple[Tensor, Tensor]  # hidden and cell state of one layer, [1, batch, size] each
LEVELS = 2**16  # of the 16 bits that say whether an element of a weight is dropped
A_WORD = 4  # elements for which a random word of 64 bits lasts


def drop_bits(weight: Tensor) -> Tensor:
    """16 random bits for each element of a weight, whatever the path will read of them: int16, of its shape.

    A word of the generator is cut into four: a draw an element, as in torch's dropout, would take a large part of a
    sparse layer's time. The elements must be a multiple of four, as those of [4 * size, size] are.
    """
    words = torch.randint(-(2**63), 2**63 - 1, (weight.numel() // A_WORD,), device=weight.device)
    return words.view(torch.int16).view(weight.shape)


def dropped(values: Tensor, bits: Tensor, drop: float) -> Tensor:
    """Elements of a weight, a share `drop` of them (in steps of 1/65536, one at least) zero, the others as much larger.

    bits: of the same elements, from `drop_bits`.
    """
    gone = max(1, round(drop * LEVELS))
    keep = bits.gt(gone - 1 - LEVELS // 2).to(values.dtype)
    return values * keep.mul_(LEVELS / max(1, LEVELS - gone))


class Pattern:
    """Where the kept blocks of one weight lie."""

    def __init__(self, weight: Tensor, mask: BlockMask) -> None:
        self.mask = mask
        with lasting():
            self.matrix = BSRMatrix.from_dense(weight.detach(), mask)
            size, (_, grid_cols) = mask.block_size, mask.grid
            rows = self.matrix.row_indices.long()[:, None] * size + torch.arange(size, device=weight.device)
            self.slices = (rows * grid_cols + self.matrix.indices.long()[:, None]).flatten()  # of `as_slices`

    def as_slices(self, weight: Tensor) -> Tensor:
        """Rows of blocks as rows of a matrix, a view where `weight` lies row by row.

        weight: [rows, cols] -> [rows * grid_cols, b].
        """
        return weight.reshape(-1, self.mask.block_size)

    def gather(self, weight: Tensor) -> Tensor:
        """The kept blocks, copied. [rows, cols] -> [nnzb, b, b]."""
        blocks = self.as_slices(weight).index_select(0, self.slices)
        return blocks.view(-1, self.mask.block_size, self.mask.block_size)

    def spread(self, grad: Tensor) -> Tensor:
        """The gradient of the whole weight, zero in empty blocks, in memory of its own.

        grad: [nnzb, b, b] -> [rows, cols].
        """
        slices, shape = self.as_slices(grad), self.mask.shape
        if torch.is_grad_enabled() or watched(grad) or batched(grad):
            zeros = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
            return self.as_slices(zeros).index_copy(0, self.slices, slices).view(shape)
        whole = POOL.empty(shape, grad.dtype) if grad.is_cpu else grad.new_empty(shape)
        self.as_slices(whole.zero_()).index_copy_(0, self.slices, slices)
        return whole

    def of(self, weight: Tensor, drop: float, dtype: torch.dtype, inside: torch.dtype) -> BSRMatrix:
        """The kept blocks of `weight`, rounded to `dtype`, as `inside`, a share `drop` of their elements dropped.

        Which ones is drawn for the whole weight, as on the dense path: the generator goes on alike on both, and what a
        run comes to does not depend on where it changes over. Differentiable in `weight`.
        """
        kept = _KeptBlocks.apply
        data: Tensor = self.gather(weight) if transformed() else kept(weight, self)  # type: ignore[no-untyped-call]
        data = data.to(dtype)
        data = dropped(data, self.gather(drop_bits(weight)), drop) if drop else data
        return self.matrix.with_data(data.to(inside))


class _KeptBlocks(torch.autograd.Function):
    """Gather kept blocks.

    The gradient lies in memory that comes back when nobody holds it: fresh one takes a fault a page.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        return pattern.gather(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pattern: Pattern = ctx.pattern
        return pattern.spread(grad), None


class _Backward:
    """When the backward pass of one call began, until its end is known."""

    def __init__(self, stopwatch: Stopwatch, device: str) -> None:
        self.stopwatch, self.device = stopwatch, device
        self.began: Moment | None = None

    def begin(self) -> None:
        self.began = moment(self.device)

    def end(self) -> None:
        if self.began is not None:
            self.stopwatch.add(self.began, moment(self.device))
        self.began = None


class _BackwardBegins(torch.autograd.Function):
    """The identity, behind a layer: its backward pass comes first, whichever of y, h and c it comes by."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, c: Tensor, backward: _Backward) -> tuple[Tensor, Tensor, Tensor]:
        ctx.span = backward
        ctx.set_materialize_grads(False)
        return y.detach(), h.detach(), c.detach()  # no views: users may write to what torch's layer gives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.span.begin()
        return *grads, None


class _BackwardEnds(torch.autograd.Function):
    """The identity, before a layer: autograd comes to it when all younger nodes, the layer's, are done."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: _Backward) -> Tensor:
        ctx.span = backward
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.span.end()
        return grad, None


class LSTMLayer(nn.LSTM):
    """One layer of `torch.nn.LSTM`: its parameters, names, initialisation and results, on one of two paths.

    weight_drop: share of the recurrent weight's elements dropped while training, one mask a call (Merity et al.,
    1708.02182). The parameter stays raw: a dropped copy of it is what the layer multiplies with, on either path, and
    the mask is one of the whole weight, the same on both.
    Under torch.autocast both paths multiply copies in its type, but for float64, which it leaves alone; what goes in
    and comes out keeps the type of x. A type that the kernels of the sparse path do not know and float32 holds, they
    compute in that: float16 and bfloat16 on a CPU.
    seconds: time spent in it with gradients, forward and backward, since it was last set to 0; a GPU's own time there.
    A backward pass of torch.autograd.grad counts where it asks for the gradient of x, or of what x was made of.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, inputs: int, size: int, weight_drop: float = 0.0) -> None:
        super().__init__(inputs, size)
        self.weight_drop = weight_drop
        self.patterns: dict[str, Pattern] = {}
        self.stopwatch = Stopwatch()

    @property
    def seconds(self) -> float:
        return self.stopwatch.seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self.stopwatch.seconds = seconds

    @property
    def sparse(self) -> bool:
        """Whether the kernels that skip empty blocks run."""
        return bool(self.patterns)

    def follow(self, masks: Mapping[str, BlockMask]) -> None:
        """Take the sparse path with these masks, of weight_hh and perhaps weight_ih.

        The dense path where there are none. The weights must be zero in empty blocks already.
        A mask that is the same object as before costs nothing.
        ValueError where the masks are not of these weights.
        """
        if masks and set(masks) not in ({"weight_hh"}, {"weight_ih", "weight_hh"}):
            names = ", ".join(map(str, masks))
            raise ValueError(f"masks: there are those of {names}; accepted: weight_hh, or weight_ih and weight_hh")
        before = self.patterns
        self.patterns = {
            kind: before[kind] if kind in before and before[kind].mask is mask else self._pattern_of(kind, mask)
            for kind, mask in masks.items()
        }

    def _pattern_of(self, kind: str, mask: BlockMask) -> Pattern:
        """ValueError where `mask` is none of that weight."""
        weight = getattr(self, f"{kind}_l0")
        require_values(f"{kind}_l0", weight)
        if tuple(weight.shape) != mask.shape:
            raise ValueError(f"{kind}_l0 is {list(weight.shape)}, and the mask it follows {list(mask.shape)}")
        return Pattern(weight, mask)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """(y, (h, c)). x: [steps, batch, in]; y: [steps, batch, size]; h, c: [1, batch, size]."""
        if not torch.is_grad_enabled() or transformed():
            return self._multiply(x, state)
        began, backward = moment(x.device.type), _Backward(self.stopwatch, x.device.type)
        y, (h, c) = self._multiply(*self._marked(x, state, backward))
        y, h, c = _BackwardBegins.apply(y, h, c, backward)  # type: ignore[no-untyped-call]
        self.stopwatch.add(began, moment(x.device.type))
        return y, (h, c)

    def _marked(self, x: Tensor, state: State | None, backward: _Backward) -> tuple[Tensor, State | None]:
        """x and the state, one of them with the mark where `backward` ends."""
        if x.requires_grad:
            return _BackwardEnds.apply(x, backward), state  # type: ignore[no-untyped-call]
        if x.ndim != 3 or not any(each.requires_grad for each in (*self.parameters(), *(state or ()))):
            return x, state
        h0, c0 = state or 2 * (x.new_zeros(1, x.shape[1], self.hidden_size),)
        if not c0.requires_grad:
            c0 = c0.clone().requires_grad_()  # of all operands the one whose gradient costs least
        return x, (h0, _BackwardEnds.apply(c0, backward))  # type: ignore[no-untyped-call]

    def _multiply(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        dtype = multiplied_as(x)
        if dtype == x.dtype:
            return self._multiply_as(dtype, x, state)
        state = state and (state[0].to(dtype), state[1].to(dtype))
        with torch.autocast(x.device.type, enabled=False):
            y, (h, c) = self._multiply_as(dtype, x.to(dtype), state)
        return y.to(x.dtype), (h.to(x.dtype), c.to(x.dtype))

    def _multiply_as(self, dtype: torch.dtype, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The layer with its weights as `dtype`, which x and the state have."""
        drop = self.weight_drop if self.training else 0.0
        if not self.sparse:
            as_it_is = not drop and dtype == self.weight_hh_l0.dtype
            dense: tuple[Tensor, State] = super().forward(x, state) if as_it_is else self._copied(dtype, x, state, drop)
            return dense
        return self._skipping(dtype, x, state, drop)

    def _skipping(self, dtype: torch.dtype, x: Tensor, state: State | None, drop: float) -> tuple[Tensor, State]:
        """The layer by the kernels that skip empty blocks.

        In float32, where they do not know `dtype` and it holds that.
        """
        kernel, patterns = OURS.get(x.device.type, "torch"), {kind: self._pattern(kind) for kind in self.patterns}
        recurrent = patterns["weight_hh"].matrix
        sizes = {"block_size": recurrent.block_size, "nnzb": recurrent.nnzb}
        inside = computed_in(dtype, kernel, x.device, layer=True, **sizes)
        drops = {"weight_ih": 0.0, "weight_hh": drop}
        weights = {
            kind: pattern.of(getattr(self, f"{kind}_l0"), drops[kind], dtype, inside)
            for kind, pattern in patterns.items()
        }
        weight_ih = weights["weight_ih"] if "weight_ih" in weights else self.weight_ih_l0.to(dtype).to(inside)
        biases = self.bias_ih_l0.to(dtype).to(inside), self.bias_hh_l0.to(dtype).to(inside)
        state = state and (state[0].to(inside), state[1].to(inside))
        y, (h, c) = block_sparse_lstm(x.to(inside), state, weight_ih, weights["weight_hh"], *biases, kernel=kernel)
        return y.to(dtype), (h.to(dtype), c.to(dtype))

    def _pattern(self, kind: str) -> Pattern:
        """That of one weight, on the device where the weight is by now.

        ValueError where the mask no longer is one of it.
        """
        weight, pattern = getattr(self, f"{kind}_l0"), self.patterns[kind]
        require_memory(f"{kind}_l0", weight)
        if weight.device != pattern.slices.device or tuple(weight.shape) != pattern.mask.shape:
            pattern = self.patterns[kind] = self._pattern_of(kind, pattern.mask)
        return pattern

    def _copied(self, dtype: torch.dtype, x: Tensor, state: State | None, drop: float) -> tuple[Tensor, State]:
        """The library's layer on copies of the weights, as operands: nn.LSTM itself would multiply the raw ones."""
        zeros = x.new_zeros(1, x.shape[1], self.hidden_size)
        parameters = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        weights = [parameter.to(dtype) for parameter in parameters]
        weights[1] = dropped(weights[1], drop_bits(weights[1]), drop) if drop else weights[1]
        y, h, c = torch.lstm(x, state or (zeros, zeros), weights, True, 1, 0.0, True, False, False)
        return y, (h, c)
