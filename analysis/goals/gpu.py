"""The figures our CUDA kernels are meant to reach on an H200, judged as those of the CPU are: by `analysis.goals.judge`.

Of products, measured speedup over cuBLAS of the same type over 1/(1 - sparsity), from hot caches.
"""

from __future__ import annotations

from analysis.goals.judge import HOST_MS, Goal, Grid

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
HOT: Grid = {"device": ("cuda",), "cache": ("hot",)}
HALF: Grid = {"dtype": ("bfloat16", "float16"), "math": ("ieee",)}
BFLOAT16: Grid = {"dtype": ("bfloat16",), "math": ("ieee",)}
TF32: Grid = {"dtype": ("float32",), "math": ("tf32",)}
EXACT: Grid = {"dtype": ("float32",), "math": ("ieee",)}
BLOCKS = (128, 64, 32, 16)
SQUARE: Grid = {"m": (4096,), "k": (4096,), "n": (4096,), **HOT}
STEP: Grid = {"m": (4608,), "k": (1152,), "n": (20, 80), "block_size": (16, 32, 64), **HOT, **BFLOAT16}
LAYER: Grid = {
    "baseline": ("torch_lstm",), "scope": ("all",), "input_size": (1152,), "hidden_size": (1152,), "bptt": (70,),
    "batch_size": (20, 80), "block_size": (16, 32, 64), "target_sparsity": (0.8,), "device": ("cuda",), **BFLOAT16,
}  # fmt: skip
RIVALS = ("triton_bsr", "cusparse_bsr", "cusparse_ell")
KINDS: tuple[tuple[str, str, Grid, tuple[float, ...]], ...] = (  # what, backend, types, figures to reach at BLOCKS
    ("bfloat16 and float16 by mma.sync", "cuda_mma", HALF, (0.60, 0.55, 0.40, 0.25)),
    ("bfloat16 and float16", "cuda", HALF, (0.85, 0.75, 0.50, 0.30)),
    ("float32 as TF32", "cuda", TF32, (0.80, 0.70, 0.55, 0.40)),
    ("float32, exact", "cuda", EXACT, (0.90, 0.85, 0.80, 0.65)),
)


def _square(what: str, backend: str, types: Grid, block: int, reach: float) -> Goal:
    grid = {**SQUARE, "op": ("dsd",), "block_size": (block,), "target_sparsity": SPARSITIES, **types}
    where = f"W 4096 × 4096, n 4096, block {block}, ρ 0.5 to 0.9"
    return Goal(f"dsd, {what}, measured / theory", where, "efficiency", "gemm", reach, (grid,), backend=backend)


def _rival(name: str) -> Goal:
    square = {**SQUARE, **BFLOAT16, "block_size": BLOCKS}
    grids = tuple({**grid, "op": ("dsd",), "target_sparsity": (0.8,)} for grid in (square, STEP))
    where = "bfloat16, W 4096 × 4096, n 4096; W 4608 × 1152, n 20 and 80; ρ 0.8"
    return Goal(f"dsd, time of {name} / cuda", where, "rival", "gemm", 1.0, grids, name, backend="cuda")


def _gradient(op: str) -> Goal:
    grid = {**SQUARE, **BFLOAT16, "op": (op,), "block_size": BLOCKS, "target_sparsity": (0.5, 0.8, 0.9)}
    where = "bfloat16, W 4096 × 4096, n 4096, block 16 to 128, ρ 0.5 to 0.9"
    return Goal(f"{op}, efficiency / dsd's", where, "relative", "gemm", 0.8, (grid,), backend="cuda")


def _layer(passes: str, reach: float) -> Goal:
    where = (
        f"LSTM 1152 → 1152, batch 20 and 80, 70 steps, bfloat16, block 16 to 64, ρ 0.8, {passes.replace('_', ' + ')}"
    )
    what = "LSTM layer, speedup over cuDNN"
    return Goal(what, where, "speedup", "lstm", reach, ({**LAYER, "passes": (passes,)},), backend="cuda")


_RECURRENT: Grid = {**STEP, "op": ("dsd",), "target_sparsity": (0.8,)}
_WHERE = "bfloat16, W 4608 × 1152, n 20 and 80, block 16 to 64, ρ 0.8"
GOALS = (
    *(
        _square(what, backend, types, block, reach)
        for what, backend, types, figures in KINDS
        for block, reach in zip(BLOCKS, figures, strict=True)
    ),
    Goal("recurrent step, speedup over cuBLAS", _WHERE, "speedup", "gemm", 2.5, (_RECURRENT,), backend="cuda"),
    *map(_rival, RIVALS),
    _gradient("dsd_t"),
    _gradient("sdd"),
    _layer("forward", 3.0),
    _layer("forward_backward", 2.0),
    Goal(f"{HOST_MS * 1e3:g} µs / processor time of a launch", _WHERE, "host", "gemm", 1.0, (_RECURRENT,), backend="cuda"),
)  # fmt: skip
