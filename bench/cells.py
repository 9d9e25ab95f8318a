"""Cells: one frozen model = one measurement. Every setting has a description, a bound and a default.

A cell's identity is the sha256 of its *non-default* settings, so a new setting with a no-op default changes no old id.
Settings that cannot matter (the block size of a run that neither prunes nor penalises) are put back to their defaults
by `canonical`, so that equal work written differently is one cell.

What differs from kind to kind is asked of the cell, whose answers `Cell` begins with: a new kind is a class with those
that differ, a place in KINDS, the module of its `work` and its columns in `bench.schema`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeGuard

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kernels.rounding import nearest_multiples

if TYPE_CHECKING:
    from kernels.problem import GemmProblem, LstmProblem

ID_DIGITS = 16
LARGEST_INT = 2**31 - 1  # so that every setting fits a column, and a seed times 16 fits torch's generator


def _without_sign(value: float) -> float:
    return abs(value)  # -0.0 passes a bound of 0 and would be another cell


Fraction = Annotated[float, Field(ge=0.0, le=1.0), AfterValidator(_without_sign)]
ProperFraction = Annotated[float, Field(ge=0.0, lt=1.0), AfterValidator(_without_sign)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0), AfterValidator(_without_sign)]
Count = Annotated[int, Field(ge=1, le=LARGEST_INT)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Math = Literal["ieee", "tf32"]
MATH = "how float32 is multiplied on a GPU: exactly, or by tensor cores with 10 bits of fraction (both sides alike)"
BlockSize = Annotated[int, Field(ge=1, le=1024)]
Grids = dict[str, tuple[int, int]]

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LAUNCHES = 60  # timed for a cell, backend and baseline together
LONGEST_TIMING = 20.0  # seconds; launches that take long are timed fewer times
CHECK_SECONDS = 1.0  # operands, reference, compilation
VARIANTS = 10  # of a kernel, to be tuned
LAST_CHECKED = "{error_ratio} of the error bound in the last row, {kernel}"


class Cell(BaseModel):
    """What all cells share: strict typing, no unknown settings, no NaN or infinity, a stable identity.

    work: 'module:function' that measures it. trains: it has the settings of a training run, which runs beside others and
    from checkpoint to checkpoint. checks: it says whether a kernel is right. figures: what `show` tells of its last row.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str]
    work: ClassVar[str]
    trains: ClassVar[bool] = False
    checks: ClassVar[bool] = False
    figures: ClassVar[str] = ""

    seed: Natural = Field(0, description="replicate: seeds the operands or the training run")
    threads: Natural = Field(1, description="CPU threads the cell may use; 0 means all physical cores")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it runs")

    def canonical(self) -> Self:
        """The same measurement with every setting that cannot matter put back to its default."""
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if value != type(self).model_fields[name].get_default()
        }

    @property
    def cell_id(self) -> str:
        """sha256 of the canonical JSON of kind and non-default settings, the first 16 hex digits."""
        return identity(self.kind, self.canonical().model_dump())

    def reset(self, *names: str) -> Self:
        """A copy with the named settings at their defaults."""
        return self.model_copy(update={name: type(self).model_fields[name].get_default() for name in names})

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

    def kernel_check(self) -> CheckCell | None:
        """What is to be checked before it is timed, or trained on a GPU by kernels that skip empty blocks."""
        return None

    def kernel_tuning(self) -> TuneCell | None:
        """Its shape, for which variants of its backend's kernel can be timed."""
        return None


def _require_division(field: str, size: int, block_size: int) -> None:
    if size % block_size:
        raise ValueError(
            f"{field}: {size} is not divisible by block_size {block_size}; accepted: {nearest_multiples(size, block_size)} "
            "(the nearest sizes that work)"
        )


def _layer_grids(widths: Sequence[int], block_size: int, scope: str) -> Grids:
    """Of LSTM layers of these widths: what goes into the first, and comes out of each."""
    found: Grids = {}
    for number, (into, out) in enumerate(pairwise(widths)):
        kinds = {"weight_ih": into, "weight_hh": out} if scope == "all" else {"weight_hh": out}
        for name, columns in kinds.items():
            found[f"{name}_l{number}"] = 4 * out // block_size, columns // block_size
    return found


