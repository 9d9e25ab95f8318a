"""A kind of cell that the suite does not know: its class, its work and its columns, and nothing else."""

from __future__ import annotations

import time
from multiprocessing import parent_process
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from bench.cells import KINDS, Cell
from bench.engines.local import Tell
from bench.schema import Column


class NapCell(Cell):
    """A nap of so many milliseconds."""

    kind: ClassVar[str] = "nap"
    work: ClassVar[str] = "throwaway:nap"
    figures: ClassVar[str] = "{slept_ms} ms asleep"

    milliseconds: int = Field(1, ge=1, le=100, description="time asleep, ms")


def nap(cell: NapCell, tell: Tell) -> list[dict[str, Any]]:
    tell({"milliseconds": cell.milliseconds})
    begin = time.perf_counter()
    time.sleep(cell.milliseconds / 1e3)
    return [{"status": "ok", "slept_ms": 1e3 * (time.perf_counter() - begin)}]


COLUMNS = (Column("slept_ms", pa.float64(), "measured", "ms", "time asleep"),)

if parent_process() is not None:  # in a worker, where no fixture reaches
    KINDS["nap"] = NapCell
