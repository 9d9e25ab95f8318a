"""Tables of the AWD-LSTM sweeps: beside the slides and what is published, what the sparsity buys, and the order.

Every cell is text. What was not run says so; nothing is filled in from another sweep or another size.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from analysis.accuracy.endings import averaging_line, falling_line
from analysis.awd import answers
from analysis.awd.answers import SMALL, SWEEPS, UNTRAINED, Answer, Sweep, Sweeps, answer, order, paired_ratios
from analysis.awd.equal import smaller_table, wide_table
from analysis.awd.lines import BEST, DENSE, FOUR, LINES, NOT_RUN, NOTHING, Line, Row, place
from analysis.awd.published import ELEMENTWISE, RECIPE_90, RECIPE_750, SLIDES, Published
from analysis.load import records
from analysis.runs import PPL, best_replicated, prunes, trained, without_path
from analysis.stats import MARGIN, Comparison, change, factor, judged, plus_minus, times
from analysis.study import Part, joined
from analysis.tables import product_speedup

NOT_MEASURED = "not measured"
PUBLISHED_BESIDE = {DENSE.name: (RECIPE_90, RECIPE_750), BEST.name: (ELEMENTWISE[2],)}
BUYS = (
    "line", "recipe", "setting", "sparsity stored", "cost against dense", "slides' speedup", "training, predicted",
    "training, LSTM layers measured", "training, whole expected (Amdahl)", "training, whole measured",
    "training, Amdahl ceiling", "inference, LSTM layers", "inference, whole",
)  # fmt: skip
SPEEDS = BUYS[-6:]
ORDER = ("slides' better line", "slides' worse line", "block size", "perplexity of the worse over the better", "order")

MEANS = "Ours: mean ± half a 95 % t-interval over the seeds, the scatter pooled over the settings of the sweep."
JUDGED = (
    "Intervals are 95 % of t with the residual pooled over the settings of the sweep, each by itself; what is decided, "
    f"or equal within {100 * MARGIN:g} %, is so over all rows of one sweep here together, at 5 % (Holm)."
)


class Ours(NamedTuple):
    """One line answered by one of our recipes ('same' as the slides, 'best'); None: its sweep was not run."""

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
    """Test perplexity of each line: the slides', ours by their recipe and epochs, our best, and what is published.

    Of several settings of a line, the one with the best validation perplexity among those with the most seeds. In the
    small version ours and theirs are different experiments, and the columns say so.
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
    found = NOTHING if one.sweep is None else plus_minus(answers.perplexity(one.sweep, one.answer.runs))
    words = [found, place(setting, one.line.full)]
    words += [f"ρ {one.answer.runs['stored_sparsity'].mean():.2f}"] if prunes(setting) else []
    return ", ".join(word for word in words if word) + (f"; besides {failed}" if failed else "")


def buys_table(sweeps: Sweeps) -> pd.DataFrame:
    """What each line of ours costs and saves: sparsity stored, cost against dense, speedups of training and inference.

    cost: paired with the seed's dense run of the sweep (of a wider network: the narrower dense one), the lines of one
    sweep one question. predicted: the
    gradual-pruning integral over the sparsity achieved. LSTM layers measured: interleaved pairs along the run; whole
    expected: Amdahl's with those pairs and the layers' share of the time; whole measured: runs one after another, so
    rough; ceiling: Amdahl's with the predicted integral. Speedups are over the dense path of a network of its size.
    """
    found: list[Ours] = []
    for line in LINES:
        if line is DENSE:
            continue
        found += filter(None, (ours(sweeps, line, recipe) for recipe in ("same", "best")))
    costs = _costs([one for one in found if one.sweep is not None])
    return pd.DataFrame([_bought(one, costs.get(id(one))) for one in found], columns=list(BUYS))


def _costs(found: list[Ours]) -> dict[int, Comparison]:
    """The comparison of each line's runs with the dense ones of its sweep, by the `id` of the line's answer."""
    costs: dict[int, Comparison] = {}
    for sweep in {id(one.sweep): one.sweep for one in found}.values():
        mine = [one for one in found if one.sweep is sweep and one.answer is not None and not one.answer.runs.empty]
        if sweep is not None and mine:
            dense = answer(sweep.cells, DENSE).runs
            ratios = paired_ratios(sweep, [(one.answer.runs, dense) for one in mine if one.answer is not None])
            costs |= {id(one): ratio for one, ratio in zip(mine, ratios, strict=True)}
    return costs


def _bought(one: Ours, cost: Comparison | None) -> list[str]:
    recipe = "slides'" if one.recipe == "same" else "best"
    claimed = _slide(one.line, "claimed_speedup", ".1f") if one.recipe == "same" else NOTHING
    claimed = claimed if claimed == NOTHING else f"{claimed}×"
    start = [one.line.name, recipe]
    if one.sweep is None or one.answer is None or cost is None:
        return [*start, NOTHING, *[perplexity(one)] * 2, claimed, *[NOT_RUN] * 7]
    done, setting = one.answer.runs, one.answer.setting
    paid = judged(cost) if trained(done) else UNTRAINED
    start += [place(setting, True) or NOTHING, f"{done['stored_sparsity'].mean():.3f}", paid, claimed]
    if not prunes(setting):
        return [*start, *[NOTHING] * 7]
    gains = answers.gains(one.sweep, one.answer)  # of the sparse path: masked runs multiply at dense speed
    speeds = [times(found) if found.n else NOT_MEASURED for found in gains] or [NOT_MEASURED] * len(SPEEDS)
    return [*start, factor(done["predicted_training"].mean()), *speeds]


