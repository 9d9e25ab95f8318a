"""A sweep's tables, the parts of them that can be compared, and what follows from each part, computed once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis import compare, runs
from analysis.accuracy.units import Unit, unit_of
from analysis.accuracy.yardsticks import Yardstick, of_part
from analysis.load import (
    REFERENCE,
    TABLES,
    load,
    load_yardsticks,
    machines,
    reference_folder,
    split,
    tables_in,
    timed_alike,
    timed_steadily,
    without_times,
)
from analysis.loading.schema import BadInputError, columns
from analysis.runs import Pool
from analysis.studying import methods, realised, storage


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one table that can be compared with each other, and what is drawn and said of them.

    label: what tells them from the other parts of their table, empty where there are none. over: the column that is
    compared within the part. Of a timed table the rows have their cell's `compare.measured_speedup`. yardsticks:
    `load.load_yardsticks`, of this text and others.
    """

    table: str
    rows: pd.DataFrame
    label: str = ""
    over: str | None = None
    yardsticks: pd.DataFrame = field(default_factory=load_yardsticks, repr=False)

    @property
    def is_measured(self) -> bool:
        """Whether any cell has a result."""
        return bool((self.rows["status"] == "ok").any())

    @cached_property
    def points(self) -> pd.DataFrame:
        """`compare.timed_points`, of gemm and lstm; `storage.points`, of storage."""
        if self.table == "storage":
            return storage.points(self.rows)
        return compare.timed_points(self.rows, self.table, self.over)

    @cached_property
    def crossovers(self) -> pd.DataFrame:
        """`storage.crossovers`, of storage."""
        return storage.crossovers(self.points)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """`runs.runs`, of train."""
        return runs.runs(self.rows, self.over, self.yardsticks)

    @property
    def unit(self) -> Unit:
        """In what the accuracy of its networks is told, of train."""
        return unit_of(self.rows)

    @property
    def layer_noun(self) -> str:
        """What its networks are pruned in, of train."""
        return "hidden layers" if "model" in self.rows and self.rows["model"].eq("mlp").any() else "LSTM layers"

    @cached_property
    def ladder(self) -> list[Yardstick]:
        """The yardsticks of its text, of train; none where none is known."""
        return of_part(self.yardsticks, self.runs)

    @cached_property
    def pool(self) -> Pool:
        """`runs.pooled`, of train."""
        return runs.pooled(self.runs)

    @cached_property
    def replicates(self) -> pd.DataFrame:
        """`runs.replicates`, of train."""
        return runs.replicates(self.runs)

    @cached_property
    def methods(self) -> pd.DataFrame:
        """`methods.methods`, of train."""
        return methods.methods(self.runs)

    @cached_property
    def narrowings(self) -> pd.DataFrame:
        """`methods.narrowings`, of train."""
        return methods.narrowings(self.runs)

    @cached_property
    def smaller(self) -> pd.DataFrame:
        """`methods.smaller`, of train."""
        return methods.smaller(self.runs)

    @cached_property
    def realised(self) -> pd.DataFrame:
        """`realised.realised`, of train."""
        return realised.realised(self.rows)

    @cached_property
    def gains(self) -> pd.DataFrame:
        """`realised.gains`, of train."""
        return realised.gains(self.realised, self.pool)

    def only(self, rows: pd.DataFrame) -> Part:
        """A part of this part."""
        return replace(self, rows=rows)

    def on_threads(self, threads: int) -> Part:
        """The cells that were timed on so many threads, one part for all who ask."""
        if threads not in self._on_threads:
            self._on_threads[threads] = self.only(self.rows[self.rows["threads_used"] == threads])
        return self._on_threads[threads]

    @cached_property
    def _on_threads(self) -> dict[int, Part]:
        return {}

    def shapes(self) -> list[tuple[str, Part]]:
        """(name, part) of each product shape, in the order of its sides; of gemm and storage."""
        return [(compare.shape_name(key), self.only(rows)) for key, rows in self.rows.groupby(compare.SHAPE)]

    def main_shape(self) -> Part:
        """The product that stands for the sweep: that of the tradeoff, or the largest where none was measured."""
        product = compare.chosen_product(self.points)
        if product is not None:
            return self.only(self.rows[(self.rows[compare.SHAPE] == list(product.shape)).all(axis=1)])
        return max(
            (part for _, part in self.shapes()), key=lambda part: part.rows["m"].iloc[0] * part.rows["k"].iloc[0]
        )

    def main_matrix(self) -> Part:
        """The largest of the stored matrices that were measured, or of all, with the most columns of X."""
        measured = self.rows[self.rows["status"] == "ok"]
        rows = self.rows if measured.empty else measured
        shapes = [(int(m), int(k), int(n)) for m, k, n in rows[compare.SHAPE].drop_duplicates().to_numpy()]
        largest = max(shapes, key=lambda shape: (shape[0] * shape[1], shape[2]), default=None)
        return (
            self if largest is None else self.only(self.rows[(self.rows[compare.SHAPE] == list(largest)).all(axis=1)])
        )

    def layers(self) -> list[tuple[str, Part]]:
        """(name, part) of each LSTM layer (input, hidden, steps), in the order of its sides."""
        return [(compare.layer_name(key), self.only(rows)) for key, rows in self.rows.groupby(compare.LAYER_SIDES)]

    def main_layer(self) -> Part:
        """The layer with the most measured cells, the largest of equal ones."""
        parts = [part.rows for _, part in self.layers()]
        return self.only(
            max(
                parts, key=lambda rows: ((rows["status"] == "ok").sum(), rows["hidden_size"].iloc[0]), default=self.rows
            )
        )


