"""What goes along to a machine with a GPU and without a network: wheels, compiled kernels, and what to run there.

<out>/wheels/    pure packages that its Python may lack, of the versions of requirements.lock
<out>/cache/     our CUDA kernels compiled for ARCH, as the user's cache folder has them; where NVRTC is here
<out>/setup.sh   what each command begins with: installs the wheels, puts the cache in place, says the commit

The folder travels inside the checkout, at most MOST_BYTES. Each command writes at most MOST_FILES files into $OUT.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.cells import Cell, TuneCell
from bench.commands.campaign import tune_cells
from bench.measuring.machine import ROOT, revision
from bench.measuring.tuning import LEFT_OUT
from bench.sweep import Sweep
from kernels.system.programs import run

MOST_BYTES = 40 * 2**20
MOST_FILES = 8
MARK = ".bundle"  # lies in a folder of ours
CAPABILITY, MULTIPROCESSORS, SHARED_BYTES = 90, 132, 227 * 1024  # of an H100 or H200
ARCH = "sm_90a"
PACKAGES = (
    "pebble", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "filelock",
)  # fmt: skip
WHEEL_SECONDS = 300.0
TUNED = 10  # shapes of which every kernel is compiled beforehand: about as many as the time for tuning allows
MINUTES = 30.0
FIRST_SECONDS, START_SECONDS = 360.0, 90.0  # of the first command, and of machines that start and end
LEAST_SECONDS, MOST_SECONDS = 120.0, 540.0  # of a campaign: less is not worth a command, more is not allowed it
AMPLE_MINUTES = 25.0  # from which on each kernel is timed in the first command, too
SETUP = """# Sourced by each command, in the root of the checkout: the machine may be a fresh one every time.
bundle={folder}
python3 -m pip install -q --no-index --no-deps --find-links "$bundle/wheels" {packages} || true
export BENCH_COMMIT={commit}
export XDG_CACHE_HOME="${{TMPDIR:-/tmp}}/bundle-cache-$(id -u)"
mkdir -p "$XDG_CACHE_HOME" && cp -r "$bundle/cache/." "$XDG_CACHE_HOME" && chmod -R go-rwx "$XDG_CACHE_HOME"
"""
Say = Callable[[str], None]


def commands(folder: str, sweeps: Sequence[str], device: str = "cuda", minutes: float = MINUTES) -> list[str]:
    """The plan for that many minutes: is it right and what are the best tiles; the numbers that matter; the others.

    Between the first two tuned.json is put beside kernels/cuda/choose.py; what the second brought back goes to
    <folder>/earlier before the third. Of the first nothing that hangs takes the time of the rest: the tests have a
    limit from outside, and tuning leaves out kernels by TMA that a look of their own found wrong or hanging.
    """
    names, setup = " ".join(sweeps), f". {folder}/setup.sh"
    campaign = f"{setup}; python3 -m bench campaign {names} --device {device} --out $OUT --timeout 40 --renew"
    tests = "tests/kernels/cuda/test_kernel.py tests/kernels/cuda/test_on_gpu.py -k 'loaded or on_gpu'"
    right = f"timeout -k 5 150 python3 -m pytest -q -n 8 --timeout 60 --timeout-method thread {tests}"
    look = f"python3 -m bench.measuring.smoke --device {device}"
    looks = f"{look} --quick; {right}" + (f"; {look}" if minutes >= AMPLE_MINUTES else "")
    safe = f"for c in 1 2; do {look} --cluster $c >> $OUT/smoke.txt || without=$without,cluster=$c; done"
    tune = f"python3 -m bench tune {sweeps[0]} --device {device} --out $OUT/tuned.json --budget 110"
    found = [
        f"{setup}; python3 -m bench doctor > $OUT/doctor.txt; ({looks}) | tee $OUT/smoke.txt; without=; {safe}; "
        f"tail -n 8 $OUT/smoke.txt; {LEFT_OUT}=$without {tune}"
    ]
    left, more = 60 * minutes - FIRST_SECONDS - START_SECONDS, ""
    while left >= LEAST_SECONDS:
        budget = min(left, MOST_SECONDS)
        found.append(f"{campaign} --budget {budget:.0f}{more}")
        left, more = left - budget - START_SECONDS, f" --resume-from {folder}/earlier"
    return found


def make(sweeps: Sequence[Sweep], out: Path, say: Say = print, minutes: float = MINUTES) -> list[str]:
    """Make the folder and answer the commands; kernels that it has from an earlier time are not compiled again.

    minutes: for which the machine is lent, all commands together.

    ValueError where it would be larger than MOST_BYTES, and where what lies there is no such folder.
    """
    if out.exists() and not (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir()))):
        raise ValueError(
            f"{out} is there and was not made by this command; accepted: another --out, or an empty folder"
        )
    shutil.rmtree(out / "wheels", ignore_errors=True)
    for name in ("wheels", "cache"):
        (out / name).mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    (out / "cache").chmod(stat.S_IRWXU)
    say(wheels(out / "wheels"))
    say("kernels: planned, then compiled where NVRTC is here; a few minutes, and the next time it goes on")
    cells, tuned = [cell for sweep in sweeps for cell in sweep.cells], tune_cells(sweeps[:1], "cuda")[:TUNED]
    say(cubins(cells, out / "cache", tuned))
    commit, dirty = revision()
    if dirty:
        say("note: the checkout has changes that BENCH_COMMIT does not tell of")
    is_inside = out.resolve().is_relative_to(ROOT)
    if not is_inside:
        say(f"note: {out} lies outside the checkout: copy it along, and name its place there in the commands")
    folder = os.path.relpath(out, ROOT) if is_inside else str(out)
    text = SETUP.format(folder=folder, packages=" ".join(PACKAGES), commit=commit or '""')
    (out / "setup.sh").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{out} has {size / 2**20:.0f} MiB; accepted: at most {MOST_BYTES / 2**20:.0f}")
    say(f"{out}: {size / 2**20:.1f} MiB")
    return commands(folder, [sweep.name for sweep in sweeps], minutes=minutes)


def locked_versions() -> Iterator[str]:
    """'pydantic==2.12.0' of PACKAGES, as requirements.lock has them."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name in PACKAGES:
        if found := re.search(rf"^{re.escape(name)}==[^ ;\\]+", text, re.MULTILINE):
            yield found[0]


