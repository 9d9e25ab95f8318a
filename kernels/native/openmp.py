"""Torch's own OpenMP pool, lent to our kernels.

A second OpenMP runtime in the process would spin against torch's and halve the speed of both, so our libraries link none:
they are handed the entry points of the one that torch has already loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch

RUNTIMES = ("libgomp", "libiomp5", "libomp")


class Pool(NamedTuple):
    """Addresses of `GOMP_parallel(function, data, num_threads, flags)` and `omp_get_thread_num()`, and who has them."""

    parallel: int
    thread_number: int
    name: str


def _loaded_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes of this process, torch's own first."""
    try:
        maps = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
    except OSError:
        folder = Path(torch.__file__).parent / "lib"
        return [str(path) for runtime in RUNTIMES for path in sorted(folder.glob(f"{runtime}*"))]
    paths = {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}
    found = [path for path in paths if Path(path).name.startswith(RUNTIMES)]
    return sorted(found, key=lambda path: (not path.startswith(str(Path(torch.__file__).parent)), path))


@functools.cache
def torch_pool() -> Pool | None:
    """The pool torch computes on, or None where it has no GNU entry points (then kernels run on one thread)."""
    for path in _loaded_runtimes():
        try:
            library = ctypes.CDLL(path)
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except (OSError, AttributeError):
            continue
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in (parallel, number)]
        if addresses[0] and addresses[1]:
            return Pool(addresses[0], addresses[1], Path(path).name.split(".")[0])
    return None
