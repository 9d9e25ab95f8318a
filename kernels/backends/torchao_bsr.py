"""Rival: torchao's copy of torch's Triton product with a block-sparse matrix, tuned as torch's own is.

Its defaults are others (four pipeline stages), which tuning finds; what it can do is what torch's does.
"""

from __future__ import annotations

import importlib
import importlib.util

from kernels.backends.triton_bsr import TritonLaunch, require_shape
from kernels.problem import Backend, GemmProblem
from kernels.system.resources import UnsupportedError

MODULE = "torchao.kernel.bsr_triton_ops"


def _launch(problem: GemmProblem) -> TritonLaunch:
    torchao = importlib.import_module("torchao")
    return TritonLaunch(problem, importlib.import_module(MODULE), f"torchao {torchao.__version__}")


def _require(problem: GemmProblem) -> None:
    for package in ("triton", "torchao"):
        if importlib.util.find_spec(package) is None:
            raise UnsupportedError(f"the package {package} is missing; the extra rivals has it")
    if importlib.util.find_spec(MODULE) is None:
        raise UnsupportedError("this torchao has no block-sparse product any more; 0.18.0 has")
    require_shape(problem)


BACKEND = Backend(
    name="torchao_bsr",
    product=_launch,
    no_sdd="torchao has no product sampled at blocks",
    devices=("cuda",),
    elsewhere="torchao's Triton kernels run on a GPU only",
    needs=_require,
)
