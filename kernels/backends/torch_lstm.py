"""A baseline of LSTM layers: torch.nn.LSTM, all time steps in one call, with the weights that have no block emptied.

Torch has several of them, on a CPU by oneDNN and by its own operators, on a GPU by cuDNN and by its own fused cells;
the faster one is the baseline; on a GPU each is offered as a CUDA graph too, as our own layers are. Which of its
algorithms cuDNN runs (persistent or not) it does not tell, so no row knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.launches import LstmLaunch, Outputs, fastest, with_replays
from kernels.problem import Backend, Launch, LstmProblem


@contextmanager
def _library(device: str, enabled: bool) -> Iterator[None]:
    """oneDNN on a CPU, cuDNN on a GPU, allowed or not."""
    if device == "cuda":
        before = torch._C._get_cudnn_enabled()
        switch = torch._C._set_cudnn_enabled
    else:
        before = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags also warns about TensorFloat-32
        switch = torch._C._set_mkldnn_enabled
    switch(enabled)
    try:
        yield
    finally:
        switch(before)


def _launch(problem: LstmProblem, library: bool) -> LstmLaunch:
    layer = torch.nn.LSTM(problem.input_size, problem.hidden_size, device=problem.device, dtype=problem.torch_dtype)

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        with _library(problem.device, library):
            y, (h, c) = layer(leaves["x"], problem.state)
        return y, (h, c)

    launch = LstmLaunch(problem, "", problem.full_weights, forward, dense=True)
    for name in (*problem.full_weights, *problem.biases):
        setattr(layer, f"{name}_l0", launch.leaves[name])
    layer.flatten_parameters()  # on a GPU: else cuDNN gathers the weights in every launch
    launch.kernel = _kernel(problem, layer, library)
    return launch


def _kernel(problem: LstmProblem, layer: torch.nn.LSTM, library: bool) -> str:
    """What computes the layer. On a GPU it is asked for by a small trial: cuDNN is passed over in silence."""
    if problem.device != "cuda":
        return f"torch.nn.LSTM {'with' if library else 'without'} oneDNN"
    trial = problem.x[:1].detach().requires_grad_()
    with _library(problem.device, library), torch.enable_grad():
        y, _ = layer(trial)
    if "Cudnn" not in type(y.grad_fn).__name__:
        return "torch.nn.LSTM by fused cells, without cuDNN"
    version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"torch.nn.LSTM by cuDNN {version}, algorithm unknown"


def lstm_launch(problem: LstmProblem) -> Launch:
    """The layer by the faster library, on a GPU or its replay."""
    launches = {library: _launch(problem, library) for library in (False, True)}
    libraries = {launch.kernel: library for library, launch in launches.items()}
    ways: dict[str, Launch] = {kernel: launches[library] for kernel, library in libraries.items()}
    if problem.device == "cuda":
        ways = with_replays(ways, lambda kernel: _launch(problem, libraries[kernel]))
    return ways[fastest(ways, problem.device, captured=False)]


BACKEND = Backend(name="torch_lstm", blocks=(), layer=lstm_launch)
