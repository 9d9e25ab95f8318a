"""Layers with block-sparse weights against torch's own, weights masked: values, states, gradients, uses."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from layer import has_bfloat16_layers
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.modules import BlockSparseGRU, BlockSparseLinear, BlockSparseLSTM, BlockSparseWeight, freeze
from kernels.native import library as native_library
from kernels.native import products as native_products
from kernels.system.resources import refusal
from kernels.tensors.padding import in_blocks, padded

NO_NATIVE = refusal(native_library.require_kernel, torch.float32, torch.device("cpu"))
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason="no C++ compiler here")
SPARSE = {nn.Linear: BlockSparseLinear, nn.LSTM: BlockSparseLSTM, nn.GRU: BlockSparseGRU}
RECURRENT = [nn.LSTM, nn.GRU]
INTO, UNITS, SIZE = 8, 12, 4


def gates_of(module: nn.Module) -> int:
    return getattr(SPARSE.get(type(module), type(module)), "GATES", 1)


def masks_of(module: nn.Module, size: int = SIZE, only: str = "", seed: int = 0) -> dict[str, BlockMask]:
    """Half of the blocks of every weight whose name has `only` in it."""
    generator = torch.Generator().manual_seed(seed)
    named = {name: each for name, each in module.named_parameters() if each.ndim == 2 and only in name}
    shapes = {name: in_blocks(tuple(each.shape), gates_of(module), size) for name, each in named.items()}
    return {name: BlockMask.random(*shape, size, 0.5, generator) for name, shape in shapes.items()}


def pair_of(
    dense: nn.Module, only: str = "", seed: int = 0, pad: bool = False, size: int = SIZE
) -> tuple[nn.Module, nn.Module, dict[str, BlockMask]]:
    """`dense`, its weights masked, the same layer block-sparse, and the masks."""
    masks = masks_of(dense, size, only, seed)
    given = masks["weight"] if isinstance(dense, nn.Linear) else masks
    sparse = SPARSE[type(dense)].from_dense(dense, given, pad=pad)
    with torch.no_grad():
        for name, mask in masks.items():
            weight, gates = getattr(dense, name), gates_of(dense)
            kept = mask.expand().view(gates, -1, mask.shape[1])[:, : weight.shape[0] // gates, : weight.shape[1]]
            weight.mul_(kept.reshape(weight.shape))
    return dense, sparse, masks


def tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor in what a layer gives; of a packed sequence its rows."""
    if isinstance(output, PackedSequence):
        yield output.data
    elif isinstance(output, Tensor):
        yield output
    else:
        for each in output:
            yield from tensors(each)


def gradients(module: nn.Module, masks: Mapping[str, BlockMask]) -> dict[str, Tensor]:
    """Of every parameter by torch's names; of a block-sparse weight at its kept blocks."""
    named = {name.removesuffix(".values"): each.grad for name, each in module.named_parameters()}
    sparse = {name.removesuffix(".values") for name, _ in module.named_parameters() if name.endswith(".values")}
    found = {name: grad for name, grad in named.items() if grad is not None}
    for name in found.keys() & masks.keys() - sparse:  # zero in the padding
        whole = padded(found[name], gates_of(module), masks[name].shape)
        found[name] = BSRMatrix.from_dense(whole, masks[name]).data
    return found


def assert_alike(
    dense: nn.Module, sparse: nn.Module, masks: Mapping[str, BlockMask], given: Any, state: Any = None
) -> None:
    """Outputs, states, and the gradients of everything, in float64."""
    found = []
    for module in (dense, sparse):
        x = leaf(given)
        leaves = [x.data if isinstance(x, PackedSequence) else x]
        arguments = [x]
        if state is not None:
            begin = tuple(leaf(each) for each in state)
            leaves += begin
            arguments.append(begin if isinstance(dense, nn.LSTM) else begin[0])
        module.zero_grad()
        torch.manual_seed(7)  # of dropout
        outputs = list(tensors(module(*arguments)))
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in outputs]
        torch.autograd.backward(outputs, grads)
        found.append((outputs, [each.grad for each in leaves], gradients(module, masks)))
    for one, other in zip(found[1][0] + found[1][1], found[0][0] + found[0][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert found[1][2].keys() == found[0][2].keys()
    for name, grad in found[1][2].items():
        torch.testing.assert_close(grad, found[0][2][name], rtol=1e-10, atol=1e-12, msg=name)


def leaf(given: Any) -> Any:
    if isinstance(given, PackedSequence):
        return given._replace(data=given.data.detach().clone().requires_grad_())
    return given.detach().clone().requires_grad_()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (0,), (2, 3)])
