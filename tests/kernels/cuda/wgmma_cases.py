"""Products by wgmma at the edges: patterns, guarded operands, schedules, planted mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from kernels.cuda.device import FOLDER

DTYPES = {"Bfloat16": torch.bfloat16, "Float16": torch.float16, "Tf32": torch.float32}
PATTERNS = ("random", "empty rows", "empty", "one block", "full row", "full")
GUARD = 1024  # elements on either side, more than a line of the output
WIDTHS = (1, 7, 33, 100, 300)
SCHEDULES = (("forward", "late"), ("reverse", "early"), ("random", "random"))


def kept_blocks(pattern: str, rows: int, cols: int) -> Tensor:
    """bool[rows, cols]."""
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    if pattern in ("random", "empty rows"):
        kept = torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows)) < 0.4
    if pattern == "empty rows":
        kept[::2] = False
    if pattern == "one block":
        kept[-1, -1] = True
    if pattern == "full row":
        kept[rows // 2] = True
    if pattern == "full":
        kept[:] = True
    return kept


def grid_of(block_size: int) -> tuple[int, int]:
    """Some row groups, the last one not full, and more columns than a step lists."""
    return {16: (19, 11), 32: (9, 7), 64: (5, 4), 128: (3, 3)}[block_size]


def guarded(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A buffer full of NaN, and `shape` in its middle."""
    buffer = torch.full((shape[0] * shape[1] + 2 * GUARD,), float("nan"), dtype=dtype)
    return buffer, buffer[GUARD:-GUARD].view(shape)


def plant(folder: Path, source: str, fault: tuple[str, str, str]) -> str:
    """`source` copied with its headers and one mistake: the file, what is right there, what is put in its place."""
    for path in (FOLDER / source, *FOLDER.glob("wgmma*.h")):
        shutil.copy(path, folder)
    name, right, wrong = fault
    text = (folder / name).read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{name} says {right!r} {text.count(right)} times"
    (folder / name).write_text(text.replace(right, wrong), encoding="utf-8")
    return str(folder / source)
