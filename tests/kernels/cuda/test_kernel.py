"""Compiling variants to cubins without a GPU: what ptxas says of them, the cache, and one line for every failure."""

import ctypes
import io
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from nvrtc import needs_nvrtc

from kernels.cuda import compile
from kernels.cuda import device as cuda_kernel
from kernels.cuda.device import Cubin, Variant, arch_of, compile_cubin, load, resources, unavailable
from kernels.system.compiler import CompileError

ARCHES = ["sm_80", "sm_86", "sm_90a", "sm_100a"]
SOURCE = """
#include "device.h"
struct Arguments { const float* x; float* y; int n; };
KERNEL(scale, Arguments, THREADS, 1) {
    float* staged = (float*)shared_memory();
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < given.n) copy_async<4>(&staged[threadIdx.x], &given.x[i], true);
    copy_commit();
    copy_wait<0>();
    if (i < given.n) given.y[i] = FACTOR * staged[threadIdx.x];
}
KERNEL(crowded, Arguments, 1024, 2) {  // 32 registers a thread
    float kept[64];
    UNROLL for (int i = 0; i < 64; i++) kept[i] = given.x[i * 1024 + threadIdx.x];
    __syncthreads();
    UNROLL for (int i = 0; i < 64; i++) given.y[i * 1024 + threadIdx.x] = kept[i] * kept[63 - i];
}
"""
LOG = """
ptxas info    : 16 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
ptxas         .     8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem
ptxas info    : Compiling entry function 'other' for 'sm_90a'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


class Arguments(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("n", ctypes.c_int))


@pytest.fixture
def scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A variant whose source lies in a folder of the test's, as does the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path))
    source = tmp_path / "scale.cu"
    source.write_text(SOURCE)
    return Variant(str(source), "scale", (("FACTOR", 2), ("THREADS", 128)), 128, 4 * 128)


def other(variant: Variant, **changes: object) -> Variant:
    return Variant(**{**variant.__dict__, **changes})  # type: ignore[arg-type]


@needs_nvrtc
@pytest.mark.parametrize("way", compile.WAYS)
def test_every_way_to_nvrtc_compiles_and_names_errors(way: object) -> None:
    assert callable(way)
    try:
        found = way()
    except Exception as error:
        pytest.skip(f"{way.__name__}: {error}")
    assert re.fullmatch(r"\d+\.\d+", found.version)
    code, log = found.compile('extern "C" __global__ void f() {}', "f.cu", ["--gpu-architecture=sm_90a"])
    assert code.startswith(b"\x7fELF") and log == ""
    assert io.BytesIO(b"  ").read(1)[0] == ord(" "), "the log of one NUL was written over all bytes of one space"
    with pytest.raises(CompileError, match=r"^f\.cu\(1\): error: "):
        found.compile("wrong", "f.cu", ["--gpu-architecture=sm_90a"])


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHES)
def test_a_variant_compiles_without_a_gpu(scale: Variant, arch: str) -> None:
    cubin = compile_cubin(scale, arch)
    assert cubin.bytes.startswith(b"\x7fELF") and b"scale" in cubin.bytes
    assert 0 < cubin.registers <= 32 and cubin.spill_bytes == cubin.shared_bytes == 0 and cubin.seconds > 0
    assert arch in cubin.log


@needs_nvrtc
def test_spilled_registers_are_seen(scale: Variant) -> None:
    crowded = compile_cubin(other(scale, name="crowded"), "sm_90a")
    assert crowded.registers == 32 and crowded.spill_bytes > 0


@needs_nvrtc
def test_a_cubin_is_compiled_once_and_again_when_anything_changes(
    scale: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    real = compile.nvrtc()

    def counted(*given: object) -> tuple[bytes, str]:
        compiled.append(given)
        return real.compile(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_kernel, "nvrtc", lambda: compile.Nvrtc(real.version, counted))
    first = compile_cubin(scale, "sm_80")
    assert compile_cubin(scale, "sm_80") == first and len(compiled) == 1
    tripled = compile_cubin(other(scale, defines=(("FACTOR", 3), ("THREADS", 128))), "sm_80")
    assert tripled.bytes != first.bytes and len(compiled) == 2
    Path(scale.source).write_text(SOURCE.replace("FACTOR *", "FACTOR +"))
    assert compile_cubin(scale, "sm_80").path != first.path and len(compiled) == 3


@needs_nvrtc
def test_a_damaged_cubin_is_compiled_again(scale: Variant) -> None:
    cubin = compile_cubin(scale, "sm_80")
    code = cubin.bytes
    for path, damage in ((cubin.path, code[:-1]), (cubin.path.with_suffix(".json"), b"{")):
        path.write_bytes(damage)
        assert compile_cubin(scale, "sm_80").bytes == code


@needs_nvrtc
def test_what_does_not_compile_is_one_line_without_a_path(scale: Variant) -> None:
    Path(scale.source).write_text(SOURCE.replace("copy_commit", "copy_commits"))
    with pytest.raises(CompileError, match="copy_commits") as raised:
        compile_cubin(scale, "sm_90a")
    assert "\n" not in str(raised.value) and str(cuda_kernel.FOLDER) not in str(raised.value)
    Path(scale.source).write_text(SOURCE)
    with pytest.raises(CompileError, match="no kernel 'missing'"):
        compile_cubin(other(scale, name="missing"), "sm_90a")


def test_a_cubin_is_believed_only_with_its_own_facts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a compiler: what is kept, and then altered, cut, exchanged."""
    path, other_path = tmp_path / "dsd.cubin", tmp_path / "sdd.cubin"
    cubin = Cubin(path, registers=40, spill_bytes=0, shared_bytes=2048, seconds=1.5, log="ptxas\n")
    cuda_kernel._keep(cubin, b"\x7fELF code")
    cuda_kernel._keep(Cubin(other_path, 32, 0, 0, 1.5, ""), b"\x7fELF other code")
    facts = path.with_suffix(".json")
    assert cuda_kernel._cached(path) == cubin and capfd.readouterr().err == ""
    for kept in (path, facts):
        data = kept.read_bytes()
        for place in range(0, 8 * len(data), 3):
            altered = bytearray(data)
            altered[place // 8] ^= 1 << place % 8
            kept.write_bytes(altered)
            assert cuda_kernel._cached(path) in (None, cubin)
        for length in range(0, len(data), 5):
            kept.write_bytes(data[:length])
            assert cuda_kernel._cached(path) is None
        kept.write_bytes(data)
    assert all("compiled anew" in line for line in capfd.readouterr().err.splitlines())
    assert cuda_kernel._cached(path) == cubin
    other_path.replace(path)
    other_path.with_suffix(".json").replace(facts)
    assert cuda_kernel._cached(path) is None, "another kernel's code with its own facts"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "WAYS", ())
    compile.nvrtc.cache_clear()
    with pytest.raises(CompileError, match="pip install cuda-bindings nvidia-cuda-nvrtc"):
        compile.nvrtc()


