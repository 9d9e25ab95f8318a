"""A baseline of LSTM layers: our step loop with dense products by torch, the weights with no block emptied.

What a sparse layer is to beat where no fused layer exists: the inputs are projected for all steps at once, then every
step is one product and the gates. On a GPU the loop is captured as a CUDA graph too, and the faster of both is the
baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.launches import LstmLaunch, Outputs, Replayed, fastest
from kernels.problem import Backend, Launch, LstmProblem

KERNEL = "step loop of torch.addmm"


def loop_launch(problem: LstmProblem) -> LstmLaunch:
    """The loop, launched step by step."""

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        projected = F.linear(leaves["x"], leaves["weight_ih"], leaves["bias_ih"] + leaves["bias_hh"])
        (h, c), recurrent, outputs = (state[0] for state in problem.state), leaves["weight_hh"].T, []
        for step in projected:
            i, f, g, o = torch.addmm(step, h, recurrent).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])

    return LstmLaunch(problem, KERNEL, problem.full_weights, forward, dense=True)


def lstm_launch(problem: LstmProblem) -> Launch:
    """The loop, on a GPU or its replay."""
    launch = loop_launch(problem)
    if problem.device != "cuda":
        return launch
    ways: dict[str, Launch] = {KERNEL: launch}
    replayed = Replayed(loop_launch(problem), kernel=f"{KERNEL}, replayed as a CUDA graph")
    ways[replayed.kernel] = replayed
    return ways[fastest(ways, problem.device)]


BACKEND = Backend(name="loop_lstm", layer=lstm_launch)
