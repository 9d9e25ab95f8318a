"""Cells: one frozen model = one measurement. Every setting has a description, a bound and a default.

A cell's identity is the sha256 of its *non-default* settings, so a new setting with a no-op default changes no old id.
Settings that cannot matter (the block size of a run that neither prunes nor penalises) are put back to their defaults
by `canonical`, so that equal work written differently is one cell. A training cell is the sum of groups of settings,
each of which stands with what it sets (`bench.settings` says how); a new one is one more base of `TrainCell`.

What differs from kind to kind is asked of the cell, whose answers `Cell` begins with: a new kind is a class with those
that differ, a place in KINDS, the module of its `work` and its columns in `bench.schema`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeGuard

from pydantic import Field, model_validator

from bench.data.datasets import known_sizes, names_of, task_of
from bench.data.images import ImageSizes
from bench.data.settings import TextSettings, WindowSettings
from bench.models.settings import ModelSettings
from bench.pruning.settings import LassoSettings, PruningSettings, ScaleSettings
from bench.settings import BlockSize, Count, Fraction, Settings, require_division
from bench.training.settings import ArithmeticSettings, OptimizerSettings, PathSettings, ReportSettings
from kernels.registry import BACKENDS, Catalogue, Registry
from kernels.tensors.rounding import in_blocks

if TYPE_CHECKING:
    from kernels.problem import GemmProblem, LstmProblem

ID_DIGITS = 16

Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Math = Literal["ieee", "tf32"]
PAD = (
    "sizes that block_size does not divide are padded with zeros inside, instead of refused; sparsity is counted over "
    "the blocks of the padded weight: each of them holds elements of the weight, so padding alone empties none, and "
    "predicted speedups go by that sparsity; the baseline has the sizes as they are. "
)
MATH = "how float32 is multiplied on a GPU: exactly, or by tensor cores with 10 bits of fraction (both sides alike)"
Backend = Annotated[str, BACKENDS]
Grids = dict[str, tuple[int, int]]

LSTM_GATES = 4  # parts of a weight's rows that share no block
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LAUNCHES = 60  # timed for a cell, backend and baseline together
LONGEST_TIMING = 20.0  # seconds; launches that take long are timed fewer times
CHECK_SECONDS = 1.0  # operands, reference, compilation
VARIANTS = 10  # of a kernel, to be tuned
LAST_CHECKED = "{error_ratio} of the error bound in the last row, {kernel}"


class Cell(Settings):
    """What all cells share: a kind, a canonical form and a stable identity.

    work: 'module:function' that measures it. trains: it has the settings of a training run, which runs beside others
    and from checkpoint to checkpoint. checks: it says whether a kernel is right. figures: what `show` tells of it.
    """

    kind: ClassVar[str]
    work: ClassVar[str]
    trains: ClassVar[bool] = False
    checks: ClassVar[bool] = False
    figures: ClassVar[str] = ""

    def canonical(self) -> Self:
        """The same measurement with every setting that cannot matter put back to its default."""
        defaults = _defaults(type(self))
        return self.model_copy(update={name: defaults[name] for name in self.idle()})

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        return _differing(type(self), self.model_dump())

    @property
    def cell_id(self) -> str:
        """sha256 of the canonical JSON of kind and non-default settings, the first 16 hex digits."""
        return identity(self.kind, self.canonical().model_dump())

    def dense_flops(self) -> float:
        """Operations of one dense launch."""
        return 0.0

    def seconds_at(self, rate: float) -> float:
        """Roughly what it takes at `rate` operations a second and density 1."""
        dense = self.dense_flops() / rate
        reference = 4 * dense  # of both sides, in float64
        return CHECK_SECONDS + reference + min(max(0.5, LAUNCHES * dense), LONGEST_TIMING)

    def operand_bytes(self) -> int:
        """Bytes below which nothing can be timed: weights, full and pruned, and what checks them in float64."""
        return 0

    def grids(self) -> Grids:
        """Blocks along both sides of each weight that it prunes, by torch's names."""
        return {}

    @property
    def plugins(self) -> str:
        """The plugins that its settings name, each with the first 16 digits of its file's sha256; '' without."""
        named = [
            registry.source(getattr(self, name))
            for name, field in type(self).model_fields.items()
            for registry in field.metadata
            if isinstance(registry, Catalogue | Registry)
        ]
        return ", ".join(dict.fromkeys(f"{each.name} {each.sha256[:16]}" for each in named if each))

    def kernel_checks(self) -> Sequence[CheckCell]:
        """What is to be checked before it is timed, or trained on a GPU by kernels that skip empty blocks."""
        return ()

    def kernel_tuning(self) -> TuneCell | None:
        """Its shape, for which variants of its backend's kernel can be timed."""
        return None


