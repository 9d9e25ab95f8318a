"""The answer on a model: computed from tables whose times are known, so that every figure can be worked out by hand."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made
import pandas as pd
import pytest
from rich.console import Console

from analysis import compare, theory
from analysis.commands import advice
from analysis.commands.advising import references, stored, words
from analysis.commands.advising.answers import Answer, answer, as_json
from analysis.loading.schema import BadInputError
from bench.cells import Cell
from bench.commands.advising import tables
from bench.commands.advising.layers import Layer, Setting, in_order_of_worth, of_lstm, of_shape, timing

SPARSITIES = (0.2, 0.5, 0.8, 0.9, 0.95)
Relative = Callable[[Cell], float]  # time of a cell over dense


def linear(cell: Cell) -> float:
    """0.25 and the density: dense at ρ 0.25, 2.22 times as fast at 0.8."""
    return 0.25 + 1.0 - cell.target_sparsity  # type: ignore[attr-defined, no-any-return]


def folder_of(
    place: Path,
    layers: Sequence[Layer],
    relative: Relative = linear,
    without: Sequence[float] = (),
    dense_ms: Relative = lambda _: 1.0,
    passes: Sequence[str] = ("forward",),
    noise: Sequence[float] = (0.98, 0.99, 1.0, 1.01, 1.02),
    **options: Any,
) -> Path:
    """A folder as `python -m bench advise` leaves it; without: sparsities for which the time was up."""
    settings = [Setting(each, 16, sparsity, **options) for each in passes for sparsity in SPARSITIES]
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell in in_order_of_worth(layers, settings):
        if cell.target_sparsity in without:  # type: ignore[attr-defined]
            continue
        same = cell.backend == cell.baseline  # type: ignore[attr-defined]
        ratio, dense = 1.0 if same else relative(cell), dense_ms(cell)
        times = [dense * each for each in noise]
        measured = {
            "sparsity": cell.target_sparsity, "samples_ms": [dense * ratio] * len(times), "noisy": False,  # type: ignore[attr-defined]
            "baseline_samples_ms": times, "time_ms": dense * ratio, "baseline_ms": dense, "attempts": 1,
            "timer": "perf_counter_ns",
        }  # fmt: skip
        rows.setdefault(cell.kind, []).append(made.row(cell, **measured))
    for kind, found in rows.items():
        made.write(place, kind, pd.DataFrame(found))
    place.mkdir(exist_ok=True, parents=True)
    tables.write(place / tables.LAYERS, tables.LAYER_COLUMNS, tables.layer_rows("a model", layers, {}, settings))
    return place


def answered(*given: Any, **options: Any) -> Answer:
    return answer(stored.read(folder_of(*given, **options)))


def test_a_layer_pays_from_where_its_times_cross(tmp_path: Path) -> None:
    (layer,) = answered(tmp_path, [of_shape("64x64", 8)]).layers
    curve = layer.curves["forward", 16]
    assert curve.breakeven.sparsity == pytest.approx(0.25)
    low, high = curve.bounds
    assert low.sparsity is not None and high.sparsity is not None
    assert low.sparsity < 0.25 < high.sparsity and high.sparsity - low.sparsity < 0.1
    point = curve.at(0.8)
    assert point is not None and point.speedup.value == pytest.approx(1 / 0.45)
    assert point.speedup.low < 1 / 0.45 < point.speedup.high and point.how == "measured"


def test_the_answer_agrees_with_the_analysis_of_a_sweep_of_the_same_cells(tmp_path: Path) -> None:
    """Break-even and speedups as `compare` has them of the same table, each within the other's interval."""
    folder = folder_of(tmp_path, [of_shape("64x64", 8)])
    curve = answer(stored.read(folder)).layers[0].curves["forward", 16]
    points = compare.timed_points(compare.measured_speedup(stored.load(folder, "gemm"), "gemm"), "gemm")
    (row,) = compare.breakeven_sparsity(points).to_dict("records")
    assert row["breakeven_sparsity"].sparsity == pytest.approx(curve.breakeven.sparsity, abs=0.01)
    for each in points.to_dict("records"):
        point = curve.points[each["target_sparsity"]]
        assert each["low"] <= point.speedup.value <= each["high"]
        assert point.speedup.low <= each["measured_speedup"] <= point.speedup.high


