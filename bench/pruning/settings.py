"""Settings of blocks: which weights have them, how the lasso shrinks them, and how pruning empties them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.pruning.criteria import CRITERIA, looked_at
from bench.pruning.schedules import SCHEDULES, is_ramp
from bench.settings import BlockSize, Count, Fraction, NonNegative, ProperFraction, Settings, require_division


class Sparsifying(Settings):
    """What groups tell each other of blocks; each adds its own to what `super()` says, so that none names another."""

    @property
    def prunes(self) -> bool:
        """Whether blocks are emptied."""
        return False

    @property
    def uses_blocks(self) -> bool:
        """Whether anything goes by blocks: else their size cannot matter."""
        return self.prunes

    @property
    def reads_empty_gradients(self) -> bool:
        """Whether the gradients of empty blocks are looked at."""
        return False

    @property
    def gates(self) -> int:
        """Parts of a weight's rows that are padded by themselves: of an LSTM's the gates; 1 where none is padded."""
        return 1

    @property
    def divided(self) -> dict[str, int]:
        """Settings that the size of a block must divide, by name."""
        return {}


class BlockSettings(Sparsifying):
    """The blocks of the weights."""

    block_size: BlockSize = Field(16, description="side of a square weight block, elements")
    scope: Literal["weight_hh", "all"] = Field(
        "all",
        description="weights pruned and penalised: hidden to hidden (recurrent ones; of an mlp those between hidden "
        "layers), or every LSTM matrix (of an mlp every one but the output layer's)",
    )

    pad: bool = Field(
        False,
        description="sizes that block_size does not divide are padded with zeros inside, instead of refused, each gate "
        "by itself; sparsity is counted over the blocks of the padded weights, and one that reaches beyond the weight "
        "is a block like any other",
    )

    @model_validator(mode="after")
    def _blocks_divide(self) -> Self:
        if self.uses_blocks and not self.pad:
            for name, size in self.divided.items():
                require_division(name, size, self.block_size, pads=True)
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.uses_blocks:
            yield from ("block_size", "scope", "pad")
        elif not self.has_odd_sizes:
            yield "pad"

    @property
    def has_odd_sizes(self) -> bool:
        """Whether blocks do not divide what they must, or else is padded."""
        return any(size % self.block_size for size in self.divided.values())


class LassoSettings(BlockSettings):
    """The block lasso."""

    lasso: Literal["none", "subgradient", "hinge", "dual", "proximal", "projection"] = Field(
        "none", description="form of the block-lasso penalty"
    )
    lasso_strength: NonNegative = Field(1e-4, description="lambda of the block lasso; where the dual form begins")
    lasso_budget: NonNegative = Field(
        0.0, description="k, the sum of block norms that hinge, dual and projection allow, scaled as they are"
    )
    lasso_rate: NonNegative = Field(1e-7, description="what the dual form adds to lambda at a step for 1 above k")
    lasso_scaled: bool = Field(True, description="multiply each block's norm by sqrt(elements in the block)")

    @property
    def uses_blocks(self) -> bool:
        return self.lasso != "none" or super().uses_blocks

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.lasso == "none":
            yield "lasso_scaled"
        if self.lasso in ("none", "projection"):
            yield "lasso_strength"
        if self.lasso not in ("hinge", "dual", "projection"):
            yield "lasso_budget"
        if self.lasso != "dual":
            yield "lasso_rate"

    @model_validator(mode="after")
    def _something_is_allowed(self) -> Self:
        if self.lasso in ("dual", "projection") and not self.lasso_budget:
            raise ValueError(f"lasso_budget: 0 allows {self.lasso} no block; accepted: more than 0")
        return self


class ScaleSettings(Sparsifying):
    """Pruning whole neurons by the scales of batch normalisation."""

    scale_penalty: NonNegative = Field(
        0.0, description="this times the sum of the scales' magnitudes is added to the loss (batch_norm)"
    )
    scale_threshold: NonNegative = Field(
        0.0, description="neurons whose scale is smaller go at scale_at, for good; 0 lets none go (batch_norm)"
    )
    scale_at: ProperFraction = Field(0.5, description="when they go, fraction of all steps")

    @property
    def prunes_neurons(self) -> bool:
        """Whether whole neurons go."""
        return self.scale_threshold > 0.0

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.prunes_neurons:
            yield "scale_at"


class PruningSettings(BlockSettings):
    """Pruning by a schedule and a criterion."""

    schedule: Annotated[str, SCHEDULES] = Field("none", description="pruning schedule")
    criterion: Annotated[str, CRITERIA] = Field("l2", description="score by which blocks go")
    curvature_probes: Count = Field(
        8, description="with criterion = hessian: products with random signs that its diagonal is estimated from"
    )
    allocation: Literal["uniform", "erk", "gate", "global"] = Field(
        "uniform",
        description="sparsity of each matrix: that of all, density in proportion to (rows + cols) / (rows cols), that "
        "of all in each of its gates, or what one ranking of the blocks of all matrices leaves it",
    )
    target_sparsity: Fraction = Field(0.0, description="share of blocks wanted empty at the end, fraction")
    threshold: NonNegative = Field(
        0.0,
        description="in place of target_sparsity: blocks whose score is lower go; a ramp raises it from 0; 0 is none",
    )
    initial_sparsity: Fraction = Field(
        0.0, description="share of blocks emptied at once where a ramp begins, fraction (the slides' b)"
    )
    prune_begin: Fraction = Field(0.0, description="where the ramp begins (or one_shot cuts), fraction of all steps")
    prune_end: Fraction = Field(0.8, description="where the ramp ends, fraction of all steps")
    scaled_start: bool = Field(
        False,
        description="with schedule = pre: the weights that are kept begin larger by 1/sqrt(density), so that sums over "
        "what is left have the variance that they have in the dense model",
    )
    prune_biases: bool = Field(
        False,
        description="mask the biases of rows of which no block is kept, in whichever weight, too: such a unit or gate "
        "is constant then; batch_norm leaves no biases",
    )
    prune_every: Count = Field(10, description="steps between two mask updates")
    prune_rounds: Count = Field(
        5,
        description="with schedule = iterative: cuts from prune_begin to prune_end, evenly spread, the last one there; "
        "each takes the same share of the blocks that are left, and what follows it is fine-tuning",
    )
    rewind: Literal["none", "weights"] = Field(
        "none",
        description="with schedule = iterative: after each cut every parameter goes back to its value after rewind_to "
        "of all steps, empty blocks aside, and the optimizer forgets its averages; lr_schedule goes on",
    )
    rewind_to: Fraction = Field(
        0.0, description="what rewind goes back to, fraction of all steps; 0 is before training"
    )
    stop_rise: NonNegative = Field(
        0.0,
        description="with schedule = iterative: no more cuts once an epoch's validation perplexity exceeds the lowest "
        "of all epochs before by more than this share, fine-tuned or not; 0 never stops",
    )
    regrow: Literal["none", "set", "rigl"] = Field(
        "none",
        description="with schedule = pre: the smallest kept blocks are exchanged for empty ones every prune_every "
        "steps up to prune_end; for random ones (SET), or for those with the largest gradient (RigL)",
    )
    regrow_share: ProperFraction = Field(
        0.3,
        description="share of the kept blocks that is exchanged at first; it falls along a cosine to 0 at prune_end",
    )

    @model_validator(mode="after")
    def _ramp_goes_forward(self) -> Self:
        begin, end = self.prune_begin, self.prune_end
        if not self.prunes or not is_ramp(self.schedule):
            return self
        if end < begin:
            raise ValueError(f"prune_end: {end} lies before prune_begin {begin}; accepted: fractions from {begin} to 1")
        if self.initial_sparsity > self.target_sparsity and not self.threshold:
            most = self.target_sparsity
            raise ValueError(f"initial_sparsity: {self.initial_sparsity}; accepted: up to target_sparsity, {most}")
        return self

    @model_validator(mode="after")
    def _a_threshold_stands_alone(self) -> Self:
        if not self.threshold or self.schedule == "none":
            return self
        for name, accepted in (
            ("target_sparsity", (0.0,)),
            ("initial_sparsity", (0.0,)),
            ("allocation", ("uniform",)),
            ("regrow", ("none",)),
        ):
            value = getattr(self, name)
            if value not in accepted:
                raise ValueError(f"{name}: {value} with a threshold; accepted: {accepted[0]}, or threshold = 0")
        for name, value in (("schedule", "pre"), ("criterion", "random")):
            if getattr(self, name) == value:
                raise ValueError(
                    f"threshold: {self.threshold} with {name} {value}, whose scores are noise; accepted: 0"
                )
        return self

    @model_validator(mode="after")
    def _rounds_have_a_way_back(self) -> Self:
        if (self.rewind == "none" and not self.stop_rise) or not self.prunes:
            return self
        for name, none in (("rewind", "none"), ("stop_rise", 0.0)):
            value = getattr(self, name)
            if value != none and self.schedule != "iterative":
                said = f"{name}: {value} with schedule {self.schedule}"
                raise ValueError(f"{said}; accepted: {none}, or schedule = iterative")
        first = self.prune_begin + (self.prune_end - self.prune_begin) / self.prune_rounds
        first = self.prune_begin if self.initial_sparsity else first
        if self.rewind != "none" and self.rewind_to > first:
            behind = f"{self.rewind_to} lies behind the first cut"
            raise ValueError(f"rewind_to: {behind}; accepted: fractions up to {first:g}")
        if self.rewind != "none" and self.stop_rise:
            raise ValueError(
                f"stop_rise: {self.stop_rise} would stop at what rewind sets back; accepted: 0 with rewind"
            )
        return self

    @model_validator(mode="after")
    def _only_fixed_shares_regrow(self) -> Self:
        if self.prunes and self.regrow != "none" and self.schedule != "pre":
            raise ValueError(f"regrow: {self.regrow} with schedule {self.schedule}; accepted: none, or schedule = pre")
        return self

    @property
    def reads_empty_gradients(self) -> bool:
        return (self.prunes and self.regrow == "rigl") or super().reads_empty_gradients

    @model_validator(mode="after")
    def _gradients_were_seen(self) -> Self:
        at_once = self.schedule == "one_shot" or self.initial_sparsity
        first = "prune_begin" if at_once else "prune_end"
        if self.prunes and self.schedule != "pre" and looked_at(self.criterion) and not getattr(self, first):
            raise ValueError(
                f"{first}: 0 cuts before any gradient was seen, which {self.criterion} goes by; accepted: more than 0"
            )
        return self

    @property
    def prunes(self) -> bool:
        return (self.schedule != "none" and max(self.target_sparsity, self.threshold) > 0.0) or super().prunes

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.prunes:
            yield from ("schedule", "allocation", "target_sparsity", "threshold", "prune_biases")
        if not self.prunes or self.schedule == "pre":
            yield from ("criterion", "prune_begin")
        elif self.criterion == "rms" and not self.threshold:  # ranks blocks of one size as l2 does
            yield "criterion"
        if not self.prunes or self.schedule == "pre" or self.criterion != "hessian":
            yield "curvature_probes"
        in_rounds = self.prunes and self.schedule == "iterative"
        if not self.prunes or (not is_ramp(self.schedule) and self.regrow == "none"):
            yield from ("prune_end", "prune_every")
        elif in_rounds:
            yield "prune_every"
        if not in_rounds:
            yield from ("prune_rounds", "rewind", "stop_rise")
        if not in_rounds or self.rewind == "none":
            yield "rewind_to"
        if not self.prunes:
            yield "regrow"
        if not self.prunes or self.regrow == "none":
            yield "regrow_share"
        if not self.prunes or not is_ramp(self.schedule):
            yield "initial_sparsity"
        if not self.prunes or self.schedule != "pre":
            yield "scaled_start"
