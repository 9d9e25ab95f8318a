"""Every element that block_sparse_lstm computes, forward and backward, is within its own bound of rounding errors."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from layer import Case

from kernels.native import library as native_library
from kernels.system.resources import refusal

Guards = Callable[[], AbstractContextManager[None]]
Threads = Callable[[int], AbstractContextManager[None]]
NAMES = (
    "y",
    "h",
    "c",
    "grad x",
    "grad h0",
    "grad c0",
    "grad weight_ih",
    "grad weight_hh",
    "grad bias_ih",
    "grad bias_hh",
)
pytestmark = pytest.mark.skipif(
    refusal(native_library.require_kernel, torch.float32, torch.device("cpu")) is not None,
    reason="no C++ compiler here",
)


def test_the_balls_are_centred_on_torchs_lstm_and_small() -> None:
    case = Case(4, 3, 2, 3, 7)
    for ball, expected in zip(case.balls(), case.expected(), strict=True):
        torch.testing.assert_close(ball.value, expected.detach(), rtol=1e-12, atol=1e-13)
        assert ball.contains(expected.detach())
        assert float((ball.error / (ball.value.abs() + 0.01)).max()) < 1e-11


def test_a_bound_that_is_missed_is_noticed() -> None:
    ball = Case(4, 3, 2, 3, 7, dtype=torch.float32).balls()[3]
    computed = ball.value.float()
    assert ball.contains(computed)
    computed[1, 2, 3] += 1e-3 * ball.value.abs().max()
    assert not ball.contains(computed)
    assert not ball.contains(torch.full_like(computed, float("nan")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("size", "units", "steps"),
    [(1, 1, 1), (1, 5, 2), (3, 4, 2), (5, 1, 3), (8, 3, 1), (12, 2, 3), (16, 3, 2), (20, 1, 1), (33, 2, 2), (64, 1, 2)],
)
def test_every_element(
    guards: Guards, pinned_threads: Threads, dtype: torch.dtype, size: int, units: int, steps: int
) -> None:
    for batch, density, threads in ((1, 0.5, 1), (7, 0.5, 2), (33, 0.0, 1), (33, 1.0, 1), (100, 0.5, 1), (100, 1.0, 1)):
        case = Case(size, units, 2, steps, batch, density, dtype, seed=batch)
        with guards(), pinned_threads(threads):
            computed = case.computed("native", dense_input=batch in (7, 100))
            inferred = case.inferred(dense_input=batch in (7, 100))
        assert all(torch.equal(*pair) for pair in zip(inferred, computed[:3], strict=True))
        for name, ball, got in zip(NAMES, case.balls(), computed, strict=True):
            assert ball.contains(got.detach()), (name, batch, density)
