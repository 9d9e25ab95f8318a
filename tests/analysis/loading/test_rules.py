"""What cannot have been measured is left out with one line naming file, cell and column; the cases are `bench`'s."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import read_back

from analysis import study
from analysis.findings import findings
from analysis.load import LeftOutWarning, load
from analysis.loading import rules
from analysis.loading.schema import BadInputError
from analysis.stats import ratio_interval
from bench.schema import LARGEST_PPL
from bench.storing import rules as theirs


def stored(folder: Path, kind: str, table: pa.Table) -> Path:
    path = folder / f"{kind}.parquet"
    pq.write_table(table, path)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("case", read_back.FAULTS)
def test_a_cell_that_cannot_be_is_left_out_with_one_line(case: str, tmp_path: Path) -> None:
    kind, column, edit = read_back.FAULTS[case]
    table, right, other = read_back.table(kind, edit)
    path = stored(tmp_path, kind, table)
    with pytest.warns(LeftOutWarning) as told:
        frame = load(tmp_path, kind)
    (line,) = [str(one.message) for one in told]
    assert line.startswith(f"{path}: {column}: ") and line.endswith(f"; left out: cell {other.cell_id}")
    assert set(frame["cell_id"]) == {right.cell_id}
    alone = table.filter(pa.array([name == other.cell_id for name in table["cell_id"].to_pylist()]))
    stored(tmp_path, kind, alone)
    with pytest.raises(BadInputError, match=r"\A[^\n]+no cell is left\Z") as caught:
        load(tmp_path, kind)
    assert str(caught.value).startswith(f"{path}: {column}: ") and other.cell_id in str(caught.value)


@pytest.mark.parametrize("case", read_back.FINE)
def test_extremes_are_read_and_told_of(case: str, tmp_path: Path) -> None:
    kind, edit = read_back.FINE[case]
    table, *_ = read_back.table(kind, edit)
    stored(tmp_path, kind, table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = study.read(tmp_path)
        assert len(found.tables[kind]) == len(table)
        text = "\n".join(findings(*(found.main(table) for table in ("train", "gemm", "lstm"))))
    assert "inf" not in text and "nan" not in text


def test_both_sides_of_the_wall_have_the_same_rules() -> None:
    names = ("TIMED", "AFTER_TRAINING", "NEEDED", "PAIRS", "EVERYWHERE", "SHORTEST", "LONGEST", "LARGEST", "ROUNDING")
    for name in names:
        assert getattr(rules, name) == getattr(theirs, name), name
    assert rules.LARGEST == LARGEST_PPL


def test_replicates_that_differ_wildly_have_an_interval_of_numbers() -> None:
    found = ratio_interval([1e-100, 1e100])
    assert found.value == pytest.approx(1.0) and 0.0 < found.low < 1e-250 and 1e250 < 100.0 * found.high < float("inf")
