"""Rows as parquet: typed by the schema, and published whole or not at all.

Parquet readers do not notice a flipped bit, hence the checksums: a table's stands in a file beside it. Of these two
files one is always written first, so the checksum file names the new bytes beside the old ones until the table has
taken its place: one of its lines is right at any moment, whatever a kill leaves.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.cells import Cell, identity
from bench.schema import SCHEMA_VERSION, STATUSES, arrow_schema
from kernels.system.cache import checksum_line as checksum_line
from kernels.system.cache import checksum_of as checksum_of
from kernels.system.cache import rename, to_disk

Row = Mapping[str, Any]
Moment = tuple[int, int, int] | None

HALF = ".bench-"  # begins the names of files that are being published
READINGS = 100  # of a table that changes while it is read


class DamagedError(ValueError):
    """A file of the store is missing or not what was written."""


def to_table(cell: Cell, rows: Sequence[Row], provenance: Row) -> pa.Table:
    if not rows:
        raise ValueError("a cell needs at least one row")
    schema = arrow_schema(cell.kind)
    settings = cell.canonical().model_dump()
    stable = {"cell_id": identity(cell.kind, settings), "kind": cell.kind, "schema_version": SCHEMA_VERSION}
    own = {**stable, **settings}
    full: list[Row] = [{**own, **provenance, **row} for row in sorted(rows, key=_epoch_order)]
    known = frozenset(schema.names)
    for row in full:
        for name, value in own.items():
            if row[name] != value:
                raise ValueError(f"a {cell.kind} row says that {name} is {row[name]!r}, its cell {value!r}")
        for name in row:
            if name not in known:
                raise ValueError(f"unknown column {name!r} in a {cell.kind} row; accepted: {', '.join(schema.names)}")
        if row.get("status") not in STATUSES:
            raise ValueError(f"unknown status {row.get('status')!r}; accepted: {', '.join(STATUSES)}")
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array([row.get(field.name) for row in full], field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"column {field.name!r} of a {cell.kind} row is no {field.type}: {error}") from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _epoch_order(row: Row) -> tuple[bool, int]:
    epoch = row.get("epoch")
    return epoch is None, epoch or 0


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Without threads: after `pq.read_table` some processes abort as they exit (pyarrow 26, 1 in 30 on two cores)."""
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def read_table(path: Path) -> bytes:
    """The bytes of a table, or of another file of `publish_pair`, of which its checksum file has the sum.

    DamagedError where a file is missing or they differ.

    Beside a run that writes them the two files may be of different moments: they are read again while they change.
    """
    for _ in range(READINGS):
        seen, data = _moments(path), regular(path)
        try:
            if hashlib.sha256(data).hexdigest() in _sums(path):
                return data
            wrong = DamagedError(f"{path} is damaged: its sha256 is not that of {checksum_of(path).name}")
        except DamagedError as error:
            wrong = DamagedError(f"{path} cannot be verified: {error}")
        if _moments(path) == seen:
            raise wrong
    raise BlockingIOError(errno.EAGAIN, "written faster than it can be read; try again", str(path))


def _sums(path: Path) -> set[str]:
    """The sums in the checksum file of a table. The names beside them do not count: a table may be renamed."""
    text = regular(checksum_of(path)).decode("ascii", errors="replace")
    return {line.split()[0].lower() for line in text.splitlines() if line.strip()}


def regular(path: Path) -> bytes:
    """The bytes of a file. DamagedError where it is none: missing, a folder, a pipe to wait for, a link to nothing."""
    if not path.is_file():
        raise DamagedError(f"{path} is {'no regular file' if os.path.lexists(path) else 'missing'}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None


def moment(path: Path) -> Moment:
    """What changes when a file is replaced or written; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _moments(path: Path) -> list[Moment]:
    """Those of a table and of its checksum file."""
    return [moment(path), moment(checksum_of(path))]


def publish_table(path: Path, parts: Sequence[pa.Table], damaged: Path) -> None:
    """The rows of `parts`, of one schema, as a table with its checksum; without any there is none.

    The two files agree at any moment; what of them was damaged before goes to the folder `damaged`.
    """
    if not parts:
        path.unlink(missing_ok=True)
        checksum_of(path).unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    before: bytes | None = None
    try:
        before = read_table(path)
    except DamagedError:
        set_table_aside(path, damaged)
    publish_pair(path, to_parquet(pa.concat_tables(parts)), before)


def publish_pair(path: Path, data: bytes, before: bytes | None) -> None:
    """A file and its checksum, so that they agree at any moment. before: what `read_table` found there, or None."""
    line = checksum_line(path, data)
    publish(checksum_of(path), (line + (checksum_line(path, before) if before is not None else "")).encode())
    publish(path, data)
    publish(checksum_of(path), line.encode())


def set_table_aside(path: Path, folder: Path) -> Path:
    """Move a table and its checksum file into `folder`, and return where the table would be; a sum alone is no harm."""
    place, sidecar, there = free_name(path, folder), checksum_of(path), os.path.lexists(path)
    if there:
        place = set_aside(path, folder)
    if os.path.lexists(sidecar) and (there or not sidecar.is_file()):
        set_aside(sidecar, folder)
    return place


def set_aside(path: Path, folder: Path) -> Path:
    """Move a file into `folder` and return its new path: no other file there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    return path.rename(free_name(path, folder))


def free_name(path: Path, folder: Path) -> Path:
    """A name in `folder` that nothing has, as near to that of `path` as can be."""
    names = chain([path.name], (f"{path.name}.{number}" for number in count(1)))
    return next(folder / name for name in names if not os.path.lexists(folder / name))


def require_file(path: Path) -> None:
    """FileExistsError where what lies at a place that a user names is no file and would be lost: a device, a pipe."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise FileExistsError(errno.EEXIST, f"{path.name} is {what}", str(path))


def require_pair(path: Path) -> None:
    """`require_file` for a file and its checksum."""
    require_file(path)
    require_file(checksum_of(path))


def clear_strays(*folders: Path) -> None:
    """Remove what a kill has left of files that were being published; to be called where nobody else publishes."""
    for folder in folders:
        for stray in folder.glob(f"{HALF}*.tmp"):
            if not stray.is_dir():
                stray.unlink(missing_ok=True)


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _clear_of_the_dead(folder: Path) -> None:
    """Remove what processes of this machine that are gone have left half written."""
    for stray in folder.glob(f"{HALF}{_host()}-*.tmp"):
        pid = stray.name.removeprefix(HALF).split("-")[1]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            stray.unlink(missing_ok=True)


def publish(path: Path, data: bytes) -> None:
    """All of `data` under `path`, or nothing: hidden temporary file, fsync, rename, fsync of the folder."""
    _clear_of_the_dead(path.parent)
    half = f"{HALF}{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(half)  # of this call alone: several may publish one file
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            to_disk(file.fileno())
        rename(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, str(path)) from None  # a full disk names no file
        raise
