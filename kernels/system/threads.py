"""How many threads torch, and our kernels in its pool, compute on: fewer than it says where OpenMP is held to fewer."""

from __future__ import annotations

import functools
import os

LIMIT = "OMP_THREAD_LIMIT"


@functools.cache  # OpenMP, too, reads it once
def limit() -> int | None:
    """The most threads that OpenMP starts in this process, or None where nothing limits them."""
    try:
        found = int(os.environ.get(LIMIT, ""))
    except ValueError:
        return None
    return found if found > 0 else None


def in_force() -> int:
    """Threads that an operator of torch can have now."""
    import torch

    asked: int = torch.get_num_threads()
    return min(asked, limit() or asked)
