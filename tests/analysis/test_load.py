"""The parquet wall: what is damaged is refused in one line, and what cannot be compared is not mixed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import made
import pandas as pd
import pytest

from analysis import compare, study
from analysis.findings import findings
from analysis.load import (
    REFERENCE,
    find_folder,
    load,
    one_of,
    records,
    reference_folder,
    split,
    tables_in,
    timed_steadily,
)
from analysis.runs import runs
from bench.cells import TrainCell
from bench.sweep import Sweep as SweepFile

Sweep = Callable[..., Path]
UNLIKE_PRODUCTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # column -> (settings, measured values)
    "device_name": ({}, {"device_name": "Other CPU"}),
    "device": ({"device": "cuda"}, {}),
    "threads": ({"threads": 2}, {}),
    "timer": ({}, {"timer": "cuda_event"}),
    "dtype": ({"dtype": "float64"}, {}),
    "cache": ({"cache": "cold"}, {}),
    "baseline": ({"baseline": "torch_bsr"}, {}),
    "schema_version": ({}, {"schema_version": 2}),
    "op": ({"op": "sdd"}, {}),
}
UNLIKE_LAYERS = {"passes": "forward", "scope": "weight_hh", "baseline": "loop_lstm", "dtype": "float64", "threads": 2}


def refusal(call: Callable[[], object]) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call()
    return str(caught.value)


def test_a_stored_table_comes_back(sweep: Sweep) -> None:
    frame = made.gemm_frame()
    folder = sweep(gemm=frame)
    found = load(folder, "gemm")
    assert tables_in(folder) == ["gemm"]
    assert found["cell_id"].tolist() == frame["cell_id"].tolist()
    assert found["samples_ms"].iloc[0].tolist() == frame["samples_ms"].iloc[0]
    assert set(found["status"]) == {"ok", "unsupported"}


def test_a_file_whose_namesake_was_measured_is_told_so(sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(gemm=made.gemm_frame())
    (tmp_path / "a").mkdir()
    mine, other = tmp_path / "a" / "smoke.toml", tmp_path / "b" / "smoke.toml"
    assert find_folder(str(other), tmp_path / "results") == folder, "an older folder does not say"
    (folder / ".sweep").write_text(SweepFile("smoke", "", mine, ()).origin + "\n")
    assert find_folder(str(mine), tmp_path / "results") == find_folder("smoke", tmp_path / "results") == folder
    line = refusal(lambda: find_folder(str(other), str(tmp_path / "results")))
    assert str(other) in line and str(folder) in line and "another file" in line


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(60)
def test_a_pipe_does_not_say_whose_a_folder_is(sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(gemm=made.gemm_frame())
    os.mkfifo(folder / ".sweep")
    assert find_folder(str(tmp_path / "smoke.toml"), tmp_path / "results") == folder


def test_one_flipped_bit_is_refused(sweep: Sweep) -> None:
    path = sweep(gemm=made.gemm_frame(backends=("native",))) / "gemm.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    words = refusal(lambda: load(path.parent, "gemm"))
    assert "damaged" in words and str(path) in words and "gemm.parquet.sha256" in words


@pytest.mark.parametrize("sidecar", [None, "", "0" * 64 + "  gemm.parquet\n"])
def test_a_missing_empty_or_wrong_checksum_is_refused(sweep: Sweep, sidecar: str | None) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    path = folder / "gemm.parquet.sha256"
    path.unlink()
    if sidecar is not None:
        path.write_text(sidecar)
    words = refusal(lambda: load(folder, "gemm"))
    assert "gemm.parquet.sha256" in words
    assert ("missing" if sidecar is None else "damaged") in words


def test_a_missing_table_and_another_schema_are_refused(sweep: Sweep) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)).assign(schema_version=2))
    assert "train.parquet: missing" in refusal(lambda: load(folder, "train"))
    assert "schema [2]" in refusal(lambda: load(folder, "gemm"))


def test_a_folder_is_found_by_path_name_or_sweep_file(sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    for name in (str(folder), "smoke", "bench/sweeps/smoke.toml"):
        assert find_folder(name, tmp_path / "results") == folder
    (tmp_path / "results" / "nothing").mkdir()
    assert "known: smoke" in refusal(lambda: find_folder("nothing", tmp_path / "results"))
    assert "known: none yet" in refusal(lambda: find_folder("smoke", tmp_path))


def test_the_folder_of_results_that_is_given_is_the_one_that_is_looked_in(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of that name lie where one is, in the checkout, and among the results that are looked in by default."""
    mine = sweep(gemm=made.gemm_frame(backends=("native",)))
    name, results = mine.name, mine.parent
    for place in ("here", "checkout", "here/results", "here/sub"):
        shutil.copytree(mine, tmp_path / place / name)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("analysis.load.ROOT", tmp_path / "checkout")
    for given in (results, str(results)):
        assert find_folder(name, given) == mine
        assert find_folder(f"{name}.toml", given) == mine
        assert find_folder(f"sub/{name}", given) == Path(f"sub/{name}"), "a path is one where the results have none"
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", tmp_path / "missing"):
        line = refusal(partial(find_folder, name, given))
        assert str(given / name) in line and "known: none yet" in line, "no other sweep of that name is taken for it"
    assert find_folder(name) == Path(name), "as before where no results are given"
    assert "no results called ''" in refusal(lambda: find_folder("", mine)), "the results themselves are no sweep"


