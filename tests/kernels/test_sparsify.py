"""sparsify: a whole model against the same model with masked dense weights; what is left, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from kernels.modules import BlockSparseGRU, BlockSparseLinear, BlockSparseLSTM, BlockSparseWeight
from kernels.sparsify import sparsify


class Network(nn.Module):
    """An embedding, layers of every kind, and a decoder that is tied to the embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.lstm = nn.LSTM(16, 24, 2, batch_first=True)
        self.gru = nn.GRU(24, 16, bidirectional=True)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Linear(16, 32)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.body(self.gru(self.lstm(self.embedding(tokens))[0])[0]))


def masked(model: nn.Module, sparse: nn.Module) -> nn.Module:
    """`model` with zeros where `sparse` has empty blocks."""
    for name, part in sparse.named_modules():
        if isinstance(part, BlockSparseWeight):
            with torch.no_grad():
                weight = model.get_parameter(name)
                kept = part.matrix.mask.expand()
                assert torch.equal(part.to_dense(), weight * kept)
                weight.mul_(kept)
    return model


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


TOKENS = torch.arange(12).view(3, 4)


@pytest.mark.parametrize("criterion", ["l2", "l1", "max", "random", lambda weight, size: weight[::size, ::size]])
def test_a_model_computes_what_its_masked_weights_do(criterion: Any) -> None:
    torch.manual_seed(0)
    dense = Network()
    model, report = sparsify(copy.deepcopy(dense), 8, 0.5, criterion)
    assert set(report.left) == {"embedding"} and set(report.replaced.values()) == {0.5}
    assert {"lstm.weight_ih_l0", "gru.weight_hh_l0_reverse", "body.2.weight", "decoder.weight"} < set(report.replaced)
    assert len(report.replaced) == 4 + 4 + 3
    kinds = [type(each) for each in (model.lstm, model.gru, model.body[0])]
    assert kinds == [BlockSparseLSTM, BlockSparseGRU, BlockSparseLinear]
    close(model(TOKENS), masked(dense, model)(TOKENS))
    for each in (model, dense):
        each(TOKENS).square().sum().backward()
    close(model.decoder.bias.grad, dense.decoder.bias.grad)
    assert "lstm.weight_ih_l0: sparsity 0.5" in str(report)
    assert "embedding: left, Embedding is none of Linear, LSTM, GRU" in str(report)


def test_the_lowest_blocks_go() -> None:
    weight = torch.ones(8, 8)
    weight[:4, :4], weight[4:, 4:] = 0.1, 0.5
    weight[0, 0] = 0.9  # the largest of its block, which is small
    for criterion, kept in (("l2", [[False, True], [True, False]]), ("max", [[False, True], [True, False]])):
        layer = nn.Linear(8, 8)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if criterion == "max":
                layer.weight[:4, :4][0, 0] = 0.4
        sparse, _ = sparsify(layer, 4, 0.5, criterion)
        assert sparse.weight.matrix.mask.kept.tolist() == kept
    drawn = [sparsify(nn.Linear(64, 64), 4, 0.5, "random")[0].weight.indices for _ in range(2)]
    assert drawn[0].shape == drawn[1].shape and not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        (None, None, {"lstm", "gru", "body.0", "body.2", "decoder"}),
        ("body.*", None, {"body.0", "body.2"}),
        (["body.*", "lstm"], "body.2", {"body.0", "lstm"}),
        (None, ["*gru*", "body.?"], {"lstm", "decoder"}),
        ("lstm.weight_hh_*", None, {"lstm"}),
        ("*", "*.weight_ih_*", {"lstm", "gru", "body.0", "body.2", "decoder"}),
        ("body.0.weight", None, {"body.0"}),
    ],
)
def test_patterns_choose_layers_and_weights(include: Any, exclude: Any, replaced: set[str]) -> None:
    dense = Network()
    model, report = sparsify(copy.deepcopy(dense), 8, 0.5, include=include, exclude=exclude)
    kinds = (BlockSparseLinear, BlockSparseLSTM, BlockSparseGRU)
    assert {name for name, each in model.named_modules() if isinstance(each, kinds)} == replaced
    close(model(TOKENS), masked(dense, model)(TOKENS))
    if "weight" in str(include) + str(exclude):
        dense_weights = {name for name in report.left if "weight" in name}
        assert ("lstm.weight_ih_l1" in dense_weights) == ("_hh_" in str(include) or "_ih_" in str(exclude))
        assert not any(name in report.replaced for name in dense_weights)
    assert all(said.startswith(("not included", "excluded by", "Embedding is none")) for said in report.left.values())


def test_tied_weights_stay_tied() -> None:
    model, report = sparsify(Network(tied=True), 8, 0.5)
    assert report.left["decoder"] == "its weight is tied to embedding.weight"
    assert model.decoder.weight is model.embedding.weight
    other = Network()
    other.decoder.weight.data = other.embedding.weight.data  # two parameters of one memory
    assert sparsify(other, 8, 0.5)[1].left["decoder"] == "its weight is tied to embedding.weight"


