"""Classifiers side by side: which dense network a method stands beside, and what is compared to nothing."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis import methods, study
from analysis.figures import methods as figures
from analysis.load import REFERENCE, records
from analysis.study import Part
from analysis.tables import methods_table

PLACE = (8, 0.95)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return study.read(REFERENCE / "digits").main("train").runs


def here(found: pd.DataFrame) -> dict[str, dict]:
    """The methods of one block size and target, by name."""
    at = (found["block_size"] == PLACE[0]) & (found["target_sparsity"] == PLACE[1])
    return {row["variant"]: row for row in records(found[at])}


def test_what_stopped_before_its_target_is_compared_to_none(runs: pd.DataFrame) -> None:
    """It has fewer errors than any that reached it, of a denser network."""
    found = here(methods.methods(runs))
    stopped = found.pop("iterative, stopping at +50 %")
    assert not stopped["reached"] and stopped["sparsity"] < 0.9 and math.isnan(stopped["against_best"].value)
    assert all(row["reached"] for row in found.values())
    best = max(found.values(), key=lambda row: row["accuracy"])
    assert best["against_best"].value == 1.0 and stopped["accuracy"] > best["accuracy"]
    part = Part("", pd.DataFrame())
    part.__dict__["methods"] = methods.methods(runs)
    cell = methods_table(part).set_index("variant").loc["iterative, stopping at +50 %", "target sparsity"]
    assert cell == f"0.95, stopped at {stopped['sparsity']:.2f}"
    drawn = [text.get_text() for text in figures.methods_figure(part).axes[0].get_yticklabels()]
    assert "iterative, stopping at +50 %" not in drawn and best["variant"] in drawn


def test_a_method_stands_beside_the_dense_run_of_its_own_network(runs: pd.DataFrame) -> None:
    """Another network in the same sweep, batch-normalised or wider, is beside none of it."""
    dense = runs[runs["variant"] == "dense"]
    other = dense.assign(batch_norm=True, variant="dense, batch_norm", test_accuracy=1.0)
    wider = dense.assign(hidden_size=512, variant="dense, hidden_size 512", test_accuracy=0.99, stored_weights=1e6)
    found = methods.methods(pd.concat([runs, other, wider], ignore_index=True))
    own = float(dense["test_accuracy"].mean())
    assert all(row["dense_accuracy"] == pytest.approx(own) for row in here(found).values())
    pruned = found[found["target_sparsity"] > 0.0]
    line = figures._dense_by_width(found, pruned)
    assert line["variant"].tolist() == ["dense", "dense, hidden_size 512"]
