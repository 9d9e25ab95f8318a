"""Networks of equally many stored LSTM weights: pruned beside smaller dense, wider pruned beside narrow dense ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from analysis.awd.answers import SETTING, UNTRAINED, Sweep, Sweeps, answer, one_path, paired_ratios, perplexity
from analysis.awd.lines import DENSE, NOT_RUN, NOTHING, Row, is_plain, place
from analysis.load import records
from analysis.runs import EQUAL, prunes, trained
from analysis.stats import Comparison, change, judged, plus_minus

SMALLER = (
    "recipe", "network", "sparsity stored", "test ppl", "smaller dense", "its test ppl",
    "perplexity over the smaller one's", "better",
)  # fmt: skip
WIDE = ("network", "stored LSTM weights", "test ppl", "cost against the narrow dense model")


class Equal(NamedTuple):
    """The runs of a pruned setting, those of the smaller dense network of as many stored weights, and their ratio."""

    pruned: pd.DataFrame
    smaller: pd.DataFrame
    ratio: Comparison

    @property
    def better(self) -> str:
        """'pruned' or 'smaller dense', corrected for the other pairs, 'equal' within MARGIN, else 'undecided'.

        Before that 'did not train', of either.
        """
        if self.ratio.n == 0:
            return NOT_RUN
        if not (trained(self.pruned) and trained(self.smaller)):
            return UNTRAINED
        return {1: "smaller dense", 0: "equal" if self.ratio.is_equal else "undecided", -1: "pruned"}[self.ratio.side]


def against_smaller(found: Sweep) -> list[Equal]:
    """Every finished pruned setting at full width that has a dense network of as many stored LSTM weights beside it.

    As many: at its target sparsity, within EQUAL. By sparsity, then by mean test perplexity. All are one question.
    """
    parts = [(_first(part), part) for part in settings(found.cells)]
    smaller = [(setting, part) for setting, part in parts if is_plain(setting) and setting["width"] < 1.0]
    pruned = [(setting, part) for setting, part in parts if prunes(setting) and setting["width"] == 1.0]
    pairs = [
        (part, dense)
        for setting, part in sorted(pruned, key=lambda one: (one[0]["target_sparsity"], one[1]["test_ppl"].mean()))
        for other, dense in smaller
        if abs(other["kept"] - setting["kept"]) <= EQUAL * setting["kept"]
    ]
    return [Equal(*pair, ratio) for pair, ratio in zip(pairs, paired_ratios(found, pairs), strict=True)]


def settings(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """The finished runs, `one_path` of each, apart by setting."""
    done = one_path(cells[cells["finished"].astype(bool)])
    return [part for _, part in done.groupby([*SETTING], sort=False)]


def _first(part: pd.DataFrame) -> Row:
    return records(part.iloc[:1])[0]


def smaller_table(sweeps: Sweeps) -> pd.DataFrame:
    """Pruned networks of full width against smaller dense ones, by recipe; each interval holds at 95 % by itself.

    Which is better is decided over all pairs of a recipe (`stats.compared`). What a pruned network must beat to be
    worth having: a dense one of the same stored weights needs no kernel, no ramp.
    """
    rows = []
    for recipe, role in (("slides'", "paper"), ("best", "best")):
        if role not in sweeps.by_role:
            rows.append((recipe, *[NOT_RUN] * (len(SMALLER) - 1)))
            continue
        found = sweeps.by_role[role]
        rows += [(recipe, *_beside(found, equal)) for equal in against_smaller(found)]
    return pd.DataFrame(rows, columns=list(SMALLER))


def _beside(found: Sweep, equal: Equal) -> Iterator[str]:
    yield place(_first(equal.pruned), True)
    yield f"{equal.pruned['stored_sparsity'].mean():.3f}"
    yield plus_minus(perplexity(found, equal.pruned))
    yield place(_first(equal.smaller), True)
    yield plus_minus(perplexity(found, equal.smaller))
    yield change(equal.ratio) if equal.ratio.n else NOT_RUN
    yield equal.better


def wide_table(sweeps: Sweeps) -> pd.DataFrame:
    """Wider for sparser: every setting of the sweep 'wide', its stored weights, its cost against the narrow dense.

    All costs are one question.
    """
    if "wide" not in sweeps.by_role:
        return pd.DataFrame([[DENSE.name, NOTHING, NOT_RUN, NOT_RUN]], columns=list(WIDE))
    wide = sweeps.by_role["wide"]
    dense = answer(wide.cells, DENSE).runs
    parts = settings(wide.cells.sort_values(["width", "kept"]))
    rows = []
    for part, ratio in zip(parts, paired_ratios(wide, [(part, dense) for part in parts]), strict=True):
        setting = _first(part)
        pruned = prunes(setting)
        what = place(setting, True) + (f", ρ {part['stored_sparsity'].mean():.2f}" if pruned else ", dense")
        size = f"{part['stored_weights'].mean() / 1e6:.2f} M, {_share(part, dense)}"
        cost = NOTHING if not pruned and setting["width"] == 1.0 else judged(ratio) if trained(part) else UNTRAINED
        rows.append((what, size, plus_minus(perplexity(wide, part)), cost))
    return pd.DataFrame(rows, columns=list(WIDE))


def _share(part: pd.DataFrame, dense: pd.DataFrame) -> str:
    """'0.97× dense', or that there is no dense run."""
    return (
        "no dense run"
        if dense.empty
        else f"{part['stored_weights'].mean() / dense['stored_weights'].mean():.2f}× dense"
    )
