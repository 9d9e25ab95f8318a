"""One LSTM layer of the CUDA kernels on the emulator, and the same layer in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import sqrt
from unittest import mock

import emulator
import torch
from emulated_gpu import emulated_gpu
from torch import Tensor

from kernels.backends.cuda import lstm_launch
from kernels.blockmask import BlockMask
from kernels.check import GATE_ERRORS, lstm_reference
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda import recurrence as cuda_recurrence
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.lstm import device_of
from kernels.cuda.lstm_plan import Tiles
from kernels.cuda.products import Pattern
from kernels.cuda.recurrence import Recurrence, Sizes, plans_for, tiles_for
from kernels.problem import LstmProblem

PATTERNS = ("random", "empty rows", "all empty", "full")
GUARD = 4096
Load = Callable[[Variant], Kernel]
# Relative error of one rounded number: of what is stored, and of the factors of a product.
ROUNDOFF = {"Float32": 2.0**-24, "Tf32": 2.0**-11, "Bfloat16": 2.0**-8, "Float16": 2.0**-11}
MATHS = {"Float32": "ieee", "Tf32": "tf32", "Bfloat16": "ieee", "Float16": "ieee"}
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


class Case:
    """`layer` as the backend launches it, on an emulated H200; `tiles` of both passes, chosen for it if None."""

    def __init__(
        self, layer: Layer, element: str, tiles: Tiles | None = None, together: bool = True, load: Load = emulator.load
    ) -> None:
        self.layer, self.element, self.held = layer, element, list[Tensor]()
        self.tiles, self.together, self.load = tiles and (tiles, tiles), together, load

    def recurrence(self, pattern: Pattern, sizes: Sizes, element: str, dtype: torch.dtype) -> Recurrence:
        """The time steps with the tiles asked for."""
        assert element == self.element
        plans = plans_for(pattern.own, sizes.block, dtype)
        tiles = self.tiles or tiles_for(plans, sizes, element == "Float32", device_of(pattern.gpu), self.together)
        return Recurrence(sizes, element, plans, tiles, self.together, self.load)

    @contextmanager
    def gpu(self) -> Iterator[None]:
        """Every buffer that a kernel writes inside begins as NaN, and must end with NaN around it."""

        def new(x: Tensor, shape: tuple[int, ...]) -> Tensor:
            return guarded(self.held, x.device, x.dtype, *shape)

        def new_strided(x: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
            return new(x, shape).as_strided(shape, stride)

        with (
            emulated_gpu(),
            mock.patch.object(cuda_lstm, "_prepare", self.recurrence),
            mock.patch.object(cuda_recurrence, "empty", partial(guarded, self.held)),
            mock.patch.object(Tensor, "new_empty", new),  # outputs of products
            mock.patch.object(Tensor, "new_empty_strided", new_strided),
        ):
            yield
        for each in self.held:
            assert each[:GUARD].isnan().all() and each[-GUARD:].isnan().all()

    def outputs(self) -> dict[str, Tensor]:
        """As `lstm_reference` names them."""
        with self.gpu():
            launch, together = lstm_launch(self.layer)
            assert together is self.together and f"sm_90a {self.element}, " in launch.kernel
            launch()
            return launch.outputs()

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


def tolerance(layer: Layer, element: str) -> float:
    """Largest error of an output relative to its largest element.

    As kernels.check.lstm_tolerance, and besides, what is stored (the weighted inputs, states, gradients) and the
    factors of products are rounded: twice a step, independently, so that the errors of the steps grow by their root;
    the backward pass doubles them.
    """
    samples = layer.batch_size * layer.steps
    terms = max(layer.input_size + layer.hidden_size, 4 * layer.hidden_size, samples)
    sums = 2 * layer.steps * (sqrt(terms) + GATE_ERRORS) * 2.0**-24
    return sums + (0.0 if element == "Float32" else 4 * sqrt(layer.steps) * ROUNDOFF[element])
