"""What works on this machine, and why the rest does not."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterator
from typing import Any

from bench.measuring.machine import blas, physical_cores, processor, revision, source_hash
from kernels.system.resources import ResourceError, UnsupportedError, in_words
from kernels.system.threads import in_force

PACKAGES = (
    "numpy",
    "scipy",
    "pyarrow",
    "pydantic",
    "pebble",
    "cupy",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "ziglang",
)
TCGEN05 = (100, 103, 110)  # compute capabilities of data-centre Blackwell
WITHOUT_TCGEN05 = "; this GPU's own tensor instructions, tcgen05, are not used: expect far less than cuBLAS"
COMPILERS = ("c++", "g++", "clang++", "cl")

Finding = tuple[str, str]


def findings() -> Iterator[Finding]:
    """(what, how it is) line by line; nothing is downloaded."""
    import torch

    commit, dirty = revision()
    yield "suite", f"commit {commit[:12] or 'unknown'}{' with changes' if dirty else ''}, sources {source_hash()}"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "processor", f"{processor()}, {physical_cores()} physical cores to use"
    yield "torch", f"{torch.__version__}, {in_force()} threads, BLAS {blas(torch.__config__.show())}"
    yield "cuda", _cuda()
    yield "cuda kernels", _cuda_kernels()
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "compiler", _compiler()
    yield from _backends()
    yield "sparse path", _sparse_path()
    yield from _breakevens()
    yield from _datasets()


def as_json() -> str:
    """The same for programs: a list of what and how."""
    return json.dumps([{"what": what, "how": how} for what, how in findings()], indent=1)


def _sparse_path() -> str:
    """What computes the sparse path of the CPU, else why there is none."""
    from bench.training.paths import kernel, missing_kernel

    try:
        return missing_kernel() or kernel()
    except ResourceError as error:
        return f"not today: {error}"


def _cuda() -> str:
    import torch

    if torch.version.hip is not None and torch.cuda.is_available():
        own = f"{torch.cuda.get_device_name()}, ROCm {torch.version.hip}"
        return f"{own}: AMD's, which torch calls cuda too; none of our kernels runs there, dense products are hipBLAS's"
    if torch.version.cuda is None:
        return "no: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"no: torch is built for CUDA {torch.version.cuda}, but finds no usable GPU or driver"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _cuda_kernels() -> str:
    """Whether our CUDA kernels run here, and which of them; else why not."""
    from kernels.cuda.choose import describe
    from kernels.cuda.device import capability

    try:
        return describe() + (WITHOUT_TCGEN05 if capability() in TCGEN05 else "")
    except UnsupportedError as reason:
        return f"no: {reason}"
    except ResourceError as error:
        return f"not today: {error}"


def _version(package: str) -> str:
    names = [f"{package}-cuda13x", f"{package}-cuda12x"] if package == "cupy" else [package]
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "missing"


def _compiler() -> str:
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    if found:
        return found
    return "zig c++ (the package ziglang)" if _version("ziglang") != "missing" else "none: install the package ziglang"


def _backends() -> Iterator[Finding]:
    from kernels.problem import GemmProblem, LstmProblem
    from kernels.registry import BACKENDS

    problems = [
        problem
        for device in ("cpu", "cuda")
        for problem in (
            GemmProblem(64, 64, 8, 16, 0.5, device=device),
            LstmProblem(64, 64, 2, 3, 16, 0.5, device=device),
        )
    ]
    for name in BACKENDS:
        reasons = [_reason(name, problem) for problem in problems]
        told = "; ".join(dict.fromkeys(filter(None, reasons))).replace("; unsupported: ", "; ")
        yield f"backend {name}", "works" if None in reasons else told


def _reason(name: str, problem: Any) -> str | None:
    """Why a backend cannot solve a problem here, or not today, or None."""
    from kernels.registry import BACKENDS

    try:
        reason = BACKENDS[name].unsupported(problem)
    except ResourceError as error:
        return f"not today: {error}"
    except Exception as error:  # a broken backend is what a doctor is asked about
        return f"broken: {type(error).__name__}: {error}"
    return None if reason is None else f"unsupported: {reason}"


def _breakevens() -> Iterator[Finding]:
    """Where path = "auto" leaves the dense path, as far as it was measured here."""
    from bench.training.paths import NEVER, known

    try:
        measured = list(known())
    except (OSError, ResourceError) as error:
        yield "break-even", f"not today: {in_words(error)}"
        return
    if not measured:
        yield "break-even", "none measured yet: a cell with path = auto measures its own"
    for shape, sparsity in measured:
        yield "break-even", f"{shape}: " + ("never" if sparsity == NEVER else f"sparsity {sparsity:.2f}")


def _datasets() -> Iterator[Finding]:
    from bench.data.corpus import DATA_DIR_VARIABLE, DataError, data_dir
    from bench.data.datasets import DATASETS, missing_files

    try:
        folder = data_dir()
    except DataError as error:
        yield "data folder", f"none: {error}"
        return
    yield "data folder", f"{folder} (set {DATA_DIR_VARIABLE} to change it)"
    for name in DATASETS:
        absent = missing_files(name, folder)
        yield f"dataset {name}", f"not here: {absent}" if absent else "found"
