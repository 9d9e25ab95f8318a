"""AWD-LSTM: dropout that reaches the products, gradients of raw weights, another reference, training on both paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rows import silent
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from bench.cells import TrainCell
from bench.models.awd_lstm import AWDLSTM, locked_dropout
from bench.models.patterns import drop_bits, dropped
from bench.models.registry import MODELS
from bench.pruning.finalize import finalize
from bench.pruning.pruner import Pruner
from bench.train import train_cell
from bench.training import tasks
from bench.training.optimizer import NonMonotone
from bench.training.paths import Paths, autocast, missing_kernel

pytestmark = pytest.mark.usefixtures("few_words")

NO_KERNEL = missing_kernel()
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
PATHS = ["dense", pytest.param("sparse", marks=needs_kernel)]
VOCABULARY, TIME, BATCH = 50, 7, 4
DROPS: dict[str, Any] = {
    "input_dropout": 0.6, "hidden_dropout": 0.2, "output_dropout": 0.4, "embedding_dropout": 0.1, "weight_drop": 0.5,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "model": "awd_lstm", "embedding_size": 16, "hidden_size": 32, "num_layers": 3, "block_size": 8, "batch_size": BATCH,
    "bptt": TIME, "schedule": "pre", "target_sparsity": 0.5,
}  # fmt: skip
PENALTIES = {"activation_penalty": 2.0, "temporal_penalty": 1.0}


def build(seed: int = 0, **settings: Any) -> AWDLSTM:
    """A model in training mode, pruned and on its path as a run would leave it."""
    cell = TrainCell(**{**SIZES, **settings})
    torch.manual_seed(seed)
    built: AWDLSTM = MODELS["awd_lstm"](cell, VOCABULARY)
    Paths(built, cell).update(Pruner(built.prunable(), cell, steps=10).masks)
    return built


def words(seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (TIME, BATCH), generator=torch.Generator().manual_seed(seed))


def test_the_published_sizes_have_the_published_number_of_parameters():
    cell = TrainCell(model="awd_lstm", embedding_size=400, hidden_size=1150, num_layers=3, weight_drop=0.5)
    built = MODELS["awd_lstm"](cell, 33_278)
    assert sum(parameter.numel() for parameter in built.parameters()) == 33_556_078
    assert sum(weight.numel() for weight in built.prunable().values()) == 20_190_000


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("only", ["none", *DROPS])
def test_two_training_forwards_differ_by_each_dropout_alone_and_evaluations_do_not(path: str, only: str):
    built = build(path=path, **({only: 0.5} if only != "none" else {}))
    first, again = built(words())[0], built(words())[0]
    assert torch.equal(first, again) == (only == "none")
    built.eval()
    with torch.no_grad():
        evaluated = built(words())[0]
        assert torch.equal(evaluated, built(words())[0])
    plain = build(path=path).eval()
    with torch.no_grad():
        assert torch.equal(evaluated, plain(words())[0])


@pytest.mark.parametrize("path", PATHS)
def test_dropped_weights_reach_the_product(path: str):
    """Where (almost) every recurrent weight is dropped, the hidden state that a layer starts from says nothing."""
    x, c = torch.randn(1, BATCH, 16), torch.zeros(1, BATCH, 32)
    for drop, equal in ((1 - 1e-9, True), (0.0, False)):
        layer = build(path=path, weight_drop=drop).layers[0]
        one, other = (layer(x, (torch.full((1, BATCH, 32), h), c))[0] for h in (-1.0, 1.0))
        assert torch.equal(one, other) == equal


@pytest.mark.parametrize("path", PATHS)
def test_raw_weights_get_gradients(path: str):
    built = build(path=path, weight_drop=0.5)
    logits, _ = built(words())
    F.cross_entropy(logits, words(2).flatten()).backward()
    assert all(parameter.is_leaf and parameter.grad is not None for parameter in built.parameters())
    assert len(list(built.parameters())) == 2 + 3 * 4
    for name, weight in built.prunable().items():
        kept = weight.grad[weight != 0]
        share = 0.5 if name.startswith("weight_hh") else 1.0  # dropped elements have none, and the next mask is another
        assert kept.count_nonzero() / kept.numel() == pytest.approx(share, abs=0.1), name


def reference(built: AWDLSTM, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, penalty) in float64, from the formulas one step at a time, with the masks that `built` is to draw."""
    cell = built.cell

    def mask(*shape: int, drop: float) -> Tensor:
        return torch.empty(shape).bernoulli_(1 - drop).double() / (1 - drop)

    def recurrent_mask(size: int, drop: float) -> Tensor:
        sixteen = torch.randint(-(2**63), 2**63 - 1, (size * size,)).view(torch.int16).view(4 * size, size)
        return (sixteen.double() >= 65536 * drop - 32768).double() / (1 - drop)

    embedding = built.embedding.weight.double()
    x = (embedding * mask(VOCABULARY, 1, drop=cell.embedding_dropout))[inputs]
    x = x * mask(BATCH, 16, drop=cell.input_dropout)
    for number, layer in enumerate(built.layers):
        if number:
            x = x * mask(BATCH, 32, drop=cell.hidden_dropout)
        size = layer.hidden_size
        weight_hh = layer.weight_hh_l0.double() * recurrent_mask(size, cell.weight_drop)
        weight_ih, bias = layer.weight_ih_l0.double(), layer.bias_ih_l0.double() + layer.bias_hh_l0.double()
        h = c = torch.zeros(BATCH, size, dtype=torch.float64)
        outputs = []
        for step in x:
            gates = step @ weight_ih.T + h @ weight_hh.T + bias
            i, f, g, o = gates[:, :size], gates[:, size : 2 * size], gates[:, 2 * size : 3 * size], gates[:, 3 * size :]
            c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
            h = torch.tanh(c) / (1 + torch.exp(-o))
            outputs.append(h)
        x = torch.stack(outputs)
    dropped = x * mask(BATCH, 16, drop=cell.output_dropout)
    change = sum(((x[t + 1] - x[t]) ** 2).sum() for t in range(TIME - 1)) / (BATCH * 16 * (TIME - 1))
    penalty = 2.0 * (dropped**2).sum() / dropped.numel() + 1.0 * change
    return dropped.reshape(-1, 16) @ embedding.T + built.decoder_bias.double(), penalty


