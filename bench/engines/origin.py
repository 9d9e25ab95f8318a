"""Which sweep file a folder of results belongs to.

Two files of one name are never mixed in its tables, and neither are cells that a file no longer has.

<folder>/.sweep      a digest of the file's place (`bench.sweep.Sweep.origin`)
<folder>/retired/    tables of a campaign's cells that the file no longer has; taken back when it has them again
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from bench.cells import Cell, number
from bench.storing.parquet import DamagedError, publish, regular
from bench.storing.tables import Tables
from bench.sweep import Sweep, SweepError

ORIGIN = ".sweep"
RETIRED = "retired"

Say = Callable[[str], None]


def origin(folder: Path) -> str:
    """Which sweep file a folder of results belongs to (`Sweep.origin`); nothing where that is not said."""
    try:
        said = regular(folder / ORIGIN).decode("ascii", "replace").strip()
    except (OSError, DamagedError):
        return ""
    return said if re.fullmatch("[0-9a-f]{64}", said) else ""


def claim(folder: Path, sweep: Sweep) -> None:
    """Say in a folder that it belongs to the file of `sweep`."""
    if origin(folder) != sweep.origin:
        publish(folder / ORIGIN, f"{sweep.origin}\n".encode())


def require_own(sweep: Sweep, folder: Path, stored: Collection[str], option: str) -> None:
    """SweepError where `folder` belongs to another file of the same name and has cells that `sweep` does not have.

    stored: the ids of the cells that it has. option: of the command line, that names another folder.
    """
    other = len(set(stored) - {cell.cell_id for cell in sweep.cells})
    if other and origin(folder) not in ("", sweep.origin):
        wrong = f"{folder} holds {number(other)} of another file called {sweep.name}"
        accepted = f"a file of another name, another {option}, or this one after {folder / ORIGIN} is removed"
        raise SweepError(sweep.path, "file", wrong, accepted)


class Kept:
    """What a campaign has stored for one sweep.

    tables: of the sweep's cells. retired: of cells that its file no longer has.
    """

    def __init__(self, sweep: Sweep, folder: Path, order: Collection[Cell]) -> None:
        self.sweep, self.folder = sweep, folder
        self.own = {cell.cell_id for cell in sweep.cells}
        self.tables, self.retired = Tables(folder, order), Tables(folder / RETIRED, sweep.cells)

    def load(self, say: Say, earlier: Path | None = None) -> None:
        """Take up what is stored, and what an earlier campaign has stored in another folder; say what is damaged.

        SweepError where one of the folders belongs to another file, or has none of the sweep's cells and does not say
        that it is the sweep's: nothing that is intact has been changed then.
        """
        found = [self.tables, self.retired]
        self._read(found, self.folder, "--out", say)
        if earlier is not None and earlier != self.folder:
            before = [Tables(earlier, ()), Tables(earlier / RETIRED, ())]
            self._read(before, earlier, "--resume-from", say)
            found += before
        for tables in found:  # the first that has a cell is believed
            for cell_id in list(tables.tables):
                target = self.tables if cell_id in self.own else self.retired
                if tables is self.tables or cell_id not in target.tables:
                    target.take(cell_id, tables)

    def _read(self, found: list[Tables], folder: Path, option: str, say: Say) -> None:
        for tables in found:
            for line in tables.load(None if folder == self.folder else tables.folder):
                say(line)
        stored = {cell_id for tables in found for cell_id in tables.tables}
        if stored and not stored & self.own and origin(folder) != self.sweep.origin:
            wrong = (
                f"{folder} holds {number(len(stored))} of another sweep called {self.sweep.name}, and none of this one"
            )
            raise SweepError(self.sweep.path, "file", wrong, f"a file of another name, or another {option}")
        require_own(self.sweep, folder, stored, option)

    def settle(self, say: Say) -> None:
        """Write what is retired, and only then the tables without it; say how much that is."""
        if self.tables.places or self.tables.tables or self.retired.tables:
            self.folder.mkdir(parents=True, exist_ok=True)
            claim(self.folder, self.sweep)
        gone = self.tables.tables.keys() - self.own
        kinds = {self.tables.kinds[cell_id] for cell_id in gone}
        for kind in set(self.retired.kinds.values()):
            self.retired.write(kind)
        for cell_id in gone:
            self.tables.drop(cell_id)
        for kind in kinds:
            self.tables.write(kind)
        if apart := len(self.retired.tables.keys() - self.own):
            where = f"kept in {self.retired.folder}, outside the tables"
            say(f"note: not in {self.sweep.path}: {number(apart, 'stored cell')} of {self.sweep.name}; {where}")
