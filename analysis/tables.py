"""Tables for reading: every cell is text. Each works where one of the two result tables is None or empty."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import pandas as pd

from analysis import compare
from analysis.awd.published import SLIDES
from analysis.findings import findings
from analysis.load import records
from analysis.runs import PPL, best_replicated, replicates, runs, without_path
from analysis.stats import NOTHING_KEPT, change, factor, plus_minus, times
from analysis.theory import layer_speedup, speedup
from analysis.tradeoff import chosen_product, recurrent_shape, with_speedup

__all__ = ["breakeven_table", "findings", "layer_table", "main_table", "slides_table", "to_html", "to_markdown"]

NOTHING = "–"
SETTING = ("variant", "block size", "target sparsity", "sparsity stored")
COST = ("train ppl", "val ppl", "test ppl", "cost against dense")
SPEED = (
    "predicted product speedup", "measured product speedup", "predicted training speedup", "measured training speedup",
    "Amdahl ceiling",
)  # fmt: skip
MAIN = (*SETTING, *COST, *SPEED)


def finished(train: pd.DataFrame | None) -> pd.DataFrame:
    """`runs` of a table that may be missing or empty."""
    return pd.DataFrame() if train is None or train.empty else runs(train)


def timed(gemm: pd.DataFrame | None) -> pd.DataFrame:
    """`gemm_points` of a table that may be missing or empty."""
    return compare.gemm_points(gemm) if gemm is not None and not gemm.empty else pd.DataFrame(columns=compare.POINTS)


def joined(train: pd.DataFrame | None, gemm: pd.DataFrame | None) -> pd.DataFrame:
    """`replicates` with the product's measured speedup beside them; empty where no run finished."""
    final, points = finished(train), timed(gemm)
    found = replicates(final) if not final.empty else pd.DataFrame()
    return found if found.empty else with_speedup(found, points, chosen_product(points, recurrent_shape(final)))


def main_table(train: pd.DataFrame | None, gemm: pd.DataFrame | None) -> pd.DataFrame:
    """Every variant, block size and sparsity: perplexities over seeds, the cost against dense, and speedups beside theory.

    The cost pairs each run with the dense run of its seed. The measured product speedup is that of `chosen_product`.
    """
    rows = []
    for row in records(joined(train, gemm)):
        prunes = row["target_sparsity"] > 0.0
        texts = [
            row["variant"],
            NOTHING if pd.isna(row["block_size"]) else str(row["block_size"]),
            f"{row['target_sparsity']:g}" if prunes else NOTHING,
            f"{row['stored_sparsity']:.3f}",
            *(plus_minus(row[name]) for name in PPL),
            change(row["ppl_ratio"]),
            factor(speedup(row["stored_sparsity"])) if prunes else NOTHING,
            _measured(row) if prunes else NOTHING,
            factor(row["predicted_training"]) if prunes else NOTHING,
            times(row["measured_training"]),
            factor(row["ceiling"]) if prunes else NOTHING,
        ]
        rows.append(dict(zip(MAIN, texts, strict=True)))
    return pd.DataFrame(rows, columns=list(MAIN))


def _ours(found: pd.DataFrame, slide: dict[str, Any]) -> dict[str, Any] | None:
    """Our runs that answer a row of the slides: of the block sizes with the most seeds that with the best validation perplexity."""
    here = found[found["target_sparsity"] == slide["sparsity"]]
    kinds = {"dense": ("dense",), "block lasso": ("block lasso",)}
    names = kinds.get(slide["variant"], (slide["variant"], slide["variant"].replace("linear", "cubic")))
    for name in names:
        mine = here[here["variant"].map(without_path) == name]
        if not mine.empty:
            return best_replicated(records(mine))
    return None


def slides_table(train: pd.DataFrame | None, gemm: pd.DataFrame | None = None) -> pd.DataFrame:
    """The slides' four rows beside ours at 80 % sparsity, at the block size with the best validation perplexity."""
    found = joined(train, gemm)
    rows = []
    for slide in records(SLIDES):
        ours = _ours(found, slide) if not found.empty else None
        rows.append(
            {
                "slides": slide["variant"],
                "slides' train / val / test ppl": " / ".join(f"{slide[name]:.2f}" for name in PPL),
                "slides' speedup": f"{slide['claimed_speedup']:.1f}×",
                "ours": NOTHING if ours is None else _name(ours),
                **{f"our {name[:-4]} ppl": NOTHING if ours is None else plus_minus(ours[name]) for name in PPL},
                "our cost against dense": NOTHING if ours is None else change(ours["ppl_ratio"]),
                "our predicted training speedup": NOTHING if ours is None else factor(ours["predicted_training"]),
                "our measured product speedup": NOTHING if ours is None else _measured(ours),
            }
        )
    return pd.DataFrame(rows)


