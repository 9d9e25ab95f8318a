"""What cannot have been measured is refused when it is stored and when it is read, naming file, cell and column."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import read_back

from bench.schema import LARGEST_PPL
from bench.store import Store
from bench.storing.parquet import DamagedError, checksum_line, checksum_of, to_parquet, to_table
from bench.storing.rules import LONGEST, SHORTEST
from bench.storing.tables import Tables
from bench.storing.validation import shard_table, whole_table
from bench.training.scores import DivergedError, perplexity


@pytest.mark.parametrize("case", read_back.FAULTS)
def test_a_cell_that_cannot_be_is_one_line(case: str, tmp_path: Path) -> None:
    kind, column, edit = read_back.FAULTS[case]
    table, right, other = read_back.table(kind, edit)
    kept, lines = whole_table(to_parquet(table), kind, tmp_path / f"{kind}.parquet")
    assert set(kept["cell_id"].to_pylist()) == {right.cell_id}
    assert len(lines) == 1 and lines[0].startswith(f"cell {other.cell_id}: ") and column in lines[0], lines
    path = tmp_path / f"{other.cell_id}-0.parquet"
    shard = to_parquet(to_table(other, edit(read_back.good(kind)), read_back.PROVENANCE))
    with pytest.raises(DamagedError, match=column) as caught:
        shard_table(shard, other.cell_id, path)
    assert str(caught.value).startswith(f"{path} is damaged: ") and "\n" not in str(caught.value)
    store, tables = Store(tmp_path / "store"), Tables(tmp_path / "tables", [])
    store.cells.mkdir(parents=True)
    for each in (store, tables):
        with pytest.raises(ValueError, match=column):
            each.put(other, edit(read_back.good(kind)), read_back.PROVENANCE)
    assert store.finished() == {} and tables.tables == {}, "what would not be read back is not stored"


@pytest.mark.parametrize("case", read_back.FINE)
def test_extremes_are_stored_and_read_back(case: str, tmp_path: Path) -> None:
    kind, edit = read_back.FINE[case]
    table, right, other = read_back.table(kind, edit)
    kept, lines = whole_table(to_parquet(table), kind, tmp_path / f"{kind}.parquet")
    assert (len(kept), lines) == (len(table), [])
    store = Store(tmp_path / "store")
    store.cells.mkdir(parents=True)
    for cell, rows in ((right, read_back.good(kind)), (other, edit(read_back.good(kind)))):
        store.put(cell, rows, read_back.PROVENANCE)
    assert set(store.finished()) == {right.cell_id, other.cell_id}


def test_a_table_names_file_cell_and_column(tmp_path: Path) -> None:
    table, right, other = read_back.table("train", read_back.last(test_ppl=float("nan")))
    Tables(tmp_path, []).put(right, read_back.good("train"), read_back.PROVENANCE)
    path = tmp_path / "train.parquet"
    path.write_bytes(to_parquet(table))
    checksum_of(path).write_text(checksum_line(path, path.read_bytes()))
    tables = Tables(tmp_path, [])
    (line,) = tables.load()
    assert line.startswith(f"{path} is damaged: cell {other.cell_id}: test_ppl: nan is no perplexity")
    assert set(tables.tables) == {right.cell_id}


def test_a_perplexity_that_no_table_holds_is_divergence() -> None:
    assert perplexity(0.0, 1) == 1.0 and perplexity(230.0, 1) <= LARGEST_PPL
    for nats in (231.0, 1e6):
        with pytest.raises(DivergedError, match="in epoch 3"):
            perplexity(nats, 3)


def test_a_ratio_of_times_and_its_square_are_numbers() -> None:
    squares = [(SHORTEST / LONGEST) ** 2, (LONGEST / SHORTEST) ** 2, LARGEST_PPL**2]
    assert all(square > 0.0 and math.isfinite(square) for square in squares)
