"""Versus: two folders of results side by side, as of two machines, commits or backends, paired by cell.

Compared are speedups over dense, each measured in a process of its own as interleaved pairs: times of two runs on a
CPU compare nothing. Where both are of one GPU, by its own clock, times are compared too. Trained networks are compared
by their perplexities, or error rates, cell by cell and so seed by seed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis import report, stats
from analysis.commands.screen import print_table
from analysis.compare import LAYER_SIDES, SHAPE, layer_name, shape_name
from analysis.load import one_of, records
from analysis.loading.schema import BadInputError, columns
from analysis.reporting.sections import Section, shown
from analysis.runs import SETTING
from analysis.stats import ERROR_RATE, Estimate, holm, ratio_interval, times
from analysis.study import Study
from analysis.studying.methods import with_errors

OVER = ("backend", "baseline", "device")  # what two folders may differ in as a whole, and still be paired
ALONE = ("machine", "timer", "math")  # of which each folder must have one
MOST_SHOWN = 20  # cells on the screen
SHORT = {"block_size": "block", "target_sparsity": "ρ", "baseline": "against"}
NOUN = {"gemm": "products", "lstm": "LSTM layers", "storage": "stored matrices", "train": "training runs"}
FASTER, SLOWER, UNDECIDED = "A faster", "B faster", "undecided"


@dataclass(frozen=True)
class Pair:
    """One cell that both have. label: its settings; ratio: A over B, above 1 where A is better; p: of being alike."""

    label: str
    a: Estimate
    b: Estimate
    ratio: Estimate
    p: float
    noisy: bool
    verdict: str = UNDECIDED


@dataclass(frozen=True)
class Versus:
    """Two folders. over: by table, the setting in which they differ as a whole, or ''. lines: what else is said."""

    a: Path
    b: Path
    pairs: dict[str, list[Pair]]
    over: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def all_together(self, table: str) -> Estimate:
        """Geometric mean of the ratios of all cells of a table, t's interval over them."""
        return ratio_interval([each.ratio.value for each in self.pairs[table]])


def versus(a: Study, b: Study) -> Versus:
    """`a` against `b`. BadInputError, one line, where nothing of them compares."""
    both = [name for name in a.tables if name in b.tables]
    if not both:
        has = " and ".join(f"{each.folder} has {', '.join(each.tables)}" for each in (a, b))
        raise BadInputError(f"compare: {has}; accepted: two folders with a table in common")
    found: dict[str, list[Pair]] = {}
    over: dict[str, str] = {}
    lines: list[str] = []
    if a.folder.resolve() == b.folder.resolve():
        lines.append(f"Both are {a.folder}: a folder beside itself.")
    for table in both:
        if table == "train":
            found[table], over[table] = _networks(a, b, lines), ""
        else:
            found[table], over[table] = _timings(a, b, table, lines)
    if not any(found.values()):
        raise BadInputError(f"compare: {a.folder} and {b.folder} have no cell in common that is ok in both; "
                            "accepted: folders of one sweep, or of one that differs in its backend alone")  # fmt: skip
    return Versus(a.folder, b.folder, {table: pairs for table, pairs in found.items() if pairs}, over, lines)


def _settings(table: str, without: str = "") -> list[str]:
    return [column.name for column in columns(table) if column.role == "setting" and column.name != without]


def _joined(one: pd.DataFrame, other: pd.DataFrame, table: str) -> tuple[pd.DataFrame, str]:
    """Rows of both side by side, and the setting in which they differ as a whole."""
    if one.empty or other.empty:
        return one.iloc[:0], ""
    for without in ("", *OVER):
        if without and not (one[without].nunique() == other[without].nunique() == 1):
            continue
        names = _settings(table, without)
        keyed = [frame.assign(key=frame[names].astype(str).agg("|".join, axis=1)) for frame in (one, other)]
        joined = keyed[0].merge(keyed[1], on="key", suffixes=("", "_b"))
        if not joined.empty:
            return joined, without
    return one.iloc[:0], ""


