"""Training on the sparse path.

The masked run's losses within rounding, exact zeros, probes that touch nothing, the export.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import results, silent

from bench import train
from bench.cells import TrainCell
from bench.data.corpus import data_dir
from bench.data.datasets import load_corpus
from bench.models.layers import LSTMLayer
from bench.pruning.finalize import FinalModel
from bench.pruning.pruner import Pruner
from bench.schema import TRAIN
from bench.train import train_cell
from bench.training import meter
from bench.training.paths import NEVER, missing_kernel
from bench.training.tasks import score

NO_KERNEL = missing_kernel()
pytestmark = [
    pytest.mark.usefixtures("few_words"),
    pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}"),
]
FINAL = [
    column.name
    for column in TRAIN
    if column.name.startswith(("dense_", "final_", "inference_", "narrowed_", "equal_"))
    and column.name != "final_accuracy"
]  # of a language model
TINY = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 2, "prune_every": 2, "optimizer": "sgd", "learning_rate": 1.0,
    "threads": 1, "dropout": 0.3, "schedule": "cubic", "target_sparsity": 0.8, "prune_end": 0.8,
}  # fmt: skip
TRAINING_PAIRS = meter.TRAINING_PAIRS
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "weight_decay": 1e-4},
    "adam": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 1e-2},
    "asgd": {"optimizer": "asgd", "learning_rate": 5.0, "weight_decay": 1e-4},
}


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probes where a test does not ask for them, and few samples."""
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 0)
    monkeypatch.setattr(meter, "INFERENCE_PAIRS", 3)


def run(settings: dict[str, Any], losses: list[float]) -> tuple[list[dict], list[float]]:
    losses.clear()
    rows = train_cell(cell(**settings), silent)
    return rows, list(losses)


class FarAway(BaseException):
    """A loss is farther from the other run's than rounding takes it."""


