"""Everything one can do here: `nox -l` lists it, `nox -s NAME` does it.

All sessions share one environment in .nox/env.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.sessions = ["lint", "types", "tests", "builds", "examples", "kills"]
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent
ENV = ROOT / ".nox" / "env"
PYTHON = str(ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

PYTEST = ("-m", "pytest")
SIDE_BY_SIDE = (*PYTEST, "-n", "logical", "--dist", "worksteal", "-m")  # and the marks


# torch comes with CUDA or without, by platform and index, and brings its CUDA along: no hash fits all.
NVIDIA = (
    "cublas", "cuda-cupti", "cuda-runtime", "cudnn-cu13", "cufft", "cufile", "curand", "cusolver", "cusparse",
    "cusparselt-cu13", "nccl-cu13", "nvjitlink", "nvshmem-cu13", "nvtx",
)  # fmt: skip
UNLOCKED = ("torch", "triton", "cuda-toolkit", *(f"nvidia-{name}" for name in NVIDIA))


def digest_of_installed(root: Path) -> str:
    """sha256 of what decides what is installed: the package, its dependencies, their versions, and this Python."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tables = project["build-system"], project["project"], project["tool"]["setuptools"]
    versions = [(root / name).read_text(encoding="utf-8") for name in ("constraints.txt", "requirements.lock")]
    return hashlib.sha256(json.dumps([*tables, *versions, sys.version], sort_keys=True).encode()).hexdigest()


def install(session: nox.Session) -> None:
    """Make the shared environment: what requirements.lock names, by hash; torch, by version; then this package.

    BENCH_TORCH_INDEX: the package index that torch comes from, and nothing else.
    """
    pip = (PYTHON, "-m", "pip", "install", "-q")
    index = os.environ.get("BENCH_TORCH_INDEX")
    session.run(sys.executable, "-m", "venv", str(ENV), external=True)
    session.run(*pip, "--require-hashes", "--no-deps", "-r", "requirements.lock", external=True)
    session.run(*pip, "-c", "constraints.txt", *(("--index-url", index) if index else ()), "torch", external=True)
    session.run(*pip, "--no-deps", "--no-build-isolation", "-e", ".", external=True)


def run(session: nox.Session, *args: str, to_end: float = 0.3) -> None:
    """Run `python ARGS` in the shared environment, made anew when what it installs has changed.

    to_end: seconds that it has to end after Ctrl-C; nox gives a third of one.
    """
    wanted = digest_of_installed(ROOT)
    stamp = ENV / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        session.log(f"setting up {ENV.relative_to(ROOT)}: a few minutes, once")
        shutil.rmtree(ENV, ignore_errors=True)
        install(session)
        stamp.write_text(wanted)
    # What a session starts over and over, tests above all, must not compile every module each time:
    compiled = {"PYTHONDONTWRITEBYTECODE": ""}
    session.run(PYTHON, *args, external=True, interrupt_timeout=to_end, env=compiled)


def run_all(session: nox.Session, *commands: tuple[str, ...]) -> None:
    """Run `python ARGS` for each of `commands`, and fail at the end where one failed.

    The others are run nevertheless.
    """
    failed = []
    for command in commands:
        try:
            run(session, *command)
        except CommandFailed as failure:
            failed.append(str(failure))
    if failed:
        session.error("; ".join(failed))


@nox.session
def sweep(session: nox.Session) -> None:
    """Run a sweep and report it: nox -s sweep [-- NAME_OR_FILE]; the default, smoke, takes about 5 minutes."""
    arguments = session.posargs or ["smoke"]
    try:
        run(session, "-m", "bench", "run", *arguments, to_end=90.0)  # what trains is put aside first
    except CommandFailed as failure:
        if str(failure) == "Returned code 1":  # some cells failed: the report says which, and why
            run(session, "-m", "analysis", "report", arguments[0])
        raise
    run(session, "-m", "analysis", "report", arguments[0])


@nox.session
def report(session: nox.Session) -> None:
    """Make the HTML report of a finished sweep again: nox -s report [-- NAME]."""
    run(session, "-m", "analysis", "report", *(session.posargs or ["smoke"]))


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute every notebook against results/reference and keep the executed copies in results/notebooks."""
    run(session, "-m", "analysis", "notebooks", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests but builds, examples and kills (4 to 8 minutes on 2 cores): nox -s tests [-- PYTEST ARGS].

    First side by side, then those that must be alone.
    """
    if session.posargs:
        run(session, *PYTEST, *session.posargs)
        return
    run_all(
        session, (*SIDE_BY_SIDE, "not alone and not builds and not examples and not kills"), (*PYTEST, "-m", "alone")
    )


