"""Claims: runs that share a folder, on one machine or many, begin no cell that another is at.

    claims/<cell_id>    a line that says who is at a cell; its time is put right every BEAT_SECONDS while he is

A claim whose time was not put right for LOST_SECONDS is that of a process or a host that is gone, and is taken over.
Ages are told by the clock of the file system, not of hosts, whose clocks differ. A claim saves work: should two runs
get one all the same, the store keeps one result of the two.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "claims"
BEAT_SECONDS = 10.0
LOST_SECONDS = 60.0


class Claims:
    """Those of one run in the folder of a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.mine: set[Path] = set()
        self.name = secrets.token_hex(8)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, what this run claims is seen to be; at the end it is given back."""
        ended = threading.Event()
        beats = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beats.start()
        try:
            yield
        finally:
            ended.set()
            beats.join()
            for path in list(self.mine):
                self._give_back(path)

    def claim(self, cell_id: str) -> bool:
        """Claim a cell; whether that succeeded. OSError where it cannot be said, for want of room or of permission."""
        path = self.folder / cell_id
        for _ in range(2):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if not self._take_from_the_lost(path):
                    return False
                continue
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(f"{self.name}\n")
            except OSError:
                path.unlink(missing_ok=True)
                raise
            self.mine.add(path)
            return True
        return False

    def done(self, cell_id: str) -> None:
        """A cell is stored, or left: others may look for it."""
        self._give_back(self.folder / cell_id)

    def _give_back(self, path: Path) -> None:
        self.mine.discard(path)
        with suppress(OSError):
            if self._owner(path) == self.name:
                path.unlink()

    def _take_from_the_lost(self, path: Path) -> bool:
        """Remove a claim of one who is gone; of several that see that, one does it."""
        try:
            if self._now() - path.stat().st_mtime < LOST_SECONDS:
                return False
            lost = path.with_name(f".lost-{secrets.token_hex(8)}")
            path.rename(lost)
            if self._now() - lost.stat().st_mtime < LOST_SECONDS:  # another took it over just then
                with suppress(OSError):
                    os.link(lost, path)
            lost.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return True

    def _now(self) -> float:
        """The time by the file system's clock."""
        mark = self.folder / f".now-{self.name}"
        mark.touch()
        try:
            return mark.stat().st_mtime
        finally:
            mark.unlink(missing_ok=True)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            for path in list(self.mine):
                with suppress(OSError):
                    if self._owner(path) == self.name:
                        os.utime(path)

    @staticmethod
    def _owner(path: Path) -> str:
        return path.read_text(encoding="ascii", errors="replace").strip()
