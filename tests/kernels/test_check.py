"""The self-check must catch wrong outputs; otherwise no time is worth anything."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.backends.dense import DenseLaunch
from kernels.backends.loop_lstm import BACKEND as LOOP
from kernels.check import check, error_bound, gamma, lstm_tolerance
from kernels.problem import DTYPES, GemmProblem, LstmProblem

PROBLEM = GemmProblem(32, 48, 6, 8, 0.5)
LAYER = LstmProblem(32, 64, 4, 35, 16, 0.5)
GRADIENTS = ["grad_x", "grad_weight_ih", "grad_weight_hh", "grad_bias_ih", "grad_bias_hh"]


class Spoiled:
    """A dense launch (of a product or of a layer) whose output `name` is put through `spoil`."""

    dense = True

    def __init__(
        self, spoil: Callable[[Tensor], Tensor], problem: GemmProblem | LstmProblem = PROBLEM, name: str = "output"
    ) -> None:
        self.launch = DenseLaunch(problem) if isinstance(problem, GemmProblem) else LOOP.prepare(problem)
        self.spoil, self.name = spoil, name

    def __call__(self) -> None:
        self.launch()

    def outputs(self) -> dict[str, Tensor]:
        outputs = self.launch.outputs()
        return {name: self.spoil(each.clone()) if name == self.name else each for name, each in outputs.items()}

    def poison(self) -> None:
        self.launch.poison()


def put(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(output: Tensor) -> Tensor:
        output[3, 4] = value
        return output

    return spoil


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_a_right_output_passes(op: str) -> None:
    problem = GemmProblem(32, 48, 6, 8, 0.5, op=op)
    ratio, wrong = check(DenseLaunch(problem), problem)
    assert wrong is None and 0 < ratio <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_elements_that_are_not_finite_are_caught(value: float) -> None:
    ratio, wrong = check(Spoiled(put(value)), PROBLEM)
    assert ratio == float("inf")
    assert wrong is not None and wrong.startswith("1 of 192 output elements") and "\n" not in wrong


@pytest.mark.parametrize("owned", [True, False])
def test_an_unwritten_element_shows_whoever_owns_the_output(owned: bool) -> None:
    class Lazy(DenseLaunch):
        def __call__(self) -> None:
            right = torch.mm(self.problem.full_weight, self.problem.x)
            if not owned:
                self.result = torch.empty(right.shape)
            self.result[:3], self.result[3:, 1:] = right[:3], right[3:, 1:]

    assert "29 of 192 output elements are NaN" in str(check(Lazy(PROBLEM), PROBLEM)[1])
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_wrong_element_is_caught_and_named() -> None:
    exact = float((PROBLEM.full_weight.double() @ PROBLEM.x.double())[3, 4])
    ratio, wrong = check(Spoiled(put(exact * 1.001 + 0.001)), PROBLEM)
    assert ratio > 1 and wrong is not None and "output[3, 4]" in wrong and "\n" not in wrong


@pytest.mark.parametrize("op", ["dsd", "dsd_t"])
def test_the_wrong_weight_is_caught(op: str) -> None:
    problem = GemmProblem(32, 48, 6, 8, 0.5, op=op)
    launch = DenseLaunch(problem)
    launch.dense = False
    assert check(launch, problem)[1] is not None


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_a_half_precision_product_is_caught(op: str) -> None:
    problem = GemmProblem(32, 48, 6, 8, 0.5, op=op)

    class Rounded(DenseLaunch):
        def __call__(self) -> None:
            left, right = problem.factors(dense=True)
            self.result = left.bfloat16().float() @ right

    assert check(Rounded(problem), problem)[1] is not None


def test_wrong_shape_type_and_names_are_caught() -> None:
    for spoil in (lambda output: output.T, lambda output: output.double()):
        assert "wanted" in str(check(Spoiled(spoil), PROBLEM)[1])
    launch = DenseLaunch(PROBLEM)
    assert "outputs are y, h, c" in str(check(LOOP.prepare(LAYER), PROBLEM)[1]) and check(launch, PROBLEM)[1] is None


def test_rows_without_weights_must_be_exactly_zero() -> None:
    problem = GemmProblem(16, 16, 3, 4, 1.0)
    expected = problem.weight.double() @ problem.x.double()
    for dtype in DTYPES.values():
        assert bool((error_bound(problem.weight.to(dtype), problem.x.to(dtype), expected) == 0).all())


def test_gamma_by_hand() -> None:
    assert float(gamma(torch.tensor(4.0, dtype=torch.float64), 0.125)) == 1.0  # 0.5 / (1 - 0.5)


def test_the_tolerance_of_a_layer_by_hand() -> None:
    problem = LstmProblem(16, 16, 2, 5, 16, 0.0, dtype="float64")
    sums = 2 * 5 * (64**0.5 + 16)  # 4 x 16 terms, more than 16 + 16 and 2 x 5
    assert lstm_tolerance(problem) == sums * 2.0**-53
    for changes, between in (
        ({"dtype": "bfloat16"}, 2.0**-8),
        ({"dtype": "float16"}, 2.0**-11),
        ({"dtype": "float32", "math": "tf32"}, 2.0**-10),
    ):
        tolerance = lstm_tolerance(replace(problem, **changes))
        assert tolerance == pytest.approx(sums * 2.0**-23 + (4 + 5**0.5) * between, rel=1e-12)


def cut_off(x: Tensor) -> Tensor:
    """The 10 bits of fraction that tensor cores see of a float32."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
