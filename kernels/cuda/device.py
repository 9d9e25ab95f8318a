"""CUDA kernels of ours: compiled for one set of tile parameters, kept, loaded by CuPy, launched on torch's stream.

Compiling needs NVRTC only, loading needs CuPy, a driver and a GPU. A cubin's name in the cache is the hash of its
source, headers, macros, architecture and NVRTC's version.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kernels.cuda.compile import nvrtc
from kernels.system.cache import DoubtError, cache_folder, found_or_made, publish, read, read_sealed, say, sealed
from kernels.system.compiler import COMPILE_SECONDS, CompileError
from kernels.system.driver import driver as _driver
from kernels.system.driver import error_name, missing_gpu
from kernels.system.resources import shown

FOLDER = Path(__file__).parent / "src"
FACTS = {"registers": int, "spill_bytes": int, "shared_bytes": int, "seconds": float, "log": str}  # of a `Cubin`, kept
INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
ONE_POINTER = ctypes.c_void_p * 1
NOTHING_MORE = (None,)  # `extra` of cuLaunchKernel
LEAST = 80  # compute capability 8.0, the first with cp.async and mma.sync of bfloat16 and tf32
HOPPER = 90


@dataclass(frozen=True)
class Variant:
    """A kernel of cuda/`source` with its tile parameters, ready to be compiled."""

    source: str  # 'products.cu'
    name: str  # 'dsd'
    defines: tuple[tuple[str, str | int], ...]
    threads: int  # of a CTA
    shared_bytes: int  # dynamic shared memory of a CTA
    needs: int = LEAST  # least compute capability; 90 means Hopper alone, for wgmma is in no other GPU

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of compute capability `capability` (86 for 8.6) can run it."""
        return capability == HOPPER if self.needs == HOPPER else capability >= self.needs

    def __str__(self) -> str:
        return f"{self.source}:{self.name} " + " ".join(f"{name}={value}" for name, value in self.defines)


class Kernel(Protocol):
    """A compiled variant. Calling it launches; the caller keeps the tensors behind `arguments` alive."""

    @property
    def resident(self) -> int:
        """CTAs of it that a multiprocessor holds at once."""

    def encode_tiled(self, *given: object) -> int:
        """cuTensorMapEncodeTiled of the driver that runs it: its status."""

    def __call__(self, grid: tuple[int, int, int], arguments: ctypes.Structure, cooperative: bool = False) -> None: ...


@dataclass(frozen=True)
class Cubin:
    """Machine code of one architecture, and what ptxas says that its kernel takes of a multiprocessor."""

    path: Path
    registers: int  # of a thread
    spill_bytes: int  # stored and loaded because registers did not suffice
    shared_bytes: int  # static shared memory of a CTA
    seconds: float  # that the compilation took
    log: str

    @property
    def bytes(self) -> bytes:
        return self.path.read_bytes()


def arch_of(capability: int) -> str:
    """'sm_86' for 86; 'sm_90a' for 90, where the instructions of one generation alone are wanted."""
    return f"sm_{capability}{'a' if capability >= HOPPER else ''}"


def resources(log: str, name: str) -> dict[str, int]:
    """registers, spill_bytes and shared_bytes of kernel `name` by ptxas -v; CompileError where it does not say."""
    parts = re.split(r"Compiling entry function '(\w+)'", log)
    text = dict(zip(parts[1::2], parts[2::2], strict=True)).get(name)
    if text is None:
        raise CompileError(f"the compiled source has no kernel {name!r}")

    def found(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, text)]

    return {
        "registers": max(found(r"Used (\d+) registers")),
        "spill_bytes": sum(found(r"(\d+) bytes spill")),
        "shared_bytes": sum(found(r"(\d+) bytes smem")),
    }


