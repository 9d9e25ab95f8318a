"""A sweep's tables side by side, the parts of them that can be compared, and the best there is over several sweeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis import compare
from analysis.compare import FUSED
from analysis.load import PART, REFERENCE, TABLES, load, reference_folder, split, tables_in
from analysis.schema import BadInputError
from analysis.tradeoff import chosen_product


class Study(NamedTuple):
    """What one sweep measured; a table it does not have (or that has no row) is None."""

    folder: Path
    train: pd.DataFrame | None
    gemm: pd.DataFrame | None
    lstm: pd.DataFrame | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables there are, by name."""
        every = {"gemm": self.gemm, "lstm": self.lstm, "train": self.train}
        return {name: frame for name, frame in every.items() if frame is not None}

    def comparable(self) -> Study:
        """The same with only the largest comparable part of each table."""
        return Study(self.folder, **{name: _part(self.tables, name) for name in TABLES})


def _part(tables: dict[str, pd.DataFrame], name: str) -> pd.DataFrame | None:
    return main_part(tables[name], name) if name in tables else None


def read(folder: str | os.PathLike[str]) -> Study:
    """The tables of a sweep's folder; BadInputError with one line where it holds none or one is damaged."""
    folder = Path(folder)
    found = {name: load(folder, name) for name in tables_in(folder)}
    if not found:
        raise BadInputError(
            f"{folder}: holds neither gemm.parquet nor train.parquet nor lstm.parquet; run the sweep first"
        )
    filled: dict[str, pd.DataFrame | None] = {
        name: None if name not in found or found[name].empty else found[name] for name in TABLES
    }
    return Study(folder, **filled)


def read_reference() -> list[Study]:
    """Every committed sweep, or the one that BENCH_RESULTS names."""
    if os.environ.get("BENCH_RESULTS"):
        return [read(reference_folder())]
    return [read(folder) for folder in sorted(REFERENCE.glob("*")) if tables_in(folder)]


def widest(studies: Sequence[Study], table: str, over: str | None = None) -> pd.DataFrame | None:
    """The comparable part with the most measured rows over several sweeps; None where no sweep has the table.

    `over` names a column whose values stay together. Of training tables, those with
    probes come before any without, and of them that of the widest model.
    """
    parts = [main_part(study.tables[table], table, over) for study in studies if table in study.tables]
    return max(parts, key=lambda part: (_probed(part), _weight(part))) if parts else None


def _probed(part: pd.DataFrame) -> int:
    """Hidden units of the widest model with probes, 0 without one."""
    if "probes" not in part:
        return 0
    probed = [found is not None and len(found) > 0 for found in part["probes"]]
    return int(part.loc[probed, "hidden_size"].max()) if any(probed) else 0


def main_part(frame: pd.DataFrame, table: str, over: str | None = None) -> pd.DataFrame:
    """The comparable part of a table with the most measured rows; `attrs[PART]` is its label, empty where there is one only.

    Of equal ones that with backward passes, then that over the fused layer, then that with the most quiet rows, then float32, then the first.
    """
    label, part = max(split(frame, table, over), key=lambda one: _weight(one[1]))
    part.attrs = {**part.attrs, PART: label or frame.attrs.get(PART, "")}
    return part


def _weight(part: pd.DataFrame) -> tuple[int, bool, bool, int, bool]:
    ok = part["status"] == "ok"
    trains = "passes" in part and bool((part["passes"] == "forward_backward").all())
    fused = "baseline" in part and bool((part["baseline"] == FUSED).all())
    quiet = int((~part.loc[ok, "noisy"].fillna(False).astype(bool)).sum()) if "noisy" in part else 0
    number = next((part[name] for name in ("dtype", "precision") if name in part), pd.Series(dtype=object))
    return int(ok.sum()), trains, fused, quiet, bool((number == "float32").all())


def shapes(gemm: pd.DataFrame | None) -> list[tuple[str, pd.DataFrame]]:
    """(name, rows) of each product shape, in the order of its sides; none without a table."""
    if gemm is None:
        return []
    parts = [rows for _, rows in gemm.groupby(compare.SHAPE, sort=True)]
    return [(compare.shape_name(tuple(rows[compare.SHAPE].iloc[0])), rows) for rows in parts]


def main_shape(gemm: pd.DataFrame) -> pd.DataFrame:
    """The rows of the product that stands for the sweep: the one of the tradeoff, or the largest where none was measured."""
    product = chosen_product(compare.gemm_points(gemm))
    if product is not None:
        return gemm[(gemm[compare.SHAPE] == list(product.shape)).all(axis=1)]
    return max((rows for _, rows in shapes(gemm)), key=lambda rows: rows["m"].iloc[0] * rows["k"].iloc[0])


def layers(lstm: pd.DataFrame | None) -> list[tuple[str, pd.DataFrame]]:
    """(name, rows) of each LSTM layer (input, hidden, steps), in the order of its sides; none without a table."""
    if lstm is None:
        return []
    parts = [rows for _, rows in lstm.groupby(compare.LAYER_SIDES, sort=True)]
    return [(compare.layer_name(rows[compare.LAYER_SIDES].iloc[0].tolist()), rows) for rows in parts]


def main_layer(lstm: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows of the layer with the most measured cells, the largest of equal ones; None without a table."""
    parts = [rows for _, rows in layers(lstm)]
    return max(parts, key=lambda rows: ((rows["status"] == "ok").sum(), rows["hidden_size"].iloc[0]), default=None)
