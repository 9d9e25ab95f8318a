"""Tables of the AWD-LSTM sweeps: beside the slides and what is published, what the sparsity buys, and the order.

Every cell is text. What was not run says so; nothing is filled in from another sweep or another size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from analysis.awd.answers import (
    SMALL,
    SWEEPS,
    Answer,
    Sweep,
    Sweeps,
    answer,
    order,
    paired_ratio,
    sparse_runs,
)
from analysis.awd.equal import smaller_table, wide_table
from analysis.awd.lines import BEST, DENSE, FOUR, LINES, NOT_RUN, NOTHING, Line, place
from analysis.awd.published import ELEMENTWISE, RECIPE_90, RECIPE_750, SLIDES, Published
from analysis.realised import over_seeds
from analysis.runs import prunes
from analysis.stats import change, factor, mean_interval, plus_minus, times

NOT_MEASURED = "not measured"
PUBLISHED_BESIDE = {DENSE.name: (RECIPE_90, RECIPE_750), BEST.name: (ELEMENTWISE[2],)}
BUYS = (
    "line", "recipe", "setting", "sparsity stored", "cost against dense", "slides' speedup", "training, predicted",
    "training, LSTM layers measured", "training, whole expected (Amdahl)", "training, whole measured",
    "training, Amdahl ceiling", "inference, LSTM layers", "inference, whole",
)  # fmt: skip
SPEEDS = BUYS[-6:]


class Ours(NamedTuple):
    """One line answered by one of our recipes ('same' as the slides, 'best'); sweep and answer are None where it was not run."""

    line: Line
    recipe: str
    sweep: Sweep | None
    answer: Answer | None


def ours(sweeps: Sweeps, line: Line, recipe: str) -> Ours | None:
    """Our answer to a line by one recipe; None where no sweep has that line."""
    role = line.same if recipe == "same" else line.best
    if role is None:
        return None
    found = sweeps.by_role.get(role)
    return Ours(line, recipe, found, None if found is None else answer(found.cells, line))


def beside_table(sweeps: Sweeps) -> pd.DataFrame:
    """Test perplexity of each line: the slides', ours by their recipe in as many epochs, our best recipe's, and what is published.

    Of several settings of a line, the one with the best validation perplexity among those with the most seeds. In the small
    version ours and theirs are different experiments, and the columns say so.
    """
    theirs = ", full size" if sweeps.small else ""
    same, best = "ours, same epochs", "ours, best"
    if sweeps.small:
        same, best = "ours, slides' recipe, small version", "ours, best, small version"
    rows = []
    for line in LINES:
        beside = [f"{one.test_ppl} ({_model(one)})" for one in PUBLISHED_BESIDE.get(line.name, ())]
        rows.append(
            {
                "line": line.name,
                f"slides{theirs}": _slide(line, "test_ppl", ".2f"),
                same: perplexity(ours(sweeps, line, "same")),
                best: perplexity(ours(sweeps, line, "best")),
                f"published{theirs}": "; ".join(beside) or NOTHING,
            }
        )
    return pd.DataFrame(rows)


def _model(one: Published) -> str:
    return one.model + (f", ρ {one.sparsity:.3g}" if one.sparsity else "")


def _slide(line: Line, column: str, form: str) -> str:
    found = SLIDES.loc[SLIDES["variant"] == line.slide, column]
    return NOTHING if found.empty else f"{found.iloc[0]:{form}}"


def perplexity(one: Ours | None) -> str:
    """'78.2 ± 0.9 (3 seeds), block 16, ρ 0.80', with what did not finish; or why there is none."""
    if one is None:
        return NOTHING
    if one.answer is None or (one.answer.runs.empty and not one.answer.failed):
        return NOT_RUN
    failed = ", ".join(f"{count} × {status}" for status, count in Counter(one.answer.failed).items())
    if one.answer.runs.empty:
        return failed
    setting = one.answer.setting
    words = [plus_minus(mean_interval(one.answer.runs["test_ppl"].tolist())), place(setting, one.line.full)]
    words += [f"ρ {one.answer.runs['stored_sparsity'].mean():.2f}"] if prunes(setting) else []
    return ", ".join(word for word in words if word) + (f"; besides {failed}" if failed else "")


def buys_table(sweeps: Sweeps) -> pd.DataFrame:
    """What each line of ours costs and saves: sparsity stored, cost against dense, and speedups of training and inference.

    cost: paired with the seed's dense run of the sweep (of a wider network: the narrower dense one). predicted: the
    gradual-pruning integral over the sparsity achieved. LSTM layers measured: interleaved pairs along the run; whole
    expected: Amdahl's with those pairs and the layers' share of the time; whole measured: runs one after another, so rough;
    ceiling: Amdahl's with the predicted integral. Speedups are over the dense path of a network of the same size.
    """
    rows = []
    for line in LINES:
        if line is DENSE:
            continue
        found = filter(None, (ours(sweeps, line, recipe) for recipe in ("same", "best")))
        rows += [_bought(one) for one in found]
    return pd.DataFrame(rows, columns=list(BUYS))


def _bought(one: Ours) -> list[str]:
    recipe = "slides'" if one.recipe == "same" else "best"
    claimed = _slide(one.line, "claimed_speedup", ".1f") if one.recipe == "same" else NOTHING
    claimed = claimed if claimed == NOTHING else f"{claimed}×"
    start = [one.line.name, recipe]
    if one.sweep is None or one.answer is None or one.answer.runs.empty:
        return [*start, NOTHING, *[perplexity(one)] * 2, claimed, *[NOT_RUN] * 7]
    done, setting = one.answer.runs, one.answer.setting
    cost = change(paired_ratio(done, answer(one.sweep.cells, DENSE).runs))
    start += [place(setting, True) or NOTHING, f"{done['stored_sparsity'].mean():.3f}", cost, claimed]
    if not prunes(setting):
        return [*start, *[NOTHING] * 7]
    return [*start, factor(done["predicted_training"].mean()), *_speeds(sparse_runs(one.sweep, one.answer))]


def _speeds(part: pd.DataFrame) -> Iterator[str]:
    """The columns SPEEDS of the runs on the sparse path; masked runs multiply at dense speed and measure nothing."""
    if part.empty:
        yield from [NOT_MEASURED] * len(SPEEDS)
        return
    whole = part["against_masked"].where(part["against_masked"].notna(), part["against_dense"])
    for found in (part["measured"], part["allowed"], whole, part["ceiling"], part["inference_lstm"], part["inference"]):
        estimate = over_seeds(found)
        yield NOT_MEASURED if estimate.n == 0 else times(estimate)


def order_table(sweeps: Sweeps) -> pd.DataFrame:
    """The slides' order, dense < block lasso < gradual < random pre-pruning: every neighbouring pair, paired over the seeds.

    Each interval holds at 95 % by itself. 'refuted' says that the pair stands the other way round here.
    """
    names = (
        "slides' better line",
        "slides' worse line",
        "block size",
        "perplexity of the worse over the better",
        "order",
    )
    rows = [
        (pair.better.name, pair.worse.name, str(pair.block_size), change(pair.ratio), pair.verdict)
        for pair in order(sweeps.by_role.get("paper"))
    ]
    rows = rows or [(better.name, worse.name, NOTHING, NOTHING, NOT_RUN) for better, worse in pairwise(FOUR)]
    return pd.DataFrame(rows, columns=list(names))


def notes(sweeps: Sweeps) -> list[str]:
    """What the reader must know of these sweeps: which were not run, and that the small version is another experiment."""
    size = SMALL if sweeps.small else ""
    missing = [f"wikitext2_{role}{size}" for role in SWEEPS if role not in sweeps.by_role]
    lines = [f"Not run: {', '.join(missing)}."] if missing else []
    lines += [f"{note[0].upper()}{note[1:]}." for note in sweeps.notes]
    for role, found in sweeps.by_role.items():
        first = found.train.iloc[0]
        tokens = f"{first['train_tokens']:,} tokens" if first["train_tokens"] else "the whole text"
        layers = f"{first['num_layers']} LSTM layers"
        lines.append(
            f"wikitext2_{role}{size}: {first['epochs']} epochs of {tokens}, {layers}, embedding {first['embedding_size']}, on {first['device_name']}."
        )
    if sweeps.small:
        lines.append(
            "The small version keeps the vocabulary and has smaller layers, less text and fewer epochs: another experiment. "
            "Its values compare with each other, never with the slides' or any published ones."
        )
    return lines


def every_table(sweeps: Sweeps) -> list[tuple[str, pd.DataFrame]]:
    """(caption, table) of everything there is to say of the sweeps at one size, for a report."""
    return [
        ("Test perplexity: the slides, ours, and what is published.", beside_table(sweeps)),
        (
            "What each line of ours costs and saves. The cost is paired with the dense run of the same seed; speedups are over "
            "the dense path of the same network; whole training runs ran one after another, so they are rough.",
            buys_table(sweeps),
        ),
        ("The order of the slides' rows, same recipe and epochs, paired over the seeds.", order_table(sweeps)),
        (
            "Pruned networks beside smaller dense ones that store as many LSTM weights, paired over the seeds.",
            smaller_table(sweeps),
        ),
        ("Wider for sparser: networks that store as many LSTM weights as the narrow dense one.", wide_table(sweeps)),
    ]