def _check_of(cell: Cell, op: str) -> CheckCell:
    """The check of `op` by the kernel that a cell times."""
    shared = {name: getattr(cell, name) for name in ("backend", "block_size", "dtype", "math", "device", "threads")}
    return CheckCell.model_validate({"op": op, **shared}).canonical()


class ProductCell(Cell):
    """A product with a block-sparse W[m, k]: of it, of its transpose, or for it.

    dsd: Y[m, n] = W X[k, n]. dsd_t: Y[k, n] = W^T G[m, n], the gradient of X. sdd: the kept blocks of G[m, n] X[k,
    n]^T, the gradient of W.
    """

    # fmt: off
    backend: str = Field("native", description="backend under test")
    op: Literal["dsd", "dsd_t", "sdd"] = Field("dsd", description="product: dsd is dense = sparse x dense, dsd_t the same with the transpose, sdd the kept blocks of dense x dense")
    m: Count = Field(1024, description="rows of W, elements")
    k: Count = Field(1024, description="columns of W, elements")
    n: Count = Field(32, description="columns of X, elements (batch)")
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    target_sparsity: Fraction = Field(0.8, description="share of blocks wanted empty, fraction")
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)
    # fmt: on

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _require_division("m", self.m, self.block_size)
        _require_division("k", self.k, self.block_size)
        return self

    def canonical(self) -> Self:
        return self if self.dtype == "float32" else self.reset("math")

    def dense_flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    def problem(self) -> GemmProblem:
        """What its backends solve."""
        from kernels.problem import GemmProblem

        apart = {"backend", "baseline", "cache", "threads", "target_sparsity"}
        return GemmProblem(sparsity=self.target_sparsity, **self.model_dump(exclude=apart))


