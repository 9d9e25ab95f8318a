"""Tables for reading, and sentences of what they say: every cell is text, and a table of nothing has no rows."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import pandas as pd

from analysis import compare
from analysis.accuracy.units import Unit
from analysis.load import records
from analysis.runs import PPL, is_dense, wanted, without_target
from analysis.stats import NOTHING_KEPT, Estimate, factor, judged, plus_minus, signed, times
from analysis.study import Part, joined
from analysis.theory import Breakeven, layer_speedup, speedup

NOTHING = "–"
UNTRAINED = "did not train"
SETTING = ("variant", "block size", "target sparsity", "sparsity stored")
COST = ("train ppl", "val ppl", "test ppl", "cost against dense", "val fell in the last tenth")
SPEED = (
    "predicted product speedup", "measured product speedup", "predicted training speedup", "measured training speedup",
    "Amdahl ceiling",
)  # fmt: skip
TIME = (
    "variant", "block size", "target sparsity", "seeds", "dense training", "masked training", "sparse training",
    "integral predicted", "integral measured", "measured / theory", "LSTM share", "speedup over masked",
    "expected (Amdahl)", "Amdahl ceiling",
)  # fmt: skip
MODEL = (
    "variant", "block size", "target sparsity", "inference speedup", "its LSTM layers", "their theory",
    "Amdahl ceiling", "bytes dense", "bytes finished", "test ppl masked", "test ppl sparse", "difference",
    "sparse against masked", "seed noise", "test ppl finished",
)  # fmt: skip
STORAGE = ("matrix", "form", "smaller from", "by formula", "file smaller from", "faster from", "fastest", "at zeros")
BREAKEVEN = ("backend", "block size", "break-even sparsity", "fastest", "at sparsity")


def main_table(train: Part, gemm: Part) -> pd.DataFrame:
    """Every variant, block size and sparsity: perplexities over seeds, cost against dense, speedups beside theory.

    The cost pairs each run with the dense run of its seed; its verdict is corrected for all the others
    (`stats.compared`). The measured product speedup is that of `chosen_product`.
    """
    rows = []
    for row in records(joined(train, gemm)):
        prunes = row["target_sparsity"] > 0.0 or without_target(row["variant"])
        texts = [
            row["variant"],
            NOTHING if pd.isna(row["block_size"]) else str(row["block_size"]),
            wanted(row) if prunes else NOTHING,
            f"{row['stored_sparsity']:.3f}",
            *(plus_minus(row[name], train.unit.digits) for name in PPL),
            judged(row["ppl_ratio"]) if row["trained"] else UNTRAINED,
            row["falling"],
            factor(speedup(row["stored_sparsity"])) if prunes else NOTHING,
            product_speedup(row) if prunes else NOTHING,
            factor(row["predicted_training"]) if prunes else NOTHING,
            times(row["measured_training"]),
            factor(row["ceiling"]) if prunes else NOTHING,
        ]
        rows.append(texts)
    return pd.DataFrame(rows, columns=[*SETTING, *cost_columns(train), *SPEED])


def cost_columns(train: Part) -> list[str]:
    """COST in the unit of the text: 'val ppl', or 'val bits'."""
    return [name.replace("ppl", train.unit.short) for name in COST]


def product_speedup(row: dict[str, Any]) -> str:
    """The product's speedup with its interval, and whether it rests on a noisy timing, of a row of `joined`."""
    return _doubted(times(row["product_speedup"]), row["product_noisy"])


def _doubted(words: str, noisy: bool) -> str:
    return f"{words} (noisy)" if noisy else words


def _fastest(row: dict[str, Any]) -> str:
    """The speedup of the fastest point, and how far it can be trusted: noisy, or passed over for a slower quiet one."""
    value = f"{row['fastest']:.2f}×"
    if math.isnan(row["efficiency"]):
        return f"{value} ({NOTHING_KEPT})"
    return f"{value} (quiet)" if row["passed_over"] else _doubted(value, row["noisy"])