def test_layers_together_are_amdahls_sum_with_what_stays_dense(tmp_path: Path) -> None:
    """Two layers of 3 ms that can be sparse and one of 4 that cannot: 10 / (6 x 0.45 + 4)."""
    layers = [of_shape("64x64:2", 8), of_shape("50x50", 8)]
    found = answered(tmp_path, layers, dense_ms=lambda cell: 3.0 if cell.m == 64 else 4.0)  # type: ignore[attr-defined]
    (whole,) = found.whole
    point = whole.at(0.8)
    assert point is not None and point.speedup.value == pytest.approx(10 / (6 * 0.45 + 4))
    assert [layer.why_dense.get(16, "")[:30] for layer in found.layers] == ["", "block_size 16 does not divide "]


def test_layers_alike_stand_together_and_the_heaviest_first(tmp_path: Path) -> None:
    layers = [of_shape("32x32", 8), of_lstm("32", 2, 3), of_shape("64x64:2", 8)]
    layers.append(Layer("another", "linear", 64, 64, tokens=8))
    labels = [layer.label for layer in answered(tmp_path, layers).layers]
    assert labels == ["3 × Linear 64 x 64, n 8", "LSTM 32 -> 32, batch 2, 3 steps", "Linear 32 x 32, n 8"]


def test_what_lies_between_is_interpolated_and_says_so_and_nothing_is_beyond(tmp_path: Path) -> None:
    found = answered(tmp_path, [of_shape("64x64", 8)], without=[0.8, 0.95])
    curve = found.whole[0]
    point = curve.at(0.8)
    assert point is not None and point.how == "interpolated" and point.speedup.value == pytest.approx(1 / 0.45)
    assert curve.at(0.95) is None and words.marked(point) == "~2.22×" and words.marked(curve.at(0.95)) == "–"
    assert "(interpolated between measured sparsities)" in words.verdicts(found)[0]


def test_a_speedup_beyond_theory_is_marked(tmp_path: Path) -> None:
    found = answered(tmp_path, [of_shape("64x64", 8)], lambda _: 0.1)
    marks = [words.marked(found.whole[0].at(at)) for at in (0.8, 0.95)]
    assert marks == ["10.00×!", "10.00×"]


def test_a_padded_layer_is_answered_as_it_was_timed(tmp_path: Path) -> None:
    point = answered(tmp_path, [of_shape("60x64", 8)], pad=True).whole[0].at(0.8)
    assert point is not None and point.speedup.value == pytest.approx(1 / 0.45)


def test_verdicts_say_where_it_pays_and_what_was_not_measured(tmp_path: Path) -> None:
    latency, training, memory = words.verdicts(answered(tmp_path, [of_shape("64x64", 8)]))
    assert latency.startswith("Latency: block 16 pays from ρ 0.25 [0.")
    assert "on, and is not worth it below; at 0.8 the layers together are 2.22× [" in latency
    assert training == "Training time: not measured; python -m bench advise with --passes training measures it."
    assert memory == (
        "Memory: at ρ 0.8 in blocks of 16 the weights of these layers take 0.19 of their bytes, 3.1 kB of 16.4 kB in "
        "float32; smaller than dense from ρ 0.02 on."
    )


