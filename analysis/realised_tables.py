"""Tables and sentences of training on the sparse path, over the seeds of each setting: time, and the finished model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.load import records
from analysis.realised import over_seeds, realised
from analysis.stats import Estimate, factor, mean_interval, plus_minus, signed, times

NOTHING = "–"
TIME = (
    "variant", "block size", "target sparsity", "seeds", "dense training", "masked training", "sparse training",
    "integral predicted", "integral measured", "measured / theory", "LSTM share", "speedup over masked", "expected (Amdahl)", "Amdahl ceiling",
)  # fmt: skip
MODEL = (
    "variant", "block size", "target sparsity", "inference speedup", "its LSTM layers", "their theory", "Amdahl ceiling",
    "bytes dense", "bytes finished", "test ppl masked", "test ppl sparse", "difference", "seed noise", "test ppl finished",
)  # fmt: skip


def _settings(train: pd.DataFrame | None) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """(cells that name it, runs) of each setting on the sparse path."""
    found = realised(train)
    if found.empty:
        return
    for (variant, size, target), part in found.groupby(["variant", "block_size", "target_sparsity"], sort=False):
        yield {"variant": str(variant), "block size": f"{size:g}", "target sparsity": f"{target:g}"}, part


def training_time_table(train: pd.DataFrame | None) -> pd.DataFrame:
    """Seconds of whole runs, dense, masked and sparse, beside the integral of their LSTM layers, theory and measured.

    LSTM share: of the masked run's time. expected, ceiling: Amdahl's with that share, at the measured and the predicted
    integral; the speedup over the masked run compares two runs that were not interleaved.
    """
    rows = []
    for named, part in _settings(train):
        ratio = over_seeds(part["efficiency"])
        rows.append(
            {
                **named,
                "seeds": str(len(part)),
                **{f"{name} training": _seconds(part[f"{name}_seconds"]) for name in ("dense", "masked", "sparse")},
                "integral predicted": factor(part["predicted"].mean()),
                "integral measured": times(over_seeds(part["measured"])),
                "measured / theory": times(ratio).replace("×", ""),
                "LSTM share": _share(part["lstm_share"]),
                "speedup over masked": times(over_seeds(part["against_masked"])),
                "expected (Amdahl)": _factor(part["allowed"]),
                "Amdahl ceiling": _factor(part["ceiling"]),
            }
        )
    return pd.DataFrame(rows, columns=list(TIME))


def finished_model_table(train: pd.DataFrame | None) -> pd.DataFrame:
    """The finalised models: inference against dense, bytes, and perplexity beside the masked runs of the same seeds."""
    rows = []
    for named, part in _settings(train):
        difference, noise = perplexity_change(part)
        rows.append(
            {
                **named,
                "inference speedup": times(over_seeds(part["inference"])),
                "its LSTM layers": times(over_seeds(part["inference_lstm"])),
                "their theory": _factor(part["inference_promise"]),
                "Amdahl ceiling": _factor(part["inference_ceiling"]),
                "bytes dense": _bytes(part["dense_bytes"]),
                "bytes finished": _bytes(part["final_bytes"]),
                "test ppl masked": plus_minus(mean_interval(part["masked_ppl"].dropna().tolist())),
                "test ppl sparse": plus_minus(mean_interval(part["test_ppl"].dropna().tolist())),
                "difference": signed(difference),
                "seed noise": _number(noise),
                "test ppl finished": plus_minus(mean_interval(part["final_ppl"].dropna().tolist())),
            }
        )
    return pd.DataFrame(rows, columns=list(MODEL))


def perplexity_change(part: pd.DataFrame) -> tuple[Estimate, float]:
    """(test perplexity less that of the masked run of the same seed, mean over seeds; seed noise of the masked runs).

    The seed noise is the standard deviation of the masked runs over their seeds; NaN: unknown.
    """
    paired = part[["test_ppl", "masked_ppl"]].astype(float).dropna()
    noise = float(paired["masked_ppl"].std(ddof=1)) if len(paired) > 1 else math.nan
    return mean_interval((paired["test_ppl"] - paired["masked_ppl"]).tolist()), noise


def statements(train: pd.DataFrame | None) -> list[str]:
    """One sentence for each setting on the sparse path: training time, integral, inference, bytes and perplexity."""
    return [_statement(records(pd.DataFrame([named]))[0], part) for named, part in _settings(train)]


def _statement(named: dict[str, Any], part: pd.DataFrame) -> str:
    return (
        f"{named['variant']}, block {named['block size']}, ρ {named['target sparsity']}: "
        f"dense training {_seconds(part['dense_seconds'])}, masked {_seconds(part['masked_seconds'])}, "
        f"sparse {_seconds(part['sparse_seconds'])}; integral of the LSTM layers predicted {factor(part['predicted'].mean())}, "
        f"measured {times(over_seeds(part['measured']))}; inference after finalize {times(over_seeds(part['inference']))} "
        f"of dense at {_bytes(part['final_bytes'])} of {_bytes(part['dense_bytes'])}; {_perplexity(part)}."
    )


def _perplexity(part: pd.DataFrame) -> str:
    """Whether training on the sparse path ended where the masked runs of the same seeds did."""
    difference, noise = perplexity_change(part)
    if difference.n == 0:
        return "no masked run of the same seed to compare its perplexity with"
    found = f"test perplexity {signed(difference)} from the masked run of the same seed"
    if difference.n == 1:
        return f"{found}, of one seed, so it is not known whether another seed would change more than that"
    within = difference.low <= 0.0 <= difference.high or abs(difference.value) <= noise
    return f"{found}, {'within' if within else 'beyond'} the seed noise ({noise:.1f})"


def _seconds(values: pd.Series) -> str:
    """The mean over seeds; '–' where no such run finished."""
    kept = values.astype(float).dropna()
    return NOTHING if kept.empty else f"{kept.mean():.1f} s"


def _bytes(values: pd.Series) -> str:
    kept = values.astype(float).dropna()
    return NOTHING if kept.empty else f"{kept.mean() / 1e6:.2f} MB"


def _share(values: pd.Series) -> str:
    return NOTHING if values.isna().all() else f"{values.mean():.0%}"


def _factor(values: pd.Series) -> str:
    return factor(float(values.mean()))


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2g}"