@nox.session
def builds(session: nox.Session) -> None:
    """Test what compilers make of kernels and models (about 4 minutes): nox -s builds [-- PYTEST ARGS].

    Kernels with sanitizers, for narrower vectors, by other compilers; CUDA ones by NVRTC, and on the emulator a few
    cases of its grid; modules and models by torch.compile and torch.export.
    """
    run(session, *SIDE_BY_SIDE, "builds", "tests/kernels", "tests/bench", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run what README shows, in fresh clones, and draw all that is committed (about 7 minutes): nox -s examples."""
    where = ("tests/analysis", "tests/test_readme_blocks.py", "tests/test_wheel.py")
    run(session, *SIDE_BY_SIDE, "examples", *where, *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill runs, campaigns and nodes and go on with them (about 6 minutes): nox -s kills [-- PYTEST ARGS]."""
    cluster = "tests/bench/engines/test_cluster.py"  # whose nodes need the processors when they start
    run_all(
        session,
        (*SIDE_BY_SIDE, "kills", "tests/bench", "tests/chaos", "--ignore", cluster, *session.posargs),
        (*PYTEST, "-m", "kills", cluster, *session.posargs),
    )


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill, fill, flip and delay at hundreds of moments, and print what was lost (about three hours): nox -s chaos."""
    run(session, *PYTEST, "tests/chaos", "tests/bench/engines/test_cluster.py", "--full", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """Go on with the runs of many hours, giving way to all other work: nox -s campaign [-- OPTIONS]."""
    sweeps = ("wikitext2_words", "wikitext2_chars", "wikitext2_chars_methods")
    where = ("--device", "cpu", "--out", "results/campaign", "--resume-from", "results/reference")
    how = ("--budget", "10000", "--checkpoint-mib", "256", "--background")
    run(session, "-m", "bench", "campaign", *sweeps, *where, *how, *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Run the kernels' tests with AddressSanitizer and UBSan (about 5 minutes): nox -s sanitize [-- PYTEST ARGS]."""
    run(session, "tests/kernels/builds.py", "sanitized", "tests/kernels", "-m", "not slow", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Compile every CUDA kernel, no GPU needed (about an hour): nox -s cuda [-- PYTEST ARGS].

    For sm_80, 86, 89, 90a, 100a and 120a.
    """
    files = [f"tests/kernels/cuda/{name}.py" for name in ("test_compile", "test_compile_wgmma")]
    run(session, "-m", "pytest", *files, "-m", "nvrtc or not nvrtc", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Make the folder that goes along to a GPU without a network, results/gpu, and print what to run there.

    With our kernels compiled: a few minutes.
    """
    run(session, "-m", "bench", "bundle", "gemm_gpu", "lstm_gpu", "--out", "results/gpu", *session.posargs)


@nox.session
def emulate(session: nox.Session) -> None:
    """Run the CUDA kernels' whole test grid, no GPU needed (two hours of a core): nox -s emulate [-- PYTEST ARGS].

    On all cores, so about an hour on two.
    """
    run(session, "-m", "pytest", "tests/kernels/cuda", "-m", "emulate or not nvrtc", "-n", "logical", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Check kernel speed with pytest-benchmark: nox -s bench [-- PYTEST ARGS]."""
    run(session, "-m", "pytest", "tests/perf", "--benchmark-only", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff, and with import-linter that each floor imports the floors below it."""
    contracts = ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    run_all(session, ("-m", "ruff", "check", "."), ("-m", "ruff", "format", "--check", "."), contracts)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy --strict."""
    run(session, "-m", "mypy")


@nox.session
def lock(session: nox.Session) -> None:
    """Write requirements.lock anew, for every platform, from pyproject.toml and constraints.txt."""
    left_out = [part for name in UNLOCKED for part in ("--no-emit-package", name)]
    sources = ("pyproject.toml", "--extra", "dev", "--group", "build", "-c", "constraints.txt")
    how = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "-q")
    run(session, "-m", "uv", "pip", "compile", *sources, *how, *left_out, "-o", "requirements.lock", *session.posargs)