def test_the_dense_path_is_the_step_by_step_reference_with_all_dropouts_on():
    built = build(path="dense", **DROPS, **PENALTIES)
    targets = words(2).flatten()
    names = [name for name, _ in built.named_parameters()]
    torch.manual_seed(5)
    logits, penalty = reference(built, words())
    wanted = torch.autograd.grad(F.cross_entropy(logits, targets) + penalty, list(built.parameters()))
    torch.manual_seed(5)
    ours, _ = built(words())
    assert built.penalty is not None
    (F.cross_entropy(ours, targets) + built.penalty).backward()
    assert (ours - logits).abs().max() < 1e-6 * logits.abs().max()
    assert built.penalty.item() == pytest.approx(penalty.item(), rel=1e-5)
    for name, parameter, grad in zip(names, built.parameters(), wanted, strict=True):
        assert (parameter.grad - grad).abs().max() < 1e-5 * grad.abs().max(), name


@needs_kernel
@pytest.mark.parametrize("weight_drop", [0.0, 0.5])
def test_both_paths_agree_in_logits_and_gradients_with_all_dropouts_on(weight_drop: float):
    found = {}
    for path in ("dense", "sparse"):
        built = build(path=path, **{**DROPS, "weight_drop": weight_drop}, **PENALTIES)
        torch.manual_seed(5)
        logits, _ = built(words())
        (F.cross_entropy(logits, words(2).flatten()) + built.penalty).backward()
        kept = {name: weight.grad[weight != 0] for name, weight in built.prunable().items()}
        found[path] = (logits.detach(), kept)
    torch.testing.assert_close(found["dense"][0], found["sparse"][0], rtol=0, atol=1e-6)
    for name, grad in found["dense"][1].items():
        torch.testing.assert_close(grad, found["sparse"][1][name], rtol=1e-4, atol=1e-7)


CHANGES_OVER = 4  # steps on the dense path first


def steps_of(path: str, precision: str, steps: int = 8) -> list[tuple[float, Tensor]]:
    """Loss and the generator's state after each step of a run with all dropouts on, of which every layer is on `path`.

    "both" stays on the dense path up to CHANGES_OVER. The weights move along the gradients, those of kept blocks alone.
    """
    built = build(path="dense", **DROPS, **PENALTIES)
    pruner = Pruner(built.prunable(), built.cell, steps=10)
    cell = built.cell.model_copy(update={"path": "dense" if path == "dense" else "sparse"})
    paths = Paths(built, cell)
    torch.manual_seed(5)
    found = []
    for step in range(steps):
        if path != "both" or step == CHANGES_OVER:
            paths.update(pruner.masks)
        with autocast("cpu", precision):
            logits, _ = built(words())
        loss = F.cross_entropy(logits.float(), words(2).flatten()) + built.penalty
        built.zero_grad()
        loss.backward()
        pruner.mask_gradients()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter -= 10.0 * parameter.grad
        found.append((loss.item(), torch.get_rng_state()))
    assert paths.sparse_layers == (0 if path == "dense" else 3)
    return found


