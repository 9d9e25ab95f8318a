"""Sweeps as they are read: their tables, the parts that stand for them, and the widest over several sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made
import pandas as pd
import pytest

from analysis import load, study
from analysis.study import Study
from bench.cells import LstmCell

Sweep = Callable[..., Path]


def test_every_table_of_a_sweep_is_read_and_an_empty_one_is_none(sweep: Sweep) -> None:
    found = study.read(sweep(lstm=made.lstm_frame((256,)), train=made.sparse_frame(1)))
    assert list(found.tables) == ["lstm", "train"] and found.gemm is None
    assert found.comparable().lstm is not None
    baselines = found.comparable().lstm["baseline"]
    assert baselines.nunique() == 1 and len(baselines) < len(found.lstm)


def test_the_widest_part_over_several_sweeps() -> None:
    small, large = made.lstm_frame((256,)), made.lstm_frame((256, 512))
    sweeps = [
        Study(Path("one"), None, None, small),
        Study(Path("two"), None, None, large),
        Study(Path("three"), None, None),
    ]
    widest = study.widest(sweeps, "lstm", over="baseline")
    assert widest is not None and len(widest) == len(large) and set(widest["baseline"]) == {"torch_lstm", "loop_lstm"}
    assert study.widest(sweeps, "gemm") is None and study.widest([], "lstm") is None


def test_runs_with_probes_come_before_more_runs_without() -> None:
    many, probed = made.train_frame(seeds=3), made.sparse_frame(1)
    found = study.widest([Study(Path("one"), many, None), Study(Path("two"), probed, None)], "train")
    assert found is not None and set(found["path"]) == {"dense", "auto"}


def test_of_equal_parts_the_one_with_backward_passes_stands_for_the_layers() -> None:
    both = pd.concat([made.lstm_frame((256,), passes=passes) for passes in ("forward", "forward_backward")])
    assert set(study.main_part(both, "lstm", over="baseline")["passes"]) == {"forward_backward"}
    assert set(study.main_part(both[::-1], "lstm", over="baseline")["passes"]) == {"forward_backward"}


def test_of_equal_parts_the_one_over_the_fused_layer_stands_for_the_layers() -> None:
    assert set(study.main_part(made.lstm_frame((256,)), "lstm")["baseline"]) == {"torch_lstm"}


def products(noisy: bool = False, **settings: object) -> pd.DataFrame:
    return pd.DataFrame([made.ratio_row([2.0] * 3, rho, settings, noisy=noisy) for rho in (0.5, 0.8)])


def test_of_equally_large_parts_the_quiet_one_stands_for_the_products_then_float32() -> None:
    types = [products(dtype=dtype) for dtype in ("bfloat16", "float16", "float32")]
    found = study.main_part(pd.concat(types), "gemm")
    assert set(found["dtype"]) == {"float32"} and found.attrs[load.PART] == "dtype float32"
    noisy = [products(dtype="float32", noisy=True), *types[:2]]
    assert set(study.main_part(pd.concat(noisy), "gemm")["dtype"]) == {"bfloat16"}
    assert study.main_part(products(), "gemm").attrs[load.PART] == ""
    again = study.main_part(found, "gemm")
    assert again.attrs[load.PART] == "dtype float32"


def test_the_main_layer_is_the_one_with_the_most_cells_then_the_largest() -> None:
    frame = made.lstm_frame((256, 512))
    largest = study.main_layer(frame)
    assert largest is not None and set(largest["hidden_size"]) == {512}
    fewer = study.main_layer(frame.drop(frame.index[frame["hidden_size"] == 512][:3]))
    assert fewer is not None and set(fewer["hidden_size"]) == {256}
    assert study.main_layer(None) is None
    assert [name for name, _ in study.layers(frame)] == ["LSTM 256 → 256, 35 steps", "LSTM 512 → 512, 35 steps"]


def test_only_failed_layers_are_still_drawn_with_their_reason() -> None:
    from analysis.figures import measured as measured_figures

    frame = pd.DataFrame([made.row(LstmCell(), "unsupported", made.NO_COMPILER)])
    drawn = measured_figures.layer_figure(frame)
    assert any(made.NO_COMPILER in text.get_text().replace("\n", " ") for text in drawn.texts)


def test_every_committed_sweep_is_read_or_the_one_named(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    monkeypatch.setattr(study, "REFERENCE", folder.parent)
    (folder.parent / "nothing").mkdir()
    monkeypatch.delenv("BENCH_RESULTS", raising=False)
    assert [found.name for found in study.read_reference()] == ["smoke"]
    assert load.REFERENCE != study.REFERENCE
    made.write(tmp_path / "other", "gemm", made.gemm_frame(backends=("native",)))
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path / "other"))
    assert [found.name for found in study.read_reference()] == ["other"]