def test_what_never_pays_and_what_always_does_are_said(tmp_path: Path) -> None:
    never = words.verdicts(answered(tmp_path / "a", [of_shape("64x64", 8)], lambda _: 1.5))[0]
    assert "not worth it: block 16, the best, is slower than dense even at ρ 0.95; at 0.8" in never
    assert "at 0.67× [" in never and never.endswith("the dense speed.")
    doubted = words.verdicts(answered(tmp_path / "d", [of_shape("64x64", 8)], lambda _: 0.99))[0]
    assert "block 16 pays from ρ ≤0.2 [≤0.2, >0.95] on" in doubted
    always = words.verdicts(answered(tmp_path / "b", [of_shape("64x64", 8)], lambda _: 0.5))[0]
    assert "block 16 pays at every sparsity measured, ρ 0.2 to 0.95" in always
    only = words.verdicts(answered(tmp_path / "e", [of_shape("64x64", 8)], without=[0.2, 0.5, 0.9, 0.95]))[0]
    assert "block 16 pays at ρ 0.8, the only sparsity measured" in only
    nothing = words.verdicts(answered(tmp_path / "c", [of_shape("64x64", 8)], without=SPARSITIES))[0]
    assert nothing == "Latency: no cell of it has a time yet: the time was up before; run it again."


def test_training_is_its_three_products_and_its_run_an_integral(tmp_path: Path) -> None:
    found = answered(tmp_path, [of_shape("64x64", 8)], passes=["training"])
    point = found.whole[0].at(0.8)
    assert point is not None and point.speedup.value == pytest.approx(1 / 0.45)
    by = {(each.ramp, each.target): each for each in found.integrals}
    start = by["from the start", 0.8]
    assert start.theory == pytest.approx(5.0) and start.measured.value == pytest.approx(1 / 0.45)
    cubic = by["cubic", 0.8]
    rhos = [theory.ramp("cubic", 0.8, (step + 0.5) / 1000, 0.5) for step in range(1000)]
    assert cubic.theory == pytest.approx(1000 / (1000 - sum(rhos)))
    wanted = 1000 / sum(min(1.0, 1.25 - rho) for rho in rhos)  # the dense path below the break-even
    assert cubic.measured.value == pytest.approx(wanted, rel=0.01)
    assert "over a run pruned to 0.8 on a cubic ramp" in words.verdicts(found)[1]


def test_ramps_are_those_of_the_schedules() -> None:
    from bench.pruning.schedules import SCHEDULES

    for at in (0.0, 0.1, 0.25, 0.4, 0.5, 0.9):
        for name in ("linear", "cubic"):
            wanted = SCHEDULES[name](int(at * 1000), 1000, 0.8, 0.0, 0.5)
            assert theory.ramp(name, 0.8, at, 0.5) == pytest.approx(wanted), (name, at)
    assert theory.ramp("from the start", 0.8, 0.0, 0.5) == 0.8


def with_model(folder: Path, **values: Any) -> Path:
    """The folder with a row of the whole model at ρ 0.8."""
    row = {
        "schema_version": 1, "source": "a model", "passes": "forward", "block_size": 16, "target_sparsity": 0.8,
        "status": "ok", "reason": "", "error": 1e-6, "cosine": 0.9, "dense_bytes": 4000, "sparse_bytes": 1000,
        "noisy": False, "dense_ms": [2.0, 2.02, 1.98, 2.0], "sparse_ms": [1.4, 1.42, 1.4, 1.38],
    }  # fmt: skip
    tables.write(folder / tables.MODEL, tables.MODEL_COLUMNS, [row | values])
    return folder


def test_the_whole_model_is_told_beside_its_layers(tmp_path: Path) -> None:
    found = answer(stored.read(with_model(folder_of(tmp_path, [of_shape("64x64", 8)]))))
    assert found.share["forward"] == pytest.approx(0.5)
    latency = words.verdicts(found)[0]
    assert "at 0.8 the whole model, end to end, is 1.43× [" in latency
    assert "(its layers alone 2.22× [" in latency and "; about 50 % of it, by times of two moments)" in latency
    assert words.output_table(found).iloc[0].tolist()[3:6] == ["ok", "1.0e-06", "0.900"]


def test_what_was_measured_end_to_end_decides(tmp_path: Path) -> None:
    """Its layers gain, and the model does not: as where what calls them takes longer than they do."""
    slow = {"sparse_ms": [4.0, 4.01, 4.02, 3.99]}
    found = answer(stored.read(with_model(folder_of(tmp_path, [of_shape("64x64", 8)]), **slow)))
    assert words.verdicts(found)[0].startswith("Latency: not worth it: block 16, the best, is slower than dense even")


