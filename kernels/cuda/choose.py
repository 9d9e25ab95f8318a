"""Which of our CUDA kernels computes a product, prepared for a pattern and a number of tokens.

The rungs: wgmma on Hopper from WIDE tokens on (fewer leave its wide tiles half empty), mma.sync everywhere else, FFMA
for exact float32; where a tuned table knows a like product, what it says, which may also be wgmma with operands by TMA.
Operands lie token by token: x [n, k], out [n, m], grad [n, m].

The tuned table says which variant was the fastest for the nearest shape that was measured. tuned.json, beside this
file, is a result, written by `python -m bench tune` with its provenance and its own sha256; where it is absent, does
not hold (a line says so), or knows nothing like a product, the kernels' own default rule holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from math import inf, log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cuda import device as cuda_kernel
from kernels.cuda import mma, wgmma, wgmma_sdd, wgmma_tma
from kernels.cuda.compile import nvrtc
from kernels.cuda.device import Kernel, Variant, arch_of
from kernels.cuda.mma import BLOCKS, MmaProduct, MmaSampled, ProductChoice, SampledChoice, is_exact, parts_for
from kernels.cuda.mma_plan import MOST_NUMBERS, ProductPlan, SampledPlan, product_plan, sampled_plan
from kernels.system.cache import DoubtError, read_sealed, say
from kernels.system.resources import UnsupportedError, shown
from kernels.tensors.index import BSRIndex
from kernels.tensors.operands import contiguous

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


WIDE = 128
MOST_LINES = 2**31 - 2**16  # rows, columns and tokens are ints, to which a kernel adds its tile's
MOST_DIVIDED = 2**31 - 2**12  # so are the numbers of an output whose parts are added
ELEMENTS = {torch.float32: "Float32", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
SETTINGS = {  # of a problem: dtype and math
    "Float32": ("float32", "ieee"),
    "Tf32": ("float32", "tf32"),
    "Bfloat16": ("bfloat16", "ieee"),
    "Float16": ("float16", "ieee"),
}
NAMED = ("ROWS", "COLS", "TOKENS", "DEPTH", "STAGES", "WARPS_ROWS", "WARPS_TOKENS", "WARPS_DEPTH", "UNITS", "CTAS")


class Gpu(NamedTuple):
    """What kernels are chosen by; shared_bytes: the most of one CTA; load: makes kernels of variants."""

    capability: int  # 90 for 9.0
    multiprocessors: int
    shared_bytes: int
    load: Callable[[Variant], Kernel]


@cache
def _refusal(device: torch.device) -> str | None:
    return "cuda runs on a GPU only" if device.type != "cuda" else cuda_kernel.unavailable()


@cache
def gpu(device: torch.device) -> Gpu:
    """The GPU `device`; UnsupportedError where our kernels cannot run there. Tests put an emulated one in its place."""
    if reason := _refusal(device):
        raise UnsupportedError(reason)
    found = torch.cuda.get_device_properties(device)
    capability = 10 * found.major + found.minor
    shared_bytes = found.shared_memory_per_multiprocessor - 1024  # which the driver takes of each CTA
    load = partial(cuda_kernel.load, device=device.index)
    return Gpu(capability, found.multi_processor_count, shared_bytes, load)


def describe() -> str:
    """Our kernels on torch's current GPU, in words; UnsupportedError where they cannot run there."""
    if reason := cuda_kernel.unavailable():
        raise UnsupportedError(reason)
    capability = cuda_kernel.capability()
    rungs = f"wgmma from {WIDE} tokens on, else mma.sync" if capability == cuda_kernel.HOPPER else "mma.sync"
    compiled = f"compiled for {arch_of(capability)} by NVRTC {nvrtc().version}"
    return f"compute capability {capability / 10}, {compiled}; products by {rungs}, exact float32 by FFMA"


def require_kernel(dtype: torch.dtype, block_size: int, nnzb: int, device: torch.device) -> None:
    """UnsupportedError where our CUDA kernels cannot multiply such a matrix."""
    gpu(device)
    if dtype not in ELEMENTS:
        wanted = ", ".join(str(each).removeprefix("torch.") for each in ELEMENTS)
        raise UnsupportedError(f"cuda has no {str(dtype).removeprefix('torch.')} kernel, only {wanted}")
    if block_size not in BLOCKS:
        raise UnsupportedError(f"cuda has kernels for blocks of {', '.join(map(str, BLOCKS))}, not {block_size}")
    if nnzb * block_size**2 > MOST_NUMBERS:
        raise UnsupportedError(f"cuda multiplies matrices of at most {MOST_NUMBERS} kept values")


