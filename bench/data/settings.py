"""Settings of a text: which one, how much of it, and how it is cut into windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.data.corpus import TEXT
from bench.data.datasets import DATASETS
from bench.data.text import Source
from bench.settings import Count, Fraction, Natural, NonNegative, ProperFraction, Settings


class TextSettings(Settings):
    """The text that is trained and evaluated on."""

    dataset: Annotated[str, DATASETS] = Field(
        "pydoc",
        description="text, or labelled examples for a classifier; text:PATH is a text of your own, a file or a folder "
        "with one of train, valid and test each, from the folder in which the command runs",
    )
    tokens: Literal["word", "char"] = Field("word", description="what a text:PATH is read as")
    min_count: Count = Field(
        1,
        description="of a text:PATH: what training text has less often is <unk>; 1 takes the vocabulary of all parts",
    )
    valid_share: ProperFraction = Field(0.1, description="of a text:FILE: share of its tokens kept for validation")
    test_share: ProperFraction = Field(0.1, description="of a text:FILE: share of its tokens, the last, kept for test")
    train_tokens: Natural = Field(
        0, description="tokens of the training text read in an epoch, each going on where the last stopped; 0 means all"
    )
    eval_tokens: Natural = Field(0, description="tokens of validation and of test text used; 0 means all")

    @property
    def source(self) -> str | Source:
        """What `load_data` takes: the name of the data set, of a text of one's own with how it is read."""
        if not self.dataset.startswith(TEXT):
            return self.dataset
        path = self.dataset.removeprefix(TEXT)
        return Source(path, self.tokens, self.min_count, self.valid_share, self.test_share)

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.valid_share + self.test_share >= 1.0:
            left = f"{self.valid_share} and test_share {self.test_share} leave nothing to train on"
            raise ValueError(f"valid_share: {left}; accepted: less than 1 together")
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if not self.dataset.startswith(TEXT):
            yield from ("tokens", "min_count", "valid_share", "test_share")


class WindowSettings(Settings):
    """The windows that a text is trained on in."""

    bptt: Count = Field(35, description="time steps of truncated back-propagation")
    bptt_jitter: NonNegative = Field(
        0.0, description="standard deviation of the length of a training window, time steps; it is then at least 5"
    )
    bptt_halved: Fraction = Field(0.0, description="share of training windows whose mean length is half of bptt")
