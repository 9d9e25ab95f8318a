"""One cell of one column of the committed tables says something else.

It is left out by name, or everything said is a number.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from analysis import report, study
from analysis.findings import findings
from analysis.load import REFERENCE, LeftOutWarning
from analysis.loading.rules import LONGEST, SHORTEST
from analysis.loading.schema import BadInputError, columns
from analysis.study import Part
from analysis.tables import (
    breakeven_table,
    finished_model_table,
    layer_table,
    main_table,
    methods_table,
    narrowed_table,
    statements,
    storage_table,
    to_markdown,
    training_time_table,
)

pytestmark = pytest.mark.examples

NONSENSE = re.compile(r"∞|\binf\b|\bnan\b|\bnan%|inf×|nan×", re.IGNORECASE)
NAN, INF = math.nan, math.inf
NUMBERS = (None, NAN, -1.0, 0.0, INF, 1e308, 5e-324, SHORTEST, 0.5, 1.0, LONGEST, 1e100)
WHOLE = (None, -1, 0, 1, 7, 2**53, 2**62)
WORDS = (None, "", "wrong", "two\nlines", "ok", "dense")
TRIED = {
    "gemm": 2,
    "lstm": 2,
    "train": 1,
    "classifiers": 1,
    "storage": 1,
}  # values of a column, drawn anew for each; of a setting one: no cell_id stands for it
TABLE = {"classifiers": "train"}  # of what is tried: its own name's, else this
Teller = Callable[[study.Study], list[str]]


def whole(sweep: str, kind: str) -> pa.Table:
    """A committed table."""
    return pq.ParquetFile(REFERENCE / sweep / f"{kind}.parquet").read(use_threads=False)


def rows_where(table: pa.Table, **wanted: tuple[Any, ...]) -> pa.Table:
    """The rows with one of some values in each of some columns."""
    kept = [all(row[name] in values for name, values in wanted.items()) for row in table.select([*wanted]).to_pylist()]
    return table.filter(pa.array(kept))


@cache
def sample(kind: str) -> tuple[pa.Table, int]:
    """(a few cells of a committed table, the row that is changed).

    Of a run on the sparse path that is the last epoch, which says most.
    """
    if kind == "gemm":
        return rows_where(whole("wikitext2_small", kind), block_size=(16,), backend=("native",)).slice(0, 5), 1
    if kind == "lstm":
        return rows_where(whole("lstm", kind), hidden_size=(256, 512)).slice(0, 5), 1
    if kind == "storage":
        return rows_where(whole("storage", kind), what=("weight",), block_size=(16,), form=("bsr", "dense")).slice(
            0, 6
        ), 1
    if kind == "classifiers":
        table = rows_where(whole("digits", "train"), block_size=(16,), seed=(0,), target_sparsity=(0.0, 0.95))
    else:
        table = rows_where(whole("training_integral", kind), block_size=(16,))
    last = max(range(len(table)), key=lambda row: (table["path"][row].as_py() != "dense", table["epoch"][row].as_py()))
    norms = [
        one[:1] if row == last else None for row, one in enumerate(table["block_norms"].to_pylist())
    ]  # they are long
    place = table.schema.get_field_index("block_norms")
    return table.set_column(place, "block_norms", pa.array(norms, table.schema.field(place).type)), last


def values(type_: pa.DataType, now: Any) -> Iterator[Any]:
    """What a value may be changed into, of its own type."""
    if pa.types.is_list(type_):
        yield from (None, [], [None])
        for one in values(type_.value_type, now[0] if now else None):
            yield [one, *(now or [])[1:]]
        yield [*(now or []), *(now or [])[:1]]
    elif pa.types.is_struct(type_):
        for field in type_:
            yield from ({**(now or {}), field.name: one} for one in values(field.type, (now or {}).get(field.name)))
    elif pa.types.is_boolean(type_):
        yield from (None, True, False)
    elif pa.types.is_string(type_):
        yield from WORDS
    elif pa.types.is_integer(type_):
        yield from (one for one in WHOLE if one is None or one < 2 ** (type_.bit_width - 1))
    else:
        yield from NUMBERS


def changed(table: pa.Table, place: int, name: str, value: Any) -> pa.Table:
    """`table` with one value in one row changed."""
    column = table[name].combine_chunks()
    one = pa.array([value], column.type)
    parts = [column.slice(0, place), one, column.slice(place + 1)]
    return table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(parts))


def stored(folder: Path, kind: str, table: pa.Table) -> Path:
    path = folder / f"{kind}.parquet"
    pq.write_table(table, path, compression="none")
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def told(found: study.Study) -> list[str]:
    """What a report says beside its sections."""
    about = [report.dates(found), report.counts(found), str(report.provenance(found)), str(report.failed_cells(found))]
    return [*about, *report.caveats(found), *report.missing(found)]


def table(make: Callable[[Part], pd.DataFrame], kind: str) -> Teller:
    return lambda found: [to_markdown(make(found.main(kind)))]


def sentences(make: Callable[[Part], list[str]], kind: str) -> Teller:
    return lambda found: make(found.main(kind))


TELLERS: dict[str, tuple[Teller, ...]] = {
    "gemm": (told, table(breakeven_table, "gemm"), sentences(findings, "gemm")),
    "lstm": (told, table(layer_table, "lstm"), sentences(findings, "lstm")),
    "train": (
        told,
        table(lambda train: main_table(train, study.not_run("gemm")), "train"),
        table(training_time_table, "train"),
        sentences(findings, "train"),
        table(finished_model_table, "train"),
        sentences(statements, "train"),
    ),
    "classifiers": (
        told,
        table(methods_table, "train"),
        table(narrowed_table, "train"),
        sentences(findings, "train"),
    ),
    "storage": (told, table(storage_table, "storage"), sentences(findings, "storage")),
}


def said(teller: Teller, found: study.Study) -> str:
    """What is said of the largest comparable part of a sweep."""
    return "\n".join(teller(found))


def refused(folder: Path) -> tuple[study.Study | None, list[str]]:
    """(what is left of a sweep, the lines said of what is not); BadInputError and warnings alone may refuse."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = study.read(folder)
        except BadInputError as error:
            return None, [str(error)]
    assert all(issubclass(one.category, LeftOutWarning) for one in caught), caught
    return found, [str(one.message) for one in caught]


