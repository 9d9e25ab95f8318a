"""Where and with what a row was made: the provenance columns. No host names, no user names, no paths.

What a GPU says of itself while it is being measured, clocks, temperature and power, stands here too; nothing is ever
set. torch is imported inside the functions: a run that has nothing to do should end at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from kernels.registry import plugins
from kernels.system.programs import run

ROOT = Path(__file__).resolve().parents[2]
COMPUTES = (  # what a cell's rows depend on: not the commands, nor where cells run and rows are kept
    "kernels", "bench/cells.py", "bench/storage.py", "bench/timing.py", "bench/train.py", "bench/data",
    "bench/measuring", "bench/models", "bench/pruning", "bench/training",
)  # fmt: skip
SOURCES = (".py", ".c", ".cpp", ".h", ".hpp", ".cu", ".cuh")
TUNED = "tuned.json"  # by which our CUDA kernels choose their tiles, so it is a source of what they take
COMMIT_VARIABLE = "BENCH_COMMIT"


@cache
def facts(device: str) -> dict[str, Any]:
    """The columns that are the same for every cell of a run on `device` ('cpu' or 'cuda')."""
    import torch

    on_gpu = device == "cuda" and torch.cuda.is_available()
    commit, dirty = revision()
    return {
        "commit": commit,
        "dirty": dirty,
        "source_hash": source_hash(),
        "device_name": torch.cuda.get_device_name() if on_gpu else processor(),
        "cores": os.cpu_count(),
        "machine": machine(device),
        "os": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "driver": gpu_driver() if on_gpu else "",
        "gpu_libraries": gpu_libraries() if on_gpu else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blas": blas(torch.__config__.show()),
    }


@cache
def machine(device: str) -> str:
    """What times on `device` depend on, as 8 hex digits: two cells with equal ones were timed alike.

    The processor (its maker's name may stand for several), how many of them this process may use, GPUs and their
    driver, torch with what it brings.
    """
    parts = [*_processor_parts(), str(processors()), platform.machine(), version("torch")]
    if device == "cuda" and (gpus := _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")):
        parts.append(gpus)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _processor_parts() -> list[str]:
    """What Linux says of the first processor that is the same at every start; elsewhere its name."""
    named = (
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "flags",
        "CPU part",
        "Features",
        "cache size",
    )
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0]
    except OSError:
        return [processor()]
    return [line for line in first.splitlines() if line.split(":")[0].strip() in named] or [processor()]


def revision() -> tuple[str, bool | None]:
    """(commit, dirty) of the checkout the suite runs from; where there is none, what BENCH_COMMIT says of a copy."""
    top = (_git("rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
    if len(top) != 2 or Path(top[0]).resolve() != ROOT:
        said = os.environ.get(COMMIT_VARIABLE, "")
        return said if re.fullmatch("[0-9a-f]{40}", said) else "", None
    changes = _git("status", "--porcelain", "--untracked-files=normal")
    return top[1], None if changes is None else bool(changes)


@cache
def source_hash(*tops: str, without: str = "") -> str:
    """sha256 over the names and contents of sources, 16 hex digits.

    tops: files, and folders with all below them; by default what computes a cell, the plugins of this process among
    it. without: a folder among them that is left out.
    """
    digest = hashlib.sha256()
    for plugin in () if tops else plugins().values():
        digest.update(f"{plugin.name} {plugin.sha256}\n".encode())
    found: dict[Path, Path] = {}
    for top in tops or COMPUTES:
        above = _above(top)
        paths = [path for path in (above / top, *(above / top).rglob("*")) if _is_source(path)]
        found |= {path.relative_to(above): path for path in paths if not without or above / without not in path.parents}
    for relative, path in sorted(found.items()):
        name = os.fsencode(relative.as_posix())
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError:  # it is there, but not for this user
            digest.update(name + b"\0unreadable\0")
            continue
        digest.update(b"%s\0%d\0%s" % (name, len(content), content))
    return digest.hexdigest()[:16]


def _above(top: str) -> Path:
    """The folder that `top` is in: on the nodes of a cluster each package may be in one of its own."""
    if (ROOT / top).exists():
        return ROOT
    spec = find_spec(top.partition("/")[0])
    found = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(found[0]).resolve().parent if found else ROOT


def _is_source(path: Path) -> bool:
    """Whether a path is a source: no folder, no link to nothing, and not hidden, as the lock files of editors are."""
    try:
        return (path.suffix in SOURCES or path.name == TUNED) and not path.name.startswith(".") and path.is_file()
    except OSError:
        return False


def processor() -> str:
    """The processor's model, as its maker calls it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def physical_cores() -> int:
    """Physical cores that this process may use, at least 1."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, processors()))


def processors() -> int:
    """Logical processors that this process may use, at least 1.

    The fewest of its affinity, the quota of its container and, in a job of SLURM, those given to its task: not every
    SLURM binds a task to them.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    told = [int(count) for count in given if re.fullmatch(r"[0-9]{1,9}", count)]
    of_job = told[:1] if "SLURM_JOB_ID" in os.environ else []
    return max(1, min([here, *of_job, *_quota()]))


@cache
def _quota(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The processors' worth of time that a container may have, rounded up, as `docker run --cpus`; none without one.

    folder: of the control groups, version 2 or 1, as a container sees its own.
    """
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # "max", or a file that is not there
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
            if quota > 0 and period > 0:
                return [-(-quota // period)]
    return []


def blas(build: str) -> str:
    """The BLAS named in torch's description of its build, e.g. 'mkl 2024.2'."""
    name = re.search(r"BLAS_INFO=(\w+)", build)
    version = re.search(r"Math Kernel Library Version ([\d.]+)", build)
    if name is None:
        return "unknown"
    return f"{name[1]} {version[1]}" if version and name[1] == "mkl" else name[1]


def gpu_driver() -> str:
    """The GPU driver's version, or nothing where nvidia-smi is not there to ask."""
    answer = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
    return (answer.splitlines() or [""])[0]


def gpu_libraries() -> str:
    """'CUDA 13.0, cuBLAS 13.1.0.3, cuDNN 91300, NVRTC 13.0': of torch's build and of our compiler, as far as known."""
    import torch

    from kernels.cuda.compile import nvrtc

    found: dict[str, Callable[[], object]] = {
        "CUDA": lambda: torch.version.cuda,
        "cuBLAS": lambda: next(_versions("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")),
        "cuDNN": torch.backends.cudnn.version,
        "NVRTC": lambda: nvrtc().version,
    }
    said = []
    for name, ask in found.items():
        with suppress(Exception):  # no package of that name, no library, none that can be loaded
            said.append(f"{name} {ask()}")
    return ", ".join(said)


def _versions(*packages: str) -> Iterator[str]:
    for package in packages:
        with suppress(PackageNotFoundError):
            yield version(package)


def _git(*arguments: str) -> str | None:
    """What git says of the checkout at ROOT, whatever repository the environment names and whoever owns the folder."""
    settings = ("-c", f"safe.directory={ROOT}", "-c", "core.fsmonitor=false")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name == "GIT_EXEC_PATH"
    }
    return _output("git", "--no-optional-locks", *settings, "-C", str(ROOT), *arguments, environment=environment)


def _output(*command: str, environment: dict[str, str] | None = None) -> str | None:
    """What a command prints, or None where it cannot be run or fails."""
    try:
        done = run(command, 10.0, environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


QUERIES = ("sm_clock_mhz", "memory_clock_mhz", "temperature_celsius", "power_watts", "clock_limits")
NVML_CLOCK_MEM = 2
CLOCK_LIMITS = {  # bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h)
    0x1: "idle", 0x2: "clocks as set", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "thermal, software", 0x40: "thermal, hardware", 0x80: "power brake", 0x100: "display",
}  # fmt: skip

State = dict[str, float | str | None]


def gpu_state(device: str) -> State:
    """The columns of QUERIES, at this moment, of torch's current GPU; null where it does not say, and on a CPU."""
    state: State = dict.fromkeys(QUERIES)
    if device != "cuda":
        return state
    from torch import cuda

    queries: tuple[Callable[[], float | str], ...] = (
        lambda: float(cuda.clock_rate()),
        lambda: float(import_module("pynvml").nvmlDeviceGetClockInfo(cuda._get_pynvml_handler(), NVML_CLOCK_MEM)),
        lambda: float(cuda.temperature()),
        lambda: cuda.power_draw() / 1e3,
        lambda: _limits(import_module("pynvml").nvmlDeviceGetCurrentClocksEventReasons(cuda._get_pynvml_handler())),
    )
    for name, query in zip(QUERIES, queries, strict=True):
        with suppress(Exception):  # no nvidia-ml-py, no driver, or none that answers: each in a class of its own
            state[name] = query()
    return state


def _limits(reasons: int) -> str:
    return ", ".join(words for bit, words in CLOCK_LIMITS.items() if reasons & bit)