def test_products_of_a_gru_are_no_layer(tmp_path: Path) -> None:
    gru = Layer("g", "gru", 64, 64, batch=2, steps=3)
    found = answered(tmp_path / "a", [gru])
    assert words.verdicts(found)[0].startswith("Latency: of GRU layers the products alone were timed")
    assert found.layers[0].curves["forward", 16].breakeven.sparsity == pytest.approx(0.25) and not found.whole
    both = answered(tmp_path / "b", [gru, of_shape("64x64", 8)])
    assert len(both.whole) == 1 and any("Of a GRU" in line for line in words.caveats(both))


def test_a_model_that_could_not_be_called_says_why(tmp_path: Path) -> None:
    nothing = {"status": "failed", "reason": "no", "error": None, "cosine": None, "dense_ms": None, "sparse_ms": None}
    found = answer(stored.read(with_model(folder_of(tmp_path, [of_shape("64x64", 8)]), **nothing)))
    assert not found.model and words.output_table(found).iloc[0].tolist()[3:5] == ["failed: no", "–"]


def test_what_sparsity_cost_the_reference_sweeps_is_told_with_its_warning() -> None:
    found = references.costs([16, 32])
    by = {(each.sweep, each.sparsity): each for each in found}
    assert {each.block_size for each in found} == {16}
    assert re.fullmatch(r"\+12\.\d % \[\+1\d\.\d, \+1\d\.\d\] \(3 seeds\)", by["wikitext2_words", 0.8].cost)
    assert ("mnist1d_methods", 0.95) in by


@pytest.mark.usefixtures("blank_pictures")
def test_the_screen_fits_80_columns_and_the_page_has_the_verdicts(tmp_path: Path) -> None:
    layers = [of_shape("3072x768:12", 128), of_lstm("640:2", 20, 35), of_shape("50257x768", 128)]
    folder = with_model(folder_of(tmp_path, layers, passes=["forward", "training"]))
    found = answer(stored.read(folder))
    path = advice.write(found, [])
    text = path.read_text(encoding="utf-8")
    assert all(line.split("<")[0] in text for line in words.verdicts(found)) and "What a layer gains" in text
    screen = io.StringIO()
    advice.show(found, [], path, Console(file=screen, width=80, highlight=False, markup=False))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 80 and any(line.startswith("Memory: ") for line in lines)
    assert json.loads(advice.to_json(found, []))["layers"][0]["label"] == found.layers[0].label
    assert any("≤0.2 [" in line or "0.25 [" in line for line in lines)
    assert as_json(found)["share_of_model"]["training"] is None


@pytest.mark.parametrize("wrong", ["missing", "damaged", "foreign", "name"])
def test_a_folder_that_is_none_is_one_line(wrong: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "results" / "advise" / "mine", [of_shape("64x64", 8)])
    if wrong == "name":
        with pytest.raises(BadInputError, match=r"^no advice called 'mune' \(did you mean mine\?\): .*; known: mine$"):
            stored.find("mune", tmp_path / "results")
        assert stored.find("mine", tmp_path / "results") == folder
        return
    path = folder / tables.LAYERS
    if wrong == "missing":
        path.unlink()
    elif wrong == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        tables.write(path, tables.MODEL_COLUMNS, [])
    with pytest.raises(BadInputError) as raised:
        stored.read(folder)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_cells_of_a_layer_are_found_by_their_ids(tmp_path: Path) -> None:
    """Of an LSTM with odd inputs the recurrent weight alone is sparse, and a cell is found in its own table."""
    layer = of_lstm("40x64", 2, 3)
    found = answered(tmp_path, [layer])
    ids = {cell.cell_id for cell, _ in timing(layer, Setting("forward", 16, 0.8)).parts}
    assert ids <= set(found.measured.cells) and found.measured.cells[ids.pop()]["scope"] == "weight_hh"
