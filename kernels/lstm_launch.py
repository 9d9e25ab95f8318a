"""One pass through an LSTM layer, or one there and back, as a model does it: LstmLaunch, and the one of our own kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernels.arithmetic import under
from kernels.bsr import BSRMatrix
from kernels.lstm_problem import LstmProblem
from kernels.ops import block_sparse_lstm

Outputs = tuple[Tensor, tuple[Tensor, Tensor]]  # y, (h, c)


class LstmLaunch:
    """Calls `forward` with the operands and, where the problem asks for it, takes their gradients by autograd.

    weights: by name, dense or the kept blocks [nnzb, b, b] of a BSRMatrix; they, x and the biases are the leaves.
    """

    def __init__(
        self,
        problem: LstmProblem,
        kernel: str,
        weights: Mapping[str, Tensor],
        forward: Callable[[Mapping[str, Tensor]], Outputs],
        dense: bool,
        index_bytes: int = 0,
    ) -> None:
        self.problem, self.kernel, self.forward, self.dense = problem, kernel, forward, dense
        self.backward = problem.passes == "forward_backward"
        leaves = {"x": problem.x, **weights, **problem.biases}
        self.leaves = {name: torch.nn.Parameter(leaf, self.backward) for name, leaf in leaves.items()}
        self.results: dict[str, Tensor] = {}
        self.weight_bytes = sum(weights[name].numel() * weights[name].element_size() for name in problem.masks)
        self.index_bytes = index_bytes

    def __call__(self) -> None:
        under(self.problem, self._run)()

    def _run(self) -> None:
        with torch.set_grad_enabled(self.backward):
            y, (h, c) = self.forward(self.leaves)
        self.results = {"y": y, "h": h, "c": c}
        if self.backward:
            grads = torch.autograd.grad(y, list(self.leaves.values()), self.problem.grad_y)
            self.results |= {f"grad_{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}

    def outputs(self) -> dict[str, Tensor]:
        """The results; gradients of block-sparse weights at the kept blocks only."""
        results = {name: result.detach() for name, result in self.results.items()}
        for name, mask in self.problem.masks.items():
            grad = results.get(f"grad_{name}")
            if grad is not None and grad.ndim == 2:
                results[f"grad_{name}"] = BSRMatrix.from_dense(grad, mask).data
        return results

    def poison(self) -> None:
        with torch.no_grad():
            for result in self.results.values():
                if torch._debug_has_internal_overlap(result) != 1:  # 1: certainly, as of an expanded tensor
                    result.fill_(float("nan"))  # its memory may be the next launch's
        self.results = {}


def block_sparse_weights(problem: LstmProblem) -> dict[str, BSRMatrix]:
    """Those of its weights that are block-sparse, by name."""
    return {name: BSRMatrix.from_dense(problem.weights[name], mask) for name, mask in problem.masks.items()}


def block_sparse_launch(
    problem: LstmProblem, bsr: Mapping[str, BSRMatrix], chosen: str, kernel: str, index_bytes: int
) -> LstmLaunch:
    """The layer by `block_sparse_lstm`, as models train with it. bsr: as above; chosen: its kernel; kernel: that in words."""

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        weights = {name: matrix.with_data(leaves[name]) for name, matrix in bsr.items()}
        into = weights.get("weight_ih", leaves["weight_ih"])
        biases = leaves["bias_ih"], leaves["bias_hh"]
        return block_sparse_lstm(leaves["x"], problem.state, into, weights["weight_hh"], *biases, kernel=chosen)

    values = {**problem.weights, **{name: matrix.data for name, matrix in bsr.items()}}
    return LstmLaunch(problem, kernel, values, forward, dense=False, index_bytes=index_bytes)
