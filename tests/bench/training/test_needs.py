"""What a training cell cannot do is known before its first step, and what ends it later loses no finished epoch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import DIGITS

from bench import train
from bench.cells import Cell, GemmCell, LstmCell, TrainCell
from bench.data.corpus import Sizes, data_dir
from bench.data.datasets import known_sizes, load_corpus, load_data
from bench.data.images import ImageSizes
from bench.engines.driver import Terms
from bench.engines.local import measure
from bench.measuring import memory
from bench.measuring.causes import LONGEST_REASON
from bench.models.registry import MODELS
from bench.models.settings import models_of
from bench.pruning.emptied import emptied, warnings
from bench.pruning.finalize import FinalModel
from bench.pruning.pruner import Pruner
from bench.run import make_plan, run_sweep
from bench.store import Store
from bench.sweep import Sweep
from bench.timing import time_cell
from bench.train import Run, train_cell
from bench.training.checkpoint import FOLDER, Checkpoints
from bench.training.examiner import Examiner
from bench.training.paths import NEVER

pytestmark = pytest.mark.usefixtures("few_words")

ROOT = Path(__file__).parents[3]
SIZES = Sizes(1000, 100, 100, 50)
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


def no_step(*_: object) -> None:
    raise AssertionError("trained although it was known to be in vain")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"test_batch_size": 101}, "test_batch_size: 101 streams need 202 tokens of the test text, which has 200"),
        ({"batch_size": 401}, "batch_size: 401 streams need 802 tokens of the training text, which has 800"),
        (
            {"eval_tokens": 19},
            r"eval_tokens: 10 streams need 20 tokens of the validation text, which has 19 .* "
            r"accepted: 20 tokens or more, or 0",
        ),
        (
            {"train_tokens": 1},
            r"train_tokens: 20 streams need 40 tokens .* which has 1 .* accepted: 40 tokens or more, or 0",
        ),
    ],
)
def test_a_text_that_is_too_short_is_refused_before_the_first_step(
    settings: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    sizes = load_corpus(cell.dataset, data_dir()).sizes
    least = memory.least_bytes(cell, sizes)
    monkeypatch.setattr(memory, "memory_bytes", lambda _: least - 1)
    with pytest.raises(MemoryError, match="a step needs more than"):
        train_cell(cell, tell=lambda _: None)


def parameters_built(cell: TrainCell, vocabulary: int) -> int:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = MODELS[cell.model](cell, vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_counted_without_a_model() -> None:
    assert memory.parameters_of(cell_of(), Sizes(1000, 100, 100, 50)) == 50 * 16 + 50 + 4 * 16 * (16 + 16 + 2)


def deterministic(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        tuple(row[name] for name in ("epoch", "step", "sparsity", "train_ppl", "val_ppl", "test_ppl")) for row in rows
    ]


class Trouble:
    """From the end of the first epoch on, calls of `owner`.`name` raise `error`, as long as `on`.

    It is called as what is told of epochs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: BaseException) -> None:
        self.on, self.due, real = True, False, getattr(owner, name)

        def failing(*given: Any, **named: Any) -> Any:
            if self.on and self.due:
                raise error
            return real(*given, **named)

        monkeypatch.setattr(owner, name, failing)

    def __call__(self, news: dict[str, Any]) -> None:
        self.due |= "val_ppl" in news


