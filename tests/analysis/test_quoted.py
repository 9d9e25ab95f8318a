"""README and results/reference/README.md quote what results/reference holds: each figure is looked up.

A noisy one says so. Where a figure comes from is written down here: TIMED for the rows of the table of speedups,
TRAINED for those of the table of perplexities, SAID for sentences. A new figure with × belongs into one of them, or the
last test is red. A row that quotes a noisy cell has 'noisy' in that cell or in its first one; a sentence that rests on
one has the word in its bullet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from analysis import stats, study, theory
from analysis.awd import answers, equal
from analysis.awd.lines import FOUR
from analysis.goals import cpu, judge
from analysis.load import REFERENCE, records
from analysis.runs import pooled
from analysis.stats import Comparison, Estimate, change
from analysis.study import Part, Study
from analysis.studying import methods, realised

pytestmark = pytest.mark.examples  # they draw, or read all that is committed

TEXTS = (Path(__file__).parents[2] / "README.md", REFERENCE / "README.md")
NUMBER = re.compile(r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?")
SPEEDUP = re.compile(r"\d+(?:\.\d+)?×")


class Quoted(NamedTuple):
    """A figure as the results hold it, and whether it rests on a noisy row."""

    value: float
    noisy: bool = False


Settings = dict[str, Any]
STEP = {"op": "dsd", "m": 4608, "k": 1152, "backend": "native", "baseline": "dense"}
LAYER = {
    "input_size": 1152, "hidden_size": 1152, "batch_size": 20, "passes": "forward_backward", "baseline": "torch_lstm",
    "scope": "all", "backend": "native",
}  # fmt: skip
# a row of README's table -> sweep and settings; a column is a sparsity
TIMED: dict[str, tuple[str, Settings] | None] = {
    "theory, 1/(1−ρ)": None,
    "product W 4608 × 1152, n = 20, block 16": ("gemm", {**STEP, "n": 20, "block_size": 16}),
    "the same, n = 80": ("gemm", {**STEP, "n": 80, "block_size": 16}),
    "the same, n = 80, dense weight packed beforehand too": (
        "gemm", {**STEP, "n": 80, "block_size": 16, "baseline": "dense_packed"},
    ),
    "LSTM layer 1152 → 1152, batch 20, forward + backward, against `torch.nn.LSTM`, block 16": (
        "lstm", {**LAYER, "block_size": 16},
    ),
    "the same, block 32": ("lstm", {**LAYER, "block_size": 32}),
}  # fmt: skip
LASSO = "block lasso + gradual (cubic)"
PLAIN = {"lasso": "none", "schedule": "none"}
LASSO_LINE, GRADUAL_LINE = (line.name for line in FOUR[1:3])
TRAINED: dict[str, tuple[str, int | None]] = {  # a row of the table of wikitext2_small -> variant and block size
    "dense": ("dense", None),
    "gradual (cubic), block 16, masked": ("gradual (cubic)", 16),
    "the same, trained on the sparse path": ("gradual (cubic), auto path", 16),
    "block lasso, no pruning": ("block lasso", 16),
    "block lasso + gradual (cubic), block 8": (LASSO, 8),
    "block lasso + gradual (cubic), block 16": (LASSO, 16),
    "block lasso + gradual (cubic), block 32": (LASSO, 32),
    "random pre-pruning, block 16": ("random pre-pruning", 16),
}


@cache
def sweep_of(name: str) -> Study:
    """A committed sweep; what is computed of it once is there for every sentence."""
    return study.read(REFERENCE / name)


@cache
def committed() -> list[Study]:
    return study.read_reference()


def results() -> str:
    """What the two texts say between the markers of their results."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        found.append(text[text.index("<!-- results:start -->") : text.index("<!-- results:end -->")])
    return "\n\n".join(found)


