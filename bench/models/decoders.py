"""From the last layer's output to the probabilities of the next token: tied to the embedding, or adaptive softmax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.settings import NARROWER


def frequencies(counts: Tensor) -> Tensor:
    """The share of each token, half a count added to it. counts: [vocabulary]."""
    smoothed = counts + 0.5
    return smoothed / smoothed.sum()


class AdaptiveSoftmax(nn.AdaptiveLogSoftmaxWithLoss):
    """Exact probabilities of tokens ranked by frequency, the rare ones in clusters of lower rank.

    Grave et al., 1609.04309. The vocabulary must be ranked by frequency, as `bench.data.corpus.build_vocabulary` does.
    It multiplies in float32, under torch.autocast too.
    """

    def __init__(self, size: int, vocabulary: int, cutoffs: list[int]) -> None:
        """size: units of the last layer. cutoffs: tokens before each cluster, fewer than the vocabulary has."""
        super().__init__(size, vocabulary, cutoffs, NARROWER, head_bias=True)

    @torch.no_grad()
    def start_from_frequencies(self, counts: Tensor) -> None:
        """Set the head's bias to the log frequency of each of its tokens and clusters (half a count added).

        counts: [vocabulary].
        """
        share = frequencies(counts)
        clusters = [share[low:high].sum() for low, high in pairwise(self.cutoffs)]
        self.head.bias.copy_(torch.cat([share[: self.cutoffs[0]], torch.stack(clusters)]).log())

    def multiply_adds(self, counts: Tensor) -> float:
        """Of one token's loss, averaged over a text in which each token of the vocabulary stands `counts` times."""
        total = float(self.head.weight.numel())
        for (low, high), tail in zip(pairwise(self.cutoffs), self.tail, strict=True):
            reached = (counts[low:high].sum() / counts.sum()).item()
            total += reached * sum(weight.numel() for weight in tail.parameters())
        return total


def adaptive_of(weights: Mapping[str, Tensor]) -> AdaptiveSoftmax:
    """The adaptive softmax that has these weights, by the names of its `state_dict`.

    ValueError where they are none's.
    """
    try:
        clusters, size = len(weights) // 2 - 1, weights["head.weight"].shape[1]
        cutoffs = [weights["head.weight"].shape[0] - clusters]
        for number in range(clusters):
            cutoffs.append(cutoffs[-1] + weights[f"tail.{number}.1.weight"].shape[0])
        with torch.device("meta"):
            head = AdaptiveSoftmax(size, cutoffs[-1], cutoffs[:-1])
        head.load_state_dict(dict(weights), assign=True)
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, TypeError):
        raise ValueError("head: its tensors are not those of one adaptive softmax") from None
    return head.requires_grad_(False)


@dataclass(frozen=True)
class Decoder:
    """What turns outputs of the last layer into the next token's probabilities.

    Either embedding [vocabulary, size] and bias [vocabulary], or an adaptive softmax.
    """

    embedding: Tensor
    bias: Tensor | None
    head: AdaptiveSoftmax | None

    def logits(self, x: Tensor) -> Tensor:
        """Logits of every token; log probabilities of an adaptive softmax.

        x: [time, batch, size] -> [time * batch, vocabulary].
        """
        x = x.flatten(0, 1)
        if self.head is None:
            return F.linear(x, self.embedding, self.bias)
        log_probabilities: Tensor = self.head.log_prob(x)
        return log_probabilities

    def loss(self, x: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """Nats of the targets, which are the next tokens, in float32.

        x: [time, batch, size]; targets: [time, batch] -> scalar.
        """
        if self.head is None:
            return F.cross_entropy(self.logits(x).float(), targets.flatten(), reduction=reduction)
        mean: Tensor
        with torch.autocast(x.device.type, enabled=False):
            log_probabilities, mean = self.head(x.flatten(0, 1).to(self.head.head.weight.dtype), targets.flatten())
        return mean if reduction == "mean" else -log_probabilities.float().sum()
