"""The tuned table: which variant of a CUDA kernel was the fastest for the nearest shape that was measured.

tuned.json, beside this file, is a result, written by `python -m bench tune` with its provenance and its own sha256; where it is absent, does
not hold (a line says so), or knows nothing like a product, the kernels' own default rule holds.
"""

from __future__ import annotations

from functools import cache
from math import inf, log
from pathlib import Path
from typing import Any

from kernels.system.cache import DoubtError, read_sealed, say
from kernels.system.resources import shown

PATH = Path(__file__).with_name("tuned.json")
ALIKE = ("op", "dtype", "math", "block_size")  # must be equal
NEAR = ("n", "m", "k")  # may differ, n counting most
LARGEST = 2**31 - 1  # as of a cell's sizes
FARTHEST = log(4.0)  # an n more than 4 times another is not like it


@cache
def choices(path: Path = PATH) -> tuple[dict[str, Any], ...]:
    """The entries of the table; none where it is absent, and none of one that does not hold in every part."""
    try:
        table = read_sealed(path, own=False)  # who installs a package may be another than who uses it
        entries = table.get("choices")
        if not isinstance(entries, list):
            raise DoubtError(f"{shown(path)} has no list of choices")
        for number, entry in enumerate(entries, 1):
            if fault := _fault(entry):
                raise DoubtError(f"{shown(path)}, choice {number}: {fault}")
        return tuple(entries)
    except FileNotFoundError:
        return ()
    except DoubtError as doubt:
        say(f"{doubt}; kernels choose their tiles by the default rule until it is tuned again")
        return ()


def _fault(entry: Any) -> str | None:
    """What an entry lacks, or None."""
    if not isinstance(entry, dict):
        return "is no entry"
    for name in ("block_size", *NEAR):
        if type(entry.get(name)) is not int or not 1 <= entry[name] <= LARGEST:
            return f"{name} is no whole number from 1 to {LARGEST}"
    for name in ("op", "dtype", "math"):
        if not isinstance(entry.get(name), str):
            return f"{name} is no name"
    sparsity: Any = entry.get("target_sparsity")
    if type(sparsity) not in (int, float) or not 0 <= sparsity <= 1:
        return "target_sparsity is no number from 0 to 1"
    return None if isinstance(entry.get("variant"), dict) else "variant is no set of parameters"


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
