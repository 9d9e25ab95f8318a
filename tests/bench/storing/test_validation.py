"""What is read back: of every table and shard that is not what was written, one line; what is intact stays, and nothing is lost."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rows import timed, trained
from typer.testing import CliRunner

import bench.__main__ as command_line
from bench.cells import Cell, GemmCell, TrainCell
from bench.schema import SCHEMA_VERSION
from bench.store import Store
from bench.storing.parquet import checksum_line, checksum_of, from_parquet, to_parquet, to_table
from bench.storing.tables import Tables
from bench.storing.validation import NewerError

Harm = Callable[[pa.Table], pa.Table]
PROVENANCE: dict[str, Any] = {"cell_seconds": 1.5, "started_at": "2026-01-01", "source_hash": "a"}
CELLS: list[Cell] = [GemmCell(seed=seed) for seed in range(4)]
SWEEP = 'kind = "gemm"\n[axes]\nseed = [0, 1, 2, 3]\n'
(ROW,) = timed()
NEWER = SCHEMA_VERSION + 1


def table_of(*cells: Cell) -> pa.Table:
    return pa.concat_tables([to_table(cell, [ROW], PROVENANCE) for cell in cells])


def with_column(table: pa.Table, name: str, values: Any, type_: pa.DataType | None = None) -> pa.Table:
    """`table` with one column of other values, or a new one."""
    array = pa.array(values if isinstance(values, list) else [values] * len(table), type_)
    place = table.schema.get_field_index(name)
    return table.append_column(name, array) if place < 0 else table.set_column(place, name, array)


def in_second_cell(name: str, value: Any) -> Harm:
    """Another value in the second row, the others as they are."""

    def harm(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[min(1, len(values) - 1)] = value
        return with_column(table, name, values, table[name].type)

    return harm


# A fault of a cell: it runs again, and of a table the other cells stay.
CELL_FAULTS: dict[str, tuple[Harm, str]] = {
    "settings of another cell": (in_second_cell("m", 512), "its settings are those of cell"),
    "a setting is null": (in_second_cell("backend", None), "backend is missing"),
    "unknown status": (in_second_cell("status", "fine"), "status is 'fine'; accepted: ok"),
    "another kind": (in_second_cell("kind", "lstm"), ""),  # a shard is known by its kind, a table by its name
    "never started": (in_second_cell("started_at", None), "started_at is None"),
    "endless": (in_second_cell("cell_seconds", float("inf")), "cell_seconds inf"),
    "no time at all": (in_second_cell("cell_seconds", None), "cell_seconds None"),
    "twice": (lambda table: pa.concat_tables([table, table.slice(min(1, len(table) - 1), 1)]), "2 rows where one"),
}
# A fault of the file: nothing in it can be believed.
FILE_FAULTS: dict[str, tuple[Harm, str]] = {
    "no rows": (lambda table: table.slice(0, 0), "it has no rows"),
    "no columns": (lambda _: pa.table({"a": [1]}), "it has no column schema_version"),
    "version of another type": (lambda table: with_column(table, "schema_version", "1"), "schema_version is string"),
    "version null": (lambda table: with_column(table, "schema_version", None, pa.int64()), "schema_version is None"),
    "version 0": (lambda table: with_column(table, "schema_version", 0), "schema_version is 0; accepted: 1 to"),
    "text for a number": (lambda table: with_column(table, "time_ms", "fast"), "column time_ms is string, not double"),
    "number for text": (lambda table: with_column(table, "status", 1), "column status is int64, not string"),
    "lists for text": (lambda table: with_column(table, "cell_id", [["a"]] * len(table)), "column cell_id is list"),
    "a column twice": (lambda table: table.append_column("m", table["m"]), "column m is there 2 times"),
}
NEWER_FAULTS: dict[str, tuple[Harm, str]] = {
    "version": (lambda table: with_column(table, "schema_version", NEWER), f"schema_version {NEWER}"),
    "columns": (lambda table: with_column(table, "speed_limit", 3), "columns this one does not know: speed_limit"),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "results" / "sweep")
    with made.lock():
        for cell in CELLS[1:]:
            made.put(cell, [ROW], PROVENANCE)
    return made


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def shard(store: Store, cell: Cell, data: bytes) -> Path:
    """A file named as the shard of `cell` that holds `data`."""
    path = store.cells / f"{cell.cell_id}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    path.write_bytes(data)
    return path


def ended(*arguments: str | Path) -> tuple[int, str]:
    """(exit status, everything said) of one command."""
    done = CliRunner().invoke(command_line.app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("fault", [*CELL_FAULTS, *FILE_FAULTS])
def test_a_shard_that_is_none_is_set_aside_with_one_line(store: Store, fault: str) -> None:
    harm, words = (CELL_FAULTS | FILE_FAULTS)[fault]
    path = shard(store, CELLS[0], to_parquet(harm(table_of(CELLS[0]))))
    data = path.read_bytes()
    assert set(store.finished()) == {cell.cell_id for cell in CELLS[1:]}
    with store.lock() as lines:
        (line,) = lines
    assert str(path) in line and words in line and "\n" not in line and "its cell runs again" in line
    assert (store.damaged / path.name).read_bytes() == data
    store.put(CELLS[0], [ROW], PROVENANCE)
    store.compact(CELLS)
    assert store.read("gemm")["seed"].to_pylist() == [0, 1, 2, 3]


def test_a_shard_of_two_cells_or_of_another_is_set_aside(store: Store) -> None:
    shard(store, CELLS[0], to_parquet(table_of(CELLS[0], CELLS[1])))
    shard(store, CELLS[0], to_parquet(table_of(CELLS[2])))
    train = shard(store, TrainCell(), to_parquet(to_table(TrainCell(), trained(1) * 2, PROVENANCE)))
    with store.lock() as lines:
        assert len(lines) == 3 and sum("not the one in its name" in line for line in lines) == 2
        assert any(str(train) in line and "several rows with the same epoch" in line for line in lines)
    assert len(store.finished()) == 3


def in_the_way() -> Iterator[tuple[str, Callable[[Path], object]]]:
    yield "folder", lambda path: path.mkdir()
    yield "dangling link", lambda path: path.symlink_to(path.with_name("nowhere"))
    yield "link to itself", lambda path: path.symlink_to(path)
    if hasattr(os, "mkfifo"):
        yield "pipe", lambda path: os.mkfifo(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", dict(in_the_way()))
def test_what_is_no_file_is_set_aside_and_never_waited_for(what: str, store: Store, tmp_path: Path) -> None:
    make = dict(in_the_way())[what]
    path = store.cells / f"{CELLS[0].cell_id}-{'0' * 16}.parquet"
    make(path)
    assert len(store.finished()) == 3
    with store.lock() as lines:
        assert len(lines) == 1 and f"{path} is no regular file" in lines[0]
    assert os.path.lexists(store.damaged / path.name)
    for name in ("gemm.parquet", "gemm.parquet.sha256"):  # of a compacted table, and of a campaign's
        folder = tmp_path / name
        folder.mkdir()
        Tables(folder, CELLS).put(CELLS[0], [ROW], PROVENANCE)
        (folder / name).unlink()
        make(folder / name)
        again = Tables(folder, CELLS)
        (line,) = again.load()
        assert "is no regular file" in line and "its cells run again" in line
        again.put(CELLS[1], [ROW], PROVENANCE)
        assert from_parquet((folder / "gemm.parquet").read_bytes())["seed"].to_pylist() == [1]
        assert os.path.lexists(folder / "damaged" / name)
    target = store.folder / "gemm.parquet"
    make(target)
    store.compact(CELLS)
    assert len(store.read("gemm")) == 3


def test_a_file_that_cannot_be_read_is_named_and_stays(
    store: Store, sweep_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = next(store.cells.glob("*.parquet")), Path.read_bytes

    def read_bytes(this: Path) -> bytes:
        if this == path:
            raise OSError(5, "Input/output error", str(this))
        return real(this)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for command in ("plan", "run", "show"):
        status, said = ended(command, sweep_file, "--results", store.folder.parent)
        assert (status, said.count("\n")) == (3, 1) and str(path) in said
    assert path.exists() and not store.damaged.exists()


def test_nothing_in_the_damaged_folder_is_replaced(store: Store) -> None:
    path = store.cells / f"{CELLS[0].cell_id}-{'0' * 16}.parquet"
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        with store.lock():
            pass
    assert {kept.read_bytes() for kept in store.damaged.iterdir()} == {b"one", b"two", b"three"}


@pytest.mark.parametrize("fault", NEWER_FAULTS)
def test_what_a_newer_version_made_stays_and_nothing_runs_over_it(store: Store, sweep_file: Path, fault: str) -> None:
    harm, words = NEWER_FAULTS[fault]
    path = shard(store, CELLS[0], to_parquet(harm(table_of(CELLS[0]))))
    before = {file: file.read_bytes() for file in store.folder.rglob("*.parquet")}
    for command in ("plan", "run", "show"):
        status, said = ended(command, sweep_file, "--results", store.folder.parent)
        assert (status, said.count("\n")) == (3, 1), said
        assert str(path) in said and words in said and "newer version" in said
    assert {file: file.read_bytes() for file in store.folder.rglob("*.parquet")} == before


@pytest.mark.parametrize("fault", NEWER_FAULTS)
def test_a_campaign_writes_over_no_table_of_a_newer_version(tmp_path: Path, sweep_file: Path, fault: str) -> None:
    harm, words = NEWER_FAULTS[fault]
    path = write(tmp_path / "out" / "sweep", to_parquet(harm(table_of(*CELLS))))
    data = path.read_bytes()
    with pytest.raises(NewerError, match=words):
        Tables(path.parent, CELLS).load()
    status, said = ended("campaign", sweep_file, "--out", tmp_path / "out", "--budget", "1", "--device", "cpu")
    assert (status, said.count("\n")) == (3, 1) and str(path) in said
    assert path.read_bytes() == data


def write(folder: Path, data: bytes, sidecar: bytes | None = b"right") -> Path:
    """The table of a campaign with its checksum, `sidecar` in its place, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gemm.parquet"
    path.write_bytes(data)
    if sidecar is not None:
        right = checksum_line(path, data).encode()
        checksum_of(path).write_bytes(right if sidecar == b"right" else sidecar)
    return path


