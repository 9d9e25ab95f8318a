"""The figures our CPU kernels are meant to reach in two threads, and what holds back those that were not reached.

Of products, measured speedup over dense BLAS over 1/(1 - sparsity); of layers, speedup over torch's own.
"""

from __future__ import annotations

from analysis.goals.judge import Goal, Grid

THREADS = 2
FLOAT: Grid = {"dtype": ("float32",)}
STEP: Grid = {"m": (4608,), "k": (1152,), "n": (20, 80)}
SQUARE: Grid = {"m": (4096,), "k": (4096,), "n": (256, 2048)}
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
SMALL_LAYERS = "at batch 32 LSTM layers of 512 units reach 1.8 of 2.5 in training and 2.7 to 3.0 of 5 in inference; "
END_TO_END = (
    (
        "whole training runs, measured / theory of the integral", "whole", 0.75,
        f"{SMALL_LAYERS}runs were timed one after another, equal dense ones from 11 to 16 s",
    ),
    (
        "inference of the whole finished model, speedup over dense", "inference", 3.5,
        f"{SMALL_LAYERS}with decoder and embedding the ceiling is 3.8 to 4.3",
    ),
)  # fmt: skip
DENSE_STEPS = ((0.5, 0.95), (0.8, 0.90), (0.9, 0.80), (0.95, 0.65))  # sparsity, share of theory to reach
GRADIENTS = (("dsd_t", PACKING), ("sdd", TRIED))
MODELS = ((1152, "384 to 1152 units, batch 20", ""), (256, "64 to 256 units, batch 5 (wikitext2_small)", STARTING))

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
