"""What `python -m bench advise` has stored of a model, read across the parquet wall: layers, cells, the whole model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from analysis.load import ROOT, load, records, results_folders, tables_in, verified
from analysis.loading.schema import BadInputError, schema
from analysis.loading.validation import parsed

FOLDER, LAYERS, MODEL = "advise", "layers.parquet", "model.parquet"
NEEDED = {
    LAYERS: (
        "name", "kind", "sizes", "rows", "cols", "count", "calls", "tokens", "batch_size", "steps", "passes",
        "block_size", "target_sparsity", "candidate", "reason", "note", "weights", "dense_bytes",
        "sparse_bytes", "lost", "lost_at_random", "cells", "times", "source", "device",
    ),
    MODEL: (
        "passes", "block_size", "target_sparsity", "status", "reason", "error", "cosine", "dense_bytes",
        "sparse_bytes", "noisy", "dense_ms", "sparse_ms",
    ),
}  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A model as it was measured. cells: the row of each by its id; model: of the whole one, where it was timed."""

    folder: Path
    layers: list[Row]
    cells: dict[str, Row]
    model: list[Row] = field(default_factory=list)

    @property
    def source(self) -> str:
        return str(self.layers[0]["source"])

    @property
    def timed(self) -> list[Row]:
        """The rows of layers that something was to be measured for."""
        return [row for row in self.layers if row["block_size"] is not None]

    def values(self, name: str) -> list[Any]:
        """What there is of a column, each once, in order."""
        return list(dict.fromkeys(row[name] for row in self.timed))


def find(name: str, results: Path | None = None) -> Path:
    """The folder of an advice by its name or path. BadInputError, one line, where there is none."""
    parents = [each / FOLDER for each in ([results] if results else results_folders())]
    places = [Path(name), *(parent / name for parent in parents)]
    for folder in places if name else []:
        if os.path.lexists(folder / LAYERS):
            return folder
    known = sorted({path.parent.name for parent in parents for path in parent.glob(f"*/{LAYERS}")})
    meant = get_close_matches(Path(name).name, known, n=1)
    asked = f" (did you mean {meant[0]}?)" if meant else ""
    raise BadInputError(
        f"no advice called {name!r}{asked}: python -m bench advise measures it; known: {', '.join(known) or 'none yet'}"
    )


def read(folder: Path) -> Measured:
    """What is stored in a folder. BadInputError, one line, where a table is damaged or none of ours."""
    layers = _table(folder / LAYERS)
    if not any(row["block_size"] is not None for row in layers):
        raise BadInputError(f"{folder / LAYERS}: no layer that could be block-sparse")
    cells = {
        row["cell_id"]: row
        for table in tables_in(folder)
        if table in ("gemm", "lstm")
        for row in records(load(folder, table))
    }
    model = _table(folder / MODEL) if os.path.lexists(folder / MODEL) else []
    return Measured(folder, layers, cells, model)


def _table(path: Path) -> list[Row]:
    try:
        table = parsed(verified(path))
    except BadInputError as error:
        raise BadInputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    missing = [name for name in (*NEEDED[path.name], "schema_version") if name not in table.column_names]
    if missing:
        raise BadInputError(f"{path}: {missing[0]}: the column is missing; this is no table of python -m bench advise")
    rows: list[Row] = table.to_pylist()
    if not rows or any(row["schema_version"] != schema()["schema_version"] for row in rows):
        raise BadInputError(f"{path}: it has no rows of today's schema; run python -m bench advise again")
    return rows


def in_checkout(path: Path) -> str:
    """A path as it is shown: from the checkout or from here where it lies in one of them."""
    for above in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(above):
            return str(path.resolve().relative_to(above))
    return str(path)