def _breakeven(row: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The cells of a row of `compare.breakeven_sparsity`: BREAKEVEN, and the efficiency that closes it."""
    texts = [
        row["backend"],
        str(row["block_size"]),
        _doubted(str(row["breakeven_sparsity"]), row["breakeven_noisy"]),
        _fastest(row),
        f"{row['at_sparsity']:.2f}",
    ]
    none = math.isnan(row["efficiency"])
    efficiency = NOTHING if none else _doubted(f"{row['efficiency']:.0%}", row["noisy"])
    return dict(zip(BREAKEVEN, texts, strict=True)), {"median efficiency": efficiency}


def breakeven_table(gemm: Part) -> pd.DataFrame:
    """The sparsity from which on each backend beats dense, per shape and block size, and its fastest point."""
    rows = []
    for row in records(compare.breakeven_sparsity(compare.block_sparse(gemm.points))):
        cells, efficiency = _breakeven(row)
        rows.append({"product": compare.shape_name((row["m"], row["k"], row["n"])), **cells, **efficiency})
    return pd.DataFrame(rows, columns=["product", *BREAKEVEN, "median efficiency"])


def layer_table(lstm: Part) -> pd.DataFrame:
    """The sparsity from which on each backend beats an LSTM baseline, per layer, batch and block size.

    With its fastest point. Baselines may differ, each has rows of its own.
    """
    points = compare.block_sparse(lstm.points)
    rows = []
    for row in records(compare.breakeven_sparsity(points, [*compare.LAYER, "baseline", "scope"])):
        cells, efficiency = _breakeven(row)
        promise = layer_speedup(row["input_size"], row["hidden_size"], row["at_sparsity"], row["scope"])
        layer = {
            "layer": compare.layer_name([row[side] for side in compare.LAYER_SIDES]),
            "batch": str(row["batch_size"]),
            "over": row["baseline"],
        }
        rows.append({**layer, **cells, "theory there": factor(promise), **efficiency})
    return pd.DataFrame(rows, columns=["layer", "batch", "over", *BREAKEVEN, "theory there", "median efficiency"])


def storage_table(stored: Part) -> pd.DataFrame:
    """The share of zeros from which on each sparse form is smaller than dense, by formula too, and faster: STORAGE."""
    rows = [
        [
            f"{row['dtype']}, {compare.shape_name([row[side] for side in compare.SHAPE])}",
            row["name"],
            _share(row["smaller_from"]),
            f"{row['formula_from']:.3f}",
            _share(row["file_from"]),
            _doubted(_share(row["faster_from"]), row["faster_noisy"]),
            _doubted(f"{row['fastest']:.2f}×", row["noisy"]),
            f"{row['at_sparsity']:.2f}",
        ]
        for row in records(stored.crossovers)
    ]
    return pd.DataFrame(rows, columns=list(STORAGE))


def _share(crossing: Breakeven) -> str:
    return f"{crossing.sparsity:.3f}" if crossing.sparsity is not None else crossing.kind


def training_time_table(train: Part) -> pd.DataFrame:
    """Seconds of whole runs, dense, masked and sparse, beside the integral of their LSTM layers, theory and measured.

    LSTM share: of the masked run's time. expected, ceiling: Amdahl's with that share, at the measured and the predicted
    integral; the speedup over the masked run compares two runs that were not interleaved.
    """
    rows = [
        [
            *_named(row),
            str(row["seeds"]),
            *(_amount(row[f"{name}_seconds"], "{:.1f} s") for name in ("dense", "masked", "sparse")),
            factor(row["predicted"]),
            times(row["measured"]),
            times(row["efficiency"]).replace("×", ""),
            _amount(row["lstm_share"], "{:.0%}"),
            times(row["against_masked"]),
            factor(row["allowed"]),
            factor(row["ceiling"]),
        ]
        for row in records(train.gains)
    ]
    columns = [name.replace("LSTM", train.layer_noun.split()[0]) for name in TIME]
    return pd.DataFrame(rows, columns=columns)


def finished_model_table(train: Part) -> pd.DataFrame:
    """The finalised models: inference against dense, bytes, and perplexity beside the masked runs of the same seeds."""
    digits = train.unit.digits
    rows = [
        [
            *_named(row),
            *(times(row[name]) for name in ("inference", "inference_lstm")),
            *(factor(row[name]) for name in ("inference_promise", "inference_ceiling")),
            *(_megabytes(row[name]) for name in ("dense_bytes", "final_bytes")),
            *(plus_minus(row[name], digits) for name in ("masked_ppl", "test_ppl")),
            signed(row["ppl_difference"], digits),
            row["ppl_ratio"].verdict or NOTHING,
            _amount(row["seed_noise"], "{:.2g}"),
            plus_minus(row["final_ppl"], digits),
        ]
        for row in records(train.gains)
    ]
    return pd.DataFrame(
        rows, columns=[name.replace("ppl", train.unit.short).replace("LSTM layers", train.layer_noun) for name in MODEL]
    )


METHODS = (
    "variant", "block size", "target sparsity", "seeds", "test accuracy", "test errors", "against dense",
    "against the best",
)  # fmt: skip
NARROWED = (
    "variant", "block size", "target sparsity", "live units", "units without the dead", "sparsity", "sparsity then",
    "bytes dense", "bytes", "bytes then", "inference", "inference then", "dense of as many weights", "its inference",
)  # fmt: skip


def methods_table(train: Part) -> pd.DataFrame:
    """Classifiers, the best first within a block size and sparsity: accuracy, and errors against dense and the best."""
    rows = [
        [
            *_named(row),
            str(row["seeds"]),
            f"{row['accuracy']:.1%}".replace("%", " %"),
            _per_cent(row["error"]),
            judged(row["against_dense"]),
            NOTHING if math.isnan(row["against_best"].low) else judged(row["against_best"]),
        ]
        for row in records(train.methods)
    ]
    return pd.DataFrame(rows, columns=list(METHODS))


def narrowed_table(train: Part) -> pd.DataFrame:
    """What is left of finished models once their dead units are removed: units, sparsity, bytes, inference."""
    rows = [
        [
            *_named(row),
            *(", ".join(map(str, row[name])) for name in ("units", "narrowed_units")),
            *(_amount(row[name], "{:.3f}") for name in ("stored_sparsity", "narrowed_sparsity")),
            *(_amount(row[name] / 1e3, "{:.1f} kB") for name in ("dense_bytes", "final_bytes", "narrowed_bytes")),
            *(times(row[name]) for name in ("inference", "narrowed")),
            _amount(row["equal_units"], "{:g} units"),
            times(row["equal"]),
        ]
        for row in records(train.narrowings)
    ]
    return pd.DataFrame(rows, columns=list(NARROWED))


def _per_cent(rate: Estimate) -> str:
    """'7.2 % [5.9, 8.8]'."""
    interval = "" if math.isnan(rate.low) else f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{100 * rate.value:.1f} %{interval}"


def _named(row: dict[str, Any]) -> list[str]:
    """The cells that name a setting of `gains`, `methods` or `narrowings`."""
    if is_dense(row["variant"]):
        return [row["variant"], NOTHING, NOTHING]
    short = "" if row.get("reached", True) else f", stopped at {row['sparsity']:.2f}"
    return [row["variant"], f"{row['block_size']:g}", wanted(row) + short]


def statements(train: Part) -> list[str]:
    """One sentence for each setting on the sparse path: training time, integral, inference, bytes and perplexity."""
    return [_statement(row, train.unit, train.layer_noun) for row in records(train.gains)]


def _statement(row: dict[str, Any], unit: Unit, noun: str) -> str:
    dense, masked, sparse = (_amount(row[f"{name}_seconds"], "{:.1f} s") for name in ("dense", "masked", "sparse"))
    return (
        f"{row['variant']}, block {row['block_size']:g}, ρ {wanted(row)}: dense training {dense}, masked "
        f"{masked}, sparse {sparse}; integral of the {noun} predicted {factor(row['predicted'])}, measured "
        f"{times(row['measured'])}; inference after finalize {times(row['inference'])} of dense at "
        f"{_megabytes(row['final_bytes'])} of {_megabytes(row['dense_bytes'])}; {_perplexity(row, unit)}."
    )


def _perplexity(row: dict[str, Any], unit: Unit) -> str:
    """Whether training on the sparse path ended where the masked runs of the same seeds did."""
    apart, noise = row["ppl_difference"], row["seed_noise"]
    if apart.n == 0:
        return f"no masked run of the same seed to compare its {unit.name} with"
    found = f"test {unit.name} {signed(apart, unit.digits)} from the masked run of the same seed"
    verdict = row["ppl_ratio"].verdict
    if not verdict:
        return f"{found}, of one seed, so it is not known whether another seed would change more than that"
    shown = "neither shown to differ nor to be equal" if verdict == "undecided" else verdict
    return f"{found}, {shown}" + ("" if math.isnan(noise) else f" (seed noise {noise:.2g})")


def _amount(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else form.format(value)


def _megabytes(value: float) -> str:
    return _amount(value / 1e6, "{:.2f} MB")


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
