"""The tuned table: which variant of a CUDA kernel was the fastest for the nearest shape that was measured.

cuda/tuned.json is a result, written by `python -m bench tune` with its provenance; where it is absent, or knows nothing
like a product, the kernels' own default rule holds.
"""

from __future__ import annotations

import json
from functools import cache
from math import inf, log
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "cuda" / "tuned.json"
ALIKE = ("op", "dtype", "math", "block_size")  # must be equal
NEAR = ("n", "m", "k")  # may differ, n counting most
FARTHEST = log(4.0)  # an n more than 4 times another is not like it


@cache
def choices(path: Path = PATH) -> tuple[dict[str, Any], ...]:
    """The whole entries of the table; none where it is absent or not readable as one."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return tuple(each for each in table["choices"] if _whole(each))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _whole(entry: Any) -> bool:
    try:
        sizes = [entry[name] for name in NEAR]
        known = all(name in entry for name in ALIKE) and isinstance(entry["variant"], dict)
        return (
            known and all(isinstance(size, int) and size > 0 for size in sizes) and 0 <= entry["target_sparsity"] <= 1
        )
    except (KeyError, TypeError, IndexError):
        return False


def nearest(
    op: str, dtype: str, math: str, block_size: int, m: int, k: int, n: int, sparsity: float, path: Path = PATH
) -> dict[str, Any] | None:
    """The variant of the nearest tuned shape: by n first, then m and k, then sparsity. None where none is near."""
    wanted = {"op": op, "dtype": dtype, "math": math, "block_size": block_size}
    sizes = {"n": n, "m": m, "k": k}
    best, least = None, (FARTHEST, inf, inf)
    for each in choices(path):
        if any(each[name] != wanted[name] for name in ALIKE):
            continue
        far = {name: abs(log(sizes[name] / each[name])) for name in NEAR}
        distance = far["n"], far["m"] + far["k"], abs(each["target_sparsity"] - sparsity)
        if distance < least:
            best, least = each["variant"], distance
    return best
