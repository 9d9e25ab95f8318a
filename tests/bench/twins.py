"""An LSTM layer on the sparse path beside torch's own with the same masked weights."""

from __future__ import annotations

import torch
from torch import nn

from bench.models.layers import LSTMLayer
from kernels.blockmask import BlockMask

SCOPES = {"all": ("weight_ih", "weight_hh"), "weight_hh": ("weight_hh",)}
INPUTS, SIZE, BLOCK = 24, 16, 8


def masks(
    kinds: tuple[str, ...], sparsity: float, seed: int = 0, *, inputs: int = INPUTS, size: int = SIZE
) -> dict[str, BlockMask]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"weight_ih": inputs, "weight_hh": size}
    return {kind: BlockMask.random(4 * size, widths[kind], BLOCK, sparsity, generator) for kind in kinds}


def twins(wanted: dict[str, BlockMask], inputs: int = INPUTS, size: int = SIZE) -> tuple[LSTMLayer, nn.LSTM]:
    """Our layer on the sparse path and torch's, with equal weights that are zero where `wanted` is empty."""
    torch.manual_seed(0)
    ours = LSTMLayer(inputs, size)
    with torch.no_grad():
        for kind, mask in wanted.items():
            getattr(ours, f"{kind}_l0").mul_(mask.expand())
    theirs = nn.LSTM(inputs, size)
    theirs.load_state_dict(ours.state_dict())
    ours.follow(wanted)
    return ours, theirs


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0.0, atol=2e-6 * max(1.0, float(other.detach().abs().max())))


def train(layer: nn.LSTM, seed: int) -> None:
    """A forward and a backward pass on numbers drawn from `seed`."""
    first = layer.weight_ih_l0
    x = torch.randn(3, 2, layer.input_size, generator=torch.Generator().manual_seed(seed))
    x = x.to(first.device, first.dtype).requires_grad_()
    layer(x)[0].square().sum().backward()  # type: ignore[no-untyped-call]
