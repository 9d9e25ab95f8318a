"""Our CPU kernel, fuzzed against float64, and the compiler and thread pool it needs."""

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kernels.backends.native import BACKEND
from kernels.blockmask import BlockMask
from kernels.check import check
from kernels.native import library as native_library
from kernels.native.library import torch_pool
from kernels.problem import GemmProblem

needs_compiler = pytest.mark.skipif(
    BACKEND.unsupported(GemmProblem(4, 4, 1, 4, 0.0)) is not None, reason="no C++ compiler here"
)


Threads = Callable[[int], AbstractContextManager[None]]
SIZES = st.sampled_from([4, 5, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 128])


@st.composite
def problems(draw: st.DrawFn) -> GemmProblem:
    """Any grid of at most 6 x 6 blocks, any pattern, n from 1 to past the widest tile."""
    size, rows, cols = draw(SIZES), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["random", "empty", "full", "one"]))
    kept = torch.full((rows, cols), kind == "full")
    if kind == "one":
        kept[draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))] = True
    if kind == "random":
        kept = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))).view(rows, cols)
    n = draw(st.one_of(st.integers(1, 100), st.sampled_from([1, 15, 16, 17, 31, 33, 80, 300])))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    mask = BlockMask(kept, size)
    return GemmProblem(
        rows * size, cols * size, n, size, 0.5, dtype=dtype, seed=draw(st.integers(0, 9)), given_mask=mask
    )


@needs_compiler
@settings(max_examples=300, deadline=None)
@given(problem=problems())
def test_fuzz(pinned_threads: Threads, problem: GemmProblem) -> None:
    with pinned_threads(1):
        launch = BACKEND.prepare(problem)
        for _ in range(2):
            _, wrong = check(launch, problem)
            assert wrong is None, wrong


@needs_compiler
@settings(max_examples=20, deadline=None)  # few: waiting threads take turns where the cores are busy
@given(problem=problems(), threads=st.sampled_from([2, 5]))
def test_fuzz_threads(pinned_threads: Threads, problem: GemmProblem, threads: int) -> None:
    with pinned_threads(threads):
        launch = BACKEND.prepare(problem)
        assert check(launch, problem)[1] is None


@needs_compiler
@pytest.mark.parametrize("n", [*range(1, 36), 47, 48, 49, 95, 97, 129])
def test_every_width(n: int) -> None:
    for block_size in (4, 8, 16, 32):
        problem = GemmProblem(3 * block_size, 4 * block_size, n, block_size, 0.5, seed=n)
        launch = BACKEND.prepare(problem)
        assert check(launch, problem)[1] is None


@needs_compiler
def test_several_column_chunks() -> None:
    problem = GemmProblem(32, 4096, 970, 16, 0.9)
    launch = BACKEND.prepare(problem)
    assert check(launch, problem)[1] is None


@needs_compiler
def test_threads_change_no_bit(pinned_threads: Threads) -> None:
    problem = GemmProblem(256, 256, 40, 16, 0.7)
    outputs = []
    for threads in (1, 2, 3):
        with pinned_threads(threads):
            launch = BACKEND.prepare(problem)
            launch()
            outputs.append(launch.outputs()["output"].clone())
    assert all(torch.equal(outputs[0], output) for output in outputs)


@needs_compiler
def test_kernel_names_the_threads_that_ran(pinned_threads: Threads) -> None:
    with pinned_threads(2):
        kernel = BACKEND.prepare(GemmProblem(16, 16, 2, 4, 0.5)).kernel
    assert ("2 threads" in kernel) == (torch_pool() is not None)


@needs_compiler
def test_small_work_stays_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    kernels = [BACKEND.prepare(GemmProblem(m, m, 20, 16, 0.5)).kernel for m in (16, 256)]
    torch.set_num_threads(before)
    assert "1 thread" in kernels[0] and ("2 threads" in kernels[1]) == (torch_pool() is not None)


@needs_compiler
def test_without_a_pool_it_runs_on_one_thread_and_says_so(
    pinned_threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "torch_pool", lambda: None)
    problem = GemmProblem(64, 64, 20, 16, 0.5)
    with pinned_threads(2):
        launch = BACKEND.prepare(problem)
    assert check(launch, problem)[1] is None
    assert "1 thread" in launch.kernel and "not found" in launch.kernel


def test_other_types_are_declined_with_a_reason() -> None:
    reason = BACKEND.unsupported(GemmProblem(16, 16, 2, 4, 0.5, dtype="float16"))
    assert reason == "native has no float16 kernel, only float32, float64 and bfloat16"


@needs_compiler
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_a_launch_keeps_what_its_arguments_point_at(op: str) -> None:
    problem = GemmProblem(32, 48, 5, 4, 0.5, op=op)
    read = [
        weakref.ref(each) for each in {"dsd": [problem.x], "dsd_t": [problem.grad]}.get(op, [problem.x, problem.grad])
    ]
    launch = BACKEND.prepare(problem)
    del problem
    gc.collect()
    assert all(each() is not None for each in read)
    launch()