@pytest.mark.parametrize("lasso", ["none", "subgradient", "proximal"])
@pytest.mark.parametrize("scope", ["weight_hh", "all"])
def test_masked_and_sparse_training_agree_step_by_step(
    scope: str, lasso: str, losses: list[float], monkeypatch: pytest.MonkeyPatch
):
    """The paths add up in other orders, so every step rounds differently, which later steps carry on.

    Allowed: one unit of float32 (2^-23 of the loss) for the loss itself and one more for each step done; at most 1.5
    units in all were seen over 40 steps. A run to 75 % instead of 80 % is more than ten times as far away as is
    allowed.
    """
    settings = {**OPTIMIZERS["sgd"], "scope": scope, "lasso": lasso, "epochs": 4}
    masked_rows, masked = run(settings, losses)
    sparse_rows, sparse = run({**settings, "path": "sparse"}, losses)
    assert len(masked) == len(sparse) == 40
    for step, (one, other) in enumerate(zip(masked, sparse, strict=True)):
        assert abs(one - other) <= (1 + step) * 2**-23 * one, f"step {step}: {one} and {other}"
    for one, other in zip(masked_rows[1:], sparse_rows[1:], strict=True):
        assert one["sparsity"] == other["sparsity"] and one["zero_block_share"] == other["zero_block_share"]
        for name in ("train_ppl", "val_ppl", "test_ppl"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert masked_rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert [row["sparse_share"] for row in masked_rows[1:]] == [0.0] * 4
    assert [row["sparse_share"] for row in sparse_rows[1:]] == [1.0] * 4
    seen: list[float] = []

    def compared(nats: float, epoch: int) -> float:
        seen.append(nats)
        if abs(masked[len(seen) - 1] - nats) / masked[len(seen) - 1] > 10 * 40 * 2**-23:
            raise FarAway
        return nats

    monkeypatch.setattr(train, "finite", compared)
    with pytest.raises(FarAway):
        run({**settings, "path": "sparse", "target_sparsity": 0.75}, losses)


@pytest.mark.parametrize("lasso", ["none", "subgradient", "proximal"])
@pytest.mark.parametrize("schedule", ["pre", "one_shot", "cubic"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_blocks_stay_exactly_zero(optimizer: str, schedule: str, lasso: str, monkeypatch: pytest.MonkeyPatch):
    looked_at = []
    after_step = Pruner.after_step

    def checked(self: Pruner, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        after_step(self, step, optimizer)
        for name, mask in self.masks.items():
            for tensor in self._tensors(self.weights[name], optimizer):
                assert (tensor[~mask.expand()] == 0).all(), f"{name} leaks at step {step}"
                looked_at.append(name)

    monkeypatch.setattr(Pruner, "after_step", checked)
    settings = {**OPTIMIZERS[optimizer], "schedule": schedule, "lasso": lasso, "prune_begin": 0.3, "path": "sparse"}
    rows = train_cell(cell(**settings), silent)
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert len(looked_at) >= 20 * 4 * 3


@pytest.mark.parametrize("what", ["weight", "gradient", "momentum"])
def test_a_planted_leak_is_seen(what: str, monkeypatch: pytest.MonkeyPatch):
    """One element of one pruned block, put there once, behind every mask's back.

    It is put in each gradient, for that is new at each step.
    """
    step_of = torch.optim.SGD.step

    def leak(self: torch.optim.SGD, *arguments: Any) -> None:
        step_of(self, *arguments)
        weight = next(each for each in self.param_groups[0]["params"] if each.shape == (128, 32))
        steps.append(what)
        if len(steps) == 5 or (len(steps) > 5 and what == "gradient"):
            tensor = {"weight": weight, "gradient": weight.grad, "momentum": self.state[weight]["momentum_buffer"]}[
                what
            ]
            row, col = (weight == 0).nonzero()[0].tolist()
            with torch.no_grad():
                tensor[row, col] = 1e-30

    steps: list[str] = []
    monkeypatch.setattr(torch.optim.SGD, "step", leak)
    with pytest.raises(AssertionError, match="is not zero"):
        train_cell(cell(**OPTIMIZERS["sgd"], schedule="pre", path="sparse"), silent)


def test_equal_sparse_cells_give_bit_equal_results():
    first, again = (results(train_cell(cell(path="sparse"), silent)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("path", ["sparse", "auto"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_probes_change_nothing(path: str, optimizer: str, losses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.training.paths.breakeven", lambda shape: 0.5 if shape.hidden == 32 else NEVER)
    settings = {**OPTIMIZERS[optimizer], "path": path, "lasso": "subgradient"}
    silent_rows, unprobed = run(settings, losses)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 5)
    probed_rows, probed = run(settings, losses)
    assert probed == unprobed and results(probed_rows) == results(silent_rows)
    assert [len(row["probes"]) for row in probed_rows[1:]] == [5, 5]
    assert [len(row["probes"]) for row in silent_rows[1:]] == [0, 0]
    assert silent_rows[-1]["sparse_share"] == probed_rows[-1]["sparse_share"]


def test_a_probe_says_when_and_what_it_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", TRAINING_PAIRS)
    monkeypatch.setattr("bench.training.paths.breakeven", lambda shape: 0.5 if shape.hidden == 32 else NEVER)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 5)
    rows = train_cell(cell(path="auto"), silent)
    meter = [probe for row in rows[1:] for probe in row["probes"]]
    assert [probe["step"] for probe in meter] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    sparsities = [probe["sparsity"] for probe in meter]
    assert sparsities == sorted(sparsities) and sparsities[0] == 0.0
    layers = [probe["sparse_layers"] for probe in meter]
    assert layers[0] == 0 and layers[-1] == 1 and layers == sorted(layers)
    for probe in meter:
        assert len(probe["dense_ms"]) == len(probe["lstm_ms"]) == 5
        assert all(ms > 0 for ms in probe["dense_ms"] + probe["lstm_ms"])
    shares = [row["sparse_share"] for row in rows[1:]]
    assert 0.0 < shares[0] < shares[1] == 0.5  # one layer of two


@pytest.mark.alone
def test_probing_is_not_in_the_measured_times(monkeypatch: pytest.MonkeyPatch):
    import time

    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 5)
    monkeypatch.setattr(train, "probe_layers", lambda *_: time.sleep(0.4) or {"sparse_layers": 0})
    began = time.perf_counter()
    rows = train_cell(cell(path="sparse", epochs=1), silent)
    assert time.perf_counter() - began > 2.0 > rows[-1]["train_seconds"] + 0.5


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_the_time_inside_the_layers_is_part_of_the_training_time(path: str):
    rows = train_cell(cell(path=path), silent)
    for row in rows[1:]:
        assert 0.0 < row["lstm_seconds"] < row["train_seconds"]
    assert rows[0]["lstm_seconds"] is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["weight_hh", "all"])
def test_the_last_row_has_the_finalised_model(scope: str, optimizer: str, tmp_path: Path):
    path = tmp_path / "model.pt"
    rows = train_cell(cell(**OPTIMIZERS[optimizer], scope=scope, path="sparse"), silent, export=path)
    assert all(row[name] is None for row in rows[:-1] for name in FINAL)
    last = rows[-1]
    assert all(last[name] is not None for name in FINAL)
    assert last["final_ppl"] == pytest.approx(last["test_ppl"], rel=1e-5)  # ASGD's average, too
    assert last["narrowed_ppl"] == pytest.approx(last["final_ppl"], rel=1e-6)
    assert last["narrowed_bytes"] <= last["final_bytes"]
    assert all(live <= size <= 32 for live, size in zip(last["live_units"], last["narrowed_units"], strict=True))
    assert last["dense_bytes"] == 4 * last["prunable_parameters"]
    assert last["final_bytes"] < 0.3 * last["dense_bytes"]
    assert len(last["live_units"]) == 2 and all(0 < count <= 32 for count in last["live_units"])
    assert last["inference_kernel"] == last["lstm_kernel"] and last["lstm_kernel"].startswith("native")
    for name in (name for name in FINAL if name.endswith("_ms")):
        assert len(last[name]) == 3 and all(math.isfinite(ms) and ms > 0 for ms in last[name])
    assert FinalModel.load(path).nbytes == last["final_bytes"]


@pytest.mark.parametrize("decoder", ["tied", "adaptive"])
def test_units_that_died_are_removed_from_what_is_measured(decoder: str) -> None:
    settings = {"decoder": decoder, "cutoff": 50, "second_cutoff": 200, "num_layers": 3, "target_sparsity": 0.95}
    last = train_cell(cell(**settings, learning_rate=3.0, path="sparse"), silent)[-1]
    died = [live < size for live, size in zip(last["live_units"], [32, 32, 32], strict=True)]
    assert any(died[:2]) and min(last["narrowed_units"][:2]) < 32, "or this tests nothing"
    assert last["narrowed_ppl"] == pytest.approx(last["final_ppl"], rel=1e-6) and last["narrowed_ppl"] < 1e4
    assert last["narrowed_bytes"] < last["final_bytes"] and last["narrowed_sparsity"] < 0.95
    assert len(last["inference_narrowed_ms"]) == len(last["inference_narrowed_dense_ms"]) == 3


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_an_export_that_cannot_be_is_refused_before_training(path: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"export: .*model\.pt"):
        train_cell(cell(path=path, train_tokens=0, epochs=1000), silent, export=tmp_path / "absent" / "model.pt")


@pytest.mark.parametrize("settings", [{"schedule": "none", "target_sparsity": 0.0}, {}], ids=["unpruned", "masked"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_dense_run_is_exported_as_it_was_reported(optimizer: str, settings: dict[str, Any], tmp_path: Path):
    path = tmp_path / "model.pt"
    trained = cell(**{**OPTIMIZERS[optimizer], **settings, "path": "dense"})
    last = train_cell(trained, silent, export=path)[-1]
    final = FinalModel.load(path)
    assert bool(final.sparse_weights) is (not settings) and last["final_bytes"] is None
    test = load_corpus(trained.dataset, data_dir()).test
    scores = score(final, test[: trained.eval_tokens], trained.test_batch_size, trained.bptt)
    assert scores.perplexity == pytest.approx(last["reported_test_ppl"], rel=1e-4)


def test_a_dense_cell_has_neither_probes_nor_a_finalised_model():
    last = train_cell(cell(), silent)[-1]
    assert last["probes"] is None and all(last[name] is None for name in FINAL)
    assert last["lstm_kernel"] == "" and last["sparse_share"] == 0.0


def test_every_layer_is_back_on_its_path_after_the_run(monkeypatch: pytest.MonkeyPatch):
    layers: list[LSTMLayer] = []
    init = LSTMLayer.__init__
    monkeypatch.setattr(LSTMLayer, "__init__", lambda self, *sizes: layers.append(self) or init(self, *sizes))
    train_cell(cell(path="sparse"), silent)
    layers = [layer for layer in layers if not layer.weight_hh_l0.is_meta]  # one was made only to count its parameters
    layers = layers[:2]  # the others are of a smaller dense network that it is timed against
    assert len(layers) == 2 and all(layer.sparse for layer in layers)
