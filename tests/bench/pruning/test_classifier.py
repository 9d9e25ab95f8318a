"""FinalClassifier: the exported mlp computes what the masked one computes, and is what was saved."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import DIGITS

from bench.cells import TrainCell
from bench.models.mlp import MLP
from bench.models.registry import MODELS
from bench.pruning.classifier import FinalClassifier, final_classifier
from bench.pruning.exported import exported, load
from bench.pruning.finalize import FinalModel
from bench.pruning.pruner import Pruner
from bench.training.equal import equal_network
from bench.training.meter import measure_final
from bench.training.paths import Paths
from bench.training.scores import Scores
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix

CELL = TrainCell(**DIGITS, schedule="pre", target_sparsity=0.75, dropout=0.5, num_layers=3)
X = torch.rand(20, 64, generator=torch.Generator().manual_seed(4))


def masked(**settings: Any) -> tuple[MLP, Pruner]:
    """A model in evaluation whose pruned blocks are zero, and whose batch normalisation has seen something."""
    cell = CELL.model_copy(update=settings)
    torch.manual_seed(0)
    model: MLP = MODELS["mlp"](cell, 10)
    pruner = Pruner(model.prunable(), cell, steps=10)
    for norm in model.norms or ():
        torch.nn.init.uniform_(norm.weight, -1.0, 2.0)
        torch.nn.init.normal_(norm.bias)
    model(3 * X)
    return model.eval(), pruner


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("scope", "sparse"), [("all", 3), ("weight_hh", 2)])
def test_the_logits_are_the_masked_models(scope: str, sparse: int, batch_norm: bool, tmp_path: Path) -> None:
    model, pruner = masked(scope=scope, batch_norm=batch_norm)
    exported(model, pruner.masks).save(tmp_path / "model.pt")
    wanted = model(X)[0].detach()
    for final in (load(tmp_path / "model.pt"), FinalClassifier.load(tmp_path / "model.pt")):
        assert isinstance(final, FinalClassifier) and len(final.sparse_weights) == sparse
        logits, states = final(X)
        torch.testing.assert_close(logits, wanted, rtol=0.0, atol=2e-6 * float(wanted.abs().max()))
        assert states == [] and final.widths == [32, 32, 32] and final.sparsity == 0.75
    labels = torch.randint(10, (20,))
    torch.testing.assert_close(final.loss(X, labels)[0], model.loss(X, labels)[0].detach())
    double, pruned = copy.deepcopy(model).double(), final_classifier(copy.deepcopy(model).double(), pruner.masks)
    torch.testing.assert_close(pruned(X.double())[0], double(X.double())[0].detach(), rtol=1e-12, atol=1e-12)


def test_what_lies_outside_the_mask_is_dropped() -> None:
    model, pruner = masked(batch_norm=True)
    expected = final_classifier(model, pruner.masks)
    with torch.no_grad():
        for name, mask in pruner.masks.items():
            pruner.weights[name][~mask.expand()] = torch.nan
    assert torch.equal(final_classifier(model, pruner.masks)(X)[0], expected(X)[0])


def test_the_bytes_by_hand() -> None:
    model, pruner = masked(num_layers=1)
    final = final_classifier(model, pruner.masks)  # one weight, 32 x 64: 4 x 8 blocks of 8 x 8, 8 of them kept
    assert final.dense_nbytes == 32 * 64 * 4
    assert final.nbytes == 8 * 64 * 4 + 4 * (8 + 4 + 1)
    assert isinstance(final.output.weight, torch.Tensor)


def test_nothing_of_the_model_is_shared(tmp_path: Path) -> None:
    model, pruner = masked(batch_norm=True)
    final = final_classifier(model, pruner.masks)
    final.save(tmp_path / "model.pt")
    for each in (final, copy.deepcopy(final), load(tmp_path / "model.pt"), pickle.loads(pickle.dumps(final))):
        assert each.sparse_weights and all(weight.frozen for weight in each.sparse_weights)
    before = final(X)[0].clone()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1)
    assert torch.equal(final(X)[0], before)


def test_it_is_a_module(tmp_path: Path) -> None:
    """With a state_dict, which another takes, whatever blocks it keeps itself; and trained further, in its blocks."""
    model, pruner = masked()
    final = final_classifier(model, pruner.masks)
    wanted = final(X)[0]
    assert not wanted.requires_grad and not any(each.requires_grad for each in final.parameters())
    torch.manual_seed(9)
    built = MODELS["mlp"](CELL, 10)
    other = final_classifier(built, Pruner(built.prunable(), CELL.model_copy(update={"seed": 5}), steps=10).masks)
    assert not torch.allclose(other(X)[0], wanted)
    other.load_state_dict(final.state_dict())
    assert torch.equal(other(X)[0], wanted)
    other.requires_grad_().train()
    other.loss(X, torch.randint(10, (20,)))[0].backward()
    assert all(each.grad is not None for each in other.parameters())
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    assert not torch.allclose(other(X)[0], wanted) and other.nbytes == final.nbytes


@pytest.mark.parametrize("pruned", [True, False])
def test_compiled_and_exported_it_gives_the_same(pruned: bool) -> None:
    model, pruner = masked(num_layers=2, batch_norm=True)
    final = final_classifier(model, pruner.masks if pruned else {})
    wanted = final(X)[0]
    again = torch.export.export(final, (X,), strict=False).module()
    torch.testing.assert_close(again(X)[0], wanted)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(final, backend="aot_eager")(X)[0], wanted)


@pytest.mark.parametrize("name", ["layers.3.weight", "output.weight", "weight_ih_l0"])
def test_a_mask_of_no_weight_is_refused(name: str) -> None:
    model, pruner = masked()
    masks = pruner.masks | {name: pruner.masks["layers.0.weight"]}
    with pytest.raises(ValueError, match=rf"^masks: '{name}' is no weight .*; accepted: layers.0.weight, .*2.weight$"):
        final_classifier(model, masks)
    with pytest.raises(ValueError, match=r"^masks: that of layers.0.weight covers \(8, 8\), and the weight is \(32, 6"):
        final_classifier(model, pruner.masks | {"layers.0.weight": BlockMask.full(8, 8, 8)})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, pruner = masked()
    path = tmp_path / "model.pt"
    final_classifier(model, pruner.masks).save(path)
    return path


def test_a_file_is_plain_tensors_and_loads_bit_for_bit(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"format", "layers", "output"} and content["format"] == FinalClassifier.FORMAT
    model, pruner = masked()
    direct, loaded = final_classifier(model, pruner.masks), load(saved)
    assert torch.equal(loaded(X)[0], direct(X)[0])
    for one, other in zip(loaded.sparse_weights, direct.sparse_weights, strict=True):
        assert isinstance(one, BSRMatrix) and torch.equal(one.data, other.data) and one.shape == other.shape
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.pt", "model.pt.sha256"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no checksum", "no file"])
@pytest.mark.parametrize("read", [load, FinalClassifier.load], ids=["of any kind", "of its own"])
def test_a_damaged_file_is_one_clear_line(read: Callable[[Path], Any], damage: str, saved: Path) -> None:
    data = saved.read_bytes()
    match damage:
        case "flip":
            saved.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        case "truncate":
            saved.write_bytes(data[:-1])
        case "empty":
            saved.write_bytes(b"")
        case "no checksum":
            saved.with_name("model.pt.sha256").unlink()
        case "no file":
            saved.unlink()
    with pytest.raises(ValueError, match=r"\A[^\n]*model\.pt[^\n]*\Z") as caught:
        read(saved)
    assert "export" in str(caught.value)


def rewritten(path: Path, content: Any) -> None:
    torch.save(content, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


@pytest.mark.parametrize("content", [{"format": "something"}, {"format": 3}, {}, [1], {"weights": torch.zeros(3)}])
def test_a_foreign_file_is_refused_with_what_is_accepted(tmp_path: Path, content: Any) -> None:
    rewritten(tmp_path / "model.pt", content)
    with pytest.raises(
        ValueError, match=r"\A[^\n]*no exported model; accepted: files of the format [^\n]*\Z"
    ) as caught:
        load(tmp_path / "model.pt")
    assert all(repr(kind.FORMAT) in str(caught.value) for kind in (FinalClassifier, FinalModel))


def test_one_kind_of_model_is_no_other(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"no exported model; accepted: files of the format 'block-sparse LSTM"):
        FinalModel.load(saved)


def dense(stored: dict[str, Any]) -> torch.Tensor:
    return BSRMatrix(**stored).to_dense()


def as_type(content: dict[str, Any], dtype: torch.dtype) -> None:
    for layer in content["layers"]:
        layer.update(weight=dense(layer["weight"]).to(dtype), bias=layer["bias"].to(dtype))
    content["output"] = {name: each.to(dtype) for name, each in content["output"].items()}


MISFITS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("output.bias must be real numbers, got int64", lambda content: as_type(content, torch.int64)),
    ("output.bias must be real numbers, got complex64", lambda content: as_type(content, torch.complex64)),
    ("layers[0] must be float32", lambda content: content["layers"][0].update(bias=torch.zeros(32).half())),
    ("layers[1].bias must be a tensor", lambda content: content["layers"][1].update(bias=[1.0])),
    ("layers[1].bias is missing", lambda content: content["layers"][1].pop("bias")),
    ("layers[1] must be", lambda content: content["layers"][1].update(weight=torch.zeros(32))),
    ("layers[1] must be", lambda content: content["layers"][1].update(weight=torch.zeros(32, 32, 1))),
    ("layers[1] must be", lambda content: content["layers"][1].update(bias=torch.zeros(()))),
    ("layers[1].weight must read the 32", lambda content: content["layers"][1].update(weight=torch.zeros(32, 24))),
    ("layers[0].weight: shape", lambda content: content["layers"][0]["weight"].update(shape=(24,))),
    ("layers[0].weight must have", lambda content: content["layers"][0]["weight"].pop("data")),
    ("layers[0].weight: indices", lambda content: content["layers"][0]["weight"]["indices"].add_(100)),
    ("layers[0] must be", lambda content: content["layers"][0].update(weight=torch.zeros(32, 0))),
    (
        "layers[2] must be",
        lambda content: content["layers"][2].update(weight=torch.zeros(0, 32), bias=torch.zeros(0)),
    ),
    ("output must be", lambda content: content["output"].update(weight=torch.zeros(0, 32), bias=torch.zeros(0))),
    ("output.weight must be dense", lambda content: content.update(output=content["layers"][1])),
    ("output.bias must be a tensor", lambda content: content["output"].update(bias=None)),
    ("output is missing", lambda content: content.pop("output")),
    ("layers must be a list", lambda content: content.update(layers=content["layers"][0])),
    ("layers must be one or more", lambda content: content.update(layers=[])),
    ("layers[0].weight is missing", lambda content: content.update(layers=[1, 2])),
]


@pytest.mark.parametrize("case", range(len(MISFITS)))
def test_a_field_that_does_not_fit_is_one_line_naming_file_and_field(case: int, saved: Path) -> None:
    said, change = MISFITS[case]
    content = torch.load(saved, weights_only=True)
    change(content)
    rewritten(saved, content)
    with pytest.raises(ValueError, match=r"\A[^\n]*model\.pt is no exported model: [^\n]*\Z") as caught:
        load(saved)
    assert f": {said}" in str(caught.value), str(caught.value)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_it_is_timed_in_the_type_that_the_run_multiplied_in(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are no words: they are of that type as well."""
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 2)
    model, pruner = masked(batch_norm=batch_norm)
    cell = CELL.model_copy(update={"precision": "bfloat16", "batch_norm": batch_norm})
    types: list[torch.dtype] = []

    def of_test(final: Any) -> Scores:
        types.extend(each.dtype for each in final.parameters())
        return Scores([1.0], [1], 1)

    equal = partial(equal_network, cell, 10)
    columns = measure_final(model, pruner, Paths(model, cell), X, of_test, None, equal)
    others = ("inference_ms", "inference_narrowed_ms", "inference_equal_ms", "inference_equal_dense_ms")
    assert set(types) == {torch.bfloat16} and [len(columns[name]) for name in others] == [2] * 4
    assert columns["final_accuracy"] == 1.0 and next(model.parameters()).dtype == torch.float32