def options(variant: Variant, arch: str) -> list[str]:
    """What NVRTC is called with."""
    defines = [f"-D{name}={value}" for name, value in variant.defines]
    return [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", f"-I{FOLDER}", *defines]


def compile_cubin(variant: Variant, arch: str) -> Cubin:
    """`variant` compiled for `arch` ('sm_90a'), or found in the cache; CompileError, one line, where that fails."""
    compiler = nvrtc()
    sources = [FOLDER / variant.source, *sorted(FOLDER.glob("[!.]*.h"))]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    parts = [*texts, variant.name, *(each for each in options(variant, arch) if not each.startswith("-I"))]
    digest = hashlib.sha256("\0".join([*parts, compiler.version]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{Path(variant.source).stem}-{variant.name}-{arch}-{digest}.cubin"

    def compiled() -> Cubin:
        begin = time.perf_counter()
        try:
            code, log = compiler.compile(texts[0], variant.source, options(variant, arch))
        except CompileError as error:
            raise CompileError(f"{variant} for {arch}: {error}".replace(str(FOLDER), "cuda")) from error
        cubin = Cubin(path, **resources(log, variant.name), seconds=time.perf_counter() - begin, log=log)
        _keep(cubin, code)
        return cubin

    return found_or_made(path, COMPILE_SECONDS, lambda: _cached(path), compiled)


def _cached(path: Path) -> Cubin | None:
    """The cubin at `path` with its facts; None where there is none, or a doubtful one, and a line says why."""
    try:
        facts = read_sealed(path.with_suffix(".json"))
        if facts.pop("name", None) != path.name or facts.pop("code", None) != hashlib.sha256(read(path)).hexdigest():
            raise DoubtError(f"{shown(path)} is damaged: it is not the code that its facts are of")
        if {name: type(fact) for name, fact in facts.items()} != FACTS:
            raise DoubtError(f"{shown(path)} has other facts than a cubin has")
        return Cubin(path, **facts)
    except FileNotFoundError:
        return None
    except DoubtError as doubt:
        say(f"{doubt}; compiled anew")
        return None


def _keep(cubin: Cubin, code: bytes) -> None:
    """Publish code and facts; two processes may compile at once."""
    facts: dict[str, Any] = {"name": cubin.path.name, "code": hashlib.sha256(code).hexdigest(), **asdict(cubin)}
    del facts["path"]
    publish(cubin.path, code)
    publish(cubin.path.with_suffix(".json"), json.dumps(sealed(facts)).encode())


def capability() -> int:
    """Compute capability of torch's current device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def unavailable() -> str | None:
    """Why our CUDA kernels cannot run here, in one line, or None. ResourceError where that is so today only."""
    try:
        _driver()
    except OSError:
        return "no NVIDIA driver"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if missing_gpu():
        return f"the NVIDIA driver finds no GPU that torch {torch.__version__} can use"
    if capability() < LEAST:
        return f"{torch.cuda.get_device_name()} has compute capability {capability() / 10}; our kernels need 8.0"
    return _missing_package()


@functools.cache
def _missing_package() -> str | None:
    try:
        import cupy
    except ImportError:
        return "no CuPy: pip install cupy-cuda13x"
    if not cupy.cuda.is_available():
        return "CuPy finds no GPU; its build must fit the CUDA version of the driver"
    try:
        nvrtc()
    except CompileError as error:
        return str(error)
    return None


class LoadedKernel:
    """A `Kernel` on one GPU. A launch takes microseconds of Python: one call of the driver's, nothing allocated."""

    def __init__(self, variant: Variant, device: int) -> None:
        import cupy

        self.cubin = compile_cubin(variant, arch_of(capability()))
        with cupy.cuda.Device(device):
            self.module = cupy.RawModule(path=str(self.cubin.path))
            function = self.module.get_function(variant.name)
            function.max_dynamic_shared_size_bytes = variant.shared_bytes
            # All of it, in percent: else the driver may leave room for one CTA of two.
            function.preferred_shared_memory_carveout = 100
            self.handle = ctypes.c_void_p(function.kernel.ptr)
            self.context = ctypes.c_void_p()
            _driver().cuCtxGetCurrent(ctypes.byref(self.context))
        self.variant, self.device = variant, device
        self.shape = (variant.threads, 1, 1, variant.shared_bytes)
        self.launch: Callable[..., int]
        self.launch_together: Callable[..., int]
        self.launch, self.launch_together = _driver().cuLaunchKernel, _driver().cuLaunchCooperativeKernel
        self.stream = torch._C._cuda_getCurrentRawStream  # a stream object costs microseconds
        self.current_device = torch._C._cuda_getDevice

    def __call__(self, grid: tuple[int, int, int], arguments: ctypes.Structure, cooperative: bool = False) -> None:
        if self.current_device() != self.device:  # whose default stream is called 0 too
            with torch.cuda.device(self.device):
                return self(grid, arguments, cooperative)
        # argtypes would take a microsecond, so every pointer comes as one
        call, rest = (self.launch_together, ()) if cooperative else (self.launch, NOTHING_MORE)
        given = ctypes.c_void_p(self.stream(self.device)), ONE_POINTER(ctypes.addressof(arguments)), *rest
        status = call(self.handle, *grid, *self.shape, *given)
        if status == INVALID_CONTEXT:  # autograd's threads begin without one (github.com/pytorch/pytorch/issues/124565)
            _driver().cuCtxSetCurrent(self.context)
            status = call(self.handle, *grid, *self.shape, *given)
        if status:
            raise RuntimeError(f"{self.variant} did not launch on grid {grid}: {error_name(status)}")
        return None

    @functools.cached_property
    def resident(self) -> int:
        """As `Kernel.resident`; asked for when it is wanted: a kernel that no launch holds together needs no answer."""
        import cupy

        with cupy.cuda.Device(self.device):
            return resident(self.handle, self.variant)

    def encode_tiled(self, *given: object) -> int:
        """A tensor map, made by the driver (CUDA 12.0 and newer); its status."""
        status: int = _driver().cuTensorMapEncodeTiled(*given)
        if status == INVALID_CONTEXT:  # as of a launch
            _driver().cuCtxSetCurrent(self.context)
            status = _driver().cuTensorMapEncodeTiled(*given)
        return status


def resident(handle: ctypes.c_void_p, variant: Variant) -> int:
    """CTAs of a loaded kernel that a multiprocessor holds at once; RuntimeError where the driver does not say."""
    count, shared = ctypes.c_int(), ctypes.c_size_t(variant.shared_bytes)
    ask = _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor
    if status := ask(ctypes.byref(count), handle, variant.threads, shared):
        raise RuntimeError(f"the driver does not say how many CTAs of {variant} fit: {error_name(status)}")
    return count.value


@functools.cache
def _loaded(variant: Variant, device: int) -> LoadedKernel:
    with torch.cuda.device(device):
        return LoadedKernel(variant, device)


def load(variant: Variant, device: int | None = None) -> Kernel:
    """`variant` on a GPU, by default torch's current one, compiled and loaded once; CompileError where it does not."""
    return _loaded(variant, torch.cuda.current_device() if device is None else device)