def rows_of(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with `first`, the head first."""
    lines = results().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first}"))
    table = takewhile(lambda line: line.startswith("|"), lines[start:])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def figures_of(words: str) -> list[tuple[float, float]]:
    """(value, half a unit of its last digit) of every number in `words`."""
    found = []
    for text in NUMBER.findall(words):
        digits = text.replace("−", "-").replace(",", "")
        found.append((float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2])))
    return found


def differing(words: str, expected: Sequence[Quoted]) -> str:
    """What is wrong with a quotation: other figures than expected, or a noisy one that does not say so.

    Empty where all is well.
    """
    found = figures_of(words)
    values = [one.value for one in expected]
    held = len(found) == len(values) and all(
        abs(quoted - value) <= 1.0001 * rounding for (quoted, rounding), value in zip(found, values, strict=True)
    )
    return "" if held else f"{words!r} quotes {[one for one, _ in found]}, the results hold {values}"


def silent(words: str, expected: Sequence[Quoted]) -> bool:
    """Whether a quotation rests on a noisy row and does not say so."""
    return any(one.noisy for one in expected) and "noisy" not in words


def faults(label: str, words: str, expected: Sequence[Quoted]) -> list[str]:
    """What is wrong with a cell of a table: other figures, a noisy row not called so, or a quiet one that is."""
    found = [differing(words, expected)]
    found += ["is from a noisy row and does not say so"] if silent(label + words, expected) else []
    quiet = not any(one.noisy for one in expected)
    found += ["is called noisy and is not"] if "noisy" in label + words and quiet else []
    return [f"{label}: {words!r}: {fault}" for fault in found if fault]


@cache
def timed(sweep: str) -> pd.DataFrame:
    """Every point of a timed sweep, each comparable part by itself."""
    return pd.concat([part.points for part in sweep_of(sweep).parts(sweep)], ignore_index=True)


def cells(sweep: str, **settings: Any) -> pd.DataFrame:
    """The points of a sweep with some settings; a setting may have several values. Never none."""
    found = timed(sweep)
    for name, wanted in settings.items():
        found = found[found[name].isin(wanted if isinstance(wanted, tuple) else (wanted,))]
    assert len(found), f"{sweep} holds no cell with {settings}"
    return found


def one(sweep: str, **settings: Any) -> Quoted:
    [row] = cells(sweep, **settings).to_dict("records")
    return Quoted(row["measured_speedup"], bool(row["noisy"]))


def ends(found: pd.DataFrame, column: str = "measured_speedup") -> list[Quoted]:
    """The lowest and the highest of some points."""
    picked = (found.loc[found[column].idxmin()], found.loc[found[column].idxmax()])
    return [Quoted(float(row[column]), bool(row["noisy"])) for row in picked]


def expected(label: str, target: float) -> Quoted:
    """What a cell of the table of speedups should quote."""
    source = TIMED[label]
    return Quoted(theory.speedup(target)) if source is None else one(source[0], target_sparsity=target, **source[1])


def test_the_table_of_speedups() -> None:
    (_, *heads), *rows = rows_of("against dense")
    targets = [float(head.removeprefix("ρ ")) for head in heads]
    wrong = []
    for label, *quoted in rows:
        plain = label.removesuffix(" (noisy)")
        assert plain in TIMED, f"TIMED does not say where the row {plain!r} comes from"
        for target, words in zip(targets, quoted, strict=True):
            if words:
                wrong += faults(f"{label}, ρ {target:g}", words, [expected(plain, target)])
    assert wrong == [], "\n".join(wrong)
    assert [row[0].removesuffix(" (noisy)") for row in rows] == list(TIMED)


@cache
def trained() -> pd.DataFrame:
    found = sweep_of("wikitext2_small")
    joined = study.joined(found.main("train"), found.main("gemm"))
    return joined[joined["target_sparsity"].isin((0.0, 0.8))]


def test_the_table_of_perplexities() -> None:
    _, *rows = rows_of("80 % sparsity on every LSTM matrix | test perplexity")
    wrong = []
    for label, ppl, cost, product in rows:
        assert label in TRAINED, f"TRAINED does not say where the row {label!r} comes from"
        variant, size = TRAINED[label]
        found = trained()[trained()["variant"] == variant]
        [row] = found[found["block_size"].isna() if size is None else found["block_size"] == size].to_dict("records")
        ratio, noisy = row["ppl_ratio"], bool(row["product_noisy"])
        per_cent = [Quoted(100.0 * (part - 1.0)) for part in ratio[:3]] if ratio.n and row["trained"] else []
        speeds = [Quoted(row["product_speedup"].value, noisy)]
        speeds += [Quoted(theory.speedup(row["stored_sparsity"]))] if row["target_sparsity"] else []
        half = [Quoted((row["test_ppl"].high - row["test_ppl"].low) / 2.0)] if row["trained"] else []
        wrong += faults(f"{label}, perplexity", ppl, [Quoted(row["test_ppl"].value), *half])
        wrong += [f"{label}: does not say whether it trained"] if (cost == "did not train") == row["trained"] else []
        wrong += faults(f"{label}, cost", cost, per_cent)
        wrong += faults(f"{label}, product", product, speeds)
    assert wrong == [], "\n".join(wrong)


WORDS: dict[str, dict[str, Any]] = {  # a row of the table of wikitext2_words -> settings of its runs
    "dense": {},
    "block lasso, nothing pruned": {"lasso": True},
    "gradual (cubic) to 80 %, block 16, on the sparse path": {"schedule": "cubic"},
    "block lasso + gradual (linear) to 80 %, block 16, on the sparse path": {"schedule": "linear", "lasso": True},
    "block lasso + random pre-pruning of 80 %, block 16, on the sparse path": {"schedule": "pre", "lasso": True},
    "random pre-pruning of 80 %, block 16, on the sparse path": {"schedule": "pre"},
    "dense with as many stored LSTM weights (104 units)": {"units": 104},
    "gradual (cubic) to 90 %, block 16, on the sparse path": {"schedule": "cubic", "sparsity": 0.9},
}


@cache
def words() -> study.Part:
    return sweep_of("wikitext2_words").main("train")


def words_runs(
    schedule: str = "none", lasso: bool = False, units: int = 256, sparsity: float = 0.8, block: int = 16
) -> pd.DataFrame:
    """The runs of one setting of the sweep of words that trained, by seed. sparsity, block: where it is pruned."""
    runs = words().runs
    runs = runs[(runs["schedule"] == schedule) & ((runs["lasso"] != "none") == lasso) & runs["trained"]]
    runs = runs[runs["target_sparsity"] == (0.0 if schedule == "none" else sparsity)]
    return runs[(runs["hidden_size"] == units) & (runs["block_size"].fillna(block) == block)].sort_values("seed")


def words_row(**setting: Any) -> dict[str, Any]:
    """What the table of the sweep says of that setting; the settings are those of `words_runs`."""
    names = ["variant", "block_size", "target_sparsity"]
    [own] = words_runs(**setting)[names].drop_duplicates().to_dict("records")
    found = words().replicates
    for name, value in own.items():
        found = found[found[name].isna() | (found[name] == value)]  # no block size where there are no blocks
    [row] = found.to_dict("records")
    return row  # type: ignore[no-any-return]


def per_cent(ratio: Sequence[float]) -> list[Quoted]:
    """Above dense, with its interval."""
    return [Quoted(100.0 * (part - 1.0)) for part in ratio[:3]]


def words_ratios(one: Settings, other: Settings) -> list[float]:
    """Perplexity of a setting over that of another, by seed."""
    own, against = (words_runs(**each).set_index("seed")["test_ppl"] for each in (one, other))
    return (own / against).dropna().tolist()  # type: ignore[no-any-return]


def words_compared(*pairs: tuple[Settings, Settings]) -> list[Comparison]:
    """A setting over another, of all seeds together, decided for all pairs together."""
    return pooled(words().runs).compared([words_ratios(*pair) for pair in pairs], [True] * len(pairs))


def above(one: Settings, other: Settings) -> list[Quoted]:
    """By how many per cent a setting is decided to have more perplexity than another."""
    [found] = words_compared((one, other))
    assert found.side > 0, "decided: higher"
    return per_cent((found.value, found.low, found.high))


def below(one: Settings, other: Settings) -> list[Quoted]:
    """By how many per cent it is decided to have less."""
    [found] = words_compared((one, other))
    assert found.side < 0, "decided: lower"
    return [Quoted(100.0 * (1.0 - part)) for part in (found.value, found.high, found.low)]


GRADUAL_WORDS, RANDOM_WORDS, SMALLER_WORDS = {"schedule": "cubic"}, {"schedule": "pre"}, {"units": 104}
SLIDES: list[Settings] = [{}, *({"schedule": schedule, "lasso": True} for schedule in ("none", "linear", "pre"))]


def words_order() -> list[Quoted]:
    """What the slides' second and third row have more than the row before each; of the three pairs one is decided."""
    pairs = words_compared(*zip(SLIDES[1:], SLIDES, strict=False))
    assert [pair.side for pair in pairs] == [0, 1, 0]
    return [quoted for pair in pairs[1:] for quoted in per_cent((pair.value, pair.low, pair.high))]


def words_saved() -> list[float]:
    """By how many per cent the pruned network of each seed has less perplexity than the smaller dense one."""
    return [100.0 * (1.0 - share) for share in words_ratios(GRADUAL_WORDS, SMALLER_WORDS)]


def test_the_table_of_networks_that_have_learned() -> None:
    _, *rows = rows_of("LSTM of 256 units, words of WikiText-2")
    wrong = []
    for label, ppl, seeds, cost in rows:
        row, units = words_row(**WORDS[label]), WORDS[label].get("units", 256)
        held, against = row["test_ppl"], per_cent(row["ppl_ratio"]) if row["ppl_ratio"].n else []
        if units != 256:  # another network: by its geometric mean
            against = [Quoted(100.0 * (float(np.exp(np.log(words_ratios(WORDS[label], {})).mean())) - 1.0))]
        wrong += faults(f"{label}, perplexity", ppl, [Quoted(held.value), Quoted((held.high - held.low) / 2.0)])
        wrong += faults(f"{label}, seeds", seeds, [Quoted(held.n)])
        wrong += faults(f"{label}, cost", cost, against)
    assert wrong == [], "\n".join(wrong)
    assert [row[0] for row in rows] == list(WORDS)


AWD: dict[str, tuple[tuple[str, dict[str, Any]] | None, tuple[str, dict[str, Any]] | None]] = {
    # a row of the table of the AWD-LSTM sweeps -> (sweep, settings) by the slides' recipe, by ours
    "dense": (("paper", {"hidden_size": 256, **PLAIN}), ("best", {"hidden_size": 256, **PLAIN})),
    "dense with as many stored LSTM weights (79 units)": (
        ("paper", {"hidden_size": 79, **PLAIN}), ("best", {"hidden_size": 79, **PLAIN}),
    ),
    "block lasso, no pruning, block 16": (("paper", {"variant": "block lasso", "block_size": 16}), None),
    "the same, block 32": (("paper", {"variant": "block lasso", "block_size": 32}), None),
    "gradual, no lasso, block 16": (None, ("best", {"variant": "gradual (cubic), auto path"})),
    "block lasso + gradual, block 32; ours block 16, ERK": (
        ("paper", {"variant": "block lasso + gradual (linear), auto path", "block_size": 32}),
        ("best", {"variant": f"{LASSO}, ERK, auto path", "block_size": 16}),
    ),
    "block lasso + random pre-pruning, block 32; ours no lasso, block 16": (
        ("paper", {"variant": "block lasso + random pre-pruning, auto path", "block_size": 32}),
        ("best", {"variant": "random pre-pruning, auto path"}),
    ),
    "wider: 640 units with the stored weights of 256 dense, block 32": (
        None, ("wide", {"hidden_size": 640, "block_size": 32, "target_sparsity": 0.8}),
    ),
    "wider: 944 units, 90 %, with the stored weights of 256 dense, block 16": (
        None, ("wide", {"hidden_size": 944, "target_sparsity": 0.9}),
    ),
}  # fmt: skip


@cache
def awd_sweeps() -> answers.Sweeps:
    return answers.read_sweeps(small=True)


def awd_runs(role: str, settings: dict[str, Any]) -> pd.DataFrame:
    found = awd_sweeps().by_role[role].cells
    for name, wanted in settings.items():
        found = found[found[name] == wanted]
    assert found["seed"].tolist() == [0, 1, 2], settings
    return found


def test_the_table_of_the_awd_lstm_sweeps() -> None:
    _, *rows = rows_of("80 % sparsity on every LSTM matrix | slides' recipe")
    wrong = []
    for label, *quoted in rows:
        for source, (ppl, cost) in zip(AWD[label], (quoted[:2], quoted[2:]), strict=True):
            if source is None:
                wrong += [f"{label}: quotes what was not run"] if ppl or cost else []
                continue
            role, settings = source
            runs, dense = awd_runs(role, settings), awd_runs(role, {"hidden_size": 256, **PLAIN})
            found = answers.perplexity(awd_sweeps().by_role[role], runs)
            [ratio] = answers.paired_ratios(awd_sweeps().by_role[role], [(runs, dense)])
            trained = bool(runs["trained"].all())
            half = [Quoted((found.high - found.low) / 2.0)] if trained else []
            wrong += faults(f"{label}, perplexity", ppl, [Quoted(found.value), *half])
            per_cent = [Quoted(100.0 * (part - 1.0)) for part in ratio[:3]] if ratio.n and trained else []
            wrong += faults(f"{label}, cost", cost, per_cent)
            wrong += [f"{label}: does not say whether it trained"] if (cost == "did not train") == trained else []
    assert wrong == [], "\n".join(wrong)
    assert [row[0] for row in rows] == list(AWD)


def test_the_verdicts_about_the_slides_order_and_equal_weights() -> None:
    """What README says in words was decided so, for all pairs together."""
    sweeps = awd_sweeps().by_role
    said = {(pair.worse.name, pair.block_size): pair.verdict for pair in answers.order(sweeps["paper"])}
    assert (
        said[LASSO_LINE, 16] == said[GRADUAL_LINE, 32] == "reproduced" and list(said.values()).count("reproduced") == 2
    )
    assert said[GRADUAL_LINE, 16] == said[LASSO_LINE, 32] == "undecided"
    assert list(said.values()).count("did not train") == 2
    better = [(one.pruned["target_sparsity"].iloc[0], one.better) for one in equal.against_smaller(sweeps["best"])]
    by_sparsity = {rho: [verdict for at, verdict in better if at == rho] for rho, _ in better}
    assert by_sparsity[0.5] == ["undecided"] and by_sparsity[0.9] == ["pruned"] and 0.95 not in by_sparsity
    counted = {verdict: by_sparsity[0.8].count(verdict) for verdict in set(by_sparsity[0.8])}
    assert counted == {"pruned": 1, "undecided": 7, "smaller dense": 2}  # one of the undecided draws its blocks
    theirs = {one.better for one in equal.against_smaller(sweeps["paper"])}
    assert theirs == {"smaller dense", "did not train"}


def of(estimate: Estimate) -> list[Quoted]:
    """A value and its interval."""
    return [Quoted(part) for part in estimate[:3]]


@cache
def training(sweep: str) -> pd.DataFrame:
    return sweep_of(sweep).main("train").realised


def setting(sweep: str, **settings: Any) -> pd.DataFrame:
    found = training(sweep)
    for name, wanted in settings.items():
        found = found[found[name] == wanted]
    assert len(found), f"{sweep} realised nothing with {settings}"
    return found


def gains_of(sweep: str, **settings: Any) -> dict[str, Any]:
    """The one row of `realised.gains` with some settings."""
    found = sweep_of(sweep).main("train").gains
    for name, wanted in settings.items():
        found = found[found[name] == wanted]
    [row] = found.to_dict("records")
    return row


def mean_of(sweep: str, name: str, **settings: Any) -> Quoted:
    return Quoted(float(setting(sweep, **settings)[name].astype(float).mean()))


def seeds_of(sweep: str, name: str, **settings: Any) -> Estimate:
    return realised.over_seeds(setting(sweep, **settings)[name])


def layer_at_zero() -> list[Quoted]:
    return ends(cells("lstm", **LAYER | {"batch_size": (20, 80)}, target_sparsity=0.0))


def rivals() -> list[Quoted]:
    """The least and the greatest factor by which torch's and scipy's products are slower than ours."""
    sweeps = committed()
    found = [judge.points(sweeps, goal) for goal in cpu.GOALS if goal.kind == "rival"]
    every = pd.concat([part.rename(columns={"value": "factor"}) for part in found], ignore_index=True)
    return ends(every, "factor")


INTEGRAL, SMALL, BEST, WIDE = "training_integral", "wikitext2_small", "wikitext2_best_small", "wikitext2_wide_small"
AUTO = "gradual (cubic), auto path"
CHARS, HIDDEN = "chars_timing", {"hidden_size": 512, "target_sparsity": 0.8}
STEPS = {name: value for name, value in STEP.items() if name != "baseline"} | {"baseline": "dense", "n": (20, 80)}
SQUARE = {"op": "dsd", "m": 4096, "k": 4096, "n": 2048, "backend": "native", "baseline": "dense"}


def called(where: str, what: str = "dsd by the public operator", how: str = "median") -> Quoted:
    """Of the one goal with these words, the median or the worst of what was measured, noisy if anything of it is."""
    [goal] = [one for one in cpu.GOALS if one.what.startswith(what) and one.where.startswith(where)]
    values = judge.points([sweep_of("operators")], goal)
    return Quoted(float(getattr(values["value"], {"median": "median", "worst": "min"}[how])()), values["noisy"].any())


def layers_called(*where: str) -> list[Quoted]:
    return [called(f"LSTM {each}", "LSTM layer") for each in where]


def words_so_far() -> list[Quoted]:
    """Cells that are finished; test and validation perplexity of the dense ones by seed, of the best n-gram in test."""
    return [
        Quoted(len(words().runs)),
        *(Quoted(value) for name in ("test_ppl", "val_ppl") for value in words_runs()[name]),
        Quoted(words().ladder[-1].test_ppl),
    ]


def words_by_seed(side: int = 1, **setting: Any) -> list[Quoted]:
    """Test perplexity of a setting's runs by seed, and what they cost against dense, in per cent.

    side: -1 where it is decided that it is lower, 1 higher, 0 where it is not decided.
    """
    ratio = words_row(**setting)["ppl_ratio"]
    assert ratio.side == side, "decided or not, as is said"
    return [*map(Quoted, words_runs(**setting)["test_ppl"]), *per_cent(ratio)]


def words_lasso_alone() -> list[Quoted]:
    """Its mean test perplexity, and what it costs."""
    return [Quoted(words_row(lasso=True)["test_ppl"].value), *words_by_seed(lasso=True, side=0)[-3:]]


def narrower(sweep: str) -> dict[int, Estimate]:
    """Inference of narrower dense classifiers over that of the large one, by their units."""
    return {int(row["hidden_size"]): row["speedup"] for row in records(sweep_of(sweep).main("train").smaller)}


def pruned_classifier(target: float, form: str) -> Estimate:
    """Inference of those of MNIST-1D in blocks of 16 over dense; form: as pruned, or narrowed."""
    found = sweep_of("mnist1d_methods").main("train").narrowings
    [one] = found.loc[(found["block_size"] == 16) & (found["target_sparsity"] == target), form]
    return one  # type: ignore[no-any-return]


SAID: dict[str, Callable[[], list[Quoted]]] = {  # a sentence, with {} for each figure -> the figures
    "45 and 15 units, infer {}× and {}× as fast as it": lambda: [
        Quoted(narrower("digits")[units].value) for units in (45, 15)
    ],
    "right) infer {}×, {}× and {}× as fast as the large one, the pruned ones in blocks of 16 {}×, {}× and {}×, and {}× "
    "at 95 % without their dead units": lambda: [
        *(Quoted(narrower("mnist1d_methods")[units].value) for units in (188, 134, 98)),
        *(Quoted(pruned_classifier(target, "inference").value) for target in (0.5, 0.8, 0.95)),
        Quoted(pruned_classifier(0.95, "narrowed").value),
    ],
    "Products reach theory ({} to {} of it at these shapes": lambda: ends(
        cells("gemm", **STEPS), "efficiency"
    ),
    "At 4096 × 4096 with n = 2048 and ρ 0.9 only {}:": lambda: ends(
        cells("gemm", **SQUARE, target_sparsity=0.9), "efficiency"
    )[:1],
    "made the LSTM layers {}× [{}, {}] (block 16) and {}× [{}, {}] (block 32) faster over the whole run, "
    "where theory says {}×": (
        lambda: [
            *of(seeds_of(INTEGRAL, "measured", block_size=16)), *of(seeds_of(INTEGRAL, "measured", block_size=32)),
            mean_of(INTEGRAL, "predicted"),
        ]
    ),
    "{} s → {} s end to end": lambda: [
        mean_of(INTEGRAL, name, block_size=16) for name in ("masked_seconds", "sparse_seconds")
    ],
    "infers {}× faster than the dense one ({}× with blocks of 32) at a fifth of the weights' bytes "
    "({} → {} MB)": lambda: [
        *(Quoted(seeds_of(INTEGRAL, "inference", block_size=size).value) for size in (16, 32)),
        *(Quoted(mean_of(INTEGRAL, name, block_size=16).value / 1e6) for name in ("dense_bytes", "final_bytes")),
    ],
    "With no block empty the layer runs at {}× to {}× of `torch.nn.LSTM`": layer_at_zero,
    "With only `weight_hh` sparse, at 80 %, it runs at {}× (block 16)": lambda: [
        one("lstm", **LAYER | {"scope": "weight_hh"}, block_size=16, target_sparsity=0.8)
    ],
    "torch's and scipy's own BSR products are {}× to {}× slower than ours": rivals,
    "a call reaches, in the median over block sizes, {} of theory for a linear layer 3072 × 768 on 128 tokens, {} for "
    "4608 × 1152 on 80, {} for a wide 2048 × 8192 on 512, {} with odd blocks at 2600 × 650 and {} for one column "
    "(noisy)": lambda: [
        *(called(f"W {shape}") for shape in (
            "3072 × 768, n 128, X as activations [n, k] lie, block 8 to 64, ρ 0.8",
            "4608 × 1152, n 80, X as activations [n, k] lie, block 8 to 64, ρ 0.8",
            "2048 × 8192, n 512, X as activations [n, k] lie and row by row, block 8 to 64, ρ 0.8",
            "2600 × 650, n 32, X as activations [n, k] lie and row by row, block 10 to 50, ρ 0.8",
            "6144 × 1536, n 1, X row by row, block 8 to 64, ρ 0.8",
        )),
    ],
    "at ρ 0.95 as little as {} (noisy)": lambda: [
        called("W 3072 × 768, n 128, X as activations [n, k] lie, block 8 to 64, ρ 0.95", how="worst")
    ],
    "layers of 650 and 1500 units train {}× and {}× as fast at 80 % in blocks of 10 and 20, one of 256 units on 64 "
    "sequences {}×": lambda: layers_called(
        "650 → 650, batch 20, 35 steps, forward + backward", "1500 → 1500, batch 20, 35 steps, forward + backward",
        "256 → 256, batch 64, 100 steps, forward + backward",
    ),
    "512 units infer {}× as fast at 90 %": lambda: layers_called("512 → 512, batch 32, 35 steps, forward, block 16"),
    "makes the LSTM layers {}× [{}, {}] (block 16) and {}× [{}, {}] (block 32) faster over the run, where theory says "
    "{}×, and the whole run {}× and {}×": lambda: [
        *(part for size in (16, 32) for part in of(seeds_of(CHARS, "measured", **HIDDEN, block_size=size))),
        mean_of(CHARS, "predicted", **HIDDEN, block_size=16),
        *(Quoted(seeds_of(CHARS, "whole", **HIDDEN, block_size=size).value) for size in (16, 32)),
    ],
    "infers {}× [{}, {}] and {}× [{}, {}] faster than the dense one at a fifth": lambda: [
        part for size in (16, 32) for part in of(seeds_of(CHARS, "inference", **HIDDEN, block_size=size))
    ],
    "with 256 units {}×": lambda: of(seeds_of(CHARS, "inference", hidden_size=256))[:1],
    "Of `wikitext2_words`, {} of its 33 cells: the dense networks of three seeds end at {}, {} and {} in test ({}, {} "
    "and {} in validation), where a Kneser–Ney 6-gram of the same text has {}": words_so_far,
    "Pruned gradually to 80 % in blocks of 16, three seeds end at {}, {} and {}: +{} % [+{}, +{}]": lambda: (
        words_by_seed(schedule="cubic")
    ),
    "(104 units) end at {}, {} and {}, and at 90 % (69 units) at {}, {} and {}: the pruned networks have {} %, {} % "
    "and {} % less perplexity than those of 104 units of the same seeds, together {} % [{}, {}]": lambda: [
        *(Quoted(value) for units in (104, 69) for value in words_runs(units=units)["test_ppl"]),
        *map(Quoted, words_saved()),
        *below(GRADUAL_WORDS, SMALLER_WORDS),
    ],
    "Block lasso alone, three seeds: {}, {} % [{}, +{}], undecided": words_lasso_alone,
    "With the lasso and linear gradual pruning to 80 % three seeds end at {}, {} and {}, +{} % [+{}, +{}]": lambda: (
        words_by_seed(schedule="linear", lasso=True)
    ),
    "with the lasso and a random cut of 80 % before training three seeds end at {}, {} and {}, +{} % "
    "[+{}, +{}]": lambda: (
        words_by_seed(schedule="pre", lasso=True)
    ),
    "and without the lasso three seeds end at {}, {} and {}, +{} % [+{}, +{}]": lambda: words_by_seed(schedule="pre"),
    "Pruned gradually to 90 % two seeds end at {} and {}, +{} % [+{}, +{}]": lambda: (
        words_by_seed(schedule="cubic", sparsity=0.9)
    ),
    "against dense, and {} % [{}, {}] less than the networks of 69 units": lambda: below(
        {"schedule": "cubic", "sparsity": 0.9}, {"units": 69}
    ),
    "cost {} % [{}, {}] more than blocks that go while the network trains, and have {} % [{}, {}] less perplexity "
    "than a dense": lambda: [
        *above(RANDOM_WORDS, GRADUAL_WORDS), *below(RANDOM_WORDS, SMALLER_WORDS),
    ],
    "gradual pruning over block lasso (+{} % [+{}, +{}]); the random cut over gradual pruning (+{} % [{}, +{}])": (
        words_order
    ),
    "Random blocks cost {} % [{}, {}] more than gradually pruned ones": lambda: above(RANDOM_WORDS, GRADUAL_WORDS),
    "cost more: the pruned ones have {} % [{}, {}] less": lambda: below(GRADUAL_WORDS, SMALLER_WORDS),
    "a Kneser–Ney 6-gram of it stands at {}": lambda: [Quoted(words().ladder[-1].test_ppl)],
    "These are {} of the 33 cells of the sweep `wikitext2_words`": lambda: [Quoted(len(words().runs))],
    "At n = 80 the same kernel reaches {}× to {}× at 80 %, and {}× to {}× at 90 %": lambda: [
        quoted for target in (0.8, 0.9) for quoted in ends(small_at(80, target))
    ],
    "dense training {} s, masked {} s, sparse {} s; its LSTM layers {}× [{}, {}] faster over the run, "
    "where theory says {}×, and they are {} % of the time": lambda: [
        *(mean_of(SMALL, f"{path}_seconds", block_size=16) for path in ("dense", "masked", "sparse")),
        *of(seeds_of(SMALL, "measured", block_size=16)), mean_of(SMALL, "predicted", block_size=16),
        Quoted(100.0 * mean_of(SMALL, "lstm_share", block_size=16).value),
    ],
    "({} [{}, {}] against the masked runs of the same seeds)": lambda: of(
        gains_of(SMALL, block_size=16)["ppl_difference"]
    ),
    "By our recipe 50 % is undecided: three seeds neither show a cost nor that it is under 1 % (+{} % [{}, {}]). "
    "90 % costs {} % [{}, {}], 95 % {} % [{}, {}].": lambda: [
        quoted for rho in (0.5, 0.9, 0.95) for quoted in cost_of(BEST, rho)
    ],
    "The finished model infers {}× faster at a fifth": lambda: of(seeds_of(SMALL, "inference", block_size=16))[:1],
    "256 units at 80 % train their LSTM layers {}× [{}, {}] faster over the run (theory {}×), "
    "944 units at 90 % {}× [{}, {}] (theory {}×). The finished models infer {}× and {}× faster, "
    "their LSTM layers {}× and {}×.": lambda: [
        *of(seeds_of(BEST, "measured", **ERK)), mean_of(BEST, "predicted", **ERK),
        *of(seeds_of(WIDE, "measured", **NARROW)), mean_of(WIDE, "predicted", **NARROW),
        *(Quoted(seeds_of(name, what, **which).value) for what in ("inference", "inference_lstm")
          for name, which in ((BEST, ERK), (WIDE, NARROW))),
    ],
}  # fmt: skip
ERK = {"variant": f"{LASSO}, ERK, auto path", "block_size": 16}
NARROW = {"target_sparsity": 0.9}


def cost_of(sweep: str, target: float) -> list[Quoted]:
    """What the lasso with gradual pruning costs against dense, in per cent, at block 16."""
    found = sweep_of(sweep).main("train").replicates
    found = found[(found["variant"] == LASSO) & (found["target_sparsity"] == target) & (found["block_size"] == 16)]
    [ratio] = found["ppl_ratio"]
    return [Quoted(100.0 * (part - 1.0)) for part in ratio[:3]]


def small_at(n: int, target: float) -> pd.DataFrame:
    """Our products of the small study's recurrent weight, at the block sizes its README table has."""
    points = sweep_of(SMALL).main("gemm").points
    return points[(points["backend"] == "native") & (points["n"] == n) & (points["target_sparsity"] == target)]


def pattern(sentence: str) -> str:
    """The regular expression of a sentence, a group for each of its figures."""
    return f"({NUMBER.pattern})".join(re.escape(part) for part in sentence.split("{}"))


def bullets() -> list[str]:
    """The paragraphs and bullets of README's results, each in one line."""
    return [" ".join(bullet.split()) for bullet in re.split(r"\n\s*\n|\n- ", results())]


@pytest.mark.parametrize("sentence", SAID)
def test_a_sentence_quotes_the_results(sentence: str) -> None:
    found = [(bullet, match.groups()) for bullet in bullets() if (match := re.search(pattern(sentence), bullet))]
    assert found, f"README does not say {sentence!r} any more; change SAID beside it"
    expected = SAID[sentence]()
    for bullet, quoted in found:
        assert differing(" ; ".join(quoted), expected) == ""
        assert not silent(bullet, expected), f"{sentence!r} rests on a noisy row, and its bullet does not say 'noisy'"


def test_every_speedup_of_the_results_is_looked_up() -> None:
    words = "\n".join(bullet for bullet in bullets() if not bullet.startswith("|"))
    for sentence in SAID:
        words = re.sub(pattern(sentence), "", words)
    assert SPEEDUP.findall(words) == [], "say in SAID where these come from"


def test_the_goals_are_counted_as_they_were_judged() -> None:
    verdicts = judge.goals_table(committed(), cpu.GOALS)["verdict"].tolist()
    reached, undecided, missed = (verdicts.count(word) for word in ("reached", "undecided", "missed"))
    said = f"of {len(verdicts)}, {reached} are reached, {undecided} undecided, and {missed} missed"
    assert said in " ".join(results().split()), said
    left = verdicts.count("not run")
    assert not left or f"{left} are not run yet" in " ".join(results().split())


def test_the_check_sees_another_figure_and_a_silent_one() -> None:
    assert differing("2.6×", [Quoted(2.64)]) == "" and differing("2.6×", [Quoted(2.66)])
    assert differing("+132 % [+95, +177]", [Quoted(132.3), Quoted(95.0), Quoted(176.7)]) == ""
    assert differing("−2.0 [−5.1, +1.1]", [Quoted(-2.0), Quoted(-5.1), Quoted(1.1)]) == ""
    assert silent("2.6×", [Quoted(2.6, noisy=True)]) and not silent("2.6× (noisy)", [Quoted(2.6, noisy=True)])
    assert math.isclose(figures_of("33,278 types")[0][0], 33278.0)


GRADUAL = "gradual (cubic), scope weight_hh"
CLASSIFIED = {  # a setting of mnist1d_methods -> the share it gets right, as both READMEs say it
    ("dense, hidden_size 256", 16, 0.0): "Dense it gets {} of the test right",
    (GRADUAL, 1, 0.95): "it gets {} unstructured",
    (GRADUAL, 4, 0.95): "and {}, 66.2 % and",
    (GRADUAL, 8, 0.95): "66.5 %, {} and 65.7 %",
    (GRADUAL, 16, 0.95): "and {} in blocks of 4, 8 and 16",
    ("dense, hidden_size 96", 16, 0.0): "(96 units) gets {}:",
    ("gradual (linear)", 8, 0.8): "linear ramps get {} right",
    ("iterative", 8, 0.8): "rounds {} and the cubic",
    ("gradual (cubic, taylor)", 8, 0.8): "cubic ramp {} to",
    (GRADUAL, 8, 0.8): "to {} whether norms",
    ("gradual (cubic, random)", 8, 0.8): "Chance ({}),",
    ("one-shot", 8, 0.8): "one cut ({}),",
    ("random pre-pruning", 8, 0.8): "from the start ({}) and",
    ("random pre-pruning, SET", 8, 0.8): "(SET {},",
    ("random pre-pruning, RigL", 8, 0.8): "RigL {}) are",
    ("gradual (linear)", 1, 0.95): "linear ramp ({}) and",
    ("iterative", 1, 0.95): "rounds ({}) are decided to beat all others",
}
NOT_WORSE = ("gradual (linear)", "iterative", "gradual (cubic", GRADUAL)  # how those begin that chance does not choose


def test_where_an_lstm_is_pruned_is_quoted() -> None:
    found, said = study.read(REFERENCE / "wikitext2_chars_where").main("train"), " ".join(results().split())
    means = {
        name: float(np.log2(part["test_ppl"]).mean())
        for name, part in found.runs.groupby(["schedule", "allocation"], sort=False)
    }
    pruned = {name: means["cubic", name] for name in ("uniform", "gate", "global", "erk")}
    assert f"Dense {means['none', 'uniform']:.3f} bits a character; with" in said
    assert f"in each matrix {pruned['uniform']:.3f}. Choosing" in said
    bits = {
        name: np.log2(part.set_index("seed")["test_ppl"])
        for name, part in found.runs[found.runs["schedule"] == "cubic"].groupby("allocation")
    }
    ratios = {name: (bits[name] / bits["uniform"]).tolist() for name in ("gate", "global", "erk")}
    assert found.pool.residual is not None
    gate, one_order, erk = stats.compared(list(ratios.values()), found.pool.residual)
    assert (gate.side, one_order.side, erk.side) == (-1, -1, 0)
    for name, one in (("gate", gate), ("global", one_order)):
        cost = stats.change(one).split(" (")[0].replace("−", "-")
        assert f"({pruned[name]:.3f}, {cost})" in said, cost
    assert f"the Erdős–Rényi rule ({pruned['erk']:.3f}) is not" in said
    first = [each[0] for each in found.runs["live_units"].dropna()]
    assert f"{min(first)} to {max(first)} of the 128 units" in said
    assert f"the 7-gram's {np.log2(found.ladder[-1].test_ppl):.3f} bits" in said and found.ladder[-1].order == 7


def classifiers() -> Part:
    return study.read(REFERENCE / "mnist1d_methods").main("train")


SMALL_CLASSIFIERS = {  # the same of digits, at 95 % in blocks of 8
    "gradual (cubic)": "8 gradually {},",
    "one-shot": "60 % of the run {}.",
    "block lasso (dual) + one-shot": "dual of the budget {} and",
    "block lasso (projection) + one-shot": "the projection {}, decided to be better than no lasso",
    "block lasso (hinge) + one-shot": "hinge {}, subgradient",
    "block lasso (subgradient) + one-shot": "subgradient {} and",
    "block lasso (proximal) + one-shot": "proximal {}, undecided",
}


def test_what_small_classifiers_get_right_is_quoted() -> None:
    found, said = study.read(REFERENCE / "digits").main("train"), " ".join(results().split())
    here = found.methods[(found.methods["block_size"] == 8) & (found.methods["target_sparsity"] == 0.95)]
    shares = dict(zip(here["variant"], here["accuracy"], strict=True))
    for variant, words in SMALL_CLASSIFIERS.items():
        assert words.format(f"{100 * shares[variant]:.1f} %") in said, variant
    (dense,) = set(here["dense_accuracy"])
    assert f"three seeds: dense {100 * dense:.1f} % right" in said
    for form, better in (("dual", 1), ("projection", 1), ("hinge", 0), ("subgradient", 0), ("proximal", 0)):
        pair = methods.between(found.runs, (f"block lasso ({form}) + one-shot", 8, 0.95), ("one-shot", 8, 0.95))
        assert pair.side == -better, form
    assert all(one.value < 1.0 for one in found.narrowings["inference"])
    dense = {row["hidden_size"]: row for row in records(found.methods) if row["target_sparsity"] == 0.0}
    shares = [f"{100 * dense[units]['accuracy']:.1f} %" for units in (45, 15)]
    assert f"as fast as it and get {shares[0]} and {shares[1]} right" in said
    gradual = {
        row["target_sparsity"]: f"{100 * row['accuracy']:.1f} %"
        for row in records(found.methods)
        if (row["variant"], row["block_size"]) == ("gradual (cubic)", 8)
    }
    assert f"undecided against {gradual[0.8]} and {gradual[0.95]} in blocks of 8" in said
    for target, units in ((0.8, 45), (0.95, 15)):
        other = (dense[units]["variant"], dense[units]["block_size"], 0.0)
        assert methods.between(found.runs, ("gradual (cubic)", 8, target), other).side == 0


def test_what_a_matrix_with_zeros_takes_is_quoted() -> None:
    found = study.read(REFERENCE / "storage").main("storage").main_matrix()
    said = " ".join(results().split())
    rows = {row["name"]: row for row in records(found.crossovers)}
    smaller = [rows[name]["smaller_from"].sparsity for name in ("COO", "CSR", "CSR, int64 indices", "BSR, block 4")]
    assert (
        "from {:.2f} of zeros on as COO, {:.2f} as CSR ({:.2f} with int64 indices), {:.2f} in blocks".format(*smaller)
        in said
    )
    assert f"{rows['BSR, block 16']['smaller_from'].sparsity:.3f} in blocks of 16" in said
    faster = [rows[name]["faster_from"] for name in ("COO", "CSR", "BSR, block 4", "BSR, block 16")]
    assert [crossing.kind for crossing in faster] == ["never", "crosses", "crosses", "always"], faster
    words = "never up to 0.99 as COO, from {:.2f} on as CSR, {:.2f} in blocks of 4; in blocks of 16 it is as fast as"
    assert words.format(*(crossing.sparsity for crossing in faster[1:3])) in said
    assert not any(rows[name]["faster_noisy"] for name in ("CSR", "BSR, block 4"))


def test_what_classifiers_get_right_is_quoted() -> None:
    found, said = classifiers(), " ".join(results().split())
    shares = {
        (row["variant"], row["block_size"], row["target_sparsity"]): f"{100 * row['accuracy']:.1f} %"
        for row in records(found.methods)
    }
    for setting, words in CLASSIFIED.items():
        assert words.format(shares[setting]) in said, setting
    settings = list(CLASSIFIED)
    blocks, single, small = (shares[settings[at]] for at in (4, 1, 5))
    dense = [shares[f"dense, hidden_size {units}", 16, 0.0] for units in (188, 134, 98)]
    assert f"98 units; {dense[0]}, {dense[1]} and {dense[2]} right) infer" in said
    assert f"gets {blocks} right, unstructured {single}, a dense one of as many weights {small} (ten" in said
    pruned = (GRADUAL, 16, 0.95)
    for other, words in (((GRADUAL, 1, 0.95), "{} more errors"), (settings[5], "{} of its errors")):
        one = methods.between(found.runs, pruned, other)
        assert one.side and one.n == 10 and words.format(change(one).removesuffix(" (10 seeds)")) in said
    for one, other in ((16, 8), (16, 4), (8, 4)):
        assert methods.between(found.runs, (GRADUAL, one, 0.95), (GRADUAL, other, 0.95)).side == 0
    for at, best in (((8, 0.8), NOT_WORSE), ((1, 0.95), ("gradual (linear)", "iterative"))):
        here = found.methods[(found.methods["block_size"] == at[0]) & (found.methods["target_sparsity"] == at[1])]
        for row in records(here):
            name = row["variant"]
            chosen = name.startswith(best) and "random" not in name and "rewound" not in name
            assert row["seeds"] == 10 and row["against_best"].side == (0 if chosen else 1), name
    scores = [
        row for row in shares if row[1:] == (8, 0.8) and row[0].startswith("gradual (cubic") and "random" not in row[0]
    ]
    between = sorted(float(shares[row].removesuffix(" %")) for row in scores)
    assert len(scores) == 5 and f"cubic ramp {between[0]} % to {between[-1]} %" in said
    cells = found.rows["cell_id"].nunique()
    assert cells == 1140 and f"its {cells:,} cells" in said
