"""Cells whose target empties the whole matrix (4 blocks at 0.9) break no figure, table or sentence.

None says inf or nan. 1/(1-rho) has no bound there. Such a point is left out, and the margin, the table or the sentence
says so.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import made
import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import report, stats, tables, theory
from analysis.findings import findings
from analysis.goals import cpu, judge
from analysis.load import TABLES
from analysis.reporting.execution import NOTEBOOKS
from analysis.studying.realised import amdahl, over_seeds
from bench.cells import TrainCell

pytestmark = pytest.mark.examples  # they draw, or read all that is committed

Sweep = Callable[..., Path]
NONSENSE = re.compile(r"∞|\binf\b|\bnan\b|\bnan%|inf×|nan×", re.IGNORECASE)
FOUR_BLOCKS = {"m": 32, "k": 32, "n": 8, "block_size": 16}
LAYER = {"input_size": 32, "hidden_size": 16, "block_size": 16}
ONE_BLOCK = {"embedding_size": 16, "hidden_size": 16, "block_size": 16, "target_sparsity": 0.9}
FULL = (1.0, 1.0, 1.0)


def products(mixed: bool) -> pd.DataFrame:
    empty = [made.ratio_row([80.0] * 3, 1.0, FOUR_BLOCKS | {"backend": one}) for one in ("native", "torch_bsr")]
    gradients = [made.ratio_row([70.0] * 3, 1.0, FOUR_BLOCKS | {"op": op}) for op in ("dsd_t", "sdd")]
    kept = [made.ratio_row([speed] * 3, rho, FOUR_BLOCKS) for rho, speed in ((0.5, 0.9), (0.75, 2.0))]
    return pd.DataFrame([*empty, *gradients, *(kept if mixed else [])])


def layers(mixed: bool) -> pd.DataFrame:
    empty = [made.layer_row([9.0] * 3, 1.0, LAYER | {"baseline": one}) for one in ("torch_lstm", "loop_lstm")]
    kept = [made.layer_row([speed] * 3, rho, LAYER) for rho, speed in ((0.5, 0.9), (0.8, 2.0))]
    return pd.DataFrame([*empty, *(kept if mixed else [])])


def sparse_run(cell: TrainCell, rhos: tuple[float, ...], **values: Any) -> list[dict[str, Any]]:
    """A run on the sparse path whose LSTM layers take a millisecond where nothing is left to multiply."""
    rows = made.sparse_run(cell, rhos, **values)
    for probe in (probe for row in rows for probe in row["probes"]):
        probe["lstm_ms"] = [max(one, 1.0) for one in probe["lstm_ms"]]
    return rows


def runs(mixed: bool) -> pd.DataFrame:
    """Empty from the first step on, masked and on the sparse path.

    mixed: beside dense, a ramp to nothing, and a mild one.
    """
    pre = ONE_BLOCK | {"schedule": "pre"}
    norms = {"block_norms": [{"weight": "weight_hh_l0", "grid_rows": 4, "grid_cols": 1, "norms": [0.0] * 4}]}
    rows = [row for seed in (0, 1) for row in made.run_rows(TrainCell(**pre, seed=seed), 200.0, FULL, **norms)]
    rows += sparse_run(TrainCell(**pre, path="sparse"), FULL, test_ppl=200.0)
    if mixed:
        dense = {"embedding_size": 16, "hidden_size": 16}
        rows += [row for seed in (0, 1) for row in made.run_rows(TrainCell(**dense, seed=seed), 100.0, [0.0] * 3)]
        ramp = ONE_BLOCK | {"schedule": "cubic"}
        rows += made.run_rows(TrainCell(**ramp), 150.0, (0.0, 0.5, 1.0))
        rows += sparse_run(TrainCell(**ramp, path="auto"), (0.0, 0.5, 1.0))
        rows += sparse_run(TrainCell(**ramp | {"target_sparsity": 0.5}, path="auto"), (0.0, 0.5, 0.5))
    return pd.DataFrame(rows)


@pytest.fixture(params=[True, False], ids=["beside others", "nothing else"])
def folder(sweep: Sweep, request: pytest.FixtureRequest) -> Path:
    return sweep(gemm=products(request.param), lstm=layers(request.param), train=runs(request.param))


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of every figure that is stored or shown, which is laid out and not painted."""
    found: list[str] = []

    def savefig(figure: Figure, target: Path | BinaryIO, **options: object) -> None:
        figure.draw_without_rendering()
        found.extend(" ".join(text.get_text().split()) for text in figure.findobj(mpl.text.Text))
        target.write_bytes(b"no picture") if isinstance(target, Path) else target.write(b"no picture")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def nonsense(texts: list[str]) -> list[str]:
    return [text for text in texts if NONSENSE.search(text)]


