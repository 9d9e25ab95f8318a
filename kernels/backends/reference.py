"""The oracle: obvious loops over the kept blocks, or over the time steps of an LSTM layer, in float64."""

from __future__ import annotations

from torch import Tensor

from kernels.check import lstm_reference, product_by_blocks
from kernels.problem import Backend, LstmProblem, Problem


class ReferenceLaunch:
    dense = False

    def __init__(self, problem: Problem) -> None:
        self.problem, self.results = problem, dict[str, Tensor]()
        self.kernel = f"loops over {'time steps' if isinstance(problem, LstmProblem) else 'blocks'} in float64"
        self.weight_bytes = sum(8 * mask.nnzb * problem.block_size**2 for mask in problem.masks.values())
        self.index_bytes = sum(4 * (mask.nnzb + mask.grid[0] + 1) for mask in problem.masks.values())

    def __call__(self) -> None:
        if isinstance(self.problem, LstmProblem):
            self.results = lstm_reference(self.problem, dense=False)
        else:
            self.results = {"output": product_by_blocks(self.problem)}

    def outputs(self) -> dict[str, Tensor]:
        return {name: result.to(self.problem.torch_dtype) for name, result in self.results.items()}

    def poison(self) -> None:
        self.results = {}


BACKEND = Backend(name="reference", product=ReferenceLaunch, layer=ReferenceLaunch)
