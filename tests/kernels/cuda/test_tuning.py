"""What the tuner is offered: every variant of the CUDA kernels, each right, on an emulated GPU."""

from __future__ import annotations

import json

import pytest
from emulated_gpu import emulated_gpu

from kernels.backends.cuda import BACKEND
from kernels.check import check
from kernels.cuda.choose import Task, offered
from kernels.problem import GemmProblem


@pytest.mark.parametrize(("op", "n", "block_size"), [("dsd", 20, 16), ("dsd_t", 33, 32), ("sdd", 20, 32)])
def test_every_variant_is_right(op: str, n: int, block_size: int) -> None:
    problem = GemmProblem(128, 96, n, block_size, 0.6, dtype="bfloat16", op=op, seed=2)
    with emulated_gpu(80, 16):
        found = BACKEND.variants(problem)
        assert len(found) >= (1 if op == "sdd" else 2)
        for name, prepare in found.items():
            launch = prepare()
            _, wrong = check(launch, problem)
            assert wrong is None, (name, wrong)
            assert launch.kernel == f"cuda {name}" and launch.weight_bytes > 0 and launch.index_bytes > 0


def test_a_variant_by_wgmma_is_right() -> None:
    problem = GemmProblem(256, 128, 130, 64, 0.5, dtype="bfloat16", seed=2)
    with emulated_gpu(90, 16):
        wide = {
            name: prepare for name, prepare in BACKEND.variants(problem).items() if json.loads(name)["rung"] == "wgmma"
        }
        assert len(wide) >= 2
        for prepare in list(wide.values())[:2]:
            assert check(prepare(), problem)[1] is None


def test_the_rungs_offered_are_those_of_the_gpu() -> None:
    task = Task("dsd", "Bfloat16", 32, 4096)
    rungs = {}
    for capability in (80, 86, 90):
        with emulated_gpu(capability) as gpu:
            names = [json.loads(name) for name in offered(task, gpu)]
            rungs[capability] = {name["rung"] for name in names}
    assert rungs == {80: {"mma.sync"}, 86: {"mma.sync"}, 90: {"mma.sync", "wgmma", "wgmma tma"}}
    with emulated_gpu(80) as gpu:
        assert {json.loads(name)["rung"] for name in offered(Task("dsd", "Float32", 32, 64), gpu)} == {"FFMA"}
