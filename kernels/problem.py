"""Problems that backends are asked to solve, and the protocol a backend speaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class GemmProblem:
    """dsd: Y[m, n] = W[m, k] @ X[k, n] with a block-sparse W; every operand is drawn from a normal distribution.

    sparsity: share of empty blocks wanted, in [0, 1]. dtype: a key of `DTYPES`. device: 'cpu' or 'cuda'.
    mask: a given pattern instead of a random one (then `sparsity` is only a label).
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

    def __post_init__(self) -> None:
        grid_shape(self.m, self.k, self.block_size)
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; accepted: {', '.join(DTYPES)}")
        if self.given_mask is not None and self.given_mask.shape != (self.m, self.k):
            raise ValueError(f"the mask covers {self.given_mask.shape}, the weight is {(self.m, self.k)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def missing_device(self) -> str | None:
        """Why the operands cannot be made here, or None."""
        return "no CUDA device" if self.device == "cuda" and not torch.cuda.is_available() else None

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 16 + stream)

    @cached_property
    def mask(self) -> BlockMask:
        if self.given_mask is not None:
            return self.given_mask
        return BlockMask.random(self.m, self.k, self.block_size, self.sparsity, self._generator(0))

    @cached_property
    def full_weight(self) -> Tensor:
        """[m, k], no block emptied: what the dense baseline multiplies (GEMM libraries are faster on zeros)."""
        return self._normal(1, self.m, self.k)

    @cached_property
    def weight(self) -> Tensor:
        """[m, k], zero outside the kept blocks."""
        return torch.where(self.mask.expand(self.device), self.full_weight, self.full_weight.new_zeros(()))

    @cached_property
    def x(self) -> Tensor:
        """[k, n]."""
        return self._normal(2, self.k, self.n)

    def _normal(self, stream: int, rows: int, cols: int) -> Tensor:
        drawn = torch.randn(rows, cols, generator=self._generator(stream), dtype=torch.float32)
        return drawn.to(device=self.device, dtype=self.torch_dtype).contiguous()

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

    kernel: str  # what ran, e.g. 'native avx512' or 'torch.matmul'
    weight: Tensor  # [m, k], what is multiplied: `full_weight` for the dense baseline, `weight` for the others
    weight_bytes: int  # values of the stored weight
    index_bytes: int  # its indices

    def __call__(self) -> None: ...

    def output(self) -> Tensor:
        """The result of the last launch, untimed. [m, n]."""
        ...

    def poison(self) -> None:
        """Fill the output buffer with NaN where the backend owns one, so that unwritten elements show."""
        ...


class Backend(Protocol):
    """One implementation of the problems."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        """Why this backend cannot solve `problem` here, or None. Never raises."""
        ...

    def prepare(self, problem: GemmProblem) -> Launch:
        """Compile, convert and allocate; untimed."""
        ...
