"""What a training cell cannot do is known before its first step, and what ends it later loses no finished epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bench.train
from bench import needs
from bench.cells import Cell, GemmCell, LstmCell, TrainCell
from bench.checkpoint import Checkpoints
from bench.data.corpus import data_dir, load_corpus
from bench.emptied import emptied, warnings
from bench.engines.local import measure
from bench.examiner import Examiner
from bench.pruning.finalize import FinalModel
from bench.run import make_plan, run_sweep
from bench.store import Store
from bench.sweep import Sweep
from bench.train import Run, train_cell

SMALL = {
    "embedding_size": 16,
    "hidden_size": 16,
    "num_layers": 1,
    "train_tokens": 800,
    "eval_tokens": 200,
    "threads": 1,
}


def cell_of(**settings: Any) -> TrainCell:
    return TrainCell(**{**SMALL, **settings})


def sweep_of(*cells: Cell) -> Sweep:
    return Sweep("sweep", "", Path("sweep.toml"), cells)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"test_batch_size": 101}, "test_batch_size: 101 streams need 202 tokens of the test text, which has 200"),
        ({"batch_size": 401}, "batch_size: 401 streams need 802 tokens of the training text, which has 800"),
        ({"eval_tokens": 19}, "evaluation: 10 streams need 20 tokens of the validation text, which has 19"),
    ],
)
def test_a_text_that_is_too_short_is_refused_before_the_first_step(
    settings: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("trained although the text is too short")

    monkeypatch.setattr(Run, "train_epoch", no_step)
    with pytest.raises(ValueError, match=line):
        train_cell(cell_of(**settings), tell=lambda _: None)


def test_the_longest_text_that_is_enough_is_trained_on() -> None:
    rows = train_cell(cell_of(epochs=1, test_batch_size=100, batch_size=100), tell=lambda _: None)
    assert [row["status"] for row in rows] == ["ok", "ok"]


def test_what_cannot_fit_the_memory_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = cell_of(embedding_size=2**19, hidden_size=2**19)
    with pytest.raises(
        MemoryError, match=r"a step needs more than [\d.]+ GiB \([\d,]+ parameters, batch_size 20 x bptt 35 x"
    ):
        train_cell(huge, tell=lambda _: None)
    cell = cell_of(epochs=1)
    words = len(load_corpus(cell.dataset, data_dir()).vocabulary)
    least = needs.least_bytes(cell, bench.train.count_parameters(cell, words), words)
    monkeypatch.setattr(needs, "memory_bytes", lambda _: least - 1)
    with pytest.raises(MemoryError, match="a step needs more than"):
        train_cell(cell, tell=lambda _: None)


def test_counting_parameters_draws_no_number() -> None:
    before = torch.get_rng_state()
    assert bench.train.count_parameters(cell_of(), 50) == 50 * 16 + 50 + 4 * 16 * (16 + 16 + 2)
    assert torch.equal(before, torch.get_rng_state())


class Trouble:
    """An evaluation that fails after `epoch`, as long as it is asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, epoch: int, error: Exception) -> None:
        self.on = True
        after = Examiner.after

        def failing(examiner: Examiner, at: int, step: int) -> dict[str, Any]:
            if self.on and at == epoch:
                raise error
            return after(examiner, at, step)

        monkeypatch.setattr(Examiner, "after", failing)


