"""The AWD-LSTM sweeps beside the slides' table: which runs answer which of its lines, what they buy, and their order.

Three sweeps at two sizes: `wikitext2_paper` (the slides' recipe and epochs), `_best` (ours), `_wide` (as many stored
weights as dense), and `_small` versions for a CPU, which are other experiments and are never shown among the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.awd.lines import DENSE, FOUR, GRADUAL, PRE, Line, Row
from analysis.load import REFERENCE, records, reference_folder
from analysis.loading.schema import BadInputError
from analysis.runs import lstm_weights, threshold, trained
from analysis.stats import Comparison, Estimate
from analysis.study import Part, Study, not_run, read
from analysis.studying.realised import over_seeds

SWEEPS = ("paper", "best", "wide")
SMALL = "_small"
SETTING = (
    "hidden_size", "lasso", "lasso_strength", "schedule", "criterion", "curvature_probes",
    "allocation", "scope", "block_size",
    "target_sparsity", "threshold", "prune_begin", "prune_end", "prune_every", "scaled_start",
    "initial_sparsity", "regrow", "regrow_share",
    "prune_rounds", "rewind", "rewind_to", "stop_rise",
)  # fmt: skip
UNTRAINED = "did not train"
GAINS = ("measured", "allowed", "whole", "ceiling", "inference_lstm", "inference")


class Sweep(NamedTuple):
    """One sweep: the part that stands for its training table, and its `cells`."""

    train: Part
    cells: pd.DataFrame


class Sweeps(NamedTuple):
    """The sweeps at one size by role ('paper', 'best', 'wide'), those that were run. notes: what is damaged."""

    small: bool
    by_role: dict[str, Sweep]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """The sweeps that were run, by name."""
        return [f"wikitext2_{role}{SMALL if self.small else ''}" for role in self.by_role]

    def train(self, role: str) -> Part:
        """The training runs of one sweep; without rows where it was not run."""
        return self.by_role[role].train if role in self.by_role else not_run("train")


def sweep_role(name: str) -> tuple[str, bool] | None:
    """(role, whether small) of a sweep by its name; None for any other sweep."""
    plain = name.removesuffix(SMALL)
    role = plain.removeprefix("wikitext2_")
    return (role, name != plain) if role in SWEEPS and plain != role else None


def read_sweeps(small: bool = False, parent: Path | None = None, known: Study | None = None) -> Sweeps:
    """The sweeps that were run, of the committed ones, or the one that BENCH_RESULTS names; parent: or those there.

    known: one that need not be read again. A table that is damaged is not read, and noted: one bad file hides no other.
    """
    named = os.environ.get("BENCH_RESULTS") if parent is None else None
    found, notes = {}, []
    for role in SWEEPS:
        name = f"wikitext2_{role}{SMALL if small else ''}"
        folder = reference_folder() if named else (parent or REFERENCE) / name
        if folder.resolve().name != name or not (folder / "train.parquet").is_file():
            continue
        try:
            one = known if known and known.folder.resolve() == folder.resolve() else read(folder)
        except BadInputError as error:
            notes.append(f"not read: {error}".replace(str(folder), name))
            continue
        if "train" in one.tables:
            found[role] = sweep(one, role)
    return Sweeps(small, found, notes)


def sweep(found: Study, role: str) -> Sweep:
    """What a study holds of one sweep: its largest comparable part."""
    train = found.main("train")
    return Sweep(train, cells(train, role))


def cells(part: Part, role: str) -> pd.DataFrame:
    """One row per training cell: `runs` of those that finished, the last row of the others.

    Adds finished, kept (LSTM weights at the target sparsity, or at what a threshold gave, over those of the dense model
    that the sweep is about) and width (hidden size over that model's). That model is the widest one of the sweep, of
    'wide' the narrowest.
    """
    final, train = part.runs, part.rows
    others = train[~train["cell_id"].isin(final["cell_id"])].drop_duplicates("cell_id", keep="last")
    found = pd.DataFrame([*records(final.assign(finished=True)), *records(others.assign(finished=False))])
    base = found["hidden_size"].min() if role == "wide" else found["hidden_size"].max()
    weights = [
        lstm_weights(row, _sparsity(row)) / lstm_weights(row | {"hidden_size": base}, 0.0) for row in records(found)
    ]
    return found.assign(kept=weights, width=found["hidden_size"] / base)


def _sparsity(row: Row) -> float:
    """What a run is to reach; of a threshold what it reached, NaN where it did not finish."""
    return float(row["stored_sparsity"]) if threshold(row) else float(row["target_sparsity"])


class Answer(NamedTuple):
    """The runs of one setting that answer a line, one a seed, and the statuses of those that did not finish."""

    runs: pd.DataFrame
    failed: list[str]

    @property
    def setting(self) -> Row:
        return records(self.runs)[0]


def answer(found: pd.DataFrame, line: Line, blocks: tuple[int, ...] = ()) -> Answer:
    """The setting of `cells` that answers a line: of those with the most seeds the one with the best validation.

    The test perplexity has no say in it. blocks: only these block sizes. A seed counts once: see `one_path`.
    """
    mine = found[[line.test(row) and (not blocks or row["block_size"] in blocks) for row in records(found)]]
    mine = one_path(mine)
    done = mine[mine["finished"].astype(bool)]
    if done.empty:
        return Answer(done, mine["status"].tolist())
    groups = [part.drop_duplicates("seed").sort_values("seed") for _, part in done.groupby([*SETTING], sort=False)]
    best = min(groups, key=lambda part: (-len(part), part["val_ppl"].mean()))
    return Answer(best, mine.loc[_alike(mine, best) & ~mine["finished"].astype(bool), "status"].tolist())


def one_path(found: pd.DataFrame) -> pd.DataFrame:
    """`cells` without those on the sparse path whose setting has finished masked runs: both compute the same."""
    masked = found["path"] == "dense"
    done = masked & found["finished"].astype(bool)
    has_masked = done.groupby([found[name] for name in SETTING], dropna=False).transform("any")
    return found[masked | ~has_masked.astype(bool)]


def _alike(found: pd.DataFrame, runs_of_one: pd.DataFrame) -> pd.Series:
    """Which cells have the setting of some runs, whatever their seed and path."""
    return (found[[*SETTING]] == runs_of_one[[*SETTING]].iloc[0]).all(axis=1)


def gains(found: Sweep, chosen: Answer) -> list[Estimate]:
    """GAINS of `realised` over the runs with an answer's setting on the sparse path; empty where there are none."""
    realised = found.train.realised
    same = found.cells.loc[_alike(found.cells, chosen.runs), "cell_id"]
    mine = realised[realised["cell_id"].isin(same)]
    return [over_seeds(mine[name]) for name in GAINS] if len(mine) else []


def perplexity(found: Sweep, runs: pd.DataFrame) -> Estimate:
    """Test perplexity of the runs of one setting of a sweep: mean and interval of `Pool.level`."""
    return found.train.pool.level(runs)


def paired_ratios(found: Sweep, family: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> list[Comparison]:
    """`Pool.compared` test perplexities of a sweep's pairs (worse, better), one question: ratios of each seed's runs.

    A setting beside itself is no comparison.
    """
    pairs = [worse.merge(better, on="seed", suffixes=("_worse", "_better")) for worse, better in family]
    others = [pair[pair["cell_id_worse"] != pair["cell_id_better"]] for pair in pairs]
    pool = found.train.pool
    told = [[pool.unit.of(pair[f"test_ppl_{side}"]) for side in ("worse", "better")] for pair in others]
    ratios = [(worse / better).tolist() for worse, better in told]
    return pool.compared(ratios, [all(map(trained, pair)) for pair in family])


class Pair(NamedTuple):
    """Two neighbouring lines of the slides' table at one block size, the ratio worse / better, and what it says."""

    better: Line
    worse: Line
    block_size: int
    ratio: Comparison
    failed: bool = False
    trained: bool = True

    @property
    def verdict(self) -> str:
        """'reproduced' or 'refuted', corrected for the other pairs, 'equal' within MARGIN, else 'undecided'.

        Without a pair of seeds: 'failed' where runs of either did not finish, else 'not run'. 'did not train' where
        runs of either learned nothing (`runs.runs`), whatever their perplexities say.
        """
        if self.ratio.n == 0:
            return "failed" if self.failed else "not run"
        if not self.trained:
            return UNTRAINED
        tied = "equal" if self.ratio.is_equal else "undecided"
        return {1: "reproduced", 0: tied, -1: "refuted"}[self.ratio.side]


def order(found: Sweep | None) -> list[Pair]:
    """The neighbours in the slides' order, same recipe and epochs, at every block size that a pruned line has.

    All are one question. Dense runs have no block size and stand beside each. found: the sweep 'paper'; None where it
    was not run.
    """
    if found is None:
        return []
    sizes = sorted({row["block_size"] for row in records(found.cells) if GRADUAL.test(row) or PRE.test(row)})
    pairs = []
    for size in sizes:
        answers = [(line, answer(found.cells, line, () if line is DENSE else (size,))) for line in FOUR]
        pairs += [(int(size), better, worse) for better, worse in pairwise(answers)]
    ratios = paired_ratios(found, [(worse.runs, better.runs) for _, (_, better), (_, worse) in pairs])
    return [
        Pair(better, worse, size, ratio, bool(one.failed or other.failed), _trained(one) and _trained(other))
        for (size, (better, one), (worse, other)), ratio in zip(pairs, ratios, strict=True)
    ]


def _trained(one: Answer) -> bool:
    """Whether every run of an answer did; one without runs has none that did not."""
    return one.runs.empty or bool(one.runs["trained"].astype(bool).all())


def four_lines(found: Sweep | None) -> Part:
    """The slides' four lines, `one_path` of each, without the sweep's other sizes; no rows where it was not run."""
    if found is None:
        return not_run("train")
    kept = [row["cell_id"] for row in records(one_path(found.cells)) if any(line.test(row) for line in FOUR)]
    return found.train.only(found.train.rows[found.train.rows["cell_id"].isin(kept)])
