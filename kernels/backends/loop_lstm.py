"""A baseline of LSTM layers: our step loop with dense products by torch, the weights with no block emptied.

What a sparse layer is to beat where no fused layer exists: the inputs are projected for all steps at once, then every
step is one product and the gates. On a CPU the products are MKL's or oneDNN's (`kernels.backends.dense` says why), on a
GPU the loop is captured as a CUDA graph too, and the faster of both is the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.launches import LstmLaunch, Outputs, fastest, with_replays
from kernels.problem import Backend, Launch, LstmProblem
from kernels.tensors.dense import has_onednn, recorded_linear

KERNEL = "step loop of torch.addmm"
BY_ONEDNN = "step loop of oneDNN's linear"


def loop_launch(problem: LstmProblem, onednn: bool = False) -> LstmLaunch:
    """The loop, launched step by step."""
    linear: Callable[..., Tensor] = recorded_linear if onednn else F.linear

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        projected = linear(leaves["x"], leaves["weight_ih"], leaves["bias_ih"] + leaves["bias_hh"])
        (h, c), recurrent, outputs = (state[0] for state in problem.state), leaves["weight_hh"], []
        for step in projected:
            gates = step + linear(h, recurrent) if onednn else torch.addmm(step, h, recurrent.T)
            i, f, g, o = gates.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])

    return LstmLaunch(problem, BY_ONEDNN if onednn else KERNEL, problem.full_weights, forward, dense=True)


def lstm_launch(problem: LstmProblem) -> Launch:
    """The loop by the faster library, on a GPU or its replay."""
    launch = loop_launch(problem)
    ways: dict[str, Launch] = {KERNEL: launch}
    if problem.device != "cuda":
        if has_onednn(problem.x):
            ways[BY_ONEDNN] = loop_launch(problem, onednn=True)
        return ways[fastest(ways, problem.device)]
    ways = with_replays(ways, lambda _: loop_launch(problem))
    return ways[fastest(ways, problem.device, captured=False)]


BACKEND = Backend(name="loop_lstm", blocks=(), layer=lstm_launch)
