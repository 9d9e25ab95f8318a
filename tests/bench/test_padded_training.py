"""Networks whose sizes blocks do not divide are trained, pruned and exported, each gate padded by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bench.cells import TrainCell
from bench.models.layers import LSTMLayer
from bench.models.linear import LinearLayer
from bench.models.registry import MODELS
from bench.pruning.criteria import as_blocks
from bench.pruning.exported import exported, load, narrowed
from bench.pruning.lasso import Lasso, block_norms
from bench.pruning.pruner import Pruner
from bench.train import train_cell
from kernels.blockmask import BlockMask
from kernels.tensors.padding import in_blocks, padded

ODD: dict[str, Any] = {
    "hidden_size": 20, "embedding_size": 20, "num_layers": 2, "batch_size": 4, "bptt": 20, "epochs": 1, "threads": 1,
    "train_tokens": 3000, "eval_tokens": 500, "block_size": 8, "pad": True, "prune_every": 5, "target_sparsity": 0.6,
    "schedule": "cubic",
}  # fmt: skip
CLASSIFIER: dict[str, Any] = {
    "model": "mlp", "dataset": "digits", "hidden_size": 20, "num_layers": 2, "block_size": 12, "pad": True, "epochs": 1,
    "batch_size": 100, "threads": 1, "schedule": "cubic", "target_sparsity": 0.6, "prune_every": 5,
}  # fmt: skip


def columns(cell: TrainCell, names: tuple[str, ...]) -> dict[str, Any]:
    last = train_cell(cell, tell=lambda _: None)[-1]
    assert last["status"] == "ok", last["reason"]
    return {name: last[name] for name in names}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scope": "weight_hh"},
        {"lasso": "proximal", "lasso_strength": 1e-3},
        {"model": "awd_lstm", "weight_drop": 0.3, "lasso": "subgradient"},
        {"schedule": "pre", "prune_biases": True},
        {"allocation": "gate", "criterion": "taylor"},
        CLASSIFIER,
        CLASSIFIER | {"scope": "weight_hh", "allocation": "erk"},
    ],
    ids=lambda given: " ".join(f"{name}={given[name]}" for name in list(given)[:2]) or "plain",
)
def test_both_paths_train_the_same_network(given: dict[str, Any]) -> None:
    settings = given if "dataset" in given else ODD | given
    names = ("sparsity", "val_ppl", "test_ppl", "zero_block_share", "block_norms")
    dense, sparse = (columns(TrainCell(**settings, path=path), names) for path in ("dense", "sparse"))
    assert dense["sparsity"] == sparse["sparsity"] >= 0.5
    assert sparse["val_ppl"] == pytest.approx(dense["val_ppl"], rel=1e-4)
    assert sparse["test_ppl"] == pytest.approx(dense["test_ppl"], rel=1e-4)
    for one, other in zip(dense["block_norms"], sparse["block_norms"], strict=True):
        assert (one["grid_rows"], one["grid_cols"]) == (other["grid_rows"], other["grid_cols"])
        assert other["norms"] == pytest.approx(one["norms"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("settings", [ODD, ODD | {"scope": "weight_hh"}, CLASSIFIER], ids=["all", "weight_hh", "mlp"])
def test_what_is_exported_computes_the_same_without_its_masks(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    cell = TrainCell(**settings | {"schedule": "pre", "path": "sparse"})
    is_text = cell.is_recurrent
    model: Any = MODELS[cell.model](cell, 30 if is_text else 10).eval()
    pruner = Pruner(model.prunable(), cell, 100)
    assert 0.0 < pruner.padded_share < 0.5
    window = torch.randint(30, (7, 3)) if is_text else torch.rand(5, 64)
    expected = model(window)[0]
    exported(model, pruner.masks).save(tmp_path / "model.pt")
    final = load(tmp_path / "model.pt")
    torch.testing.assert_close(final(window)[0], expected, rtol=1e-4, atol=1e-5)
    smaller = narrowed(final)
    torch.testing.assert_close(smaller(window)[0], expected, rtol=1e-4, atol=1e-5)
    assert final.dense_nbytes == 4 * sum(weight.numel() for weight in model.prunable().values())
    stored = sum(mask.nnzb for mask in pruner.masks.values()) * cell.block_size**2
    assert pruner.padded_share == pytest.approx(
        1 - sum(int((weight != 0).sum()) for weight in model.prunable().values()) / stored, abs=0.01
    )


def test_dead_units_of_a_padded_network_are_removed() -> None:
    torch.manual_seed(0)
    cell = TrainCell(**ODD | {"schedule": "pre", "target_sparsity": 0.0})
    model: Any = MODELS[cell.model](cell, 30).eval()
    masks = {
        name: BlockMask.full(*in_blocks((weight.shape[0], weight.shape[1]), 4, 8), 8)
        for name, weight in model.prunable().items()
    }
    with torch.no_grad():
        for name in ("weight_ih_l1", "weight_hh_l0"):  # nobody reads the second block of the first layer's units
            model.prunable()[name][:, 8:16] = 0.0
            kept = masks[name].kept.clone()
            kept[:, 1] = False
            masks[name] = BlockMask(kept, 8)
    window = torch.randint(30, (7, 3))
    smaller = narrowed(exported(model, masks))
    assert smaller.widths == [12, 20]
    torch.testing.assert_close(smaller(window)[0], model(window)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "gates"), [(LSTMLayer(10, 6), 4), (LinearLayer(10, 6), 1)], ids=["lstm", "linear"])
def test_a_layer_follows_a_mask_that_reaches_beyond_its_weight(layer: Any, gates: int) -> None:
    """Values and gradients of every parameter and of x, beside torch's layer with zeros in its weights."""
    torch.manual_seed(0)
    kinds, masks = next(iter(sorted(layer.KINDS, key=len, reverse=True))), {}
    for kind in sorted(kinds):
        weight = layer.weight_of(kind)
        whole = in_blocks((weight.shape[0], weight.shape[1]), gates, 4)
        masks[kind] = BlockMask.random(*whole, 4, 0.4, torch.Generator().manual_seed(1))
        inside = torch.ones_like(weight)
        emptied = ~masks[kind].expand(weight.device)
        with torch.no_grad():
            keep = padded(inside, gates, whole).masked_fill(emptied, 0.0)
            weight.mul_(
                keep.view(gates, -1, whole[1])[:, : weight.shape[0] // gates, : weight.shape[1]].reshape_as(weight)
            )
    x = torch.randn(5, 3, 10)
    found = []
    for followed in ({}, masks):
        layer.follow(followed)
        layer.zero_grad()
        entered = x.clone().requires_grad_()
        y = layer(entered)
        y = y[0] if isinstance(y, tuple) else y
        y.square().sum().backward()
        grads = {name: each.grad.clone() for name, each in layer.named_parameters()}
        for kind, mask in masks.items():
            name = kind + layer.suffix
            blocks = as_blocks(grads[name], 4, gates)
            grads[name] = blocks * mask.kept[:, None, :, None]
        found.append((y.detach(), entered.grad, grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_blocks_that_reach_beyond_have_the_norms_of_what_is_inside() -> None:
    weight = torch.arange(1.0, 13.0).reshape(6, 2)  # two gates of three rows
    norms = block_norms(weight, 2, gates=2)
    assert norms.shape == (4, 1)
    inside = [weight[0:2], weight[2:3], weight[3:5], weight[5:6]]
    assert norms[:, 0].tolist() == pytest.approx([float(each.norm()) for each in inside])
    lasso = Lasso("proximal", 1.0, 2, scaled=False, gates=2)
    shrunk = weight.clone()
    lasso.shrink_([shrunk], 0.5)
    assert block_norms(shrunk, 2, gates=2)[:, 0].tolist() == pytest.approx(
        [float(each.norm()) - 0.5 for each in inside]
    )


def test_padding_is_said_where_sizes_are_refused_and_is_no_setting_where_blocks_divide() -> None:
    with pytest.raises(
        ValidationError, match=r"hidden_size: 20 is not divisible by block_size 8; accepted: .*pad = true"
    ):
        TrainCell(**ODD | {"pad": False})
    with pytest.raises(ValidationError, match=r"does not divide the 64 numbers of an example.*pad = true"):
        TrainCell(**CLASSIFIER | {"pad": False, "hidden_size": 24})
    hidden = TrainCell(**ODD | {"scope": "weight_hh", "decoder": "adaptive", "hidden_size": 24})
    assert not hidden.canonical().pad, "no block has a side of the embedding's"
    single = {"num_layers": 1, "embedding_size": 24}
    assert not TrainCell(**ODD | single).canonical().pad, "no layer has that many hidden units"
    even = {**ODD, "hidden_size": 16, "embedding_size": 16}
    assert TrainCell(**even).cell_id == TrainCell(**even | {"pad": False}).cell_id
    assert TrainCell(**CLASSIFIER | {"hidden_size": 24}).canonical().pad, "the input is odd"
    assert TrainCell(**ODD).grids()["weight_hh_l0"] == (12, 3)
    assert TrainCell(**CLASSIFIER).grids() == {"layers.0.weight": (2, 6), "layers.1.weight": (2, 2)}