def _timings(a: Study, b: Study, table: str, lines: list[str]) -> tuple[list[Pair], str]:
    """Speedups over dense of the cells that both have timed."""
    for each in (a, b):
        try:
            one_of(each.tables[table][each.tables[table]["status"] == "ok"], ALONE)
        except ValueError as error:
            raise BadInputError(f"{each.folder}: {table}.parquet: {error}; accepted: timings of one kind") from None
    ok = [cells[cells["status"] == "ok"] for cells in (a.cells(table), b.cells(table))]
    joined, over = _joined(ok[0], ok[1], table)
    _tell_left_out(ok, joined, table, lines)
    labels = _labels(joined, table, over)
    found = []
    for row, label in zip(records(joined), labels, strict=True):
        names = ("measured_speedup", "low", "high")
        mine, other = (_estimate([row[f"{name}{end}"] for name in names]) for end in ("", "_b"))
        found.append(Pair(label, mine, other, *stats.quotient(mine, other), bool(row["noisy"]) or bool(row["noisy_b"])))
    if len(others := _baselines(joined)):
        lines.append(
            f"{NOUN[table]}: {len(others)} of {len(joined)} have another dense kernel on each side ({others[0]}), so "
            "their ratios are of that, too."
        )
    if not joined.empty and (joined["device"] == "cuda").all() and _same(joined, "device_name"):
        ratio = ratio_interval((joined["time_ms_b"] / joined["time_ms"]).astype(float).tolist())
        lines.append(f"{NOUN[table]}: on one kind of GPU, so times compare: A takes 1 / {times(ratio)} of B's time.")
    return _decided(found), over


def _estimate(values: Sequence[float]) -> Estimate:
    value, low, high = values
    return Estimate(value, low, high, 0)


def _same(joined: pd.DataFrame, name: str) -> bool:
    return bool((joined[name] == joined[f"{name}_b"]).all())


def _baselines(joined: pd.DataFrame) -> list[str]:
    """'torch.mm against torch.mm, oneDNN', of each cell whose two baselines ran on different kernels."""
    if "baseline_kernel_b" not in joined:
        return []
    both = zip(joined["baseline_kernel"], joined["baseline_kernel_b"], strict=True)
    return [f"{one} against {other}" for one, other in both if one != other]


def _decided(pairs: list[Pair]) -> list[Pair]:
    """Which of them differ, over all together at ERROR_RATE (Holm); the largest differences first."""
    ps = holm([each.p for each in pairs])  # what is NaN was not tested
    verdicts = [
        (FASTER if each.ratio.value > 1.0 else SLOWER) if p < ERROR_RATE else UNDECIDED
        for each, p in zip(pairs, ps, strict=True)
    ]
    judged = [replace(each, verdict=verdict) for each, verdict in zip(pairs, verdicts, strict=True)]
    return sorted(judged, key=lambda each: -abs(math.log(each.ratio.value)))


def _labels(joined: pd.DataFrame, table: str, over: str) -> list[str]:
    """The settings of each cell in which the cells differ, what is multiplied first."""
    names = [name for name in _settings(table, over) if joined[name].nunique(dropna=False) > 1]
    sides, named = (LAYER_SIDES, layer_name) if table == "lstm" else (SHAPE, shape_name)
    has_sides = any(name in sides for name in names)
    rest = [name for name in names if name not in sides]
    labels = []
    for row in records(joined):
        parts = [named([row[name] for name in sides])] if has_sides else []
        labels.append(", ".join([*parts, *(_setting(name, row[name]) for name in rest)]) or "the only one")
    return labels


def _setting(name: str, value: Any) -> str:
    """'block 16', 'ρ 0.8', 'native', 'threads 1'."""
    if name in SHORT:
        return f"{SHORT[name]} {_plain(value)}"
    return value if isinstance(value, str) and name != "baseline" else f"{name} {_plain(value)}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tell_left_out(ok: Sequence[pd.DataFrame], joined: pd.DataFrame, table: str, lines: list[str]) -> None:
    left = [len(frame) - len(joined) for frame in ok]
    if not joined.empty and any(left):
        lines.append(f"{NOUN[table]}: {left[0]} of A's and {left[1]} of B's that are ok have no partner; not compared.")