def test_sweeps_are_looked_for_where_a_run_puts_them_then_in_the_checkout(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """./results first; one that lacks the sweep does not hide the checkout's."""
    mine = sweep(gemm=made.gemm_frame(backends=("native",)))
    checkout, here = tmp_path / "checkout" / "results", tmp_path / "here" / "results"
    shutil.copytree(mine, checkout / mine.name)
    here.mkdir(parents=True)
    monkeypatch.chdir(here.parent)
    monkeypatch.setattr("analysis.load.ROOT", tmp_path / "checkout")
    assert find_folder(mine.name) == checkout / mine.name
    shutil.copytree(mine, here / mine.name)
    assert find_folder(mine.name) == Path("results") / mine.name
    monkeypatch.chdir(tmp_path / "checkout")
    assert find_folder(mine.name) == Path("results") / mine.name
    monkeypatch.chdir(mine)
    assert find_folder(mine.name) == checkout / mine.name, "where there is no ./results"


def test_notebooks_read_the_folder_they_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path))
    assert reference_folder() == tmp_path
    monkeypatch.delenv("BENCH_RESULTS")
    assert reference_folder().parts[-3:] == ("results", "reference", "wikitext2_small")


def points(frame: pd.DataFrame, table: str, over: str | None = None) -> pd.DataFrame:
    return compare.timed_points(compare.measured_speedup(frame, table), table, over)


@pytest.mark.parametrize("column", UNLIKE_PRODUCTS)
def test_unlike_products_are_not_mixed_unless_the_column_is_named(column: str) -> None:
    settings, values = UNLIKE_PRODUCTS[column]
    frame = pd.DataFrame([made.ratio_row([2.0]), made.ratio_row([8.0], settings={"seed": 1} | settings, **values)])
    words = refusal(lambda: points(frame, "gemm"))
    assert f"mix {column} (" in words and f"name {column!r}" in words
    points(frame, "gemm", over=column)
    one_of(frame, [column], over=column)
    other = "cache" if column != "cache" else "dtype"
    assert f"mix {column} (" in refusal(lambda: points(frame, "gemm", over=other))


