"""Classifiers side by side: which dense network a method stands beside, and what is compared to nothing."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis import study
from analysis.figures import methods as figures
from analysis.load import REFERENCE, records
from analysis.stats import Estimate
from analysis.study import Part
from analysis.studying import methods
from analysis.tables import methods_table

PLACE = (8, 0.95)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """Without the narrower dense networks, as those of one width alone."""
    found = study.read(REFERENCE / "digits").main("train").runs
    return found[found["hidden_size"] == 128].replace({"variant": {"dense, hidden_size 128": "dense"}})


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


def test_what_is_worth_it_is_of_one_network_and_nothing_is_beyond_the_axis(runs: pd.DataFrame) -> None:
    """Models of another way to prune, and of a wider dense network than theirs, are no points of the same lines."""
    part = Part("", pd.DataFrame())
    measured = methods.narrowings(runs)
    far = Estimate(0.3, 0.2, 0.4, 3)
    other = measured.assign(network="another", block_size=32).iloc[:1]
    measured.loc[0:0, "narrowed"] = pd.Series([far])
    part.__dict__["narrowings"] = pd.concat([measured, other], ignore_index=True)
    wider = methods.methods(runs).query("variant == 'dense'").assign(hidden_size=512, stored_weights=1e6)
    part.__dict__["methods"] = pd.concat([methods.methods(runs), wider], ignore_index=True)
    part.__dict__["smaller"] = methods.smaller(runs)
    drawn = figures.worth_figure(part)
    right = drawn.axes[1]
    assert "block 32" not in [text.get_text() for legend in drawn.legends for text in legend.get_texts()]
    stars = [line for line in right.lines if line.get_marker() == "*"]
    assert [len(line.get_xdata()) for line in stars] == [1]
    assert right.get_xlim()[0] < far.low
    assert figures.removal_figure(part).axes[1].get_xlim()[0] < far.low


def test_without_finished_models_there_is_a_sentence(runs: pd.DataFrame) -> None:
    part = Part("", pd.DataFrame())
    part.__dict__.update(
        methods=methods.methods(runs), narrowings=methods.narrowings(runs.iloc[:0]), smaller=methods.smaller(runs)
    )
    (text,) = figures.worth_figure(part).axes[0].texts
    assert "no finished classifier was measured" in text.get_text()


def test_a_narrower_dense_network_is_drawn_where_it_was_timed_beside_pruned_ones(runs: pd.DataFrame) -> None:
    """The same network of the width that was timed, never another network, nor a width that was not."""
    dense = runs[runs["variant"] == "dense"]
    pruned = runs["inference_ms"].notna()
    timed = runs.assign(equal_units=pd.Series(47, index=runs.index).where(pruned))
    timed["inference_equal_dense_ms"] = pd.Series([[3.0, 3.3]] * len(runs), index=runs.index).where(pruned)
    timed["inference_equal_ms"] = pd.Series([[1.0, 1.1]] * len(runs), index=runs.index).where(pruned)
    narrow = [dense.assign(hidden_size=size, variant=f"dense, {size}", stored_weights=1e3 * size) for size in (47, 48)]
    other = dense.assign(hidden_size=47, batch_norm=True, variant="dense, batch_norm")
    every = pd.concat([timed, *narrow, other], ignore_index=True)
    found = methods.smaller(every)
    assert set(found["hidden_size"]) == {47} and all(one.value == pytest.approx(3.0) for one in found["speedup"])
    part = Part("", pd.DataFrame())
    part.__dict__.update(methods=methods.methods(every), narrowings=methods.narrowings(every), smaller=found)
    right = figures.worth_figure(part).axes[1]
    (stars,) = [line for line in right.lines if line.get_marker() == "*"]
    assert sorted(stars.get_xdata()) == pytest.approx([1.0, 3.0])
    assert set(methods.narrowings(every)["equal_units"]) == {47.0}
