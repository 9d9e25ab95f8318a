"""The backend `cuda` on an emulated GPU.

Which kernel it takes, right results from end to end, and reasons where it declines.
"""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import emulator
import pytest
import torch
from emulated_gpu import emulated_gpu

from kernels.backends import cuda_mma
from kernels.backends.cuda import BACKEND
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.cuda import choose
from kernels.cuda import products as cuda_products
from kernels.cuda.choose import Task
from kernels.launches import applied, settings_of
from kernels.ops import block_sparse_matmul, dsd
from kernels.problem import GemmProblem, LstmProblem, Problem
from kernels.system.resources import UnsupportedError

TYPES = [("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"), ("float16", "ieee")]
OPS = ["dsd", "dsd_t", "sdd"]


def assert_right(problem: Problem) -> str:
    """The kernel that ran."""
    assert BACKEND.unsupported(problem) is None
    launch = BACKEND.prepare(problem)
    ratio, wrong = check(launch, problem)
    assert wrong is None, (launch.kernel, wrong)
    assert 0 <= ratio <= 1 and launch.index_bytes >= 0
    first = {name: result.clone() for name, result in launch.outputs().items()}
    launch()
    assert all(torch.equal(result, first[name]) for name, result in launch.outputs().items())
    return launch.kernel


@pytest.mark.parametrize(("dtype", "math"), TYPES)
@pytest.mark.parametrize("op", OPS)
def test_products_from_end_to_end(op: str, dtype: str, math: str) -> None:
    problem = GemmProblem(128, 96, 20, 16, 0.7, dtype=dtype, math=math, op=op, seed=3)
    with emulated_gpu():
        kernel = assert_right(problem)
    assert kernel.startswith("cuda FFMA sm_90a Float32" if (dtype, math) == TYPES[0] else "cuda mma.sync sm_90a ")


@pytest.mark.parametrize("op", OPS)
def test_wgmma_is_taken_on_hopper_where_it_has_a_kernel(op: str) -> None:
    problem = GemmProblem(128, 128, 130, 64, 0.5, dtype="bfloat16", op=op)
    with emulated_gpu(90):
        assert assert_right(problem).startswith("cuda wgmma sm_90a Bfloat16 ")
        assert BACKEND.prepare(replace(problem, n=64)).kernel.startswith("cuda mma.sync")
        assert BACKEND.prepare(replace(problem, dtype="float32", math="tf32")).kernel.split()[1] == (
            "wgmma" if op == "dsd" else "mma.sync"
        )
    for capability in (80, 86, 100):
        with emulated_gpu(capability):
            assert BACKEND.prepare(problem).kernel.startswith("cuda mma.sync")


@pytest.mark.parametrize("op", OPS)
def test_the_first_rung_can_be_asked_for(op: str) -> None:
    problem = GemmProblem(128, 128, 130, 64, 0.5, dtype="bfloat16", op=op)
    with emulated_gpu(90):
        launch = cuda_mma.BACKEND.prepare(problem)
        assert launch.kernel.startswith("cuda mma.sync sm_90a Bfloat16 ") and check(launch, problem)[1] is None
        assert "no LSTM layer" in str(cuda_mma.BACKEND.unsupported(LstmProblem(32, 64, 5, 3, 16, 0.6)))


@pytest.mark.parametrize("op", OPS)
def test_a_reduction_is_divided_where_there_are_few_ctas(op: str) -> None:
    size = (32, 4096, 9) if op == "dsd" else (4096, 32, 9) if op == "dsd_t" else (16, 16, 2048)
    with emulated_gpu(80):
        assert "parts" in assert_right(GemmProblem(*size, 16, 0.0, dtype="float16", op=op))
    with emulated_gpu(80, multiprocessors=1):
        assert "parts" not in assert_right(GemmProblem(*size, 16, 0.0, dtype="float16", op=op))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_full_and_empty_matrices(op: str, sparsity: float) -> None:
    with emulated_gpu():
        assert_right(GemmProblem(64, 64, 7, 32, sparsity, dtype="bfloat16", op=op))


