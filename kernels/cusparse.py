"""cuSPARSE's generic product, called through ctypes: cusparseSpMM with a matrix stored as BSR or as Blocked-ELL.

CuPy wraps cusparseSpMM, but can describe neither format. Torch uses neither: its own BSR product is Triton's, or a
batched dense one (float64 alone goes to the older bsrmm). The declarations below are those of cusparse.h of CUDA 12 and
13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.launches import ProductLaunch, fastest
from kernels.problem import Backend, GemmProblem, Launch
from kernels.system.resources import ResourceError, UnsupportedError, is_lack

LAYOUTS = ("rows", "blocks")


@dataclass(frozen=True, eq=False)
class BlockedEll:
    """Blocked-ELL as cuSPARSE has it.

    data: [rows, cols], where cols = width * block_size and width is the number of kept blocks in the fullest block row
    (1 where every block is empty); what is padding is zero. Layout 'rows': one matrix in row order; 'blocks': block
    after block, each in row order. indices: int32[grid_rows, width], the block column of each block, -1 for padding.
    """

    data: Tensor
    indices: Tensor
    shape: tuple[int, int]
    block_size: int

    @classmethod
    def from_bsr(cls, matrix: BSRMatrix, layout: str = "rows") -> BlockedEll:
        """The blocks of `matrix`, copied, in each block row ascending and then padded."""
        size, grid_rows = matrix.block_size, matrix.grid[0]
        counts = matrix.indptr.diff().long()
        width = max(int(counts.max()), 1)
        rows = matrix.row_indices.long()
        places = torch.arange(matrix.nnzb, device=rows.device) - matrix.indptr[:-1].long()[rows]
        indices = torch.full((grid_rows, width), -1, dtype=torch.int32, device=rows.device)
        indices[rows, places] = matrix.indices
        blocks = matrix.data.new_zeros(grid_rows, width, size, size)
        blocks[rows, places] = matrix.data
        lying = blocks.permute(0, 2, 1, 3) if layout == "rows" else blocks
        return cls(lying.reshape(grid_rows * size, width * size).contiguous(), indices, matrix.shape, size)

    @property
    def cols(self) -> int:
        """Columns of `data`: ellCols in cuSPARSE's words."""
        return self.data.shape[1]

    @property
    def values_nbytes(self) -> int:
        """Bytes of the stored values, padding included."""
        return self.data.numel() * self.data.element_size()

    @property
    def index_nbytes(self) -> int:
        return 4 * self.indices.numel()

    def to_dense(self) -> Tensor:
        """[rows, columns]; of layout 'rows'."""
        size, (grid_rows, width) = self.block_size, self.indices.shape
        dense = self.data.new_zeros(grid_rows, self.shape[1] // size, size, size)
        blocks = self.data.view(grid_rows, size, width, size).permute(0, 2, 1, 3)
        rows, places = (self.indices >= 0).nonzero(as_tuple=True)
        dense[rows, self.indices[rows, places].long()] = blocks[rows, places]
        return dense.permute(0, 2, 1, 3).reshape(self.shape)


LIBRARIES = ("libcusparse.so.12", "libcusparse.so.13", "libcusparse.so", "cusparse64_12.dll")
VALUE_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType
FLOAT32, FLOAT64, INDEX_32, BASE_ZERO, AS_IT_IS = 0, 1, 2, 0, 0
ORDERS = {"columns": 1, "rows": 2}  # cusparseOrder_t
ALGORITHMS = {"BSR": 14, "Blocked-ELL": 13}  # CUSPARSE_SPMM_BSR_ALG1, CUSPARSE_SPMM_BLOCKED_ELL_ALG1

_SPMM = [c_void_p, c_int, c_int, *[c_void_p] * 5, c_int, c_int]  # handle, turned?, alpha, A, B, beta, C, types
DECLARATIONS: dict[str, list[type]] = {
    "cusparseCreate": [POINTER(c_void_p)],
    "cusparseSetStream": [c_void_p, c_void_p],
    "cusparseGetVersion": [c_void_p, POINTER(c_int)],
    "cusparseCreateBsr": [POINTER(c_void_p), *[c_int64] * 5, *[c_void_p] * 3, *[c_int] * 5],
    "cusparseCreateBlockedEll": [POINTER(c_void_p), *[c_int64] * 4, *[c_void_p] * 2, *[c_int] * 3],
    "cusparseCreateDnMat": [POINTER(c_void_p), *[c_int64] * 3, c_void_p, c_int, c_int],
    "cusparseDestroySpMat": [c_void_p],
    "cusparseDestroyDnMat": [c_void_p],
    "cusparseSpMM_bufferSize": [*_SPMM, POINTER(c_size_t)],
    "cusparseSpMM": [*_SPMM, c_void_p],
}


class CusparseError(RuntimeError):
    """cuSPARSE refused, in its own words: it has no such product, or none on this GPU."""


class CusparseFailedError(RuntimeError):
    """cuSPARSE failed, in its own words: not for what it was asked, but for memory, or a GPU in disorder."""


REFUSALS = (3, 4, 8, 10)  # CUSPARSE_STATUS_INVALID_VALUE, _ARCH_MISMATCH, _MATRIX_TYPE_NOT_SUPPORTED, _NOT_SUPPORTED


class Cusparse:
    """The functions of DECLARATIONS and one handle, for one process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for name, types in DECLARATIONS.items():
            getattr(library, name).argtypes = types
        library.cusparseGetErrorString.argtypes, library.cusparseGetErrorString.restype = [c_int], c_char_p
        self.handle, version = c_void_p(), c_int()
        self.call("cusparseCreate", byref(self.handle))
        self.call("cusparseGetVersion", self.handle, byref(version))
        self.version = version.value

    def call(self, name: str, *arguments: object) -> None:
        """CusparseError where the status says that it cannot, CusparseFailedError where it is another than 0."""
        status = getattr(self.library, name)(*arguments)
        if status:
            words = self.library.cusparseGetErrorString(status) or b"unknown status"
            kind = CusparseError if status in REFUSALS else CusparseFailedError
            raise kind(f"{name}: {words.decode(errors='replace')}")


@cache
def load() -> Cusparse:
    """The library that torch brings; UnsupportedError where there is none."""
    for name in LIBRARIES:
        try:
            return Cusparse(ctypes.CDLL(name))
        except (OSError, AttributeError, CusparseError) as error:
            if is_lack(error):
                raise ResourceError(f"cuSPARSE cannot be loaded today: {error}") from error
            reason = f"cuSPARSE cannot be used: {str(error).splitlines()[0]}"
    raise UnsupportedError(reason)


Sparse = BSRMatrix | BlockedEll


def describe(library: Cusparse, matrix: Sparse) -> c_void_p:
    """A cusparseSpMatDescr_t of `matrix`, which must outlive it."""
    descriptor, kind = c_void_p(), VALUE_TYPES[matrix.data.dtype]
    if isinstance(matrix, BSRMatrix):
        pointers = (matrix.indptr.data_ptr(), matrix.indices.data_ptr(), matrix.data.data_ptr())
        sizes = (*matrix.grid, matrix.nnzb, matrix.block_size, matrix.block_size)
        types = (INDEX_32, INDEX_32, BASE_ZERO, kind, ORDERS["rows"])
        library.call("cusparseCreateBsr", byref(descriptor), *sizes, *pointers, *types)
    else:
        pointers_ell = (matrix.indices.data_ptr(), matrix.data.data_ptr())
        sizes_ell = (*matrix.shape, matrix.block_size, matrix.cols)
        library.call(
            "cusparseCreateBlockedEll", byref(descriptor), *sizes_ell, *pointers_ell, INDEX_32, BASE_ZERO, kind
        )
    return descriptor


def describe_dense(library: Cusparse, matrix: Tensor) -> c_void_p:
    """A cusparseDnMatDescr_t of a matrix that lies in row order or in column order."""
    descriptor, order = c_void_p(), "rows" if matrix.stride(1) == 1 and matrix.is_contiguous() else "columns"
    leading = matrix.shape[1] if order == "rows" else matrix.shape[0]
    sizes = (*matrix.shape, leading, matrix.data_ptr(), VALUE_TYPES[matrix.dtype], ORDERS[order])
    library.call("cusparseCreateDnMat", byref(descriptor), *sizes)
    return descriptor


class Spmm:
    """result = matrix @ x, on torch's current stream. A call launches cusparseSpMM; CusparseError where it refuses."""

    def __init__(self, matrix: Sparse, x: Tensor, result: Tensor) -> None:
        library = load()
        self.library, self.matrix, self.x, self.result = library, matrix, x, result
        self.described = [describe(library, matrix), describe_dense(library, x), describe_dense(library, result)]
        number = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
        self.one, self.zero = number(1.0), number(0.0)
        sparse, dense, out = self.described
        compute = FLOAT64 if x.dtype == torch.float64 else FLOAT32
        algorithm = ALGORITHMS["BSR" if isinstance(matrix, BSRMatrix) else "Blocked-ELL"]
        scalars = (ctypes.addressof(self.one), ctypes.addressof(self.zero))
        operands = (scalars[0], sparse, dense, scalars[1], out)
        self.arguments = (library.handle, AS_IT_IS, AS_IT_IS, *operands, compute, algorithm)
        size = c_size_t()
        library.call("cusparseSpMM_bufferSize", *self.arguments, byref(size))
        self.buffer = torch.empty(max(size.value, 1), dtype=torch.uint8, device=x.device)

    def __call__(self) -> Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        self.library.call("cusparseSetStream", self.library.handle, stream)
        self.library.call("cusparseSpMM", *self.arguments, self.buffer.data_ptr())
        return self.result

    def __del__(self) -> None:
        for descriptor, kind in zip(getattr(self, "described", []), ("Sp", "Dn", "Dn"), strict=True):
            getattr(self.library.library, f"cusparseDestroy{kind}Mat")(descriptor)


def in_order(matrix: Tensor, order: str) -> Tensor:
    """The same matrix, lying row by row or column by column."""
    return matrix.contiguous() if order == "rows" else matrix.T.contiguous().T


def products(matrix: Sparse, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every product that cuSPARSE does not refuse, by name: the memory orders of x and of the result."""
    found: dict[str, Callable[[], Tensor]] = {}
    problems: list[RuntimeError] = []
    if not matrix.data.numel():
        return {"no block to multiply": x.new_empty(matrix.shape[0], x.shape[1]).zero_}
    for order, out in product(ORDERS, repeat=2):
        result = in_order(x.new_empty(matrix.shape[0], x.shape[1]), out)
        try:
            ready = Spmm(matrix, in_order(x, order), result)
            ready()
        except (CusparseError, CusparseFailedError) as error:
            problems.append(error)
            continue
        found[f"x by {order} -> {out}"] = ready
    if not found:
        raise next((each for each in problems if isinstance(each, CusparseFailedError)), problems[0])
    return found


class SpmmLaunch(ProductLaunch):
    """The fastest of `products`. kernel: the routine, the library's version and the memory orders."""

    def __init__(self, problem: GemmProblem, matrix: Sparse, what: str) -> None:
        library, ways = load(), products(matrix, problem.factors(dense=False)[1])
        chosen = fastest(ways, problem.device)
        self.kernel = f"cusparseSpMM {library.version}, {what}, {chosen}"
        self.run = ways[chosen]
        self.result = self.run()
        self.weight_bytes, self.index_bytes = matrix.values_nbytes, matrix.index_nbytes

    def __call__(self) -> None:
        self.result = self.run()


def backend(name: str, product: Callable[[GemmProblem], Launch], trial: Callable[[str, int], object]) -> Backend:
    """dsd and dsd_t on a GPU, where `trial` finds that cuSPARSE takes the dtype and the block size."""

    def needs(problem: GemmProblem) -> None:
        load()
        trial(problem.dtype, problem.block_size)

    return Backend(
        name=name,
        product=product,
        needs=needs,
        no_sdd="cusparseSpMM has no product sampled at blocks",
        devices=("cuda",),
        elsewhere="cuSPARSE runs on a GPU only",
    )
