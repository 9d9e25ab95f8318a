"""Rival: what plain torch can do on a GPU, gathered blocks and torch.bmm, without a kernel of one's own.

dsd and dsd_t in two ways, of which the faster is taken: each kept block by its rows of X, the products added up by
block row (not in 16 bits, whose sums would be rounded at each block); or each block row as one product, filled up with
zeros to the fullest. sdd: the two factors of each kept block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.cusparse import BlockedEll
from kernels.launches import ProductLaunch, fastest, left_factor, under
from kernels.problem import Backend, GemmProblem

Way = Callable[[], Tensor]


def by_block(bsr: BSRMatrix, x: Tensor) -> Way:
    """Y [m, n]: data[p] @ x[block column of p], added to the block row of p. x: [k, n]."""
    size, n = bsr.block_size, x.shape[1]
    blocks, rows, columns = x.reshape(-1, size, n), bsr.row_indices.long(), bsr.indices.long()
    gathered, products = (x.new_empty(bsr.nnzb, size, n) for _ in range(2))
    result = x.new_empty(bsr.grid[0], size, n)

    def launch() -> Tensor:
        torch.index_select(blocks, 0, columns, out=gathered)
        torch.bmm(bsr.data, gathered, out=products)
        result.zero_().index_add_(0, rows, products)
        return result.view(bsr.shape[0], n)

    return launch


def by_row(bsr: BSRMatrix, x: Tensor) -> Way:
    """The same as one product a block row: [b, width b] @ [width b, n], width being the blocks of the fullest."""
    size, n = bsr.block_size, x.shape[1]
    ell = BlockedEll.from_bsr(bsr)
    grid_rows, width = ell.indices.shape
    left, blocks = ell.data.view(grid_rows, size, width * size), x.reshape(-1, size, n)
    places = ell.indices.long().clamp_(min=0).reshape(-1)  # of padding any block: it is multiplied by zeros
    gathered = x.new_empty(grid_rows * width, size, n)
    result = x.new_empty(grid_rows, size, n)

    def launch() -> Tensor:
        torch.index_select(blocks, 0, places, out=gathered)
        torch.bmm(left, gathered.view(grid_rows, width * size, n), out=result)
        return result.view(bsr.shape[0], n)

    return launch


def sampled(bsr: BSRMatrix, left: Tensor, right: Tensor) -> Way:
    """The kept blocks of left [m, n] @ right [n, k]: [nnzb, b, b]."""
    size, n = bsr.block_size, left.shape[1]
    grad, x = left.reshape(-1, size, n), right.T.reshape(-1, size, n)
    rows, columns = bsr.row_indices.long(), bsr.indices.long()
    ours, theirs = (left.new_empty(bsr.nnzb, size, n) for _ in range(2))
    result = torch.empty_like(bsr.data)

    def launch() -> Tensor:
        torch.index_select(grad, 0, rows, out=ours)
        torch.index_select(x, 0, columns, out=theirs)
        return torch.bmm(ours, theirs.mT, out=result)

    return launch


class GatherLaunch(ProductLaunch):
    def __init__(self, problem: GemmProblem) -> None:
        transposed = ""
        if problem.op == "sdd":
            bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
            found = {"gather and torch.bmm of each kept block": sampled(bsr, *problem.factors(dense=False))}
        else:
            bsr, transposed = left_factor(problem)
            x = problem.factors(dense=False)[1].contiguous()
            found = {"gather and torch.bmm of each block row, filled up": by_row(bsr, x)}
            if problem.torch_dtype.itemsize > 2:
                found["gather and torch.bmm of each kept block, added up"] = by_block(bsr, x)
        ways = {name: under(problem, way) for name, way in found.items()}
        chosen = fastest(ways, problem.device)
        self.kernel, self.run = f"{chosen}{transposed}", ways[chosen]
        self.result = self.run()
        self.weight_bytes, self.index_bytes = bsr.values_nbytes, 2 * 8 * bsr.nnzb

    def __call__(self) -> None:
        self.result = self.run()


BACKEND = Backend(name="gather_bmm", product=GatherLaunch)
