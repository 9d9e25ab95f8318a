"""Finalize: the exported model computes what the masked one computes, and is what was saved."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.pruning.finalize import FORMAT, FinalModel, finalize
from bench.pruning.pruner import Pruner
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix


class Renamed:
    """A path that is neither a string nor pathlib's."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


CELL = TrainCell(
    schedule="pre", target_sparsity=0.75, block_size=8, embedding_size=16, hidden_size=32, dropout=0.5, num_layers=3
)
VOCABULARY = 50


def masked(cell: TrainCell = CELL) -> tuple[torch.nn.Module, Pruner]:
    """A model in evaluation whose pruned blocks are zero."""
    torch.manual_seed(0)
    built = MODELS["lstm"](cell, VOCABULARY)
    return built.eval(), Pruner(built.prunable(), cell, steps=10)


@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_the_logits_are_the_masked_models(scope: str, tmp_path: Path):
    model, pruner = masked(CELL.model_copy(update={"scope": scope}))
    finalize(model, pruner.masks).save(tmp_path / "model.pt")
    final = FinalModel.load(tmp_path / "model.pt")
    words = torch.randint(VOCABULARY, (12, 4))
    states = final_states = None
    for window in words.split(5):  # states carried on
        with torch.no_grad():
            logits, states = model(window, states)
        final_logits, final_states = final(window, final_states)
        torch.testing.assert_close(final_logits, logits, rtol=0.0, atol=1e-6)
        for state, final_state in zip(states, final_states, strict=True):
            torch.testing.assert_close(final_state, state, rtol=0.0, atol=1e-6)


def test_what_lies_outside_the_mask_is_dropped():
    model, pruner = masked()
    expected = finalize(model, pruner.masks)
    with torch.no_grad():
        for name, mask in pruner.masks.items():
            pruner.weights[name][~mask.expand()] = torch.nan
    words = torch.randint(VOCABULARY, (3, 2))
    assert torch.equal(finalize(model, pruner.masks)(words)[0], expected(words)[0])


def test_the_bytes_by_hand():
    model, pruner = masked(CELL.model_copy(update={"num_layers": 1, "scope": "weight_hh"}))
    final = finalize(model, pruner.masks)  # one weight, 64 x 16: 8 x 2 blocks of 8 x 8, 4 of them kept
    assert final.dense_nbytes == 64 * 16 * 4
    assert final.nbytes == 4 * 64 * 4 + 4 * (4 + 8 + 1)
    assert isinstance(final.layers[0].weight_ih_l0, torch.Tensor)


def test_nothing_of_the_model_is_shared(tmp_path: Path):
    model, pruner = masked()
    final = finalize(model, pruner.masks)
    final.save(tmp_path / "model.pt")
    copies = copy.deepcopy(final), pickle.loads(pickle.dumps(final))
    for each in (final, copy.deepcopy(final).to("cpu"), FinalModel.load(tmp_path / "model.pt"), *copies):
        assert each.sparse_weights and all(weight.frozen for weight in each.sparse_weights)
    words = torch.randint(VOCABULARY, (3, 2))
    before = final(words)[0].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert torch.equal(final(words)[0], before)


@pytest.mark.parametrize("dense", ["weight_hh_l1", "weight_ih_l2", "all"])
def test_a_weight_without_a_mask_stays_dense(dense: str, tmp_path: Path):
    model, pruner = masked()
    masks = {name: mask for name, mask in pruner.masks.items() if dense not in (name, "all")}
    finalize(model, masks).save(tmp_path / "model.pt")
    final = FinalModel.load(tmp_path / "model.pt")
    assert len(final.sparse_weights) == len(masks)
    words = torch.randint(VOCABULARY, (7, 4))
    with torch.no_grad():
        torch.testing.assert_close(final(words)[0], model(words)[0], rtol=0.0, atol=1e-6)