def test_resources_are_those_of_the_named_kernel() -> None:
    assert resources(LOG, "one") == {"registers": 40, "spill_bytes": 32, "shared_bytes": 2048}
    assert resources(LOG, "other") == {"registers": 12, "spill_bytes": 0, "shared_bytes": 0}


def test_architectures_and_who_runs_what() -> None:
    assert [arch_of(each) for each in (80, 86, 89, 90, 100, 120)] == [
        "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a",
    ]  # fmt: skip
    first = Variant("products.cu", "dsd", (), 128, 0)
    second = other(first, needs=90)
    assert [first.runs_on(each) for each in (75, 80, 86, 90, 100)] == [False, True, True, True, True]
    assert [second.runs_on(each) for each in (80, 86, 90, 100)] == [False, False, True, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_why_there_are_no_cuda_kernels_here() -> None:
    reason = unavailable()
    assert reason is not None and "\n" not in reason
    assert any(word in reason for word in ("no NVIDIA driver", "built without CUDA", "finds no GPU"))


def test_a_kernel_asks_for_all_shared_memory_and_how_many_ctas_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CuPy and the driver."""
    variant, asked = Variant("lstm.cu", "lstm_forward", (), 96, 50000), []

    def count(found: object, handle: ctypes.c_void_p, threads: int, shared: ctypes.c_size_t) -> int:
        asked.append((handle.value, threads, shared.value))
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = 3  # type: ignore[arg-type]
        return len(asked) - 1  # an error, the second time

    driver, cupy = mock.MagicMock(), mock.MagicMock()
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor = count
    function = cupy.RawModule.return_value.get_function.return_value
    function.kernel.ptr = 4711
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cuda_kernel, "_driver", lambda: driver)
    monkeypatch.setattr(cuda_kernel, "capability", lambda: 90)
    monkeypatch.setattr(cuda_kernel, "compile_cubin", lambda *_: mock.MagicMock())
    monkeypatch.setattr(cuda_kernel, "error_name", lambda status: f"error {status}")
    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"):
        monkeypatch.setattr(torch._C, name, None, raising=False)
    kernel = cuda_kernel.LoadedKernel(variant, 0)
    assert not asked, "only where a launch is to hold all CTAs together"
    assert kernel.resident == kernel.resident == 3 and asked == [(4711, 96, 50000)]
    assert function.preferred_shared_memory_carveout == 100
    assert function.max_dynamic_shared_size_bytes == 50000
    with pytest.raises(RuntimeError, match=r"how many CTAs of lstm\.cu:lstm_forward .*: error 1"):
        _ = cuda_kernel.LoadedKernel(variant, 0).resident


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_a_loaded_kernel_runs_on_torchs_current_stream(scale: Variant) -> None:
    kernel = load(scale)
    x = torch.randn(300, device="cuda")
    y = torch.full_like(x, torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for cooperative in (False, True):
        with torch.cuda.stream(stream):
            kernel((3, 1, 1), Arguments(x.data_ptr(), y.data_ptr(), 300), cooperative)
        stream.synchronize()
        assert torch.equal(y, 2 * x)
        y.fill_(torch.nan)
        torch.cuda.synchronize()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        kernel((3, 1, 1), Arguments(x.data_ptr(), y.data_ptr(), 300))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, 2 * x)


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_a_loaded_kernel_runs_in_a_thread_that_has_no_context_yet(scale: Variant) -> None:
    """As autograd's threads begin."""
    kernel, x = load(scale), torch.randn(300, device="cuda")
    y = torch.full_like(x, torch.nan)
    arguments = Arguments(x.data_ptr(), y.data_ptr(), 300)
    thread = threading.Thread(target=kernel, args=((3, 1, 1), arguments))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert torch.equal(y, 2 * x)


class Driver:
    """What of the driver a launch calls, where each thread has a context or none.

    There is no driver to test with here.
    """

    def __init__(self) -> None:
        self.current: ctypes.c_void_p | None = None
        self.launched: list[int] = []

    def cuLaunchKernel(self, handle: int, *_: object) -> int:
        if self.current is None:
            return cuda_kernel.INVALID_CONTEXT
        self.launched.append(handle)
        return 0

    def cuTensorMapEncodeTiled(self, *_: object) -> int:
        return cuda_kernel.INVALID_CONTEXT if self.current is None else 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:
        self.current = context
        return 0


def test_a_launch_brings_the_context_to_a_thread_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, kernel = Driver(), object.__new__(cuda_kernel.LoadedKernel)
    monkeypatch.setattr(cuda_kernel, "_driver", lambda: driver)
    kernel.handle, kernel.device, kernel.context, kernel.shape = 5, 0, ctypes.c_void_p(9), (32, 1, 1, 0)
    kernel.launch, kernel.stream, kernel.current_device = driver.cuLaunchKernel, lambda _: 0, lambda: 0
    for _ in range(2):
        kernel((1, 1, 1), Arguments(None, None, 0))
    assert driver.launched == [5, 5] and driver.current is kernel.context


def test_a_tensor_map_brings_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, kernel = Driver(), object.__new__(cuda_kernel.LoadedKernel)
    monkeypatch.setattr(cuda_kernel, "_driver", lambda: driver)
    kernel.context = ctypes.c_void_p(9)
    assert kernel.encode_tiled() == 0 and driver.current is kernel.context


def test_a_launch_is_made_on_the_device_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    current, launched, kernel = [1], [], object.__new__(cuda_kernel.LoadedKernel)

    @contextmanager
    def device(number: int) -> Iterator[None]:
        before, current[0] = current[0], number
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    kernel.handle, kernel.device, kernel.shape, kernel.stream = 5, 0, (32, 1, 1, 0), lambda _: 0
    kernel.current_device, kernel.launch = lambda: current[0], lambda *_: launched.append(current[0]) or 0
    kernel((1, 1, 1), Arguments(None, None, 0))
    assert launched == [0] and current == [1]


def test_a_cubin_knows_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.cubin"
    path.write_bytes(b"code")
    assert Cubin(path, 1, 0, 0, 0.0, "").bytes == b"code"
