"""Load result tables across the parquet wall: parquet to DataFrame, checksum first, and never mix what cannot be compared."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

TABLES = ("gemm", "lstm", "train")
SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"  # one folder a sweep, committed

# Rows that differ in one of these are never averaged, divided or drawn together.
UNLIKE = {
    "gemm": ("schema_version", "device_name", "device", "threads", "timer", "dtype", "math", "cache", "op", "baseline"),
    "lstm": (
        "schema_version",
        "device_name",
        "device",
        "threads",
        "timer",
        "dtype",
        "math",
        "passes",
        "scope",
        "baseline",
    ),
    "train": (
        "schema_version",
        "device_name",
        "device",
        "threads",
        "precision",
        "dataset",
        "corpus_sha256",
        "train_tokens",
        "eval_tokens",
    ),
}


def results_folder() -> Path:
    """Where sweeps are stored: ./results where that exists, else the checkout's."""
    return Path("results") if Path("results").is_dir() else ROOT / "results"


def reference_folder() -> Path:
    """What the notebooks read: the folder or sweep that BENCH_RESULTS names, else the committed run of wikitext2_small."""
    named = os.environ.get("BENCH_RESULTS")
    if not named:
        return REFERENCE / "wikitext2_small"
    return Path(named) if Path(named).is_dir() else find_folder(named)


def find_folder(name: str, results: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a finished sweep: a folder, a sweep's name, or its .toml file; ValueError with one line otherwise.

    A folder may be named from where one is or from the checkout. A sweep is looked up in `results`; where that is not
    given, in `results_folder` and then among the committed ones. A file is refused where its name's folder was measured
    from another file.
    """
    parents = [Path(results)] if results else [results_folder(), REFERENCE]
    sweep = Path(name).stem if name.endswith(".toml") else name
    for folder in (Path(name), ROOT / name, *(parent / sweep for parent in parents)):
        if folder.is_dir() and tables_in(folder):
            if name.endswith(".toml"):
                _check_origin(folder, Path(name))
            return folder
    known = sorted({path.name for parent in parents for path in parent.glob("*") if tables_in(path)})
    raise ValueError(
        f"no results called {name!r}: neither it nor {parents[0] / sweep} holds "
        f"{' or '.join(f'{table}.parquet' for table in TABLES)}; known: {', '.join(known) or 'none yet'}"
    )


def _check_origin(folder: Path, file: Path) -> None:
    """ValueError where `folder` says that it belongs to another sweep file (`bench.sweep.Sweep.origin`)."""
    place = file.resolve()
    place = place.relative_to(ROOT) if place.is_relative_to(ROOT) else place
    try:
        said = (folder / ".sweep").read_text("ascii", "replace").strip()
    except OSError:
        return
    if re.fullmatch("[0-9a-f]{64}", said) and said != hashlib.sha256(os.fsencode(place.as_posix())).hexdigest():
        raise ValueError(
            f"{file}: {folder} was measured from another file of that name; accepted: {folder}, to see that"
        )


def tables_in(folder: Path) -> list[str]:
    """The tables a sweep's folder holds."""
    return [table for table in TABLES if (folder / f"{table}.parquet").is_file()]


def load(folder: str | os.PathLike[str], table: str) -> pd.DataFrame:
    """One table of a sweep, after its bytes matched the sha256 beside it.

    ValueError with one line where the file or its checksum is missing, damaged, or of another schema version.
    """
    path = Path(folder) / f"{table}.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: missing; run the sweep first")
    data = path.read_bytes()
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.is_file():
        raise ValueError(f"{path}: its checksum {sidecar.name} is missing; run the sweep again to rebuild both")
    wanted = sidecar.read_text(encoding="utf-8", errors="replace").split()
    if not wanted or hashlib.sha256(data).hexdigest() != wanted[0].lower():
        raise ValueError(f"{path}: damaged, its bytes do not match {sidecar.name}; run the sweep again to rebuild it")
    # read_table and its threads now and then abort the process at exit
    frame: pd.DataFrame = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pandas(use_threads=False)
    versions = sorted({int(version) for version in frame["schema_version"].dropna()})
    if versions and versions != [SCHEMA_VERSION]:
        raise ValueError(f"{path}: written with schema {versions}, this analysis reads schema {SCHEMA_VERSION}")
    return frame


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries by column name."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def one_of(frame: pd.DataFrame, columns: Sequence[str], over: str | None = None) -> None:
    """ValueError where `frame` mixes values of one of `columns`; `over` names the one column that is compared.

    Nulls (a cell that failed has no timer) are not values.
    """
    for column in columns:
        if column == over or column not in frame:
            continue
        values = sorted(str(value) for value in frame[column].dropna().unique())
        if len(values) > 1:
            raise ValueError(
                f"these rows mix {column} ({', '.join(values)}); select one, or name {column!r} as the column compared over"
            )


def split(frame: pd.DataFrame, table: str, over: str | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, rows) of each comparable part of `frame`; the label names only what differs, empty where nothing does.

    A failed cell has no timer; it goes with the others where they all share one. `over` names a column that is compared:
    its values stay in one part.
    """
    filled = frame.copy()
    mixed = []
    for column in (column for column in UNLIKE[table] if column in frame and column != over):
        values = filled[column].dropna().unique()
        if len(values) == 1:
            filled[column] = filled[column].fillna(values[0])
        elif len(values) > 1:
            mixed.append(column)
    if not mixed:
        yield "", filled
        return
    for key, part in filled.groupby(mixed, dropna=False, sort=True):
        yield ", ".join(f"{column} {value}" for column, value in zip(mixed, key, strict=True)), part