def element_of(dtype: torch.dtype, tf32: bool) -> str:
    """The element type of the kernels, as cuda/device.h calls it."""
    return "Tf32" if tf32 and dtype == torch.float32 else ELEMENTS[dtype]


class Task(NamedTuple):
    """A product of a pattern: op, element, side of a block, and tokens."""

    op: str
    element: str
    block_size: int
    n: int


class Prepared(NamedTuple):
    """run(values, x, out) of dsd and dsd_t, run(grad, x, blocks) of sdd: all contiguous, at multiples of 16 bytes.

    It reads addresses only, so that each may be given as its transposed view.
    """

    run: Callable[[Tensor, Tensor, Tensor], None]
    kernel: str  # 'cuda mma.sync sm_90a Bfloat16 rows=128 tokens=256 depth=64 stages=4', then perhaps ', tuned'
    index_bytes: int


WideTile = wgmma.WgmmaTile | wgmma_sdd.WgmmaSampledTile
Choice = ProductChoice | SampledChoice | WideTile


def has_wide(task: Task, gpu: Gpu) -> bool:
    """Whether there is a kernel by wgmma."""
    return gpu.capability == cuda_kernel.HOPPER and wgmma.unsupported(*task[:3]) is None


def named(choice: Choice) -> dict[str, Any]:
    """Rung and tile of a choice by name, as a tuned table has them."""
    if isinstance(choice, WideTile):
        return {"rung": "wgmma tma" if isinstance(choice, wgmma_tma.TmaTile) else "wgmma", **asdict(choice)}
    defines = dict(choice.variant.defines)
    rung = "FFMA" if is_exact(str(defines["ELEMENT"])) else "mma.sync"
    return {"rung": rung, "parts": choice.parts, **{name.lower(): defines[name] for name in NAMED if name in defines}}


def offered(task: Task, gpu: Gpu) -> dict[str, Choice]:
    """Every choice that `gpu` has room for, by its names as JSON."""
    found: list[Choice] = [
        choice
        for parts in (False, True)
        for choice in mma.variants(*task, parts=parts)
        if choice.variant.shared_bytes <= gpu.shared_bytes and choice.variant.runs_on(gpu.capability)
    ]
    if has_wide(task, gpu):
        if task.op == "sdd":
            found += wgmma_sdd.sampled_tiles(task.block_size)
        else:
            wide = [*wgmma.tiles(*task[1:3]), *wgmma_tma.tiles(*task[1:3])]
            found += (each for tile in wide for each in wgmma.in_bands(tile, task.n))
    return {json.dumps(named(choice), sort_keys=True): choice for choice in found}


