"""The NVIDIA driver's library, and why there is no GPU: none here, or one that does not answer today."""

from __future__ import annotations

import ctypes
import functools
import sys

from kernels.system.resources import ResourceError, is_lack

# Answers of cuInit that hold for good: it works (and torch is for another driver), no device, a stub for compiling, a
# GPU that a newer CUDA does not know. All others come of a GPU that is taken, lost, or whose driver was changed.
STUB, NO_DEVICE = 34, 100
FOR_GOOD = (0, STUB, NO_DEVICE, 804)


@functools.cache
def driver() -> ctypes.CDLL:
    """The driver's library; OSError where there is no driver."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        if is_lack(error):
            raise ResourceError(f"the NVIDIA driver cannot be loaded today: {error}") from error
        raise


def error_name(status: int) -> str:
    """What the driver calls a status."""
    name = ctypes.c_char_p()
    driver().cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {status}"


def missing_gpu() -> str | None:
    """'no CUDA device' where torch finds none, or None. ResourceError where a driver does not answer today."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is not None:
        try:
            status = driver().cuInit(0)
        except OSError:
            return "no CUDA device"
        if status not in FOR_GOOD:
            raise ResourceError(f"the GPU does not answer today: cuInit says {error_name(status)}")
    return "no CUDA device"


def has_no_gpu() -> bool:
    """Whether there is no NVIDIA GPU here, for good, as its driver says; torch is not asked, nor imported."""
    try:
        return driver().cuInit(0) in (STUB, NO_DEVICE)
    except (OSError, ResourceError):
        return True