def _name(row: dict[str, Any]) -> str:
    """'block lasso + gradual (cubic), block 16'."""
    return str(row["variant"]) if pd.isna(row["block_size"]) else f"{row['variant']}, block {row['block_size']}"


def _measured(row: dict[str, Any]) -> str:
    """The product's speedup with its interval, and whether it rests on a noisy timing."""
    return _doubted(times(row["product_speedup"]), row["product_noisy"])


def _doubted(words: str, noisy: bool) -> str:
    return f"{words} (noisy)" if noisy else words


def _fastest(row: dict[str, Any]) -> str:
    """The speedup of the fastest point, and how far it can be trusted: noisy, or passed over for a quiet one that is slower."""
    value = f"{row['fastest']:.2f}×"
    if math.isnan(row["efficiency"]):
        return f"{value} ({NOTHING_KEPT})"
    return f"{value} (quiet)" if row["passed_over"] else _doubted(value, row["noisy"])


def breakeven_table(gemm: pd.DataFrame | None) -> pd.DataFrame:
    """The sparsity from which on each backend beats dense, per shape and block size, and its fastest point."""
    names = ["product", "backend", "block size", "break-even sparsity", "fastest", "at sparsity", "median efficiency"]
    points = compare.block_sparse(timed(gemm))
    rows = []
    for row in records(compare.breakeven_sparsity(points)):
        texts = [
            compare.shape_name((row["m"], row["k"], row["n"])),
            row["backend"],
            str(row["block_size"]),
            _doubted(str(row["breakeven_sparsity"]), row["breakeven_noisy"]),
            _fastest(row),
            f"{row['at_sparsity']:.2f}",
            NOTHING if math.isnan(row["efficiency"]) else _doubted(f"{row['efficiency']:.0%}", row["noisy"]),
        ]
        rows.append(dict(zip(names, texts, strict=True)))
    return pd.DataFrame(rows, columns=names)


def layer_table(lstm: pd.DataFrame | None) -> pd.DataFrame:
    """The sparsity from which on each backend beats an LSTM baseline, per layer, batch and block size, and its fastest point.

    ValueError where rows that cannot be compared are mixed; baselines may differ, each has rows of its own.
    """
    names = ["layer", "batch", "over", "backend", "block size", "break-even sparsity", "fastest", "at sparsity",
             "theory there", "median efficiency"]  # fmt: skip
    if lstm is None or lstm.empty:
        return pd.DataFrame(columns=names)
    points = compare.block_sparse(compare.lstm_points(lstm, over="baseline"))
    scope = str(lstm["scope"].iloc[0])
    rows = []
    for row in records(compare.breakeven_sparsity(points, [*compare.LAYER, "baseline"])):
        texts = [
            compare.layer_name([row[side] for side in compare.LAYER_SIDES]),
            str(row["batch_size"]),
            row["baseline"],
            row["backend"],
            str(row["block_size"]),
            _doubted(str(row["breakeven_sparsity"]), row["breakeven_noisy"]),
            _fastest(row),
            f"{row['at_sparsity']:.2f}",
            factor(layer_speedup(row["input_size"], row["hidden_size"], row["at_sparsity"], scope)),
            NOTHING if math.isnan(row["efficiency"]) else _doubted(f"{row['efficiency']:.0%}", row["noisy"]),
        ]
        rows.append(dict(zip(names, texts, strict=True)))
    return pd.DataFrame(rows, columns=names)


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_html(table: pd.DataFrame) -> str:
    """A table as an HTML <table>: short cells keep to one line, and what is too wide for the page scrolls sideways.

    The styles stand in the elements: a notebook's own would give all columns one width, and their words a line each.
    """
    head = "".join(f"<th style='{_HEAD}'>{html.escape(str(name))}</th>" for name in table.columns)
    rows = ["".join(_cell(str(cell)) for cell in row) for row in table.to_numpy().tolist()]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div style='overflow-x:auto'><table style='{_TABLE}'>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


_TABLE = "table-layout:auto;width:auto;max-width:none"
_HEAD = "text-align:left;vertical-align:bottom;min-width:5.5em"
_SHORT, _LONG = "text-align:left;white-space:nowrap", "text-align:left;white-space:normal;min-width:22em"
ONE_LINE = 56  # characters of a cell that is not broken, unless the page is too narrow for the table
_TOGETHER = re.compile(r"\[[^\]]{,24}\]|\([^)]{,24}\)|[\d.]+ [±%]( [\d.]+)?")  # not broken even then


def _cell(words: str) -> str:
    held = _TOGETHER.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), words)
    return f"<td style='{_SHORT if len(words) <= ONE_LINE else _LONG}'>{html.escape(held)}</td>"
