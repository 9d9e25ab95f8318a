"""The goals of AWD-LSTM: every verdict there is, and that the small version never answers for the full size."""

from __future__ import annotations

import math
from typing import Any

import made
import pandas as pd
import pytest

from analysis.awd import answers as awd
from analysis.awd.answers import Sweeps
from analysis.awd.goals import GOALS, goals_table, statements, verdict
from analysis.stats import Estimate
from bench.cells import TrainCell

NOTHING, NOTHING_SMALL = Sweeps(False, {}, []), Sweeps(True, {}, [])
CUBIC = {"schedule": "cubic", "target_sparsity": 0.8, "lasso": "proximal"}


def table(role: str, *runs: list[dict[str, Any]], small: bool = False) -> Sweeps:
    return Sweeps(
        small, {role: awd.sweep(made.study(train=pd.DataFrame([row for rows in runs for row in rows])), role)}, []
    )


def run(ppls: tuple[float, ...], values: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, Any]]:
    rows = []
    for seed, ppl in enumerate(ppls):
        cell = TrainCell(seed=seed, **settings)
        rows += made.run_rows(cell, ppl, [cell.target_sparsity] * 2, **values or {})
    return rows


def said(sweeps: Sweeps, what: str) -> tuple[str, str]:
    found = goals_table(sweeps, NOTHING_SMALL)
    row = found[found["what"].str.startswith(what) & ~found["where"].str.contains("small")].iloc[0]
    return row["measured"], row["verdict"]


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(65.0, 64.0, 66.0, 3), "reached"),
        (Estimate(65.0, 64.0, 67.0, 3), "undecided"),
        (Estimate(68.0, 67.0, 69.0, 3), "missed"),
        (Estimate(65.0, 64.0, 66.0, 2), "incomplete"),
        (Estimate(65.0, math.nan, math.nan, 1), "incomplete"),
        (Estimate(68.0, math.nan, math.nan, 1), "missed"),
        (Estimate(math.nan, math.nan, math.nan, 0), "not run"),
    ],
)
def test_the_interval_decides(estimate: Estimate, expected: str) -> None:
    assert verdict(estimate, 66.5) == expected


def test_nothing_run_is_nothing_reached() -> None:
    found = goals_table(NOTHING, NOTHING_SMALL)
    assert set(found["verdict"]) == {"not run"} and len(found) == len(GOALS) + 2
    assert not set(found["measured"]) - {"–"}


def test_perplexities_are_judged_over_seeds() -> None:
    sweeps = table("best", run((66.0, 66.1, 66.2)), run((71.0, 71.2, 71.4), **CUBIC, block_size=32))
    assert said(sweeps, "dense AWD-LSTM") == ("66.1 [65.8, 66.4]", "reached")
    assert said(sweeps, "block 16 or 32")[1] == "reached"
    other = table("best", run((66.0, 66.1, 66.2)), run((71.0, 71.2, 71.4), **CUBIC, block_size=64))
    assert said(other, "block 16 or 32")[1] == "not run"
    diverged = [row | {"status": "diverged", "reason": made.DIVERGED} for row in run((1.0,))]
    assert said(table("best", diverged), "dense AWD-LSTM")[1] == "failed"


def test_wider_is_judged_against_the_narrow_dense_network() -> None:
    wide = {"hidden_size": 368, "target_sparsity": 0.8} | {name: CUBIC[name] for name in ("lasso", "schedule")}
    dense, rich = run((100.0, 110.0, 120.0), hidden_size=128), run((50.0, 55.0, 60.0), hidden_size=368)
    better = table("wide", dense, rich, run((95.0, 105.0, 114.0), **wide))
    assert said(better, "wider")[1] == "reached"
    assert said(table("wide", dense, rich, run((103.0, 114.0, 123.0), **wide)), "wider")[1] == "missed"
    assert said(table("wide", rich, run((95.0, 105.0, 114.0), **wide)), "wider")[1] == "not run"


@pytest.mark.parametrize(("lasso", "expected"), [(105.0, "reproduced"), (90.0, "refuted")])
def test_one_pair_the_other_way_round_refutes_the_order(lasso: float, expected: str) -> None:
    each = [(100.0 + add, 101.0 + add, 102.0 + add) for add in (0.0, lasso - 100.0, 20.0, 40.0)]
    kinds: list[dict[str, Any]] = [
        {}, {"lasso": "subgradient"}, CUBIC | {"schedule": "linear"}, CUBIC | {"schedule": "pre"},
    ]  # fmt: skip
    sweeps = table("paper", *(run(ppls, **kind) for ppls, kind in zip(each, kinds, strict=True)))
    assert said(sweeps, "order")[1] == expected
    assert len(statements(sweeps)) == 1 and statements(sweeps)[0].startswith("Order of the slides' rows at block 16: ")


def test_an_epoch_counts_on_the_gpu_the_goal_names_and_alone() -> None:
    h200 = {"device_name": "NVIDIA H200", "train_seconds": 5.0}
    assert said(table("best", run((66.0,), h200)), "one dense epoch")[1] == "reached"
    assert said(table("best", run((66.0,), h200 | {"train_seconds": 7.0})), "one dense epoch")[1] == "missed"
    assert said(table("best", run((66.0,), h200 | {"workers": 2})), "one dense epoch")[1] == "not run"
    assert said(table("best", run((66.0,))), "one dense epoch")[1] == "not run"


def test_the_small_version_speaks_for_itself_only() -> None:
    small = table("wide", run((100.0, 110.0, 120.0), hidden_size=128), small=True)
    found = goals_table(NOTHING, small)
    assert set(found[~found["where"].str.contains("small")]["verdict"]) == {"not run"}
    assert found["where"].str.contains("another experiment").sum() == 2
