"""Settings of a training run: optimizer and rates, arithmetic, what is reported, and the path of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from bench.pruning.settings import Sparsifying
from bench.settings import Count, NonNegative, Positive, ProperFraction, Settings


class OptimizerSettings(Settings):
    """The optimizer, its rates, and how much it is given."""

    optimizer: Literal["sgd", "adam", "asgd", "nt_asgd"] = Field(
        "adam",
        description="sgd and adam are torch's; asgd averages from where the ramp ends; nt_asgd is sgd that averages "
        "from when the validation perplexity stalls, at final sparsity",
    )
    nonmonotone: Count = Field(
        5,
        description="epochs back from which nt_asgd takes the best validation perplexity that an epoch must exceed to "
        "start the averages",
    )
    beta1: ProperFraction = Field(0.9, description="adam's first beta (its largest, where it is scheduled)")
    beta1_dip: ProperFraction = Field(0.0, description="by how much beta1 is lower while four_phases holds its peak")
    beta2: ProperFraction = Field(0.999, description="adam's second beta")
    learning_rate: Positive = Field(0.002, description="learning rate (its peak, where the rate is scheduled)")
    lr_schedule: Literal["constant", "one_cycle", "four_phases"] = Field(
        "constant",
        description="learning rate over the run: one_cycle is torch's; four_phases rises from a tenth for 1/12 of the "
        "steps, holds for 5/12, falls to a tenth in 5/12 and to 0 along a cosine in 1/12",
    )
    rate_by_length: bool = Field(False, description="scale the rate of each step by its window's length over bptt")
    momentum: ProperFraction = Field(0.0, description="momentum of sgd")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty inside the optimizer")
    clip: NonNegative = Field(0.25, description="gradient norm is clipped to this; 0 means never")
    epochs: Count = Field(4, description="epochs, each of train_tokens tokens, or of all examples")
    batch_size: Count = Field(20, description="parallel token streams, or examples of a step")

    @model_validator(mode="after")
    def _optimizer_is_whole(self) -> Self:
        if self.beta1_dip > self.beta1:
            raise ValueError(f"beta1_dip: {self.beta1_dip} exceeds beta1; accepted: fractions up to {self.beta1}")
        if self.rate_by_length and self.optimizer == "asgd":
            raise ValueError("rate_by_length: torch's asgd changes its rate a step late; accepted: false, or nt_asgd")
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.optimizer != "sgd":
            yield "momentum"
        if self.optimizer != "nt_asgd":
            yield "nonmonotone"
        if self.optimizer != "adam":
            yield from ("beta1", "beta2")
        if self.optimizer != "adam" or self.lr_schedule != "four_phases":
            yield "beta1_dip"


class ArithmeticSettings(Settings):
    """How a run multiplies."""

    precision: Literal["ieee", "tf32", "bfloat16"] = Field(
        "ieee",
        description="how float32 is multiplied: exactly; by a GPU's tensor cores with 10 bits of fraction; or as "
        "bfloat16 in the forward pass and the gradients of its products, while parameters, optimizer, averages and the "
        "loss's log-softmax stay float32",
    )
    compile: Literal["none", "default", "reduce-overhead"] = Field(
        "none",
        description="mode of torch.compile for what lies before and behind a language model's layers in training: "
        "dropouts, a tied decoder with its loss, activation penalties; the same random numbers, another rounding. "
        "reduce-overhead replays CUDA graphs, too",
    )

    @model_validator(mode="after")
    def _device_can_multiply_so(self) -> Self:
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision: tf32 is arithmetic of GPUs; accepted: ieee or bfloat16, or device = cuda")
        if self.compile == "reduce-overhead" and self.device == "cpu":
            raise ValueError("compile: reduce-overhead is of CUDA graphs; accepted: none or default, or device = cuda")
        return self


class ReportSettings(Settings):
    """What of a run is reported."""

    selection: Literal["last", "best"] = Field(
        "last",
        description="epoch that is reported: the last, or that of the lowest validation perplexity among those at "
        "final sparsity",
    )
    test_batch_size: Count = Field(
        10, description="streams the test text is cut into for reported_test_ppl; 1 is exact and slow"
    )


class PathSettings(Sparsifying):
    """The path of the pruned layers."""

    path: Literal["dense", "sparse", "auto"] = Field(
        "dense",
        description="what multiplies pruned weights: dense kernels, kernels that skip empty blocks, or by layer "
        "whichever is faster here at the sparsity reached",
    )

    @model_validator(mode="after")
    def _gradients_are_computed(self) -> Self:
        if self.reads_empty_gradients and self.path != "dense":
            raise ValueError(
                f"path: {self.path} computes no gradients of empty blocks, which rigl reads; accepted: dense"
            )
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.prunes:
            yield "path"
