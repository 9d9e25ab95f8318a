"""Cells: one frozen model = one measurement. Every setting has a description, a bound and a default.

A cell's identity is the sha256 of its *non-default* settings, so a new setting with a no-op default changes no old id.
Settings that cannot matter (the block size of a run that neither prunes nor penalises) are put back to their defaults
by `canonical`, so that equal work written differently is one cell. A training cell is the sum of groups of settings,
each of which stands with what it sets (`bench.settings` says how); a new one is one more base of `TrainCell`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bench.data.settings import TextSettings, WindowSettings
from bench.models.settings import ModelSettings
from bench.pruning.settings import LassoSettings, PruningSettings
from bench.settings import BlockSize, Count, Fraction, Settings, require_division
from bench.training.settings import ArithmeticSettings, OptimizerSettings, PathSettings, ReportSettings
from kernels.registry import BACKENDS

ID_DIGITS = 16

Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Math = Literal["ieee", "tf32"]
MATH = "how float32 is multiplied on a GPU: exactly, or by tensor cores with 10 bits of fraction (both sides alike)"
Backend = Annotated[str, BACKENDS]


class Cell(Settings):
    """What all cells share: a kind, a canonical form and a stable identity."""

    kind: ClassVar[str]

    def canonical(self) -> Self:
        """The same measurement with every setting that cannot matter put back to its default."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].get_default() for name in self.idle()})

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        return _differing(type(self), self.model_dump())

    @property
    def cell_id(self) -> str:
        """sha256 of the canonical JSON of kind and non-default settings, the first 16 hex digits."""
        return identity(self.kind, self.canonical().model_dump())

    def label(self) -> str:
        """A few words for progress lines."""
        return " ".join(f"{name}={value}" for name, value in self.settings().items())


def _differing(kind: type[Cell], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value != kind.model_fields[name].get_default()}


class ProductCell(Cell):
    """A product with a block-sparse W[m, k]: of it, of its transpose, or for it.

    dsd: Y[m, n] = W X[k, n]. dsd_t: Y[k, n] = W^T G[m, n], the gradient of X. sdd: the kept blocks of
    G[m, n] X[k, n]^T, the gradient of W.
    """

    backend: Backend = Field("native", description="backend under test")
    op: Literal["dsd", "dsd_t", "sdd"] = Field(
        "dsd",
        description="product: dsd is dense = sparse x dense, dsd_t the same with the transpose, sdd the kept blocks of "
        "dense x dense",
    )
    m: Count = Field(1024, description="rows of W, elements")
    k: Count = Field(1024, description="columns of W, elements")
    n: Count = Field(32, description="columns of X, elements (batch)")
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    target_sparsity: Fraction = Field(0.8, description="share of blocks wanted empty, fraction")
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_division("m", self.m, self.block_size)
        require_division("k", self.k, self.block_size)
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.dtype != "float32":
            yield "math"


class GemmCell(ProductCell):
    """One backend timed against one baseline on a product."""

    kind: ClassVar[str] = "gemm"

    baseline: Backend = Field("dense", description="backend it is paired with; it multiplies the unpruned weight")
    cache: Literal["hot", "cold"] = Field("hot", description="operands left in cache, or evicted before each sample")


class TuneCell(ProductCell):
    """The variants of our kernel for one product, timed in turns: which one is the fastest."""

    kind: ClassVar[str] = "tune"


class LstmCell(Cell):
    """One backend timed against one baseline on an LSTM layer over all time steps, with block-sparse weights."""

    kind: ClassVar[str] = "lstm"

    backend: Backend = Field("native", description="backend under test")
    baseline: Backend = Field(
        "torch_lstm",
        description="backend it is paired with, its weights unpruned: torch_lstm is torch's own layer, loop_lstm the "
        "same step loop with dense products",
    )
    passes: Literal["forward", "forward_backward"] = Field(
        "forward_backward",
        description="forward: as in inference; forward_backward: as in training, with the gradients of x, the weights "
        "and the biases",
    )
    input_size: Count = Field(512, description="features of x, elements")
    hidden_size: Count = Field(512, description="hidden units; the weights have 4 rows for each")
    batch_size: Count = Field(20, description="sequences side by side")
    bptt: Count = Field(35, description="time steps")
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    target_sparsity: Fraction = Field(0.8, description="share of blocks wanted empty, fraction")
    scope: Literal["all", "weight_hh"] = Field(
        "all", description="weights that are block-sparse: both, or the recurrent one"
    )
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_division("hidden_size", self.hidden_size, self.block_size)
        if self.scope == "all":
            require_division("input_size", self.input_size, self.block_size)
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.dtype != "float32":
            yield "math"


class CheckCell(Cell):
    """One kernel checked on a device against float64: every pattern and every batch of `bench.measuring.checks`."""

    kind: ClassVar[str] = "check"

    backend: Backend = Field("native", description="backend under test")
    op: Literal["dsd", "dsd_t", "sdd", "forward", "forward_backward"] = Field(
        "dsd", description="product, or passes of an LSTM layer"
    )
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)
    tool: Literal["none", "memcheck", "racecheck"] = Field(
        "none", description="tool of compute-sanitizer that watches, or none"
    )

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.dtype != "float32":
            yield "math"


class TrainCell(
    PruningSettings,
    LassoSettings,
    PathSettings,
    ReportSettings,
    ArithmeticSettings,
    WindowSettings,
    OptimizerSettings,
    ModelSettings,
    TextSettings,
    Cell,
):  # pydantic takes the fields of the last base first: columns stand in the order from below
    """One language model trained, pruned and evaluated."""

    kind: ClassVar[str] = "train"

    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where it trains and is evaluated; the first weights are drawn on the CPU, so a seed begins alike "
        "on both",
    )


TimedCell = GemmCell | LstmCell

KINDS: dict[str, type[Cell]] = {cell.kind: cell for cell in (GemmCell, LstmCell, TrainCell, CheckCell, TuneCell)}


def identity(kind: str, settings: Mapping[str, Any]) -> str:
    """The cell_id of canonical settings: those at their defaults, given or not, do not count."""
    own = _differing(KINDS[kind], settings)
    text = json.dumps({"kind": kind, **own}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def number(count: int, noun: str = "cell") -> str:
    """'1 cell', '3 cells'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