class GemmCell(ProductCell):
    """One backend timed against one baseline on a product."""

    kind: ClassVar[str] = "gemm"
    work: ClassVar[str] = "bench.timing:time_cell"
    figures: ClassVar[str] = "{time_ms} ms{faster}{noisy}"
    sides: ClassVar[str] = "m {m} x k {k}"

    # fmt: off
    baseline: str = Field("dense", description="backend it is paired with; it multiplies the unpruned weight")
    cache: Literal["hot", "cold"] = Field("hot", description="operands left in cache, or evicted before each sample")
    # fmt: on

    def operand_bytes(self) -> int:
        item, reference = BYTES[self.dtype], 8 * self.m * self.k
        return reference if self.op == "sdd" else 2 * item * self.m * self.k + (0 if item == 8 else reference)

    def grids(self) -> Grids:
        return {"the weight": (self.m // self.block_size, self.k // self.block_size)}

    def kernel_check(self) -> CheckCell:
        return _check_of(self, self.op)

    def kernel_tuning(self) -> TuneCell:
        return TuneCell.model_validate(self.model_dump(exclude={"seed", "baseline", "cache"})).canonical()


class TuneCell(ProductCell):
    """The variants of our kernel for one product, timed in turns: which one is the fastest."""

    kind: ClassVar[str] = "tune"
    work: ClassVar[str] = "bench.measuring.tuning:tune_cell"
    figures: ClassVar[str] = LAST_CHECKED

    def seconds_at(self, rate: float) -> float:
        return VARIANTS * (CHECK_SECONDS + (4 + LAUNCHES) * self.dense_flops() / rate)


class LstmCell(Cell):
    """One backend timed against one baseline on an LSTM layer over all time steps, with block-sparse weights."""

    kind: ClassVar[str] = "lstm"
    work: ClassVar[str] = GemmCell.work
    figures: ClassVar[str] = GemmCell.figures
    sides: ClassVar[str] = "hidden_size {hidden_size}, input_size {input_size}"
    cache: ClassVar[str] = "hot"

    # fmt: off
    backend: str = Field("native", description="backend under test")
    baseline: str = Field("torch_lstm", description="backend it is paired with, its weights unpruned: torch_lstm is torch's own layer, loop_lstm the same step loop with dense products")
    passes: Literal["forward", "forward_backward"] = Field("forward_backward", description="forward: as in inference; forward_backward: as in training, with the gradients of x, the weights and the biases")
    input_size: Count = Field(512, description="features of x, elements")
    hidden_size: Count = Field(512, description="hidden units; the weights have 4 rows for each")
    batch_size: Count = Field(20, description="sequences side by side")
    bptt: Count = Field(35, description="time steps")
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    target_sparsity: Fraction = Field(0.8, description="share of blocks wanted empty, fraction")
    scope: Literal["all", "weight_hh"] = Field("all", description="weights that are block-sparse: both, or the recurrent one")
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)
    # fmt: on

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _require_division("hidden_size", self.hidden_size, self.block_size)
        if self.scope == "all":
            _require_division("input_size", self.input_size, self.block_size)
        return self

    def canonical(self) -> Self:
        return self if self.dtype == "float32" else self.reset("math")

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

    def kernel_check(self) -> CheckCell:
        return _check_of(self, self.passes)


class CheckCell(Cell):
    """One kernel checked on a device: every pattern of blocks and every batch of `bench.measuring.checks`, against float64."""

    kind: ClassVar[str] = "check"
    work: ClassVar[str] = "bench.measuring.checks:check_cell"
    checks: ClassVar[bool] = True
    figures: ClassVar[str] = LAST_CHECKED

    # fmt: off
    backend: str = Field("native", description="backend under test")
    op: Literal["dsd", "dsd_t", "sdd", "forward", "forward_backward"] = Field("dsd", description="product, or passes of an LSTM layer")
    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    dtype: Dtype = Field("float32", description="type of values and operands")
    math: Math = Field("ieee", description=MATH)
    tool: Literal["none", "memcheck", "racecheck"] = Field("none", description="tool of compute-sanitizer that watches, or none")
    # fmt: on

    def canonical(self) -> Self:
        return self if self.dtype == "float32" else self.reset("math")

    def seconds_at(self, rate: float) -> float:  # noqa: ARG002
        return CHECK_SECONDS if self.tool == "none" else 60 * CHECK_SECONDS


AWD_LSTM = (
    "input_dropout", "hidden_dropout", "output_dropout", "embedding_dropout", "weight_drop", "activation_penalty",
    "temporal_penalty",
)  # fmt: skip


class TrainCell(Cell):
    """One language model trained, pruned and evaluated."""

    kind: ClassVar[str] = "train"
    work: ClassVar[str] = "bench.train:train_cell"
    trains: ClassVar[bool] = True
    figures: ClassVar[str] = "val_ppl {val_ppl}, test_ppl {test_ppl}, sparsity {sparsity}, epoch {epoch}"

    # fmt: off
    dataset: str = Field("pydoc", description="corpus")
    train_tokens: Natural = Field(0, description="tokens of the training text read in an epoch, each going on where the last stopped; 0 means all")
    eval_tokens: Natural = Field(0, description="tokens of validation and of test text used; 0 means all")
    model: str = Field("lstm", description="architecture")
    embedding_size: Count = Field(64, description="width of the embedding and of the tied decoder")
    hidden_size: Count = Field(128, description="width of every LSTM layer but the last, which has the embedding's")
    num_layers: Count = Field(2, description="LSTM layers")
    dropout: ProperFraction = Field(0.0, description="dropout between layers, fraction (lstm)")
    input_dropout: ProperFraction = Field(0.0, description="locked dropout of the embedded words, fraction (awd_lstm, as all dropouts that follow)")
    hidden_dropout: ProperFraction = Field(0.0, description="locked dropout between LSTM layers, fraction")
    output_dropout: ProperFraction = Field(0.0, description="locked dropout of the last layer's output, fraction")
    embedding_dropout: ProperFraction = Field(0.0, description="share of words whose whole embedding is dropped in a window, fraction")
    weight_drop: ProperFraction = Field(0.0, description="dropout of the recurrent weights, one mask a window, fraction")
    activation_penalty: NonNegative = Field(0.0, description="AR: this times the mean square of the last output, dropped (awd_lstm)")
    temporal_penalty: NonNegative = Field(0.0, description="TAR: this times the mean square of the last raw output's change from step to step (awd_lstm)")
    decoder_bias: Literal["frequencies", "zeros"] = Field("frequencies", description="start of the decoder bias: log word frequencies of the training text, or zeros")
    optimizer: Literal["sgd", "adam", "asgd", "nt_asgd"] = Field("adam", description="sgd and adam are torch's; asgd averages from where the ramp ends; nt_asgd is sgd that averages from when the validation perplexity stalls, at final sparsity")
    nonmonotone: Count = Field(5, description="epochs back from which nt_asgd takes the best validation perplexity that an epoch must exceed to start the averages")
    beta1: ProperFraction = Field(0.9, description="adam's first beta (its largest, where it is scheduled)")
    beta1_dip: ProperFraction = Field(0.0, description="by how much beta1 is lower while four_phases holds its peak")
    beta2: ProperFraction = Field(0.999, description="adam's second beta")
    learning_rate: Positive = Field(0.002, description="learning rate (its peak, where the rate is scheduled)")
    lr_schedule: Literal["constant", "one_cycle", "four_phases"] = Field("constant", description="learning rate over the run: one_cycle is torch's; four_phases rises from a tenth for 1/12 of the steps, holds for 5/12, falls to a tenth in 5/12 and to 0 along a cosine in 1/12")
    rate_by_length: bool = Field(False, description="scale the rate of each step by its window's length over bptt")
    momentum: ProperFraction = Field(0.0, description="momentum of sgd")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty inside the optimizer")
    clip: NonNegative = Field(0.25, description="gradient norm is clipped to this; 0 means never")
    epochs: Count = Field(4, description="epochs, each of train_tokens tokens")
    batch_size: Count = Field(20, description="parallel token streams")
    bptt: Count = Field(35, description="time steps of truncated back-propagation")
    bptt_jitter: NonNegative = Field(0.0, description="standard deviation of the length of a training window, time steps; it is then at least 5")
    bptt_halved: Fraction = Field(0.0, description="share of training windows whose mean length is half of bptt")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it trains and is evaluated; the first weights are drawn on the CPU, so a seed begins alike on both")
    precision: Literal["ieee", "tf32", "bfloat16"] = Field("ieee", description="how float32 is multiplied: exactly; by a GPU's tensor cores with 10 bits of fraction; or as bfloat16 in the forward pass and the gradients of its products, while parameters, optimizer, averages and the loss's log-softmax stay float32")
    selection: Literal["last", "best"] = Field("last", description="epoch that is reported: the last, or that of the lowest validation perplexity among those at final sparsity")
    test_batch_size: Count = Field(10, description="streams the test text is cut into for reported_test_ppl; 1 is exact and slow")
    path: Literal["dense", "sparse", "auto"] = Field("dense", description="what multiplies pruned LSTM weights: dense kernels, kernels that skip empty blocks, or by layer whichever is faster here at the sparsity reached")

    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    scope: Literal["weight_hh", "all"] = Field("all", description="weights pruned and penalised: recurrent ones, or every LSTM matrix")
    lasso: Literal["none", "subgradient", "hinge", "proximal"] = Field("none", description="form of the block-lasso penalty")
    lasso_strength: NonNegative = Field(1e-4, description="lambda of the block lasso")
    lasso_budget: NonNegative = Field(0.0, description="k of the hinge: sum of block norms below which it is silent")
    lasso_scaled: bool = Field(True, description="multiply each block's norm by sqrt(elements in the block)")
    schedule: str = Field("none", description="pruning schedule")
    criterion: str = Field("l2", description="score by which blocks go")
    allocation: Literal["uniform", "erk"] = Field("uniform", description="sparsity of each matrix: that of all, or density in proportion to (rows + cols) / (rows cols)")
    target_sparsity: Fraction = Field(0.0, description="share of blocks wanted empty at the end, fraction")
    prune_begin: Fraction = Field(0.0, description="where the ramp begins (or one_shot cuts), fraction of all steps")
    prune_end: Fraction = Field(0.8, description="where the ramp ends, fraction of all steps")
    scaled_start: bool = Field(False, description="with schedule = pre: the weights that are kept begin larger by 1/sqrt(density), so that sums over what is left have the variance that they have in the dense model")
    prune_every: Count = Field(10, description="steps between two mask updates of a ramp")
    # fmt: on

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prunes or self.lasso != "none":
            _require_division("hidden_size", self.hidden_size, self.block_size)
            _require_division("embedding_size", self.embedding_size, self.block_size)
        if self.prunes and self.schedule not in ("pre", "one_shot") and self.prune_end < self.prune_begin:
            begin, end = self.prune_begin, self.prune_end
            raise ValueError(f"prune_end: {end} lies before prune_begin {begin}; accepted: fractions from {begin} to 1")
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision: tf32 is arithmetic of GPUs; accepted: ieee or bfloat16, or device = cuda")
        if self.beta1_dip > self.beta1:
            raise ValueError(f"beta1_dip: {self.beta1_dip} exceeds beta1; accepted: fractions up to {self.beta1}")
        if self.rate_by_length and self.optimizer == "asgd":
            raise ValueError("rate_by_length: torch's asgd changes its rate a step late; accepted: false, or nt_asgd")
        return self

    @property
    def layer_widths(self) -> list[int]:
        """What goes into the first layer and comes out of each: the last has the embedding's width, for the tied decoder."""
        return [self.embedding_size, *[self.hidden_size] * (self.num_layers - 1), self.embedding_size]

    @property
    def prunes(self) -> bool:
        return self.schedule != "none" and self.target_sparsity > 0.0

    def canonical(self) -> Self:
        cell = self._canonical_model()
        if self.optimizer != "sgd":
            cell = cell.reset("momentum")
        if self.optimizer != "nt_asgd":
            cell = cell.reset("nonmonotone")
        if self.optimizer != "adam":
            cell = cell.reset("beta1", "beta1_dip", "beta2")
        if self.lr_schedule != "four_phases":
            cell = cell.reset("beta1_dip")
        if not self.prunes:
            cell = cell.reset(
                "schedule",
                "criterion",
                "allocation",
                "target_sparsity",
                "prune_begin",
                "prune_end",
                "prune_every",
                "path",
            )
        elif self.schedule == "pre":
            cell = cell.reset("criterion", "prune_begin", "prune_end", "prune_every")
        elif self.schedule == "one_shot":
            cell = cell.reset("prune_end", "prune_every")
        if not self.prunes or self.schedule != "pre":
            cell = cell.reset("scaled_start")
        if self.lasso == "none":
            cell = cell.reset("lasso_strength", "lasso_scaled")
        if self.lasso != "hinge":
            cell = cell.reset("lasso_budget")
        if not self.prunes and self.lasso == "none":
            cell = cell.reset("block_size", "scope")
        return cell

    def grids(self) -> Grids:
        return _layer_grids(self.layer_widths, self.block_size, self.scope) if self.prunes else {}

    def kernel_check(self) -> CheckCell | None:
        if self.device == "cpu" or self.path == "dense":
            return None
        arithmetic = {"dtype": "bfloat16"} if self.precision == "bfloat16" else {"math": self.precision}
        alike: dict[str, Any] = {name: getattr(self, name) for name in ("block_size", "device", "threads")}
        return CheckCell(backend="cuda", op="forward_backward", **arithmetic, **alike)

    def _canonical_model(self) -> Self:
        if self.model == "awd_lstm":
            return self.reset("dropout")
        return self.reset(*AWD_LSTM) if self.model == "lstm" else self


TimedCell = GemmCell | LstmCell
Row = dict[str, Any]
Progress = dict[str, float | int | str]
Tell = Callable[[Progress], None]  # by which work says how far it is


def is_training(cell: Cell) -> TypeGuard[TrainCell]:
    """Whether a cell has the settings of a training run."""
    return cell.trains


KINDS: dict[str, type[Cell]] = {cell.kind: cell for cell in (GemmCell, LstmCell, TrainCell, CheckCell, TuneCell)}


def identity(kind: str, settings: Mapping[str, Any]) -> str:
    """The cell_id of canonical settings: those at their defaults, given or not, do not count."""
    fields = KINDS[kind].model_fields
    own = {name: value for name, value in settings.items() if value != fields[name].get_default()}
    text = json.dumps({"kind": kind, **own}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def number(count: int, noun: str = "cell") -> str:
    """'1 cell', '3 cells'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
