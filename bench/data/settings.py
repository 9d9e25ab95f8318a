"""Settings of a text: which one, how much of it, and how it is cut into windows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bench.data.corpus import DATASETS
from bench.settings import Count, Fraction, Natural, NonNegative, Settings


class TextSettings(Settings):
    """The text that is trained and evaluated on."""

    dataset: Annotated[str, DATASETS] = Field("pydoc", description="text, or labelled examples for a classifier")
    train_tokens: Natural = Field(
        0, description="tokens of the training text read in an epoch, each going on where the last stopped; 0 means all"
    )
    eval_tokens: Natural = Field(0, description="tokens of validation and of test text used; 0 means all")


class WindowSettings(Settings):
    """The windows that a text is trained on in."""

    bptt: Count = Field(35, description="time steps of truncated back-propagation")
    bptt_jitter: NonNegative = Field(
        0.0, description="standard deviation of the length of a training window, time steps; it is then at least 5"
    )
    bptt_halved: Fraction = Field(0.0, description="share of training windows whose mean length is half of bptt")
