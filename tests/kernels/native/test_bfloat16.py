"""Products of bfloat16 on the CPU: pairs along the sum, float32 sums that are rounded once.

They run by the CPU's own instruction where it has one, and everywhere by the arithmetic that -DEMULATE_BF16 puts in its
place. `test_builds.py` runs this file with kernels built for narrower vectors and with sanitizers.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from products import PATTERNS, PLACES, SIZES, WIDTHS, assert_right, kept_blocks, operands, products

from kernels.backends.native import BACKEND
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check, gamma
from kernels.native import library as native_library
from kernels.native.library import FOLDER, NO_PAIRS, text_of
from kernels.native.products import pack
from kernels.ops import block_sparse_lstm, block_sparse_matmul, kernel_for
from kernels.problem import GemmProblem
from kernels.system import compiler
from kernels.system.compiler import FLAGS_VARIABLE, candidates
from kernels.system.resources import refusal

Guards = Callable[[], AbstractContextManager[None]]
Threads = Callable[[int], AbstractContextManager[None]]
BF16, CPU = torch.bfloat16, torch.device("cpu")
EMULATE = "-DEMULATE_BF16"
NO_NATIVE = refusal(native_library.require_kernel, torch.float32, CPU)
pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")


def forget() -> None:
    """Forget the compiled kernels: the next ones follow the flags of that time."""
    compiler._compile_once.cache_clear()
    native_library.entry.cache_clear()


@pytest.fixture(
    scope="module", params=["instruction", pytest.param("emulated", marks=pytest.mark.builds)], autouse=True
)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[str]:
    """The tests of this file run with each way to multiply."""
    with pytest.MonkeyPatch.context() as patch:
        others = [flag for flag in os.environ.get(FLAGS_VARIABLE, "").split() if flag != EMULATE]
        patch.setenv(FLAGS_VARIABLE, " ".join([*others, *[EMULATE] * (request.param == "emulated")]))
        forget()
        reason = refusal(native_library.require_kernel, BF16, CPU)
        if request.param == "instruction" and reason == NO_PAIRS:
            forget()
            pytest.skip(reason)
        assert reason is None
        yield request.param
    forget()


def test_the_kernel_says_which_arithmetic_ran(arithmetic: str) -> None:
    problem = GemmProblem(32, 32, 5, 8, 0.5, dtype="bfloat16")
    assert BACKEND.unsupported(problem) is None
    name = {"instruction": "vdpbf16ps", "emulated": "emulated bfloat16"}[arithmetic]
    assert f" {name}," in BACKEND.prepare(problem).kernel
    assert name not in BACKEND.prepare(GemmProblem(32, 32, 5, 8, 0.5)).kernel


@pytest.mark.parametrize("size", SIZES)
def test_every_pattern(guards: Guards, pinned_threads: Threads, size: int) -> None:
    places = list(PLACES.values())
    for number, pattern in enumerate(PATTERNS):
        n = WIDTHS[(SIZES.index(size) * 3 + number * 5) % len(WIDTHS)]
        bsr, x, grad = operands(kept_blocks(pattern, 3, 4), size, n, BF16)
        place = places[(number + SIZES.index(size)) % len(places)]
        with guards(), pinned_threads(2 if pattern == "chequered" else 1):
            found = products(bsr.with_data(place(bsr.data)), place(x), place(grad))
        assert_right(found, bsr, x, grad)


@pytest.mark.parametrize("n", [*WIDTHS, 256])
def test_every_width_and_place(guards: Guards, pinned_threads: Threads, n: int) -> None:
    for number, place in enumerate(PLACES.values()):
        for size in ((4, 1), (16, 3), (12, 33), (32, 7), (5, 2), (8, 17))[number]:
            bsr, x, grad = operands(kept_blocks("chequered", 3, 4), size, n, BF16)
            with guards(), pinned_threads(1):
                found = products(bsr.with_data(place(bsr.data)), place(x), place(grad))
            assert_right(found, bsr, x, grad)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    pattern=st.sampled_from(PATTERNS),
    size=st.one_of(st.sampled_from(SIZES), st.integers(1, 40)),
    n=st.one_of(st.sampled_from(WIDTHS), st.integers(1, 60)),
    places=st.tuples(*(st.sampled_from(list(PLACES)) for _ in range(3))),
    seed=st.integers(0, 99),
)
def test_fuzz(
    guards: Guards,
    pinned_threads: Threads,
    rows: int,
    cols: int,
    pattern: str,
    size: int,
    n: int,
    places: tuple[str, ...],
    seed: int,
) -> None:
    bsr, x, grad = operands(kept_blocks(pattern, rows, cols, seed), size, n, BF16, seed)
    data, there, back = (PLACES[place](each) for place, each in zip(places, (bsr.data, x, grad), strict=True))
    with guards(), pinned_threads(1):
        found = products(bsr.with_data(data), there, back)
    assert_right(found, bsr, x, grad)


@pytest.mark.parametrize("place", ["by rows", "by columns"])
@pytest.mark.parametrize("size", [5, 16])
def test_several_chunks(guards: Guards, size: int, place: str) -> None:
    """Of dsd, and of sdd, whose sums of the chunks before the last stay in float32."""
    bsr, x, grad = operands(kept_blocks("random", 2, 64), size, 1301, BF16)
    with guards():
        found = products(bsr, PLACES[place](x), PLACES[place](grad))
    assert_right(found, bsr, x, grad)


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
@pytest.mark.parametrize(
    "shape", [(48, 64, 1, 16, 0.5), (96, 64, 33, 32, 0.5), (45, 35, 7, 5, 0.3), (64, 64, 8, 8, 1.0)]
)
def test_the_backend_passes_the_check(op: str, shape: tuple[int, int, int, int, float]) -> None:
    problem = GemmProblem(*shape, dtype="bfloat16", op=op, seed=3)
    launch = BACKEND.prepare(problem)
    ratio, wrong = check(launch, problem)
    assert wrong is None, wrong
    assert ratio <= 1.0
    first = launch.outputs()["output"].clone()
    launch()
    assert torch.equal(launch.outputs()["output"], first)


@pytest.mark.parametrize("n", [1, 40, 1301])
def test_sums_are_rounded_once(n: int) -> None:
    """Closer than two roundings to bfloat16 could be: half a unit in the last place and the error of float32 sums."""
    bsr, x, grad = operands(kept_blocks("full", 2, 3), 24, n, BF16)
    weight = bsr.to_dense()
    for place, (left, right) in enumerate(((weight, x), (weight.mT, grad), (grad, x.mT))):
        exact = left.double() @ right.double()
        sums = gamma(torch.tensor(float(left.shape[1])), 2.0**-24) * (left.double().abs() @ right.double().abs())
        if place == 2:
            exact, sums = (BSRMatrix.from_dense(each, bsr.mask).data for each in (exact, sums))
        unit = torch.exp2(torch.floor(torch.log2(exact.abs() + sums)) - 7)
        found = products(bsr, x, grad)[place].double()
        assert bool(((found - exact).abs() <= unit / 2 + sums).all())


def product_of(values: list[float], with_column: list[float]) -> list[float]:
    """The diagonal of a matrix with `values` times a column."""
    bsr = BSRMatrix.from_dense(torch.diag(torch.tensor(values)).to(BF16), BlockMask.full(8, 8, 8))
    return block_sparse_matmul(bsr, torch.tensor(with_column).to(BF16)[:, None], "native").float().flatten().tolist()


def test_ties_go_to_even_and_overflow_to_infinity() -> None:
    # 257 and 259 lie between two bfloat16; 1.0078125 is the next one after 1.
    close = 1 + 2.0**-7
    found = product_of(
        [257 / 257, close, close, -close, 3e38, -3e38, 0.0, 1.0], [1.0, close, 1.5, 1.5, 2.0, 2.0, -1.0, 0.0]
    )
    exact = [1.0, close * close, close * 1.5, -close * 1.5, float("inf"), float("-inf"), 0.0, 0.0]
    wanted = torch.tensor(exact, dtype=torch.float64).to(torch.float32).to(BF16).float().tolist()
    assert found == wanted


@pytest.mark.parametrize("number", [0, 1, 0x7FC0, 0x7FFF, 0xFFFF, 0xFF81], ids=hex)
def test_not_a_number_stays_one_and_nowhere_else(number: int) -> None:
    """Every bit pattern is moved unchanged, those of NaN that float arithmetic would alter too."""
    bits = torch.zeros(8, 5, dtype=torch.int16)
    bits[3, 2] = number - (number > 0x7FFF) * 0x10000
    x = bits.view(BF16)
    weight = torch.ones(8, 8, dtype=BF16)
    found = block_sparse_matmul(BSRMatrix.from_dense(weight, BlockMask.full(8, 8, 4)), x, "native")
    assert bool(found[:, 2].isnan().all()) == (number > 1)
    assert not bool(found[:, [0, 1, 3, 4]].isnan().any())


@settings(max_examples=6, deadline=None)  # few: waiting threads take turns where the cores are busy
@given(
    size=st.sampled_from([3, 8, 16]),
    n=st.sampled_from([1, 20, 97]),
    place=st.sampled_from(["by rows", "by columns"]),
    seed=st.integers(0, 99),
)
def test_repeats_and_threads_change_no_bit(pinned_threads: Threads, size: int, n: int, place: str, seed: int) -> None:
    bsr, x, grad = operands(kept_blocks("random", 9, 7, seed), size, n, BF16, seed)
    results = []
    for threads in (1, 1, 2):
        with pinned_threads(threads):
            results.append(products(bsr, PLACES[place](x), PLACES[place](grad)))
    for other in results[1:]:
        assert all(torch.equal(got, wanted) for got, wanted in zip(other, results[0], strict=True))


def test_pack_pairs_columns_and_pads_odd_blocks() -> None:
    weight = torch.arange(1.0, 37.0).view(3, 12).to(BF16)
    bsr = BSRMatrix.from_dense(weight, BlockMask.full(3, 12, 3))
    values = pack(bsr.data, bsr.index, 20).values.view(4, 2, 3, 2)  # blocks of one panel, steps, rows, pairs
    assert values[1, 0].tolist() == weight[:, 3:5].tolist()
    assert values[1, 1].tolist() == [[float(last), 0.0] for last in weight[:, 5]]
    transposed = pack(bsr.data, bsr.index, 20, transposed=True).values.view(4, 2, 3, 2)
    assert transposed[1, 0].tolist() == weight[:2, 3:6].T.tolist()
    assert transposed[1, 1].tolist() == [[float(last), 0.0] for last in weight[2, 3:6]]


def test_gradients_are_those_of_the_dense_product() -> None:
    bsr, x, grad = operands(kept_blocks("chequered", 3, 4), 8, 6, BF16)
    leaf, columns = bsr.data.clone().requires_grad_(), x.clone().requires_grad_()
    assert kernel_for("auto", BF16, CPU) == "native"
    output = block_sparse_matmul(bsr.with_data(leaf), columns)
    got = torch.autograd.grad(output, (leaf, columns), grad)
    assert_right((output.detach(), got[1], got[0]), bsr, x, grad)


def test_a_layer_has_no_bfloat16_kernel_and_says_so() -> None:
    reason = "native has no bfloat16 LSTM layer, only float32 and float64"
    assert refusal(native_library.require_kernel, BF16, CPU, True) == reason
    assert kernel_for("auto", BF16, CPU, layer=True) == "torch"
    hidden, _, _ = operands(torch.ones(8, 2, dtype=torch.bool), 4, 1, BF16)
    into = torch.randn(32, 3).to(BF16)
    y, _ = block_sparse_lstm(torch.randn(2, 5, 3).to(BF16), None, into, hidden)
    assert y.dtype == BF16
    with pytest.raises(ValueError, match=reason):
        block_sparse_lstm(torch.randn(2, 5, 3).to(BF16), None, into, hidden, kernel="native")


def test_without_the_instruction_it_is_declined_in_one_line(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "text_of", lambda *_: "")
    problem = GemmProblem(16, 16, 2, 4, 0.5, dtype="bfloat16")
    assert BACKEND.unsupported(problem) == "this CPU has no bfloat16 instructions (AVX512_BF16)"
    assert kernel_for("auto", BF16, CPU) == "torch"
    with pytest.raises(ValueError, match="no bfloat16 instructions"):
        kernel_for("native", BF16, CPU)
    assert BACKEND.unsupported(GemmProblem(16, 16, 2, 4, 0.5)) is None
    monkeypatch.undo()
    assert (text_of(native_library.library("dsd", torch.float32), "pair_products") == "vdpbf16ps") == (
        arithmetic == "instruction"
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["dsd", "sdd"])
def test_the_instruction_is_what_such_a_cpu_gets(arithmetic: str, source: str, tmp_path: Path) -> None:
    """Only compiled, where this CPU has no such instruction."""
    if arithmetic == "instruction":
        pytest.skip("this CPU runs it")
    made = tmp_path / "assembly.s"
    command = [*candidates()[0], "-std=c++17", "-O1", "-march=cooperlake", "-DELEMENT=bfloat16", "-S", "-o", str(made)]
    done = subprocess.run([*command, str(FOLDER / f"{source}.cpp")], capture_output=True, text=True, check=False)
    if "cooperlake" in done.stderr:
        pytest.skip("this compiler is not for such CPUs")
    assert done.returncode == 0, done.stderr[-2000:]
    assembly = made.read_text()
    assert assembly.count("vdpbf16ps") > 100
    assert "zmm" in assembly
