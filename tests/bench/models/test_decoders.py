"""Decoders: an adaptive softmax is exact, starts from frequencies, trains by sparse gradients, is exported whole."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import results, silent
from torch import nn
from torch.nn import functional as F

from bench.cells import TrainCell
from bench.data.corpus import Sizes, data_dir
from bench.data.datasets import load_corpus
from bench.measuring import memory
from bench.models.decoders import AdaptiveSoftmax, Decoder, adaptive_of
from bench.models.registry import MODELS
from bench.models.settings import models_of
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.train import train_cell
from bench.training.needs import lines
from bench.training.optimizer import AdamOfRows, clip_gradients, make_optimizer
from bench.training.paths import missing_kernel

pytestmark = pytest.mark.usefixtures("few_words")

NO_KERNEL = missing_kernel()
VOCABULARY = 50
ADAPTIVE: dict[str, Any] = {
    "decoder": "adaptive", "cutoff": 8, "second_cutoff": 20, "embedding_size": 16, "hidden_size": 32, "num_layers": 2,
    "block_size": 8,
}  # fmt: skip
TINY: dict[str, Any] = {
    **ADAPTIVE, "cutoff": 50, "second_cutoff": 200, "train_tokens": 2000, "eval_tokens": 500, "batch_size": 10,
    "bptt": 20, "epochs": 2, "prune_every": 1, "learning_rate": 0.01, "threads": 1, "schedule": "linear",
    "target_sparsity": 0.75, "prune_end": 0.5,
}  # fmt: skip
WORDS = torch.randint(VOCABULARY, (6, 4), generator=torch.Generator().manual_seed(3))
TARGETS = torch.randint(VOCABULARY, (6, 4), generator=torch.Generator().manual_seed(4))


def built(name: str = "lstm", **settings: Any) -> Any:
    torch.manual_seed(0)
    return MODELS[name](TrainCell(**{**ADAPTIVE, **settings}), VOCABULARY).eval()


@pytest.mark.parametrize("name", models_of("language"))
@pytest.mark.parametrize("second", [0, 20])
def test_its_probabilities_are_exact_and_its_loss_is_theirs(name: str, second: int) -> None:
    model = built(name, second_cutoff=second)
    logits, _ = model(WORDS)
    assert logits.shape == (24, VOCABULARY)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(24))
    for reduction in ("mean", "sum"):
        loss, _ = model.loss(WORDS, TARGETS, None, reduction)
        torch.testing.assert_close(loss, F.nll_loss(logits, TARGETS.flatten(), reduction=reduction))


def test_the_tied_loss_is_the_cross_entropy_of_its_logits() -> None:
    model = built(decoder="tied")
    logits, states = model(WORDS)
    loss, after = model.loss(WORDS, TARGETS)
    assert torch.equal(loss, F.cross_entropy(logits, TARGETS.flatten()))
    assert all(
        torch.equal(one, other) for pair in zip(states, after, strict=True) for one, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("name", models_of("language"))
def test_it_starts_from_the_frequencies(name: str) -> None:
    model, counts = built(name), torch.arange(VOCABULARY, 0, -1)
    model.start_from_frequencies(counts)
    silence = torch.zeros(1, 1, 32)
    first = model.decoder.logits(silence)[0].exp()
    share = (counts + 0.5) / (counts + 0.5).sum()
    torch.testing.assert_close(first[:8], share[:8])
    for low, high in ((8, 20), (20, 50)):  # of a cluster as a whole: inside it has no bias
        torch.testing.assert_close(first[low:high].sum(), share[low:high].sum())


def test_every_layer_has_the_hidden_size() -> None:
    cell = TrainCell(**ADAPTIVE)
    assert cell.layer_widths == [16, 32, 32] and TrainCell(**{**ADAPTIVE, "decoder": "tied"}).layer_widths == [
        16,
        32,
        16,
    ]
    assert [layer.hidden_size for layer in built().layers] == [32, 32]


@pytest.mark.parametrize("second", [0, 20])
def test_parameters_and_multiply_adds_by_hand(second: int) -> None:
    model, cell = built(second_cutoff=second), TrainCell(**{**ADAPTIVE, "second_cutoff": second})
    assert memory.parameters_of(cell, Sizes(1000, 100, 100, VOCABULARY)) == sum(
        each.numel() for each in model.parameters()
    )
    counts = torch.zeros(VOCABULARY)
    counts[0], counts[10], counts[30] = (
        70,
        20,
        10,
    )  # in the head, in the first cluster, and in the second where there is one
    head, first, second_tail = 32 * (8 + (2 if second else 1)), 8 * (32 + (12 if second else 42)), 2 * (32 + 30)
    wanted = head + (0.2 * first + 0.1 * second_tail if second else 0.3 * first)
    assert model.decoder_multiply_adds(counts) == pytest.approx(wanted)
    assert built(decoder="tied").decoder_multiply_adds(counts) == 16 * VOCABULARY


def test_it_multiplies_in_float32_under_autocast() -> None:
    model = built()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(WORDS, TARGETS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model.loss(WORDS, TARGETS)[0].item(), rel=0.01)


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("model", models_of("language"))
@pytest.mark.parametrize(
    "path",
    [
        "dense",
        pytest.param(
            "sparse", marks=pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
        ),
    ],
)
def test_it_trains_prunes_and_is_exported(path: str, model: str, gradient: str, tmp_path: Path) -> None:
    cell = TrainCell(**{**TINY, "model": model, "embedding_gradient": gradient, "path": path})
    export = None if path == "dense" else tmp_path / "model.pt"
    rows = train_cell(cell, silent, export)
    assert results(rows) == results(train_cell(cell, silent)), "equal cells give bit-equal results"
    assert [row["status"] for row in rows] == 3 * ["ok"]
    assert rows[2]["val_ppl"] < rows[1]["val_ppl"] < rows[0]["vocabulary"] / 4
    assert rows[2]["sparsity"] == pytest.approx(0.75, abs=0.01)
    if export:
        assert rows[2]["final_ppl"] == pytest.approx(rows[2]["test_ppl"], rel=1e-5)
        assert FinalModel.load(export).decoder_bias is None


def test_a_finalised_one_is_what_was_saved(tmp_path: Path) -> None:
    cell = TrainCell(**ADAPTIVE, schedule="pre", target_sparsity=0.75)
    model = built(schedule="pre", target_sparsity=0.75)
    pruner = Pruner(model.prunable(), cell, steps=10)
    finalize(model, pruner.masks).save(tmp_path / "model.pt")
    final = FinalModel.load(tmp_path / "model.pt").to("cpu")
    with torch.no_grad():
        torch.testing.assert_close(final(WORDS)[0], model(WORDS)[0], rtol=0.0, atol=1e-6)
        torch.testing.assert_close(final.loss(WORDS, TARGETS)[0], model.loss(WORDS, TARGETS)[0])
    assert not any(each.requires_grad for each in final.head.parameters())


def without(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {each: weight for each, weight in weights.items() if each != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: without(head, "head.bias"), "head: its tensors are not those of one adaptive softmax"),
        (lambda head: {**head, "tail.0.0.weight": torch.zeros(3, 32)}, "head: its tensors are not those"),
        (
            lambda head: {**head, "tail.1.1.weight": torch.zeros(7, 2)},
            "head must lead from 32 units to 50 words, got one",
        ),
        (lambda head: {**head, "head.weight": [1.0]}, "head: its tensors are not those"),
        (lambda head: {name: weight.double() for name, weight in head.items()}, "head.head.weight must be float32"),
        (lambda _: [], "head must be a dictionary of tensors, got list"),
        (lambda _: {}, "head: its tensors are not those"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(change: Any, words: str, tmp_path: Path) -> None:
    import hashlib

    cell = TrainCell(**ADAPTIVE, schedule="pre", target_sparsity=0.75)
    model = built(schedule="pre", target_sparsity=0.75)
    path = tmp_path / "model.pt"
    finalize(model, Pruner(model.prunable(), cell, steps=10).masks).save(path)
    content = torch.load(path, weights_only=True)
    content["head"] = change(content["head"])
    torch.save(content, path)
    path.with_name("model.pt.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n")
    with pytest.raises(ValueError, match=r"\A[^\n]*model\.pt is no exported model: [^\n]*\Z") as caught:
        FinalModel.load(path)
    assert words in str(caught.value)


def test_neither_bias_nor_head_is_refused() -> None:
    cell = TrainCell(**ADAPTIVE, schedule="pre", target_sparsity=0.75)
    model = built(schedule="pre", target_sparsity=0.75)
    final = finalize(model, Pruner(model.prunable(), cell, steps=10).masks)
    with pytest.raises(ValueError, match="decoder_bias: neither it nor a head is given"):
        FinalModel(final.embedding, None, final.layers)


def test_weights_make_the_softmax_again() -> None:
    head = AdaptiveSoftmax(32, VOCABULARY, [8, 20])
    again = adaptive_of(head.state_dict())
    assert again.cutoffs == head.cutoffs
    x = torch.randn(5, 32)
    assert torch.equal(Decoder(x, None, again).logits(x[None]), head.log_prob(x))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_sparse_gradients_step_as_torch_does(optimizer: str) -> None:
    """Against dense gradients where every word stands in the window, and rows that do not stand in it left alone."""
    cell = TrainCell(
        **ADAPTIVE,
        optimizer=optimizer,
        learning_rate=0.01 if optimizer == "adam" else 1e-4,
        embedding_gradient="sparse",
    )
    model, everywhere = built(embedding_gradient="sparse"), torch.arange(48).view(6, 8)
    twin = built()
    twin.load_state_dict(model.state_dict())
    ours, theirs = (
        make_optimizer(each, one, 10)
        for each, one in ((cell, model), (cell.model_copy(update={"embedding_gradient": "dense"}), twin))
    )
    before = model.embedding.weight.detach().clone()
    for _ in range(3):
        for net, stepper in ((model, ours), (twin, theirs)):
            stepper.zero_grad()
            (
                1e4 * net.loss(everywhere, everywhere)[0]
            ).backward()  # so that Adam's epsilon, put elsewhere by both, is nothing
            clip_gradients(net.parameters(), 1e3)
            stepper.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # of steps of 0.01
    assert not torch.equal(model.embedding.weight[:48], before[:48])
    assert torch.equal(model.embedding.weight[48:], before[48:])


def test_rows_without_a_gradient_have_neither_moments_nor_steps() -> None:
    """Dense Adam goes on moving a word by its moments after the window is gone; SparseAdam does not."""
    weight, other = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))
    adam = AdamOfRows([other], [weight], 0.1, (0.9, 0.999), None)
    for rows in ([0, 1], [1]):
        other.grad = torch.ones(3)
        weight.grad = torch.sparse_coo_tensor([rows], torch.ones(len(rows), 2), (4, 2), check_invariants=True)
        adam.step()
    assert weight[:, 0].tolist() == pytest.approx([0.9, 0.8, 1.0, 1.0], abs=1e-3)
    assert adam.state_dict()["state"].keys() == {0, 1}
    again = AdamOfRows([nn.Parameter(torch.ones(3))], [nn.Parameter(torch.ones(4, 2))], 0.5, (0.5, 0.5), None)
    again.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.1]
    assert type(again.state[again.param_groups[1]["params"][0]]["step"]) is int, "a float32 one would round otherwise"


@pytest.mark.parametrize("largest", [0.1, 1e6])
def test_a_sparse_gradient_counts_in_the_norm_once_for_each_row(largest: float) -> None:
    def parameters(sparse: bool) -> list[nn.Parameter]:
        weight, other = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(3))
        twice = torch.sparse_coo_tensor(
            [[1, 1, 4]], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), (5, 2), check_invariants=True
        )
        weight.grad, other.grad = twice if sparse else twice.to_dense(), torch.tensor([1.0, -2.0, 3.0])
        return [weight, other]

    ours, theirs = parameters(True), parameters(False)
    clip_gradients(ours, largest)
    nn.utils.clip_grad_norm_(theirs, largest)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad.to_dense(), other.grad)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decoder": "adaptive", "second_cutoff": 1000}, "second_cutoff: 1000 does not exceed cutoff 2000"),
        ({"embedding_gradient": "sparse"}, "embedding_gradient: a tied decoder's is dense"),
        (
            {"decoder": "adaptive", "embedding_gradient": "sparse", "optimizer": "nt_asgd"},
            "embedding_gradient: sparse is for adam and sgd",
        ),
        (
            {"decoder": "adaptive", "embedding_gradient": "sparse", "weight_decay": 1e-6},
            "embedding_gradient: sparse is for",
        ),
        (
            {"decoder": "adaptive", "embedding_gradient": "sparse", "optimizer": "sgd", "momentum": 0.9},
            "embedding_gradient",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainCell(**settings)


def test_cutoffs_matter_to_an_adaptive_softmax_only() -> None:
    assert TrainCell(cutoff=5, second_cutoff=9).cell_id == TrainCell().cell_id
    assert TrainCell(decoder="adaptive", cutoff=5).cell_id != TrainCell(decoder="adaptive").cell_id


def test_a_vocabulary_with_too_few_words_is_refused_before_the_first_step() -> None:
    sizes = load_corpus("pydoc", data_dir()).sizes
    cell = TrainCell(**{**TINY, "cutoff": 50, "second_cutoff": sizes.vocabulary})
    with pytest.raises(
        ValueError, match=f"second_cutoff: {sizes.vocabulary} leaves no cluster of the {sizes.vocabulary} words"
    ):
        train_cell(cell, silent)
    words = TrainCell(dataset="wikitext2", decoder="adaptive", cutoff=40000, second_cutoff=0)
    assert any("will fail: cutoff: 40000 leaves no cluster of the 33278 words" in line for line in lines([words]))


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_says_how_far_it_still_falls(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation text is seen when a tenth of the steps is left.

    9 steps an epoch, so after 9 of 10 and 25 of 27.
    """
    from bench.training.examiner import Examiner
    from bench.training.scores import Scores

    seen: list[tuple[int, Scores]] = []
    look, score = Examiner.look_late, Examiner.score

    def spied(self: Examiner) -> None:
        look(self)
        seen.append((1, Scores(self.late, [])))

    def scored(self: Examiner, model: Any, part: str, *rest: Any) -> Scores:
        found = score(self, model, part, *rest)
        if part == "valid":
            last[:] = [found]
        return found

    last: list[Scores] = []
    monkeypatch.setattr(Examiner, "look_late", spied)
    monkeypatch.setattr(Examiner, "score", scored)
    rows = train_cell(TrainCell(**{**TINY, "epochs": epochs, "train_tokens": 2020, "bptt": 20}), silent)
    [(_, late)] = seen
    change = (sum(last[0].nats) - sum(late.nats)) / last[0].count
    assert rows[-1]["val_change"] == pytest.approx(change)
    assert rows[-1]["val_change"] < 0.0 < rows[-1]["val_change_error"] < abs(rows[-1]["val_change"])
    assert all(row["val_change"] is None for row in rows[:-1])


def test_a_run_of_few_steps_does_not_say_it() -> None:
    assert train_cell(TrainCell(**{**TINY, "epochs": 1, "train_tokens": 1000}), silent)[-1]["val_change"] is None


def test_the_error_of_a_change_by_hand() -> None:
    from bench.training.scores import Scores

    now = Scores([10.0, 24.0, 30.0], [10, 10, 10])
    mean, error = now.change_since([12.0, 25.0, 36.0])  # by -2, -1 and -6 nats, 10 targets each
    differences = [-0.2, -0.1, -0.6]
    wanted = math.sqrt(sum((each + 0.3) ** 2 for each in differences) / 2 / 3)
    assert (mean, error) == (pytest.approx(-0.3), pytest.approx(wanted))
    assert math.isnan(Scores([1.0], [1]).change_since([2.0])[1])
