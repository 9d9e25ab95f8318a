"""Products by wgmma at the edges: patterns, guarded operands, schedules, planted mistakes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import emulator
import torch
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import error_bound
from kernels.cuda import wgmma
from kernels.cuda.device import FOLDER, Kernel, Variant
from kernels.cuda.wgmma import WgmmaProduct, WgmmaTile, unsupported
from kernels.cuda.wgmma_tma import TmaProduct, TmaTile

DTYPES = {"Bfloat16": torch.bfloat16, "Float16": torch.float16, "Tf32": torch.float32}
PATTERNS = ("random", "empty rows", "empty", "one block", "full row", "full")
GUARD = 1024  # elements on either side, more than a line of the output
WIDTHS = (1, 7, 33, 100, 300)
CASES = [
    (op, element, block_size)
    for op in wgmma.OPS
    for element in DTYPES
    for block_size in wgmma.BLOCKS
    if unsupported(op, element, block_size) is None
]
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


def check(
    op: str,
    element: str,
    kept: Tensor,
    block_size: int,
    n: int,
    tile: WgmmaTile,
    schedule: tuple[str, str],
    source: str | None = None,
) -> None:
    """Launch on few CTAs, so that each takes several tiles, and compare with float64."""
    generator, mask, dtype = torch.Generator().manual_seed(n), BlockMask(kept, block_size), DTYPES[element]
    bsr = BSRMatrix.from_dense(torch.randn(mask.shape, generator=generator).to(dtype), mask)
    dense = bsr.to_dense().mT if op == "dsd_t" else bsr.to_dense()
    _, x = guarded((n, dense.shape[1]), dtype)
    x.copy_(torch.randn(x.shape, generator=generator))
    buffer, out = guarded((n, dense.shape[0]), dtype)

    def load(wanted: Variant) -> Kernel:
        wanted = wanted if source is None else replace(wanted, source=source)
        return emulator.load(wanted, order=schedule[0], copies=schedule[1], seed=n)  # type: ignore[arg-type]

    product = TmaProduct if isinstance(tile, TmaTile) else WgmmaProduct
    product(op, element, block_size, bsr.index, n, tile, 3, load)(bsr.data, x, out)  # type: ignore[arg-type]
    expected = dense.double() @ x.mT.double()
    bound = error_bound(dense, x.mT, expected)
    if element == "Tf32":  # each operand is cut to 10 bits of fraction
        bound = bound + 2.0**-9 * (dense.double().abs() @ x.mT.double().abs())
    assert bool(((out.mT.double() - expected).abs() <= bound).all())
    assert bool(buffer[:GUARD].isnan().all() and buffer[-GUARD:].isnan().all()), "wrote outside the output"
