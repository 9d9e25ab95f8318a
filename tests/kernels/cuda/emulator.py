"""CUDA kernels run on the CPU: a .cu file compiled against emulated.h, its threads as fibres, faults found on the way.

What is found in shared memory, in every order of the threads: races between any two of ordinary loads and stores,
copies, boxes by TMA, warp-wide pieces and wgmma (copies read before a copy_wait and a barrier or an mbarrier, or
written over too early, by the own CTA or another one of its cluster); a missing proxy_fence; a CTA that exits before
others of its cluster are done with its memory; loads of what nobody wrote; places out of range or misaligned. Besides:
warp-wide pieces that some lanes miss, sums touched before wgmma_wait, deadlocks, memory that is not mapped.

Between CTAs, what store_relaxed brings is seen word by word by whoever runs in between.

What is not: of several threads that load 2 bytes two are remembered, single bytes are not, and shared memory that
atomics change is not checked; global memory is checked by nobody, neither for races nor outside a tensor, but for what
a test lays around it; registers read before wgmma_wait show as NaN only; sums are float in another order than the
hardware's; nothing is learned about speed. Without g++ or clang++ ordinary accesses are not seen: see watches().
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from kernels.system import compiler

HERE = Path(__file__).parent
CUDA = Path(compiler.__file__).parents[1] / "cuda" / "src"
ORDERS = ("forward", "reverse", "random")  # as enum Order
COPIES = ("early", "late", "random")  # as enum Copies
# The compiler calls emulated_watch.h before each load and store; the runtime that it means is not linked.
WATCHED = ("-fsanitize=thread", "-nostdlib", "-Wl,--no-as-needed", "-lm", "-lc", "-lgcc")

_one_at_a_time = threading.Lock()


class EmulationError(Exception):
    """A fault of the kernel, told by the emulator."""


def unsupported() -> str | None:
    """Why kernels cannot be emulated here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        return (
            f"the emulator switches stacks on Linux on x86_64 and aarch64 only, "
            f"not {sys.platform} on {platform.machine()}"
        )
    if any("-fsanitize" in flag for flag in compiler.added_flags()):
        return "sanitizers do not know the emulator's stacks"
    if not compiler.candidates():
        return f"no C++ compiler found; {compiler.HOW_TO_GET_ONE}"
    return None


def watches() -> bool:
    """Whether ordinary loads and stores of shared memory are seen: with g++ and clang++, not with ziglang."""
    return "ziglang" not in compiler.candidates()[0]


class Variant(Protocol):
    """The parts of cuda_kernel.Variant that matter here; a source that is not ours may lie beside this file."""

    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def defines(self) -> tuple[tuple[str, str | int], ...]: ...
    @property
    def threads(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...


class _Options(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("cooperative", ctypes.c_uint),
        ("order", ctypes.c_uint),
        ("copies", ctypes.c_uint),
        ("seed", ctypes.c_ulonglong),
    )


@dataclass(frozen=True)
class Kernel:
    """A compiled variant and how its threads take turns."""

    variant: Variant
    handle: ctypes.CDLL
    order: int
    copies: int
    seed: int
    resident: int = 32  # as many as a GPU ever holds

    def encode_tiled(self, *given: object) -> int:
        """In the place of cuTensorMapEncodeTiled: the same arguments, a map of our own."""
        status: int = self.handle.emulated_encode_tiled(*given)
        return status

    def __call__(self, grid: tuple[int, int, int], arguments: ctypes.Structure, cooperative: bool = False) -> None:
        """Run every CTA of `grid`; all together where `cooperative`. EmulationError, one line, for a fault."""
        variant = self.variant
        options = _Options(
            (ctypes.c_uint * 3)(*grid),
            variant.threads,
            variant.shared_bytes,
            cooperative,
            self.order,
            self.copies,
            self.seed,
        )
        function = getattr(self.handle, f"emulated_{variant.name}")
        function.restype = ctypes.c_char_p
        size = ctypes.c_ulonglong(ctypes.sizeof(arguments))
        with _one_at_a_time:
            message: bytes | None = function(ctypes.byref(arguments), size, ctypes.byref(options))
        if message is not None:
            raise EmulationError(f"{variant.name}: {message.decode()}")


def load(
    variant: Variant,
    order: Literal["forward", "reverse", "random"] = "forward",
    seed: int = 0,
    copies: Literal["early", "late", "random"] = "late",
) -> Kernel:
    """`variant` compiled for this CPU; CompileError where it cannot be.

    order: which warp and which lane run first. copies: asynchronous ones are done at once, only when they are waited
    for, or either, by chance. seed: of what is random.
    """
    handle = _compiled(variant.source, variant.defines)
    return Kernel(variant, handle, ORDERS.index(order), COPIES.index(copies), seed)


@functools.cache
def _compiled(name: str, defines: tuple[tuple[str, str | int], ...]) -> ctypes.CDLL:
    source = next((folder / name for folder in (CUDA, HERE) if (folder / name).exists()), Path(name))
    macros = ("EMULATED=1", *(f"{key}={value}" for key, value in defines))
    options = ("-O0", "-fno-threadsafe-statics", "-fno-exceptions", f"-I{CUDA}", f"-I{HERE}")
    if watches():
        macros, options = (*macros, "WATCHED=1"), (*options, *WATCHED)
    return compiler.compile_library(source, macros, (*options, "-x", "c++")).handle
