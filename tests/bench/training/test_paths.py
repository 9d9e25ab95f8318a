"""The choice of the path: break-even sparsities measured once, and what the setting `path` makes of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rows import silent

from bench.cells import TrainCell
from bench.commands.doctor import findings
from bench.models.registry import MODELS
from bench.pruning.pruner import Pruner
from bench.train import train_cell
from bench.training import paths as module
from bench.training.paths import (
    FILE,
    NEVER,
    AnyShape,
    LinearShape,
    Paths,
    Shape,
    breakeven,
    crossing,
    known,
    missing_kernel,
)
from kernels.blockmask import BlockMask
from kernels.system import compiler
from kernels.system.cache import say

pytestmark = pytest.mark.usefixtures("few_words")

NO_KERNEL = missing_kernel()
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
SHAPE = Shape(16, 8, 2, 3, 4, "all", "float32", 1)
CELL = TrainCell(
    path="auto", schedule="linear", target_sparsity=0.75, prune_end=1.0, prune_every=1, block_size=4,
    embedding_size=16, hidden_size=8, batch_size=2, bptt=3, threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of break-even sparsities of this test's own; the compiled kernels stay where they are."""
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Break-even 0.4 for every layer as wide as CELL's first, never for others; the shapes that were measured."""
    shapes: list[Shape] = []

    def measure(shape: Shape) -> list[list[float]]:
        shapes.append(shape)
        return [[0.0, 0.5], [0.6, 2.0]] if shape.hidden == 8 else [[0.0, 0.5], [0.9, 0.9]]

    monkeypatch.setattr(module, "measure", measure)
    return shapes


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ([[0.0, 1.5]], 0.0),
        ([[0.0, 0.5], [0.6, 2.0]], 0.4),  # twice the time, half the time: two thirds of the way
        ([[0.0, 0.5], [0.25, 0.8], [0.5, 1.0]], 0.5),
        ([[0.0, 0.5], [0.9, 0.99]], NEVER),
        ([], NEVER),
    ],
)
def test_the_crossing_by_hand(curve: list[list[float]], wanted: float):
    assert crossing(curve) == pytest.approx(wanted)


LINEAR = LinearShape(8, 12, 5, False, 4, "float32", 1)


@pytest.mark.parametrize("shape", [LINEAR, replace(LINEAR, first=True)], ids=str)
@needs_kernel
def test_a_linear_layer_is_measured_as_it_is_trained(shape: LinearShape):
    curve = module.measure(shape)
    assert [sparsity for sparsity, _ in curve] == list(module.SPARSITIES[: len(curve)])
    assert all(ratio > 0.0 for _, ratio in curve)
    assert shape.operands(torch.float32)[0].requires_grad is not shape.first


def test_layers_of_both_kinds_are_kept_and_named(measured: list[AnyShape]):
    assert breakeven(SHAPE) == pytest.approx(0.4)
    assert breakeven(LINEAR) == NEVER
    assert dict(known()) == {SHAPE: pytest.approx(0.4), LINEAR: NEVER}
    assert ("break-even", "linear 8 -> 12, batch 5, block 4, float32, 1 thread: never") in list(findings())


@needs_kernel
def test_a_step_has_no_more_examples_than_there_are(measured: list[AnyShape]):
    settings = {"model": "mlp", "dataset": "digits", "path": "auto", "schedule": "one_shot", "target_sparsity": 0.75}
    sizes = {"block_size": 8, "hidden_size": 16, "batch_size": 5000, "epochs": 1, "threads": 1}
    train_cell(TrainCell(**settings, **sizes), silent)
    assert {shape.batch for shape in measured} == {1197}


@needs_kernel
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_a_classifier_changes_over_layer_by_layer(scope: str, measured: list[AnyShape]):
    """Its first layer has no gradient of inputs to compute, and a layer without blocks has no break-even."""
    cell = TrainCell(
        model="mlp", dataset="digits", path="auto", schedule="one_shot", target_sparsity=0.75, block_size=4,
        hidden_size=8, num_layers=3, prune_begin=0.5, batch_size=5, threads=1, scope=scope,
    ).canonical()  # fmt: skip
    model = MODELS["mlp"](cell, 10)
    paths = Paths(model, cell)
    wanted = [LinearShape(64 if first else 8, 8, 5, first, 4, "float32", 1) for first in (True, False)]
    assert measured == (wanted if scope == "all" else wanted[1:])
    assert paths.thresholds == [pytest.approx(0.4) if scope == "all" else NEVER, *[pytest.approx(0.4)] * 2]
    pruner = Pruner(model.prunable(), cell, steps=10)
    paths.update(pruner.masks)
    assert paths.sparse_layers == 0
    for step in range(1, 11):
        pruner.after_step(step)
    paths.update(pruner.masks)
    assert paths.sparse_layers == (3 if scope == "all" else 2)


