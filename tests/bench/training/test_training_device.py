"""Training for a GPU as far as none is needed.

No devices are mixed, nothing waits, and the deferred figures are the same.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import PretendDevice
from rows import DIGITS, results, silent
from torch import nn

from bench import train
from bench.cells import GemmCell, TrainCell
from bench.engines.estimate import rough_seconds
from bench.measuring.clocks import Stopwatch, interleaved
from bench.models import decoders
from bench.models.layers import LSTMLayer
from bench.models.registry import MODELS
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.run import training_workers
from bench.sweep import load
from bench.train import Run, train_cell
from bench.training import meter
from bench.training.optimizer import make_optimizer
from bench.training.paths import autocast, missing_kernel, multiplying
from kernels.cuda.device import unavailable

pytestmark = pytest.mark.usefixtures("few_words")

TINY = {
    "train_tokens": 600, "eval_tokens": 300, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 2, "prune_every": 1, "threads": 1, "schedule": "linear",
    "target_sparsity": 0.8, "prune_end": 0.5,
}  # fmt: skip
AWD: dict[str, Any] = {
    "model": "awd_lstm", "weight_drop": 0.3, "input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2,
    "embedding_dropout": 0.1, "activation_penalty": 2.0, "temporal_penalty": 1.0, "selection": "best", "clip": 0.1,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 0.01, "weight_decay": 1e-2, "lr_schedule": "four_phases", "lasso": "proximal"},
    "sgd": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 1e-4, "lasso": "subgradient"},
    "asgd": {"optimizer": "asgd", "learning_rate": 2.0, "lasso": "hinge"},
    "nt_asgd": {"optimizer": "nt_asgd", "learning_rate": 2.0, "rate_by_length": True, "bptt_jitter": 2.0},
}
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The loss stays where it is, and masks are looked at when an epoch ends: on the CPU, where no GPU is."""
    init = Pruner.__init__

    def lazy(self: Pruner, weights: Any, given: TrainCell, *more: Any) -> None:
        init(self, weights, given.model_copy(update={"device": "cuda"}), *more)

    monkeypatch.setattr(Pruner, "__init__", lazy)
    monkeypatch.setattr(Run, "deferred", property(lambda _: True))
    return monkeypatch


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_is_looked_at_later_gives_the_same_rows(optimizer: str, request: pytest.FixtureRequest):
    settings = cell(**AWD, **OPTIMIZERS[optimizer])
    wanted = results(train_cell(settings, silent))
    request.getfixturevalue("as_on_a_gpu")
    assert results(train_cell(settings, silent)) == wanted


def test_a_leak_is_seen_when_the_epoch_ends(as_on_a_gpu: pytest.MonkeyPatch):
    step_of, steps = torch.optim.SGD.step, []

    def leak(self: torch.optim.SGD, *arguments: Any) -> None:
        step_of(self, *arguments)
        steps.append(self)
        if len(steps) == 2:
            weight = next(each for each in self.param_groups[0]["params"] if each.shape == (128, 32))
            row, col = (weight == 0).nonzero()[0].tolist()
            self.state[weight]["momentum_buffer"][row, col] = 1e-30

    as_on_a_gpu.setattr(torch.optim.SGD, "step", leak)
    with pytest.raises(AssertionError, match="a pruned block is not zero"):
        train_cell(cell(**OPTIMIZERS["sgd"], schedule="pre"), silent)


@pytest.mark.parametrize("looks", [1, 50])
def test_a_loss_that_is_no_number_ends_the_run_in_its_epoch(looks: int, as_on_a_gpu: pytest.MonkeyPatch):
    as_on_a_gpu.setattr(train, "STEPS_BETWEEN_LOOKS", looks)
    shrink, calls = train.Lasso.shrink_, []

    def poison(self: Any, weights: Any, learning_rate: float) -> None:
        calls.append(learning_rate)
        weights = list(weights)
        if len(calls) == 4:  # of three steps an epoch
            weights[0].data.fill_(math.nan)
        shrink(self, weights, learning_rate)

    as_on_a_gpu.setattr(train.Lasso, "shrink_", poison)
    rows = train_cell(cell(epochs=3), silent)
    assert [(row["epoch"], row["status"]) for row in rows] == [(0, "diverged"), (1, "diverged")]
    assert "the loss became nan in epoch 2" in rows[0]["reason"]
    assert len(calls) == (5 if looks == 1 else 6)  # the fifth loss is the first that is none


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "mlp"])
def test_training_and_evaluation_mix_no_devices_and_wait_for_nothing(optimizer: str, monkeypatch: pytest.MonkeyPatch):
    """Two epochs with penalties, ramp, masks, averages, selection and report; a look every two steps.

    torch's ASGD reads its rates at each step unless it is `capturable`, which is for GPUs only.
    """
    monkeypatch.setattr(train, "STEPS_BETWEEN_LOOKS", 2)
    short = {"train_tokens": 70, "eval_tokens": 50, "bptt": 2, "bptt_jitter": 0.0, "test_batch_size": 5}
    if optimizer == "mlp":
        monkeypatch.setattr("bench.training.tasks.EVAL_EXAMPLES", 100)
        settings = cell(**{**DIGITS, "batch_size": 500, "batch_norm": True, "selection": "best"})
    else:
        settings = cell(**{**AWD, **OPTIMIZERS[optimizer], **short})
    settings = settings.model_copy(update={"device": "meta"})
    with PretendDevice() as device:
        run = Run.of(settings.canonical(), silent, None)
        assert all(parameter.is_meta for parameter in run.model.parameters())
        for epoch, masks_change in ((1, True), (2, False)):
            device.waits.clear()
            run.train_epoch(epoch)
            steps = len(run.task.lengths[epoch - 1])
            assert steps == 3 and (
                masks_change or optimizer == "asgd" or len(device.waits) == 3
            )  # looks, one at the end
            device.waits.clear()
            last = run.examiner.after(epoch, run.step)
            more = {"asgd": 14, "mlp": 2}.get(optimizer, 0)  # of how many were right
            assert device.waits.count("aten::_local_scalar_dense") <= 2 + more
            run.row(epoch)
        run.examiner.at_the_end(last, None)
        assert all(
            value.is_meta for state in run.optimizer.state.values() for value in state.values() if is_large(value)
        )


