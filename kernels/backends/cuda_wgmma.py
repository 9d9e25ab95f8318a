"""Products of block-sparse matrices by wgmma (Hopper GPUs only): which exist, their tiles, their lists and their launches.

Activations are token-major. dsd: out [n, m] = x [n, k] W^T; dsd_t: the same with W's transpose; sdd: the kept blocks of
grad^T x, grad [n, m] and x [n, k]. W is given by its kept blocks [nnzb, b, b].
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from kernels.backends import cuda_kernel
from kernels.backends.cuda_kernel import Kernel, Variant
from kernels.backends.cuda_wgmma_plan import cut_columns, list_columns
from kernels.bsr import BSRIndex

BLOCKS = (16, 32, 64, 128)
BYTES = {"Bfloat16": 2, "Float16": 2, "Tf32": 4}
OPS = ("dsd", "dsd_t", "sdd")
LINE = 128  # bytes of a token's line in a stage
MULTIPLIERS = 2  # warpgroups; one more gathers
OUTPUT_BYTES = MULTIPLIERS * 64 * (LINE + 16)  # where sums are rearranged on their way out
THREADS = 128 * (MULTIPLIERS + 1)
MOST_SHARED = 227 * 1024


def unsupported(op: str, element: str, block_size: int) -> str | None:
    """Why this rung has no kernel for an op on `element` and blocks, in one line, or None."""
    if op not in OPS:
        return f"there is no {op} by wgmma"
    if element not in BYTES:
        return f"wgmma multiplies no {element}"
    if block_size not in BLOCKS:
        return f"wgmma needs blocks of 16, 32, 64 or 128, not {block_size}"
    if op != "dsd" and BYTES[element] != 2:
        return "wgmma reads transposed operands of 16 bits only"
    return None


@dataclass(frozen=True)
class Tile:
    """What a CTA makes at a time, rows x tokens, and its ring: `stages` of `panels` lines of 128 bytes a token.

    register_a: tokens are loaded into registers once for all block rows (blocks below 64).
    """

    rows: int
    tokens: int
    stages: int
    panels: int = 1
    register_a: bool = False

    def stage_bytes(self, element: str, block_size: int) -> int:
        """Bytes of a stage: tokens' lines, and a place for every block that the rows may keep in its columns."""
        columns = max(1, LINE // (block_size * BYTES[element])) * self.panels
        width = min(LINE, block_size * BYTES[element])
        return self.panels * self.tokens * LINE + columns * self.rows * width

    def shared_bytes(self, element: str, block_size: int) -> int:
        """As the kernel divides it: stages, output, and per stage two barriers and a word of what is kept."""
        return self.stages * (self.stage_bytes(element, block_size) + 24) + OUTPUT_BYTES

    def fits(self, element: str, block_size: int) -> bool:
        """Whether shared memory, registers and the 64-bit word of kept blocks suffice."""
        columns = max(1, LINE // (block_size * BYTES[element])) * self.panels
        sums = self.rows * self.tokens // (MULTIPLIERS * 128)
        room = self.shared_bytes(element, block_size) <= MOST_SHARED and sums <= 128
        if block_size >= 64:
            return room and self.rows == 64 * MULTIPLIERS and self.panels == 1 and not self.register_a
        return room and self.tokens % (64 * MULTIPLIERS) == 0 and columns * self.rows // block_size <= 64


def variant(op: str, element: str, block_size: int, tile: Tile) -> Variant:
    """The kernel to compile; ValueError with the reason where there is none."""
    reason = unsupported(op, element, block_size)
    if reason is None and not tile.fits(element, block_size):
        reason = f"{tile} does not fit {element} blocks of {block_size}"
    if reason is not None:
        raise ValueError(reason)
    numbers = {
        "BLOCK": block_size,
        "PANELS": tile.panels,
        "REGISTER_A": int(tile.register_a),
        "ROWS": tile.rows,
        "STAGES": tile.stages,
        "TOKENS": tile.tokens,
        "TURNED": int(op == "dsd_t"),
        "WARPGROUPS": MULTIPLIERS,
    }
    defines = tuple(sorted({"ELEMENT": element, **numbers}.items()))
    return Variant("products_wgmma.cu", "dsd", defines, THREADS, tile.shared_bytes(element, block_size), needs=90)


def tiles(element: str, block_size: int) -> Iterator[Tile]:
    """Every tile worth trying, deepest ring first; a tuner times them."""
    flat = block_size < 64
    for rows in (256, 128) if flat else (64 * MULTIPLIERS,):
        for tokens in (128, 256) if flat else (256, 128, 64, 32):
            for panels in (1, 2) if flat else (1,):
                for register_a in (False, True) if flat else (False,):
                    deepest = (Tile(rows, tokens, stages, panels, register_a) for stages in (6, 4, 3))
                    yield from [tile for tile in deepest if tile.fits(element, block_size)][:1]


def default_tile(element: str, block_size: int, n: int) -> Tile:
    """Without measurements: the most rows and tokens whose sums fit, tokens no more than n asks for."""
    found = list(tiles(element, block_size))
    enough = [tile for tile in found if tile.tokens < 2 * n or tile.tokens == min(each.tokens for each in found)]
    return max(enough, key=lambda tile: (tile.rows * tile.tokens, tile.rows, tile.register_a, -tile.panels))


def all_variants() -> Iterator[Variant]:
    """Every kernel that `tiles` and `sampled_tiles` lead to."""
    for element in BYTES:
        for block_size in BLOCKS:
            for op in OPS:
                if unsupported(op, element, block_size) is not None:
                    continue
                if op == "sdd":
                    yield from (sampled_variant(element, block_size, tile) for tile in sampled_tiles(block_size))
                else:
                    yield from (variant(op, element, block_size, tile) for tile in tiles(element, block_size))


@dataclass(frozen=True)
class SampledTile:
    """What sdd makes at a time: `columns` columns a warpgroup; its ring: `stages` of `depth` tokens."""

    columns: int
    depth: int
    stages: int

    def strips(self, block_size: int) -> tuple[int, int]:
        """(rows of a CTA, block columns of a CTA)."""
        return (128, self.columns // 128) if block_size == 128 else (64, MULTIPLIERS * self.columns // block_size)

    def shared_bytes(self, block_size: int) -> int:
        """As the kernel divides it: stages, and two barriers and a word of each."""
        rows, columns = self.strips(block_size)
        return self.stages * ((rows + columns * block_size) * 2 * self.depth + 24)

    def fits(self, block_size: int) -> bool:
        return self.columns >= block_size and self.shared_bytes(block_size) <= MOST_SHARED


def sampled_variant(element: str, block_size: int, tile: SampledTile) -> Variant:
    """sdd's kernel to compile; ValueError with the reason where there is none."""
    reason = unsupported("sdd", element, block_size)
    if reason is None and not tile.fits(block_size):
        reason = f"{tile} does not fit blocks of {block_size}"
    if reason is not None:
        raise ValueError(reason)
    numbers = {
        "BLOCK": block_size,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "STAGES": tile.stages,
        "WARPGROUPS": MULTIPLIERS,
    }
    defines = tuple(sorted({"ELEMENT": element, **numbers}.items()))
    return Variant("sdd_wgmma.cu", "sdd", defines, THREADS, tile.shared_bytes(block_size), needs=90)


def sampled_tiles(block_size: int) -> Iterator[SampledTile]:
    """Every tile of sdd worth trying."""
    for columns in (256, 128, 64):
        for depth in (64, 32):
            deepest = (SampledTile(columns, depth, stages) for stages in (6, 4, 3))
            yield from [tile for tile in deepest if tile.fits(block_size)][:1]


def default_sampled_tile(block_size: int, nnzb: int, ctas: int) -> SampledTile:
    """Without measurements: the widest tile that still leaves a task for each of `ctas` CTAs, or else the narrowest."""
    found = [tile for tile in sampled_tiles(block_size) if tile.stages >= 4]
    enough = [tile for tile in found if nnzb >= ctas * tile.strips(block_size)[1]]
    return enough[0] if enough else found[-1]


class Arguments(ctypes.Structure):
    """As struct Arguments in wgmma_gather.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "x", "y", "order", "first", "columns", "blocks")),
        *((name, ctypes.c_int) for name in ("n", "k", "m", "groups")),
    )


class SampledArguments(ctypes.Structure):
    """As struct Arguments in sdd_wgmma.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("grad", "x", "values", "tasks", "columns", "blocks")),
        *((name, ctypes.c_int) for name in ("n", "k", "m", "tasks_count")),
    )


def check_operands(*tensors: Tensor) -> None:
    """ValueError where the kernels, which move 16 bytes at a time, cannot read or write a tensor."""
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.data_ptr() % 16:
            raise ValueError("operands of wgmma must be contiguous and begin at a multiple of 16 bytes")


class Product:
    """A prepared out = x W^T (or x W): calling it launches and does nothing else.

    The tensors' memory is read at each call, so new values may be written into them; their addresses are fixed.
    """

    def __init__(
        self,
        op: str,
        element: str,
        values: Tensor,
        index: BSRIndex,
        x: Tensor,
        out: Tensor,
        tile: Tile,
        ctas: int,
        load: Callable[[Variant], Kernel] = cuda_kernel.load,
    ) -> None:
        """values: [nnzb, b, b]; x: [n, k]; out: [n, m], contiguous; at most `ctas` CTAs, one a multiprocessor."""
        self.keeps = values, x, out
        check_operands(*self.keeps)
        self.variant = variant(op, element, values.shape[1], tile)
        self.kernel = load(self.variant)
        self.listed = list_columns(index, values.shape[1], tile.rows, turned=op == "dsd_t")
        groups, n = self.listed.order.numel(), x.shape[0]
        pointers = (tensor.data_ptr() for tensor in (*self.keeps, *self.listed))
        self.arguments = Arguments(*pointers, n, x.shape[1], out.shape[1], groups)
        self.grid = (min(ctas, groups * -(-n // tile.tokens)), 1, 1)

    def __call__(self) -> None:
        self.kernel(self.grid, self.arguments)


class Sampled:
    """A prepared sdd: values [nnzb, b, b] = the kept blocks of grad^T x. Calling it launches and does nothing else."""

    def __init__(
        self,
        element: str,
        grad: Tensor,
        x: Tensor,
        index: BSRIndex,
        values: Tensor,
        tile: SampledTile,
        ctas: int,
        load: Callable[[Variant], Kernel] = cuda_kernel.load,
    ) -> None:
        """grad: [n, m]; x: [n, k], contiguous, n at least 1; at most `ctas` CTAs, one a multiprocessor."""
        self.keeps = grad, x, values
        check_operands(*self.keeps)
        block_size = values.shape[1]
        self.variant = sampled_variant(element, block_size, tile)
        self.kernel = load(self.variant)
        rows, columns = tile.strips(block_size)
        self.listed = list_columns(index, block_size, rows)
        self.tasks = cut_columns(self.listed, columns)
        lists = self.tasks, self.listed.columns, self.listed.blocks
        pointers = (tensor.data_ptr() for tensor in (*self.keeps, *lists))
        count = self.tasks.shape[0]
        self.arguments = SampledArguments(*pointers, x.shape[0], x.shape[1], grad.shape[1], count)
        self.grid = (min(ctas, count), 1, 1)

    def __call__(self) -> None:
        if self.grid[0]:  # else nothing is kept
            self.kernel(self.grid, self.arguments)