@pytest.mark.parametrize("k", [8, 48])
def test_tf32_is_allowed_where_it_is_asked_for(op: str, k: int) -> None:
    problem = GemmProblem(32, k, 6, 8, 0.5, op=op, math="tf32")

    class Rounded(DenseLaunch):
        def __call__(self) -> None:
            left, right = (cut_off(each) for each in problem.factors(dense=True))
            self.result = left @ right

    ratio, wrong = check(Rounded(problem), problem)
    assert wrong is None and ratio > 0.1
    assert check(Rounded(problem), replace(problem, math="ieee"))[1] is not None


def test_the_bound_of_tf32_is_reached_by_products_cut_off_the_most() -> None:
    worst = torch.full((1, 1), 1 + 2.0**-10 - 2.0**-23)
    exact = worst.double() ** 2
    error = float((cut_off(worst).double() ** 2 - exact).abs())
    assert (
        0.98 * float(error_bound(worst, worst, exact, "tf32")) < error < float(error_bound(worst, worst, exact, "tf32"))
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("steps", [1, 35])
def test_a_layer_in_16_bits_reaches_a_good_part_of_its_tolerance_and_no_more(dtype: str, steps: int) -> None:
    problem = LstmProblem(32, 64, 4, steps, 16, 0.5, dtype=dtype)
    ratio, wrong = check(LOOP.prepare(problem), problem)
    assert wrong is None and 0.15 < ratio <= 1


@pytest.mark.parametrize("missing", ["bias_ih", "weight_hh"])
def test_a_layer_in_16_bits_that_leaves_something_out_is_caught(missing: str) -> None:
    problem = replace(LAYER, dtype="bfloat16")
    launch = LOOP.prepare(problem)
    launch.leaves[missing].data = torch.zeros_like(launch.leaves[missing])
    assert check(launch, problem)[1] is not None


@pytest.mark.parametrize("name", ["y", "h", "c", *GRADIENTS])
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_one_wrong_element_of_any_output_of_a_layer_is_caught(name: str, wrong: float) -> None:
    """Wrong by a thousandth of the largest element, at the last place."""

    def spoil(output: Tensor) -> Tensor:
        output.view(-1)[-1] += wrong * output.abs().max()
        return output

    ratio, reason = check(Spoiled(spoil, LAYER, name), LAYER)
    assert ratio > 1 and reason is not None and name in reason
    assert check(Spoiled(lambda output: output, LAYER, name), LAYER)[1] is None


def test_a_half_precision_layer_is_caught() -> None:
    launch = LOOP.prepare(LAYER)
    for name in ("weight_ih", "weight_hh"):
        launch.leaves[name].data = LAYER.full_weights[name].bfloat16().float()
    assert check(launch, LAYER)[1] is not None


@pytest.mark.parametrize("missing", ["bias_ih", "weight_hh"])
def test_a_layer_that_leaves_something_out_is_caught(missing: str) -> None:
    launch = LOOP.prepare(LAYER)
    launch.leaves[missing].data = torch.zeros_like(launch.leaves[missing])
    assert check(launch, LAYER)[1] is not None
