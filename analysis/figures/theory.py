"""Figures of what arithmetic says about a sweep: storage, arithmetic intensity, and the ceiling of a whole network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import compare, theory
from analysis.figures import style
from analysis.figures.panels import noisy_points, nothing_kept, nothing_measured
from analysis.load import one_of
from analysis.study import Part

AWD_LSTM = {"embedding_size": 400, "hidden_size": 1150, "num_layers": 3, "vocabulary": 33278}  # slides' network
RHOS = np.linspace(0.0, 0.99, 200)


def storage_figure(rows: int, cols: int, block_sizes: Sequence[int] = (8, 16, 32)) -> Figure:
    """Bytes of a rows x cols float32 weight in each sparse layout over its dense bytes, with the crossings marked."""
    drawn, [[ax]] = style.figure(4.4)
    dense = theory.dense_bytes(rows, cols)
    lines = [("COO", "coo", 1, style.GREY, "--"), ("CSR", "csr", 1, style.PURPLE, "-.")]
    lines += [(f"BSR, block {size}", "bsr", size, style.block_colour(size), "-") for size in block_sizes]
    for label, layout, size, colour, dashes in lines:
        stored = [_layout_bytes(layout, rows, cols, size, rho) / dense for rho in RHOS]
        crossing = theory.storage_crossover(layout, rows, cols, size)
        ax.plot(RHOS, stored, dashes, color=colour, label=f"{label}: smaller from ρ = {crossing:.3f}")
        ax.plot(crossing, 1.0, "*", color=colour, markersize=11, markeredgecolor="white", zorder=5)
    ax.axhline(1.0, color="black", linewidth=1.0)
    ax.set(xlabel="sparsity ρ", ylabel="bytes / dense bytes", xlim=(0, 1), ylim=(0, 3.1))
    ax.set_title(f"Storage of a {rows} × {cols} weight in float32")
    ax.legend()
    return drawn


def _layout_bytes(layout: str, rows: int, cols: int, block_size: int, rho: float) -> float:
    kept = 1.0 - rho
    if layout == "bsr":
        grid_rows, grid_cols = rows // block_size, cols // block_size
        return theory.bsr_bytes(grid_rows, round(kept * grid_rows * grid_cols), block_size)
    nnz = round(kept * rows * cols)
    return theory.coo_bytes(nnz) if layout == "coo" else theory.csr_bytes(rows, nnz)


def roofline_figure(gemm: Part) -> Figure:
    """Attained GFLOP/s against arithmetic intensity for one shape, under roofs made of the best this sweep reached.

    gemm: a part of one product shape. The roofs are measured, not the hardware's: the flat one is the highest rate of
    any product, dense ones included, the slope the highest traffic (compulsory bytes over time).
    """
    one_of(gemm.rows, compare.SHAPE)
    drawn, [[ax]] = style.figure(5.0)
    every = compare.block_sparse(gemm.points)
    timed = compare.kept(every)
    if timed.empty:
        nothing_measured(ax, "block-sparse product of this shape", every)
        style.margin(drawn, nothing_kept(every))
        return drawn
    points = _rates(timed)
    peak, slope = points["rate"].max(), (points["rate"] / points["intensity"]).max()
    low, high = points["intensity"].min() / 1.5, max(points["intensity"].max(), peak / slope) * 1.5
    ax.plot(*_roof(peak, slope, low, high), "--", color="black", linewidth=1.2, label="best of this sweep")
    for (backend, size), part in points.groupby(["backend", "block_size"], sort=True):
        dense = backend == "dense"
        colour, marker = ("black", "*") if dense else (style.block_colour(size), style.block_marker(size))
        label = "dense (baseline)" if dense else f"{backend}, block {size}"
        face = colour if dense or backend == points["backend"].iloc[0] else "white"
        ax.plot(part["intensity"], part["rate"] / 1e9, marker, color=colour, markerfacecolor=face,
                markersize=13 if dense else 6, label=label)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="FLOP per byte (every operand moved once)", ylabel="GFLOP/s")
    ax.set_title(f"Rate against arithmetic intensity: {compare.shape_name(tuple(timed[compare.SHAPE].iloc[0]))}")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.margin(drawn, [*nothing_kept(every), *noisy_points(timed)])
    return drawn


def _rates(timed: pd.DataFrame) -> pd.DataFrame:
    """backend, block_size, intensity (FLOP/byte) and rate (FLOP/s) of each point, and of the dense product beside."""
    rows = []
    for row in timed.to_dict("records"):
        m, k, n, size = (int(row[name]) for name in ("m", "k", "n", "block_size"))
        nnzb = round((1.0 - row["sparsity"]) * (m // size) * (k // size))
        intensity = theory.dsd_intensity(m, k, n, size, nnzb)
        rate = 2 * nnzb * size**2 * n / row["time_ms"] * 1e3
        rows.append({"backend": row["backend"], "block_size": size, "intensity": intensity, "rate": rate})
    m, k, n = (int(timed[side].iloc[0]) for side in compare.SHAPE)
    flops = 2 * theory.dense_multiplications(m, k, n)
    moved = theory.dense_bytes(m, k) + theory.dense_bytes(k + m, n)
    rate = flops / timed["baseline_ms"].median() * 1e3
    rows.append({"backend": "dense", "block_size": 0, "intensity": flops / moved, "rate": rate})
    return pd.DataFrame(rows)


def _roof(peak: float, slope: float, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    at = np.geomspace(low, high, 100)
    return at, np.array([theory.roofline(peak, slope, intensity) for intensity in at]) / 1e9


def amdahl_figure(train: Part) -> Figure:
    """Ceiling of a whole forward pass by sparsity: the product alone, the slides' AWD-LSTM, and the runs of a sweep."""
    drawn, [[ax]] = style.figure(4.6)
    product = [theory.speedup(rho) for rho in RHOS]
    ax.plot(RHOS, product, "--", color="black", linewidth=1.2, label="the pruned product alone, 1/(1−ρ)")
    embedding, hidden, layers = (AWD_LSTM[name] for name in ("embedding_size", "hidden_size", "num_layers"))
    weight_ih, weight_hh = theory.lstm_multiply_adds(embedding, hidden, layers)
    decoder = AWD_LSTM["embedding_size"] * AWD_LSTM["vocabulary"]
    for label, pruned, other, colour in (
        ("AWD-LSTM of the slides, every LSTM weight pruned", weight_ih + weight_hh, decoder, style.BLUE),
        ("AWD-LSTM of the slides, weight_hh pruned", weight_hh, weight_ih + decoder, style.ORANGE),
    ):
        ax.plot(RHOS, [theory.amdahl_ceiling(pruned, other, rho) for rho in RHOS], color=colour, label=label)
    highest = 24.0
    final = train.runs
    if len(final):
        ax.plot(final["stored_sparsity"], final["ceiling"], "o", color=style.GREEN, label="runs of this sweep")
        highest = max([highest, *(1.15 * final["ceiling"]).tolist()])
    style.speedup_axis(ax.yaxis, 0.9, highest)
    ax.set(xlabel="sparsity ρ", ylabel="speedup over dense (log₂)", xlim=(0, 1))
    ax.set_title("What is not pruned bounds the whole forward pass (Amdahl)")
    ax.legend()
    return drawn
