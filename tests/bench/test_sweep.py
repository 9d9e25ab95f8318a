"""Sweep files: what they expand to, and the one line that refuses a bad one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from malformed import BAD, GEMM, TRAIN, Bench, check_line, commands, write_bad

from bench.cells import KINDS, GemmCell, TrainCell
from bench.sweep import REGISTRIES, SweepError, load, names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with commands(tmp_path_factory.mktemp("said")) as run:
        yield run


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = write_bad(tmp_path, name)
    with pytest.raises(SweepError) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1
    check_line(name, str(caught.value), path)


@pytest.mark.parametrize("name", list(BAD)[::2])
def test_a_bad_file_ends_in_one_line_with_nothing_created(name: str, bench: Bench, tmp_path: Path) -> None:
    path = write_bad(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    done, seconds = bench("run", str(path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n") and len(done.stderr.splitlines()) == 1
    check_line(name, done.stderr, path)
    assert sorted(tmp_path.rglob("*")) == before
    assert seconds < 2.0  # 0.5 to 0.7 alone: tests/chaos holds the median to less than 1


def test_an_unknown_sweep_name_names_the_known_ones(bench: Bench, tmp_path: Path) -> None:
    done, _ = bench("run", "smoky", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("smoky: sweep: no such sweep") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("good", [True, False])
def test_torch_is_not_imported(good: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(TRAIN + '[axes]\nschedule = ["linear", "pre"]\n' if good else TRAIN + "[base]\nepochs = nan\n")
    code = f"""
import sys
from bench.sweep import SweepError, load
try:
    load({str(path)!r})
    assert {good}
except SweepError:
    assert not {good}
assert "torch" not in sys.modules and "pyarrow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_cells_come_in_file_order_the_last_axis_fastest(tmp_path: Path) -> None:
    sweep = load(write(tmp_path, GEMM + "[base]\nn = 8\n[axes]\nblock_size = [8, 32]\ntarget_sparsity = [0.5, 0.9]\n"))
    wanted = [(8, 0.5), (8, 0.9), (32, 0.5), (32, 0.9)]
    cells = [cell for cell in sweep.cells if isinstance(cell, GemmCell)]
    assert [(cell.block_size, cell.target_sparsity) for cell in cells] == wanted
    assert {cell.n for cell in cells} == {8}
    assert sweep.name == "sweep" and sweep.description == ""


def test_grids_lie_over_the_top_level(tmp_path: Path) -> None:
    text = """
description = "variants"
kind = "train"
[base]
epochs = 2
lasso = "proximal"
[axes]
block_size = [8, 16]
seed = [0, 1]
[[grids]]
[grids.base]
block_size = 32
[[grids]]
[grids.axes]
epochs = [3, 4]
"""
    sweep = load(write(tmp_path, text))
    found = [(c.epochs, c.block_size, c.seed) for c in sweep.cells if isinstance(c, TrainCell)]
    first = [(2, 32, 0), (2, 32, 1)]
    assert found == first + [(epochs, size, seed) for size in (8, 16) for seed in (0, 1) for epochs in (3, 4)]


def test_grids_of_another_kind_take_nothing_from_the_top_level(tmp_path: Path) -> None:
    path = tmp_path / "mixed.toml"
    path.write_text(
        'kind = "train"\n[base]\nepochs = 2\n[[grids]]\n[grids.axes]\nseed = [0, 1]\n'
        '[[grids]]\nkind = "gemm"\n[grids.base]\nm = 64\n'
    )
    cells = load(path).cells
    assert [cell.kind for cell in cells] == ["train", "train", "gemm"]
    assert cells[2].settings() == {"m": 64}


def test_equal_cells_are_one(tmp_path: Path) -> None:
    text = TRAIN + "[axes]\nblock_size = [8, 16, 32]\ntarget_sparsity = [0, 0.0, 0.5]\nseed = [0, 0]\n"
    assert len(load(write(tmp_path, text)).cells) == 1, "nothing prunes, so the block size and the target do not matter"
    assert len(load(write(tmp_path, GEMM + "[axes]\ntarget_sparsity = [0, 0.0, -0.0, 0.5]\n")).cells) == 2


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (GEMM + "[base]\nn = 4\n").replace("\n", "\r\n").encode())
    assert len(load(path).cells) == 1


@pytest.mark.alone
def test_a_large_sweep_loads_quickly(tmp_path: Path) -> None:
    text = GEMM + "[axes]\nseed = [" + ",".join(map(str, range(5000))) + "]\n"
    began = time.perf_counter()
    assert len(load(write(tmp_path, text)).cells) == 5000
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("name", names())
def test_every_sweep_of_the_suite_loads(name: str) -> None:
    assert load(name).cells
    assert load(name).description


@pytest.mark.parametrize("noun", REGISTRIES)
def test_defaults_are_registered(noun: str) -> None:
    defaults = [cell.model_fields[noun].get_default() for cell in KINDS.values() if noun in cell.model_fields]
    assert all(default in REGISTRIES[noun].names() for default in defaults)
