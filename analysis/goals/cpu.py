"""The figures our CPU kernels are meant to reach in two threads, and what holds back those that were not reached.

Of products, measured speedup over dense BLAS over 1/(1 - sparsity); of layers, speedup over torch's own.
"""

from __future__ import annotations

from analysis.goals.judge import Goal, Grid

THREADS = 2
FLOAT: Grid = {"dtype": ("float32",)}
PREPARED: Grid = {"layout": ("row",), "call": ("launch",)}
STEP: Grid = {"m": (4608,), "k": (1152,), "n": (20, 80), **PREPARED}
SQUARE: Grid = {"m": (4096,), "k": (4096,), "n": (256, 2048), **PREPARED}
COARSE = (16, 32, 64, 128)
EVERY: Grid = {**STEP, "op": ("dsd",), "block_size": (8, *COARSE)}
LAYER: Grid = {
    "passes": ("forward_backward",), "baseline": ("torch_lstm",), "scope": ("all",), "input_size": (1152,),
    "hidden_size": (1152,), "bptt": (35,), "batch_size": (20, 80), "block_size": (16, 32), **FLOAT,
}  # fmt: skip
DSD = "dsd, measured / theory"
PACKING = "at n 2048, packing X and writing Y take as long at every sparsity"
MKL = "at block 8 and n 80 torch calls MKL's own kernel; three times its rate would be more than dense BLAS reaches"
GATES = (
    "beside the products, a step packs the values, stores gradients block by block and computes gates: none of it is "
    "saved by a full mask, and at batch 80 the dense products run at their best"
)
TRIED = (
    "both operands are packed in every launch; longer sums and larger stretches of columns were tried and changed "
    "nothing"
)
STARTING = "a product of this size takes 0.05 ms when dense: starting it, and the gates, cost as much as what is saved"
AUTO: Grid = {"target_sparsity": (0.8,), "path": ("auto",)}
SMALL_LAYERS = (
    "at batch 32 LSTM layers of 512 units reach 1.7 to 1.9 of 2.5 in training and 2.2 to 2.7 of 5 in inference: of a "
    "step at ρ 0.8 products take three quarters, at 0.9 of dense rate, gates a fifth, which no sparsity makes "
    "faster, and two threads lose 2 to 4 us of 14 to 40 by sharing a step's state; "
)
END_TO_END = (
    (
        "whole training runs, measured / theory of the integral", "whole", 0.75,
        f"{SMALL_LAYERS}runs were timed one after another",
    ),
    (
        "inference of the whole finished model, speedup over dense", "inference", 3.5,
        f"{SMALL_LAYERS}with decoder and embedding the ceiling is 3.8 to 4.3",
    ),
)  # fmt: skip
DENSE_STEPS = ((0.5, 0.95), (0.8, 0.90), (0.9, 0.80), (0.95, 0.65))  # sparsity, share of theory to reach
EVEN, UNEVEN = (8, 16, 32, 64), (10, 13, 26, 50)
COLD = "a call writes its Y to another place each time, beyond the second-level cache: up to twice the launch's time"
TURNING = f"{COLD}; X and Y of small blocks are turned inside, which no sparsity makes faster"
SPILLS = "X is larger than the caches and read for each block"
READING = "a call takes 8 to 15 us longer than its launch, which takes 20 to 170 us"
ODD = f"{TURNING}; a call takes 8 to 15 us longer than its launch, which takes 30 to 130 us"
UNITS = (
    "gates, a barrier for each step and short rows of blocks take as long as the products; dense ones run at their best"
)
OPERATORS = (  # m, k, n of the public operator with a frozen weight, X's layouts, block sizes, reach at ρ 0.8 and 0.95
    ((3072, 768, 128), ("column",), EVEN, 0.85, 0.60, TURNING),
    ((3072, 768, 128), ("row",), EVEN, 0.90, 0.65, COLD),
    ((4608, 1152, 80), ("column",), EVEN, 0.90, 0.65, TURNING),
    ((2048, 8192, 512), ("column", "row"), EVEN, 0.85, 0.65, SPILLS),
    ((2600, 650, 32), ("column", "row"), UNEVEN, 0.80, 0.50, ODD),
    ((6144, 1536, 1), ("row",), EVEN, 0.85, 0.70, READING),
)
LAYOUT = {"column": "as activations [n, k] lie", "row": "row by row"}
LAYERS = (  # units, batch, steps, block, ρ, passes, speedup to reach
    (650, 20, 35, (10,), 0.8, "forward", 3.5, UNITS),
    (650, 20, 35, (10,), 0.8, "forward_backward", 3.5, UNITS),
    (1500, 20, 35, (20,), 0.8, "forward", 4.0, UNITS),
    (1500, 20, 35, (20,), 0.8, "forward_backward", 3.5, UNITS),
    (256, 64, 100, (16,), 0.8, "forward", 3.5, UNITS),
    (256, 64, 100, (16,), 0.8, "forward_backward", 3.5, UNITS),
    (512, 32, 35, (16,), 0.9, "forward", 7.0, UNITS),
    (512, 32, 35, (16,), 0.9, "forward_backward", 7.0, UNITS),
    (1152, 20, 35, (16,), 0.8, "forward_backward", 4.3, GATES),
    (1152, 20, 35, (16,), 0.95, "forward_backward", 12.0, GATES),
    (1152, 20, 35, (16,), 0.0, "forward_backward", 1.0, GATES),
)
GRADIENTS = (("dsd_t", PACKING), ("sdd", TRIED))
MODELS = ((1152, "384 to 1152 units, batch 20", GATES), (256, "64 to 256 units, batch 5 (wikitext2_small)", STARTING))

