"""The contract of every registered backend: solve each problem within the error bound, or say why not."""

import pytest
import torch

from kernels.blockmask import BlockMask
from kernels.check import check
from kernels.problem import DTYPES, GemmProblem
from kernels.registry import BACKENDS

EXPECTED = ["dense", "native", "reference", "scipy_bsr", "torch_bsr"]

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


def assert_solves_or_declines(name: str, problem: GemmProblem) -> None:
    backend = BACKENDS[name]
    reason = backend.unsupported(problem)
    if reason is not None:
        assert reason and "\n" not in reason
        pytest.skip(reason)
    launch = backend.prepare(problem)
    ratio, wrong = check(launch, launch.weight, problem.x)
    assert wrong is None, wrong
    assert 0.0 <= ratio <= 1.0
    assert launch.kernel and launch.weight_bytes >= 0 and launch.index_bytes >= 0
    first = launch.output().clone()
    launch()  # a second launch must not add to the first
    assert torch.equal(launch.output(), first)


def test_every_expected_backend_is_registered() -> None:
    assert [name for name in EXPECTED if name not in BACKENDS.names()] == []


def test_every_registered_backend_is_expected() -> None:
    assert [name for name in BACKENDS if name not in EXPECTED] == []


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_output_is_within_the_bound(name: str, shape: tuple[int, int, int, int, float], dtype: str) -> None:
    m, k, n, block_size, sparsity = shape
    assert_solves_or_declines(name, GemmProblem(m, k, n, block_size, sparsity, dtype=dtype, seed=3))


@pytest.mark.parametrize("pattern", [empty_rows_and_columns, one_block])
@pytest.mark.parametrize("name", BACKENDS.names())
def test_irregular_patterns(name: str, pattern: object) -> None:
    assert callable(pattern)
    assert_solves_or_declines(name, GemmProblem(64, 64, 19, 16, 0.5, given_mask=pattern(64, 64, 16)))


@pytest.mark.parametrize("name", ["dense", "reference", "native", "scipy_bsr", "torch_bsr"])
def test_common_types_are_supported_on_a_cpu(name: str) -> None:
    """No backend passes this file by declining everything (native may where there is no compiler)."""
    for dtype in ("float32", "float64"):
        reason = BACKENDS[name].unsupported(GemmProblem(16, 16, 2, 4, 0.5, dtype=dtype))
        assert reason is None or "compiler" in reason or "MKL" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", BACKENDS.names())
def test_cuda_is_declined_without_a_device(name: str) -> None:
    problem = GemmProblem(16, 16, 2, 4, 0.5, device="cuda")
    assert problem.missing_device() == "no CUDA device"
    assert BACKENDS[name].unsupported(problem)


def test_the_baseline_multiplies_normal_data_and_the_others_the_pruned_weight() -> None:
    problem = GemmProblem(32, 32, 4, 8, 0.5)
    assert int((BACKENDS["dense"].prepare(problem).weight == 0).sum()) == 0
    for name in ("reference", "scipy_bsr", "torch_bsr"):
        assert torch.equal(BACKENDS[name].prepare(problem).weight, problem.weight)


@pytest.mark.parametrize("name", ["reference", "scipy_bsr", "torch_bsr"])
def test_stored_bytes(name: str) -> None:
    problem = GemmProblem(64, 64, 4, 16, 0.5)
    launch = BACKENDS[name].prepare(problem)
    item = 8 if name == "reference" else 4
    assert launch.weight_bytes == problem.mask.nnzb * 16 * 16 * item
    assert launch.index_bytes == 4 * (problem.mask.nnzb + 4 + 1)
