"""A second place for the cells of a sweep: a shared disk or object storage, by any URL that fsspec knows.

    URL/<sweep>/cells/<cell_id>-<sha256>.parquet   as in the folder of results, each whole or not there

Results are stored here first. What could not be sent is tried again; a later run sends all that is not there.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.cells import number
from bench.storing.parquet import publish
from kernels.system.resources import ResourceError, in_words
from kernels.system.temporary import temporary_folder

IN_PLACE = ("file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs")  # a file grows there as it is written
AGAIN_SECONDS = 30.0  # after which what could not be sent is sent again
FINISH_SECONDS = 300.0


class Mirror:
    """The cells of one sweep at a URL, sent by a thread of its own: a storage that hangs holds nothing up."""

    def __init__(self, url: str, sweep: str, say: Callable[[str], None]) -> None:
        self.files, self.root = _file_system(url)
        self.folder, self.url, self.say = f"{self.root}/{sweep}/cells", url, say
        self.waiting: dict[str, Path] = {}
        self.there: set[str] | None = None  # names, once they were listed
        self.work, self.ended = threading.Event(), False
        self.is_told, self.why = False, ""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def send(self, *paths: Path) -> None:
        """Send shards, those that are there already excepted, and remove older ones of their cells."""
        self.waiting |= {path.name: path for path in paths}
        self.work.set()

    def _run(self) -> None:
        while not self.ended or self.work.is_set():
            self.work.wait(AGAIN_SECONDS)
            self.work.clear()
            try:
                self._send_all()
            except Exception as error:  # of anybody's kinds: each storage has its own
                self.why = in_words(error)[:300]
                if not self.is_told:
                    self.say(f"warning: {self.url} takes nothing now, tried again later: {self.why}")
                self.is_told = True

    def _send_all(self) -> None:
        if self.waiting and self.there is None:
            self.files.makedirs(self.folder, exist_ok=True)
            self.there = set(self._names())
        for name, path in list(self.waiting.items()):
            assert self.there is not None
            if name not in self.there and path.is_file():  # else replaced since
                self._put(name, path.read_bytes())
                for other in [each for each in self.there if each.startswith(name.partition("-")[0])]:
                    self.files.rm_file(f"{self.folder}/{other}")
                    self.there.discard(other)
                self.there.add(name)
            del self.waiting[name]
        self.is_told = False

    def finish(self) -> str:
        """Wait until all is sent; one line where it is not after FINISH_SECONDS, but stored here."""
        self.ended = True
        self.work.set()
        self.thread.join(FINISH_SECONDS)
        return f"{number(len(self.waiting))} not at {self.url}, but stored here: {self.why}" if self.waiting else ""

    def _put(self, name: str, data: bytes) -> None:
        target = f"{self.folder}/{name}"
        protocol = self.files.protocol if isinstance(self.files.protocol, str) else self.files.protocol[0]
        if protocol not in IN_PLACE:  # an object appears when it is whole
            self.files.pipe_file(target, data)
            return
        half = f"{self.folder}/.bench-{secrets.token_hex(4)}.tmp"
        self.files.pipe_file(half, data)
        self.files.mv(half, target)

    def _names(self) -> list[str]:
        self.files.invalidate_cache()
        names = [str(each).rpartition("/")[2] for each in self.files.ls(self.folder, detail=False)]
        return [name for name in names if name.endswith(".parquet") and not name.startswith(".")]


def is_url(source: str) -> bool:
    return "://" in source


@contextmanager
def fetched(url: str, sweep: str) -> Iterator[Path]:
    """A temporary folder with the cells that a sweep has at `url`. ResourceError where they cannot be had."""
    files, root = _file_system(url)
    with temporary_folder("bench-fetched-") as folder:
        (folder / sweep / "cells").mkdir(parents=True)
        try:
            for path in files.ls(f"{root}/{sweep}/cells", detail=False):
                name = str(path).rpartition("/")[2]
                if name.endswith(".parquet") and not name.startswith("."):
                    publish(folder / sweep / "cells" / name, files.cat_file(path))
        except Exception as error:
            raise ResourceError(f"{url}: nothing of {sweep} can be read there: {in_words(error)[:300]}") from None
        yield folder


def _file_system(url: str) -> tuple[Any, str]:
    """ResourceError, one line, where fsspec knows no such URL, or lacks the package for it."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except Exception as error:
        raise ResourceError(f"{url}: {in_words(error)[:300]}") from None
    return files, str(root).rstrip("/")