GOALS = (
    *(
        Goal(
            DSD, f"W 4608 × 1152, n 20 and 80, block 8 to 128, ρ {rho:g}", "efficiency", reach,
            ({**EVERY, **FLOAT, "target_sparsity": (rho,)},), threads=THREADS,
        )
        for rho, reach in DENSE_STEPS
    ),
    Goal(
        DSD, "W 4096 × 4096, n 256 and 2048, block 16 to 128, ρ 0.5 to 0.9", "efficiency", 0.80,
        ({**SQUARE, **FLOAT, "block_size": COARSE, "op": ("dsd",), "target_sparsity": (0.5, 0.8, 0.9)},),
        threads=THREADS, bound=f"{PACKING}: about a fifth of the time at ρ 0.9",
    ),
    *(
        Goal(
            f"{op}, measured / theory",
            "W 4608 × 1152, n 20 and 80; W 4096 × 4096, n 256 and 2048; block 16 to 128, ρ 0.8", "efficiency", 0.75,
            tuple(
                {**shape, **FLOAT, "block_size": COARSE, "op": (op,), "target_sparsity": (0.8,)}
                for shape in (STEP, SQUARE)
            ),
            threads=THREADS, bound=bound,
        )
        for op, bound in GRADIENTS
    ),
    *(
        Goal(
            f"dsd, time of {rival} / native",
            "W 4608 × 1152, n 20 and 80, block 8 to 128, ρ 0.5 to 0.95, any threads", "rival", 3.0,
            ({**EVERY, "target_sparsity": (0.5, 0.8, 0.9, 0.95)},), rival=rival, bound=MKL,
        )
        for rival in ("torch_bsr", "scipy_bsr")
    ),
    *(
        Goal(
            "LSTM layer, speedup over torch.nn.LSTM",
            f"LSTM 1152 → 1152, batch 20 and 80, 35 steps, forward + backward, block 16 and 32, ρ {rho:g}", "speedup",
            reach, ({**LAYER, "target_sparsity": (rho,)},), table="lstm", threads=THREADS, bound=GATES,
        )
        for rho, reach in ((0.8, 3.5), (0.0, 0.9))
    ),
    *(
        Goal(
            "dsd by the public operator, measured / theory",
            f"W {m} × {k}, n {n}, X {' and '.join(LAYOUT[layout] for layout in layouts)}, "
            f"block {sizes[0]} to {sizes[-1]}, ρ {rho:g}",
            "efficiency", reach,
            ({
                "m": (m,), "k": (k,), "n": (n,), "layout": layouts, "call": ("operator",), "op": ("dsd",),
                "block_size": sizes, "target_sparsity": (rho,), **FLOAT,
            },), threads=THREADS, bound=bound,
        )
        for (m, k, n), layouts, sizes, *reaches, bound in OPERATORS
        for rho, reach in zip((0.8, 0.95), reaches, strict=True)
    ),
    *(
        Goal(
            "LSTM layer, speedup over torch.nn.LSTM",
            f"LSTM {units} → {units}, batch {batch}, {steps} steps, {passes.replace('_', ' + ')}, "
            f"block {sizes[0]}, ρ {rho:g}",
            "speedup", reach,
            ({
                "passes": (passes,), "baseline": ("torch_lstm",), "scope": ("all",), "input_size": (units,),
                "hidden_size": (units,), "bptt": (steps,), "batch_size": (batch,), "block_size": sizes,
                "target_sparsity": (rho,), **FLOAT,
            },), table="lstm", threads=THREADS, bound=bound,
        )
        for units, batch, steps, sizes, rho, passes, reach, bound in LAYERS
    ),
    *(
        Goal(
            "training integral of the LSTM layers, measured / theory",
            f"cubic pruning to ρ 0.8, path auto: {model}", "integral", 0.75,
            ({"hidden_size": (hidden,), "dataset": ("wikitext2",), **AUTO},), table="train", bound=bound,
        )
        for hidden, model, bound in MODELS
    ),
    *(
        Goal(
            what, "cubic pruning to ρ 0.8, path auto: characters, 512 units, batch 32, decoder and all (chars_timing)",
            kind, reach, ({"hidden_size": (512,), "dataset": ("wikitext2_chars",), **AUTO},), table="train",
            bound=bound,
        )
        for what, kind, reach, bound in END_TO_END
    ),
)  # fmt: skip
