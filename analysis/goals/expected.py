"""What the CUDA kernels are expected to reach before a GPU was to be had: estimates of a model, never measurements.

expected.json, beside this file, comes from the kernels' plans (`python -m bench expected`), which the analysis does not
import.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.goals.gpu import BLOCKS, KINDS

FILE = Path(__file__).with_name("expected.json")
BY_WGMMA = 1  # of KINDS: bfloat16 and float16


def estimates() -> dict[str, Any]:
    """'assumed', what the model takes of the GPU, and 'estimates', one for each block size and sparsity."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def said() -> str:
    """One sentence that no reader can take for a measurement."""
    assumed = estimates()["assumed"]
    memory = ", ".join(f"{name} {rate:g}" for name, rate in assumed["memory_tb_per_second"].items())
    low, high = assumed["l2_tb_per_second"]
    return (
        f"**Expected, not measured**: {assumed['product']}, by the plans of the kernels and a model of a GPU with "
        f"{assumed['multiprocessors']} multiprocessors, cuBLAS at {assumed['cublas_tflops']:g} TFLOP/s, "
        f"{low:g} to {high:g} TB/s from L2, and from memory, in TB/s, {memory}. Trust it to 20 %."
    )


def expected_table() -> pd.DataFrame:
    """Efficiency by block size and sparsity beside the goal, as text; where memory is a lower roof, that too."""
    goals = dict(zip(BLOCKS, KINDS[BY_WGMMA][3], strict=True))
    rows = []
    for each in estimates()["estimates"]:
        roofs = [f"{name} {roof:.2f}" for name, roof in each["roof"].items() if roof < 1.0]
        rows.append(
            {
                "block": str(each["block_size"]),
                "ρ": f"{each['sparsity']:g}",
                "tile": each["tile"].replace(" x ", " × "),
                "goal": f"≥ {goals[each['block_size']]:.2f}",
                "expected, tiles in turns": _between(each["in_turns"]),
                "expected, longest tile first": _between(each["longest_first"]),
                "expected, by TMA in clusters of two": _between(each["by_tma"]),
                "latest over mean SM": f"{each['imbalance_in_turns']:.2f}, {each['imbalance_longest_first']:.2f}",
                "at most, by memory": ", ".join(roofs) or "–",
            }
        )
    return pd.DataFrame(rows)


def _between(bounds: list[float]) -> str:
    low, high = (f"{bound:.2f}" for bound in bounds)
    return low if low == high else f"{low} to {high}"