def test_a_layer_under_two_names_stays_one_layer() -> None:
    layer = nn.Linear(16, 16)
    model, report = sparsify(nn.ModuleDict({"one": layer, "two": nn.Sequential(layer)}), 8, 0.5)
    assert isinstance(model["one"], BlockSparseLinear) and model["one"] is model["two"][0]
    assert set(report.replaced) == {"one.weight", "two.0.weight"} and not report.left
    same = nn.ModuleDict({"one": layer, "two": layer})
    _, report = sparsify(same, 8, 0.5, include="one")
    assert same["one"] is same["two"] is layer and report.left["one"] == "not included as 'two'"


def hooked() -> nn.Module:
    layer = nn.Linear(16, 16)
    layer.register_forward_hook(lambda *_: None)
    return layer


def without_parameter() -> nn.Module:
    layer = nn.Linear(16, 16)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


def already() -> nn.Module:
    return sparsify(nn.Linear(16, 16), 8, 0.5)[0]


LEFT: dict[str, Callable[[], nn.Module]] = {
    "block_size 8 does not divide the weight's 20 columns; nearest sizes that work: 16 or 24": lambda: nn.Linear(
        20, 16
    ),
    "block_size 8 does not divide its hidden_size 12; nearest sizes that work: 8 or 16": lambda: nn.LSTM(16, 12),
    "proj_size 4: a block-sparse layer has no projections": lambda: nn.LSTM(16, 16, proj_size=4),
    "its weights are parametrized; torch.nn.utils.parametrize": lambda: weight_norm(nn.Linear(16, 16)),
    "it has hooks, which would be lost": hooked,
    "it has hooks, which would be lost ": lambda: prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5),
    "its weight is no parameter": without_parameter,
    "it has no weights yet: call the model once before": lambda: nn.LazyLinear(16),
    "weight is on the device meta": lambda: nn.Linear(16, 16, device="meta"),
    "block-sparse already": already,
    "Conv1d is none of Linear, LSTM, GRU": lambda: nn.Conv1d(16, 16, 1),
    "RNN is none of Linear, LSTM, GRU": lambda: nn.RNN(16, 16),
}


@pytest.mark.parametrize("said", LEFT)
def test_what_cannot_be_replaced_is_left_and_says_why(said: str) -> None:
    layer = LEFT[said]()
    model, report = sparsify(nn.Sequential(layer, nn.Linear(8, 8)), 8, 0.5)
    assert model[0] is layer and isinstance(model[1], BlockSparseLinear)
    assert list(report.left) == ["0"]
    assert report.left["0"].startswith(said.strip()) and "\n" not in report.left["0"]


def test_an_input_weight_that_does_not_divide_stays_dense_alone() -> None:
    dense = nn.LSTM(10, 16)
    model, report = sparsify(copy.deepcopy(dense), 8, 0.5)
    assert list(report.replaced) == ["weight_hh_l0"] and list(report.left) == ["weight_ih_l0"]
    assert "does not divide the weight's 10 columns" in report.left["weight_ih_l0"]
    x = torch.randn(3, 2, 10)
    close(model(x)[0], masked(dense, model)(x)[0])


def test_sizes_that_do_not_divide_are_padded_where_that_is_wanted() -> None:
    dense = nn.ModuleDict({"lstm": nn.LSTM(10, 12, 2), "linear": nn.Linear(12, 21), "even": nn.Linear(16, 16)})
    model, report = sparsify(copy.deepcopy(dense), 8, 0.5, pad=True)
    assert not report.left and len(report.replaced) == 6
    with torch.no_grad():
        for name, part in model.named_modules():
            if isinstance(part, BlockSparseWeight):
                dense.get_parameter(name).copy_(part.to_dense())
    x = torch.randn(3, 2, 10)
    close(model["linear"](model["lstm"](x)[0]), dense["linear"](dense["lstm"](x)[0]))


@pytest.mark.parametrize("nested", [False, True])
def test_transformers_of_torchs_run_in_training_and_evaluation(nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    dense: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True) if nested else layer
    model, report = sparsify(copy.deepcopy(dense), 8, 0.5)
    attention = [said for name, said in report.left.items() if name.endswith("out_proj")]
    assert attention and set(attention) == {"NonDynamicallyQuantizableLinear is a subclass of Linear"}
    assert len(report.replaced) == (4 if nested else 2)
    dense, x, padded = masked(dense, model), torch.randn(3, 5, 16), torch.arange(5) > torch.tensor([4, 3, 2])[:, None]
    close(model(x), dense(x))
    dense.eval(), model.eval()
    for given in ({}, {"src_key_padding_mask": padded}):
        with torch.no_grad():
            close(model(x, **given)[~padded], dense(x, **given)[~padded])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"block_size": 8.0}, "block_size must be a whole number, got 8.0"),
        ({"sparsity": 1.5}, r"sparsity must be a fraction in \[0, 1\], got 1.5"),
        ({"criterion": "l3"}, "unknown criterion 'l3'; accepted: l2, l1, max, random, or a function"),
        (
            {"include": ["body.*", "encoder.*"]},
            "include: 'encoder.*' matches no layer and no weight; there are body.0.w",
        ),
        ({"criterion": lambda *_: torch.ones(1, 1)}, "the mask of .* covers"),
        ({"kernel": "fast"}, "unknown kernel 'fast'"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_changed(given: dict[str, Any], said: str) -> None:
    model = Network()
    with pytest.raises(ValueError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        sparsify(model, **{"block_size": 8, "sparsity": 0.5, **given})
    assert not any(isinstance(each, BlockSparseWeight) for each in model.modules())
