"""`--set` and `--only`: other values than a file's, and a part of its cells, under a name of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cells import GemmCell, TrainCell
from bench.sweep import LARGEST_SWEEP, LONGEST_NAME, Sweep, SweepError, altered, load

MIXED = """
[[grids]]
kind = "gemm"
[grids.axes]
block_size = [8, 16]
target_sparsity = [0.5, 0.9]
[[grids]]
kind = "train"
[grids.base]
schedule = "cubic"
target_sparsity = 0.8
[grids.axes]
seed = [0, 1]
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "mixed.toml"
    path.write_text(MIXED)
    return load(path)


def test_other_values_are_cells_of_a_sweep_of_another_name(sweep: Sweep) -> None:
    found = altered(sweep, ["block_size=32,64", "target_sparsity=0.5"], ["kind=gemm"])
    assert found.name == "mixed-block_size-32-64-target_sparsity-0.5-kind-gemm"
    assert found.cells == tuple(GemmCell(block_size=size, target_sparsity=0.5) for size in (32, 64))
    assert found.altered == ("--set", "block_size=32,64", "--set", "target_sparsity=0.5", "--only", "kind=gemm")
    assert found.origin == sweep.origin and found.named == sweep.named


def test_a_part_has_the_cells_of_the_file(sweep: Sweep) -> None:
    part = altered(sweep, [], ["seed=1"])
    assert part.cells == (TrainCell(schedule="cubic", target_sparsity=0.8, seed=1).canonical(),)
    assert {cell.cell_id for cell in part.cells} < {cell.cell_id for cell in sweep.cells}
    assert altered(sweep, [], ["target_sparsity=0.9,0.8", "kind=gemm,train"]).name.startswith(
        "mixed-target_sparsity-0.9-0.8"
    )
    assert altered(sweep, [], []) is sweep
    assert altered(sweep, [], ["target_sparsity=.8"]).cells == altered(sweep, [], ["target_sparsity=0.8"]).cells


def test_a_setting_of_one_kind_leaves_the_other_as_it_is(sweep: Sweep) -> None:
    found = altered(sweep, ["epochs=2", "path=auto"], [])
    assert sum(cell.kind == "gemm" for cell in found.cells) == 4
    assert all(cell.epochs == 2 and cell.path == "auto" for cell in found.cells if isinstance(cell, TrainCell))


def test_an_integer_is_a_number_and_words_need_no_quotes(sweep: Sweep) -> None:
    found = altered(sweep, ["dropout=0", "schedule=linear,pre", "scaled_start=true"], ["kind=train"])
    assert {cell.schedule for cell in found.cells if isinstance(cell, TrainCell)} == {"linear", "pre"}


def test_a_long_name_is_cut_and_tells_apart(sweep: Sweep) -> None:
    many = ",".join(str(size) for size in range(1, 60))
    names = {altered(sweep, [f"n={many},{last}"], ["kind=gemm"]).name for last in (100, 200)}
    assert len(names) == 2 and all(len(name) <= LONGEST_NAME for name in names)


REFUSED = {
    "--set: blok_size: no cell has that setting, did you mean block_size?": (["blok_size=8"], []),
    "--set: block_size: 0 is out of bounds; accepted: an integer >= 1": (["block_size=0"], []),
    "--set: block_size: 'big' is not an integer": (["block_size=big"], []),
    "--set: backend: unknown backend 'cublas'": (["backend=cublas"], []),
    "--set: m: 1000 is not divisible by block_size 16; accepted: ": (["m=1000"], []),
    "--set: block_size: names no setting and value; accepted: NAME=VALUE": (["block_size"], []),
    "--set: block_size=: names no setting and value": (["block_size="], []),
    "--only: seed: no cell has 7; accepted: 0, 1": ([], ["seed=7"]),
    "--only: colour: no cell has that setting, did you mean layout?; accepted: kind, seed, ": ([], ["colour=red"]),
    "--only: kind: no cell has lstm; accepted: gemm, train": ([], ["kind=lstm"]),
    "--set: cells: 10006 cells in all; accepted: at most": ([f"n={','.join(map(str, range(1, 2502)))}"], []),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(line: str, sweep: Sweep) -> None:
    assert LARGEST_SWEEP == 10_000
    settings, only = REFUSED[line]
    with pytest.raises(SweepError) as caught:
        altered(sweep, settings, only)
    said = str(caught.value)
    assert said.startswith(line) and len(said.splitlines()) == 1, said
