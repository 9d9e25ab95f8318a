"""The model of what CUDA kernels will reach: its parts by hand, and that it is said to be no measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.goals.expected import expected_table, said
from bench.commands import expected
from bench.commands.expected import (
    BLOCKS,
    MULTIPROCESSORS,
    SPARSITIES,
    estimates,
    in_turns,
    longest_first,
    tile_seconds,
    write,
)
from kernels.blockmask import BlockMask
from kernels.cuda.wgmma import default_tile
from kernels.cuda.wgmma_tma import TmaTile


def test_dealing_longest_first_evens_out_what_turns_do_not() -> None:
    costs = [float(cost) for cost in range(3 * MULTIPROCESSORS, 0, -1)]
    for deal in (in_turns, longest_first):
        assert sum(deal(costs)) == sum(costs) and len(deal(costs)) == MULTIPROCESSORS
    mean = sum(costs) / MULTIPROCESSORS
    assert max(longest_first(costs)) < max(in_turns(costs)) < 2 * mean
    assert max(longest_first(costs)) / mean < 1.2


def test_a_tile_takes_its_products_or_its_bytes() -> None:
    """Block 128, every second block column kept in one row group and none in the other."""
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[0, ::2] = True
    tile = default_tile("Bfloat16", 128, 4096)
    fast, slow = (tile_seconds(BlockMask(kept, 128), tile, rate) for rate in (1e15, 8e12))
    end = expected.BETWEEN_TILES / expected.CYCLES
    assert fast[1] == slow[1] == pytest.approx(end)
    assert fast[0] - end == pytest.approx(4 * 128**2 * tile.tokens / expected.RATE / expected.CYCLES)
    moved = 2 * (4 * 128 * tile.tokens + 4 * 128**2)
    assert slow[0] - end == pytest.approx(max(fast[0] - end, moved / (8e12 / MULTIPROCESSORS)))


def test_what_a_cluster_shares_comes_from_l2_once() -> None:
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[0, ::2] = True
    end, rate = expected.BETWEEN_TILES / expected.CYCLES, 1e10  # so slow that bytes alone count
    tall = tile_seconds(BlockMask(kept, 128), TmaTile(128, 256, 4, cluster=2), rate)
    moved = 2 * (4 * 128 * 256 + 4 * 128**2 / 2)
    assert tall == pytest.approx([end + moved / (rate / MULTIPROCESSORS), end])
    flat = tile_seconds(BlockMask(kept.repeat(8, 1), 16), TmaTile(128, 128, 6, register_a=True, cluster=2), rate)
    moved = 2 * (8 * 16 * 128 / 2 + 4 * 4 * 16**2)  # all columns, listed or not
    assert flat == pytest.approx([end + moved / (rate / MULTIPROCESSORS)] * 2)


def test_memory_of_an_h100_ends_nine_tenths_near_four_fifths() -> None:
    [found] = estimates((128,), (0.9,))
    assert found.roof["H100"] == pytest.approx(0.81, abs=0.01) and found.roof["H200"] == 1.0
    for low, high in (found.in_turns, found.longest_first, found.by_tma):
        assert 0.3 < low <= high < 1.0
    assert found.imbalance_longest_first < 1.1 < found.imbalance_in_turns


def test_what_is_written_is_what_notebook_4_shows(tmp_path: Path) -> None:
    write(tmp_path / "expected.json", list(estimates((128,), (0.9,))))
    ours = json.loads((tmp_path / "expected.json").read_text())
    committed = json.loads((Path(expected.__file__).parents[2] / "analysis/goals/expected.json").read_text())
    assert ours.keys() == committed.keys() and ours["assumed"] == committed["assumed"]
    assert ours["estimates"][0].keys() == committed["estimates"][0].keys()
    told = [(each["block_size"], each["sparsity"]) for each in committed["estimates"]]
    assert told == [(block, sparsity) for block in BLOCKS for sparsity in SPARSITIES]


def test_no_reader_takes_it_for_a_measurement() -> None:
    table = expected_table()
    assert len(table) == 16 and said().startswith("**Expected, not measured**")
    assert all("expected" in name for name in table.columns if "tile" in name and name != "tile")
    assert table["at most, by memory"].tolist().count("H100 0.81") == 4
