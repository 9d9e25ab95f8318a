"""A dense network of as many stored weights as a pruned one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.cells import TrainCell
from bench.training.equal import equal_network, equal_width

WORDS = {"embedding_size": 128, "hidden_size": 256, "decoder": "adaptive"}
MNIST = {"model": "mlp", "dataset": "mnist1d", "hidden_size": 256, "scope": "weight_hh"}


def layer_weights(network: nn.Module) -> int:
    return sum(each.numel() for each in network.layers.parameters() if each.ndim == 2)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("share", "width"), [(0.2, 104), (0.1, 69), (1.0, 256)])
def test_the_widths_of_the_sweep_of_words(share: float, width: int) -> None:
    """They stand in `wikitext2_words` by hand: 4 h (128 + h) + 4 h (h + h) weights."""
    cell = TrainCell(dataset="wikitext2", **WORDS)
    whole = 4 * 256 * (128 + 256) + 4 * 256 * (256 + 256)
    assert equal_width(cell, round(share * whole)) == width


def test_a_classifier_whose_first_layer_is_not_pruned() -> None:
    kept = 40 * 256 + round(0.05 * 256 * 256)
    found = equal_network(TrainCell(**MNIST), 10, kept)
    assert found is not None
    width, network = found
    assert width == 98 and not network.training
    assert abs(layer_weights(network) - kept) <= min(abs((40 * h + h * h) - kept) for h in (97, 99))
    assert network(torch.zeros(3, 40))[0].shape == (3, 10)


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert equal_network(TrainCell(**MNIST), 10, 20_000) is not None and torch.equal(torch.rand(1), expected)


def test_where_no_width_comes_near_there_is_none() -> None:
    """With a tied decoder the last layer stays as wide as the embedding."""
    cell = TrainCell(embedding_size=32, hidden_size=128)
    whole = 4 * 128 * (32 + 128) + 4 * 32 * (128 + 32)
    assert equal_width(cell, 1) == 1 and equal_network(cell, 100, round(0.01 * whole)) is None
    found = equal_network(cell, 100, round(0.5 * whole))
    assert found is not None and layer_weights(found[1]) == pytest.approx(0.5 * whole, rel=0.05)
