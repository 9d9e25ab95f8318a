"""Training of an mlp: exact zeros, equal paths, equal cells, probes that touch nothing, the epoch that is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rows import DIGITS, results, silent

from bench import train
from bench.cells import TrainCell
from bench.data.datasets import load_data
from bench.models.mlp import MLP
from bench.pruning.exported import load
from bench.pruning.pruner import Pruner
from bench.pruning.schedules import SCHEDULES
from bench.train import Run, train_cell
from bench.training import meter
from bench.training.examiner import Examiner, Selection
from bench.training.paths import missing_kernel
from bench.training.tasks import Classification

ROOT = Path(__file__).parents[3]
NO_KERNEL = missing_kernel(layer=False)
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
PATHS = ["dense", pytest.param("sparse", marks=needs_kernel)]
TINY: dict[str, Any] = {
    **DIGITS, "epochs": 2, "prune_every": 2, "schedule": "cubic", "target_sparsity": 0.75, "prune_begin": 0.2,
    "prune_end": 0.6,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 1e-4},
    "adam": {"learning_rate": 0.01, "weight_decay": 1e-2},
    "asgd": {"optimizer": "asgd", "learning_rate": 0.5, "weight_decay": 1e-4},
}
ACCURACIES = ["val_accuracy", "test_accuracy", "reported_val_accuracy", "reported_test_accuracy", "final_accuracy"]


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probes where a test does not ask for them, and few samples."""
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 0)
    monkeypatch.setattr(meter, "INFERENCE_PAIRS", 2)
    monkeypatch.setattr(meter, "TRAINING_PAIRS", 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "none"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_blocks_are_exactly_zero_after_every_step(
    optimizer: str, schedule: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    after_step = Pruner.after_step

    def checked(self: Pruner, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        after_step(self, step, optimizer)
        for name, mask in self.masks.items():
            for tensor in self._tensors(self.weights[name], optimizer):
                assert (tensor[~mask.expand()] == 0).all(), f"{name} leaks at step {step}"
                looked_at.append(name)

    monkeypatch.setattr(Pruner, "after_step", checked)
    last = train_cell(cell(**OPTIMIZERS[optimizer], schedule=schedule, path=path), silent)[-1]
    assert last["sparsity"] == last["zero_block_share"] == 0.75 and last["status"] == "ok"
    assert set(looked_at) == {"layers.0.weight", "layers.1.weight"} and len(looked_at) >= 24 * 2 * 3


@needs_kernel
@pytest.mark.parametrize(
    "settings",
    [
        {"scope": "all"},
        {"scope": "weight_hh", "num_layers": 3},
        {"batch_norm": True, "lasso": "proximal"},
        {"lasso": "subgradient", "dropout": 0.3},
    ],
    ids=str,
)
def test_masked_and_sparse_training_agree_step_by_step(settings: dict[str, Any], losses: list[float]) -> None:
    """In float64, where all that is left is the order of sums; another sparsity is far away."""

    def run(**more: Any) -> tuple[list[dict[str, Any]], list[float]]:
        losses.clear()
        return train_cell(cell(**{**OPTIMIZERS["sgd"], **settings, **more}), silent), list(losses)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        init, batches = MLP.__init__, Classification.epoch

        def double(self: MLP, *given: Any) -> None:
            init(self, *given)
            self.double()

        patch.setattr(MLP, "__init__", double)
        patch.setattr(Classification, "epoch", lambda self, number: ((x.double(), y) for x, y in batches(self, number)))
        patch.setattr(MLP, "loss", _loss_of_doubles)
        patch.setattr(Examiner, "after", lambda *_: {"val_ppl": 2.0})
        patch.setattr(Examiner, "at_the_end", lambda *_: {})
        patch.setattr(Examiner, "look_late", lambda _: None)
        for name, more in {"dense": {}, "sparse": {"path": "sparse"}, "foreign": {"target_sparsity": 0.5}}.items():
            found[name] = run(**more)
    (masked_rows, masked), (sparse_rows, sparse), (_, foreign) = found.values()
    assert len(masked) == len(sparse) == 24
    assert sparse == pytest.approx(masked, rel=1e-9) and foreign != pytest.approx(masked, rel=1e-3)
    for one, other in zip(masked_rows[1:], sparse_rows[1:], strict=True):
        assert (one["sparsity"], one["sparse_share"], other["sparse_share"]) == (other["sparsity"], 0.0, 1.0) or (
            settings.get("scope") == "weight_hh" and other["sparse_share"] == pytest.approx(2 / 3)
        )


def _loss_of_doubles(self: MLP, inputs: Any, targets: Any, *_: Any) -> tuple[torch.Tensor, list[Any]]:
    return torch.nn.functional.cross_entropy(self(inputs)[0], targets), []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equal_cells_are_bit_equal(optimizer: str, path: str) -> None:
    settings = {**OPTIMIZERS[optimizer], "criterion": "random", "dropout": 0.3, "path": path}
    before = torch.random.get_rng_state()
    first, again = (results(train_cell(cell(**settings), silent)) for _ in range(2))
    assert first == again and torch.equal(before, torch.random.get_rng_state())
    assert results(train_cell(cell(**settings, seed=1), silent)) != first


@needs_kernel
@pytest.mark.parametrize("more", [{}, {"batch_norm": True, "dropout": 0.3, "num_layers": 3}], ids=str)
def test_probes_change_nothing(more: dict[str, Any], losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a weight nor a random number, nor what batch normalisation has measured."""
    settings = {**OPTIMIZERS["adam"], **more, "path": "sparse", "epochs": 3}
    unprobed = results(train_cell(cell(**settings), silent)), list(losses)
    losses.clear()
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 4)
    rows = train_cell(cell(**settings), silent)
    assert (results(rows), losses) == unprobed
    assert [[probe["step"] for probe in row["probes"]] for row in rows[1:]] == [
        [epoch * 12 + step for step in (0, 3, 6, 9)] for epoch in range(3)
    ]
    assert all(ms > 0.0 for row in rows[1:] for probe in row["probes"] for ms in probe["dense_ms"] + probe["lstm_ms"])


@needs_kernel
def test_a_probe_times_what_training_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step has a gradient of the examples; of a text's words it has one."""
    asked: list[bool] = []
    run_layers = MLP.run_layers

    def spied(self: MLP, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        asked.append(x.requires_grad)
        return run_layers(self, x, *rest, **named)

    monkeypatch.setattr(MLP, "run_layers", spied)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 1)
    train_cell(cell(path="sparse", epochs=1), silent)
    assert asked and not any(asked)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_says_what_was_learned(path: str, tmp_path: Path) -> None:
    settings = {**OPTIMIZERS["adam"], "path": path, "epochs": 3}
    rows = train_cell(cell(**settings), silent, export=tmp_path / "model.pt")
    assert [row["step"] for row in rows] == [0, 12, 24, 36]
    last, data = rows[-1], load_data("digits", "")
    assert (last["vocabulary"], last["token"], last["features"]) == (10, "example", 64)
    assert (last["train_tokens_seen"], last["eval_tokens_seen"]) == (1197, 300)
    assert last["corpus_sha256"] == data.sha256[:16] and last["decoder_multiply_adds"] == 320.0
    assert last["prunable_parameters"] == 64 * 32 + 32 * 32
    assert last["parameters"] == last["prunable_parameters"] + 2 * 32 + 10 * 33
    assert 0.0 < last["lstm_seconds"] < last["train_seconds"]
    assert last["val_change"] is not None and last["val_change_error"] > 0.0
    assert last["sparse_share"] == (1.0 if path == "sparse" else 0.0)
    final = load(tmp_path / "model.pt")
    logits = final(data.test.inputs)[0]
    right = int((logits.argmax(dim=1) == data.test.labels).sum()) / 300
    assert right == last["test_accuracy"] == last["reported_test_accuracy"] > 0.3
    ppl = torch.nn.functional.cross_entropy(logits, data.test.labels).exp().item()
    assert ppl == pytest.approx(last["test_ppl"], rel=1e-5) and last["reported_test_ppl"] == last["test_ppl"]
    if path == "sparse":
        assert last["final_accuracy"] == right and last["final_ppl"] == pytest.approx(ppl, rel=1e-5)
        assert last["narrowed_ppl"] == pytest.approx(last["final_ppl"], rel=1e-5)
        assert all(0 < live <= 32 for live in last["live_units"]) and final.nbytes == last["final_bytes"]
        assert len(last["inference_narrowed_ms"]) == 2
    else:
        assert all(last[name] is None for name in ("final_ppl", "final_accuracy", "narrowed_ppl", "live_units"))


@needs_kernel
@pytest.mark.parametrize("batch_norm", [True, False])
def test_neurons_that_died_are_removed_from_what_is_measured(batch_norm: bool) -> None:
    """Through several layers, their biases trained, so that what is left of them is not zero."""
    settings = {"num_layers": 4, "block_size": 4, "target_sparsity": 0.9, "batch_norm": batch_norm, "epochs": 3}
    last = train_cell(cell(**{**OPTIMIZERS["adam"], **settings, "learning_rate": 0.05}, path="sparse"), silent)[-1]
    assert all(0 < live < 32 for live in last["live_units"]) and max(last["narrowed_units"]) < 32
    assert last["narrowed_ppl"] == pytest.approx(last["final_ppl"], rel=1e-5)
    assert last["narrowed_bytes"] < last["final_bytes"] and last["narrowed_sparsity"] < 0.9


@pytest.mark.parametrize("path", PATHS)
def test_the_best_epoch_is_reported_with_what_its_batch_normalisation_measured(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the second epoch all are brighter and zeros, which ruins the model and its running statistics."""
    batches = Classification.epoch

    def ruined(self: Classification, number: int) -> Any:
        found = list(batches(self, number))
        return found if number < 3 else [(1.0 + x, 0 * y) for x, y in found]

    monkeypatch.setattr(Classification, "epoch", ruined)
    settings = {**OPTIMIZERS["adam"], "batch_norm": True, "path": path, "epochs": 4, "prune_end": 0.3}
    rows = train_cell(cell(**settings, selection="best"), silent, export=tmp_path / "model.pt")
    last, best = rows[-1], rows[2]
    assert last["reported_epoch"] == 2 and last["val_ppl"] > 2 * best["val_ppl"]
    for name in ("val_ppl", "test_ppl", "val_accuracy", "test_accuracy"):
        assert last[f"reported_{name}"] == best[name] != last[name]
    final, data = load(tmp_path / "model.pt"), load_data("digits", "")
    ppl = torch.nn.functional.cross_entropy(final(data.test.inputs)[0], data.test.labels).exp().item()
    assert ppl == pytest.approx(best["test_ppl"], rel=1e-4)
    assert path == "dense" or last["final_ppl"] == pytest.approx(best["test_ppl"], rel=1e-4)


def test_selected_tensors_are_restored_and_put_back_buffers_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    selection = Selection(TrainCell(selection="best"))
    model(torch.randn(4, 3))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    selection.consider(1, 5.0, model, 0.5)
    model(10 + torch.randn(4, 3))
    selection.consider(2, 6.0, model, 0.75)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert (selection.epoch, selection.val_ppl, selection.val_accuracy) == (1, 5.0, 0.5)
    with selection.restored(model):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(own["1.running_mean"], kept["1.running_mean"])


@pytest.mark.parametrize(("batch_size", "line"), [(2, "batch_size: 2 leaves a batch of one"), (1, "batch_size: 1 ")])
def test_a_batch_of_one_is_refused_before_the_first_step(
    batch_size: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "train_epoch", lambda *_: pytest.fail("trained although it was known to be in vain"))
    with pytest.raises(ValueError, match=rf"\A{line}[^\n]*; accepted: another, or batch_norm = false\Z"):
        train_cell(cell(batch_norm=True, batch_size=batch_size), silent)


def test_a_batch_of_one_without_normalisation_and_one_of_all_are_trained_on() -> None:
    last = train_cell(cell(batch_size=1196, epochs=1), silent)[-1]
    assert (last["status"], last["step"], last["train_tokens_seen"]) == ("ok", 2, 1197)
    assert train_cell(cell(batch_size=5000, epochs=2), silent)[-1]["step"] == 2


def test_a_run_that_diverges_keeps_its_finished_epochs() -> None:
    rows = train_cell(cell(optimizer="sgd", learning_rate=1e30, clip=0.0, epochs=3), silent)
    assert {row["status"] for row in rows} == {"diverged"} and "epoch" in rows[0]["reason"]
