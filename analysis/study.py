"""A sweep's two tables side by side, and the parts of them that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis import compare
from analysis.load import load, split, tables_in
from analysis.tradeoff import chosen_product


class Study(NamedTuple):
    """What one sweep measured; a table it does not have (or that has no row) is None."""

    folder: Path
    train: pd.DataFrame | None
    gemm: pd.DataFrame | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables there are, by name."""
        both = {"gemm": self.gemm, "train": self.train}
        return {name: frame for name, frame in both.items() if frame is not None}

    def comparable(self) -> Study:
        """The same with only the largest comparable part of each table."""
        parts = {name: main_part(frame, name) for name, frame in self.tables.items()}
        return Study(self.folder, parts.get("train"), parts.get("gemm"))


def read(folder: Path) -> Study:
    """The tables of a sweep's folder; ValueError with one line where it holds none or one is damaged."""
    found = {name: load(folder, name) for name in tables_in(folder)}
    if not found:
        raise ValueError(f"{folder}: holds neither gemm.parquet nor train.parquet; run the sweep first")
    filled = {name: frame for name, frame in found.items() if not frame.empty}
    return Study(folder, filled.get("train"), filled.get("gemm"))


def main_part(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """The comparable part of a table with the most measured rows (of equal ones, the first)."""
    return max((part for _, part in split(frame, table)), key=lambda part: (part["status"] == "ok").sum())


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