def changes(kind: str) -> Iterator[tuple[str, Any]]:
    """(column, value) of everything that is tried on a table."""
    table, place = sample(kind)
    chosen = random.Random(0)
    settings = {column.name for column in columns(TABLE.get(kind, kind)) if column.role == "setting"}
    for field in table.schema:
        tried = list(values(field.type, table[field.name][place].as_py()))
        count = min(len(tried), 1 if field.name in settings else TRIED[kind])
        yield from ((field.name, one) for one in chosen.sample(tried, count))


@pytest.mark.parametrize("kind", TRIED)
def test_whatever_one_value_is_the_rest_is_told(kind: str, tmp_path: Path) -> None:
    table, place = sample(kind)
    name_of = TABLE.get(kind, kind)
    path = stored(tmp_path, name_of, table)
    found, lines = refused(tmp_path)
    assert lines == [] and found is not None
    assert not any(NONSENSE.search(said(teller, found)) for teller in TELLERS[kind])
    tellers = cycle(TELLERS[kind])
    cell = table["cell_id"][place].as_py()
    without = table["cell_id"].to_pylist().count(cell)
    for name, value in changes(kind):
        case = f"{name} = {value!r}"[:200]
        stored(tmp_path, name_of, changed(table, place, name, value))
        found, lines = refused(tmp_path)
        for line in lines:
            assert "\n" not in line and line.startswith(f"{path}: "), case
        if lines:
            words = " ".join(line.removeprefix(str(path)) for line in lines)
            assert re.search(rf"\b({name}|cell_id)\b", words), f"{case}: {words}"
            assert name == "schema_version" or cell in words or name == "cell_id", f"{case}: {words}"
            assert found is None or len(found.tables[name_of]) == len(table) - without, f"{case}: the others stay"
            continue
        assert found is not None
        try:
            text = said(next(tellers), found)
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error
        assert not NONSENSE.search(text), f"{case}: {[one for one in text.splitlines() if NONSENSE.search(one)][:2]}"


EXTREMES: tuple[tuple[str, str, Any], ...] = (
    ("gemm", "samples_ms", SHORTEST),
    ("lstm", "baseline_samples_ms", LONGEST),
    ("train", "test_ppl", 1e100),
    ("train", "train_seconds", SHORTEST),
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "value"), EXTREMES, ids=[name for _, name, _ in EXTREMES])
def test_a_report_is_drawn_of_extremes(
    kind: str, name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are made, not painted: what cannot be drawn fails where it is made, or laid out by whoever tests that."""
    monkeypatch.setattr(Figure, "savefig", lambda _, target, **__: target.write(b"no picture"))
    table, place = sample(kind)
    now = table[name][place].as_py()
    stored(tmp_path, kind, changed(table, place, name, [value] * len(now) if isinstance(now, list) else value))
    assert refused(tmp_path)[1] == []
    report.write_report(tmp_path)
