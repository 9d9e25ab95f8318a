"""Every derivative of products and layers that torch can ask for.

That of dense arithmetic, or one line that refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from layer import Case, has_bfloat16_layers
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from bench.models.layers import LSTMLayer
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native import lstm as native_lstm
from kernels.ops import block_sparse_lstm, block_sparse_matmul
from kernels.products import dsd, sdd
from kernels.system.resources import refusal

NO_NATIVE = refusal(native_library.require_kernel, torch.float64, torch.device("cpu"))
KERNELS = ["torch"] if NO_NATIVE else ["native", "torch"]
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")
Function = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Function, Tensor, Tensor], Any]


def loss(f: Function) -> Function:
    return lambda left, right: (f(left, right) ** 3).sum()


def dual(f: Function, left: Tensor, right: Tensor) -> Tensor | None:
    """By forward_ad itself, then what the way back has for tangent."""
    with forward_ad.dual_level():
        leaf = right.clone().requires_grad_()
        given = forward_ad.make_dual(left, left.cos()), forward_ad.make_dual(leaf, right.sin())
        (back,) = torch.autograd.grad(loss(f)(*given), given[1], create_graph=True)
        return forward_ad.unpack_dual(back).tangent


TRANSFORMS: dict[str, Transform] = {
    "jvp": lambda f, left, right: jvp(f, (left, right), (left.cos(), right.sin())),
    "jvp of one operand": lambda f, left, right: jvp(lambda x: f(left, x), (right,), (right.sin(),)),
    "dual tensors": dual,
    "grad": lambda f, left, right: grad(loss(f), (0, 1))(left, right),
    "jacfwd": lambda f, left, right: jacfwd(f, (0, 1))(left, right),
    "jacrev": lambda f, left, right: jacrev(f, (0, 1))(left, right),
    "hessian": lambda f, left, right: hessian(loss(f), (0, 1))(left, right),
    "jvp of jvp": lambda f, left, right: jvp(
        lambda x: jvp(lambda y: loss(f)(y, x), (left,), (left.cos(),))[1], (right,), (right.sin(),)
    ),
    "vmap of the first": lambda f, left, right: vmap(f, (0, None))(torch.stack([left, -left]), right),
    "vmap of the second": lambda f, left, right: vmap(f, (None, -1))(left, torch.stack([right, -right], -1)),
    "vmap of both": lambda f, left, right: vmap(f)(torch.stack([left, -left]), torch.stack([right, 2 * right])),
    "vmap of vmap": lambda f, left, right: vmap(vmap(f, (None, 0)), (0, None))(
        torch.stack([left, -left]), torch.stack([right, 2 * right])
    ),
    "per-sample gradients": lambda f, left, right: vmap(grad(loss(f)), (None, 0))(left, torch.stack([right, -right])),
}


def assert_same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def matrix(dtype: torch.dtype = torch.float64) -> tuple[BSRMatrix, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = BlockMask(torch.tensor([[True, False, True], [False, True, True]]), 2)
    weight, x = (torch.randn(shape, generator=generator, dtype=dtype) for shape in (mask.shape, (6, 3)))
    return BSRMatrix.from_dense(weight, mask), x


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_products_under_transforms(kernel: str, transform: str) -> None:
    weight, x = matrix()  # anew: its index is first asked for inside
    found = TRANSFORMS[transform](
        lambda data, x: block_sparse_matmul(weight.with_data(data), x, kernel), weight.data, x
    )
    dense, _ = matrix()
    wanted = TRANSFORMS[transform](lambda data, x: dense.with_data(data).to_dense() @ x, dense.data, x)
    assert_same(found, wanted)
    assert_same(block_sparse_matmul(weight, x, kernel), weight.to_dense() @ x)


@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "hessian"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_under_transforms(kernel: str, transform: str) -> None:
    case, dense = (Case(2, 1, 2, 2, 2) for _ in range(2))

    def layer(case: Case, kernel: str, into: bool) -> Function:
        def run(data: Tensor, x: Tensor) -> Tensor:
            weights = [case.weights[0] if into else case.weights[0].to_dense(), case.weights[1].with_data(data)]
            y, (h, c) = block_sparse_lstm(x, (case.states[0], case.states[1]), *weights, *case.biases, kernel=kernel)
            return torch.cat([y.flatten(), h.flatten(), c.flatten()])

        return run

    def by_loop(data: Tensor, x: Tensor) -> Tensor:
        (h,), (c,), ys = *dense.states, []
        for step in x:
            sums = step @ dense.weights[0].to_dense().T + h @ dense.weights[1].with_data(data).to_dense().T
            i, f, g, o = (sums + dense.biases[0] + dense.biases[1]).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        return torch.cat([each.flatten() for each in (*ys, h, c)])

    wanted = TRANSFORMS[transform](by_loop, dense.weights[1].data, dense.x)
    for into in (True, False):
        assert_same(TRANSFORMS[transform](layer(case, kernel, into), case.weights[1].data, case.x), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_operators_have_derivatives_in_forward_mode(kernel: str) -> None:
    """Called as they are in a graph that was exported: a product, a sampled one, and whole layers."""
    (weight, x), grad_y = matrix(), torch.randn(4, 3, dtype=torch.float64)
    for transposed, right in ((False, x), (True, grad_y)):
        dense = weight.to_dense().T if transposed else weight.to_dense()
        columns = right.T.contiguous().T
        for each in (right, columns):
            found = jvp(
                lambda data, x, transposed=transposed: dsd(data, *weight.index, x, transposed, kernel),
                (weight.data, each), (weight.data.cos(), each.sin()),
            )  # fmt: skip
            of_weight = weight.with_data(weight.data.cos()).to_dense()
            of_weight = of_weight.T if transposed else of_weight
            assert_same(found, (dense @ right, of_weight @ right + dense @ right.sin()))
    found = jvp(lambda grad, x: sdd(grad, x, *weight.index, kernel), (grad_y, x), (grad_y.cos(), x.sin()))
    products = grad_y @ x.T, grad_y.cos() @ x.T + grad_y @ x.sin().T
    assert_same(found, tuple(BSRMatrix.from_dense(each, weight.mask).data for each in products))


@needs_native
@pytest.mark.parametrize("dense_input", [False, True])
def test_a_layers_operator_has_derivatives_in_forward_mode(dense_input: bool) -> None:
    case = Case(2, 1, 2, 2, 2)
    x = case.x @ case.weights[0].to_dense().T if dense_input else case.x
    bias, states = case.biases[0], [each[0] for each in case.states]

    def layer(operator: bool) -> Callable[..., tuple[Tensor, ...]]:
        def run(x: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, data: Tensor, into: Tensor) -> tuple[Tensor, ...]:
            listed = [] if dense_input else [into, *case.weights[0].index]
            if operator:
                return native_lstm.lstm(x, bias, h0, c0, [data, *case.weights[1].index], listed)[:3]
            one = torch.eye(x.shape[2], dtype=x.dtype) if dense_input else case.weights[0].with_data(into)
            recurrent = case.weights[1].with_data(data)
            y, (h, c) = block_sparse_lstm(x, (h0[None], c0[None]), one, recurrent, bias, kernel="torch")
            return y, h[0], c[0]

        return run

    operands = x, bias, *states, case.weights[1].data, case.weights[0].data
    tangents = tuple(map(torch.cos, operands))
    assert_same(jvp(layer(True), operands, tangents), jvp(layer(False), operands, tangents))


@needs_native
def test_a_layers_way_back_that_a_compiler_has_split_off_is_refused_in_forward_mode() -> None:
    case = Case(2, 1, 2, 2, 2)
    x, states = case.x @ case.weights[0].to_dense().T, [each[0] for each in case.states]
    weight = [case.weights[1].data, *case.weights[1].index]
    y, h, _, saved = native_lstm.lstm(x, case.biases[0], *states, weight, [])

    def back(grad: Tensor) -> list[Tensor]:
        return native_lstm.lstm_backward(grad, h, None, [x, y, saved, *states], weight, [], [True, True, False])

    assert len(back(y)) == 5
    with pytest.raises(NotImplementedError, match=r"^an LSTM layer's way back has no forward-mode derivatives.*$"):
        jvp(back, (y,), (y.cos(),))


@pytest.mark.parametrize("transposed", [False, True])
def test_complex_products_have_the_gradients_of_dense_ones(transposed: bool) -> None:
    weight, x = matrix(torch.complex128)
    x = x.T.contiguous().T if transposed else x
    leaves = weight.data.clone().requires_grad_(), x.clone().requires_grad_()

    def ours(data: Tensor, x: Tensor) -> Tensor:
        return block_sparse_matmul(weight.with_data(data), x)

    def dense(data: Tensor, x: Tensor) -> Tensor:
        return weight.with_data(data).to_dense() @ x

    out = torch.randn(4, 3, dtype=torch.complex128)
    assert_same(torch.autograd.grad(ours(*leaves), leaves, out), torch.autograd.grad(dense(*leaves), leaves, out))
    assert torch.autograd.gradcheck(ours, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, leaves)
    for kernel in ("native", "cuda"):
        with pytest.raises(ValueError, match=r"^.*(complex128|GPU|cuda).*$"):
            block_sparse_matmul(weight, x, kernel)


def test_a_second_derivative_of_a_layer_is_right_or_refused() -> None:
    for kernel in KERNELS:
        case = Case(2, 1, 1, 2, 2)
        leaves = case.x.requires_grad_(), case.weights[1].data.requires_grad_()

        def layer(x: Tensor, data: Tensor, case: Case = case, kernel: str = kernel) -> Tensor:
            return block_sparse_lstm(x, None, case.weights[0], case.weights[1].with_data(data), kernel=kernel)[0]

        refused = pytest.raises(ValueError, match=r"^second derivatives of an LSTM layer: .*kernel = 'torch'.*$")
        with refused if kernel == "native" else nullcontext():
            assert torch.autograd.gradgradcheck(layer, leaves)


@needs_native
def test_a_way_back_begun_outside_a_transform_is_refused_inside() -> None:
    case = Case(2, 1, 1, 2, 2)
    x = case.x.requires_grad_()
    y, _ = block_sparse_lstm(x, None, *case.weights)
    with forward_ad.dual_level(), pytest.raises(ValueError, match=r"^an LSTM layer has no way back inside .*$"):
        torch.autograd.grad(y, x, forward_ad.make_dual(case.grads[0], case.grads[0]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("back_inside", [False, True])
def test_under_autocast_a_product_is_like_linear(dtype: torch.dtype, kernel: str, back_inside: bool) -> None:
    weight, x = matrix(torch.float32)
    found = []
    for dense in (False, True):
        data, into = weight.data.clone().requires_grad_(), x.T.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            hidden = torch.nn.functional.linear(into, torch.eye(6))
            assert hidden.dtype == dtype
            matrix_ = weight.with_data(data)
            if dense:
                y = torch.nn.functional.linear(hidden, matrix_.to_dense())
            else:
                y = block_sparse_matmul(matrix_, hidden.T, kernel).T
            back = torch.ones_like(y)
            if back_inside:
                y.backward(back)
        if not back_inside:
            y.backward(back)
        with torch.no_grad(), torch.autocast("cpu", dtype):
            again = y if dense else block_sparse_matmul(matrix_, hidden.T, kernel).T
        found.append((y, again, data.grad, into.grad))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)
    wide = weight.with_data(weight.data.double())
    with torch.autocast("cpu", dtype):  # which leaves float64 alone, as it does in Linear
        assert_same(block_sparse_matmul(wide, x.double(), kernel), wide.to_dense() @ x.double())
        with pytest.raises(ValueError, match="they must be of one type"):
            block_sparse_matmul(wide, x, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dense_input", [False, True])
def test_under_autocast_a_layer_is_like_torchs(kernel: str, dense_input: bool) -> None:
    case = Case(4, 2, 2, 3, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.computed(kernel, dense_input)
        if has_bfloat16_layers():
            assert torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))[0].dtype == torch.bfloat16
    for number, (one, other) in enumerate(zip(found, case.expected(), strict=True)):
        assert one.dtype == (torch.bfloat16 if number < 3 else torch.float32)
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.05 * float(other.detach().abs().max()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pattern_first_used_in_inference_mode_serves_training(kernel: str) -> None:
    weight, x = matrix()
    with torch.inference_mode():
        assert_same(block_sparse_matmul(weight, x, kernel), weight.to_dense() @ x)
        made_inside = BSRMatrix(weight.data, weight.indices.clone(), weight.indptr.clone(), weight.shape)
    for each in (weight, made_inside):
        leaf = weight.data.clone().requires_grad_()
        (found,) = torch.autograd.grad(block_sparse_matmul(each.with_data(leaf), x, kernel).sum(), leaf)
        (wanted,) = torch.autograd.grad((weight.with_data(leaf).to_dense() @ x).sum(), leaf)
        assert_same(found, wanted)


def test_what_is_made_in_inference_mode_serves_training() -> None:
    weight, x = matrix()
    with torch.inference_mode():
        mask = BlockMask(weight.mask.kept.clone(), 2)
        made = [BSRMatrix.from_dense(weight.to_dense(), mask), weight.freeze().unfreeze()]
    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad((weight.to_dense() @ leaf).sum(), leaf)
    for each in made:
        for kernel in KERNELS:
            assert_same(torch.autograd.grad(block_sparse_matmul(each, leaf, kernel).sum(), leaf), wanted)
    kept = torch.where(mask.kept, leaf[:2, :3].exp(), leaf[:2, :3].cos())  # which saves the condition
    assert torch.autograd.grad(kept.sum(), leaf)[0].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_checkpointed_products_and_layers_are_the_same(kernel: str) -> None:
    weight, x = matrix()
    case = Case(2, 1, 2, 2, 2)

    def multiplied(data: Tensor, x: Tensor) -> Tensor:
        return block_sparse_matmul(weight.with_data(data), x, kernel).cos()

    def layer(data: Tensor, x: Tensor) -> Tensor:
        matrices = case.weights[0], case.weights[1].with_data(data)
        return block_sparse_lstm(x, None, *matrices, *case.biases, kernel=kernel)[0].cos()

    for function, data, into in ((multiplied, weight.data, x), (layer, case.weights[1].data, case.x)):
        leaves = data.clone().requires_grad_(), into.clone().requires_grad_()
        wanted = torch.autograd.grad(function(*leaves).sum(), leaves)
        for reentrant in (False, True):
            found = checkpoint(function, *leaves, use_reentrant=reentrant)
            if reentrant:  # which torch.autograd.grad does not reach into
                for each in leaves:
                    each.grad = None
                found.sum().backward()
                assert_same(tuple(each.grad for each in leaves), wanted)
            else:
                assert_same(torch.autograd.grad(found.sum(), leaves), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("inside", ["there", "back", "vmap of the way back"])
def test_a_checkpoint_may_be_crossed_by_a_transform(kernel: str, inside: str) -> None:
    """Of the two times that a product is computed then, one is seen by forward mode or vmap, and one is not."""
    weight, x = matrix()
    leaves = weight.data.clone().requires_grad_(), x.requires_grad_()

    def run(data: Tensor, x: Tensor) -> Tensor:
        return block_sparse_matmul(weight.with_data(data), x, kernel).cos()

    wanted = torch.autograd.grad(run(*leaves).sum(), leaves)
    with forward_ad.dual_level() if inside == "there" else nullcontext():
        y = checkpoint(run, *leaves, use_reentrant=False)
    if inside == "vmap of the way back":
        found = vmap(lambda each: torch.autograd.grad(y, leaves, each))(torch.ones(1, *y.shape, dtype=y.dtype))
        assert_same(tuple(each[0] for each in found), wanted)
        return
    with forward_ad.dual_level() if inside == "back" else nullcontext():
        assert_same(torch.autograd.grad(y.sum(), leaves), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_gradients_at_once_are_right_or_refused(kernel: str) -> None:
    weight, x = matrix()
    leaves = weight.data.clone().requires_grad_(), x.requires_grad_()
    y, several = block_sparse_matmul(weight.with_data(leaves[0]), leaves[1], kernel), torch.randn(3, 4, 3).double()
    found = torch.autograd.grad(y, leaves, several, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, leaves, each, retain_graph=True) for each in several]
    assert_same(found, tuple(map(torch.stack, zip(*one_by_one, strict=True))))
    case = Case(2, 1, 1, 2, 2)
    case.x.requires_grad_()

    def layer(x: Tensor) -> Tensor:
        return block_sparse_lstm(x, None, *case.weights, *case.biases, kernel=kernel)[0]

    wanted = torch.autograd.functional.jacobian(layer, case.x)
    refused = pytest.raises(ValueError, match=r"^an LSTM layer goes back with one gradient at a time, .*'torch'.*$")
    with refused if kernel == "native" else nullcontext():
        assert_same(torch.autograd.functional.jacobian(layer, case.x, vectorize=True), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("instructions", [None, ""], ids=["this CPU", "a CPU without bfloat16"])
@pytest.mark.builds
def test_compiled_products_are_the_same(kernel: str, instructions: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if instructions is not None:
        monkeypatch.setattr("kernels.native.library.text_of", lambda *_: instructions)
    torch._dynamo.reset()
    weight, x = matrix(torch.float32)
    assert weight.index is not None
    x.requires_grad_()

    def run(x: Tensor) -> Tensor:
        return block_sparse_matmul(weight, x, kernel).square()

    compiled = torch.compile(run, backend="aot_eager")
    for mode in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            found, wanted = compiled(x), run(x)
        torch.testing.assert_close(found, wanted)
        assert_same(torch.autograd.grad(found.sum(), x), torch.autograd.grad(wanted.sum(), x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.builds
def test_forward_mode_inside_a_compiled_function(kernel: str, backend: str) -> None:
    torch._dynamo.reset()
    weight, x = matrix()
    assert weight.index is not None

    def pushed(x: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda x: block_sparse_matmul(weight, x, kernel).sin(), (x,), (x.cos(),))

    wanted = pushed(x)
    assert_same(torch.compile(pushed, backend=backend, fullgraph=True)(x), wanted)


def sparse_layer() -> tuple[LSTMLayer, Tensor]:
    torch.manual_seed(0)
    layer = LSTMLayer(8, 8)
    masks = {
        kind: BlockMask.random(32, 8, 4, 0.5, torch.Generator().manual_seed(1)) for kind in ("weight_ih", "weight_hh")
    }
    with torch.no_grad():
        for kind, mask in masks.items():
            getattr(layer, f"{kind}_l0").mul_(mask.expand())
    layer.follow(masks)
    return layer, torch.randn(3, 2, 8)


@needs_native
def test_a_training_layer_gives_its_gradient_to_whoever_asks() -> None:
    layer, x = sparse_layer()
    layer(x)[0].square().sum().backward()
    wanted = {name: each.grad.clone() for name, each in layer.named_parameters()}
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def check(found: dict[str, Tensor]) -> None:
        for name in names:
            torch.testing.assert_close(found[name], wanted[name])

    layer.zero_grad()
    check(dict(zip(names, torch.autograd.grad(layer(x)[0].square().sum(), parameters), strict=True)))
    assert all(each.grad is None for each in parameters)
    (alone,) = torch.autograd.grad(layer(x)[0].square().sum(), layer.weight_hh_l0, create_graph=True)
    torch.testing.assert_close(alone, wanted["weight_hh_l0"])
    with pytest.raises(ValueError, match=r"^second derivatives of an LSTM layer"):
        alone.square().sum().backward()
    layer.zero_grad()
    layer(x)[0].square().sum().backward(inputs=[layer.weight_hh_l0])
    torch.testing.assert_close(layer.weight_hh_l0.grad, wanted["weight_hh_l0"])
    assert layer.weight_ih_l0.grad is None
    layer.zero_grad()
    seen: list[Tensor] = []
    layer.weight_ih_l0.register_post_accumulate_grad_hook(lambda each: seen.append(each.grad.clone()))
    layer.weight_hh_l0.register_hook(lambda gradient: 2 * gradient)
    layer(x)[0].square().sum().backward()
    torch.testing.assert_close(seen, [wanted["weight_ih_l0"]])
    torch.testing.assert_close(layer.weight_hh_l0.grad, 2 * wanted["weight_hh_l0"])


@needs_native
def test_a_training_layer_under_transforms() -> None:
    layer, x = sparse_layer()
    layer(x)[0].square().sum().backward()
    parameters = {name: each.detach() for name, each in layer.named_parameters()}

    def cost(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,))[0].square().sum()

    found = grad(cost)(parameters, x)
    samples = vmap(grad(cost), (None, 0))(parameters, torch.stack([x[:, :1], x[:, 1:]]))
    for name, each in layer.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(samples[name].sum(0), each.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("batch", "columns"), [(2, 0), (0, 5), (0, 0)])
def test_vmap_of_nothing(kernel: str, batch: int, columns: int) -> None:
    """As dense: no member, or members without a column, are of a shape too, and so are their derivatives."""
    mask = BlockMask(torch.ones(3, 2, dtype=torch.bool), 3)
    weight = BSRMatrix.from_dense(torch.randn(9, 6, dtype=torch.float64), mask)
    dense, x = weight.to_dense(), torch.randn(batch, 6, columns, dtype=torch.float64)
    data = weight.data.expand(batch, *weight.data.shape)

    def product(operand: Tensor) -> Tensor:
        return block_sparse_matmul(weight, operand, kernel)

    def of_values(values: Tensor) -> Tensor:
        return block_sparse_matmul(weight.with_data(values), torch.ones(6, columns, dtype=torch.float64), kernel)

    assert vmap(product)(x).shape == vmap(lambda each: dense @ each)(x).shape
    assert vmap(of_values)(data).shape == (batch, 9, columns)
    one = x.new_zeros(6, columns)
    assert jacrev(product)(one).shape == jacrev(lambda each: dense @ each)(one).shape
