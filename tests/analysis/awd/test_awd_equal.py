"""Networks of as many stored weights: which are compared, and which of the two is better."""

from __future__ import annotations

import math
from functools import cache

import made
import made_awd
import pandas as pd
import pytest

from analysis.awd import answers as awd
from analysis.awd.answers import Sweep, Sweeps
from analysis.awd.equal import Equal, against_smaller, smaller_table
from analysis.runs import lstm_weights
from analysis.stats import Comparison


@cache
def best() -> Sweep:
    return sweep(made_awd.table(made_awd.BEST))


def sweep(table: pd.DataFrame) -> Sweep:
    return awd.sweep(made.study(train=table), "best")


def test_pruned_networks_stand_beside_those_that_store_as_much() -> None:
    found = list(against_smaller(best()))
    assert {part.pruned["target_sparsity"].iloc[0] for part in found} == {0.5, 0.8, 0.9}
    for each in found:
        large, small = (part.iloc[0].to_dict() for part in (each.pruned, each.smaller))
        assert large["hidden_size"] == 256 > small["hidden_size"] and small["lasso"] == "none"
        ratio = lstm_weights(small, 0.0) / lstm_weights(large, large["target_sparsity"])
        assert ratio == pytest.approx(1.0, abs=0.05)
        assert each.smaller["seed"].tolist() == [0, 1, 2]


def test_every_setting_stands_there_once() -> None:
    found = [each.pruned for each in against_smaller(best())]
    assert not any(part["seed"].duplicated().any() for part in found)
    named = pd.concat([part.iloc[:1] for part in found])
    assert not named.duplicated([*awd.SETTING]).any()
    assert set(named["criterion"]) == {"l2", "random"} and set(named["allocation"]) == {"uniform", "erk"}


def test_the_better_one_is_decided_of_a_single_seed_too_by_the_scatter_of_the_others() -> None:
    """In the made-up results chosen blocks are worth four times as much."""
    said = []
    for each in against_smaller(best()):
        setting = each.pruned.iloc[0]
        chosen = setting["criterion"] == "l2" and setting["schedule"] != "pre"
        said.append((each.ratio.n, chosen, each.better))
    assert {better for n, chosen, better in said if n == 3 and chosen} == {"pruned"}
    assert {(chosen, better) for n, chosen, better in said if n == 1} == {(True, "pruned")}


@pytest.mark.parametrize(
    ("value", "p", "p_equal", "n", "better"),
    [
        (0.95, 0.01, 0.9, 3, "pruned"),
        (1.05, 0.01, 0.9, 3, "smaller dense"),
        (0.95, 0.06, 0.9, 3, "undecided"),
        (0.99, 0.06, 0.04, 3, "equal"),
        (0.95, math.nan, math.nan, 1, "undecided"),
        (math.nan, math.nan, math.nan, 0, "not run"),
    ],
)
def test_better(value: float, p: float, p_equal: float, n: int, better: str) -> None:
    nothing = pd.DataFrame()
    assert Equal(nothing, nothing, Comparison(value, 0.9, 1.1, n, p, p_equal)).better == better


def test_without_a_smaller_network_or_a_common_seed_there_is_nothing_to_compare() -> None:
    table = made_awd.table(made_awd.BEST)
    assert list(against_smaller(sweep(table[table["hidden_size"] == 256]))) == []
    apart = table[(table["hidden_size"] == 256) | (table["seed"] == 0)]
    apart = apart[(apart["hidden_size"] < 256) | (apart["seed"] > 0) | (apart["target_sparsity"] == 0)]
    found = list(against_smaller(sweep(apart)))
    assert found and {each.better for each in found} == {"not run"}
    assert "not run" in smaller_table(Sweeps(True, {"best": sweep(apart)}, [])).to_string()


def test_both_recipes_stand_in_the_table_and_the_missing_one_says_so() -> None:
    table = smaller_table(Sweeps(True, {"best": best()}, []))
    assert table["recipe"].tolist()[0] == "slides'" and set(table.iloc[0][1:]) == {"not run"}
    rows = table[table["recipe"] == "best"]
    erk = rows[rows["network"].str.contains("ERK")]
    assert len(erk) == 2 and not erk["network"].str.contains("ERK.*ERK").any()
    assert set(rows["smaller dense"]) == {"162 units", "79 units", "37 units"}