@pytest.mark.parametrize(("dtype", "math"), TYPES)
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
def test_layers_from_end_to_end(passes: str, dtype: str, math: str) -> None:
    problem = LstmProblem(32, 64, 5, 3, 16, 0.6, passes, "all", dtype, math=math, seed=1)
    with emulated_gpu():
        kernel = assert_right(problem)
    assert "all steps in one cooperative launch; inputs by cuda" in kernel


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_whose_input_weight_is_dense(dtype: str) -> None:
    with emulated_gpu():
        assert "inputs by torch.mm" in assert_right(LstmProblem(24, 64, 5, 3, 16, 0.6, scope="weight_hh", dtype=dtype))


@pytest.mark.usefixtures("by_steps")
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_a_layer_too_large_for_one_launch_goes_step_by_step(scope: str) -> None:
    with emulated_gpu(multiprocessors=1):
        assert "a launch a step" in assert_right(LstmProblem(32, 64, 40, 2, 8, 0.5, scope=scope, dtype="bfloat16"))


@pytest.mark.parametrize(("resident", "how"), [(0, "a launch a step"), (1, "all steps in one cooperative launch")])
def test_a_layer_whose_ctas_the_driver_does_not_hold_together_goes_step_by_step(resident: int, how: str) -> None:
    """As where it leaves less shared memory than there is: a cooperative launch would be refused, and the cell fail."""
    with emulated_gpu() as gpu:
        few = gpu._replace(load=lambda variant: replace(emulator.load(variant), resident=resident))
        with mock.patch.object(choose, "gpu", return_value=few):
            assert how in assert_right(LstmProblem(32, 64, 5, 2, 16, 0.6, dtype="bfloat16"))


@pytest.mark.parametrize(("dtype", "math", "element"), [("float32", "ieee", "Float32"), ("float32", "tf32", "Tf32")])
def test_a_layer_multiplies_as_its_problem_says(dtype: str, math: str, element: str) -> None:
    """Whatever the process has set."""
    problem, outputs = LstmProblem(32, 64, 5, 3, 16, 0.6, dtype=dtype, math=math), []
    for process in ("ieee", "tf32"):
        with applied(settings_of("float32", process)), emulated_gpu():
            launch = BACKEND.prepare(problem)
            assert f" {element}, " in launch.kernel and f" {element} " in launch.kernel.split("; ")[1]
            outputs.append(launch.outputs())
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


@pytest.mark.parametrize("scope", ["all", "weight_hh"])
def test_bytes_of_a_layer_are_those_of_its_weights_and_of_what_its_products_are_listed_in(scope: str) -> None:
    problem = LstmProblem(32, 64, 5, 3, 16, 0.6, scope=scope, dtype="bfloat16")
    with emulated_gpu():
        launch, gpu, listed = BACKEND.prepare(problem), choose.gpu(torch.device("cpu")), 0
        for name, mask in problem.masks.items():
            weight = BSRMatrix.from_dense(problem.weights[name], mask)
            for op in OPS if name == "weight_ih" else ["sdd"]:
                listed += choose.prepare(Task(op, "Bfloat16", 16, 15), weight.index, weight.shape, gpu).index_bytes
    assert launch.index_bytes == listed
    assert launch.weight_bytes == 2 * 16 * 16 * sum(mask.nnzb for mask in problem.masks.values())


def test_reasons_where_it_declines() -> None:
    problem = GemmProblem(48, 48, 3, 16, 0.5)
    assert BACKEND.unsupported(problem) == "cuda runs on a GPU only"
    with emulated_gpu():
        assert BACKEND.unsupported(problem) is None
        assert "no float64 kernel, only float32, bfloat16, float16" in str(
            BACKEND.unsupported(replace(problem, dtype="float64"))
        )
        assert "blocks of 8, 16, 32, 64, 128, not 12" in str(BACKEND.unsupported(replace(problem, block_size=12)))
        assert "not 4" in str(BACKEND.unsupported(LstmProblem(16, 16, 2, 3, 4, 0.5)))
        with pytest.raises(UnsupportedError, match="at most"):
            choose.require_kernel(torch.float32, 128, 2**20, torch.device("cpu"))