def test_it_is_measured_once(measured: list[Shape]):
    assert breakeven(SHAPE) == breakeven(SHAPE) == pytest.approx(0.4)
    assert measured == [SHAPE]
    assert list(known()) == [(SHAPE, pytest.approx(0.4))]


@pytest.mark.parametrize("what", ["processor", "source_hash", "physical_cores", "_build"])
def test_another_machine_or_other_kernels_measure_anew(
    what: str, measured: list[Shape], monkeypatch: pytest.MonkeyPatch
):
    breakeven(SHAPE)
    monkeypatch.setattr(module, what, lambda *_, **__: "another")
    assert list(known()) == []
    breakeven(SHAPE)
    assert len(measured) == 2
    monkeypatch.undo()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        '{"key": 1}',
        '{"key": {"shape": {"inputs": 1}, "curve": []}}',
        "[" * 100_000,
        '{"sha256": "", "entries": ' + "[" * 985 + "]" * 985 + "}",
        "\udcff",
    ],
)
def test_a_corrupt_or_foreign_file_is_made_anew(content: str, folder: Path, measured: list[Shape]):
    (folder / FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert list(known()) == []
    assert breakeven(SHAPE) == pytest.approx(0.4)
    assert list(known()) == [(SHAPE, pytest.approx(0.4))]
    assert [path.name for path in folder.iterdir()] == [FILE]


def entries(folder: Path) -> list[tuple[str, str, str, str]]:
    """Everything in the table."""
    with closing(sqlite3.connect(folder / FILE)) as table:
        return table.execute("SELECT surroundings, shape, curve, sha256 FROM breakeven").fetchall()


def altered(folder: Path, part: str, value: object) -> None:
    """Put another value into every entry of the table, behind its back."""
    with closing(sqlite3.connect(folder / FILE)) as table:
        table.execute(f"UPDATE breakeven SET {part} = ?", (value,))
        table.commit()


@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_measured_with_the_threads_that_it_names(
    threads: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(module, "speedup", lambda *_: seen.append(torch.get_num_threads()) or 2.0)
    with torch.inference_mode():
        breakeven(replace(SHAPE, threads=threads, block_size=4))
    assert seen == [threads] and torch.get_num_threads() == before


@pytest.mark.parametrize("field", ["threads", "block_size"])
def test_an_entry_under_another_name_is_not_believed(field: str, folder: Path, measured: list[Shape]) -> None:
    breakeven(SHAPE)
    altered(folder, "shape", json.dumps(asdict(SHAPE) | {field: getattr(SHAPE, field) + 1}))
    assert list(known()) == []
    assert breakeven(SHAPE) == pytest.approx(0.4) and measured == [SHAPE, SHAPE]
    assert list(known()) == [(SHAPE, pytest.approx(0.4))]


def test_it_follows_the_sources_of_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "source_hash", lambda *tops, **_: asked.append(tops) or "hash")
    assert module.surroundings()["kernels"] == "hash" and asked == [module.TIMES]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(
            ("curve", value)
            for value in ("[[0.0, 2.0]]", "[[0.0, -1.0]]", "[[0.0, NaN]]", "[]", "3", "", "{", 3, 0.5, None, b"[]")
        ),
        *(("sha256", value) for value in ("", "another", None)),
        *(("surroundings", value) for value in ("", "{}", None)),
        *(("shape", value) for value in ("{}", "null", 8, None)),
    ],
)  # fmt: skip
def test_an_entry_that_is_not_as_it_was_written_is_never_used(
    part: str, value: object, folder: Path, measured: list[Shape]
):
    breakeven(SHAPE)
    altered(folder, part, value)
    assert list(known()) == []
    assert breakeven(SHAPE) == pytest.approx(0.4) and len(measured) == 2
    assert breakeven(SHAPE) == pytest.approx(0.4) and len(measured) == 2, "kept again"


