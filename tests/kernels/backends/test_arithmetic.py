"""Baselines on a GPU multiply as the problem says, and leave the process's settings as they were."""

import pytest
import torch

from kernels.launches import settings, under
from kernels.problem import GemmProblem, LstmProblem, Problem

CASES = [
    (GemmProblem(16, 16, 2, 4, 0.5, device="cuda"), [False, "ieee", "ieee"]),
    (GemmProblem(16, 16, 2, 4, 0.5, device="cuda", math="tf32"), [True, "tf32", "tf32"]),
    (LstmProblem(16, 16, 2, 3, 4, 0.5, device="cuda", math="tf32"), [True, "tf32", "tf32"]),
    (GemmProblem(16, 16, 2, 4, 0.5, device="cuda", dtype="bfloat16"), [False]),
    (GemmProblem(16, 16, 2, 4, 0.5, device="cuda", dtype="float16"), [False]),
    (GemmProblem(16, 16, 2, 4, 0.5, device="cuda", dtype="float64"), []),
]


@pytest.mark.parametrize(("problem", "wanted"), CASES, ids=str)
def test_settings_hold_during_a_launch_only(problem: Problem, wanted: list[object]) -> None:
    chosen = settings(problem)

    def now() -> list[object]:
        return [getattr(owner, name) for owner, name, _ in chosen]

    before = now()
    launch = under(problem, now)
    assert [launch(), now()] == [wanted, before]

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        under(problem, fail)()
    assert now() == before


def test_torchs_newer_and_older_names_agree_inside() -> None:
    problem = GemmProblem(16, 16, 2, 4, 0.5, device="cuda", math="tf32")
    before = torch.backends.cuda.matmul.fp32_precision
    found = under(problem, lambda: (torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()))()
    assert found == ("tf32", "high")
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_nothing_is_set_on_a_cpu() -> None:
    problem = GemmProblem(16, 16, 2, 4, 0.5)
    assert under(problem, print) is print