def test_it_is_a_module(saved: Path):
    """With a state_dict, which another takes, whatever blocks it keeps itself; and trained further, in its blocks."""
    model, words = FinalModel.load(saved), torch.randint(VOCABULARY, (5, 3))
    wanted = model(words)[0]
    assert not wanted.requires_grad and not any(each.requires_grad for each in model.parameters())
    torch.manual_seed(9)
    built = MODELS["lstm"](CELL, VOCABULARY)
    other = finalize(built, Pruner(built.prunable(), CELL, steps=10).masks)
    assert not torch.allclose(other(words)[0], wanted)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(words)[0], wanted)
    other.requires_grad_().train()
    other.loss(words, words)[0].backward()
    assert all(each.grad is not None for each in other.parameters())
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    assert not torch.allclose(other(words)[0], wanted) and other.nbytes == model.nbytes


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("decoder", ["tied", "adaptive"])
@pytest.mark.builds
def test_compiled_and_exported_it_gives_the_same(decoder: str, pruned: bool):
    more = {"decoder": "adaptive", "cutoff": 10, "second_cutoff": 30} if decoder == "adaptive" else {}
    model, pruner = masked(CELL.model_copy(update={"num_layers": 2, **more}))
    final = finalize(model, pruner.masks if pruned else {})
    words, targets = torch.randint(VOCABULARY, (2, 4, 3))
    wanted, states = final(words)
    again = final(words, states)[0]
    exported = torch.export.export(final, (words, states), strict=False).module()
    torch.testing.assert_close(exported(words, states)[0], again)
    torch._dynamo.reset()
    compiled = torch.compile(final, backend="aot_eager")
    torch.testing.assert_close(compiled(words)[0], wanted)
    torch.testing.assert_close(compiled(words, states)[0], again)
    assert final.loss(words, targets)[0].isfinite()


@pytest.mark.parametrize("name", ["weight_ih_10", "weight_hh_l3", "bias_ih_l0", "embedding"])
def test_a_mask_of_no_weight_is_refused(name: str):
    model, pruner = masked()
    masks = pruner.masks | {name: pruner.masks["weight_ih_l0"]}
    with pytest.raises(ValueError, match=rf"^masks: '{name}' is no weight of the model; accepted: weight_ih_l0, .*l2$"):
        finalize(model, masks)


def test_a_mask_of_another_size_is_refused():
    model, pruner = masked()
    with pytest.raises(
        ValueError, match=r"^masks: that of weight_ih_l0 covers \(8, 8\), and the weight is \(128, 16\)$"
    ):
        finalize(model, pruner.masks | {"weight_ih_l0": BlockMask.full(8, 8, 8)})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, pruner = masked()
    path = tmp_path / "model.pt"
    finalize(model, pruner.masks).save(path)
    return path


def test_a_file_is_plain_tensors_and_loads_bit_for_bit(saved: Path):
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"format", "embedding", "decoder_bias", "layers"}
    model, pruner = masked()
    direct, loaded = finalize(model, pruner.masks), FinalModel.load(saved)
    assert loaded.nbytes == direct.nbytes and torch.equal(loaded.embedding, direct.embedding)
    for one, other in zip(loaded.sparse_weights, direct.sparse_weights, strict=True):
        assert isinstance(one, BSRMatrix) and one.shape == other.shape
        assert torch.equal(one.data, other.data) and torch.equal(one.indices, other.indices)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.pt", "model.pt.sha256"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no checksum", "wrong checksum", "no file"])
def test_a_damaged_file_is_one_clear_line(saved: Path, damage: str):
    data, checksum = saved.read_bytes(), saved.with_name("model.pt.sha256")
    match damage:
        case "flip":
            saved.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        case "truncate":
            saved.write_bytes(data[:-1])
        case "empty":
            saved.write_bytes(b"")
        case "no checksum":
            checksum.unlink()
        case "wrong checksum":
            checksum.write_text("0" * 64 + "  model.pt\n")
        case "no file":
            saved.unlink()
    with pytest.raises(ValueError, match=r"model\.pt") as caught:
        FinalModel.load(saved)
    assert "\n" not in str(caught.value) and "export" in str(caught.value)


@pytest.mark.kills
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing can be forked here")
@pytest.mark.timeout(300)
def test_whatever_a_kill_leaves_is_the_old_export_or_the_new_one(tmp_path: Path):
    """SIGKILL before and after each call that `save` makes of the system."""
    root, script = Path(__file__).parents[3], Path(__file__).with_name("start_export.py")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    endings = json.loads(done.stdout)
    for before in ("nothing", "old"):
        of_it = [ending for ending in endings if ending["before"] == before]
        *killed, last = [ending["after"] for ending in of_it]
        assert (
            len(killed) > 10 and last == "new" and [ending["killed"] for ending in of_it[:-1]] == [True] * len(killed)
        )
        assert {"nothing": {"nothing", "new"}, "old": {"old", "new"}}[before] == set(killed)
        assert killed == sorted(killed, key="new".__eq__), "once it is the new one it stays so"
        assert all(ending["saved again"] for ending in of_it)