def test_the_entries_of_other_sources_are_kept(folder: Path, measured: list[Shape], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "source_hash", lambda *_, **__: "another version")
        breakeven(SHAPE)
    breakeven(SHAPE)
    assert len(measured) == 2 and len(entries(folder)) == 2 and list(known()) == [(SHAPE, pytest.approx(0.4))]


def test_a_table_of_other_columns_is_made_anew(folder: Path, measured: list[Shape]):
    with closing(sqlite3.connect(folder / FILE)) as table:
        table.execute("CREATE TABLE breakeven (key, entry)")
    assert list(known()) == [] and breakeven(SHAPE) == breakeven(SHAPE) == pytest.approx(0.4) and measured == [SHAPE]


def test_every_altered_bit_and_every_cut_of_the_file_is_seen(
    folder: Path, measured: list[Shape], capfd: pytest.CaptureFixture[str]
):
    right = breakeven(SHAPE)
    path, data = folder / FILE, (folder / FILE).read_bytes()
    used = [place for place in range(0, 8 * len(data), 29) if data[place // 8] or place % 7 == 0]
    for place in used[::5]:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert list(known()) in ([], [(SHAPE, right)])
        assert breakeven(SHAPE) == breakeven(SHAPE) == right
    for length in range(0, len(data), 997):
        path.write_bytes(data[:length])
        assert list(known()) == []
        assert breakeven(SHAPE) == right
    assert all("measured anew" in line or "not kept" in line for line in capfd.readouterr().err.splitlines())


def start(folder: Path) -> sqlite3.Connection:
    """Another process's hold on the table."""
    other = sqlite3.connect(folder / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_while_another_process_measures_what_is_known_can_be_read(folder: Path, measured: list[Shape]):
    breakeven(SHAPE)
    with closing(start(folder)):
        assert list(known()) == [(SHAPE, pytest.approx(0.4))]


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(60)
def test_neither_a_pipe_nor_a_link_is_believed(folder: Path, measured: list[Shape]):
    os.mkfifo(folder / FILE)
    assert breakeven(SHAPE) == pytest.approx(0.4)
    (folder / FILE).rename(folder / "elsewhere")
    (folder / FILE).symlink_to(folder / "elsewhere")
    assert list(known()) == [] and breakeven(SHAPE) == pytest.approx(0.4) and len(measured) == 2
    assert not (folder / FILE).is_symlink()


@pytest.mark.parametrize("what", ["a folder", "a link", "a pipe"])
@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(60)
def test_what_lies_in_the_place_of_the_table_makes_way(what: str, folder: Path, measured: list[Shape]):
    place = folder / FILE
    if what == "a folder":
        (place / "with something in it").mkdir(parents=True)
    elif what == "a link":
        place.symlink_to(folder / "elsewhere")
    else:
        os.mkfifo(place)
    assert breakeven(SHAPE) == breakeven(SHAPE) == pytest.approx(0.4) and measured == [SHAPE]
    assert place.is_file() and not place.is_symlink() and not (folder / "elsewhere").exists()


def test_where_the_lock_cannot_be_had_it_is_measured_all_the_same(
    folder: Path, measured: list[Shape], monkeypatch, capfd: pytest.CaptureFixture[str]
):
    say.cache_clear()
    breakeven(SHAPE)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with closing(start(folder)):
        assert breakeven(SHAPE) == pytest.approx(0.4) and measured == [SHAPE, SHAPE]
    assert capfd.readouterr().err == "break-even sparsities are not kept: database is locked\n"
    assert breakeven(SHAPE) == pytest.approx(0.4) and measured == [SHAPE, SHAPE]


def test_those_that_ask_at_once_measure_it_once(folder: Path, measured: list[Shape]):
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(breakeven, [SHAPE] * 8)] == [pytest.approx(0.4)] * 8
    assert measured == [SHAPE]


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    folder: Path, measured: list[Shape], monkeypatch, capfd: pytest.CaptureFixture[str]
):
    def refuse(path: Path, alone: bool = False) -> None:
        raise OSError(28, "No space left on device")

    say.cache_clear()
    monkeypatch.setattr(module, "_opened", refuse)
    assert breakeven(SHAPE) == pytest.approx(0.4) and not (folder / FILE).exists()
    assert capfd.readouterr().err == "break-even sparsities are not kept: No space left on device\n"


@needs_kernel
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_a_real_measurement_draws_no_random_number_of_ours(scope: str, folder: Path):
    shape = Shape(16, 8, 2, 3, 4, scope, "float32", 1)
    state = torch.random.get_rng_state()
    found = breakeven(shape)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found == breakeven(shape) and (0.0 <= found <= 0.9 or found == NEVER)
    ((_, _, curve, _),) = entries(folder)
    sparsities = [sparsity for sparsity, _ in json.loads(curve)]
    assert sparsities == list(module.SPARSITIES)[: len(sparsities)]


def test_the_doctor_lists_them(measured: list[Shape]):
    assert any(what == "break-even" and "none measured yet" in how for what, how in findings())
    breakeven(SHAPE)
    breakeven(Shape(8, 16, 2, 3, 4, "all", "float32", 1))
    lines = [how for what, how in findings() if what == "break-even"]
    assert lines == [
        f"{SHAPE}: sparsity 0.40",
        "LSTM 8 -> 16, batch 2, 3 steps, block 4, all, float32, 1 thread: never",
    ]


@needs_kernel
def test_auto_changes_a_layer_over_at_its_break_even(measured: list[Shape]):
    built = MODELS["lstm"](CELL, 20)  # layers 16 -> 8 -> 16
    pruner, paths = Pruner(built.prunable(), CELL, steps=30), Paths(built, CELL)
    assert [(shape.inputs, shape.hidden, shape.block_size) for shape in measured] == [(16, 8, 4), (8, 16, 4)]
    changed_at = None
    for step in range(1, 31):
        pruner.after_step(step)
        paths.update(pruner.masks)
        pruner.sparse = paths.sparse_weights
        first = sum(pruner.masks[f"{kind}_l0"].num_empty for kind in ("weight_ih", "weight_hh")) / 48
        assert [layer.sparse for layer in built.layers] == [first >= 0.4, False]
        if paths.sparse_layers and changed_at is None:
            changed_at = step
            assert paths.kernel.startswith("native") and paths.sparse_weights == {"weight_ih_l0", "weight_hh_l0"}
        assert bool(paths.kernel) == (changed_at is not None)
    assert changed_at == 17  # step 16 asks for 0.4 and gets 19 of 48 blocks


@needs_kernel
@pytest.mark.parametrize(("path", "sparse"), [("dense", 0), ("sparse", 2)])
def test_dense_and_sparse_ask_nobody(path: str, sparse: int, measured: list[Shape]):
    cell = CELL.model_copy(update={"path": path})
    built = MODELS["lstm"](cell, 20)
    paths = Paths(built, cell)
    paths.update(Pruner(built.prunable(), cell, steps=30).masks)
    assert paths.sparse_layers == sparse and not measured
    full = BlockMask.full(32, 8, 4)
    assert sparse == 0 or (built.layers[0].patterns["weight_hh"].mask.kept == full.kept).all()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine without a compiler and without anything compiled before."""
    find = importlib.util.find_spec
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name))
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    compiler._compile_once.cache_clear()
    yield
    compiler._compile_once.cache_clear()


SMALL = {"train_tokens": 400, "eval_tokens": 200, "epochs": 1}


def test_sparse_without_a_compiler_is_unsupported_and_says_why(no_compiler: None):
    rows = train_cell(CELL.model_copy(update={**SMALL, "path": "sparse"}), silent)
    assert len(rows) == 1 and rows[0]["status"] == "unsupported"
    assert "no C++ compiler" in rows[0]["reason"] and "\n" not in rows[0]["reason"]


def test_auto_without_a_compiler_is_dense_and_says_why(no_compiler: None, measured: list[Shape]):
    rows = train_cell(CELL.model_copy(update=SMALL), silent)
    last = rows[-1]
    assert last["status"] == "ok" and last["lstm_kernel"] == "" and last["sparse_share"] == 0.0
    assert "no C++ compiler" in last["reason"] and not measured
    assert last["inference_kernel"] == "torch" and last["final_ppl"] == pytest.approx(last["test_ppl"], rel=1e-5)


def test_the_kernel_of_a_gpu_is_named_without_building_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built for nothing")

    monkeypatch.setattr(module, "library", refuse)
    assert module.kernel("cuda") == "cuda"