@pytest.mark.parametrize("fault", CELL_FAULTS)
def test_of_a_table_with_a_cell_that_is_none_the_others_stay(tmp_path: Path, fault: str) -> None:
    harm, words = CELL_FAULTS[fault]
    path = write(tmp_path, to_parquet(harm(table_of(*CELLS[:3]))))
    data = path.read_bytes()
    tables = Tables(tmp_path, CELLS)
    (line,) = tables.load()
    assert str(path) in line and words in line and "the others are kept" in line
    assert [bool(tables.rows(cell)) for cell in CELLS] == [True, False, True, False]
    assert (tmp_path / "damaged" / "gemm.parquet").read_bytes() == data
    again = Tables(tmp_path, CELLS)
    assert again.load() == [] and set(again.tables) == set(tables.tables), "they are on the disk again at once"


UNVERIFIED: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "gemm.parquet.sha256 is missing"),
    "empty": (b"", "its sha256 is not that of"),
    "not UTF-8": (b"\xff" + b"0" * 63 + b"  gemm.parquet\n", "its sha256 is not that of"),
    "of another": (b"0" * 64 + b"  gemm.parquet\n", "its sha256 is not that of"),
}


@pytest.mark.parametrize("fault", [*UNVERIFIED, *FILE_FAULTS, "cut short", "a flipped bit"])
def test_a_table_that_is_none_is_moved_aside_and_its_cells_run_again(tmp_path: Path, fault: str) -> None:
    data = whole = to_parquet(table_of(*CELLS))
    sidecar, words = UNVERIFIED.get(fault, (b"right", ""))
    if fault in FILE_FAULTS:
        harm, words = FILE_FAULTS[fault]
        data = to_parquet(harm(table_of(*CELLS)))
    elif fault == "cut short":
        data, words = whole[: len(whole) // 2], "it is no parquet table"
    path = write(tmp_path, data, sidecar)
    if fault == "a flipped bit":
        data, words = whole[:999] + bytes([whole[999] ^ 4]) + whole[1000:], "its sha256 is not that of"
        path.write_bytes(data)
    resumed = Tables(tmp_path / "new", CELLS)
    (line,) = resumed.load(tmp_path)
    assert str(path) in line and words in line and "stays there" in line and path.read_bytes() == data
    (line,) = Tables(tmp_path, CELLS).load()
    assert str(path) in line and words in line and "its cells run again" in line and "\n" not in line
    assert (tmp_path / "damaged" / "gemm.parquet").read_bytes() == data and not path.exists()
    tables = Tables(tmp_path, CELLS)
    assert tables.load() == []
    tables.put(CELLS[0], [ROW], PROVENANCE)
    assert (tmp_path / "damaged" / "gemm.parquet").read_bytes() == data


def test_bytes_that_rot_while_a_campaign_runs_are_not_written_over(tmp_path: Path) -> None:
    tables = Tables(tmp_path, CELLS)
    tables.put(CELLS[0], [ROW], PROVENANCE)
    (tmp_path / "gemm.parquet").write_bytes(b"rotten")
    tables.put(CELLS[1], [ROW], PROVENANCE)
    assert (tmp_path / "damaged" / "gemm.parquet").read_bytes() == b"rotten"
    again = Tables(tmp_path, CELLS)
    assert again.load() == [] and len(again.tables) == 2


def test_a_run_in_the_folder_of_a_campaign_keeps_its_table(store: Store) -> None:
    Tables(store.folder, CELLS).put(CELLS[0], [{**ROW, "time_ms": 9.0}], PROVENANCE)
    with store.lock() as lines:
        assert len(lines) == 1 and "has rows of 1 cell not in" in lines[0]
        store.put(CELLS[0], [ROW], PROVENANCE)
        store.compact(CELLS)
    assert from_parquet((store.replaced / "gemm.parquet").read_bytes())["time_ms"].to_pylist() == [9.0]
    with store.lock() as lines:
        assert lines == []


def test_a_damaged_table_is_set_aside_and_written_anew_from_the_cells(store: Store) -> None:
    store.compact(CELLS)
    path = store.folder / "gemm.parquet"
    path.write_bytes(b"rotten")
    with store.lock() as lines:
        assert len(lines) == 1 and f"{path} is damaged" in lines[0] and "it is written anew" in lines[0]
        store.compact(CELLS)
    assert (store.damaged / "gemm.parquet").read_bytes() == b"rotten" and len(store.read("gemm")) == 3


def test_a_renamed_table_is_known_by_its_sum_alone(tmp_path: Path) -> None:
    data = to_parquet(table_of(*CELLS))
    write(tmp_path, data, hashlib.sha256(data).hexdigest().upper().encode() + b" *somewhere/else.parquet\r\n")
    tables = Tables(tmp_path, CELLS)
    assert tables.load() == [] and len(tables.tables) == 4


def test_text_that_is_none_is_damage(store: Store) -> None:
    table = table_of(CELLS[0])
    bad = pc.cast(pa.array([b"\xff\xfe"], pa.binary()), pa.string(), safe=False)
    place = table.schema.get_field_index("reason")
    shard(store, CELLS[0], to_parquet(table.set_column(place, "reason", bad)))
    with store.lock() as lines:
        assert len(lines) == 1 and "it is no parquet table" in lines[0]
