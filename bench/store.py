"""The store: results/<sweep>/ on disk. A finished cell is never lost, never half there, never silently damaged.

    cells/<cell_id>-<sha256 of the bytes, 16 digits>.parquet   one file (a shard) per finished cell
    damaged/                                                   shards that are not what was written, and tables likewise
    replaced/                                                  tables with rows of cells without a shard: a campaign's
    .checkpoints/                                              cells that train, half done (`bench.training.checkpoint`)
    gemm.parquet, gemm.parquet.sha256, lstm.parquet, ...       every finished cell of the sweep, and its checksum

Parquet readers do not notice a flipped bit, hence the checksums; a name holds its file's, so that both appear at once.
Files are written under a hidden name, flushed to the disk and renamed: a kill or a full disk leaves the old state.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from bench.cells import Cell, number
from bench.schema import COLUMNS
from bench.storing.parquet import (
    DamagedError,
    Moment,
    Row,
    checksum_line,
    checksum_of,
    clear_strays,
    free_name,
    from_parquet,
    moment,
    publish,
    publish_table,
    read_table,
    regular,
    set_aside,
    set_table_aside,
    to_parquet,
)
from bench.storing.validation import new_table, shard_table, short_sum, stored_tables

SHARD = re.compile(r"(?P<cell_id>[0-9a-f]+)-(?P<sha>[0-9a-f]{16})\.parquet")

TOLD_LISTS = frozenset({"loss_eager_ms", "loss_compiled_ms"})  # `Stored` has no others: they are long
LOCK = ".lock"
LOOK_SECONDS = 10.0
TURN_SECONDS = 60.0  # that a run waits for others to have written the tables
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
UNSEEN = (
    "note: nothing can be locked in {folder}: a run beside this one would not be seen; neither would lose what it has, "
    "and a cell that both have begun runs twice"
)


class LockedError(RuntimeError):
    """Another run uses the folder."""


@contextmanager
def locked(folder: Path, hint: str = "", name: str = LOCK, patience: float = 0.0, leave: bool = True) -> Iterator[str]:
    """Hold a folder, made where it is missing, for one run. LockedError, with `hint`, where another has it.

    name: of the file that is locked. patience: seconds after which that is said. leave: whether the file stays.

    A line where nothing can be locked there, as on some network file systems, and the run goes on; else nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, held = filelock.FileLock(folder / name, timeout=patience), False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of filelock, that it goes by the file's existence instead: a kill leaves it
            lock.acquire()
            while not _is_at_its_place(lock):  # who held it before has removed it since it was opened here
                lock.release()
                lock.acquire()
        held = True
    except (filelock.Timeout, NotImplementedError, OSError) as error:
        if isinstance(error, filelock.Timeout) and not _goes_by_existence(lock):
            raise LockedError(f"{folder} is in use by another run{hint}") from None
        if isinstance(error, OSError) and error.errno not in NO_LOCKS and not isinstance(error, filelock.Timeout):
            raise
    if held and _goes_by_existence(lock):
        lock.release()
        held = False
    try:
        yield "" if held else UNSEEN.format(folder=folder)
    finally:
        if not leave:
            with suppress(OSError):  # some systems remove nothing that is open
                Path(lock.lock_file).unlink()
        if held:
            lock.release()


def _is_at_its_place(lock: filelock.BaseFileLock) -> bool:
    """Whether the file that is locked is the one that others will find."""
    number = lock._context.lock_file_fd
    if number is None or _goes_by_existence(lock) or os.name == "nt":
        return True
    try:
        return os.path.samestat(os.fstat(number), Path(lock.lock_file).stat())
    except FileNotFoundError:
        return False


def _goes_by_existence(lock: object) -> bool:
    return isinstance(lock, filelock.SoftFileLock)


@dataclass(frozen=True)
class Stored:
    """A finished cell: how it ended (the worst status of its rows), how long it took, what code and machine made it.

    machine: null in rows older than that column.
    """

    cell_id: str
    path: Path
    status: str
    reason: str
    cell_seconds: float
    started_at: str
    source_hash: str
    machine: str | None
    last_row: dict[str, Any]


