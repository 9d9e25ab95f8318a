"""Stored matrices beside the formulas: of a small sweep that is really run, byte by byte; of made-up ones by hand."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import made
import numpy as np
import pandas as pd
import pytest

from analysis import study, theory
from analysis.findings import findings
from analysis.load import records
from analysis.studying import storage
from analysis.tables import STORAGE, storage_table
from bench.cells import StorageCell

ROOT = Path(__file__).parents[3]
SWEEP = """
kind = "storage"
[base]
m = 64
k = 96
n = 4
[[grids]]
[grids.base]
block_size = 1
[grids.axes]
form = ["coo", "csr"]
target_sparsity = [0.0, 0.5, 0.9, 1.0]
[[grids]]
[grids.base]
form = "csr"
indices = "int64"
dtype = "float64"
[grids.axes]
target_sparsity = [0.5, 0.9]
[[grids]]
[grids.axes]
block_size = [4, 16]
target_sparsity = [0.0, 0.5, 0.9]
[[grids]]
[grids.base]
what = "activation"
block_size = 4
[grids.axes]
form = ["dense", "coo", "csr", "bsr"]
target_sparsity = [0.5, 0.95]
"""
ARRAYS = {"dense": 1, "coo": 2, "csr": 3, "bsr": 3}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> study.Study:
    """A sweep of 24 cells, run as a user does."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "forms.toml").write_text(SWEEP)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    patched = (
        "import sys; from bench import timing; from bench.measuring import clocks; timing.MIN_SECONDS = 0.0; "
        "timing.MIN_PAIRS = 4; timing.ATTEMPTS = 1; clocks.WARM_UP_SECONDS = 0.001; "
        "from bench.sweep import load; from bench.storage import store_cell; from bench.store import Store; "
        "sweep, store = load('forms.toml'), Store('results/forms'); store.cells.mkdir(parents=True); "
        "from bench.measuring.machine import facts; "
        "told = facts('cpu') | {'threads_used': 1, 'workers': 1, 'started_at': '2026-01-01', 'cell_seconds': 1.0}; "
        "[store.put(cell, store_cell(cell, lambda _: None), told) for cell in sweep.cells]; store.compact(sweep.cells)"
    )
    done = subprocess.run(
        [sys.executable, "-c", patched], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return study.read(folder / "results" / "forms")


@pytest.mark.slow(10)
def test_bytes_in_memory_are_those_of_the_formula_in_every_row(measured: study.Study) -> None:
    rows = records(measured.cells("storage"))
    assert len(rows) == 24 and all(row["status"] == "ok" for row in rows)
    for row in rows:
        assert row["value_bytes"] + row["index_bytes"] == storage.formula_bytes(row), row["form"]
        own = row["file_bytes"] - row["value_bytes"] - row["index_bytes"]
        assert 0 < own <= theory.npz_overhead(ARRAYS[row["form"]]), row["form"]
    points = pd.concat([part.points for part in measured.parts("storage")])
    assert (points["memory_bytes"] == points["formula_bytes"]).all()


@pytest.mark.slow(10)
def test_the_measured_crossing_is_the_predicted_one(measured: study.Study) -> None:
    weights = {part.rows["what"].iloc[0]: part for part in measured.parts("storage") if "float32" in part.label}
    assert weights.keys() == {"weight", "activation"}
    for what, part in weights.items():
        for row in records(part.crossovers):
            if row["form"] != "bsr" or what == "weight":  # else no straight line between two points
                assert row["smaller_from"].sparsity == pytest.approx(row["formula_from"], abs=2e-3), row["name"]


def test_the_bound_of_a_file_holds_for_large_arrays() -> None:
    for arrays in (1, 2, 3):
        file = io.BytesIO()
        names = ("values", "coordinates", "columns")[:arrays]
        np.savez(file, shape=np.array((2, 3)), **{name: np.zeros((2, 100_000), np.int8) for name in names})
        own = len(file.getvalue()) - arrays * 200_000
        assert 0 < own <= theory.npz_overhead(arrays) < 2 * own


def crossings(**settings: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in records(made.part(made.storage_frame(**settings)).crossovers)}


def test_crossings_by_hand() -> None:
    found = crossings()
    assert list(found) == ["COO", "CSR", "CSR, int64 indices", "BSR, block 4"]
    coo, csr, wide, bsr = (found[name] for name in ("COO", "CSR", "CSR, int64 indices", "BSR, block 4"))
    assert coo["formula_from"] == pytest.approx(0.8)
    assert csr["formula_from"] == pytest.approx(1 - (131072 - 129 * 4) / (32768 * 8))
    assert wide["formula_from"] == pytest.approx(1 - (131072 - 129 * 8) / (32768 * 12))
    assert bsr["formula_from"] == pytest.approx(1 - (131072 - 33 * 4) / (2048 * 68))
    for row in found.values():
        assert row["smaller_from"].sparsity == pytest.approx(row["formula_from"], abs=1e-3), "linear in what is stored"
        assert row["file_from"].sparsity == pytest.approx(row["formula_from"], abs=0.01)
    # times of the made-up products: 0.01 + cost (1 - rho) of dense is 1 at 1 - 0.99 / cost
    assert coo["faster_from"].sparsity == pytest.approx(1 - 0.99 / 20, abs=1e-3)
    assert csr["faster_from"].sparsity == pytest.approx(1 - 0.99 / 4, abs=1e-3) and csr["faster_noisy"]
    assert bsr["faster_from"].kind == "always" and not bsr["faster_noisy"]


def test_zeros_of_activations_empty_few_blocks() -> None:
    found = crossings(what="activation", shares=(0.0, 0.5, 0.9, 0.95, 0.99, 0.999))
    bsr, alone = found["BSR, block 4"], crossings()["BSR, block 4"]
    assert bsr["formula_from"] == pytest.approx(alone["formula_from"] ** (1 / 16))
    assert 0.5 < bsr["smaller_from"].sparsity < 0.9, "between two points, where bytes are no straight line"
    assert found["CSR"]["formula_from"] == pytest.approx(crossings()["CSR"]["formula_from"])


def test_rows_without_a_zero_belong_to_single_elements() -> None:
    """A weight without zeros has no blocks of them, whatever block size its settings name."""
    cells = [StorageCell(form="csr", m=64, k=64, target_sparsity=rho) for rho in (0.0, 0.5, 0.9)]
    cells += [StorageCell(form="csr", m=64, k=64, block_size=1, target_sparsity=rho) for rho in (0.5, 0.9)]
    points = made.part(pd.DataFrame(map(made.storage_row, cells))).points
    assert points.groupby("name")["target_sparsity"].apply(sorted).to_dict() == {
        "CSR": [0.0, 0.5, 0.9], "CSR, zeros in blocks of 16": [0.5, 0.9],
    }  # fmt: skip


def test_where_nothing_is_stored_a_form_is_smaller_without_bound() -> None:
    found = made.part(made.storage_frame((0.5, 1.0))).points
    coo = found[(found["name"] == "COO") & (found["target_sparsity"] == 1.0)].iloc[0]
    assert coo["memory_bytes"] == 0 and coo["smaller"] == math.inf
    text = "\n".join(findings(made.part(made.storage_frame((0.5, 1.0)))))
    assert "inf" not in text and "nan" not in text


def test_the_table_and_the_sentence_say_the_same() -> None:
    part = made.part(made.storage_frame())
    table = storage_table(part).set_index("form")
    assert ["form", *table.columns] == ["form", *(name for name in STORAGE if name != "form")]
    assert table.loc["COO", "by formula"] == "0.800" and table.loc["CSR", "faster from"] == "0.752 (noisy)"
    sentence = findings(part)[0]
    assert sentence.startswith(
        "Storage: by its share of zeros a float32 matrix of 128 × 256 takes fewer bytes than dense as COO from 0.80"
    )
    assert "COO from 0.80" in sentence and "CSR from 0.75 (noisy)" in sentence and "BSR, block 4 always" in sentence
    assert "kept no block" not in "\n".join(findings(part))


def test_what_failed_says_so() -> None:
    frame = made.storage_frame()
    only = frame[frame["status"] != "ok"]
    assert findings(made.part(only))[0].endswith(
        f"no sparse form was measured; most often: unsupported ({made.NO_CSR})."
    )
    dense = frame[frame["form"] == "dense"]
    assert "only the dense form was stored" in findings(made.part(dense))[0]


def test_beside_products_and_layers_it_comes_last() -> None:
    parts = made.part(made.gemm_frame()), made.part(made.lstm_frame((256,))), made.part(made.storage_frame())
    heads = [line.split(":")[0].split(" (")[0] for line in findings(*parts)]
    assert heads == ["Speed", "Accuracy", "Limits", "Layer", "Storage"]
