"""NVRTC, NVIDIA's compiler as a library: CUDA C++ to a cubin, without a GPU and without a driver.

It is called through the package cuda-bindings, or through CuPy's own module where that is all there is; the library
itself is the package nvidia-cuda-nvrtc, which PyTorch's CUDA builds bring along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kernels.system.compiler import CompileError
from kernels.system.resources import ResourceError, is_lack

HOW_TO_GET_IT = "pip install cuda-bindings nvidia-cuda-nvrtc"

Compile = Callable[[str, str, Sequence[str]], tuple[bytes, str]]


class Nvrtc(NamedTuple):
    """`compile(source, name, options)` answers (cubin, log), or raises CompileError with NVRTC's first error."""

    version: str  # '13.0'
    compile: Compile


def _first_error(log: str) -> str:
    lines = log.strip(" \0\n").splitlines() or ["NVRTC gave no reason"]
    return next((line for line in lines if "error" in line), lines[0])[:300]


def _through_bindings() -> Nvrtc:
    from cuda.bindings import nvrtc

    def ask(function: Callable[..., Any], *given: Any) -> Any:
        status, *answers = function(*given)
        if int(status):
            raise CompileError(f"{function.__name__} failed: {status.name}")
        return answers[0] if len(answers) == 1 else answers

    def read(size: Callable[..., Any], text: Callable[..., Any], program: Any) -> bytes:
        count = ask(size, program)
        buffer = bytes(
            count + 2
        )  # written to, and Python has one object for all equal bytes of length 1, as of an empty log
        ask(text, program, buffer)
        return buffer[:count]

    def compile_(source: str, name: str, options: Sequence[str]) -> tuple[bytes, str]:
        program = ask(nvrtc.nvrtcCreateProgram, source.encode(), name.encode(), 0, [], [])
        try:
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
            log = read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
            if int(status):
                raise CompileError(_first_error(log))
            return read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log.strip(" \0\n")
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    return Nvrtc("{}.{}".format(*ask(nvrtc.nvrtcVersion)), compile_)


def _through_cupy() -> Nvrtc:
    from cupy.cuda import nvrtc

    def compile_(source: str, name: str, options: Sequence[str]) -> tuple[bytes, str]:
        program = nvrtc.createProgram(source, name, (), ())
        try:
            nvrtc.compileProgram(program, tuple(options))
            return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program).strip(" \0\n")
        except nvrtc.NVRTCError as error:
            raise CompileError(_first_error(nvrtc.getProgramLog(program))) from error
        finally:
            nvrtc.destroyProgram(program)

    return Nvrtc("{}.{}".format(*nvrtc.getVersion()), compile_)


WAYS: tuple[Callable[[], Nvrtc], ...] = (_through_bindings, _through_cupy)


@functools.cache
def nvrtc() -> Nvrtc:
    """The compiler of the first package that has one; CompileError where none has, ResourceError where not today."""
    for way in WAYS:
        try:
            return way()
        except Exception as error:  # absent, or without its library: each package has exceptions of its own for that
            if is_lack(error):
                raise ResourceError(f"the CUDA compiler cannot be loaded today: {error}") from error
            continue
    raise CompileError(f"no CUDA compiler found; {HOW_TO_GET_IT}")