class Store:
    """One folder of results."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = folder = Path(folder)
        self.cells, self.damaged, self.replaced = folder / "cells", folder / "damaged", folder / "replaced"
        # Shards that were read or written, while they stay the same.
        self._known: dict[Path, tuple[Moment, Stored]] = {}
        self.is_shared = False  # with runs that would not be seen

    @contextmanager
    def lock(self, shard: str = "", share: bool = False) -> Iterator[list[str]]:
        """Hold the folder for one run; yields a line for everything that had to be put right. Makes the folder.

        shard: the part of a sweep that the run is of, where others may be at work on other parts. share: hold it with
        all who do.

        LockedError at once where another run holds it; NewerError where a newer version of the suite has left cells in
        it; OSError where the folder cannot be written, or a file in it cannot be read.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        part = f"share-{secrets.token_hex(8)}" if share else shard.replace("/", "-of-")
        name, hint = f"{LOCK}-{part}" if part else LOCK, "; wait for it, or choose another --results"
        # Who shares and looks for what kills have left may hold this one's lock for a moment, too, and remove its file.
        with locked(self.folder, hint, name, LOOK_SECONDS if share else 0.0, leave=not share) as unseen:
            others = [self.folder / LOCK] if part else list(self.folder.glob(f"{LOCK}-*"))
            for stale in self.folder.glob(f"{LOCK}-share-*") if share and not unseen else ():
                with suppress(LockedError), locked(self.folder, "", stale.name, leave=False):  # left by a kill
                    pass
            for other in [] if unseen else others:  # first its own, then those of others: of two at once, none goes on
                patience, by_a_kill = LOOK_SECONDS if part else 0.0, other.name.startswith(f"{LOCK}-share-")
                with locked(self.folder, hint, other.name, patience, leave=not by_a_kill):  # several may look at once
                    pass
            self.is_shared = bool(unseen or part)
            yield [unseen] * bool(unseen) + self._put_right()

    def _put_right(self) -> list[str]:
        if not self.is_shared:
            clear_strays(self.folder, self.cells)
        scanned = self.scan()
        newest = _newest(scanned)
        lines = []
        for path, stored in scanned.items():
            if isinstance(stored, DamagedError):
                with suppress(FileNotFoundError):  # a run beside this one has done so
                    lines.append(f"{stored}; moved to {set_aside(path, self.damaged)}, its cell runs again")
            elif newest[stored.cell_id] is not stored:
                path.unlink(missing_ok=True)  # a retry was killed between storing the new rows and removing these
        return lines if self.is_shared else lines + self._put_tables_right(newest.keys())

    def _put_tables_right(self, stored: Set[str]) -> list[str]:
        """Tables are written anew when a run ends: what they alone hold is kept before, where nothing replaces it."""
        lines: list[str] = []

        def damaged(path: Path, error: DamagedError) -> None:
            lines.append(f"{error}; moved to {set_table_aside(path, self.damaged)}, it is written anew")

        for path, data, table, _ in stored_tables(self.folder, damaged):
            alone = set(table["cell_id"].to_pylist()) - stored
            if alone:
                self.replaced.mkdir(exist_ok=True)
                publish(place := free_name(path, self.replaced), data)
                publish(checksum_of(place), checksum_line(place, data).encode())
                lines.append(f"{path} has rows of {number(len(alone))} not in {self.cells}: kept as {place}")
        return lines

    def finished(self) -> dict[str, Stored]:
        """What is stored and intact, by cell_id; of two shards of a cell the one started last. Changes nothing.

        NewerError where a newer version of the suite has stored some of it; OSError where the folder cannot be read.
        """
        return _newest(self.scan())

    def scan(self) -> dict[Path, Stored | DamagedError]:
        """What each shard is. Raises as `finished`."""
        found: dict[Path, Stored | DamagedError] = {}
        try:
            paths = sorted(self.cells.iterdir())  # unlike a glob, which finds nothing where it may not look
        except FileNotFoundError:
            return found
        for path in (path for path in paths if path.suffix == ".parquet"):
            seen, known = moment(path), self._known.get(path)
            if known and known[0] == seen:
                found[path] = known[1]
                continue
            try:
                found[path] = stored = _stored(_read_table(path), path)
                self._known[path] = seen, stored
            except DamagedError as error:
                if os.path.lexists(path):  # else replaced by a run beside this one
                    found[path] = error
        return found

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> Path:
        """Publish the rows of one finished cell, replacing an earlier shard of it.

        ValueError naming the column where a row does not fit the table, or says what cannot be; OSError leaves
        everything as it was.
        """
        table = new_table(cell, rows, provenance)
        data = to_parquet(table)
        path = self.cells / f"{cell.cell_id}-{short_sum(data)}.parquet"
        publish(path, data)
        stored = _stored(table, path)
        self._known[path] = moment(path), stored
        for other in self.cells.glob(f"{cell.cell_id}-*.parquet"):
            # Beside other runs not what one of them has put there since: each would remove both.
            if other != path and (not self.is_shared or self._is_older(other, stored)):
                other.unlink(missing_ok=True)
        return path

    def adopt(self, cell_id: str, table: pa.Table) -> None:
        """Publish the rows of a cell that were read from another folder, in place of what is here of it."""
        data = to_parquet(table)
        path = self.cells / f"{cell_id}-{short_sum(data)}.parquet"
        publish(path, data)
        for other in self.cells.glob(f"{cell_id}-*.parquet"):
            if other != path:
                other.unlink(missing_ok=True)

    def table(self, path: Path) -> pa.Table:
        """The rows of a shard. DamagedError where they are not what was written."""
        return _read_table(path)

    def stored(self, table: pa.Table, path: Path) -> Stored:
        """What the rows of one cell say of it."""
        return _stored(table, path)

    def _is_older(self, path: Path, stored: Stored) -> bool:
        try:
            return _age(_stored(_read_table(path), path)) < _age(stored)
        except DamagedError:
            return False

    def _shards(self, cell: Cell) -> list[Stored]:
        """The intact shards of a cell."""
        found = []
        for path in self.cells.glob(f"{cell.cell_id}-*.parquet"):
            with suppress(DamagedError):
                found.append(_stored(_read_table(path), path))
        return found

    def newer(self, cell: Cell, than: Stored | None) -> bool:
        """Whether something was stored of a cell since `than`; anything, where that is None."""
        return any(than is None or _age(each) > _age(than) for each in self._shards(cell))

    def compact(self, cells: Sequence[Cell]) -> None:
        """Write one parquet per table with the finished ones of `cells`, in their order, and its checksum."""
        with self._turn():
            finished = self.finished()
            for kind in COLUMNS:
                paths = [finished[c.cell_id].path for c in cells if c.kind == kind and c.cell_id in finished]
                publish_table(self.folder / f"{kind}.parquet", list(self._tables(paths)), self.damaged)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Runs that share a folder write its tables one after another, where anything can be locked there."""
        turn = filelock.FileLock(self.folder / ".tables.lock", timeout=TURN_SECONDS)
        with suppress(OSError, NotImplementedError, filelock.Timeout), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.is_shared:
                turn.acquire()
        try:
            yield
        finally:
            if turn.is_locked:
                turn.release()

    def _tables(self, paths: Iterable[Path]) -> Iterator[pa.Table]:
        """The rows of shards; one that was damaged since it was seen is left out, and no more known."""
        for path in paths:
            try:
                yield _read_table(path)
            except DamagedError:
                self._known.pop(path, None)

    def read(self, kind: str) -> pa.Table:
        """One compacted table, verified. DamagedError where it is missing or damaged."""
        try:
            return from_parquet(read_table(self.folder / f"{kind}.parquet"))
        except DamagedError as error:
            raise DamagedError(f"{error}; run the sweep {self.folder.name} again: finished cells are kept") from None


def _newest(scanned: Mapping[Path, Stored | DamagedError]) -> dict[str, Stored]:
    whole = [stored for stored in scanned.values() if isinstance(stored, Stored)]
    return {stored.cell_id: stored for stored in sorted(whole, key=_age)}


def _age(stored: Stored) -> tuple[str, str]:
    """Of two shards of a cell the greater one is believed."""
    return stored.started_at, stored.path.name


def _read_table(path: Path) -> pa.Table:
    """The rows of a shard whose bytes have the sha256 in its name, under today's schema. DamagedError otherwise."""
    match, data = SHARD.fullmatch(path.name), regular(path)
    if match is None or short_sum(data) != match["sha"]:
        raise DamagedError(f"{path} is damaged: its sha256 is not the one in its name")
    return shard_table(data, match["cell_id"], path)


def _stored(table: pa.Table, path: Path) -> Stored:
    told = [field.name for field in table.schema if field.name in TOLD_LISTS or not pa.types.is_list(field.type)]
    rows = table.select(told).to_pylist()
    worst = next((row for row in rows if row["status"] != "ok"), rows[-1])
    names = ("cell_id", "status", "reason", "cell_seconds", "started_at", "source_hash", "machine")
    return Stored(path=path, last_row=rows[-1], **{name: worst[name] for name in names})
