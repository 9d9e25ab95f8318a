"""Tests that compile CUDA kernels: `needs_nvrtc` skips them, with the reason, where no CUDA compiler is found."""

from __future__ import annotations

import pytest

from kernels.cuda.compile import nvrtc
from kernels.system.compiler import CompileError


def missing_compiler() -> str | None:
    """Why there is none, or None."""
    try:
        nvrtc()
    except CompileError as error:
        return str(error)
    return None


MISSING = missing_compiler()
needs_nvrtc = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