def wheels(folder: Path) -> str:
    """Fetch them for Linux and this version of Python; a line that says how many, or why there are none."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    where = ("--platform", "manylinux2014_x86_64", "--python-version", python, "--only-binary", ":all:")
    command = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *where)
    try:
        done = run((*command, *locked_versions()), WHEEL_SECONDS)
        failed = done.returncode and (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    except (OSError, subprocess.SubprocessError) as error:
        failed = str(error)
    found = len(list(folder.glob("*.whl")))
    return f"wheels: {found} of {len(PACKAGES)}" + (f", since {failed}" if failed else "")


def variants(cells: Iterable[Cell], tuned: Iterable[TuneCell] = ()) -> list[Any]:
    """Our kernels that these cells and their checks ask for on a GPU of CAPABILITY, by the rule of now, each once.

    tuned: of these, every kernel that there is, which are to be compared.
    """
    from bench.measuring.checks import COLUMNS_OF_X, product_problem
    from kernels.cuda.choose import Gpu
    from kernels.problem import OPS

    asked: dict[Any, None] = {}

    def load(variant: Any) -> Any:
        asked[variant] = None
        return lambda *_, **__: None

    gpu = Gpu(CAPABILITY, MULTIPROCESSORS, SHARED_BYTES, load)
    timed: list[Any] = [cell for cell in cells if cell.kind in ("gemm", "lstm")]
    ours = [cell for cell in timed if cell.backend in ("cuda", "cuda_mma")]
    alike = {cell.model_copy(update=dict.fromkeys(("baseline", "cache"))).model_dump_json(): cell for cell in ours}
    for cell in alike.values():
        problem: Any = cell.model_copy(update={"device": "cpu"}).problem()
        if cell.kind == "lstm":
            _layer(cell, problem, gpu)
        else:
            _products([cell.op], problem.mask, problem, cell.n, cell.backend, gpu)
    checks = {check.cell_id: check for cell in ours for check in cell.kernel_checks()}
    for check in checks.values():
        for n in COLUMNS_OF_X if check.op in OPS else ():
            problem = product_problem(check.model_copy(update={"device": "cpu"}), "random", n)
            _products([check.op], problem.mask, problem, n, check.backend, gpu)
    for cell in tuned:
        _all_kernels(cell, gpu)
    return list(asked)


def _all_kernels(cell: TuneCell, gpu: Any) -> None:
    from kernels.cuda.choose import Task, element_of, offered, prepare_by

    problem: Any = cell.model_copy(update={"device": "cpu"}).problem()
    task = Task(cell.op, element_of(problem.torch_dtype, problem.math == "tf32"), cell.block_size, cell.n)
    index = _index(problem.mask)
    for choice in offered(task, gpu).values():
        prepare_by(choice, task, index, problem.mask.shape, gpu)


def _products(ops: Sequence[str], mask: Any, problem: Any, n: int, backend: str, gpu: Any) -> None:
    from kernels.cuda.choose import Task, element_of, prepare, prepare_by_warps

    element, by = element_of(problem.torch_dtype, problem.math == "tf32"), prepare
    if backend == "cuda_mma":
        by = prepare_by_warps
    for op in ops:
        by(Task(op, element, mask.block_size, n), _index(mask), mask.shape, gpu)


def _index(mask: Any) -> Any:
    import torch

    from kernels.bsr import BSRMatrix

    return BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index


def _layer(cell: Any, problem: Any, gpu: Any) -> None:
    from kernels.cuda.choose import element_of
    from kernels.cuda.lstm import steps_for
    from kernels.cuda.recurrence import Recurrence, Sizes
    from kernels.problem import OPS
    from kernels.system.resources import UnsupportedError

    mask, dtype = problem.masks["weight_hh"], problem.torch_dtype
    element, index = element_of(dtype, cell.math == "tf32"), _index(mask)
    sizes = Sizes(cell.batch_size, mask.shape[1], cell.block_size)
    with suppress(UnsupportedError):
        Recurrence(sizes, element, *steps_for(index, sizes, dtype, element == "Float32", gpu), gpu.load)
    for name, each in problem.masks.items():
        _products(["sdd"] if name == "weight_hh" else OPS, each, problem, cell.batch_size * cell.bptt, "cuda", gpu)


def cubins(cells: Iterable[Cell], folder: Path, tuned: Iterable[TuneCell] = ()) -> str:
    """Compile them into `folder` as a user's cache; a line that says how many, or why there are none."""
    from kernels.cuda.compile import nvrtc
    from kernels.cuda.device import compile_cubin
    from kernels.system.compiler import CompileError

    try:
        version = nvrtc().version
    except CompileError as error:
        return f"kernels: none compiled: {error}"
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder.resolve())
    try:
        found = [compile_cubin(variant, ARCH) for variant in variants(cells, tuned)]
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
    return f"kernels: {len(found)} compiled for {ARCH} by NVRTC {version}"
