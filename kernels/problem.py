"""Problems that backends are asked to solve, and the protocol a backend speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape
from kernels.bsr import BSRMatrix
from kernels.system.driver import missing_gpu

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPS = ("dsd", "dsd_t", "sdd")
MATHS = ("ieee", "tf32")


def require(noun: str, name: str, accepted: Sequence[str]) -> None:
    """ValueError where `name` is not accepted."""
    if name not in accepted:
        raise ValueError(f"unknown {noun} {name!r}; accepted: {', '.join(accepted)}")


def require_math(math: str, dtype: str) -> None:
    """ValueError where `math` is unknown, or other than exact for a type that has no other."""
    require("math", math, MATHS)
    if math == "tf32" and dtype != "float32":
        raise ValueError(f"tf32 is a way to multiply float32, not {dtype}")


class Problem:
    """What all problems share: settings, and operands that are made at their first use, from a normal distribution."""

    block_size: int
    sparsity: float  # share of empty blocks wanted, in [0, 1]
    dtype: str  # a key of DTYPES
    device: str  # 'cpu' or 'cuda'
    seed: int
    math: str  # of float32 on a GPU: 'ieee' multiplies exactly, 'tf32' with 10 bits of fraction

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        """The pattern of every block-sparse weight, by name."""
        raise NotImplementedError

    def draw(self) -> None:
        """Make every operand now."""
        raise NotImplementedError

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def missing_device(self) -> str | None:
        """Why the operands cannot be made, or not be multiplied as wanted, on the device here; or None.

        ResourceError where the device does not answer today.
        """
        if self.device == "cuda" and (missing := missing_gpu()):
            return missing
        return "tf32 is arithmetic of GPUs" if self.device == "cpu" and self.math == "tf32" else None

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.seed * 16 + stream)

    def _random_mask(self, stream: int, rows: int, cols: int) -> BlockMask:
        return BlockMask.random(rows, cols, self.block_size, self.sparsity, self._generator(stream))

    def _normal(self, stream: int, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator(stream), dtype=torch.float32, device="cpu") * scale
        return drawn.to(device=self.device, dtype=self.torch_dtype).contiguous()

    def _pruned(self, weight: Tensor, mask: BlockMask) -> Tensor:
        return torch.where(mask.expand(self.device), weight, weight.new_zeros(()))


@dataclass(frozen=True)
class GemmProblem(Problem):
    """A product with a block-sparse W[m, k], and what training needs of it.

    op 'dsd': Y[m, n] = W X[k, n]; 'dsd_t': Y[k, n] = W^T G[m, n] (the gradient of X); 'sdd': the kept blocks of
    G[m, n] X[k, n]^T (the gradient of W), [nnzb, b, b]. given_mask: a pattern instead of a random one (then `sparsity`
    is only a label). math: of float32, 'ieee' or 'tf32'.
    """

    m: int
    k: int
    n: int
    block_size: int
    sparsity: float
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    given_mask: BlockMask | None = field(default=None, compare=False)
    op: str = "dsd"
    math: str = "ieee"

    def __post_init__(self) -> None:
        grid_shape(self.m, self.k, self.block_size)
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        require("dtype", self.dtype, list(DTYPES))
        require("op", self.op, OPS)
        require_math(self.math, self.dtype)
        if self.given_mask is not None and self.given_mask.shape != (self.m, self.k):
            raise ValueError(f"the mask covers {self.given_mask.shape}, the weight is {(self.m, self.k)}")

    @cached_property
    def mask(self) -> BlockMask:
        return self._random_mask(0, self.m, self.k) if self.given_mask is None else self.given_mask

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        return {"weight": self.mask}

    @cached_property
    def full_weight(self) -> Tensor:
        """[m, k], no block emptied: what the dense baseline multiplies (GEMM libraries are faster on zeros)."""
        return self._normal(1, self.m, self.k)

    @cached_property
    def weight(self) -> Tensor:
        """[m, k], zero outside the kept blocks."""
        return self._pruned(self.full_weight, self.mask)

    @cached_property
    def x(self) -> Tensor:
        """[k, n]."""
        return self._normal(2, self.k, self.n)

    @cached_property
    def grad(self) -> Tensor:
        """G, the gradient of Y = W X: [m, n]."""
        return self._normal(3, self.m, self.n)

    def draw(self) -> None:
        _ = self.factors(dense=True), self.factors(dense=False)

    def factors(self, dense: bool) -> tuple[Tensor, Tensor]:
        """The two matrices that are multiplied; dense: with the full weight."""
        weight = self.full_weight if dense else self.weight
        return {"dsd": (weight, self.x), "dsd_t": (weight.T, self.grad), "sdd": (self.grad, self.x.T)}[self.op]

    def wanted(self, product: Tensor) -> Tensor:
        """What of the whole product is asked for: of sdd the kept blocks, else everything."""
        return BSRMatrix.from_dense(product, self.mask).data if self.op == "sdd" else product

    @property
    def dense_flops(self) -> int:
        """2 m k n: m k n multiplications and as many additions (blog, "Tensor Multiplication")."""
        return 2 * self.m * self.k * self.n

    @property
    def flops(self) -> int:
        """2 nnzb b^2 n: only the kept blocks are multiplied (slides, O(sparse) = n^2 - K)."""
        return 2 * self.mask.nnzb * self.block_size**2 * self.n


class Launch(Protocol):
    """A prepared problem. Calling it launches the kernel on the current stream and does nothing else."""

    kernel: str  # what ran, e.g. 'native avx512' or 'torch.mm'
    dense: bool  # whether the weights are those with no block emptied, as the baselines' are
    weight_bytes: int  # values of the stored block-sparse weights
    index_bytes: int  # their indices

    def __call__(self) -> None: ...

    def outputs(self) -> dict[str, Tensor]:
        """The results of the last launch by name, untimed: of a product 'output', of an LSTM layer y, h, c, grad_x ..."""
        ...

    def poison(self) -> None:
        """Fill the output buffers with NaN where the backend owns any, so that unwritten elements show."""
        ...


class Backend(Protocol):
    """One implementation of the problems, or of some of them."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend cannot solve `problem` here, or None.

        The answer is kept. What the machine lacks today is none: that raises, as ResourceError or in words of its own.
        """
        ...

    def prepare(self, problem: Problem) -> Launch:
        """Compile, convert, allocate, choose; untimed. Only for a problem that is supported."""
        ...