@cache
def _defaults(kind: type[Cell]) -> dict[str, Any]:
    """The default of every setting, by name; none of them can be changed."""
    return {name: field.get_default() for name, field in kind.model_fields.items()}


def _differing(kind: type[Cell], settings: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(kind)
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _layer_grids(widths: Sequence[int], block_size: int, scope: str) -> Grids:
    """Of LSTM layers of these widths: what goes into the first, and comes out of each."""
    found: Grids = {}
    for number, (into, out) in enumerate(pairwise(widths)):
        kinds = {"weight_ih": into, "weight_hh": out} if scope == "all" else {"weight_hh": out}
        for name, columns in kinds.items():
            rows, whole = in_blocks((LSTM_GATES * out, columns), LSTM_GATES, block_size)
            found[f"{name}_l{number}"] = rows // block_size, whole // block_size
    return found


def _check_of(cell: Cell, op: str) -> CheckCell:
    """The check of `op` by the kernel that a cell times."""
    shared = {name: getattr(cell, name) for name in ("backend", "block_size", "dtype", "math", "device", "threads")}
    return CheckCell.model_validate({"op": op, **shared}).canonical()


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
        for name, size in (("m", self.m), ("k", self.k)) if not self.pads else ():
            require_division(name, size, self.block_size, "pad" in type(self).model_fields)
        return self

    @property
    def pads(self) -> bool:
        """Whether sizes that block_size does not divide are padded."""
        return False

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.dtype != "float32":
            yield "math"

    def dense_flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    def problem(self) -> GemmProblem:
        """What its backends solve."""
        from kernels.problem import GemmProblem

        apart = {"backend", "baseline", "cache", "threads", "target_sparsity"}
        return GemmProblem(sparsity=self.target_sparsity, **self.model_dump(exclude=apart))


TIMED_ALONE = ("baseline", "cache", "layout", "call", "pad")  # settings of a timed product that its tuning has not


class GemmCell(ProductCell):
    """One backend timed against one baseline on a product."""

    kind: ClassVar[str] = "gemm"
    work: ClassVar[str] = "bench.timing:time_cell"
    figures: ClassVar[str] = "{time_ms} ms{faster}{noisy}"
    sides: ClassVar[str] = "m {m} x k {k}"

    baseline: Backend = Field("dense", description="backend it is paired with; it multiplies the unpruned weight")
    cache: Literal["hot", "cold"] = Field("hot", description="operands left in cache, or evicted before each sample")
    layout: Literal["row", "column"] = Field(
        "row",
        description="how X, G and the result lie on a CPU: row by row, or column by column, as activations [n, k] do; "
        "the baseline is the fastest of every order",
    )
    call: Literal["launch", "operator"] = Field(
        "launch",
        description="what is timed: a launch prepared beforehand, or the public operator with a frozen weight, its "
        "output allocated in each call",
    )
    pad: bool = Field(
        False,
        description=PAD + "A launch prepared beforehand multiplies operands that lie padded, the operator copies them",
    )

    @property
    def pads(self) -> bool:
        return self.pad

    @model_validator(mode="after")
    def _is_called(self) -> Self:
        if self.call == "operator" and self.op != "dsd":
            raise ValueError(f"call: operator is of op dsd, not of {self.op}, which autograd calls; accepted: launch")
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.device != "cpu":
            yield "layout"
        if self.whole == (self.m, self.k):
            yield "pad"

    @property
    def whole(self) -> tuple[int, int]:
        """m and k in whole blocks."""
        return in_blocks((self.m, self.k), 1, self.block_size)

    def operand_bytes(self) -> int:
        item, reference = BYTES[self.dtype], 8 * self.m * self.k
        return reference if self.op == "sdd" else 2 * item * self.m * self.k + (0 if item == 8 else reference)

    def grids(self) -> Grids:
        rows, columns = self.whole
        return {"the weight": (rows // self.block_size, columns // self.block_size)}

    def kernel_checks(self) -> Sequence[CheckCell]:
        return (_check_of(self, self.op),)

    def kernel_tuning(self) -> TuneCell:
        sizes = dict(zip(("m", "k"), self.whole, strict=True))
        return TuneCell.model_validate(self.model_dump(exclude={"seed", *TIMED_ALONE}) | sizes).canonical()


class TuneCell(ProductCell):
    """The variants of our kernel for one product, timed in turns: which one is the fastest."""

    kind: ClassVar[str] = "tune"
    work: ClassVar[str] = "bench.measuring.tuning:tune_cell"
    figures: ClassVar[str] = LAST_CHECKED

    def seconds_at(self, rate: float) -> float:
        return VARIANTS * (CHECK_SECONDS + (4 + LAUNCHES) * self.dense_flops() / rate)


class StorageCell(Cell):
    """A matrix S[m, k] with zeros stored in one form: its bytes in memory and in a file, and the time of S X[k, n].

    Of a weight the zeros are whole blocks, drawn at random; activations, [tokens, neurons], are what a ReLU leaves of
    normal values that were lowered by their own quantile `target_sparsity`.
    """

    kind: ClassVar[str] = "storage"
    work: ClassVar[str] = "bench.storage:store_cell"
    figures: ClassVar[str] = (
        "{value_bytes} bytes of values, {index_bytes} of indices, {file_bytes} in a file; {time_ms} ms{faster}{noisy}"
    )
    sides: ClassVar[str] = GemmCell.sides
    baseline: ClassVar[str] = "dense"
    cache: ClassVar[str] = "hot"

    form: Literal["dense", "coo", "csr", "bsr"] = Field(
        "bsr",
        description="how it is stored: every element; coordinates (torch.sparse_coo); compressed rows "
        "(torch.sparse_csr); or compressed rows of blocks (BSRMatrix)",
    )
    indices: Literal["int32", "int64"] = Field(
        "int32",
        description="type of the indices of csr; torch makes int64 unless told otherwise. Those of coo are int64, of "
        "bsr int32",
    )
    what: Literal["weight", "activation"] = Field(
        "weight",
        description="weight: a share target_sparsity of its blocks is zero; activation: after a ReLU, before which it "
        "is lowered so that this share of its elements is zero",
    )
    m: Count = Field(1024, description="rows: of a weight its outputs, of activations tokens")
    k: Count = Field(1024, description="columns: of a weight its inputs, of activations neurons")
    n: Count = Field(32, description="columns of X in the product: tokens; of activations outputs of the next layer")
    block_size: BlockSize = Field(
        16, description="side of a square block of the form bsr and of a weight's pattern, elements; 1: single elements"
    )
    target_sparsity: Fraction = Field(0.8, description="share wanted zero: of a weight's blocks, of activations")
    dtype: Dtype = Field("float32", description="type of values and operands")

    @property
    def has_blocks(self) -> bool:
        """Whether the size of blocks matters."""
        return self.form == "bsr" or (self.what == "weight" and self.target_sparsity > 0.0)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.has_blocks:
            require_division("m", self.m, self.block_size)
            require_division("k", self.k, self.block_size)
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.form != "csr":
            yield "indices"
        if not self.has_blocks:
            yield "block_size"

    def dense_flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    def operand_bytes(self) -> int:
        return (2 * BYTES[self.dtype] + 8) * self.m * self.k

    def grids(self) -> Grids:
        size = self.block_size
        return {"the weight": (self.m // size, self.k // size)} if self.what == "weight" and self.has_blocks else {}

    def kernel_checks(self) -> Sequence[CheckCell]:
        if self.form != "bsr":
            return ()
        shared = {name: getattr(self, name) for name in ("block_size", "dtype", "device", "threads")}
        return (CheckCell.model_validate({"backend": self.kernel, **shared}).canonical(),)

    @property
    def kernel(self) -> str:
        """Ours, which multiplies what is stored in blocks."""
        return "cuda" if self.device == "cuda" else "native"


class LstmCell(Cell):
    """One backend timed against one baseline on an LSTM layer over all time steps, with block-sparse weights."""

    kind: ClassVar[str] = "lstm"
    work: ClassVar[str] = GemmCell.work
    figures: ClassVar[str] = GemmCell.figures
    sides: ClassVar[str] = "hidden_size {hidden_size}, input_size {input_size}"
    cache: ClassVar[str] = "hot"

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
    pad: bool = Field(
        False, description=PAD + "Each gate is padded by itself; x, state and outputs are copied in each launch"
    )

    @property
    def divided(self) -> dict[str, int]:
        """Settings that block_size must divide, or else be padded, by name."""
        inputs = {"input_size": self.input_size} if self.scope == "all" else {}
        return {"hidden_size": self.hidden_size, **inputs}

    @model_validator(mode="after")
    def _divides(self) -> Self:
        for name, size in self.divided.items() if not self.pad else ():
            require_division(name, size, self.block_size, pads=True)
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.dtype != "float32":
            yield "math"
        if not any(size % self.block_size for size in self.divided.values()):
            yield "pad"

    def dense_flops(self) -> float:
        weights = 4 * self.hidden_size * (self.input_size + self.hidden_size)
        # the backward pass costs twice the forward pass
        return (3 if self.passes == "forward_backward" else 1) * 2.0 * weights * self.batch_size * self.bptt

    def problem(self) -> LstmProblem:
        """What its backends solve."""
        from kernels.problem import LstmProblem

        apart = {"backend", "baseline", "threads", "target_sparsity", "bptt"}
        return LstmProblem(steps=self.bptt, sparsity=self.target_sparsity, **self.model_dump(exclude=apart))

    def operand_bytes(self) -> int:
        across, recurrent = 4 * self.hidden_size * self.input_size, 4 * self.hidden_size**2
        return BYTES[self.dtype] * (across * (2 if self.scope == "all" else 1) + 2 * recurrent)

    def grids(self) -> Grids:
        return _layer_grids([self.input_size, self.hidden_size], self.block_size, self.scope)

    def kernel_checks(self) -> Sequence[CheckCell]:
        return (_check_of(self, self.passes),)


class CheckCell(Cell):
    """One kernel checked on a device against float64: every pattern and every batch of `bench.measuring.checks`."""

    kind: ClassVar[str] = "check"
    work: ClassVar[str] = "bench.measuring.checks:check_cell"
    checks: ClassVar[bool] = True
    figures: ClassVar[str] = LAST_CHECKED

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

    def seconds_at(self, rate: float) -> float:  # noqa: ARG002
        return CHECK_SECONDS if self.tool == "none" else 60 * CHECK_SECONDS


class TrainCell(
    ScaleSettings,
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
    """One network trained, pruned and evaluated: a language model, or a classifier."""

    kind: ClassVar[str] = "train"
    work: ClassVar[str] = "bench.train:train_cell"
    trains: ClassVar[bool] = True
    figures: ClassVar[str] = (
        "val_ppl {val_ppl}, test_ppl {test_ppl}{right}, sparsity {sparsity}, epoch {epoch}{compiled}"
    )

    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where it trains and is evaluated; the first weights are drawn on the CPU, so a seed begins alike "
        "on both",
    )

    @model_validator(mode="after")
    def _optimizer_takes_the_gradients(self) -> Self:
        exact = self.optimizer in ("adam", "sgd") and not self.weight_decay and not self.momentum
        if self.embedding_gradient == "sparse" and not exact:
            raise ValueError(
                "embedding_gradient: sparse is for adam and sgd without weight_decay and momentum; "
                "accepted: dense, or these"
            )
        return self

    @model_validator(mode="after")
    def _windows_can_be_recorded(self) -> Self:
        if self.compile == "reduce-overhead" and self.is_recurrent and (self.bptt_jitter or self.bptt_halved):
            raise ValueError(
                "compile: reduce-overhead records a CUDA graph for each length of a window, which bptt_jitter and "
                "bptt_halved draw at random; accepted: none or default, or both of them 0"
            )
        return self

    @model_validator(mode="after")
    def _model_learns_the_data(self) -> Self:
        if task_of(self.dataset) != self.task:
            accepted = ", ".join(names_of(self.task))
            raise ValueError(f"dataset: {self.dataset} is no data for model {self.model}; accepted: {accepted}")
        return self

    @model_validator(mode="after")
    def _scales_are_there(self) -> Self:
        if (self.scale_penalty or self.scale_threshold) and not (self.batch_norm and not self.is_recurrent):
            name = "scale_threshold" if self.scale_threshold else "scale_penalty"
            raise ValueError(
                f"{name}: there are no scales without batch_norm; accepted: 0, or batch_norm = true of an mlp"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_linear(self) -> Self:
        """What is of LSTM layers alone, and what blocks of linear ones need."""
        if self.is_recurrent:
            return self
        if self.batch_norm and self.optimizer in ("asgd", "nt_asgd"):
            raise ValueError(
                f"optimizer: {self.optimizer} averages weights, not what batch_norm measures; accepted: sgd, adam"
            )
        if self.prunes and self.allocation == "gate":
            raise ValueError(f"allocation: a {self.model} has no gates; accepted: uniform, erk, global")
        if self.uses_blocks and self.scope == "weight_hh" and self.num_layers == 1:
            raise ValueError("num_layers: 1 hidden layer has no weights between hidden layers; accepted: 2 or more")
        if self.uses_blocks and not self.pad and self.scope == "all" and self.input_width % self.block_size:
            sizes = [str(size) for size in range(1, self.input_width + 1) if self.input_width % size == 0]
            raise ValueError(
                f"block_size: {self.block_size} does not divide the {self.input_width} numbers of an example of "
                f"{self.dataset}; accepted: {', '.join(sizes)}, pad = true, or scope = weight_hh"
            )
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.is_recurrent:
            yield from (*WindowSettings.__annotations__, "train_tokens", "eval_tokens", "rate_by_length")
            yield from ("test_batch_size", "compile")

    @property
    def gates(self) -> int:
        return LSTM_GATES if self.is_recurrent and self.pad else 1

    @property
    def divided(self) -> dict[str, int]:
        """Of an LSTM model those that are a side of a weight in blocks."""
        found = super().divided
        if not self.is_recurrent:
            return found
        widths = self.layer_widths[1:] if self.scope == "weight_hh" else self.layer_widths
        return {name: size for name, size in found.items() if size in widths}

    @property
    def has_odd_sizes(self) -> bool:
        of_inputs = not self.is_recurrent and self.scope == "all" and self.input_width % self.block_size > 0
        return super().has_odd_sizes or of_inputs

    @property
    def input_width(self) -> int:
        """What goes into the first layer."""
        sizes = None if self.is_recurrent else known_sizes(self.dataset)
        return sizes.features if isinstance(sizes, ImageSizes) else super().input_width

    def grids(self) -> Grids:
        if not self.prunes:
            return {}
        if self.is_recurrent:
            return _layer_grids(self.layer_widths, self.block_size, self.scope)
        size, found = self.block_size, list(enumerate(pairwise(self.layer_widths)))
        return {
            f"layers.{number}.weight": (-(-out // size), -(-into // size))
            for number, (into, out) in (found if self.scope == "all" else found[1:])
        }

    def kernel_checks(self) -> Sequence[CheckCell]:
        if self.device == "cpu" or self.path == "dense":
            return ()
        arithmetic = {"dtype": "bfloat16"} if self.precision == "bfloat16" else {"math": self.precision}
        alike: dict[str, Any] = {name: getattr(self, name) for name in ("block_size", "device", "threads")}
        ops: tuple[Any, ...] = ("forward_backward",) if self.is_recurrent else ("dsd", "dsd_t", "sdd")
        return [CheckCell(backend="cuda", op=op, **arithmetic, **alike) for op in ops]


TimedCell = GemmCell | LstmCell
Row = dict[str, Any]
Progress = dict[str, float | int | str]
Tell = Callable[[Progress], None]  # by which work says how far it is


def is_training(cell: Cell) -> TypeGuard[TrainCell]:
    """Whether a cell has the settings of a training run."""
    return cell.trains


KINDS: dict[str, type[Cell]] = {
    cell.kind: cell for cell in (GemmCell, LstmCell, TrainCell, CheckCell, TuneCell, StorageCell)
}


def identity(kind: str, settings: Mapping[str, Any]) -> str:
    """The cell_id of canonical settings: those at their defaults, given or not, do not count."""
    own = _differing(KINDS[kind], settings)
    text = json.dumps({"kind": kind, **own}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def number(count: int, noun: str = "cell") -> str:
    """'1 cell', '3 cells'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