def _networks(a: Study, b: Study, lines: list[str]) -> list[Pair]:
    """Perplexities, or error rates, of B over A, by setting: each network beside the one of the same cell."""
    runs = [each.main("train").runs for each in (a, b)]
    runs = [with_errors(each) if each["test_accuracy"].notna().any() else each for each in runs if not each.empty]
    if len(runs) < 2:
        return []
    metric = "test_error" if all("test_error" in each for each in runs) else "test_ppl"
    shown = [*SETTING, "seed", "cell_id", "corpus_sha256", metric]
    joined = runs[0][shown].merge(runs[1][["cell_id", "corpus_sha256", metric]], on="cell_id", suffixes=("", "_b"))
    if not joined.empty and not _same(joined, "corpus_sha256"):
        raise BadInputError(f"compare: the networks of {a.folder} and {b.folder} read different texts or examples, as "
                            "their sha256 say; accepted: folders trained on the same")  # fmt: skip
    _tell_left_out(runs, joined, "train", lines)
    alike = int((joined[metric] == joined[f"{metric}_b"]).sum())
    if len(joined):
        lines.append(f"training runs: {alike} of {len(joined)} reach the same figure to the digit.")
    found = []
    for key, part in joined.groupby([*SETTING], sort=False):
        variant, size, target = key
        label = str(variant) if target == 0.0 else f"{variant}, block {size:g}, ρ {target:g}"
        mine, other = (ratio_interval(part[name].astype(float).tolist()) for name in (metric, f"{metric}_b"))
        ratios = (part[f"{metric}_b"] / part[metric]).astype(float).tolist()
        found.append(Pair(label, mine, other, ratio_interval(ratios), stats.p_of_one(ratios), False))
    return [replace(each, verdict=each.verdict.replace("faster", "better")) for each in _decided(found)]


def sentences(found: Versus) -> list[str]:
    """What is decided, a sentence for each table."""
    lines = [f"A: {found.a}. B: {found.b}."]
    for table, pairs in found.pairs.items():
        counted = Counter(each.verdict for each in pairs)
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items()))
        over = f", {found.over[table]} against {found.over[table]}" if found.over[table] else ""
        what = "perplexity or error of B over A's" if table == "train" else "speedup over dense, A's over B's"
        mean = times(found.all_together(table))
        lines.append(f"{len(pairs)} {NOUN[table]}{over}: {said} (at 5 % over all, Holm). In the mean {what}: {mean}.")
    return [*lines, *found.lines]


def table_of(found: Versus, table: str, most: int | None = None) -> pd.DataFrame:
    """A row for each cell or setting that both have, the largest differences first."""
    said = _plainly if table == "train" else times
    rows = [
        [each.label, said(each.a), said(each.b), times(each.ratio), each.verdict + (" (noisy)" if each.noisy else "")]
        for each in found.pairs[table][:most]
    ]
    return pd.DataFrame(rows, columns=["cell", "A", "B", "A against B", "decided"])


def _plainly(one: Estimate) -> str:
    interval = "" if math.isnan(one.low) else f" [{one.low:.4g}, {one.high:.4g}]"
    return f"{one.value:.4g}{interval}"


def show(found: Versus, path: Path, console: Console | None = None) -> None:
    """Print it on a screen: the largest differences, then what is decided."""
    console = console or Console(highlight=False, markup=False)
    for table, pairs in found.pairs.items():
        print_table(console, NOUN[table].capitalize(), table_of(found, table, MOST_SHOWN))
        if len(pairs) > MOST_SHOWN:
            console.print(f"and {len(pairs) - MOST_SHOWN} more, in the report")
    console.print()
    for line in sentences(found):
        console.print(line, style="bold")
    console.print(f"Report: {path}", soft_wrap=True)


def to_json(found: Versus) -> str:
    """The same for programs."""
    names = ("value", "low", "high")

    def plain(one: Estimate) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in zip(names, one, strict=False)}

    return json.dumps(
        {
            "a": str(found.a), "b": str(found.b), "over": found.over, "sentences": sentences(found),
            "tables": {
                table: [{"cell": each.label, "a": plain(each.a), "b": plain(each.b), "ratio": plain(each.ratio),
                         "decided": each.verdict, "noisy": each.noisy} for each in pairs]
                for table, pairs in found.pairs.items()
            },
        }, indent=1,
    )  # fmt: skip


def write(found: Versus, a: Study, b: Study, out: Path) -> Path:
    """Write report.html into the folder `out` and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    lead = (
        "Speedups over dense, each of interleaved pairs in one process, with 95 % intervals; their ratio has both "
        "uncertainties. Of training runs perplexities or error rates, paired by seed, with t's intervals."
    )
    parts = [
        Section(NOUN[table].capitalize(), lead, tables=[shown("", table_of(found, table))]) for table in found.pairs
    ]
    cells = {name: pd.concat([a.tables[name], b.tables[name]], ignore_index=True) for name in found.pairs}
    name = f"{a.name} against {b.name}"
    return report.write_page(Study(out, cells), name, sentences(found), parts, missing=[], caveats=[])
