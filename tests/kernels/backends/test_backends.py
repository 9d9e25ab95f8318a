"""The contract of every registered backend: solve each problem within the error bound, or say why not."""

import time
from dataclasses import replace
from itertools import product

import pytest
import torch

from kernels.backends.dense import ways
from kernels.blockmask import BlockMask
from kernels.check import check
from kernels.launches import fastest
from kernels.problem import CALLS, DTYPES, LAYOUTS, GemmProblem, LstmProblem
from kernels.registry import BACKENDS

EXPECTED = [
    "cuda",
    "cuda_mma",
    "cusparse_bsr",
    "cusparse_ell",
    "cusparselt",
    "dense",
    "dense_masked",
    "dense_packed",
    "gather_bmm",
    "loop_lstm",
    "native",
    "reference",
    "scipy_bsr",
    "stk",
    "torch_bsr",
    "torch_lstm",
    "torchao_bsr",
    "triton_bsr",
]
OPS = ["dsd", "dsd_t", "sdd"]

# m, k, n, block_size, sparsity
SHAPES = [
    (16, 16, 1, 4, 0.5),
    (64, 96, 20, 16, 0.8),
    (96, 64, 33, 32, 0.5),
    (128, 256, 7, 64, 0.9),
    (256, 128, 80, 128, 0.5),
    (40, 24, 5, 8, 0.0),
    (64, 64, 32, 8, 1.0),
    (60, 36, 3, 12, 0.5),
]

# input, hidden, batch, steps, block_size, sparsity
LAYERS = [
    (64, 96, 20, 5, 16, 0.8),
    (32, 64, 1, 1, 32, 0.5),
    (24, 40, 7, 3, 8, 0.0),
    (64, 64, 3, 4, 16, 1.0),
    (36, 60, 33, 35, 12, 0.5),
]


def empty_rows_and_columns(rows: int, cols: int, block_size: int) -> BlockMask:
    """Full but for its first and last block rows and its second block column."""
    mask = BlockMask.full(rows, cols, block_size)
    mask.kept[0] = mask.kept[-1] = False
    mask.kept[:, 1] = False
    return mask


