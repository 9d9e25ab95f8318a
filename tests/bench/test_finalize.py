"""Finalize: the exported model computes what the masked one computes, and is what was saved."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.pruning.finalize import FORMAT, FinalModel, finalize
from bench.pruning.pruner import Pruner
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
    assert isinstance(final.layers[0].weight_ih, torch.Tensor)


def test_nothing_of_the_model_is_shared(tmp_path: Path):
    model, pruner = masked()
    final = finalize(model, pruner.masks)
    final.save(tmp_path / "model.pt")
    copies = copy.deepcopy(final), pickle.loads(pickle.dumps(final))
    for each in (final, final.to("cpu"), FinalModel.load(tmp_path / "model.pt"), *copies):
        assert each.sparse_weights and all(weight.frozen for weight in each.sparse_weights)
    words = torch.randint(VOCABULARY, (3, 2))
    before = final(words)[0].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert torch.equal(final(words)[0], before)


def test_a_recurrent_weight_without_a_mask_is_refused():
    model, pruner = masked()
    del pruner.masks["weight_hh_l1"]
    with pytest.raises(ValueError, match="weight_hh_l1"):
        finalize(model, pruner.masks)


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing can be forked here")
@pytest.mark.timeout(300)
def test_whatever_a_kill_leaves_is_the_old_export_or_the_new_one(tmp_path: Path):
    """SIGKILL before and after each call that `save` makes of the system."""
    root, script = Path(__file__).parents[2], Path(__file__).with_name("start_export.py")
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
    import hashlib

    path = tmp_path / "model.pt"
    torch.save({"weights": {"weights": torch.zeros(3)}, "format alone": {"format": FORMAT}}.get(content, [1]), path)
    if content == "no archive":
        path.write_bytes(b"text")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("model.pt.sha256").write_text(f"{digest}  model.pt\n")
    with pytest.raises(ValueError, match=r"\A[^\n]*no exported model[^\n]*\Z"):
        FinalModel.load(path)


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
