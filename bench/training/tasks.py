"""Tasks: what a training run learns, a language or a classification, as batches, scores and columns of its own.

Each has the batches of every epoch, known beforehand so that ramps and rates are, and says what a model in evaluation
makes of a part of the data. Another task is one more class with these methods in TASKS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from bench.cells import TrainCell
from bench.data.corpus import (
    CLASSIFICATION,
    EVAL_BATCH,
    LANGUAGE,
    Corpus,
    batchify,
    cut,
    data_dir,
    epoch_slice,
    window_lengths,
    windows,
)
from bench.data.datasets import load_data
from bench.data.images import EVAL_EXAMPLES, Examples, Images, shuffled
from bench.measuring.memory import time_steps
from bench.models.layers import State
from bench.training.scores import Scores

Batch = tuple[Tensor, Tensor]
Data = Corpus | Images


class Model(Protocol):
    """A network that tells the nats of targets."""

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        states: list[State] | None,
        reduction: Literal["mean", "sum"],
    ) -> tuple[Tensor, list[State]]:
        """As `bench.models.lstm.LSTM.loss`."""


class Task(Protocol):
    """What a run learns.

    classes: of a target, or words. lengths: of every batch, an epoch each. largest_step: settings of the size of a step
    that are as large as the data allow.
    """

    data: Data
    classes: int
    lengths: list[list[int]]
    largest_step: dict[str, int]

    def prepare(self, model: Any) -> None:
        """Do to a new model what is to be done with what is known of the data."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """(inputs, targets) of each step of an epoch, 1 for the first, on the cell's device."""

    def score(self, model: Any, part: str, streams: int = EVAL_BATCH) -> Scores:
        """What a model in evaluation makes of the part 'valid' or 'test' of the data."""

    def window(self) -> Tensor:
        """The inputs that inference is timed on."""

    def columns(self, model: Any) -> dict[str, Any]:
        """The columns that say what is learned."""


@torch.no_grad()
def score(model: Model, tokens: Tensor, batch_size: int, bptt: int) -> Scores:
    """What a model in evaluation makes of a text.

    The state is carried all along each of the batch_size streams that the text is cut into. tokens: [n].
    """
    nats, targets_seen, states = [], [], None
    for inputs, targets in windows(batchify(tokens, batch_size), bptt):  # [time, batch] each
        loss, states = model.loss(inputs, targets, states, "sum")
        nats.append(loss.double())
        targets_seen.append(targets.numel())
    return Scores(torch.stack(nats).tolist(), targets_seen)  # read at the end: a GPU need not be waited for


class Language:
    """The next token of a text, in windows of parallel streams."""

    def __init__(self, cell: TrainCell, corpus: Corpus) -> None:
        self.cell, self.data, self.classes = cell, corpus, len(corpus.vocabulary)
        steps = time_steps(len(corpus.train), cell.train_tokens, cell.batch_size)  # no window has more
        self.lengths, self.largest_step = epoch_windows(cell, steps + 1), {"bptt": min(cell.bptt, steps)}

    def prepare(self, model: Any) -> None:
        """Begin the decoder's bias with the frequencies of the words, where the cell says so."""
        if self.cell.decoder_bias == "frequencies":
            model.start_from_frequencies(self.data.counts)

    def epoch(self, number: int) -> Iterator[Batch]:
        """(inputs, targets) of each window: [time, batch] each."""
        cell = self.cell
        text = batchify(epoch_slice(self.data.train, cell.train_tokens, number), cell.batch_size)  # [time, batch]
        return cut(text.to(cell.device), self.lengths[number - 1])

    def score(self, model: Any, part: str, streams: int = EVAL_BATCH) -> Scores:
        """On the first `eval_tokens` (0: all) of a text, cut into so many streams."""
        cell = self.cell
        tokens: Tensor = getattr(self.data, part)[: cell.eval_tokens or None].to(cell.device)
        return score(model, tokens, streams, cell.bptt)

    def window(self) -> Tensor:
        """One window of evaluation: [time, batch]."""
        window, _ = next(windows(batchify(self.data.test, EVAL_BATCH).to(self.cell.device), self.cell.bptt))
        return window

    def columns(self, model: Any) -> dict[str, Any]:
        return {
            "vocabulary": self.classes,
            "token": self.data.token,
            "corpus_sha256": self.data.sha256[:16],
            "decoder_multiply_adds": model.decoder_multiply_adds(self.data.counts),
        }


class Classification:
    """The class of each example, in batches drawn anew in every epoch."""

    def __init__(self, cell: TrainCell, images: Images) -> None:
        self.cell, self.data, self.classes = cell, images, images.classes
        self.parts: dict[str, Examples] = {
            name: getattr(images, name).to(cell.device) for name in ("train", "valid", "test")
        }
        whole, left = divmod(len(images.train), cell.batch_size)
        self.lengths = [[cell.batch_size] * whole + [left] * bool(left)] * cell.epochs
        self.largest_step = {"batch_size": min(cell.batch_size, len(images.train))}

    def prepare(self, model: Any) -> None:
        """Nothing."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """(inputs [batch, features], labels [batch]) of each step."""
        train = self.parts["train"]
        order = shuffled(len(train), f"{self.cell.seed} {number}").to(self.cell.device)
        return train.batches(self.cell.batch_size, order)

    @torch.no_grad()
    def score(self, model: Any, part: str, streams: int = EVAL_BATCH) -> Scores:  # noqa: ARG002
        """On every example of a part; each is a window of its own."""
        nats, right = [], torch.zeros((), dtype=torch.int64, device=self.cell.device)
        for inputs, labels in self.parts[part].batches(EVAL_EXAMPLES):
            logits = model(inputs)[0].float()
            nats.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").double())
            right += (logits.argmax(dim=1) == labels).sum()
        each = torch.cat(nats).tolist()  # read at the end: a GPU need not be waited for
        return Scores(each, [1] * len(each), int(right))

    def window(self) -> Tensor:
        """One batch of the test: [batch, features]."""
        return self.parts["test"].inputs[: self.cell.batch_size]

    def columns(self, model: Any) -> dict[str, Any]:
        return {
            "vocabulary": self.classes,
            "token": self.data.token,
            "features": self.data.sizes.features,
            "corpus_sha256": self.data.sha256[:16],
            "decoder_multiply_adds": model.decoder_multiply_adds(),
        }


TASKS = {LANGUAGE: Language, CLASSIFICATION: Classification}


def load_for(cell: TrainCell) -> Data:
    """The data of a cell."""
    return load_data(cell.source, data_dir())


def task_on(cell: TrainCell, data: Data) -> Task:
    """What the cell learns of its data."""
    task: Task = TASKS[cell.task](cell, data)
    return task


def epoch_windows(cell: TrainCell, length: int) -> list[list[int]]:
    """Lengths of the windows of every epoch, for streams of `length` tokens.

    Known beforehand, so that ramps and rates are.
    """
    jitter, halved = cell.bptt_jitter, cell.bptt_halved
    epochs = range(1, cell.epochs + 1)
    return [window_lengths(length, cell.bptt, jitter, halved, f"{cell.seed} {epoch}") for epoch in epochs]
