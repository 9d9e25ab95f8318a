"""One LSTM layer of the CUDA kernels on the emulator, and the same layer in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import sqrt

import emulator
import torch
from torch import Tensor

from kernels.backends import cuda_recurrence
from kernels.backends.cuda_kernel import Kernel, Variant
from kernels.backends.cuda_lstm import Gradients, Lstm, Operands, Products
from kernels.backends.cuda_lstm_pass import Sizes
from kernels.backends.cuda_lstm_tiles import Tiles
from kernels.backends.reference import lstm_reference
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import GATE_ERRORS
from kernels.lstm_problem import LstmProblem

PATTERNS = ("random", "empty rows", "all empty", "full")
GUARD = 4096
Load = Callable[[Variant], Kernel]
# Relative error of one rounded number: of what is stored, and of the factors of a product.
ROUNDOFF = {"Float32": 2.0**-24, "Tf32": 2.0**-11, "Bfloat16": 2.0**-8, "Float16": 2.0**-11}
DTYPES = {"Float32": "float32", "Tf32": "float32", "Bfloat16": "bfloat16", "Float16": "float16"}


@dataclass(frozen=True)
class Layer(LstmProblem):
    """An LstmProblem with a pattern of its own, in any dtype."""

    pattern: str = "random"

    def __post_init__(self) -> None:
        pass

    @cached_property
    def _masks(self) -> dict[str, BlockMask]:
        hidden, size = self.hidden_size, self.block_size
        masks = {}
        for stream, (name, columns) in enumerate((("weight_ih", self.input_size), ("weight_hh", hidden))):
            kept = self._random_mask(stream, 4 * hidden, columns).kept
            if self.pattern == "empty rows":
                kept[::2] = False
            masks[name] = BlockMask({"all empty": kept & False, "full": kept | True}.get(self.pattern, kept), size)
        return masks


def guarded(held: list[Tensor], _: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor full of NaN between guards of NaN."""
    size = int(torch.tensor(shape).prod())
    held.append(torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype))
    return held[-1][GUARD : GUARD + size].view(shape)


def torch_products(weights: dict[str, BSRMatrix]) -> Products:
    """The products over all steps, by dense torch in float64."""
    into, recurrent = weights["weight_ih"], weights["weight_hh"]

    def weigh(values: Tensor, x: Tensor, out: Tensor) -> None:
        out.copy_(x.double() @ into.with_data(values.double()).to_dense().T)

    def weigh_back(values: Tensor, grads: Tensor, out: Tensor) -> None:
        out.copy_(grads.double() @ into.with_data(values.double()).to_dense())

    def sample(weight: BSRMatrix, grads: Tensor, x: Tensor, out: Tensor) -> None:
        out.copy_(BSRMatrix.from_dense(grads.double().T @ x.double(), weight.mask).data)

    return Products(weigh, weigh_back, partial(sample, into), partial(sample, recurrent))


class Case:
    """`layer` computed by the kernels; `tiles` of both passes, chosen for an H200 if None."""

    def __init__(
        self, layer: Layer, element: str, tiles: Tiles | None = None, together: bool = True, load: Load = emulator.load
    ) -> None:
        self.layer, self.element, self.held = layer, element, list[Tensor]()
        weights = {name: BSRMatrix.from_dense(layer.weights[name], mask) for name, mask in layer.masks.items()}
        self.index = weights["weight_hh"].index
        h0, c0 = (state[0].contiguous() for state in layer.state)
        self.operands = Operands(
            layer.x, *(weights[name].data for name in ("weight_ih", "weight_hh")), *layer.biases.values(), h0, c0
        )
        sizes = Sizes(layer.batch_size, layer.hidden_size, layer.block_size)
        with self.guards():
            self.lstm = Lstm(
                sizes,
                layer.torch_dtype,
                self.index,
                torch_products(weights),
                keep=layer.passes == "forward_backward",
                together=together,
                tf32=element == "Tf32",
                tiles=tiles and (tiles, tiles),
                load=load,
            )

    @contextmanager
    def guards(self) -> Iterator[None]:
        """Buffers begin as NaN, and must end with NaN around them."""
        real, cuda_recurrence.empty = cuda_recurrence.empty, partial(guarded, self.held)
        try:
            yield
        finally:
            cuda_recurrence.empty = real
        for each in self.held:
            assert each[:GUARD].isnan().all() and each[-GUARD:].isnan().all()

    def outputs(self) -> dict[str, Tensor]:
        """As `lstm_reference` names them."""
        with self.guards():
            y, c = self.lstm.forward(self.operands)
            found = {"y": y, "h": y[-1:], "c": c[None]}
            if self.layer.passes == "forward_backward":
                found |= named(self.lstm.backward(self.layer.grad_y))
        return found

    def check(self) -> None:
        """AssertionError where an output is further from float64 than roundings allow."""
        expected, found = lstm_reference(self.layer, dense=False), self.outputs()
        assert found.keys() == expected.keys()
        for name, wanted in expected.items():
            assert found[name].shape == wanted.shape and found[name].dtype == self.layer.torch_dtype
            assert_near(found[name], wanted, tolerance(self.layer, self.element), name)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    if wanted.numel():
        error, scale = (found.double() - wanted).abs().max(), wanted.abs().max()
        assert error <= tolerance * scale, f"{name}: error {error:.3g}, largest element {scale:.3g}"


def named(grads: Gradients) -> dict[str, Tensor]:
    found = {f"grad_{name}": getattr(grads, name) for name in ("x", "weight_ih", "weight_hh")}
    return found | {"grad_bias_ih": grads.bias, "grad_bias_hh": grads.bias}


def tolerance(layer: Layer, element: str) -> float:
    """Largest error of an output relative to its largest element.

    As kernels.check.lstm_tolerance, and besides, what is stored (the weighted inputs, states, gradients) and the factors of
    products are rounded: twice a step, independently, so that the errors of the steps grow by their root; the backward pass
    doubles them.
    """
    samples = layer.batch_size * layer.steps
    terms = max(layer.input_size + layer.hidden_size, 4 * layer.hidden_size, samples)
    sums = 2 * layer.steps * (sqrt(terms) + GATE_ERRORS) * 2.0**-24
    return sums + (0.0 if element == "Float32" else 4 * sqrt(layer.steps) * ROUNDOFF[element])