def order_table(sweeps: Sweeps) -> pd.DataFrame:
    """The slides' order, dense < block lasso < gradual < random pre-pruning: every neighbouring pair, paired by seed.

    Each interval holds at 95 % by itself; the order is decided over all pairs (`stats.compared`). 'refuted' says that
    the pair stands the other way round here, 'equal' that the two differ by less than the margin.
    """
    rows = [
        (pair.better.name, pair.worse.name, str(pair.block_size), change(pair.ratio), pair.verdict)
        for pair in order(sweeps.by_role.get("paper"))
    ]
    rows = rows or [(better.name, worse.name, NOTHING, NOTHING, NOT_RUN) for better, worse in pairwise(FOUR)]
    return pd.DataFrame(rows, columns=list(ORDER))


def notes(sweeps: Sweeps) -> list[str]:
    """What the reader must know of these sweeps: which were not run, that the small version is another experiment."""
    size = SMALL if sweeps.small else ""
    missing = [f"wikitext2_{role}{size}" for role in SWEEPS if role not in sweeps.by_role]
    lines = [f"Not run: {', '.join(missing)}."] if missing else []
    lines += [f"{note[0].upper()}{note[1:]}." for note in sweeps.notes]
    for role, found in sweeps.by_role.items():
        lines += [f"wikitext2_{role}{size}: {line[0].lower()}{line[1:]}" for line in endings(found.train)]
        first = found.train.rows.iloc[0]
        tokens = f"{first['train_tokens']:,} tokens" if first["train_tokens"] else "the whole text"
        lines.append(
            f"wikitext2_{role}{size}: {first['epochs']} epochs of {tokens}, {first['num_layers']} LSTM layers, "
            f"embedding {first['embedding_size']}, on {first['device_name']}."
        )
    if sweeps.small:
        lines.append(
            "The small version keeps the vocabulary and has smaller layers, less text and fewer epochs: another "
            "experiment. Its values compare with each other, never with the slides' or any published ones."
        )
    return lines


def endings(train: Part) -> list[str]:
    """How far the runs of a part were still falling, and from which epoch on NT-ASGD averaged those it trained."""
    final = train.runs.assign(variant=train.runs["variant"].map(without_path))
    if final.empty:
        return []
    averaging = averaging_line(train.rows, final)
    return [falling_line(final, train.unit), *([averaging] if averaging else [])]


def every_table(sweeps: Sweeps) -> list[tuple[str, pd.DataFrame]]:
    """(caption, table) of everything there is to say of the sweeps at one size, for a report."""
    return [
        (f"Test perplexity: the slides, ours, and what is published. {MEANS}", beside_table(sweeps)),
        (
            f"What each line of ours costs and saves. The cost is paired with the dense run of the same seed. {JUDGED} "
            "Speedups are over the dense path of the same network, with 95 % t-intervals over their own seeds; whole "
            "training runs ran one after another, so they are rough.",
            buys_table(sweeps),
        ),
        (f"The order of the slides' rows, same recipe and epochs, paired by seed. {JUDGED}", order_table(sweeps)),
        (
            f"Pruned networks beside smaller dense ones that store as many LSTM weights, paired by seed. {JUDGED}",
            smaller_table(sweeps),
        ),
        (
            f"Wider for sparser: networks that store as many LSTM weights as the narrow dense one. {JUDGED}",
            wide_table(sweeps),
        ),
    ]


def slides_table(train: Part, gemm: Part) -> pd.DataFrame:
    """The slides' four rows beside ours of any sweep, at the block size with the best validation perplexity."""
    found = records(joined(train, gemm))
    rows = []
    for slide in records(SLIDES):
        ours = _best(found, slide)
        rows.append(
            {
                "slides": slide["variant"],
                "slides' train / val / test ppl": " / ".join(f"{slide[name]:.2f}" for name in PPL),
                "slides' speedup": f"{slide['claimed_speedup']:.1f}×",
                "ours": NOTHING if ours is None else _name(ours),
                **{f"our {name[:-4]} ppl": NOTHING if ours is None else plus_minus(ours[name]) for name in PPL},
                "our cost against dense": NOTHING if ours is None else _cost(ours),
                "our predicted training speedup": NOTHING if ours is None else factor(ours["predicted_training"]),
                "our measured product speedup": NOTHING if ours is None else product_speedup(ours),
            }
        )
    return pd.DataFrame(rows)


def _best(found: list[Row], slide: Row) -> Row | None:
    """Our setting for a row of the slides: of those with the most seeds the one with the best validation perplexity."""
    names = dict.fromkeys((slide["variant"], slide["variant"].replace("linear", "cubic")))
    for name in names:
        mine = [
            row for row in found if row["target_sparsity"] == slide["sparsity"] and without_path(row["variant"]) == name
        ]
        if mine:
            return best_replicated(mine)
    return None


def _cost(row: Row) -> str:
    return judged(row["ppl_ratio"]) if row["trained"] else UNTRAINED


def _name(row: Row) -> str:
    """'block lasso + gradual (cubic), block 16'."""
    return str(row["variant"]) if pd.isna(row["block_size"]) else f"{row['variant']}, block {row['block_size']}"
