"""The kernels' tests with other builds of the kernels: builds.py BUILD [PYTEST ARGS]; `FLAGS` has the builds.

A sanitized library needs its runtime before everything else in the process, hence a process of its own.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from kernels.system.compiler import FLAGS_VARIABLE, candidates, cpu_model

FLAGS = {
    # Not optimised: compiled in a third of the time, and no access is optimised away.
    "sanitized": "-O0 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all",
    "avx2": "-march=x86-64 -mavx2 -mfma",
    "128-bit": "-march=x86-64",
}
ISAS = {"avx2": "avx", "128-bit": "128-bit"}  # as the kernels name them
ISA_VARIABLE = "BENCH_EXPECTED_ISA"
PATIENT = {"OMP_WAIT_POLICY": "passive"}  # a thread that waits leaves its core to others: these run beside much else
# The runtime of clang first: it would find that of g++ too.
RUNTIMES = ((f"libclang_rt.asan-{platform.machine()}.so", "-shared-libasan"), ("libasan.so", ""))


def is_sanitized() -> bool:
    """Whether the kernels of this process have sanitizers."""
    return "-fsanitize" in os.environ.get(FLAGS_VARIABLE, "")


def _library(command: list[str], name: str) -> str | None:
    """Path of one of the compiler's own libraries, None where it has no such."""
    asked = [*command, f"-print-file-name={name}"]
    found = Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    return str(found.resolve()) if found.is_absolute() and found.exists() else None


def _sanitized() -> dict[str, str] | str:
    for command in candidates():
        for name, flag in RUNTIMES if "ziglang" not in command else ():
            runtime = _library(command, name)
            if runtime:
                # Without the C++ library beside it, the runtime would stop at torch's first exception.
                preloaded = [runtime, _library(command, "libstdc++.so.6")]
                return {
                    **PATIENT,
                    "CXX": shlex.join(command),
                    FLAGS_VARIABLE: f"{FLAGS['sanitized']} {flag}".strip(),
                    "LD_PRELOAD": ":".join(filter(None, preloaded)),
                    "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much to its end
                    "UBSAN_OPTIONS": "print_stacktrace=1",
                    "PYTHONMALLOC": "malloc",  # the structures of arguments lie in Python's memory
                }
    return "no C++ compiler with sanitizers found; install g++ or clang++"


def environment(build: str) -> dict[str, str] | str:
    """What a process needs whose kernels are built so, beside this one's environment; or why there is none."""
    if build == "sanitized":
        made = _sanitized()
        if isinstance(made, dict):
            started = subprocess.run(
                [sys.executable, "-c", ""], env={**os.environ, **made}, capture_output=True, text=True, check=False
            )
            if started.returncode:
                return f"Python does not start with AddressSanitizer here: {started.stderr.strip().splitlines()[:1]}"
        return made
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"{build} is for x86-64 CPUs"
    if build == "avx2" and not {"avx2", "fma"} <= set(cpu_model().split()):
        return "this CPU has no AVX2"
    return {**PATIENT, FLAGS_VARIABLE: FLAGS[build], ISA_VARIABLE: ISAS[build]}


def main(build: str, *arguments: str) -> int | str:
    """Exit status of pytest on `arguments`, or one line that says why it cannot run."""
    if build not in FLAGS:
        return f"unknown build {build!r}; accepted: {', '.join(FLAGS)}"
    made = environment(build)
    if isinstance(made, str):
        return made
    # Sanitizers write to the real standard error and end the process: not captured, below the name of the test.
    command = [sys.executable, "-m", "pytest", "-vv", "--capture=sys", *arguments]
    return subprocess.run(command, env={**os.environ, **made}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