def test_linear_is_torchs(bias: bool, leading: tuple[int, ...]) -> None:
    dense, sparse, masks = pair_of(nn.Linear(24, 16, bias=bias, dtype=torch.float64))
    assert_alike(dense, sparse, masks, normal(*leading, 24))


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("begin", [False, True])
def test_recurrent_layers_are_torchs(
    kind: type[nn.RNNBase], layers: int, bidirectional: bool, batch_first: bool, begin: bool
) -> None:
    bias = layers == 2 or bidirectional
    settings = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": torch.float64}
    settings["dropout"] = 0.5 if layers > 1 else 0.0
    dense, sparse, masks = pair_of(kind(INTO, UNITS, layers, **settings))
    states = 2 if kind is nn.LSTM else 1
    lines = layers * (1 + bidirectional)
    state = [normal(lines, 3, UNITS) + place for place in range(states)] if begin else None
    x = normal(3, 5, INTO) if batch_first else normal(5, 3, INTO)
    assert_alike(dense, sparse, masks, x, state)
    alone = [each[:, 0] for each in state] if state else None
    assert_alike(dense, sparse, masks, normal(5, INTO), alone)
    dense.eval(), sparse.eval()
    assert_alike(dense, sparse, masks, x, state)
    assert_alike(dense, sparse, masks, x[:0] if batch_first else x[:, :0], state and [each[:, :0] for each in state])


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[5, 2, 4, 2], [3, 3, 3], [1], [1, 6]])
def test_packed_sequences_are_torchs(kind: type[nn.RNNBase], bidirectional: bool, lengths: list[int]) -> None:
    dense, sparse, masks = pair_of(kind(INTO, UNITS, 2, bidirectional=bidirectional, dropout=0.5, dtype=torch.float64))
    batch = len(lengths)
    state = [normal(2 * (1 + bidirectional), batch, UNITS)] * (2 if kind is nn.LSTM else 1)
    padded = normal(max(lengths), batch, INTO)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    for begin in (None, state):
        assert_alike(dense, sparse, masks, packed, begin)
    in_order = pack_sequence([padded[:length, 0] for length in sorted(lengths, reverse=True)])
    assert in_order.sorted_indices is None
    assert_alike(dense, sparse, masks, in_order, state)
    with torch.no_grad():
        dense.eval(), sparse.eval()
        (y, _), (wanted, _) = sparse(packed), dense(packed)
        torch.testing.assert_close(y.data, wanted.data)
        for one, other in zip(y[1:], wanted[1:], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("only", ["weight_hh", "weight_ih", "_l1", "weight_hh_l0_reverse", "none"])
def test_a_weight_without_a_mask_stays_dense(kind: type[nn.RNNBase], only: str) -> None:
    dense, sparse, masks = pair_of(kind(INTO, UNITS, 2, bidirectional=True, dtype=torch.float64), only)
    there = {name for name, each in sparse.named_children() if isinstance(each, BlockSparseWeight)}
    assert there == set(masks) and all(only in name for name in there)
    assert_alike(dense, sparse, masks, normal(5, 3, INTO))
    assert_alike(dense, sparse, masks, pack_padded_sequence(normal(5, 3, INTO), [5, 4, 2]))


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_of_sizes_that_do_not_divide(bias: bool, size: int) -> None:
    for into, out in ((20, 13), (16, 13), (20, 16)):
        dense, sparse, masks = pair_of(nn.Linear(into, out, bias=bias, dtype=torch.float64), pad=True, size=size)
        assert_alike(dense, sparse, masks, normal(2, 5, into))
        torch.testing.assert_close(sparse.weight.to_dense(), dense.weight)
        with torch.no_grad():
            assert sparse(normal(3, into)).is_contiguous()
    with pytest.raises(ValueError, match=r"^input must be \[..., 20\], got \[3, 32\]$"):
        sparse(normal(3, 32))


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(
    ("sizes", "only"),
    [((10, 12), ""), ((10, 16), ""), ((16, 12), "weight_hh"), ((5, 3), "weight_ih"), ((10, 12), "_l1")],
)
def test_recurrent_layers_of_sizes_that_do_not_divide(
    kind: type[nn.RNNBase], sizes: tuple[int, int], only: str
) -> None:
    given = kind(*sizes, 2, bidirectional=True, bias=bool(only), dtype=torch.float64)
    dense, sparse, masks = pair_of(given, only, pad=True, size=8)
    state = [normal(4, 3, sizes[1])] * (2 if kind is nn.LSTM else 1)
    for x in (normal(5, 3, sizes[0]), pack_padded_sequence(normal(5, 3, sizes[0]), [5, 4, 2])):
        assert_alike(dense, sparse, masks, x, state)
    assert_alike(dense, sparse, masks, normal(5, 0, sizes[0]))
    for name in masks:
        torch.testing.assert_close(getattr(sparse, name).to_dense(), getattr(dense, name))


def test_nothing_moves_the_padding() -> None:
    fresh = BlockSparseLSTM(
        5, 3, {"weight_hh_l0": BlockMask.full(32, 8, 8), "weight_ih_l0": BlockMask.full(32, 8, 8)}, pad=True
    )
    assert "weight_hh_l0): BlockSparseWeight(12 x 3 padded to 32 x 8, block_size=8, sparsity=0)" in repr(fresh)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    for _ in range(3):
        first(fresh(torch.randn(4, 2, 5))).square().sum().backward()
        optimizer.step()
    for weight in (fresh.weight_hh_l0, fresh.weight_ih_l0):
        whole = weight.matrix.to_dense().view(4, 8, 8)
        assert whole[:, :3, : weight.shape[1]].all() and not whole[:, 3:].any()
        assert not whole[:, :, weight.shape[1] :].any()
    other = copy.deepcopy(fresh)
    other.reset_parameters()
    other.load_state_dict(fresh.state_dict())
    x = torch.randn(4, 2, 5)
    assert torch.equal(first(other(x)), first(fresh(x)))


def layers() -> dict[str, nn.Module]:
    """One block-sparse layer of each kind, without gradients yet."""
    return {
        "linear": pair_of(nn.Linear(INTO, UNITS))[1],
        "lstm": pair_of(nn.LSTM(INTO, UNITS, 2, bidirectional=True))[1],
        "gru": pair_of(nn.GRU(INTO, UNITS))[1],
    }


def first(output: Any) -> Tensor:
    return next(tensors(output))


KINDS = ["linear", "lstm", "gru"]
X = normal(5, 3, INTO).float()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_into_a_fresh_layer_of_another_pattern(kind: str) -> None:
    layer, file = layers()[kind], io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    flat = {name: each.shape for name, each in stored.items()}
    assert all(type(each) is Tensor and each.is_contiguous() for each in stored.values())  # as safetensors wants them
    assert {name.rpartition(".")[2] for name in flat if "." in name} == {"values", "indices", "indptr"}
    dense = {"linear": nn.Linear(INTO, UNITS), "lstm": nn.LSTM(INTO, UNITS, 2, bidirectional=True)}
    dense["gru"] = nn.GRU(INTO, UNITS)
    masks = masks_of(dense[kind], seed=3)
    name = next(iter(masks))
    masks[name] = BlockMask.full(*masks[name].shape, SIZE)  # other blocks, and another number of them
    for assign in (False, True):
        fresh = SPARSE[type(dense[kind])].from_dense(dense[kind], masks["weight"] if kind == "linear" else masks)
        parameters = list(fresh.parameters())
        first(fresh(X)).sum().backward()
        assert str(fresh.load_state_dict(stored, assign=assign)) == "<All keys matched successfully>"
        assert torch.equal(first(fresh(X)), first(layer(X)))
        assert assign or all(one is other for one, other in zip(parameters, fresh.parameters(), strict=True))
        first(fresh(X)).sum().backward()


def test_a_state_dict_that_is_none_gets_a_line() -> None:
    layer = layers()["linear"]
    good = layer.state_dict()
    for name, bad, said in (
        (
            "weight.indices",
            good["weight.indices"] + 5,
            r"weight is no block-sparse weight of \(12, 8\): indices must lie",
        ),
        ("weight.indptr", good["weight.indptr"][:-1], "need indices"),
        ("weight.values", good["weight.values"][:1], "need indices"),
        ("weight.indices", good["weight.indices"].long(), "must be int32"),
    ):
        before = {name: each.clone() for name, each in good.items()}
        with pytest.raises(RuntimeError, match=said):
            layer.load_state_dict(good | {name: bad})
        assert all(torch.equal(each, before[name]) for name, each in layer.state_dict().items())
    missing = {name: each for name, each in good.items() if name != "weight.indptr"}
    with pytest.raises(RuntimeError, match=r"Missing key.*weight.indptr"):
        layer.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .weight.values"):
        layer.load_state_dict(nn.Linear(INTO, UNITS).state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_is_a_layer_of_its_own(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    layer = layers()[kind]
    wanted = first(layer(X))
    other = copied(layer)
    assert torch.equal(first(other(X)), wanted)
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    assert not first(other(X)).any() and torch.equal(first(layer(X)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_types_devices_and_modes(kind: str) -> None:
    layer = layers()[kind]
    assert first(layer.double()(X.double())).dtype == torch.float64
    indices = [each for name, each in layer.named_buffers()]
    assert indices and all(each.dtype == torch.int32 for each in indices)
    for half in (torch.float16, torch.bfloat16):
        rounded = copy.deepcopy(layer).to(half)
        y = first(rounded(X.to(half)))
        assert y.dtype == half
        torch.testing.assert_close(y.double(), first(layer(X.double())), rtol=0.05, atol=0.05)
    state = {name: each.clone() for name, each in layer.state_dict().items()}
    meta = copy.deepcopy(layer).to("meta")
    assert all(each.is_meta for each in meta.state_dict().values())
    back = meta.to_empty(device="cpu")
    back.load_state_dict(state)
    assert torch.equal(first(back(X.double())), first(layer(X.double())))
    assert not layer.eval().training and layer.train().training
    layer.requires_grad_(False)
    assert not first(layer(X.double())).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_train_the_kept_values_alone(kind: str) -> None:
    layer = layers()[kind]
    weights = {name: each for name, each in layer.named_modules() if isinstance(each, BlockSparseWeight)}
    before = {name: each.to_dense().detach().clone() for name, each in weights.items()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (first(layer(X)) - 0.1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for name, weight in weights.items():
        empty = ~weight.matrix.mask.expand()
        assert not torch.equal(weight.to_dense(), before[name]) and not weight.to_dense()[empty].any()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_torchs_types(kind: str) -> None:
    dense = {"linear": nn.Linear(INTO, UNITS), "lstm": nn.LSTM(INTO, UNITS), "gru": nn.GRU(INTO, UNITS)}[kind]
    dense, sparse, _ = pair_of(dense)
    for given in (X, X.double()):
        dense, sparse = dense.to(given.dtype), sparse.to(given.dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found = list(tensors(sparse(given)))
            torchs = has_bfloat16_layers() or kind != "lstm" or given.dtype == torch.float64
            wanted = list(tensors(dense(given))) if torchs else []
        wanted = wanted or [each.bfloat16() for each in tensors(dense(given))]
        assert [each.dtype for each in found] == [each.dtype for each in wanted]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
    found[0].sum().backward()
    assert all(each.grad is not None for each in sparse.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.builds
def test_compiled_and_exported(kind: str) -> None:
    layer, x = layers()[kind], X[:2]  # compilers go through a GRU step by step
    wanted = first(layer(x))
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    y = first(compiled(x))
    torch.testing.assert_close(y, wanted)
    y.sum().backward()
    wanted.sum().backward()
    for one, other in zip(compiled.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    exported = torch.export.export(copy.deepcopy(layer), (x,), strict=False)
    torch.testing.assert_close(first(exported.module()(x)), wanted)


def dual(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The tangent of what `function` gives, by dual tensors."""
    with forward_ad.dual_level():
        found: Tensor = forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent
    return found


FORWARD: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jvp of jvp": lambda f, x: torch.func.jvp(
        lambda x: torch.func.jvp(lambda y: f(y).sin(), (x,), (x.cos(),))[1], (x,), (x.sin(),)
    ),
    "dual tensors": dual,
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_of_what_was_exported(kind: str, trained: bool) -> None:
    layer, x = layers()[kind].requires_grad_(trained), X[:2]
    exported = torch.export.export(copy.deepcopy(layer), (x,), strict=False).module()
    for transform in FORWARD.values():
        found, wanted = (transform(lambda x, each=each: first(each(x)), x) for each in (exported, layer))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.builds
def test_forward_mode_of_what_was_compiled(kind: str, backend: str) -> None:
    layer, x = layers()[kind].requires_grad_(False), X[:2]

    def run(x: Tensor) -> Tensor:
        return first(layer(x))

    for transform in (FORWARD["jvp"], dual):
        torch._dynamo.reset()
        compiled = torch.compile(run, backend=backend)
        compiled(x)
        torch.testing.assert_close(transform(compiled, x), transform(run, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        (NotImplementedError, torch._dynamo.exc.Unsupported), match="loses the tangents of dual tensors"
    ):
        dual(torch.compile(lambda x: first(layer(x)), backend=backend, fullgraph=True), x)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_and_checkpoints(kind: str) -> None:
    layer, x = layers()[kind], X[:2]
    values, buffers = (
        {name: each.detach() for name, each in given} for given in (layer.named_parameters(), layer.named_buffers())
    )

    def loss(values: dict[str, Tensor]) -> Tensor:
        return first(torch.func.functional_call(layer, (values, buffers), (x,))).square().sum()

    found = torch.func.grad(loss)(values)
    checkpoint(lambda x: first(layer(x)), x, use_reentrant=False).square().sum().backward()
    for name, each in layer.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-4, atol=1e-5)
    many = {name: torch.stack([each, 2 * each]) for name, each in values.items()}
    torch.testing.assert_close(torch.func.vmap(loss)(many)[0], loss(values))


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_packs_its_weights_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, packs, pack = layers()[kind], [], native_products.pack
    monkeypatch.setattr(native_products, "pack", lambda *given, **named: packs.append(given) or pack(*given, **named))
    with torch.no_grad():
        wanted = first(layer(X))
        assert freeze(layer) is layer and torch.equal(first(layer(X)), wanted)
        before = len(packs)
        assert torch.equal(first(layer(X)), wanted) and len(packs) == before
        assert torch.equal(first(copy.deepcopy(layer)(X)), wanted) and len(packs) > before


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_takes_what_is_loaded_and_may_be_trained_again(kind: str) -> None:
    layer, other = freeze(layers()[kind]), layers()[kind]
    weights = [each for each in layer.modules() if isinstance(each, BlockSparseWeight)]
    assert all(each.frozen and not each.values.requires_grad for each in weights)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(2)
    layer.load_state_dict(other.state_dict())
    wanted = first(other(X)).detach()
    torch.testing.assert_close(first(layer(X)), wanted)
    torch.testing.assert_close(first(layer.double()(X.double())).float(), wanted)
    layer.float().requires_grad_()
    first(layer(X)).sum().backward()
    assert all(each.values.grad.any() and not each.frozen for each in weights)
    with torch.no_grad():
        for each in weights:
            each.values.zero_()
    layer.requires_grad_(False)
    assert not torch.allclose(first(layer(X)), wanted)  # what was frozen does not come back


def test_a_layer_tells_its_sizes() -> None:
    linear, lstm = layers()["linear"], layers()["lstm"]
    assert "in_features=8, out_features=12, bias=True, block_size=4, sparsity=0.5" in repr(linear)
    assert "8, 12, num_layers=2, bias=True, batch_first=False, dropout=0.0, bidirectional=True" in repr(lstm)
    assert "(weight_hh_l1_reverse): BlockSparseWeight(48 x 12, block_size=4, sparsity=0.5)" in repr(lstm)
    assert linear.weight.shape == (12, 8) and linear.weight.dtype == torch.float32
    assert linear.weight.device == torch.device("cpu") and lstm.flatten_parameters() is None


@pytest.mark.parametrize("kind", [nn.Linear, *RECURRENT])
def test_a_dense_layer_gives_its_mode_type_and_what_is_trained(kind: type[nn.Module]) -> None:
    dense = kind(INTO, UNITS, dtype=torch.float64).eval()
    some = "weight" if kind is nn.Linear else "weight_hh_l0"
    getattr(dense, some).requires_grad_(False)
    before = torch.random.get_rng_state()
    masks = masks_of(dense)
    sparse = SPARSE[kind].from_dense(dense, masks["weight"] if kind is nn.Linear else masks)
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing is drawn in vain
    assert not sparse.training
    asked = {name.removesuffix(".values"): each for name, each in sparse.named_parameters()}
    for name, each in dense.named_parameters():
        assert asked[name].dtype == torch.float64 and asked[name].requires_grad == (name != some)
        assert asked[name].data_ptr() != each.data_ptr()


def test_a_new_layer_begins_as_torchs_do() -> None:
    mask = BlockMask.random(256, 64, 16, 0.5, torch.Generator().manual_seed(0))
    linear = BlockSparseLinear(64, 256, mask, bias=False, dtype=torch.float64)
    lstm = BlockSparseLSTM(64, 64, {"weight_hh_l0": mask})
    for values in (linear.weight.values, lstm.weight_hh_l0.values, lstm.weight_ih_l0):
        assert 0.9 / 8 < float(values.detach().abs().max()) <= 1 / 8 and abs(float(values.detach().mean())) < 0.01
    assert linear.bias is None and first(linear(normal(3, 64))).shape == (3, 256)


WRONG: dict[str, Callable[[], Any]] = {
    r"the mask of weight covers \(8, 8\), and the weight is \(12, 8\)": lambda: BlockSparseLinear(
        8, 12, BlockMask.full(8, 8, 4)
    ),
    "the mask of weight must be a BlockMask, got Tensor": lambda: BlockSparseLinear(8, 12, torch.ones(3, 2) > 0),
    "unknown kernel 'fast'; accepted": lambda: BlockSparseLinear(8, 12, BlockMask.full(12, 8, 4), kernel="fast"),
    "module must be a torch.nn.Linear, got LSTM": lambda: BlockSparseLinear.from_dense(nn.LSTM(8, 8), None),
    "module has parametrized weights; .*remove_parametrizations": lambda: BlockSparseLinear.from_dense(
        weight_norm(nn.Linear(8, 8)), BlockMask.full(8, 8, 4)
    ),
    "module is a LazyLinear without weights yet": lambda: BlockSparseLinear.from_dense(
        nn.LazyLinear(8), BlockMask.full(8, 8, 4)
    ),
    "proj_size must be 0, got 4": lambda: BlockSparseLSTM.from_dense(nn.LSTM(8, 8, proj_size=4), {}),
    "proj_size must be 0, got 2": lambda: BlockSparseLSTM(8, 8, {}, proj_size=2),
    "masks: 'weight_hh_l1' is no weight of the layer; accepted: weight_ih_l0, weight_hh_l0": lambda: BlockSparseGRU(
        8, 8, {"weight_hh_l1": BlockMask.full(24, 8, 4)}
    ),
    r"the mask of weight_hh_l0 covers \(32, 8\), and the weight is \(24, 8\)": lambda: BlockSparseGRU(
        8, 8, {"weight_hh_l0": BlockMask.full(32, 8, 4)}
    ),
    r"covers \(16, 8\), and the weight is \(12, 8\); pad=True pads it to \(16, 8\)": lambda: BlockSparseLinear(
        8, 12, BlockMask.full(16, 8, 8)
    ),
    r"covers \(8, 8\), and the weight is \(12, 8\), padded to \(16, 8\)": lambda: BlockSparseLinear(
        8, 12, BlockMask.full(8, 8, 8), pad=True
    ),
    "masks of a padded layer must have one block_size, got 4, 8": lambda: BlockSparseLSTM(
        8, 8, {"weight_hh_l0": BlockMask.full(32, 8, 4), "weight_ih_l0": BlockMask.full(32, 8, 8)}, pad=True
    ),
    "masks must map names of weights to masks, got BlockMask": lambda: BlockSparseLSTM(8, 8, BlockMask.full(32, 8, 4)),
    r"dropout must be a number in \[0, 1\], got 2": lambda: BlockSparseLSTM(8, 8, {}, dropout=2),
    "hidden_size must be at least 1, got 0": lambda: BlockSparseLSTM(8, 0, {}),
    "num_layers must be a whole number, got 1.5": lambda: BlockSparseLSTM(8, 8, {}, 1.5),
    "input must be a tensor of 2 or 3 dimensions, or a PackedSequence, got": lambda: layers()["lstm"](X[0, 0]),
    r"input must have 8 features, got \[5, 3, 7\]": lambda: layers()["gru"](X[..., :7]),
    r"input must have at least one step, got \[0, 3, 8\]": lambda: layers()["lstm"](X[:0]),
    r"hx must be \(h0, c0\) or None, got Tensor": lambda: layers()["lstm"](X, torch.zeros(4, 3, 12)),
    r"h0 must be \[4, 3, 12\], got \[4, 2, 12\]": lambda: layers()["lstm"](X, (torch.zeros(4, 2, 12),) * 2),
    r"c0 must be \[4, 12\], got \[4, 1, 12\]": lambda: layers()["lstm"](
        X[:, 0], (torch.zeros(4, 12), torch.zeros(4, 1, 12))
    ),
    r"h0 must be \[1, 3, 12\], got tuple": lambda: layers()["gru"](X, (torch.zeros(1, 3, 12),)),
    "x is torch.float64": lambda: layers()["lstm"](X.double()),
    "they must be of one type": lambda: layers()["gru"](X.double()),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_refused_in_a_line(said: str) -> None:
    with pytest.raises(ValueError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        WRONG[said]()