@needs_kernel
@pytest.mark.parametrize("precision", ["ieee", "bfloat16"])
@pytest.mark.parametrize("path", ["sparse", "both"])
def test_a_run_with_all_dropouts_goes_step_by_step_alike_on_either_path(path: str, precision: str):
    tolerance = 1e-5 if precision == "ieee" else 5e-3
    dense, other = steps_of("dense", precision), steps_of(path, precision)
    assert dense[0][0] - dense[-1][0] > 0.05 or precision != "ieee", "the weights hardly moved"
    for step, ((loss, generator), (found, its_generator)) in enumerate(zip(dense, other, strict=True)):
        assert found == pytest.approx(loss, rel=tolerance), step
        assert torch.equal(generator, its_generator), step


@needs_kernel
@pytest.mark.parametrize("scope", ["all", "weight_hh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drop", [0.2, 0.5, 0.9])
def test_a_layer_drops_the_same_elements_on_both_paths(drop: float, dtype: torch.dtype, scope: str):
    """Outputs and gradients, those of the recurrent weight by the elements that they reach, too."""
    dense, sparse = (
        build(path=path, scope=scope, weight_drop=drop).layers[1].to(dtype) for path in ("dense", "sparse")
    )
    assert sparse.sparse and not dense.sparse
    x, h = torch.randn(TIME, BATCH, 32, dtype=dtype), torch.randn(1, BATCH, 32, dtype=dtype)
    found = []
    for layer in (dense, sparse):
        torch.manual_seed(11)
        found.append([])
        for _ in range(3):
            layer.zero_grad()
            y, _ = layer(x, (h, h))
            y.float().square().mean().backward()
            kept = layer.weight_hh_l0.grad[dense.weight_hh_l0 != 0]
            found[-1].append((y.detach(), kept, torch.get_rng_state()))
    tolerance = {"rtol": 0, "atol": {torch.bfloat16: 0.03, torch.float16: 4e-3}.get(dtype, 1e-6)}
    for (y, grad, generator), (other_y, other_grad, other_generator) in zip(*found, strict=True):
        torch.testing.assert_close(y, other_y, **tolerance)
        torch.testing.assert_close(grad, other_grad, **tolerance)
        vanish = {torch.bfloat16: 0.01, torch.float16: 1.0}.get(dtype, 0.0)  # sums that are rounded to 0 on one path
        assert ((grad == 0) != (other_grad == 0)).float().mean() <= vanish
        assert torch.equal(generator, other_generator)
    assert not torch.equal(found[0][0][1] == 0, found[0][1][1] == 0)


@pytest.mark.parametrize("drop", [1e-9, 1e-4, 0.2, 0.5, 0.9, 1 - 1e-9])
def test_dropped_elements_are_the_share_asked_for_and_the_mean_stays(drop: float):
    torch.manual_seed(0)
    values = torch.ones(2048, 512)
    found = dropped(values, drop_bits(values), drop)
    drop = max(drop, 2**-16)
    share, scatter = (found == 0).double().mean().item(), (drop * (1 - drop) / values.numel()) ** 0.5
    assert share == pytest.approx(drop, abs=5 * scatter + 2**-16)
    assert found.unique().numel() == (2 if drop < 0.999 else 1)
    if drop < 0.999:
        assert found.max().item() == pytest.approx(1 / (1 - drop), rel=2e-4)
        assert found.double().mean().item() == pytest.approx(1.0, abs=5 * scatter / (1 - drop))
    stays = (found != 0).float().view(-1)
    neighbours = torch.stack([stays[shift::8] for shift in range(8)])  # of two words of the generator
    among = torch.corrcoef(neighbours)[~torch.eye(8, dtype=torch.bool)]
    assert not 0.1 < drop < 0.99 or among.abs().max() < 5 / neighbours.shape[1] ** 0.5


@needs_kernel
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_members_of_an_ensemble_are_dropped_as_vmap_is_asked_to(randomness: str):
    """On the sparse path, for torch has no rule for its own layer."""
    layer = build(path="sparse", weight_drop=0.5).layers[1]
    x, h = torch.zeros(1, BATCH, 32), torch.ones(1, BATCH, 32)
    given = {name: each.detach().expand(3, *each.shape).clone() for name, each in layer.named_parameters()}
    call = torch.vmap(lambda own: functional_call(layer, own, (x, (h, h)))[0], randomness=randomness)
    one, two, three = call(given)
    assert torch.equal(one, two) == torch.equal(two, three) == (randomness == "same")


@needs_kernel
@pytest.mark.builds
def test_both_paths_drop_alike_when_compiled():
    found = []
    for path in ("dense", "sparse"):
        torch.compiler.reset()
        layer = build(path=path, weight_drop=0.5).layers[1]
        torch.manual_seed(3)
        found.append(torch.compile(layer, backend="aot_eager")(torch.ones(TIME, BATCH, 32))[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_locked_mask_is_one_for_all_time_steps_and_keeps_the_mean():
    torch.manual_seed(0)
    y = locked_dropout(torch.ones(5, 400, 100), 0.25, True)
    assert torch.equal(y, y[:1].expand_as(y)) and y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert y.mean().item() == pytest.approx(1.0, abs=0.02) and not torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(locked_dropout(y, 0.25, False), y)


def test_a_dropped_word_is_dropped_wherever_it_stands_and_never_in_the_decoder():
    built = build(embedding_dropout=0.5)
    inputs = torch.tensor([[3, 4, 3, 5], [5, 3, 4, 4]]).repeat(20, 1)
    seen = set()
    for _ in range(10):
        x = built.embed(inputs)
        for word in (3, 4, 5):
            rows = x[inputs == word]
            assert torch.equal(rows, rows[:1].expand_as(rows))
            seen.add(bool(rows.any()))
    assert seen == {True, False}


def test_a_window_of_one_step_has_no_temporal_penalty_and_a_finite_loss():
    built = build(**PENALTIES)
    built(words()[:1])
    assert built.penalty is not None and torch.isfinite(built.penalty)
    built.eval()
    built(words())
    assert built.penalty is None
    alone = build(temporal_penalty=1.0)
    alone(words()[:1])
    assert alone.penalty is None


@needs_kernel
def test_the_finalised_model_is_the_model_in_evaluation():
    cell = TrainCell(**SIZES, **DROPS)
    built = build(**DROPS).eval()
    masks = Pruner(built.prunable(), cell, steps=10).masks
    with torch.no_grad():
        torch.testing.assert_close(finalize(built, masks)(words())[0], built(words())[0], rtol=0, atol=1e-6)


TRAINING: dict[str, Any] = {
    **SIZES, **DROPS, **PENALTIES, "num_layers": 2, "train_tokens": 2000, "eval_tokens": 500, "batch_size": 10,
    "bptt": 20, "epochs": 3, "prune_every": 1, "schedule": "linear", "target_sparsity": 0.8, "prune_end": 0.3,
    "bptt_jitter": 5.0, "bptt_halved": 0.05, "decoder_bias": "zeros", "selection": "best",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "learning_rate": 0.01, "lr_schedule": "four_phases", "beta1": 0.8, "beta1_dip": 0.1,
             "beta2": 0.99, "clip": 0.12, "weight_decay": 1.2e-6},
    "nt_asgd": {"optimizer": "nt_asgd", "learning_rate": 5.0, "rate_by_length": True, "weight_decay": 1.2e-6},
}  # fmt: skip


@pytest.mark.parametrize("lasso", ["none", "proximal"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_few_steps_lower_the_loss_and_masks_survive(recipe: str, path: str, lasso: str, monkeypatch):
    monkeypatch.setattr(tasks, "epoch_slice", lambda tokens, size, _epoch: tokens[:size])  # the same text again
    monkeypatch.setattr(NonMonotone, "sees", lambda _self, _val_ppl: True)  # averages as soon as they may
    after_step, averages = Pruner.after_step, []

    def checked(self: Pruner, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        after_step(self, step, optimizer)
        for name, mask in self.masks.items():
            for tensor in self._tensors(self.weights[name], optimizer):
                assert (tensor[~mask.expand()] == 0).all(), f"{name} leaks at step {step}"
            averages.append("ax" in optimizer.state[self.weights[name]] if optimizer else False)

    monkeypatch.setattr(Pruner, "after_step", checked)
    rows = train_cell(TrainCell(**{**TRAINING, **RECIPES[recipe]}, path=path, lasso=lasso), silent)
    assert rows[-1]["status"] == "ok" and rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.02)
    assert rows[1]["val_ppl"] > rows[2]["val_ppl"] > rows[3]["val_ppl"] or recipe == "nt_asgd"
    assert rows[-1]["train_ppl"] < rows[1]["train_ppl"] < rows[0]["vocabulary"]
    assert any(averages) == (recipe == "nt_asgd") and rows[-1]["averaging"] == (recipe == "nt_asgd")
    assert rows[-1]["reported_test_ppl"] > 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_equal_cells_give_bit_equal_results(recipe: str):
    cell = TrainCell(**{**TRAINING, **RECIPES[recipe]}, seed=3)
    first, again = (train_cell(cell, silent) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(
            one[name] == other[name] for name in ("step", "train_ppl", "val_ppl", "test_ppl", "reported_test_ppl")
        )
