"""Products by mma.sync and FFMA: their tiles, and prepared launches of dsd, its transpose and sdd.

Of the tiles there is every legal one for a tuner and for CI, and the one taken where nothing was tuned. They are built
by what a multiprocessor of an H200 has: 65536 registers, 227 KB of shared memory; the smaller ones fit the 99 KB of
compute capability 8.6, 8.9 and 12.0 too, and for each op there are some of two stages, of which two fit there together.
A measured table may name another variant; nothing here is a measurement.

Operands lie token by token: X is [n, k] and Y [n, m] in memory, values are [nnzb, b, b]. A prepared launch holds its
plan and the kernel's arguments; a call sets three pointers and launches on the current stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cuda.device import Kernel, Variant
from kernels.cuda.mma_plan import ProductPlan, ProductTile, SampledPlan, SampledTile

BYTES = {"Float32": 4, "Tf32": 4, "Bfloat16": 2, "Float16": 2}
ELEMENTS = tuple(BYTES)
BLOCKS = (8, 16, 32, 64, 128)
OPS = ("dsd", "dsd_t", "sdd")
SHARED_BYTES = 232448  # of a CTA on an H200: 227 KB
SMALLEST_SHARED_BYTES = 101376  # of all we compile for: 99 KB on 8.6
HALF_SHARED_BYTES = 50176  # 49 KB: two such CTAs share its 100 KB, of which the driver takes a KB each
LINE_BYTES = 128  # of a tile whose lines run along the reduction: free of bank conflicts, and whole sectors in memory


@dataclass(frozen=True)
class ProductChoice:
    """A dsd kernel: the variant, what its plan depends on, and the tokens of a CTA."""

    variant: Variant
    tile: ProductTile
    tokens: int
    parts: bool  # writes float sums of a part of the reduction

    @property
    def element(self) -> str:
        return str(dict(self.variant.defines)["ELEMENT"])


@dataclass(frozen=True)
class SampledChoice:
    """An sdd kernel: the variant, what its plan depends on, and the tokens of a stage."""

    variant: Variant
    tile: SampledTile
    depth: int
    parts: bool

    @property
    def element(self) -> str:
        return str(dict(self.variant.defines)["ELEMENT"])


def is_exact(element: str) -> bool:
    """Whether ordinary threads multiply, not tensor cores."""
    return element == "Float32"


def product_choice(
    element: str,
    block: int,
    transposed: bool,
    rows: int,
    tokens: int,
    warps: tuple[int, int, int],
    stages: int,
    ctas: int = 1,
    parts: bool = False,
    limit: int | None = None,
) -> ProductChoice:
    """dsd with CTAs of rows x tokens, warps along rows, tokens and the reduction, `ctas` on a multiprocessor.

    stages: at most; as many as fit into `limit` bytes of shared memory, by default those of an H200, or of an 8.6 if
    rows and tokens are at most 256 together.
    """
    size = BYTES[element]
    depth = LINE_BYTES // size
    tile = ProductTile(block, rows, depth, transposed, paired=block == 8 and size == 2)
    stage = (rows + tokens) * depth * size + 2 * tile.entry * 4
    limit = limit or (SMALLEST_SHARED_BYTES if rows + tokens <= 256 else SHARED_BYTES)
    stages = min(stages, limit // stage)
    staged = warps[2] * tokens * (rows + 8) * (4 if parts or warps[2] > 1 else size)
    shared = stages * stage if is_exact(element) else max(stages * stage, staged)
    threads = 32 * warps[0] * warps[1] * warps[2]
    defines: dict[str, str | int] = {
        "BLOCK": block,
        "CTAS": ctas,
        "DEPTH": depth,
        "ELEMENT": element,
        "PARTS": int(parts),
        "ROWS": rows,
        "STAGES": stages,
        "THREADS": threads,
        "TOKENS": tokens,
        "TURNED": int(transposed),
        "WARPS_DEPTH": warps[2],
        "WARPS_ROWS": warps[0],
        "WARPS_TOKENS": warps[1],
    }
    source = "dsd_fp32.cu" if is_exact(element) else "dsd.cu"
    return ProductChoice(Variant(source, "dsd", tuple(sorted(defines.items())), threads, shared), tile, tokens, parts)


def sampled_choice(
    element: str,
    block: int,
    rows: int,
    cols: int,
    warps: int,
    units: int,
    ctas: int = 1,
    parts: bool = False,
    limit: int | None = None,
) -> SampledChoice:
    """sdd with jobs of at most rows x cols, `units` a warp (of exact ones, blocks as many as the threads make).

    limit: bytes of shared memory that the stages fit into, by default those of an H200, or of an 8.6 with few warps.
    """
    size, exact = BYTES[element], is_exact(element)
    depth = 16 if exact else 32
    side = block if exact else min(block, 64)
    bins, units = (1, warps * 2048 // block**2) if exact else (warps, units)
    tile = SampledTile(block, rows, cols, side, bins, units, paired=block == 8 and not exact)
    stage = (rows + cols) * depth * size
    limit = limit or (SMALLEST_SHARED_BYTES if warps == 4 or exact else SHARED_BYTES)
    stages = min(4, (limit - tile.job * 4) // stage)
    defines: dict[str, str | int] = {
        "BINS": bins,
        "BLOCK": block,
        "COLS": cols,
        "CTAS": ctas,
        "DEPTH": depth,
        "ELEMENT": element,
        "FLOATS": int(parts),
        "ROWS": rows,
        "STAGES": stages,
        "THREADS": 32 * warps,
        "UNIT": side,
        "UNITS": units,
        "WARPS": warps,
    }
    source, shared = "sdd_fp32.cu" if exact else "sdd.cu", stages * stage + tile.job * 4
    variant = Variant(source, "sdd", tuple(sorted(defines.items())), 32 * warps, shared)
    return SampledChoice(variant, tile, depth, parts)


def adding(element: str) -> Variant:
    """The kernel that adds parts."""
    return Variant("add_parts.cu", "add_parts", (("ELEMENT", element), ("THREADS", 256)), 256, 0)


def _products(element: str, block: int, transposed: bool, n: int, parts: bool) -> Iterator[ProductChoice]:
    """Best guess first. Warps of small blocks differ in tokens only, so that all of them have the same work."""

    def choice(
        rows: int, tokens: int, warps: tuple[int, int, int], stages: int, ctas: int = 1, limit: int | None = None
    ) -> ProductChoice:
        return product_choice(element, block, transposed, rows, tokens, warps, stages, ctas, parts, limit)

    if is_exact(element):
        if n > 64:  # alone on its multiprocessor: 128 registers a thread do not suffice
            yield choice(128, 128, (2, 4, 1), 3)
        if n > 32:
            yield choice(64, 64, (1, 4, 1), 3, 2)
        yield choice(32, 32, (1, 4, 1), 4, 2)
        return
    small = block <= 32
    if n > 128 and not parts:  # there are CTAs enough
        yield choice(128, 256, (1, 8, 1) if small else (2, 4, 1), 4)
        if 8 < block <= 32 and element != "Tf32":  # of those two, registers do not suffice
            yield choice(256, 128, (1, 8, 1), 4)
    if n > 80:
        yield choice(128, 128, (1, 4, 1) if small else (2, 2, 1), 3, 2)
        yield choice(64, 64 if block == 8 else 128, (1, 4, 1) if small else (2, 2, 1), 2, 2, HALF_SHARED_BYTES)
    if 64 < n <= 80 or 128 < n <= 160:
        yield choice(32, 80, (1, 1, 4), 6, 2)
    if 32 < n <= 160 and not parts:
        yield choice(64, 64, (1, 2, 2), 4, 2)
    if n <= 64:
        yield choice(32, 32, (1, 1, 4), 8, 2)
    if n <= 32 and not parts:
        yield choice(16, 32, (1, 1, 4), 8, 2)


def _sampled(element: str, block: int, parts: bool) -> Iterator[SampledChoice]:
    """Best guess first; the second fits 99 KB, the third fits twice."""
    if is_exact(element):
        yield sampled_choice(
            element, block, max(64, min(block * 4, 128)), 128 if block == 128 else 256, 8, 0, parts=parts
        )
        return
    large = {128: (128, 256, 1), 64: (64, 512, 1), 32: (256, 512, 4), 16: (256, 512, 8), 8: (256, 512, 16)}
    tf32 = {128: (128, 256, 1), 64: (64, 512, 1), 32: (256, 256, 2), 16: (256, 256, 8), 8: (256, 256, 8)}
    rows, cols, units = (tf32 if element == "Tf32" else large)[block]
    yield sampled_choice(element, block, rows, cols, 8, units, parts=parts)
    rows, units = {128: (128, 1), 64: (64, 1), 32: (128, 2), 16: (128, 8), 8: (128, 8)}[block]
    yield sampled_choice(element, block, rows, 128 if element == "Tf32" or block == 128 else 256, 4, units, 2, parts)
    half = 64 if element == "Tf32" and block <= 64 else 128
    if element != "Tf32" or block <= 64:  # of 128 x 128 numbers of 4 bytes there is room for one stage
        units = min(units, half // block * (rows // block) * (block // min(block, 64)) ** 2)
        yield sampled_choice(element, block, rows, half, 4, units, 2, parts, HALF_SHARED_BYTES)


def variants(op: str, element: str, block: int, n: int, parts: bool = False) -> Iterator[ProductChoice | SampledChoice]:
    """Every choice for n tokens, the likeliest first; parts: those that divide the reduction between CTAs."""
    if op == "sdd":
        yield from _sampled(element, block, parts)
    else:
        yield from _products(element, block, op == "dsd_t", n, parts)


def default(
    op: str, element: str, block: int, n: int, parts: bool = False, shared_bytes: int = SHARED_BYTES
) -> ProductChoice | SampledChoice:
    """The first of `variants` that a CTA has shared memory for."""
    return next(each for each in variants(op, element, block, n, parts) if each.variant.shared_bytes <= shared_bytes)


def all_variants() -> list[Variant]:
    """Everything that `variants` gives for any n, each once: the list that CI compiles."""
    found = dict.fromkeys(
        each.variant
        for op in OPS
        for element in ELEMENTS
        for block in BLOCKS
        for parts in (False, True)
        for n in (32, 64, 80, 128, 160, 4096)
        for each in variants(op, element, block, n, parts)
    )
    return [*found, *(adding(element) for element in ELEMENTS)]


Loader = Callable[[Variant], Kernel]
MULTIPROCESSORS = 132  # of an H200, where nobody says otherwise
MOST_PARTS = 8
STAGES_OF_A_PART = 16  # at least: about what the launch that adds the parts costs


def structure(name: str, pointers: str, ints: str) -> type[ctypes.Structure]:
    """A struct of pointers, then of 4-byte ints."""
    fields = [(each, ctypes.c_void_p) for each in pointers.split()] + [(each, ctypes.c_int) for each in ints.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Product = structure("Product", "values x out groups stages", "n x_line out_line parts")
Sampled = structure("Sampled", "grad x blocks jobs", "n grad_line x_line numbers part_tokens")
Parts = structure("Parts", "parts out", "numbers count")


class AddParts:
    """The sum of `count` parts of `numbers` floats each, in a fixed order, rounded to `element`.

    skipped: bytes of the output before the first number. Every launch has parts of its own, so that streams do not
    share them and a CUDA graph owns what it writes.
    """

    def __init__(
        self, element: str, numbers: int, count: int, device: torch.device, load: Loader, skipped: int = 0
    ) -> None:
        self.shape, self.device = (count, numbers), device
        self.kernel, self.grid = load(adding(element)), (-(-numbers // 1024), 1, 1)
        self.arguments, self.skipped = Parts(None, None, numbers, count), skipped

    def empty(self) -> Tensor:
        """Parts for one launch: torch gives them to no other stream before it is done."""
        return torch.empty(self.shape, dtype=torch.float32, device=self.device)

    def __call__(self, parts: Tensor, out: Tensor) -> None:
        self.arguments.parts, self.arguments.out = parts.data_ptr(), out.data_ptr() + self.skipped
        self.kernel(self.grid, self.arguments)


class MmaProduct:
    """out[n, m] = x[n, k] W^T, or x[n, m] W of a transposed plan, for one plan, one n and any values.

    x_line, out_line: k and m, or m and k of a transposed plan; parts: CTAs that share the reduction of one tile, with a
    choice that has `parts`.
    """

    def __init__(
        self,
        choice: ProductChoice,
        plan: ProductPlan,
        n: int,
        x_line: int,
        out_line: int,
        load: Loader,
        parts: int = 1,
    ) -> None:
        assert parts == 1 or choice.parts
        self.plan, self.kernel = plan, load(choice.variant)
        pointers = (None, None, None, plan.groups.data_ptr(), plan.stages.data_ptr())
        self.arguments = Product(*pointers, n, x_line, out_line, parts)
        self.grid = (-(-n // choice.tokens), len(plan.groups), parts)
        self.add = AddParts(choice.element, n * out_line, parts, plan.groups.device, load) if choice.parts else None

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        """All contiguous and at multiples of 16 bytes; only their addresses are read."""
        arguments = self.arguments
        arguments.values, arguments.x = values.data_ptr(), x.data_ptr()
        sums = out if self.add is None else self.add.empty()
        arguments.out = sums.data_ptr()
        self.kernel(self.grid, arguments)
        if self.add is not None:
            self.add(sums, out)


class MmaSampled:
    """blocks[nnzb, b, b] = the kept blocks of grad[n, m]^T x[n, k], for one plan and one n.

    numbers: of the blocks; grad_line, x_line: m and k; parts: CTAs that share the tokens of one job, with a choice that
    has `parts`.
    """

    def __init__(
        self,
        choice: SampledChoice,
        plan: SampledPlan,
        n: int,
        numbers: int,
        grad_line: int,
        x_line: int,
        load: Loader,
        parts: int = 1,
    ) -> None:
        assert parts == 1 or choice.parts
        self.plan, self.kernel = plan, load(choice.variant)
        part_tokens = -(-n // (parts * choice.depth)) * choice.depth
        self.arguments = Sampled(
            None, None, None, plan.jobs.data_ptr(), n, grad_line, x_line, numbers, part_tokens
        )  # fmt: skip
        self.grid = (len(plan.jobs), parts, 1)
        self.add = AddParts(choice.element, numbers, parts, plan.jobs.device, load) if choice.parts else None

    def __call__(self, grad: Tensor, x: Tensor, blocks: Tensor) -> None:
        """All contiguous and at multiples of 16 bytes; only their addresses are read."""
        arguments = self.arguments
        if not self.grid[0]:
            return
        arguments.grad, arguments.x = grad.data_ptr(), x.data_ptr()
        sums = blocks if self.add is None else self.add.empty()
        arguments.blocks = sums.data_ptr()
        self.kernel(self.grid, arguments)
        if self.add is not None:
            self.add(sums, blocks)


def parts_for(ctas: int, stages: int, multiprocessors: int = MULTIPROCESSORS) -> int:
    """Into how many parts a reduction of `stages` is best divided when it is made by `ctas` CTAs of equal work.

    The parts that leave fewest multiprocessors idle in the last round; a part more must save a tenth, for sums are
    added afterwards.
    """
    best, least = 1, float("inf")
    for parts in range(1, max(1, min(MOST_PARTS, stages // STAGES_OF_A_PART)) + 1):
        rounds = -(-ctas * parts // multiprocessors) / parts
        if rounds < 0.9 * least:
            best, least = parts, rounds
    return best
