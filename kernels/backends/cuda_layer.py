"""LSTM layers by our CUDA kernels as launches: products over all steps at once around the kernel that goes step by step.

One cooperative launch over all steps where all of its CTAs fit on the GPU at once, else a launch a step, replayed as a CUDA graph.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kernels.backends import cuda_lstm
from kernels.backends.arithmetic import under
from kernels.backends.captured import Replayed
from kernels.backends.cuda_kernel import arch_of
from kernels.backends.cuda_lstm import Lstm, Operands, Products
from kernels.backends.cuda_lstm_operator import device_of
from kernels.backends.cuda_lstm_pass import Sizes
from kernels.backends.cuda_rungs import Prepared, Task, aligned, element_of, the_gpu
from kernels.backends.cuda_rungs import prepare as prepare_product
from kernels.bsr import BSRMatrix
from kernels.lstm_problem import LstmProblem
from kernels.problem import Launch


def refusal(problem: LstmProblem, together: bool) -> str | None:
    """Why the layer cannot be computed with all CTAs on the GPU `together`, or step by step; None where it can."""
    gpu = the_gpu(torch.device(problem.device))
    return cuda_lstm.unsupported(problem, device_of(gpu), together, problem.math == "tf32")


def unsupported(problem: LstmProblem) -> str | None:
    """Why our kernels cannot compute a layer whose dtype and blocks they know, or None."""
    return refusal(problem, together=True) and refusal(problem, together=False)


def dense_products(problem: LstmProblem, sample: Prepared) -> Products:
    """Those of a dense input weight, by torch: [4 hidden, in]."""

    def weigh(weight: Tensor, x: Tensor, out: Tensor) -> None:
        under(problem, partial(torch.mm, x, weight.T, out=out))()

    def weigh_back(weight: Tensor, grads: Tensor, out: Tensor) -> None:
        under(problem, partial(torch.mm, grads, weight, out=out))()

    def sample_input(grads: Tensor, x: Tensor, out: Tensor) -> None:
        under(problem, partial(torch.mm, grads.T, x, out=out))()

    return Products(weigh, weigh_back, sample_input, sample.run)


class LayerLaunch:
    """One pass through the layer, or one there and back."""

    dense = False

    def __init__(self, problem: LstmProblem, together: bool) -> None:
        gpu = the_gpu(torch.device(problem.device))
        bsr = {name: BSRMatrix.from_dense(problem.weights[name], mask) for name, mask in problem.masks.items()}
        self.problem, self.backward = problem, problem.passes == "forward_backward"
        tf32, element = problem.math == "tf32", element_of(problem.torch_dtype, problem.math == "tf32")
        tokens = problem.steps * problem.batch_size

        def prepared(op: str, name: str) -> Prepared:
            task = Task(op, element, problem.block_size, tokens)
            return prepare_product(task, bsr[name].index, bsr[name].shape, gpu)

        sample = prepared("sdd", "weight_hh")
        if "weight_ih" in bsr:
            into = [prepared(op, "weight_ih") for op in ("dsd", "dsd_t", "sdd")]
            products = Products(into[0].run, into[1].run, into[2].run, sample.run)
            input_kernel, self.index_bytes = into[0].kernel, sum(each.index_bytes for each in into)
        else:
            products = dense_products(problem, sample)
            input_kernel, self.index_bytes = "torch.mm", 0
        sizes = Sizes(problem.batch_size, problem.hidden_size, problem.block_size)
        index = bsr["weight_hh"].index
        self.layer = Lstm(
            sizes, problem.torch_dtype, index, products, self.backward, together, tf32, load=gpu.load
        )  # fmt: skip
        values = {name: bsr[name].data if name in bsr else weight for name, weight in problem.weights.items()}
        given = (problem.x, values["weight_ih"], values["weight_hh"], *problem.biases.values())
        self.operands = Operands(*map(aligned, given), *(aligned(state[0]) for state in problem.state))
        self.weight_bytes = sum(each.values_nbytes for each in bsr.values())
        self.index_bytes += sample.index_bytes
        how = "all steps in one cooperative launch" if together else "a launch a step"
        self.kernel = f"cuda lstm {arch_of(gpu.capability)} {element}, {how}; inputs by {input_kernel}"
        self.results: dict[str, Tensor] = {}
        self()

    def __call__(self) -> None:
        y, c = self.layer.forward(self.operands)
        self.results = {"y": y, "h": y[-1:], "c": c[None]}
        if self.backward:
            grads = self.layer.backward(self.problem.grad_y)
            self.results |= {f"grad_{name}": getattr(grads, name) for name in ("x", "weight_ih", "weight_hh")}
            self.results |= {f"grad_{name}": grads.bias for name in self.problem.biases}

    def outputs(self) -> dict[str, Tensor]:
        return self.results

    def poison(self) -> None:
        for result in self.results.values():
            result.fill_(float("nan"))  # its memory may be the next launch's
        self.results = {}


def prepare(problem: LstmProblem) -> Launch:
    """The launch of a supported layer."""
    if refusal(problem, together=True) is None:
        return LayerLaunch(problem, together=True)
    launch = LayerLaunch(problem, together=False)
    return Replayed(launch, kernel=f"{launch.kernel}, replayed as a CUDA graph") if problem.device == "cuda" else launch
