"""The figures our CUDA kernels are meant to reach on an H200.

Of products, measured speedup over cuBLAS of the same type over 1/(1 - sparsity), from hot caches; and the time that the
GPU's own rates allow over the time taken, since memory may be a lower roof: an H100's DRAM ends block 128 at sparsity
0.9 near 0.81 of theory (W, X and Y of 16 bits once at 3.0 TB/s, cuBLAS at 720 TFLOP/s), whatever the kernel does.
"""

from __future__ import annotations

from analysis.goals.judge import HOST_MS, Goal, Grid

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
HOT: Grid = {"device": ("cuda",), "cache": ("hot",), "call": ("launch",)}
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
H100 = "on an H100 DRAM ends ρ 0.9 near 0.81: there the goal of the roof counts"
RIVALS = ("triton_bsr", "cusparse_bsr", "cusparse_ell")
KINDS: tuple[tuple[str, str, Grid, tuple[float, ...]], ...] = (  # what, backend, types, figures to reach at BLOCKS
    ("bfloat16 and float16 by mma.sync", "cuda_mma", HALF, (0.60, 0.55, 0.40, 0.25)),
    ("bfloat16 and float16", "cuda", HALF, (0.85, 0.75, 0.50, 0.30)),
    ("float32 as TF32", "cuda", TF32, (0.80, 0.70, 0.55, 0.40)),
    ("float32, exact", "cuda", EXACT, (0.90, 0.85, 0.80, 0.65)),
)


RECURRENT: Grid = {**STEP, "op": ("dsd",), "target_sparsity": (0.8,)}
AT_STEPS = "bfloat16, W 4608 × 1152, n 20 and 80, block 16 to 64, ρ 0.8"

GOALS = (
    *(
        Goal(
            f"dsd, {what}, measured / theory", f"W 4096 × 4096, n 4096, block {block}, ρ 0.5 to 0.9", "efficiency",
            reach, ({**SQUARE, "op": ("dsd",), "block_size": (block,), "target_sparsity": SPARSITIES, **types},),
            backend=backend, bound=H100 if block == 128 and backend == "cuda" and types is HALF else "",
        )
        for what, backend, types, figures in KINDS
        for block, reach in zip(BLOCKS, figures, strict=True)
    ),
    *(
        Goal(
            f"dsd, {what}, of the GPU's roof", f"W 4096 × 4096, n 4096, block {block}, ρ 0.5 to 0.9", "roof",
            reach, ({**SQUARE, "op": ("dsd",), "block_size": (block,), "target_sparsity": SPARSITIES, **types},),
            backend=backend,
        )
        for what, backend, types, figures in KINDS if backend == "cuda"
        for block, reach in zip(BLOCKS, figures, strict=True)
    ),
    Goal("recurrent step, speedup over cuBLAS", AT_STEPS, "speedup", 2.5, (RECURRENT,), backend="cuda"),
    *(
        Goal(
            f"dsd, time of {rival} / cuda", "bfloat16, W 4096 × 4096, n 4096; W 4608 × 1152, n 20 and 80; ρ 0.8",
            "rival", 1.0, ({**RECURRENT, **SQUARE, "block_size": BLOCKS}, RECURRENT), backend="cuda", rival=rival,
        )
        for rival in RIVALS
    ),
    *(
        Goal(
            f"{op}, efficiency / dsd's", "bfloat16, W 4096 × 4096, n 4096, block 16 to 128, ρ 0.5 to 0.9", "relative",
            0.8, ({**RECURRENT, **SQUARE, "op": (op,), "block_size": BLOCKS, "target_sparsity": (0.5, 0.8, 0.9)},),
            backend="cuda",
        )
        for op in ("dsd_t", "sdd")
    ),
    *(
        Goal(
            "LSTM layer, speedup over cuDNN",
            "LSTM 1152 → 1152, batch 20 and 80, 70 steps, bfloat16, block 16 to 64, ρ 0.8, "
            + passes.replace("_", " + "), "speedup", reach, ({**LAYER, "passes": (passes,)},), "lstm", "cuda",
        )
        for passes, reach in (("forward", 3.0), ("forward_backward", 2.0))
    ),
    Goal(
        f"{HOST_MS * 1e3:g} µs / processor time of a launch", AT_STEPS, "host", 1.0, (RECURRENT,), backend="cuda",
    ),
)  # fmt: skip
