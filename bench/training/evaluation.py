"""Perplexity: of a model on a text, and what is no perplexity any more."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.corpus import batchify, windows
from bench.models.layers import State
from bench.schema import LARGEST_PPL

Model = Callable[[Tensor, list[State] | None], tuple[Tensor, list[State]]]


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def finite(nats: float, epoch: int) -> float:
    """The loss itself; DivergedError if it is no number to go on with."""
    if not math.isfinite(nats):
        raise DivergedError(f"the loss became {nats} in epoch {epoch}")
    return nats


def perplexity(nats: float, epoch: int | None) -> float:
    """exp(mean nats per token); DivergedError where that is beyond what a table holds."""
    try:
        ppl = math.exp(nats)
    except OverflowError:
        ppl = math.inf
    if not ppl <= LARGEST_PPL:
        raise DivergedError(f"the perplexity became {ppl:g}" + (f" in epoch {epoch}" if epoch else " in evaluation"))
    return ppl


@torch.no_grad()
def evaluate(model: Model, tokens: Tensor, batch_size: int, bptt: int) -> tuple[float, int]:
    """Perplexity of a model in evaluation on a text, and the number of targets.

    The state is carried all along each of the batch_size streams that the text is cut into. tokens: [n].
    """
    nats = torch.zeros((), dtype=torch.float64, device=tokens.device)  # read at the end: a GPU need not be waited for
    count, states = 0, None
    for inputs, targets in windows(batchify(tokens, batch_size), bptt):  # [time, batch] each
        logits, states = model(inputs, states)  # [time * batch, vocabulary]
        nats += F.cross_entropy(logits.float(), targets.flatten(), reduction="sum")
        count += targets.numel()
    return perplexity(nats.item() / count, None), count