@pytest.mark.parametrize("content", ["weights", "format alone", "a list", "no archive"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "model.pt"
    torch.save({"weights": {"weights": torch.zeros(3)}, "format alone": {"format": FORMAT}}.get(content, [1]), path)
    if content == "no archive":
        path.write_bytes(b"text")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("model.pt.sha256").write_text(f"{digest}  model.pt\n")
    with pytest.raises(ValueError, match=r"\A[^\n]*no exported model[^\n]*\Z"):
        FinalModel.load(path)


def other_field(content: dict[str, Any], place: str, change: Callable[[Any], Any]) -> None:
    """Change the field of a file's content that is called `layers[1].weight_hh`, say."""
    *outer, name = place.replace("[", ".").replace("]", "").split(".")
    for each in outer:
        content = content[int(each) if each.isdigit() else each]  # type: ignore[index]
    changed = change(content[name])
    content.pop(name)
    if changed is not None:
        content[name] = changed


MISFITS: list[Any] = [
    ("layers[1].weight_hh", lambda each: BSRMatrix(**each).to_dense()[:-1]),
    ("layers[1].weight_hh", lambda each: BSRMatrix(**each).to_dense()[0, 0]),
    ("layers[1].weight_hh", lambda each: each | {"data": each["data"].double()}),
    ("layers[1].weight_ih", lambda each: each | {"data": each["data"].int()}),
    ("layers[0].weight_ih", lambda each: BSRMatrix(**each).to_dense()[:, :-8]),
    ("layers[0].weight_ih", lambda each: each | {"indices": each["indices"] + 100}),
    ("layers[0].weight_ih", lambda each: each | {"shape": (24,)}),
    ("layers[0].weight_ih", lambda each: {"data": each["data"]}),
    ("layers[0].weight_ih", lambda each: [each]),
    ("layers[2].bias_hh", lambda each: each[:-1]),
    ("layers[2].bias_ih", lambda each: each.half()),
    ("layers[2].bias_ih", lambda each: None),  # noqa: ARG005
    ("layers[0].bias_ih", lambda each: each.tolist()),
    ("embedding", lambda each: each[:, :-1], "layers[2].weight_hh"),  # the first block-sparse one may be padded
    ("embedding", lambda each: each[:, :-8], "layers[0].weight_ih"),
    ("embedding", lambda each: each.int()),
    ("embedding", lambda each: each[0]),
    ("embedding", lambda each: None),  # noqa: ARG005
    ("decoder_bias", lambda each: each[:-1]),
    ("decoder_bias", lambda each: each.long()),
    ("layers", lambda each: []),  # noqa: ARG005
    ("layers", lambda each: each[:-1], "layers[1].weight_hh"),
    ("layers", lambda each: each[0]),
]


@pytest.mark.parametrize("case", range(len(MISFITS)))
def test_a_field_that_does_not_fit_is_one_line_naming_file_and_field(saved: Path, case: int):
    place, change, *others = MISFITS[case]
    named = others[0] if others else place
    content = torch.load(saved, weights_only=True)
    other_field(content, place, change)
    torch.save(content, saved)
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    saved.with_name("model.pt.sha256").write_text(f"{digest}  model.pt\n")
    with pytest.raises(ValueError, match=r"\A[^\n]*model\.pt is no exported model: [^\n]*\Z") as caught:
        FinalModel.load(saved)
    assert f": {named}" in str(caught.value), str(caught.value)


def test_a_saved_model_has_the_pattern_that_products_have(saved: Path):
    model = FinalModel.load(saved)
    words = torch.randint(VOCABULARY, (3, 2))
    wanted = model(words)[0]
    for weight in model.sparse_weights:
        weight.indices.fill_(0)
    model.save(saved)
    for each in (model, copy.deepcopy(model).to("cpu"), FinalModel.load(saved)):
        assert torch.equal(each(words)[0], wanted)


@pytest.mark.parametrize("kind", [str, Path, Renamed])
def test_a_renamed_export_is_whole_and_its_path_may_be_of_any_kind(saved: Path, kind: type):
    for name in ("model.pt", "model.pt.sha256"):
        (saved.parent / name).rename(saved.parent / name.replace("model", "best of all"))
    path = kind(str(saved.with_name("best of all.pt")))
    model = FinalModel.load(path)
    model.save(path)
    assert torch.equal(FinalModel.load(path).embedding, model.embedding)
    checksum = saved.with_name("best of all.pt.sha256")
    checksum.write_bytes(checksum.read_bytes()[:64].upper() + b" *somewhere/else.pt\r\n")  # as other tools write it
    FinalModel.load(path)
    for wrong in (checksum.read_bytes()[:63], b"\xff" * 64, checksum.read_bytes()[:64] + b"0"):
        checksum.write_bytes(wrong)
        with pytest.raises(ValueError, match="damaged"):
            FinalModel.load(path)