def one_block(rows: int, cols: int, block_size: int) -> BlockMask:
    mask = BlockMask(torch.zeros(rows // block_size, cols // block_size, dtype=torch.bool), block_size)
    mask.kept[1, 2] = True
    return mask


def assert_solves_or_declines(name: str, problem: GemmProblem | LstmProblem) -> None:
    """To decline is a right answer too.

    Who may not is asked by test_common_types_are_supported_on_a_cpu and its like.
    """
    backend = BACKENDS[name]
    reason = backend.unsupported(problem)
    if reason is not None:
        assert reason and "\n" not in reason
        return
    launch = backend.prepare(problem)
    ratio, wrong = check(launch, problem)
    assert wrong is None, wrong
    assert 0.0 <= ratio <= 1.0
    assert launch.kernel and launch.weight_bytes >= 0 and launch.index_bytes >= 0
    first = {output: result.clone() for output, result in launch.outputs().items()}
    launch()  # a second launch must not add to the first
    assert all(torch.equal(result, first[output]) for output, result in launch.outputs().items())


def test_every_expected_backend_is_registered() -> None:
    assert [name for name in EXPECTED if name not in BACKENDS.names()] == []


def test_every_registered_backend_is_expected() -> None:
    assert [name for name in BACKENDS if name not in EXPECTED] == []


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_output_is_within_the_bound(name: str, op: str, shape: tuple[int, int, int, int, float]) -> None:
    m, k, n, block_size, sparsity = shape
    for dtype in DTYPES:
        assert_solves_or_declines(name, GemmProblem(m, k, n, block_size, sparsity, dtype=dtype, seed=3, op=op))


@pytest.mark.parametrize("shape", [(64, 96, 20, 16, 0.8), (60, 36, 3, 12, 0.5), (64, 96, 1, 16, 0.5)], ids=str)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_every_layout_and_call_is_within_the_bound(name: str, shape: tuple[int, int, int, int, float]) -> None:
    for layout, call, op in product(LAYOUTS, CALLS, OPS):
        if call == "launch" or op == "dsd":
            for dtype in DTYPES:
                asked = {"dtype": dtype, "op": op, "layout": layout, "call": call}
                assert_solves_or_declines(name, GemmProblem(*shape, **asked))  # type: ignore[arg-type]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_lie_as_asked_and_the_operator_is_called(layout: str, call: str) -> None:
    problem = GemmProblem(64, 96, 20, 16, 0.8, layout=layout, call=call)
    if BACKENDS["native"].unsupported(problem):
        pytest.skip("no C++ compiler here")
    assert problem.x.mT.is_contiguous() is problem.grad.mT.is_contiguous() is (layout == "column")
    launch = BACKENDS["native"].prepare(problem)
    launch()
    first = launch.outputs()["output"]
    launch()
    second = launch.outputs()["output"]
    assert second.mT.is_contiguous() is (layout == "column"), "Y lies as X does"
    assert (first.data_ptr() == second.data_ptr()) is (call == "launch"), "people's output is a new one each time"
    operator = {"row": "block_sparse_matmul", "column": "block_sparse_linear"}[layout]
    assert launch.kernel.endswith(operator) is (call == "operator")


def test_who_takes_other_layouts_and_has_an_operator() -> None:
    here = {name: BACKENDS[name] for name in ("dense", "native", "torch_bsr", "scipy_bsr")}
    column, operator = (
        GemmProblem(32, 32, 4, 8, 0.5, **asked) for asked in ({"layout": "column"}, {"call": "operator"})
    )
    assert {name: backend.unsupported(column) for name, backend in here.items() if backend.unsupported(column)} == {
        "scipy_bsr": "scipy_bsr takes X row by row only"
    }
    assert {name: backend.unsupported(operator) for name, backend in here.items() if backend.unsupported(operator)} == {
        "torch_bsr": "torch_bsr is timed as a prepared launch only"
    }


def test_an_operator_of_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="call 'operator' is of dsd, not of sdd"):
        GemmProblem(32, 32, 4, 8, 0.5, op="sdd", call="operator")
    with pytest.raises(ValueError, match="unknown layout 'rows'; accepted: row, column"):
        GemmProblem(32, 32, 4, 8, 0.5, layout="rows")


@pytest.fixture
def tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend with several ways takes any of them after one try."""
    monkeypatch.setattr("kernels.launches.ROUNDS", 1)


@pytest.mark.usefixtures("tried_once")
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
@pytest.mark.parametrize("shape", LAYERS, ids=str)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_layers_are_within_the_bound(
    name: str, shape: tuple[int, int, int, int, int, float], scope: str, passes: str
) -> None:
    for dtype in DTYPES:
        assert_solves_or_declines(name, LstmProblem(*shape, passes=passes, scope=scope, dtype=dtype, seed=3))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_sizes_that_blocks_do_not_divide(name: str, op: str, layout: str, call: str) -> None:
    if call == "launch" or op == "dsd":
        for dtype in DTYPES:
            problem = GemmProblem(60, 39, 19, 16, 0.5, op=op, layout=layout, call=call, dtype=dtype, pad=True)
            assert_solves_or_declines(name, problem)


@pytest.mark.usefixtures("tried_once")
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
@pytest.mark.parametrize("name", BACKENDS.names())
def test_layers_of_sizes_that_blocks_do_not_divide(name: str, scope: str, passes: str) -> None:
    for dtype in DTYPES:
        problem = LstmProblem(10, 13, 3, 4, 8, 0.5, passes=passes, scope=scope, dtype=dtype, pad=True)
        assert problem.masks["weight_hh"].shape == (4 * 16, 16)
        assert_solves_or_declines(name, problem)


def test_padded_problems_are_solved_by_all_that_solve_others() -> None:
    for problem in (GemmProblem(60, 39, 19, 16, 0.5, pad=True), LstmProblem(10, 13, 3, 4, 8, 0.5, pad=True)):
        whole = replace(problem, block_size=1)
        solving = [{each for each in BACKENDS if BACKENDS[each].unsupported(one) is None} for one in (problem, whole)]
        assert problem.padded and not whole.padded and solving[0] == solving[1]
    with pytest.raises(ValueError, match="does not divide the weight's 60 rows; nearest sizes that work: 48 or 64"):
        GemmProblem(60, 39, 19, 16, 0.5)


@pytest.mark.parametrize("pattern", [empty_rows_and_columns, one_block])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_irregular_patterns(name: str, op: str, pattern: object) -> None:
    assert callable(pattern)
    assert_solves_or_declines(name, GemmProblem(64, 64, 19, 16, 0.5, given_mask=pattern(64, 64, 16), op=op))


COMMON = [
    *((name, op) for name in ("dense", "reference", "native") for op in OPS),
    *((name, op) for name in ("scipy_bsr", "torch_bsr") for op in ("dsd", "dsd_t")),
]


@pytest.mark.parametrize(("name", "op"), COMMON)
def test_common_types_are_supported_on_a_cpu(name: str, op: str) -> None:
    """No backend passes this file by declining everything (native may where there is no compiler)."""
    for dtype in ("float32", "float64"):
        reason = BACKENDS[name].unsupported(GemmProblem(16, 16, 2, 4, 0.5, dtype=dtype, op=op))
        assert reason is None or "compiler" in reason or "MKL" in reason


@pytest.mark.parametrize("name", BACKENDS.names())
def test_who_has_an_lstm_layer(name: str) -> None:
    reason = BACKENDS[name].unsupported(LstmProblem(16, 16, 2, 3, 4, 0.5))
    if name == "cuda":
        assert reason == "cuda runs on a GPU only"
    elif name in ("native", "reference", "torch_lstm", "loop_lstm"):
        assert reason is None or "compiler" in reason
    else:
        assert reason is not None and "no LSTM layer" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", BACKENDS.names())
def test_cuda_is_declined_without_a_device(name: str) -> None:
    problem = GemmProblem(16, 16, 2, 4, 0.5, device="cuda")
    assert problem.missing_device() == "no CUDA device"
    assert BACKENDS[name].unsupported(problem)


@pytest.mark.parametrize("name", BACKENDS.names())
def test_tf32_is_declined_on_a_cpu(name: str) -> None:
    for problem in (GemmProblem(16, 16, 2, 4, 0.5, math="tf32"), LstmProblem(16, 16, 2, 3, 4, 0.5, math="tf32")):
        assert problem.missing_device() == "tf32 is arithmetic of GPUs"
        assert BACKENDS[name].unsupported(problem)


def test_maths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown math 'fast'; accepted: ieee, tf32"):
        GemmProblem(16, 16, 2, 4, 0.5, math="fast")
    with pytest.raises(ValueError, match="tf32 is a way to multiply float32, not bfloat16"):
        LstmProblem(16, 16, 2, 3, 4, 0.5, math="tf32", dtype="bfloat16")


def test_the_baselines_have_full_weights_and_the_others_the_pruned_ones() -> None:
    for problem in (GemmProblem(32, 32, 4, 8, 0.5), LstmProblem(16, 16, 2, 3, 8, 0.5)):
        names = [name for name in BACKENDS if BACKENDS[name].unsupported(problem) is None]
        dense = {name for name in names if BACKENDS[name].prepare(problem).dense}
        layers = {"torch_lstm", "loop_lstm"}
        assert dense == (layers if isinstance(problem, LstmProblem) else {"dense", "dense_packed"} & set(names))
        assert len(names) > len(dense)


@pytest.mark.parametrize("name", ["reference", "scipy_bsr", "torch_bsr"])
def test_stored_bytes(name: str) -> None:
    problem = GemmProblem(64, 64, 4, 16, 0.5)
    launch = BACKENDS[name].prepare(problem)
    item = 8 if name == "reference" else 4
    assert launch.weight_bytes == problem.mask.nnzb * 16 * 16 * item
    assert launch.index_bytes == 4 * (problem.mask.nnzb + 4 + 1)


@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_stored_bytes_of_a_layer_are_those_of_its_block_sparse_weights(scope: str) -> None:
    problem = LstmProblem(32, 64, 2, 3, 16, 0.5, scope=scope)
    hidden, into = 4 * 64 * 64, 4 * 64 * 32 if scope == "all" else 0
    assert BACKENDS["torch_lstm"].prepare(problem).weight_bytes == 4 * (hidden + into)
    assert BACKENDS["reference"].prepare(problem).weight_bytes == 8 * (hidden + into) // 2
    if BACKENDS["native"].unsupported(problem) is None:
        assert BACKENDS["native"].prepare(problem).weight_bytes == 4 * (hidden + into) // 2


def test_the_dense_baseline_tries_every_memory_order_and_keeps_the_fastest() -> None:
    problem = GemmProblem(32, 48, 4, 8, 0.5)
    found = ways(problem)
    results = [way().clone() for way in found.values()]
    assert len(found) >= 8
    for result in results:
        torch.testing.assert_close(result, problem.full_weight @ problem.x)
    assert BACKENDS["dense"].prepare(problem).kernel in found


def test_the_fastest_is_chosen() -> None:
    assert (
        fastest({"slow": lambda: time.sleep(0.02), "fast": lambda: None, "slower": lambda: time.sleep(0.03)}, "cpu")
        == "fast"
    )
