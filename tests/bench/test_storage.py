"""store_cell: bytes of real tensors and of a real file, what was read multiplied, no time for a wrong output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import silent
from torch import Tensor

from bench import storage, timing
from bench.cells import StorageCell
from bench.measuring import clocks, forms
from bench.measuring.forms import FORMS, VALUES, alike, read, write
from bench.measuring.machine import QUERIES
from bench.schema import STORAGE
from bench.storage import problem_of, store_cell, through_file
from kernels.blockmask import BlockMask
from kernels.native.products import packed_nbytes

TINY: dict[str, Any] = {"m": 32, "k": 64, "n": 4, "block_size": 4, "target_sparsity": 0.75}
MEASURED = {"time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "launches_per_sample", "noisy", "attempts"}
INT32, INT64 = torch.int32, torch.int64


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.02)
    monkeypatch.setattr(clocks, "WARM_UP_SECONDS", 0.002)
    monkeypatch.setattr(timing, "RESAMPLE_SECONDS", 0.0)


def row_of(**settings: Any) -> dict[str, Any]:
    (row,) = store_cell(StorageCell(**TINY | settings), silent)
    return row


@pytest.mark.parametrize("what", ["weight", "activation"])
@pytest.mark.parametrize("form", FORMS)
def test_an_ok_row_has_every_column_and_the_zeros_asked_for(form: str, what: str) -> None:
    row = row_of(form=form, what=what)
    assert (row["status"], row["reason"]) == ("ok", "")
    assert set(row) == {column.name for column in STORAGE} | {"status", "reason", *QUERIES}
    assert row["zero_share"] == 0.75 and row["nnz"] == 512
    assert row["sparsity"] == 0.75 or (form, what) == ("bsr", "activation")
    assert len(row["samples_ms"]) == len(row["baseline_samples_ms"]) >= 30 and 0 <= row["error_ratio"] <= 1
    assert row["baseline_kernel"].startswith("torch.mm, ")
    assert ("block_sparse_matmul" if form == "bsr" else f"torch.mm, {form}") in row["kernel"]


# 512 elements of 32 x 64 in 32 blocks of 4 x 4: what the formulas say, worked by hand
BYTES = {
    "dense": ({}, 8192, 0, 0),
    "coo": ({}, 2048, 8192, 8),
    "csr": ({}, 2048, 2180, 4),
    "csr int64": ({"indices": "int64"}, 2048, 4360, 8),
    "bsr": ({}, 2048, 164, 4),
    "bsr of single elements": ({"block_size": 1}, 2048, 2180, 4),
    "csr float64": ({"dtype": "float64"}, 4096, 2180, 4),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_of_the_tensors(name: str) -> None:
    settings, values, indices, width = BYTES[name]
    row = row_of(form=name.split()[0], **settings)
    assert (row["value_bytes"], row["index_bytes"], row["index_width"]) == (values, indices, width)
    assert 0 < row["file_bytes"] - values - indices < 1100


def test_the_formats_own_bytes_do_not_depend_on_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "matrix.npz"
    arrays = {VALUES: torch.randn(1000), "offsets": torch.arange(7), "columns": torch.arange(1000, dtype=INT32)}
    more = {VALUES: torch.zeros(9000), "offsets": torch.arange(70), "columns": torch.zeros(9000, dtype=INT32)}
    own = {write(path, each, (3, 5)) - sum(map(forms.nbytes, each.values())) for each in (arrays, more)}
    assert len(own) == 1, "neither is compressed, aligned or numbered"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_comes_back_from_its_file(form: str, sparsity: float, dtype: torch.dtype) -> None:
    mask = BlockMask.random(8, 12, 2, sparsity, torch.Generator().manual_seed(0))
    weight = torch.where(mask.expand(), torch.randn(8, 12), torch.zeros(())).to(dtype)
    for indices in (INT32, INT64):
        matrix = FORMS[form].built(FORMS[form].taken(weight, mask, indices), mask.shape)
        size, again = through_file(FORMS[form], matrix, mask.shape)
        assert size > 0 and torch.equal(FORMS[form].dense(again), weight)
        assert alike(FORMS[form].held(again), FORMS[form].held(matrix))


def test_anybody_can_read_the_file(tmp_path: Path) -> None:
    weight, mask = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), BlockMask.full(2, 2, 1)
    write(tmp_path / "coo.npz", FORMS["coo"].taken(weight, mask, INT32), (2, 2))
    with np.load(tmp_path / "coo.npz", allow_pickle=False) as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {
            "shape": [2, 2], "values": [2.0, 3.0], "coordinates": [[0, 1], [1, 0]],
        }  # fmt: skip


def test_torch_stores_what_our_arrays_say() -> None:
    weight, mask = torch.randn(6, 8) * (torch.rand(6, 8) > 0.5), BlockMask.full(6, 8, 1)
    coo, csr = weight.to_sparse_coo(), weight.to_sparse_csr()
    assert alike(FORMS["coo"].taken(weight, mask, INT32), {VALUES: coo.values(), "coordinates": coo.indices()})
    wanted = {VALUES: csr.values(), "offsets": csr.crow_indices(), "columns": csr.col_indices()}
    assert alike(FORMS["csr"].taken(weight, mask, INT64), wanted)


def test_one_bit_makes_another_matrix(tmp_path: Path) -> None:
    arrays = {VALUES: torch.tensor([1.0, 0.0]), "columns": torch.tensor([0, 1])}
    for name, other in (
        (VALUES, torch.tensor([1.0, -0.0])),
        (VALUES, torch.tensor([1.0], dtype=torch.float64)),
        ("columns", torch.tensor([0, 1], dtype=INT32)),
        ("columns", torch.tensor([0])),
    ):
        assert not alike(arrays, arrays | {name: other})
    assert alike(arrays, {name: array.clone() for name, array in arrays.items()})
    write(tmp_path / "a.npz", arrays, (1, 2))
    found, shape = read(tmp_path / "a.npz", torch.float32)
    assert shape == (1, 2) and alike(found, arrays)


def test_a_file_that_gives_another_matrix_is_wrong_and_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(path: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], tuple[int, int]]:
        arrays, shape = read(path, dtype)
        arrays[VALUES][3] += 1.0
        return arrays, shape

    monkeypatch.setattr(storage, "read", changed)
    row = row_of(form="csr")
    assert (row["status"], row["reason"]) == ("wrong", "what was read from the file is another matrix")
    assert not MEASURED & set(row) and row["file_bytes"] > 0


def test_a_wrong_product_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FORMS["csr"].product
    spoiled = replace(FORMS["csr"], product=lambda matrix, x: (lambda: right(matrix, x)[0]() + 1.0, "spoiled"))
    monkeypatch.setitem(FORMS, "csr", spoiled)
    row = row_of(form="csr")
    assert row["status"] == "wrong" and "times the error bound" in row["reason"] and not MEASURED & set(row)


def test_what_torch_sums_in_16_bits_is_found_out() -> None:
    row = row_of(form="coo", dtype="bfloat16", m=64, k=256)
    assert row["status"] == "wrong" and not MEASURED & set(row) and row["value_bytes"] == 2 * row["nnz"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"form": "csr", "dtype": "bfloat16"}, "torch multiplies no csr of bfloat16 on a CPU"),
        ({"form": "bsr", "dtype": "float16"}, "native has no float16 kernel"),
    ],
)
def test_what_is_not_multiplied_is_unsupported_and_has_its_bytes(settings: dict[str, str], reason: str) -> None:
    row = row_of(**settings)
    assert row["status"] == "unsupported" and reason in row["reason"]
    assert row["file_bytes"] > row["value_bytes"] + row["index_bytes"] > 0 and not MEASURED & set(row)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_activations_are_what_a_relu_leaves(target: float) -> None:
    problem = problem_of(StorageCell(what="activation", form="coo", m=100, k=50, target_sparsity=target))
    values = problem.weight
    assert (values >= 0).all() and int((values == 0).sum()) == round(5000 * target)
    assert problem.full_weight is values, "the dense side multiplies them as they are"
    assert torch.equal(problem_of(StorageCell(what="activation", form="csr", m=100, k=50)).full_weight > 0,
                       problem_of(StorageCell(what="activation", form="coo", m=100, k=50)).full_weight > 0)  # fmt: skip
    if 0.0 < target < 1.0:  # lowered, not cut: what is left begins at zero and keeps the shape of a normal tail
        kept = values[values > 0]
        assert float(kept.min()) < 0.02 and float(kept.max()) > 0.3


def test_blocks_of_activations_are_empty_where_all_their_elements_are() -> None:
    row = row_of(what="activation", form="bsr", m=256, k=256, block_size=2, target_sparsity=0.9)
    assert row["zero_share"] == pytest.approx(0.9, abs=1e-4)
    assert row["sparsity"] == pytest.approx(0.9**4, abs=0.02), "zeros that know nothing of each other"
    assert row["value_bytes"] == 4 * 4 * row["nnzb"]


def test_deterministic_columns_repeat() -> None:
    names = [column.name for column in STORAGE if column.role == "result"]
    first, second = (row_of(form="bsr") for _ in range(2))
    assert [first[name] for name in names] == [second[name] for name in names]


def test_a_frozen_weight_keeps_packed_copies_and_says_how_large_they_are() -> None:
    row = row_of(form="bsr", target_sparsity=0.5)
    assert row["packed_bytes"] == row["value_bytes"]
    assert row_of(form="csr")["packed_bytes"] == 0
    mask = BlockMask.full(8, 8, 4)
    matrix = FORMS["bsr"].built(FORMS["bsr"].taken(torch.randn(8, 8), mask, INT32), (8, 8))
    assert packed_nbytes(matrix) == packed_nbytes(matrix.unfreeze()) == 0, "nothing was multiplied yet"


def test_the_time_is_of_what_was_read_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    right = FORMS["coo"]
    noted = replace(right, product=lambda matrix, x: (seen.append(matrix), right.product(matrix, x))[1])
    monkeypatch.setitem(FORMS, "coo", noted)
    built: list[Any] = []
    monkeypatch.setattr(storage, "through_file", lambda *given: (built.append(through_file(*given)), built[-1])[1])
    row_of(form="coo")
    assert seen[0] is built[0][1]
