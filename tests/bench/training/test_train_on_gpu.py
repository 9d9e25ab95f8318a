"""What only a GPU can show of training: results near the CPU's, exact resume, cells side by side.

Skipped where there is none.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import results, silent
from twins import masks, twins
from twins import train as train_layer

from bench import train
from bench.cells import TrainCell
from bench.commands.campaign import run_campaign
from bench.engines.driver import Terms
from bench.storing.tables import Tables
from bench.sweep import load
from bench.train import train_cell
from bench.training.checkpoint import Checkpoints
from bench.training.paths import Shape, measure, missing_kernel
from kernels.cuda.device import unavailable

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS need not repeat itself

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
NO_KERNEL = unavailable()
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path on a GPU here: {NO_KERNEL}")
PATHS = ["dense", pytest.param("sparse", marks=needs_kernel), pytest.param("auto", marks=needs_kernel)]
SMALL = {
    "train_tokens": 8000, "eval_tokens": 2000, "embedding_size": 64, "hidden_size": 128, "block_size": 16,
    "batch_size": 20, "bptt": 20, "epochs": 2, "prune_every": 2, "threads": 1, "schedule": "cubic",
    "target_sparsity": 0.8, "prune_end": 0.8, "device": "cuda",
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 0.005, "lr_schedule": "four_phases", "beta1": 0.8, "lasso": "proximal"},
    "sgd": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "lasso": "subgradient"},
    "asgd": {"optimizer": "asgd", "learning_rate": 2.0, "criterion": "random"},
    "nt_asgd": {"optimizer": "nt_asgd", "learning_rate": 2.0, "nonmonotone": 1, "selection": "best", "prune_end": 0.3},
}
AWD: dict[str, Any] = {
    "model": "awd_lstm", "weight_drop": 0.3, "input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2,
    "embedding_dropout": 0.1, "activation_penalty": 2.0, "temporal_penalty": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 3)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 2)
    monkeypatch.setattr("bench.training.paths.breakeven", lambda _: 0.3)


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**SMALL, **settings})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_short_run_is_near_the_cpus(optimizer: str, path: str) -> None:
    """Without dropout, whose masks a GPU draws otherwise, a run differs by rounding only."""
    found = train_cell(cell(**OPTIMIZERS[optimizer], path=path), silent)
    wanted = train_cell(cell(**OPTIMIZERS[optimizer], device="cpu"), silent)
    for one, other in zip(found[0]["block_norms"], wanted[0]["block_norms"], strict=True):
        assert one["norms"] == pytest.approx(other["norms"], rel=1e-5), "the first weights are the same"
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert one["status"] == "ok" and one["sparsity"] == pytest.approx(other["sparsity"], abs=1e-9)
        for name in ("train_ppl", "val_ppl", "test_ppl"):
            assert one[name] == pytest.approx(other[name], rel=0.02)
        assert 0.0 < one["lstm_seconds"] < one["train_seconds"]
    assert path == "dense" or found[-1]["final_ppl"] == pytest.approx(found[-1]["test_ppl"], rel=1e-3)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("path", PATHS)
def test_lower_precisions_are_near_the_exact_one(path: str, precision: str) -> None:
    exact = train_cell(cell(path=path), silent)
    rows = train_cell(cell(path=path, precision=precision), silent)
    assert rows[-1]["val_ppl"] == pytest.approx(exact[-1]["val_ppl"], rel=0.05)
    assert path == "dense" or rows[-1]["final_ppl"] == pytest.approx(rows[-1]["test_ppl"], rel=0.02)


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bfloat16"])
@pytest.mark.parametrize("path", PATHS)
def test_awd_lstm_trains_in_every_precision(path: str, precision: str) -> None:
    rows = train_cell(cell(**AWD, path=path, precision=precision), silent)
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert rows[2]["train_ppl"] < rows[0]["vocabulary"] / 4
    if path == "sparse":
        assert rows[-1]["lstm_kernel"].startswith("cuda") and rows[-1]["sparse_share"] == 1.0
        assert len(rows[-1]["probes"]) == 2 and missing_kernel("cuda", precision) is None


class Stop(BaseException):
    """The run is interrupted."""


@pytest.mark.parametrize("path", PATHS)
def test_an_interrupted_run_goes_on_bit_equal(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, checkpoints = cell(**AWD, **OPTIMIZERS["nt_asgd"], path=path), Checkpoints(tmp_path, 0.0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        wanted = train_cell(settings, silent)
        scaled, calls = train.scaled_rate, []

        def stop(*given: Any) -> Any:
            calls.append(given)
            if len(calls) == 27:
                raise Stop
            return scaled(*given)

        with monkeypatch.context() as patch:
            patch.setattr(train, "scaled_rate", stop)
            with pytest.raises(Stop):
                train_cell(settings, silent, checkpoints=checkpoints)
        rows = train_cell(settings, silent, checkpoints=checkpoints)
    finally:
        torch.use_deterministic_algorithms(False)
    assert rows[-1]["resumed"] == 1 and results(rows) == results(wanted)


@needs_kernel
def test_a_break_even_is_measured_on_the_gpu() -> None:
    curve = measure(Shape(64, 128, 20, 20, 16, "all", "float32", 1, 0.5, "cuda", "tf32"))
    assert curve and all(0.0 < ratio < 100.0 for _, ratio in curve)


def test_a_loss_that_is_no_number_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = train_cell(cell(optimizer="sgd", learning_rate=1e30, clip=0.0), silent)
    assert len(rows) == 1 and rows[0]["status"] == "diverged" and "epoch 1" in rows[0]["reason"]


def test_a_campaign_trains_side_by_side(tmp_path: Path) -> None:
    names = ("train_tokens", "eval_tokens", "embedding_size", "hidden_size", "batch_size", "bptt", "epochs")
    lines = [f"{name} = {SMALL[name]}" for name in names]
    path = tmp_path / "pairs.toml"
    text = ['kind = "train"', "[base]", 'device = "cuda"', *lines, "[axes]", "seed = [0, 1]"]
    path.write_text("\n".join(text) + "\n")
    assert run_campaign([load(path)], tmp_path / "out", 200.0, checkpoint_mib=50.0, terms=Terms(together=2)) == 0
    tables = Tables(tmp_path / "out" / "pairs", load(path).cells)
    assert tables.load() == []
    rows = [row for one in load(path).cells for row in tables.rows(one)]
    assert {row["status"] for row in rows} == {"ok"} and {row["workers"] for row in rows} == {2}
    assert {row["device"] for row in rows} == {"cuda"} and len(rows) == 6


@needs_kernel
def test_a_layer_that_follows_masks_goes_to_a_gpu_and_back() -> None:
    wanted = masks(("weight_ih", "weight_hh"), 0.5, inputs=128, size=128)
    layer, _ = twins(wanted, 128, 128)
    found = []
    for device in ("cpu", "cuda", "cpu"):
        layer.zero_grad()
        train_layer(layer.to(device), 1)
        found.append([each.grad.cpu() for each in layer.parameters()])
        assert all(each.grad.device.type == device for each in layer.parameters())
        copy.deepcopy(layer)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