def tuned_choice(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Choice | None:
    """What was fastest for the nearest product of a tuned table, where `gpu` has it."""
    grid = (index.indptr.numel() - 1) * (index.column_indptr.numel() - 1)
    sparsity = 1 - index.indices.numel() / grid
    entry = nearest(task.op, *SETTINGS[task.element], task.block_size, *shape, task.n, sparsity)
    if entry is None:
        return None
    found, whole = offered(task, gpu), {name: 0 if name == "band" else value for name, value in entry.items()}
    return found.get(json.dumps(entry, sort_keys=True)) or found.get(json.dumps(whole, sort_keys=True))


def prepare(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    """The product of a matrix of `shape` (m, k) and pattern `index`, compiled and planned, by the best choice known."""
    if max(*shape, task.n) > MOST_LINES:
        raise ValueError(
            f"cuda multiplies up to {MOST_LINES} rows and columns, not {shape} and x [{shape[1]}, {task.n}]"
        )
    best = tuned_choice(task, index, shape, gpu)
    if best is not None and not (isinstance(best, ProductChoice) and best.parts and not divisible(task, shape)):
        found = prepare_by(best, task, index, shape, gpu)
        return found._replace(kernel=f"{found.kernel}, tuned")
    if has_wide(task, gpu) and task.n >= WIDE:
        chosen: WideTile
        if task.op == "sdd":
            chosen = wgmma_sdd.default_sampled_tile(task.block_size, index.indices.numel(), gpu.multiprocessors)
        else:
            chosen = wgmma.default_tile(task.element, task.block_size, task.n)
        return prepare_by(chosen, task, index, shape, gpu)
    return prepare_by_warps(task, index, shape, gpu)


def divisible(task: Task, shape: tuple[int, int]) -> bool:
    """Whether the parts of a divided reduction can be added: outputs of sdd always, they are values of a matrix."""
    return task.op == "sdd" or task.n * max(shape) <= MOST_DIVIDED


def prepare_by_warps(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    """The same by the first rung, which every GPU has: mma.sync, or FFMA for exact float32."""
    whole, divided = (mma.default(*task, parts=parts, shared_bytes=gpu.shared_bytes) for parts in (False, True))
    plan = _plan(whole, index)
    if divisible(task, shape) and _parts(whole, plan, task.n, gpu) > 1:
        return prepare_by(divided, task, index, shape, gpu)
    return _by_threads(whole, plan, task, index, shape, gpu)


MmaPlan = ProductPlan | SampledPlan


def _plan(choice: ProductChoice | SampledChoice, index: BSRIndex) -> MmaPlan:
    if isinstance(choice, SampledChoice):
        return sampled_plan(index, choice.tile)
    return product_plan(index, choice.tile)


def _parts(choice: ProductChoice | SampledChoice, plan: MmaPlan, n: int, gpu: Gpu) -> int:
    """Into how many parts the reduction is best divided so that there are CTAs enough for the GPU."""
    if isinstance(choice, SampledChoice):
        assert isinstance(plan, SampledPlan)
        return parts_for(len(plan.jobs), -(-n // choice.depth), gpu.multiprocessors)
    assert isinstance(plan, ProductPlan)
    stages = int(plan.groups[:, 2].max())
    return parts_for(len(plan.groups) * -(-n // choice.tokens), stages, gpu.multiprocessors)


def prepare_by(choice: Choice, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    """The same by one choice."""
    if isinstance(choice, WideTile):
        run: wgmma.WgmmaProduct | wgmma_tma.TmaProduct | wgmma_sdd.WgmmaSampled
        given = task.element, task.block_size, index, task.n
        if isinstance(choice, wgmma_sdd.WgmmaSampledTile):
            run = wgmma_sdd.WgmmaSampled(*given, choice, gpu.multiprocessors, gpu.load)
        elif isinstance(choice, wgmma_tma.TmaTile):
            run = wgmma_tma.TmaProduct(task.op, *given, choice, gpu.multiprocessors, gpu.load)
        else:
            run = wgmma.WgmmaProduct(task.op, *given, choice, gpu.multiprocessors, gpu.load)
        table_bytes = sum(each.numel() * each.element_size() for each in run.tables)
        return Prepared(run, _describe(choice, task, run.parts, gpu), table_bytes)
    return _by_threads(choice, _plan(choice, index), task, index, shape, gpu)


def _by_threads(
    choice: ProductChoice | SampledChoice, plan: MmaPlan, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu
) -> Prepared:
    parts = _parts(choice, plan, task.n, gpu) if choice.parts else 1
    run: MmaProduct | MmaSampled
    if isinstance(choice, SampledChoice):
        assert isinstance(plan, SampledPlan)
        numbers = index.indices.numel() * task.block_size**2
        run = MmaSampled(choice, plan, task.n, numbers, *shape, gpu.load, parts)
    else:
        assert isinstance(plan, ProductPlan)
        lines = shape if task.op == "dsd_t" else shape[::-1]
        run = MmaProduct(choice, plan, task.n, *lines, gpu.load, parts)
    return Prepared(run, _describe(choice, task, parts, gpu), plan.nbytes)


def _describe(choice: Choice, task: Task, parts: int, gpu: Gpu) -> str:
    names = named(choice)
    tile = " ".join(
        f"{name}={names[name]}"
        for name in ("rows", "cols", "tokens", "columns", "depth", "stages", "band", "cluster")
        if names.get(name)
    )
    shared = f" in {parts} parts" if parts > 1 else ""
    return f"cuda {names['rung']} {arch_of(gpu.capability)} {task.element} {tile}{shared}"


def aligned(x: Tensor) -> Tensor:
    """`x` contiguous and at a multiple of 16 bytes, copied only where it is not."""
    if not x.is_contiguous() or x.is_neg() or x._is_zerotensor():
        x = contiguous(x)
    return x.clone() if x.data_ptr() % 16 else x