def test_the_report_says_what_keeps_no_block(folder: Path, words: list[str]) -> None:
    page = report.write_report(folder).read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "\n", re.sub(r"<style>.*?</style>|<img[^>]*>", "", page, flags=re.DOTALL))
    assert nonsense([*plain.splitlines(), *words]) == []
    assert "kept no block" in plain and "no bound: no block kept" in plain
    assert [text for text in words if "No block is kept" in text and "target 1" in text]
    assert [text for text in words if "No prediction, for no block is ever kept" in text]


def test_the_figures_and_tables_of_the_readme(folder: Path, words: list[str], tmp_path: Path) -> None:
    written = report.write_figures(folder, tmp_path / "out")
    texts = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".md"]
    assert nonsense([*words, *(line for text in texts for line in text.splitlines())]) == []


@pytest.mark.parametrize("name", [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))])
def test_every_cell_of_the_notebooks(
    folder: Path, words: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_RESULTS", str(folder))
    shown = executed(NOTEBOOKS / name)
    for figure in (one for one in shown if isinstance(one, Figure)):
        figure.savefig(folder / "picture")
    assert nonsense([*words, *(str(getattr(one, "data", "")) for one in shown if not isinstance(one, Figure))]) == []


def executed(path: Path) -> list[Any]:
    """What the code cells of a notebook show, run in this process."""
    shown: list[Any] = []
    space: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = ast.parse("".join(cell["source"]).removeprefix("%matplotlib inline\n"))
            last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
            exec(compile(code, path.name, "exec"), space)
            space["display"] = shown.append
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), space))
    return [one for one in shown if one is not None]


def said(mixed: bool) -> list[str]:
    found = made.study(gemm=products(mixed), lstm=layers(mixed), train=runs(mixed))
    return findings(*map(found.main, TABLES))


def test_the_findings_quote_what_keeps_a_block() -> None:
    speed, cost, limits, layer = said(True)
    assert "native at block 16 and sparsity 0.75" in speed and "promises 4.00×" in speed
    assert "median of 2 settings" in speed and "sparsity 0.80" in layer
    assert "at 50 % sparsity" in cost and "empties" not in cost
    assert "2 product cells kept no block and 1 layer cell kept no block and 5 training runs kept no block" in limits
    speed, cost, limits, layer = said(False)
    assert "at 90 % sparsity" in cost and "(which empties every one of its blocks)" in cost
    assert speed == (
        "Speed (op dsd): no block-sparse product that keeps a block was timed in 2 product cells: "
        "the target of 2 settings empties the whole weight."
    )
    assert layer.startswith("Layer (baseline torch_lstm): no block-sparse LSTM layer that keeps a block was timed: ")


def test_a_layer_whose_weight_hh_is_empty_has_amdahls_bound() -> None:
    frame = pd.DataFrame([made.layer_row([1.5] * 3, 1.0, LAYER | {"scope": "weight_hh"})])
    [point] = made.part(frame).points.to_dict("records")
    assert point["predicted_speedup"] == pytest.approx(1.5) and point["efficiency"] == pytest.approx(1.0)
    assert "kept no block" not in findings(made.part(frame))[1]


def test_the_tables_say_no_bound() -> None:
    empty, both = (products(mixed).query("op == 'dsd'") for mixed in (False, True))
    ours = [made.part(rows[rows["backend"] == "native"]) for rows in (empty, both)]
    [row] = tables.breakeven_table(ours[0]).to_dict("records")
    assert (row["break-even sparsity"], row["fastest"], row["median efficiency"]) == (
        "unknown", "80.00× (no block kept)", "–",
    )  # fmt: skip
    [row] = tables.breakeven_table(ours[1]).to_dict("records")
    assert (row["fastest"], row["at sparsity"], row["median efficiency"]) == ("2.00×", "0.75", "48%")
    found = tables.main_table(made.part(runs(True)), made.part(both)).set_index(["variant", "target sparsity"])
    assert found.loc[("random pre-pruning", "0.9"), "predicted training speedup"] == "no bound: no block kept"


def test_what_has_no_bound_is_no_efficiency_and_counts_in_no_mean() -> None:
    assert math.isnan(theory.efficiency(3.0, math.inf)) and theory.efficiency(3.0, 4.0) == 0.75
    assert stats.scaled(stats.Estimate(3.0, 2.0, 4.0, 9), math.inf).n == 0
    assert over_seeds(pd.Series([math.inf, 2.0, math.nan])).value == 2.0
    assert amdahl(1.0, math.inf) == math.inf and amdahl(0.5, math.inf) == 2.0


def test_no_goal_is_judged_by_a_cell_that_keeps_no_block() -> None:
    grid = {name: (value,) for name, value in FOUR_BLOCKS.items()} | {"op": ("dsd",)}
    goal = judge.Goal("dsd, measured / theory", "4 blocks", "efficiency", 0.4, (grid,), threads=cpu.THREADS)
    empty, both = (made.study(gemm=products(mixed).assign(threads_used=cpu.THREADS)) for mixed in (False, True))
    assert judge.goals_table([empty], [goal])["verdict"].tolist() == ["not run"]
    assert set(judge.points([both], goal)["target_sparsity"]) == {0.5, 0.75}
