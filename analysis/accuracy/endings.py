"""How training runs ended: whether they were still falling, and from which epoch on NT-ASGD averaged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.accuracy.units import Unit

NOT_SAID = "not said"
NEVER = "never"


def falling(runs: pd.DataFrame, unit: Unit) -> str:
    """'1.2 ± 0.3 %': by how much the validation metric of some finished runs fell over their last tenth, on average.

    Of perplexity in per cent, of characters in bits, of examples in nats. 'not said' where no run has stored it (tables
    from before the column, runs of fewer than 10 steps). The error is that of the stored ones, over the windows of the
    validation data.
    """
    said = runs[runs["val_change"].notna()]
    if said.empty:
        return NOT_SAID
    change = float(said["val_change"].astype(float).mean())
    errors = said["val_change_error"].astype(float).to_numpy()
    error = float(np.sqrt(np.sum(errors**2))) / len(errors)
    if unit.base is not None:
        shown, spread = f"{-change / math.log(unit.base):.4f}", f"{error / math.log(unit.base):.4f}"
        return f"{shown} ± {spread} {unit.short}" if math.isfinite(error) else f"{shown} {unit.short}"
    shown, spread = f"{-100 * math.expm1(change):.2f}", f"{100 * error * math.exp(change):.2f}"
    return f"{shown} ± {spread} %" if math.isfinite(error) else f"{shown} %"


def falling_line(final: pd.DataFrame, unit: Unit) -> str:
    """How far the runs of each variant were still falling, in one line. final: `runs.runs`."""
    told = {str(variant): falling(part, unit) for variant, part in final.groupby("variant", sort=False)}
    start = f"Fall of the validation {'perplexity' if unit.base is None else unit.short} over the last tenth of a run"
    if set(told.values()) == {NOT_SAID}:
        return f"{start}: {NOT_SAID}, for these runs are from before it was stored or shorter than 10 steps."
    return f"{start}: {'; '.join(f'{variant} {words}' for variant, words in told.items())}."


def averaged_from(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a run of NT-ASGD: cell_id, averaged_from, the first epoch evaluated with averages; null where none was.

    rows: of a training table, an epoch each.
    """
    mine = rows[(rows["optimizer"] == "nt_asgd") & (rows["epoch"] >= 1)]
    first = mine["epoch"].where(mine["averaging"].eq(True))
    return first.groupby(mine["cell_id"], sort=False).min().rename("averaged_from").reset_index()


def averaging_line(rows: pd.DataFrame, final: pd.DataFrame) -> str:
    """From which epoch on the runs of each variant averaged, or that they never did; empty without NT-ASGD."""
    found = averaged_from(rows).merge(final[["cell_id", "variant", "seed", "epochs"]], on="cell_id")
    if found.empty:
        return ""
    told = [f"{variant} {_epochs(part['averaged_from'])}" for variant, part in found.groupby("variant", sort=False)]
    epochs = ", ".join(map(str, sorted({int(each) for each in found["epochs"]})))
    return f"Averaged by NT-ASGD from epoch (of {epochs}): {'; '.join(told)}."


def _epochs(first: pd.Series) -> str:
    """'5 to 7, 1 of 3 runs never'."""
    known: list[Any] = sorted({int(each) for each in first.dropna()})
    never = int(first.isna().sum())
    if not known:
        return NEVER
    words = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return words + (f" ({never} of {len(first)} runs {NEVER})" if never else "")
