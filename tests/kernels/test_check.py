"""The self-check must catch wrong outputs; otherwise no time is worth anything."""

import pytest
import torch
from torch import Tensor

from kernels.backends.dense import DenseLaunch
from kernels.check import check, error_bound, gamma
from kernels.problem import DTYPES, GemmProblem

PROBLEM = GemmProblem(32, 48, 6, 8, 0.5)


class Spoiled(DenseLaunch):
    """The dense product with one element put to `value` afterwards (or kept as it was before the launch)."""

    def __init__(self, problem: GemmProblem, value: float | None) -> None:
        super().__init__(problem)
        self.value = value

    def __call__(self) -> None:
        before = self.result.clone()
        super().__call__()
        self.result[3, 4] = before[3, 4] if self.value is None else self.value


def test_a_right_output_passes() -> None:
    ratio, wrong = check(DenseLaunch(PROBLEM), PROBLEM.full_weight, PROBLEM.x)
    assert wrong is None and 0 < ratio <= 1


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_unwritten_and_not_finite_elements_are_caught(value: float | None) -> None:
    ratio, wrong = check(Spoiled(PROBLEM, value), PROBLEM.full_weight, PROBLEM.x)
    assert ratio == float("inf")
    assert wrong is not None and wrong.startswith("1 of 192 output elements") and "\n" not in wrong


def test_a_wrong_element_is_caught_and_named() -> None:
    exact = float((PROBLEM.full_weight.double() @ PROBLEM.x.double())[3, 4])
    ratio, wrong = check(Spoiled(PROBLEM, exact * 1.001 + 0.001), PROBLEM.full_weight, PROBLEM.x)
    assert ratio > 1 and wrong is not None and "output[3, 4]" in wrong and "\n" not in wrong


def test_the_wrong_weight_is_caught() -> None:
    assert check(DenseLaunch(PROBLEM), PROBLEM.weight, PROBLEM.x)[1] is not None


def test_a_half_precision_sum_is_caught() -> None:
    class Rounded(DenseLaunch):
        def __call__(self) -> None:
            self.result.copy_(self.weight.bfloat16().float() @ self.x)

    assert check(Rounded(PROBLEM), PROBLEM.full_weight, PROBLEM.x)[1] is not None


def test_wrong_shape_and_type_are_caught() -> None:
    class Turned(DenseLaunch):
        def output(self) -> Tensor:
            return self.result.T

    class Doubled(DenseLaunch):
        def output(self) -> Tensor:
            return self.result.double()

    for launch in (Turned(PROBLEM), Doubled(PROBLEM)):
        assert "wanted" in str(check(launch, PROBLEM.full_weight, PROBLEM.x)[1])


def test_rows_without_weights_must_be_exactly_zero() -> None:
    problem = GemmProblem(16, 16, 3, 4, 1.0)
    expected = problem.weight.double() @ problem.x.double()
    for dtype in DTYPES.values():
        assert bool((error_bound(problem.weight.to(dtype), problem.x.to(dtype), expected) == 0).all())


def test_gamma_by_hand() -> None:
    assert float(gamma(torch.tensor(4.0, dtype=torch.float64), 0.125)) == 1.0  # 0.5 / (1 - 0.5)