def test_what_was_prepared_is_kept_by_pattern() -> None:
    problem = GemmProblem(64, 64, 7, 16, 0.5)
    bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
    with emulated_gpu():
        launch = cuda_products.pattern_of(bsr.index, 16)
        task = Task("dsd", "Float32", 16, 7)
        assert launch(task) is launch(task)
        assert cuda_products.pattern_of(bsr.with_data(2 * bsr.data).index, 16) is launch
        bsr.indices.add_(0)  # which are not those that it was prepared for
        assert cuda_products.pattern_of(bsr.index, 16) is launch
        for each in bsr.index:
            each.numpy().fill(2**30)
        wanted = bsr.to_dense() @ problem.x
        assert cuda_products.pattern_of(bsr.index, 16) is launch
        other = BSRMatrix.from_dense(problem.weight, problem.mask)
        for each in other.index:  # before anything was prepared
            each.numpy().fill(2**30)
        for weight in (bsr, other):
            torch.testing.assert_close(block_sparse_matmul(weight, problem.x, "cuda"), wanted, rtol=1e-4, atol=1e-4)


def test_what_no_int_can_count_is_refused_before_anything_is_prepared() -> None:
    index = BSRMatrix.from_dense(torch.zeros(16, 16), BlockMask.full(16, 16, 16)).index
    with emulated_gpu():
        gpu = choose.gpu(torch.device("cpu"))
        for n, shape in ((2**31, (16, 16)), (1, (2**31, 16)), (1, (16, 2**32))):
            with pytest.raises(ValueError, match=r"^cuda multiplies up to \d+ rows and columns"):
                choose.prepare(Task("dsd", "Float32", 16, n), index, shape, gpu)
    for op, n, divided in (("dsd", 2**16, True), ("dsd", 2**27, False), ("dsd_t", 2**27, False), ("sdd", 2**27, True)):
        assert choose.divisible(Task(op, "Float32", 16, n), (16, 64)) is divided


def test_an_index_from_elsewhere_is_compared_at_each_product() -> None:
    """Torch does not count all changes in place, and an address says nothing of what lies there."""
    problem, x = GemmProblem(64, 64, 7, 16, 0.5), torch.randn(64, 7)
    bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
    with emulated_gpu():
        foreign = type(bsr.index)(*(each.clone() for each in bsr.index))
        kept = cuda_products.pattern_of(foreign, 16)
        assert cuda_products.pattern_of(foreign, 16) is kept is not cuda_products.pattern_of(bsr.index, 16)
        other = BSRMatrix.from_dense(problem.weight, BlockMask(problem.mask.kept.roll(1, 1), 16))
        for each, changed in zip(foreign, other.index, strict=True):
            each.data.numpy()[:] = changed.numpy()  # uncounted
        assert cuda_products.pattern_of(foreign, 16) is not kept
        found = dsd(bsr.data, *foreign, x, False, "cuda")
        torch.testing.assert_close(found, other.with_data(bsr.data).to_dense() @ x, rtol=1e-4, atol=1e-4)
        foreign.rows.data.fill_(2**20)
        with pytest.raises(ValueError, match="rows is not what"):
            dsd(bsr.data, *foreign, x, False, "cuda")


def test_matrices_of_one_pattern_and_several_widths_are_not_taken_for_each_other() -> None:
    indices, indptr = (torch.tensor(part, dtype=torch.int32) for part in ([0, 1], [0, 1, 2]))
    data = torch.randn(2, 16, 16)
    with emulated_gpu():
        for cols in (32, 48, 32):
            weight, x = BSRMatrix(data, indices, indptr, (32, cols)), torch.randn(cols, 3)
            torch.testing.assert_close(
                block_sparse_matmul(weight, x, "cuda"), weight.to_dense() @ x, rtol=1e-4, atol=1e-4
            )
            transposed = dsd(data, *weight.index, torch.randn(32, 3), True, "cuda")
            assert transposed.shape == (cols, 3)