@pytest.mark.parametrize("column", UNLIKE_LAYERS)
def test_unlike_layers_are_not_mixed_unless_the_column_is_named(column: str) -> None:
    rows = [made.layer_row([2.0]), made.layer_row([8.0], settings={"seed": 1, column: UNLIKE_LAYERS[column]})]
    frame = pd.DataFrame(rows)
    assert f"mix {column} (" in refusal(lambda: points(frame, "lstm"))
    assert len(points(frame, "lstm", over=column)) == 2
    assert [label for label, _ in split(frame, "lstm", over=column)] == [""]
    assert len(list(split(frame, "lstm"))) == 2


@pytest.mark.parametrize("column", ["threads", "dataset", "train_tokens", "eval_tokens", "corpus_sha256"])
def test_unlike_runs_are_not_mixed_unless_the_column_is_named(column: str) -> None:
    values = {"threads": 2, "dataset": "wikitext2", "train_tokens": 10, "eval_tokens": 10}
    first, second = made.run_rows(TrainCell(), 100.0, [0.0]), made.run_rows(TrainCell(seed=1), 100.0, [0.0])
    frame = pd.DataFrame([*first, *({**row, column: values.get(column, "other")} for row in second)])
    assert f"mix {column} (" in refusal(lambda: runs(frame))
    assert len(runs(frame, over=column)) == 2


def test_a_null_is_no_value_of_its_own() -> None:
    one_of(pd.DataFrame({"timer": ["perf_counter", None]}), ["timer", "absent"])


def test_parts_are_labelled_by_what_differs_only() -> None:
    frame = pd.concat([made.gemm_frame(), made.gemm_frame(cache="cold")], ignore_index=True)
    parts = dict(split(frame, "gemm"))
    assert list(parts) == ["cache cold", "cache hot"]
    assert {len(part) for part in parts.values()} == {len(frame) // 2}


def test_a_failed_cell_without_a_timer_stays_with_the_others() -> None:
    frame = made.gemm_frame()
    assert frame["timer"].isna().any()
    [(label, part)] = split(frame, "gemm")
    assert label == "" and len(part) == len(frame)


@pytest.mark.parametrize(("name", "table"), [("wikitext2_small", "train"), ("gemm", "gemm"), ("lstm", "lstm")])
def test_records_are_those_of_pandas(name: str, table: str) -> None:
    part = study.read(REFERENCE / name).main(table)
    for frame in [part.rows, part.rows.iloc[:0]] + (
        [part.runs, part.replicates] if table == "train" else [part.points]
    ):
        wanted, found = frame.to_dict("records"), records(frame)
        assert len(wanted) == len(found)
        for one, other in zip(wanted, found, strict=True):
            assert [(key, type(value)) for key, value in one.items()] == [
                (key, type(value)) for key, value in other.items()
            ]
            assert all(value is other[key] or str(value) == str(other[key]) for key, value in one.items())


def test_seconds_of_runs_beside_other_work_are_not_read() -> None:
    """Equal runs that took unequal times; what was timed in pairs stays, and the runs of quiet machines whole."""
    steady = load(REFERENCE / "digits", "train")
    assert timed_steadily(steady)
    later = steady["seed"] == 1
    slow = steady.assign(train_seconds=steady["train_seconds"].where(~later, 9.0 * steady["train_seconds"]))
    assert not timed_steadily(slow) and timed_steadily(slow[slow["seed"] != 1])
    one = slow[slow["target_sparsity"] == 0.0]
    assert one["seed"].nunique() > 1 and timed_steadily(one)  # the runs of one setting tell nothing
    disturbed = study.read(REFERENCE / "mnist1d_methods").main("train")
    assert disturbed.rows["train_seconds"].isna().all() and disturbed.rows["probes"].isna().all()
    assert not disturbed.narrowings.empty and disturbed.narrowings["inference"].map(lambda one: one.value > 0.0).all()
    assert not any(
        "hidden layers were" in line for line in findings(disturbed, study.not_run("gemm"), study.not_run("lstm"))
    )
    assert study.read(REFERENCE / "digits").main("train").rows["train_seconds"].notna().any()
