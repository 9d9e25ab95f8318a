"""The mlp: what torch's own layers compute, hand-written, on both paths; its settings and its cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rows import DIGITS
from torch import nn
from torch.nn import functional as F

from bench.cells import TrainCell
from bench.models.linear import LinearLayer
from bench.models.mlp import MLP
from bench.models.registry import MODELS
from bench.models.settings import models_of
from bench.pruning.pruner import Pruner
from bench.train import train_cell
from bench.training.paths import Paths, missing_kernel

NO_KERNEL = missing_kernel(layer=False)
PATHS = [
    "dense",
    pytest.param("sparse", marks=pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path: {NO_KERNEL}")),
]
PRUNED = {"schedule": "pre", "target_sparsity": 0.5}


def built(**settings: Any) -> tuple[TrainCell, MLP]:
    cell = TrainCell(**{**DIGITS, **settings})
    torch.manual_seed(0)
    model: MLP = MODELS["mlp"](cell, 10)
    return cell, model


def by_hand(model: MLP, dropout: float) -> nn.Sequential:
    """torch's layers with the same parameters and buffers."""
    parts: list[nn.Module] = []
    for number, layer in enumerate(model.layers):
        linear = nn.Linear(layer.in_features, layer.out_features)
        linear.load_state_dict(layer.state_dict())
        parts.append(linear)
        if model.norms is not None:
            norm = nn.BatchNorm1d(layer.out_features)
            norm.load_state_dict(model.norms[number].state_dict())
            parts.append(norm)
        parts += [nn.ReLU(), nn.Dropout(dropout)]
    output = nn.Linear(model.output.in_features, model.output.out_features)
    output.load_state_dict(model.output.state_dict())
    return nn.Sequential(*parts, output)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_a_sequence_of_torchs_layers(layers: int, batch_norm: bool, dropout: float, path: str) -> None:
    """Values, loss, gradients, and what batch normalisation has measured, in training and in evaluation."""
    cell, model = built(num_layers=layers, batch_norm=batch_norm, dropout=dropout, path=path, **PRUNED)
    pruner = Pruner(model.prunable(), cell, 10)
    Paths(model, cell).update(pruner.masks)
    assert all(layer.sparse == (path == "sparse") for layer in model.layers)
    model, wanted = model.double(), by_hand(model, dropout).double()
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.rand(20, 64, generator=generator).double(), torch.randint(10, (20,), generator=generator)
    for mode in (True, False):
        model.train(mode)
        wanted.train(mode)
        torch.manual_seed(7)  # of the dropout
        loss, states = model.loss(x, labels)
        assert states == []
        torch.manual_seed(7)
        logits = wanted(x)
        torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels), rtol=1e-6, atol=1e-6)
        loss.backward()
        F.cross_entropy(logits.float(), labels).backward()
    torch.testing.assert_close(model(x)[0], wanted(x), rtol=1e-12, atol=1e-12)
    in_order = sorted(wanted[:-1], key=lambda part: isinstance(part, nn.BatchNorm1d))  # the layers first
    of_torch = [parameter for part in (*in_order, wanted[-1]) for parameter in part.parameters()]
    for (name, ours), theirs in zip(model.named_parameters(), of_torch, strict=True):
        if not ours.requires_grad:  # a bias before a normalisation
            assert batch_norm and name.endswith("bias") and (ours == 0).all()
            continue
        mask = pruner.masks[name].expand() if path == "sparse" and name in pruner.masks else 1.0
        torch.testing.assert_close(ours.grad, theirs.grad * mask, rtol=1e-4, atol=1e-6)  # the loss is of float32
    for ours, theirs in zip(model.buffers(), wanted.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_its_layers_alone_and_its_loss_in_every_reduction() -> None:
    _, model = built(num_layers=2)
    x, labels = torch.rand(6, 64), torch.randint(10, (6,))
    hidden, states = model.run_layers(model.enter(x))
    assert torch.equal(model.output(hidden), model(x)[0]) and states == [] and (hidden >= 0).all()
    each, mean, total = (model.loss(x, labels, reduction=kind)[0] for kind in ("none", "mean", "sum"))
    assert each.shape == (6,)
    torch.testing.assert_close(torch.stack([each.mean(), each.sum()]), torch.stack([mean, total]))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(x, labels)[0].dtype == torch.float32
    assert model.decoder_multiply_adds() == 320.0 and model.penalty is None


def test_a_bias_before_a_normalisation_is_none() -> None:
    """Of what has no gradient but rounding Adam makes whole steps, which the running means follow late."""
    _, model = built(num_layers=2, batch_norm=True)
    assert all(not layer.bias.requires_grad and (layer.bias == 0).all() for layer in model.layers)
    assert not model.biases()
    _, without = built(num_layers=2)
    assert all(layer.bias.requires_grad and layer.bias.any() for layer in without.layers)
    assert torch.equal(model.output.weight, without.output.weight)  # the same draws
    assert len(without.biases()) == 2


@pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path: {NO_KERNEL}")
def test_both_paths_train_a_normalised_network_alike() -> None:
    settings = {**DIGITS, **PRUNED, "batch_norm": True, "optimizer": "adam", "learning_rate": 1e-3, "epochs": 3}
    dense, sparse = (
        train_cell(TrainCell(**{**settings, "path": path}), lambda *_: None) for path in ("dense", "sparse")
    )
    for one, other in zip(dense[1:], sparse[1:], strict=True):
        assert other["val_ppl"] == pytest.approx(one["val_ppl"], rel=1e-6)


@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_what_is_pruned_has_torchs_names(scope: str) -> None:
    cell, model = built(num_layers=3, scope=scope, **PRUNED)
    state, pruned = model.state_dict(), model.prunable()
    wanted = [f"layers.{number}.weight" for number in range(0 if scope == "all" else 1, 3)]
    assert list(pruned) == list(cell.grids()) == wanted
    assert all(state[name].data_ptr() == weight.data_ptr() for name, weight in pruned.items())
    assert [set(names.values()) & set(pruned) for names in model.names()] == [
        {f"layers.{number}.weight"} & set(wanted) for number in range(3)
    ]
    assert all(isinstance(layer, LinearLayer) for layer in model.layers)
    assert "output.weight" not in pruned and models_of("classification") == ["mlp"]


REFUSED = [
    ({"dataset": "pydoc"}, "dataset: pydoc is no data for model mlp; accepted: digits, mnist, mnist1d"),
    ({"model": "lstm"}, "dataset: digits is no data for model lstm; accepted: pydoc, wikitext2, wikitext2_chars"),
    (
        {"model": "awd_lstm"},
        "dataset: digits is no data for model awd_lstm; accepted: pydoc, wikitext2, wikitext2_chars",
    ),
    ({"allocation": "gate", **PRUNED}, "allocation: a mlp has no gates; accepted: uniform, erk, global"),
    (
        {"num_layers": 1, "scope": "weight_hh", **PRUNED},
        "num_layers: 1 hidden layer has no weights between hidden layers; accepted: 2 or more",
    ),
    (
        {"num_layers": 1, "scope": "weight_hh", "lasso": "proximal"},
        "num_layers: 1 hidden layer has no weights between hidden layers; accepted: 2 or more",
    ),
    (
        {"dataset": "mnist1d", "block_size": 16, **PRUNED},
        "block_size: 16 does not divide the 40 numbers of an example of mnist1d; accepted: 1, 2, 4, 5, 8, 10, 20, 40, "
        "pad = true, or scope = weight_hh",
    ),
    ({"hidden_size": 36, **PRUNED}, "hidden_size: 36 is not divisible by block_size 8"),
    ({"optimizer": "asgd", "batch_norm": True}, "optimizer: asgd averages weights, not what batch_norm measures; "),
    ({"optimizer": "nt_asgd", "batch_norm": True}, "optimizer: nt_asgd averages weights, not what batch_norm "),
    ({"path": "sparse", "regrow": "rigl", **PRUNED}, "path: sparse computes no gradients of empty blocks"),
    ({"batch_norm": 1}, "batch_norm"),
]


@pytest.mark.parametrize(("settings", "line"), REFUSED)
def test_what_it_cannot_do_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainCell(**{**DIGITS, **settings})
    (said,) = refused.value.errors()
    assert line in f"{'.'.join(map(str, said['loc']))} {said['msg']}" and "\n" not in said["msg"]


def test_a_block_size_that_is_accepted_is() -> None:
    for block_size in (1, 2, 4, 8):
        assert TrainCell(**{**DIGITS, **PRUNED, "dataset": "mnist1d", "block_size": block_size}).input_width == 40
    assert TrainCell(**{**DIGITS, **PRUNED, "dataset": "mnist1d", "block_size": 16, "scope": "weight_hh"}).grids() == {
        "layers.1.weight": (2, 2)
    }
    assert TrainCell(**{**DIGITS, "dataset": "mnist1d", "block_size": 16}).grids() == {}
    assert TrainCell(**{**DIGITS, "hidden_size": 33}).layer_widths == [64, 33, 33]


IDLE: dict[str, Any] = {
    "embedding_size": 8, "decoder_bias": "zeros", "decoder": "adaptive", "cutoff": 9, "second_cutoff": 11,
    "bptt": 9, "bptt_jitter": 5.0, "bptt_halved": 0.5, "train_tokens": 100, "eval_tokens": 100,
    "rate_by_length": True, "test_batch_size": 1, "weight_drop": 0.5, "input_dropout": 0.5, "output_dropout": 0.5,
    "hidden_dropout": 0.5, "embedding_dropout": 0.5, "activation_penalty": 1.0, "temporal_penalty": 1.0,
}  # fmt: skip


def test_settings_that_cannot_matter_make_no_new_cell() -> None:
    plain = TrainCell(**DIGITS)
    for name, value in IDLE.items():
        assert TrainCell(**DIGITS, **{name: value}).cell_id == plain.cell_id, name
    both = TrainCell(**DIGITS, embedding_gradient="sparse", decoder="adaptive")
    assert both.cell_id == TrainCell(**DIGITS, path="sparse").cell_id == plain.cell_id
    assert TrainCell(batch_norm=True).cell_id == TrainCell().cell_id
    assert TrainCell(model="awd_lstm", batch_norm=True).cell_id == TrainCell(model="awd_lstm").cell_id


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": True},
        {"dropout": 0.1},
        {"dataset": "mnist1d"},
        {"num_layers": 3},
        {"batch_size": 50},
        {"seed": 1},
    ],
)
def test_settings_that_matter_make_a_new_cell(settings: dict[str, Any]) -> None:
    assert TrainCell(**{**DIGITS, **settings}).cell_id != TrainCell(**DIGITS).cell_id


def test_a_training_cell_reads_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep may have ten thousand of them."""
    cells = TrainCell(**DIGITS), TrainCell()
    monkeypatch.setattr("pkgutil.iter_modules", lambda *_: pytest.fail("a folder was read"))
    again = [TrainCell.model_validate(cell.model_dump() | {"seed": 1}) for cell in cells]
    assert [cell.task for cell in again] == ["classification", "language"]


def test_its_ids_are_pinned() -> None:
    assert TrainCell(**DIGITS).cell_id == "3082acd636bd824a"
    assert TrainCell(**DIGITS, **PRUNED, batch_norm=True, path="sparse").cell_id == "e98c5537617724dc"


@pytest.mark.parametrize("precision", ["ieee", "bfloat16"])
def test_on_a_gpu_its_products_are_checked_first(precision: str) -> None:
    cell = TrainCell(**DIGITS, **PRUNED, path="sparse", device="cuda", precision=precision)
    checks = cell.kernel_checks()
    assert [check.op for check in checks] == ["dsd", "dsd_t", "sdd"], "forward, and both products of backward"
    assert {(check.backend, check.block_size) for check in checks} == {("cuda", 8)}
    assert TrainCell(**DIGITS, **PRUNED, device="cuda").kernel_checks() == ()