def is_large(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def test_the_pretended_device_sees_what_it_is_for():
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    with PretendDevice() as device:
        assert float(there.sum()) == 0.0 and (there + torch.tensor(1.0)).is_meta
        assert device.waits == ["aten::_local_scalar_dense"]
        with pytest.raises(AssertionError, match=r"add.* mixes devices"):
            there + here
        with pytest.raises(AssertionError, match=r"index.* mixes devices"):
            there[here.long()]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nt_asgd"])
def test_the_fused_optimizers_of_a_gpu_do_the_same(optimizer: str, monkeypatch: pytest.MonkeyPatch):
    """They are on the CPU too; their sums round in another order."""
    settings = cell(**OPTIMIZERS[optimizer])
    wanted = train_cell(settings, silent)

    def fused(given: TrainCell, *rest: Any) -> Any:
        made = make_optimizer(given.model_copy(update={"device": "cuda"}), *rest)
        assert made.param_groups[0]["fused"]
        return made

    monkeypatch.setattr(train, "make_optimizer", fused)
    for one, other in zip(train_cell(settings, silent)[1:], wanted[1:], strict=True):
        assert one["val_ppl"] == pytest.approx(other["val_ppl"], rel=1e-4) and one["sparsity"] == other["sparsity"]


@pytest.mark.parametrize("settings", [{}, AWD], ids=["lstm", "awd_lstm"])
def test_bfloat16_is_in_the_products_alone(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter, "INFERENCE_PAIRS", 2)
    exact = train_cell(cell(**settings, **OPTIMIZERS["adam"]), silent)
    runs, losses, of = [], [], Run.of
    monkeypatch.setattr(Run, "of", lambda *given: runs.append(of(*given)) or runs[0])
    entropy = decoders.F.cross_entropy
    monkeypatch.setattr(
        decoders.F,
        "cross_entropy",
        lambda logits, *rest, **more: losses.append(logits.dtype) or entropy(logits, *rest, **more),
    )
    rows = train_cell(cell(**settings, **OPTIMIZERS["adam"], precision="bfloat16", path="auto"), silent)
    assert set(losses) == {torch.float32}
    assert {parameter.dtype for parameter in runs[0].model.parameters()} == {torch.float32}
    assert {value.dtype for state in runs[0].optimizer.state.values() for value in state.values()} == {torch.float32}
    assert {part.dtype for state in runs[0].states for part in state} == {torch.float32}
    assert rows[-1]["val_ppl"] != exact[-1]["val_ppl"] == pytest.approx(rows[-1]["val_ppl"], rel=0.03)
    assert rows[-1]["final_ppl"] == pytest.approx(rows[-1]["test_ppl"], rel=0.02)
    assert "bfloat16 LSTM layer" in rows[-1]["reason"] and rows[-1]["inference_kernel"] == "torch"


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_layer_multiplies_as_autocast_says(drop: float):
    torch.manual_seed(0)
    layer, x = LSTMLayer(16, 8, drop), torch.randn(5, 3, 16, requires_grad=True)
    wanted, (h, _) = layer(x)
    torch.manual_seed(1)
    with autocast("cpu", "bfloat16"):
        y, (hidden, memory) = layer(x)
    y.square().sum().backward()
    assert y.dtype == hidden.dtype == memory.dtype == x.grad.dtype == layer.weight_hh_l0.grad.dtype == torch.float32
    assert torch.equal(y, y.bfloat16().float()), "what comes out is rounded to bfloat16"
    if not drop:
        assert (
            torch.allclose(y, wanted, atol=0.02) and not torch.equal(y, wanted) and torch.allclose(hidden, h, atol=0.02)
        )
    again = nn.LSTM(16, 8)
    again.load_state_dict(layer.state_dict())
    if not drop:
        assert torch.equal(again.bfloat16()(x.detach().bfloat16())[0].float(), y)


def test_the_kernels_of_a_cells_device_are_asked():
    assert "LSTM layer" in str(missing_kernel("cpu", "bfloat16"))
    assert missing_kernel("cuda") == unavailable()


def test_float32_is_multiplied_as_the_cell_says():
    matmul, layers = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = matmul.allow_tf32, layers.fp32_precision
    newer = matmul.fp32_precision
    for precision, wanted in {"tf32": (True, "tf32"), "ieee": (False, "ieee"), "bfloat16": (False, "ieee")}.items():
        with multiplying("cuda", precision):
            assert (matmul.allow_tf32, layers.fp32_precision) == wanted
            assert not matmul.allow_bf16_reduced_precision_reduction
    with multiplying("cpu", "bfloat16"):
        assert (matmul.allow_tf32, layers.fp32_precision) == before
    assert (matmul.allow_tf32, layers.fp32_precision) == before
    assert matmul.fp32_precision == newer, "which the older name writes, too"


@NO_GPU
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_cell_for_a_gpu_is_unsupported_without_one(path: str):
    assert train_cell(cell(device="cuda", path=path), silent) == [{"status": "unsupported", "reason": "no CUDA device"}]


def test_tf32_is_refused_on_the_cpu_and_old_ids_stand():
    with pytest.raises(ValueError, match=r"precision: tf32 is arithmetic of GPUs; accepted: ieee or bfloat16"):
        cell(precision="tf32")
    assert cell(device="cpu", precision="ieee").cell_id == cell().cell_id != cell(device="cuda").cell_id
    assert not {"device", "precision"} & cell().settings().keys()


class Event:
    """What torch.cuda.Event says, at milliseconds of its own."""

    def __init__(self, at: float, waits: list[float]) -> None:
        self.at, self.waits = at, waits

    def synchronize(self) -> None:
        self.waits.append(self.at)

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def test_a_stopwatch_waits_for_a_gpu_only_when_it_is_read():
    waits: list[float] = []
    watch = Stopwatch()
    watch.add(1.0, 1.5)
    for begin in (0.0, 100.0):
        watch.add(Event(begin, waits), Event(begin + 20.0, waits))  # type: ignore[arg-type]
    assert waits == []
    assert watch.seconds == watch.seconds == pytest.approx(0.54) and waits == [20.0, 120.0]
    watch.add(Event(0.0, waits), Event(1.0, waits))  # type: ignore[arg-type]
    watch.seconds = 0.0
    assert watch.seconds == 0.0


def test_interleaved_samples_of_a_gpu_are_waited_for_one_by_one(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    clock = iter(range(100))
    monkeypatch.setattr("bench.measuring.clocks.moment", lambda _: Event(float(next(clock)), waits))
    one, other = interleaved(lambda: None, lambda: None, 2, "cuda")
    assert one == other == [1.0, 1.0] and waits == [1.0, 3.0, 5.0, 7.0]


def test_a_finalised_model_goes_to_a_device_and_is_stored_as_the_cpus(tmp_path: Path):
    settings = cell(schedule="pre")
    built = MODELS["lstm"](settings, 30)
    final = finalize(built, Pruner(built.prunable(), settings, 9).masks)
    there = copy.deepcopy(final).to("meta", torch.bfloat16)
    assert there.embedding.is_meta and there.embedding.dtype == torch.bfloat16
    held = there.state_dict()
    assert all(each.is_meta for each in held.values())
    assert {each.dtype for name, each in held.items() if name.endswith("indices")} == {torch.int32}
    final.save(tmp_path / "model.pt")
    loaded = FinalModel.load(tmp_path / "model.pt")
    words = torch.randint(30, (4, 2))
    assert torch.equal(loaded(words)[0], final(words)[0]) and not loaded.embedding.is_cuda


def test_cells_for_a_gpu_are_estimated_and_run_one_by_one():
    [dense, *_] = load("wikitext2_best").cells
    assert isinstance(dense, TrainCell) and (dense.device, dense.precision) == ("cuda", "tf32")
    minutes = rough_seconds(dense) / 60
    assert 3 < minutes < 60
    assert rough_seconds(dense.model_copy(update={"precision": "ieee"})) > rough_seconds(dense)
    assert training_workers([dense], None) == 1 and training_workers([dense], 3) == 3
    assert rough_seconds(cell(device="cuda")) < rough_seconds(cell()) + 60 and rough_seconds(GemmCell()) > 0