class MuteError(RuntimeError):
    """What it says is an error."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class Stopped(BaseException):
    """Not an Exception."""


ODD, FULL, BIG = RuntimeError("odd"), OSError(28, "No space left"), MemoryError("big")
OUT, HALF, LONG, MUTE = SystemExit(3), ValueError("\udcff"), ValueError(" a\n" * 3_000_000), MuteError()


@pytest.mark.parametrize(
    ("owner", "name", "kept", "error", "status"),
    [
        (Run, "probe", 2, ODD, "failed"),
        (Pruner, "after_step", 2, BIG, "out_of_memory"),
        (Run, "row", 2, ODD, "failed"),
        (Examiner, "after", 2, ODD, "failed"),
        (Examiner, "at_the_end", 3, BIG, "out_of_memory"),
        (FinalModel, "save", 3, FULL, "failed"),
        (Pruner, "after_step", 2, OUT, "failed"),
        (Pruner, "after_step", 2, MUTE, "failed"),
        (Examiner, "after", 2, HALF, "failed"),
        (Run, "row", 2, LONG, "failed"),
        (FinalModel, "save", 3, OUT, "failed"),
    ],
)
def test_an_exception_after_an_epoch_keeps_the_finished_ones_and_the_checkpoint(
    owner: type,
    name: str,
    kept: int,
    error: BaseException,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cell = cell_of(epochs=2, path="auto", schedule="cubic", target_sparsity=0.5, block_size=8, prune_every=2)
    monkeypatch.setattr("bench.training.paths.breakeven", lambda _: NEVER)
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 2)
    monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", 1)
    checkpoints = Checkpoints(tmp_path, seconds=0.0)
    wanted = train_cell(cell, tell=lambda _: None)
    trouble = Trouble(monkeypatch, owner, name, error)
    rows = train_cell(cell, trouble, checkpoints=checkpoints)
    assert [row["status"] for row in rows] == [status] * kept
    for said in {row["reason"] for row in rows}:
        assert type(error).__name__ in said and len(said) <= LONGEST_REASON and "\n" not in said and said.encode()
    assert deterministic(rows) == deterministic(wanted[:kept])
    trouble.on = False
    again = train_cell(cell, lambda _: None, checkpoints=checkpoints)
    assert deterministic(again) == deterministic(wanted) and again[-1]["reported_epoch"] == 2
    assert again[-1]["resumed"] == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory"), OSError(28, "")]
)
def test_a_checkpoint_there_is_no_room_for_costs_the_run_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("bench.training.checkpoint.write", full)
    rows = train_cell(cell_of(epochs=2), lambda _: None, checkpoints=Checkpoints(tmp_path, seconds=0.0))
    assert [row["status"] for row in rows] == ["ok"] * 3
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("no checkpoint: ") and len(said) > len("no checkpoint: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped()])
def test_what_asks_the_caller_to_stop_does(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        train_cell(cell_of(epochs=2), Trouble(monkeypatch, Examiner, "after", error))


RAISED = (RuntimeError("odd"), KeyboardInterrupt("inside"), Stopped("odd"), SystemExit("gone"))  # by seed


class FailsOnce:
    """Trains in a worker.

    The evaluation of the second epoch fails, each seed's in its way, as long as `flag` is a file.
    """

    def __init__(self, flag: Path, checkpoints: Checkpoints) -> None:
        self.flag, self.checkpoints = flag, checkpoints

    def __call__(self, cell: TrainCell, tell: Any) -> list[dict[str, Any]]:
        after = Examiner.after

        def failing(examiner: Examiner, epoch: int, step: int) -> dict[str, Any]:
            if epoch == 2 and self.flag.exists():
                raise RAISED[cell.seed]
            return after(examiner, epoch, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Examiner, "after", failing)
            return measure(cell, tell, self.checkpoints)


@pytest.mark.usefixtures("every_word")
def test_a_sweep_keeps_the_epochs_of_a_failed_cell_and_a_retry_goes_on(tmp_path: Path) -> None:
    cells, flag = [cell_of(epochs=2, seed=seed) for seed in range(len(RAISED))], tmp_path / "flag"
    flag.touch()
    checkpoints, store = Checkpoints(tmp_path / "sweep" / FOLDER), Store(tmp_path / "sweep")
    work = FailsOnce(flag, checkpoints)
    assert run_sweep(sweep_of(*cells), tmp_path, workers=1, terms=Terms(work)) == 1
    for cell, error in zip(cells, RAISED, strict=True):
        stored = store.finished()[cell.cell_id]
        assert (stored.status, stored.reason) == ("failed", f"{type(error).__name__}: {error}")
        assert checkpoints.path(cell.cell_id).exists()
    assert store.read("train")["epoch"].to_pylist() == [0, 1] * len(RAISED)
    assert make_plan(sweep_of(*cells), tmp_path, retry=True).halfway == len(RAISED)
    flag.unlink()
    again = train_cell(cells[1], lambda _: None, checkpoints=checkpoints)
    assert [row["epoch"] for row in again] == [0, 1, 2] and again[-1]["resumed"] == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("/proc/self/model.pt", "export: /proc/self/model.pt: .+; accepted: a file in a folder that can be written"),
        ("", "is a folder"),
    ],
)
def test_an_export_that_cannot_be_written_is_refused_before_the_first_step(
    place: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if place and not Path(place).parent.is_dir():
        pytest.skip("needs /proc, which root cannot write to either")
    monkeypatch.setattr(Run, "train_epoch", no_step)
    cell = cell_of(path="auto", schedule="pre", target_sparsity=0.5)
    with pytest.raises(ValueError, match=line):
        train_cell(cell, lambda _: None, export=Path(place or tmp_path))


def test_memory_is_that_of_the_largest_window_there_is() -> None:
    sizes = Sizes(train=1000, valid=100, test=5000, vocabulary=100)

    def logits(**settings: Any) -> int:
        cell = TrainCell(**{"batch_size": 20, "bptt": 10, **settings})
        return (memory.least_bytes(cell, sizes) - 4 * memory.parameters_of(cell, sizes) * 4) // (2 * 4 * 100)

    assert logits() == 20 * 10
    assert logits(bptt=2**31 - 1) == 4990  # ten streams of the whole test text, whatever was asked for
    assert logits(bptt=2**31 - 1, eval_tokens=100) == 20 * 49
    assert logits(test_batch_size=400) == 400 * 10  # noticed after all epochs otherwise
    assert logits(test_batch_size=400, eval_tokens=2000) == 400 * 4
    assert logits(bptt_halved=1.0) == 20 * 5


def test_a_window_cannot_be_longer_than_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for would be too large for memory, and for the measurement of the break-even."""
    shapes: list[Any] = []
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 1)
    monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", 1)
    monkeypatch.setattr("bench.training.paths.breakeven", lambda shape: shapes.append(shape) or NEVER)
    cell = cell_of(epochs=1, bptt=2**31 - 1, path="auto", schedule="pre", target_sparsity=0.5)
    assert train_cell(cell, lambda _: None)[-1]["status"] == "ok"
    assert {shape.steps for shape in shapes} == {800 // 20 - 1}


HUGE = 2**30
HUGE_CELLS = [
    GemmCell(m=HUGE, k=HUGE), GemmCell(m=HUGE, k=HUGE, op="sdd"), GemmCell(m=HUGE, k=HUGE, dtype="float64"),
    LstmCell(hidden_size=HUGE), LstmCell(input_size=HUGE, hidden_size=2**20, scope="weight_hh", dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("cell", HUGE_CELLS)
def test_weights_that_cannot_fit_are_refused_before_they_are_drawn(cell: GemmCell | LstmCell) -> None:
    cell = cell.model_copy(update={"backend": "dense" if isinstance(cell, GemmCell) else "loop_lstm"})
    with pytest.raises(MemoryError, match=r"the weights \(.+ need more than [\d.]+ GiB, and cpu has"):
        time_cell(cell, lambda _: None)


def test_a_plan_says_what_cells_lack_without_loading_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from bench.sweep import load; from bench.run import make_plan;"
        "print('\\n'.join(make_plan(load(Path(sys.argv[1])), Path('nowhere')).lines()));"
        " assert 'torch' not in sys.modules"
    )
    path = tmp_path / "sweep.toml"
    path.write_text(
        'kind = "train"\n[base]\ndataset = "wikitext2"\n[[grids]]\n[grids.base]\ntest_batch_size = 200000\n'
        "[[grids]]\n[grids.base]\ntrain_tokens = 3000000\neval_tokens = 300000\n[grids.axes]\nseed = [1, 2]\n"
        '[[grids]]\n[grids.base]\ndataset = "pydoc"\ntrain_tokens = 800\n[grids.axes]\nbptt = [39, 40]\n'
        f"[[grids]]\n[grids.base]\nembedding_size = {2**30}\n"
        "[[grids]]\n[grids.base]\nmodel = 'mlp'\ndataset = 'digits'\nbatch_norm = true\n"
        "[grids.axes]\nbatch_size = [1, 2, 1196, 1197, 5000]\n"
        f"[[grids]]\nkind = 'gemm'\n[grids.base]\nm = {2**30}\nk = {2**30}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for line in (
        "warning: will fail: test_batch_size: 200000 streams need 400000 tokens of the test text, which has 245569 "
        "here (dataset wikitext2, eval_tokens 0); accepted: up to 122784 streams (1 cell)",
        "note: train_tokens: the training text has 2088628 tokens, not 3000000: all are read in each epoch (2 cells)",
        "note: eval_tokens: no text to evaluate has more than 245569 tokens, asked for are 300000: "
        "all are used (2 cells)",
        "warning: will fail: batch_size: 2 leaves a batch of one of the 1197 examples of digits, which batch_norm "
        "cannot normalise; accepted: another, or batch_norm = false (1 cell)",
        "note: batch_size: digits has 1197 examples, not 5000: one step an epoch (1 cell)",
        "note: bptt: 20 training streams have 39 time steps, fewer than 40: one window an epoch (1 cell)",
    ):
        assert line in said
    assert sum("which batch_norm cannot normalise" in line for line in said) == 3  # of 1, of 2 and of 1196
    assert any(line.startswith("warning: memory: about ") and "GiB are available" in line for line in said)
    assert any(line.startswith("warning: memory: 2 cells need more than ") and "out_of_memory" in line for line in said)


@pytest.mark.slow(20)
def test_more_threads_than_can_run_at_once_are_said_by_plan_and_run_and_rows_have_those_in_force(
    tmp_path: Path,
) -> None:
    """Fewer processors, by their number or as the system or OpenMP gives them."""
    script = (
        "import multiprocessing, os, sys; from bench.__main__ import app; from bench.engines import starts; {}\n"
        "starts.get_context = lambda _: multiprocessing.get_context('fork')  # torch is imported once, not in each\n"
        "for command in ('plan', 'run'):\n"
        "    try:\n"
        "        app([command, 'some.toml', '--results', '.'])\n"
        "    except SystemExit as ended:\n"
        "        print('@@', ended.code)\n"
    )
    turns = "threads: {} asked for, 1 processor to use: they take turns"
    held = [(64, turns.format(64), 64), (2, turns.format(2), 2), (1, None, 1)]
    limited = [(2, "threads: 2 asked for, OMP_THREAD_LIMIT allows 1: such a cell runs on fewer", 1)]
    for before, limit, cases in (
        ("os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", "", held),
        ("", "1", limited),
    ):
        folder = tmp_path / f"limit{limit}"
        folder.mkdir()
        settings = "backend = 'reference'\nblock_size = 64\n[axes]\nthreads = "
        (folder / "some.toml").write_text(f'kind = "check"\n[base]\n{settings}{[threads for threads, *_ in cases]}\n')
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_THREAD_LIMIT": limit}
        line = [sys.executable, "-c", script.format(before)]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        *parts, rest = done.stdout.split("@@ 0\n")
        assert len(parts) == 2 and rest == "", done.stdout + done.stderr
        wanted = [f"warning: {words}" for _, words, _ in cases if words is not None]
        for part in parts:
            said = [each for each in part.splitlines() if "threads:" in each]
            assert all(each.endswith("(1 cell)") for each in said) and len(said) == len(wanted), part
            assert all(one.startswith(start) for one, start in zip(said, wanted, strict=True)), part
        rows = Store(folder / "some").read("check").to_pylist()
        assert {row["threads"]: row["threads_used"] for row in rows} == {asked: used for asked, _, used in cases}


def test_what_is_known_of_texts_and_models_beforehand_is_what_they_are() -> None:
    assert known_sizes("pydoc") == load_corpus("pydoc", data_dir()).sizes
    for name in models_of("language"):
        for layers in (1, 3):
            for settings in ({}, {"awd_lstm": {"weight_drop": 0.5}}.get(name, {"dropout": 0.5})):
                cell = cell_of(model=name, num_layers=layers, hidden_size=32, **settings)
                assert memory.parameters_of(cell, SIZES) == parameters_built(cell, 50)
                assert memory.rough_bytes(cell, SIZES) > memory.least_bytes(cell, SIZES)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_what_is_known_of_examples_and_classifiers_beforehand_is_what_they_are(layers: int, batch_norm: bool) -> None:
    sizes = known_sizes("digits")
    assert isinstance(sizes, ImageSizes) and sizes == load_data("digits", data_dir()).sizes
    cell = TrainCell(**DIGITS, num_layers=layers, batch_norm=batch_norm)
    assert memory.parameters_of(cell, sizes) == parameters_built(cell, sizes.classes)
    assert memory.rough_bytes(cell, sizes) > memory.least_bytes(cell, sizes)
    weights, logits = memory.parameters_of(cell, sizes), 300 * sizes.classes  # all of the test are evaluated at once
    assert memory.least_bytes(cell, sizes) == 4 * (4 * weights + 2 * logits)


VARIANTS: list[dict[str, Any]] = [
    {}, {"optimizer": "asgd", "learning_rate": 1.0}, {"model": "awd_lstm", "weight_drop": 0.5},
    {"precision": "bfloat16"},
    {"optimizer": "nt_asgd", "learning_rate": 1.0, "selection": "best", "nonmonotone": 1, "epochs": 3},
    {"allocation": "erk", "num_layers": 2}, {"lasso": "proximal"}, {"lasso": "hinge"}, {"scope": "weight_hh"},
    {"block_size": 64, "embedding_size": 64, "hidden_size": 64, "scope": "weight_hh"},
    {**DIGITS, "path": "sparse"}, {**DIGITS, "path": "sparse", "num_layers": 3, "batch_norm": True, "dropout": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_kind_of_cell_trains_with_nothing_kept(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.training.paths.breakeven", lambda _: 0.5)
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 2)
    monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", 1)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 2)
    pruned = {
        "schedule": "pre",
        "target_sparsity": 1.0 if "model" in settings else 0.9,
        "scaled_start": True,
        "path": "auto",
        "epochs": 1,
    }
    last = train_cell(cell_of(**{**pruned, **settings}), lambda _: None, export=tmp_path / "model.pt")[-1]
    assert (last["status"], last["sparsity"], last["final_bytes"] < last["dense_bytes"]) == ("ok", 1.0, True)


@pytest.mark.parametrize("target", [0.9, 1.0])
@pytest.mark.parametrize("schedule", ["one_shot", "pre", "cubic"])
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_cell_whose_target_empties_its_weights_trains_and_is_exported(
    path: str, schedule: str, target: float, tmp_path: Path
) -> None:
    cell = cell_of(epochs=1, path=path, schedule=schedule, target_sparsity=target, prune_every=2)
    export = tmp_path / "model.pt"
    last = train_cell(cell, lambda _: None, export=export)[-1]
    assert (last["status"], last["sparsity"], last["zero_block_share"]) == ("ok", 1.0, 1.0)
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
        "warning: target_sparsity 0.9 at block_size 16 leaves no block of weight_ih_l0 (4 blocks), "
        "weight_hh_l0 (4 blocks) in 2 cells: smaller blocks or a lower target keep some"
    )
    assert warnings([GemmCell()]) == []


def test_the_grids_are_those_of_the_models() -> None:
    for name in MODELS:
        data = {} if name in models_of("language") else {"dataset": "digits"}
        for scope in ("all", "weight_hh"):
            settings = {"model": name, "scope": scope, "num_layers": 3, "hidden_size": 32, **data}
            cell = cell_of(**settings, schedule="pre", target_sparsity=0.5)
            shapes = {key: tuple(each.shape) for key, each in MODELS[name](cell, 11).prunable().items()}
            assert {key: (rows * 16, columns * 16) for key, (rows, columns) in cell.grids().items()} == shapes


def test_measure_is_what_a_sweep_runs() -> None:
    with pytest.raises(ValueError, match="test_batch_size"):
        measure(cell_of(test_batch_size=101), lambda _: None)
