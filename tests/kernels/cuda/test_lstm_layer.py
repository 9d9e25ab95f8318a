"""The LSTM layer of the models by our CUDA kernels, on an emulated GPU, against its own dense path."""

from __future__ import annotations

import pytest
import torch
from emulated_gpu import emulated_gpu

from bench.models import layers
from bench.models.layers import LSTMLayer
from kernels.backends import cuda_lstm_operator
from kernels.blockmask import BlockMask

SCOPES = {"all": ("weight_ih", "weight_hh"), "weight_hh": ("weight_hh",)}


@pytest.mark.parametrize("scope", SCOPES)
def test_both_paths_give_the_same(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.OURS, "cpu", "cuda")
    ran = []
    forward = cuda_lstm_operator.forward
    monkeypatch.setattr(cuda_lstm_operator, "forward", lambda *given, **more: ran.append(1) or forward(*given, **more))
    generator = torch.Generator().manual_seed(0)
    layer, widths = LSTMLayer(32, 48), {"weight_ih": 32, "weight_hh": 48}
    masks = {kind: BlockMask.random(4 * 48, widths[kind], 16, 0.5, generator) for kind in SCOPES[scope]}
    with torch.no_grad():
        for kind, mask in masks.items():
            getattr(layer, f"{kind}_l0").mul_(mask.expand())
    results = []
    with emulated_gpu():
        for chosen in ({}, masks):
            layer.follow(chosen)
            layer.zero_grad(set_to_none=True)
            x = torch.randn(3, 5, 32, generator=generator.manual_seed(1)).requires_grad_()
            y, state = layer(x)
            y, (h, c) = layer(y[..., :32], state)
            (y.square().sum() + h.sum() + c.sum()).backward()
            grads = [parameter.grad.clone() for parameter in layer.parameters()]
            results.append([y, h, c, x.grad, *grads])
            assert len(ran) == (2 if chosen else 0)
    for name, mask in masks.items():
        results[0][4 if name == "weight_ih" else 5].mul_(mask.expand())
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
