"""What our CUDA kernels are expected to reach on a GPU that nobody had: a model over the plans of real patterns.

An estimate, never a row: `python -m bench expected` writes analysis/goals/expected.json, which notebook 4 shows as
expected, not measured. dsd, bfloat16, W 4096 x 4096, n 4096. Of each row group the plan (`kernels.cuda.wgmma`) lists
the block columns that it gathers; a tile takes the longer one of its products and of its bytes from L2, then what its
end and its beginning cost; a multiprocessor takes its tiles one after the other, dealt in turns from a list that falls
(`in_turns`) or the longest to who is free (`longest_first`); a launch is its latest multiprocessor, or the time of its
bytes from memory. By the rung of `kernels.cuda.wgmma_tma`, in clusters of two (`by_tma`), what both of a cluster read
comes from L2 once; what else differs there (who asks, how sums leave) is left out. The figures of a multiprocessor are
those of an H100: read from compiled code where it tells, else as published; trust them to 20 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import wgmma
from kernels.cuda.wgmma_tma import TmaTile
from kernels.problem import GemmProblem

SIDE, ELEMENT, BYTES = 4096, "Bfloat16", 2
BLOCKS = (128, 64, 32, 16)
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
MULTIPROCESSORS = 132
CYCLES = 1.755e9  # a second
CUBLAS = 720e12  # operations a second of the dense product, a multiply-add being two
RATE = 0.95 * 2048  # multiply-adds of a multiprocessor's tensor cores a cycle
L2 = (8e12, 10e12)  # bytes a second from L2 to all multiprocessors: the least and the most that is expected
MEMORY = {"H100": 3.0e12, "H200": 4.2e12}  # bytes a second that a copy reaches
BETWEEN_TILES = 2500  # cycles: sums to memory, and the next tile's list
LAUNCH_SECONDS = 3e-6  # with ramp and drain
SKIPPED, KEPT = 8, 30  # cycles of a warpgroup for a pair of small blocks that is skipped, and at least for a kept one
TALL = 64  # block sizes from here on take whole instructions


class Expected(NamedTuple):
    """Efficiency, speedup over theory's, at the slowest and the fastest L2 and an H200's memory.

    roof: the most that each GPU's memory allows. imbalance: the latest multiprocessor over the mean one.
    """

    block_size: int
    sparsity: float
    tile: str
    imbalance_in_turns: float
    imbalance_longest_first: float
    in_turns: tuple[float, float]
    longest_first: tuple[float, float]
    by_tma: tuple[float, float]
    roof: dict[str, float]


def estimates(blocks: Sequence[int] = BLOCKS, sparsities: Sequence[float] = SPARSITIES) -> Iterator[Expected]:
    """One for each block size and sparsity."""
    for block_size in blocks:
        tile = wgmma.default_tile(ELEMENT, block_size, SIDE)
        for sparsity in sparsities:
            yield _estimate(block_size, sparsity, tile)


def _estimate(block_size: int, sparsity: float, tile: wgmma.WgmmaTile) -> Expected:
    mask = GemmProblem(SIDE, SIDE, SIDE, block_size, sparsity, dtype="bfloat16").mask
    dense = 2 * SIDE**3 / CUBLAS
    allowed = {name: _memory_seconds(mask, rate) for name, rate in MEMORY.items()}
    paired = TmaTile(tile.rows, tile.tokens, tile.stages, tile.panels, tile.register_a, cluster=2)
    spans = [(*_spans(mask, tile, rate), _span_of_clusters(mask, paired, rate)) for rate in L2]
    found = [
        tuple(dense * (1 - mask.sparsity) / (max(span, allowed["H200"]) + LAUNCH_SECONDS) for span in each)
        for each in zip(*[(*span[:2], span[3]) for span in spans], strict=True)
    ]
    mean = spans[0][2]
    return Expected(
        block_size,
        sparsity,
        f"{tile.rows} rows x {tile.tokens} tokens",
        spans[0][0] / mean,
        spans[0][1] / mean,
        (found[0][0], found[0][1]),
        (found[1][0], found[1][1]),
        (found[2][0], found[2][1]),
        {name: min(1.0, dense * (1 - mask.sparsity) / seconds) for name, seconds in allowed.items()},
    )


def _memory_seconds(mask: BlockMask, rate: float) -> float:
    """X and Y, and the kept blocks, each once."""
    return BYTES * (2 * SIDE * SIDE + mask.nnzb * mask.block_size**2) / rate


def _spans(mask: BlockMask, tile: wgmma.WgmmaTile, rate: float) -> tuple[float, float, float]:
    """Seconds of the latest multiprocessor, dealt in turns and longest first, and of the mean one."""
    costs = sorted(tile_seconds(mask, tile, rate), reverse=True)
    costs = [cost for cost in costs for _ in range(-(-SIDE // tile.tokens))]
    mean = sum(costs) / MULTIPROCESSORS
    return max(in_turns(costs)), max(longest_first(costs)), mean


def _span_of_clusters(mask: BlockMask, tile: TmaTile, rate: float) -> float:
    """Seconds of the latest cluster, dealt longest first: of neighbours in tokens, or in rows, the longer counting."""
    costs = tile_seconds(mask, tile, rate)
    across = -(-SIDE // tile.tokens)
    if mask.block_size >= TALL:
        across = -(-across // tile.cluster)
    else:
        costs = [max(costs[first : first + tile.cluster]) for first in range(0, len(costs), tile.cluster)]
    costs = [cost for cost in sorted(costs, reverse=True) for _ in range(across)]
    return max(wgmma.first_done(costs, MULTIPROCESSORS // tile.cluster)[1])


def tile_seconds(mask: BlockMask, tile: wgmma.WgmmaTile, rate: float) -> list[float]:
    """Of a tile of each row group. rate: bytes a second from L2 to all multiprocessors."""
    size = mask.block_size
    index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index
    listed = wgmma.list_columns(index, size, tile.rows)
    columns = listed.first.diff().double()
    kept = torch.zeros(columns.numel(), dtype=torch.float64)
    group = torch.arange(columns.numel()).repeat_interleave(listed.first.diff())
    kept.index_add_(0, group, (listed.blocks >= 0).sum(dim=1).double())
    of_x, of_blocks = 1, 1  # how many share them
    if isinstance(tile, TmaTile) and size >= TALL:
        of_blocks = tile.cluster
    elif isinstance(tile, TmaTile):
        of_x, columns = tile.cluster, torch.full_like(columns, mask.kept.shape[1])  # every one comes
    products = kept * size**2 * tile.tokens / RATE
    if size < TALL:  # each warpgroup has half of the tokens, in parts of 64, and tests every pair
        pairs = columns * (tile.rows // size) * max(1, size // 16)
        parts = tile.tokens / (64 * wgmma.MULTIPLIERS)
        least = kept * max(1, size // 16) * KEPT * parts
        products = torch.maximum(products, least) + (pairs - kept * max(1, size // 16)).clamp(min=0) * SKIPPED
    moved = BYTES * (columns * size * tile.tokens / of_x + kept * size**2 / of_blocks)
    loads = moved / (rate / MULTIPROCESSORS) * CYCLES
    return ((torch.maximum(products, loads) + BETWEEN_TILES) / CYCLES).tolist()


def in_turns(costs: Sequence[float]) -> list[float]:
    """What each multiprocessor has of a falling list that is dealt one by one, always beginning with the same."""
    return [sum(costs[number::MULTIPROCESSORS]) for number in range(MULTIPROCESSORS)]


def longest_first(costs: Sequence[float]) -> list[float]:
    """What each has where the next of a falling list goes to the one that is done first, as the plan deals tiles."""
    return list(wgmma.first_done(costs, MULTIPROCESSORS)[1])


def write(path: Path, found: Sequence[Expected]) -> None:
    """As JSON, an estimate a line, with what was assumed."""
    assumed: dict[str, Any] = {
        "product": f"dsd, bfloat16, W {SIDE} x {SIDE}, n {SIDE}",
        "cublas_tflops": CUBLAS / 1e12,
        "l2_tb_per_second": [rate / 1e12 for rate in L2],
        "memory_tb_per_second": {name: rate / 1e12 for name, rate in MEMORY.items()},
        "multiprocessors": MULTIPROCESSORS,
    }
    lines = ",\n    ".join(json.dumps(_rounded(each._asdict())) for each in found)
    path.write_text(f'{{\n  "assumed": {json.dumps(assumed)},\n  "estimates": [\n    {lines}\n  ]\n}}\n', "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, tuple) else value
