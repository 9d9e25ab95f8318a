"""Layers of a file of weights, by names and shapes."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.commands.advising.layers import AdviceError, Layer
from bench.commands.advising.weights import layers_of, read


def found(weights: dict[str, torch.Tensor]) -> dict[str, Layer]:
    layers, _ = layers_of(weights, 9, 2, 3)
    return {layer.name: layer for layer in layers}


def test_recurrent_layers_are_told_by_their_ratio() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(5, 8, 2, bidirectional=True), "b": nn.GRU(5, 8), "c": nn.RNN(5, 8)})
    layers = found({**model.state_dict(), "d.weight_ih": torch.ones(32, 8), "d.weight_hh": torch.ones(32, 8)})
    kinds = {name: (each.kind, each.rows, each.cols) for name, each in layers.items()}
    assert kinds["a.weight_l0"] == ("lstm", 8, 5) and kinds["a.weight_l1_reverse"] == ("lstm", 8, 16)
    assert kinds["b.weight_l0"] == ("gru", 8, 5)
    assert layers["c.weight_l0"].reason == "8 rows are neither 4 nor 3 times 8 units"
    assert layers["d.weight"].reason == "a LSTMCell, which sparsify leaves"
    assert (layers["a.weight_l0"].batch, layers["a.weight_l0"].steps) == (2, 3)


def test_projections_and_quantised_weights_are_no_candidates() -> None:
    layers = found({**nn.LSTM(5, 8, proj_size=4).state_dict(), "q.weight": torch.ones(4, 4, dtype=torch.int8)})
    assert "projections" in layers["weight_l0"].reason and "int8" in layers["q.weight"].reason


def test_an_embedding_is_told_by_its_name_and_what_is_tied_by_its_values() -> None:
    embedding = torch.rand(50, 8)
    layers = found(
        {
            "wte.weight": embedding,
            "bert.embeddings.word_embeddings.weight": torch.rand(9, 8),
            "encoder.layer.0.dense.weight": torch.rand(8, 8),
            "embeddings_project.weight": torch.rand(4, 8),
            "embeddings_project.bias": torch.rand(4),
            "lm_head.weight": embedding.clone(),
            "other.lm_head.weight": torch.rand(50, 8),
        }
    )
    assert "embedding" in layers["wte.weight"].reason
    assert "embedding" in layers["bert.embeddings.word_embeddings.weight"].reason
    assert layers["lm_head.weight"].reason == "tied to wte.weight: equal values"
    linear = [name for name, each in layers.items() if not each.reason]
    assert linear == ["encoder.layer.0.dense.weight", "embeddings_project.weight", "other.lm_head.weight"]
    assert layers["embeddings_project.weight"].assumed == "a Linear layer: its bias has 4 elements"


def test_conv1d_of_gpt2_is_transposed_and_says_so() -> None:
    values = torch.rand(8, 24)
    weights = {"h.0.attn.c_attn.weight": values, "h.0.attn.c_attn.bias": torch.rand(24)}
    square = {"h.0.attn.c_proj.weight": torch.rand(8, 8), "h.0.attn.c_proj.bias": torch.rand(8)}
    layers, held = layers_of(weights | square, 1, 1, 1)
    first, second = layers
    assert (first.rows, first.cols) == (24, 8) and "Conv1D" in first.assumed and "by its name" in second.assumed
    assert torch.equal(held[first.name]["weight"], values.T)


def test_norms_and_convolutions_are_left(tmp_path: Path) -> None:
    layers = found(
        {"norm.weight": torch.ones(8), "conv.weight": torch.ones(8, 4, 3), "a.in_proj_weight": torch.ones(9, 3)}
    )
    assert list(layers) == ["conv.weight", "a.in_proj_weight"] and all(each.reason for each in layers.values())


def test_files_of_both_kinds_are_read_alike_and_a_container_is_looked_into(tmp_path: Path) -> None:
    weights = {"fc.weight": torch.rand(4, 4)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({"step": 3, "model_state": weights, "optimizer_state": {"exp": torch.ones(4, 4)}}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        assert torch.equal(read(tmp_path / name)["fc.weight"], weights["fc.weight"]), name


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("was-executed"),))


KINDS = ["module", "planted", "text", "no tensors", "bad safetensors", "raw pickle", "a tensor alone", "empty"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_weights_is_one_line_and_nothing_is_executed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("a.safetensors" if kind == "bad safetensors" else "a.pt")
    if kind == "module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "planted":
        torch.save({"a": Planted()}, path)
    elif kind == "no tensors":
        torch.save(collections.OrderedDict(a=1), path)
    elif kind == "a tensor alone":
        torch.save(torch.ones(64, 64), path)
    elif kind == "empty":
        path.touch()
    elif kind == "raw pickle":
        path.write_bytes(pickle.dumps(Planted()))
    else:
        path.write_text("not weights")
    with pytest.raises(AdviceError) as raised:
        read(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ") and "accepted: " in line and "\n" not in line
    assert not (tmp_path / "was-executed").exists()


def test_values_that_cannot_be_pruned_say_why() -> None:
    weights = {
        "a.weight": torch.eye(64).to_sparse(),
        "b.weight": torch.ones(64, 64).to(torch.float8_e4m3fn),
        "c.weight": torch.ones(64, 64, device="meta"),
        "d.weight": torch.ones(64, 64, dtype=torch.bfloat16),
    }
    layers, held = layers_of(weights, 8, 2, 3)
    reasons = {layer.name: layer.reason for layer in layers}
    assert "sparse already" in reasons["a.weight"] and "float8_e4m3fn" in reasons["b.weight"]
    assert "has no values" in reasons["c.weight"] and reasons["d.weight"] == ""
    assert [name for name, each in held.items() if each] == ["d.weight"]