def not_run(table: str) -> Part:
    """What there is of a table that no sweep has: no rows."""
    rows = pd.DataFrame(columns=[column.name for column in columns(table)])
    return Part(table, rows if table == "train" else compare.measured_speedup(rows, table))


@dataclass(frozen=True, eq=False)
class Study:
    """What one sweep measured: the tables that have rows, by name, and their parts."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    yardsticks: pd.DataFrame = field(default_factory=load_yardsticks, repr=False)
    _cells: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    _parts: dict[tuple[str, str | None], list[Part]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def cells(self, table: str) -> pd.DataFrame:
        """The rows of a table, of a timed one with the speedup of each cell: its interval is made here, once."""
        if table not in self._cells:
            rows = self.tables[table]
            self._cells[table] = rows if table == "train" else compare.measured_speedup(rows, table)
        return self._cells[table]

    def parts(self, table: str, over: str | None = None) -> list[Part]:
        """Every comparable part of a table; none where it was not run. Values of the column `over` stay together."""
        if (table, over) not in self._parts:
            found = split(self.cells(table), table, over) if table in self.tables else ()
            alike = [(label, _comparable(rows) if table == "train" and over is None else rows) for label, rows in found]
            self._parts[table, over] = [Part(table, rows, label, over, self.yardsticks) for label, rows in alike]
        return self._parts[table, over]

    def main(self, table: str, over: str | None = None) -> Part:
        """The part that stands for a table: that with the most measured rows; one without rows where it was not run.

        Of equal ones that with backward passes, then that over the fused layer, then that with the most quiet rows,
        then float32, then the first.
        """
        parts = self.parts(table, over)
        return max(parts, key=_weight) if parts else not_run(table)


def _comparable(train: pd.DataFrame) -> pd.DataFrame:
    """Without the times that do not compare: of pairs in one process, those of another processor."""
    if len(machines(train)) > 1:
        return without_times(train)
    return train if timed_alike(train) and timed_steadily(train) else without_times(train, paired=True)


def read(folder: str | os.PathLike[str]) -> Study:
    """The tables of a sweep's folder; BadInputError with one line where it holds none or one is damaged."""
    folder = Path(folder)
    found = {name: load(folder, name) for name in tables_in(folder)}
    if not found:
        raise BadInputError(
            f"{folder}: holds neither gemm.parquet nor train.parquet nor lstm.parquet nor storage.parquet; "
            "run the sweep first"
        )
    tables = {name: found[name] for name in TABLES if name in found and not found[name].empty}
    beside = load_yardsticks(folder.resolve().parent, REFERENCE) if "train" in tables else load_yardsticks()
    return Study(folder, tables, beside)


def read_reference() -> list[Study]:
    """Every committed sweep, or the one that BENCH_RESULTS names."""
    if os.environ.get("BENCH_RESULTS"):
        return [read(reference_folder())]
    return [read(folder) for folder in sorted(REFERENCE.glob("*")) if tables_in(folder)]


def widest(studies: Sequence[Study], table: str, over: str | None = None) -> Part:
    """The main part with the most measured rows over several sweeps; one without rows where no sweep has the table.

    Of training tables, those with probes come before any without, and of them that of the widest model.
    """
    parts = [study.main(table, over) for study in studies if table in study.tables]
    return max(parts, key=lambda part: (_probed(part), _weight(part))) if parts else not_run(table)


def classifiers(studies: Sequence[Study]) -> Part:
    """The part with the most finished classifiers over several sweeps; one without rows where none has any."""
    told = [part for study in studies for part in study.parts("train") if methods.has_classes(part.rows)]
    parts = [part for part in told if methods.has_classes(part.runs)]
    return max(parts, key=lambda part: len(part.runs), default=not_run("train"))


def joined(train: Part, gemm: Part) -> pd.DataFrame:
    """`replicates` with the measured speedup of the product that stands for their network beside them."""
    product = compare.chosen_product(gemm.points, compare.recurrent_shape(train.runs))
    return compare.with_product(train.replicates, gemm.points, product)


def _probed(part: Part) -> int:
    """Hidden units of the widest model with probes, 0 without one."""
    if part.table != "train":
        return 0
    probed = [found is not None and len(found) > 0 for found in part.rows["probes"]]
    return int(part.rows.loc[probed, "hidden_size"].max()) if any(probed) else 0


def _weight(part: Part) -> tuple[int, bool, bool, int, bool]:
    rows, timed = part.rows, part.table != "train"
    ok = rows["status"] == "ok"
    trains = part.table == "lstm" and bool((rows["passes"] == "forward_backward").all())
    fused = part.table == "lstm" and bool((rows["baseline"] == compare.FUSED).all())
    quiet = int((~rows.loc[ok, "noisy"].fillna(False).astype(bool)).sum()) if timed else 0
    number = rows["dtype" if timed else "precision"]
    return int(ok.sum()), trains, fused, quiet, bool((number == "float32").all())