def deterministic(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("epoch", "step", "train_ppl", "val_ppl", "test_ppl")) for row in rows]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("odd"), "failed"), (OSError(28, "No space left"), "failed"), (MemoryError("big"), "out_of_memory")],
)
def test_an_exception_after_an_epoch_keeps_the_finished_ones_and_the_checkpoint(
    error: Exception, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell, checkpoints = cell_of(epochs=3), Checkpoints(tmp_path, seconds=0.0)
    wanted = train_cell(cell, tell=lambda _: None)
    trouble = Trouble(monkeypatch, 2, error)
    rows = train_cell(cell, lambda _: None, checkpoints=checkpoints)
    assert [row["status"] for row in rows] == [status] * 2
    assert all(type(error).__name__ in row["reason"] for row in rows)
    assert deterministic(rows) == deterministic(wanted[:2])
    trouble.on = False
    again = train_cell(cell, lambda _: None, checkpoints=checkpoints)
    assert deterministic(again) == deterministic(wanted)
    assert again[-1]["resumed"] == 1


def test_a_sweep_keeps_the_epochs_of_a_failed_cell_and_a_retry_goes_on(tmp_path: Path) -> None:
    cell = cell_of(epochs=2)
    cut = bench.train.stopped(train_cell(cell, lambda _: None)[:2], "failed", "RuntimeError: odd")

    checkpoints = Checkpoints(tmp_path / "sweep" / ".checkpoints")
    store = Store(tmp_path / "sweep")
    with store.lock():
        pass
    checkpoints.folder.mkdir()
    checkpoints.path(cell.cell_id).write_bytes(b"put aside")
    assert run_sweep(sweep_of(cell), tmp_path, work=FailedWork(cut)) == 1
    stored = store.finished()[cell.cell_id]
    assert (stored.status, stored.reason) == ("failed", "RuntimeError: odd")
    assert store.read("train")["epoch"].to_pylist() == [0, 1]
    assert checkpoints.path(cell.cell_id).exists()
    assert make_plan(sweep_of(cell), tmp_path, retry=True).halfway == 1


class FailedWork:
    """Work that returns given rows; it travels to a worker."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __call__(self, *_: Any) -> list[dict[str, Any]]:
        return self.rows


@pytest.mark.parametrize("target", [0.9, 1.0])
@pytest.mark.parametrize("schedule", ["one_shot", "pre", "cubic"])
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_cell_whose_target_empties_its_weights_trains_and_is_exported(
    path: str, schedule: str, target: float, tmp_path: Path
) -> None:
    cell = cell_of(epochs=1, path=path, schedule=schedule, target_sparsity=target, prune_every=2)
    export = tmp_path / "model.pt" if path == "sparse" else None
    last = train_cell(cell, lambda _: None, export=export)[-1]
    assert (last["status"], last["sparsity"], last["zero_block_share"]) == ("ok", 1.0, 1.0)
    if export:
        logits, _ = FinalModel.load(export)(torch.zeros(3, 2, dtype=torch.int64), None)
        assert logits.isfinite().all()


def test_a_plan_warns_of_targets_that_leave_nothing_of_a_weight(tmp_path: Path) -> None:
    few = cell_of(schedule="pre", target_sparsity=0.9)
    assert emptied(few) == ["weight_ih_l0 (4 blocks)", "weight_hh_l0 (4 blocks)"]
    assert emptied(cell_of(schedule="pre", target_sparsity=0.8)) == []
    assert emptied(cell_of(schedule="pre", target_sparsity=1.0)) == []  # as asked for
    assert emptied(cell_of(target_sparsity=0.9)) == []  # it does not prune
    assert emptied(GemmCell(m=32, k=32, block_size=16, target_sparsity=0.9)) == ["the weight (4 blocks)"]
    assert emptied(LstmCell(input_size=32, hidden_size=16, block_size=16, target_sparsity=0.9)) == [
        "weight_hh_l0 (4 blocks)"
    ]
    lines = make_plan(sweep_of(few, few.model_copy(update={"seed": 1})), tmp_path).lines()
    assert lines[-1] == (
        "warning: target_sparsity 0.9 at block_size 16 leaves no block of weight_ih_l0 (4 blocks), weight_hh_l0 (4 blocks) "
        "in 2 cells: smaller blocks or a lower target keep some"
    )
    assert warnings([GemmCell()]) == []


def test_the_grids_are_those_of_the_models() -> None:
    from bench.emptied import grids
    from bench.models.registry import MODELS

    for name in MODELS.names():
        for scope in ("all", "weight_hh"):
            settings = {"model": name, "scope": scope, "num_layers": 3, "hidden_size": 32}
            cell = cell_of(**settings, schedule="pre", target_sparsity=0.5)
            shapes = {key: tuple(each.shape) for key, each in MODELS[name](cell, 11).prunable().items()}
            assert {key: (rows * 16, columns * 16) for key, (rows, columns) in grids(cell).items()} == shapes


def test_measure_is_what_a_sweep_runs() -> None:
    with pytest.raises(ValueError, match="test_batch_size"):
        measure(cell_of(test_batch_size=101), lambda _: None)
