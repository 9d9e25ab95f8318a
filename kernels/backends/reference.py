"""The oracle: obvious loops over the kept blocks, or over the time steps of an LSTM layer, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.lstm_problem import LstmProblem
from kernels.problem import GemmProblem, Launch, Problem


def lstm_reference(problem: LstmProblem, dense: bool) -> dict[str, Tensor]:
    """The outputs of a layer, and its gradients where they are asked for, by name; dense: of the full weights."""
    weights = problem.full_weights if dense else problem.weights
    leaves = {"x": problem.x, **weights, **problem.biases}
    leaves = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    h, c = (state[0].double() for state in problem.state)
    outputs = []
    for x in leaves["x"]:
        from_input = x @ leaves["weight_ih"].T + leaves["bias_ih"]
        i, f, g, o = (from_input + h @ leaves["weight_hh"].T + leaves["bias_hh"]).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    y = torch.stack(outputs)
    results = {"y": y.detach(), "h": h.detach()[None], "c": c.detach()[None]}
    if problem.passes == "forward_backward":
        grads = torch.autograd.grad(y, list(leaves.values()), problem.grad_y.double())
        for name, grad in zip(leaves, grads, strict=True):
            mask = problem.masks.get(name)
            results[f"grad_{name}"] = BSRMatrix.from_dense(grad, mask).data if mask else grad
    return results


def product_by_blocks(problem: GemmProblem) -> Tensor:
    """The product of a problem, block after block, in float64."""
    bsr = BSRMatrix.from_dense(problem.weight.double(), problem.mask)
    size, rows, cols = bsr.block_size, bsr.row_indices.tolist(), bsr.indices.tolist()
    x, grad = (each.double().view(-1, size, problem.n) for each in (problem.x, problem.grad))
    if problem.op == "sdd":
        return torch.stack([grad[row] @ x[col].T for row, col in zip(rows, cols, strict=True)]) if rows else bsr.data
    result = torch.zeros_like(x if problem.op == "dsd_t" else grad)
    for block, row, col in zip(bsr.data, rows, cols, strict=True):
        if problem.op == "dsd":
            result[row] += block @ x[col]
        else:
            result[col] += block.T @ grad[row]
    return result.view(-1, problem.n)


class ReferenceLaunch:
    dense = False

    def __init__(self, problem: Problem) -> None:
        self.problem, self.results = problem, dict[str, Tensor]()
        self.kernel = f"loops over {'blocks' if isinstance(problem, GemmProblem) else 'time steps'} in float64"
        self.weight_bytes = sum(8 * mask.nnzb * problem.block_size**2 for mask in problem.masks.values())
        self.index_bytes = sum(4 * (mask.nnzb + mask.grid[0] + 1) for mask in problem.masks.values())

    def __call__(self) -> None:
        if isinstance(self.problem, LstmProblem):
            self.results = lstm_reference(self.problem, dense=False)
        else:
            assert isinstance(self.problem, GemmProblem)
            self.results = {"output": product_by_blocks(self.problem)}

    def outputs(self) -> dict[str, Tensor]:
        return {name: result.to(self.problem.torch_dtype) for name, result in self.results.items()}

    def poison(self) -> None:
        self.results = {}


class ReferenceBackend:
    """Solves everything, slowly."""

    def unsupported(self, problem: Problem) -> str | None:
        return problem.missing_device()

    def prepare(self, problem: Problem) -> Launch:
        return ReferenceLaunch(problem)


BACKEND = ReferenceBackend()
