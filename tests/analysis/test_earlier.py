"""Tables of every earlier schema, as the suite of that day stored them: read as today's, and all is drawn of them.

`earlier/` has one folder for each set of columns that there was, named by what came with it, and in it the tables whose
columns were other than before. Each is a sweep of a few small cells, run by the sources of its day (column `commit`).
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from notebooks import run_here

from analysis.load import load, tables_in
from analysis.report import write_figures, write_report
from bench.cells import KINDS
from bench.schema import arrow_schema
from bench.store import Store
from bench.storing.tables import Tables

pytestmark = pytest.mark.examples

EARLIER = Path(__file__).parent / "earlier"
SWEEPS = sorted(path.name for path in EARLIER.iterdir() if path.is_dir())
IN_NOTEBOOKS = ("1_first", "3_attempts", "4_path", "5_layers")  # what came later is of training alone
STORED = [(sweep, table) for sweep in SWEEPS for table in tables_in(EARLIER / sweep)]


def as_stored(sweep: str, table: str) -> list[dict[str, Any]]:
    return list(pq.ParquetFile(EARLIER / sweep / f"{table}.parquet").read(use_threads=False).to_pylist())


@pytest.mark.parametrize(("sweep", "table"), STORED)
def test_it_is_read_with_every_column_of_today_and_nothing_else_changed(sweep: str, table: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = load(EARLIER / sweep, table)
    rows, fields = as_stored(sweep, table), KINDS[table].model_fields
    assert list(frame.columns) == arrow_schema(table).names
    assert frame["cell_id"].tolist() == [row["cell_id"] for row in rows]
    missing = [name for name in frame if name not in rows[0]]
    assert missing, "this is a table of today"
    for name in missing:
        if name in fields:
            assert set(frame[name]) == {fields[name].get_default()}
        else:
            assert frame[name].isna().all()
    for name in (name for name in rows[0] if is_flat(rows, name)):
        assert [None if value != value else value for value in frame[name].tolist()] == [row[name] for row in rows]


def is_flat(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a column has one value a row."""
    return not any(isinstance(row[name], list) for row in rows)


@pytest.mark.parametrize(("sweep", "table"), STORED)
def test_a_campaign_takes_it_up(sweep: str, table: str, tmp_path: Path) -> None:
    tables = Tables(tmp_path, [])
    assert tables.load(EARLIER / sweep) == []
    wanted = {row["cell_id"] for row in as_stored(sweep, table)}
    assert wanted <= set(tables.tables)
    tables.write(table)
    assert set(Store(tmp_path).read(table)["cell_id"].to_pylist()) == wanted


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("sweep", SWEEPS)
def test_everything_is_drawn_of_it(sweep: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EARLIER / sweep, tmp_path / sweep))
    assert write_report(folder).is_file()
    assert write_figures(folder, tmp_path / "figures")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("sweep", IN_NOTEBOOKS)
def test_the_notebooks_run_on_it(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(EARLIER / sweep, monkeypatch)
