"""A baseline of LSTM layers: torch.nn.LSTM, all time steps in one call, with the weights that have no block emptied.

On a CPU torch has two of them, by oneDNN and by its own operators; the faster one is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.backends.fastest import fastest
from kernels.backends.lstm_launch import LstmLaunch, Outputs
from kernels.lstm_problem import LstmProblem
from kernels.problem import Launch, Problem


def _launch(problem: LstmProblem, onednn: bool) -> LstmLaunch:
    layer = torch.nn.LSTM(problem.input_size, problem.hidden_size, device=problem.device, dtype=problem.torch_dtype)

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        before = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags also warns about TensorFloat-32
        torch._C._set_mkldnn_enabled(onednn)
        try:
            y, (h, c) = layer(leaves["x"], problem.state)
        finally:
            torch._C._set_mkldnn_enabled(before)
        return y, (h, c)

    kernel = f"torch.nn.LSTM {'with' if onednn else 'without'} oneDNN"
    launch = LstmLaunch(problem, kernel, problem.full_weights, forward, dense=True)
    for name in (*problem.full_weights, *problem.biases):
        setattr(layer, f"{name}_l0", launch.leaves[name])
    return launch


class TorchLstmBackend:
    """float32 and float64, on cpu and cuda."""

    def unsupported(self, problem: Problem) -> str | None:
        if not isinstance(problem, LstmProblem):
            return "torch_lstm computes LSTM layers only"
        return problem.missing_device()

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, LstmProblem)
        launches = {launch.kernel: launch for launch in (_launch(problem, onednn) for onednn in (True, False))}
        return launches[fastest(launches, problem.device)]


BACKEND = TorchLstmBackend()
