"""The setting `compile`: the same run to rounding, timed without what compiling takes, refused where it cannot be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import results, silent
from torch._inductor import config

from bench import train
from bench.cells import TrainCell
from bench.models.layers import LSTMLayer
from bench.models.lstm import Embedding
from bench.train import train_cell
from bench.training.checkpoint import Checkpoints
from bench.training.compiling import SPECIAL, missing_compiler
from bench.training.paths import missing_kernel
from bench.training.tasks import epoch_windows

pytestmark = pytest.mark.usefixtures("few_words")

NO_KERNEL = missing_kernel()
TINY: dict[str, Any] = {
    "train_tokens": 4000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 2, "prune_every": 2, "dropout": 0.3, "threads": 1,
    "schedule": "cubic", "target_sparsity": 0.8, "prune_end": 0.8, "learning_rate": 0.01,
}  # fmt: skip
AWD: dict[str, Any] = {
    "model": "awd_lstm", "weight_drop": 0.3, "input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2,
    "embedding_dropout": 0.1, "activation_penalty": 2.0, "temporal_penalty": 1.0,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "awd_lstm": {**AWD, "bptt_jitter": 2.0, "bptt_halved": 0.1},
    "adaptive": {**AWD, "decoder": "adaptive", "cutoff": 50, "second_cutoff": 200, "embedding_gradient": "sparse"},
    "curvature": {"criterion": "hessian", "curvature_probes": 2},
}
RUNS = [
    *(pytest.param(settings, id=name) for name, settings in NETWORKS.items()),
    *(
        pytest.param(
            {**settings, "path": "sparse"},
            id=f"{name} sparse",
            marks=pytest.mark.skipif(bool(NO_KERNEL), reason=f"no sparse path here: {NO_KERNEL}"),
        )
        for name, settings in NETWORKS.items()
    ),
    pytest.param({"precision": "bfloat16"}, id="bfloat16"),
]
SEED = 5
RAGGED: dict[str, Any] = {
    **AWD, "train_tokens": 20000, "batch_size": 20, "bptt": 60, "bptt_jitter": 2.0, "bptt_halved": 0.5, "epochs": 1,
    "threads": 2, "compile": "default",
}  # fmt: skip


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


def measured(row: dict[str, Any]) -> dict[str, float]:
    """What a row says of training; less of epoch 0."""
    found = {name: row[name] for name in ("train_ppl", "val_ppl", "reported_test_ppl", "final_ppl", "sparsity")}
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def a_compiler() -> None:
    if reason := missing_compiler("cpu"):
        pytest.skip(f"torch.compile does not work here: {reason}")


@pytest.mark.builds
@pytest.mark.slow(60)
@pytest.mark.usefixtures("a_compiler")
@pytest.mark.parametrize("settings", RUNS)
def test_a_compiled_run_differs_by_rounding_alone(settings: dict[str, Any]) -> None:
    eager, compiled = (train_cell(cell(**settings, compile=mode), silent) for mode in ("none", "default"))
    assert [row["status"] for row in compiled] == ["ok"] * len(eager)
    for one, other in zip(eager, compiled, strict=True):
        assert measured(other) == pytest.approx(measured(one), rel=2e-3), one["epoch"]


@pytest.mark.builds
@pytest.mark.slow(30)
@pytest.mark.usefixtures("a_compiler")
def test_windows_drawn_at_random_are_compiled_once() -> None:
    """torch gives up, with no more than a warning, after eight codes of one function."""
    from torch._dynamo.utils import counters

    settings = cell(**NETWORKS["awd_lstm"], compile="default", epochs=4, seed=SEED)
    lengths = epoch_windows(settings, 400)
    assert len(set(chain(*lengths))) > 8
    assert min(chain(*lengths)) >= SPECIAL
    assert settings.batch_size in chain(*lengths), "told apart from the batch's size"
    counted = []
    for epochs in (1, settings.epochs):
        torch.compiler.reset()
        counters.clear()
        train_cell(settings.model_copy(update={"epochs": epochs}), silent)
        counted.append(counters["stats"]["unique_graphs"])
    assert 0 < counted[0] == counted[1]


@pytest.mark.builds
@pytest.mark.slow(60)
@pytest.mark.usefixtures("a_compiler")
@pytest.mark.parametrize("caches", ["kept", "none"])
def test_a_run_of_random_windows_goes_on_bit_equal(
    caches: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With threads, for whose number torch.compile chooses loops by the length at hand; and without code of before.

    The first window that is compiled is a long one, or one of half the length.
    """

    class Stop(BaseException):
        pass

    def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
        def tell(news: dict[str, Any]) -> None:
            if news["step"] == step:
                raise Stop

        return tell

    monkeypatch.setattr(train, "SECONDS_BETWEEN_NEWS", 0.0)
    settings = cell(**RAGGED)
    lengths = epoch_windows(settings, 1000)[0]
    other = next(step for step, length in enumerate(lengths, 1) if (length > 45) != (lengths[0] > 45))
    assert 1 < other < 5, "put aside before a window of the other kind"
    with config.patch(force_disable_caches=caches == "none"):
        wanted = train_cell(settings, silent)
        for step in (2, 3, 4) if caches == "kept" else (other,):  # put aside after the step before
            checkpoints = Checkpoints(tmp_path / str(step), 0.0)
            with pytest.raises(Stop):
                train_cell(settings, stop_at(step), checkpoints=checkpoints)
            rows = train_cell(settings, silent, checkpoints=checkpoints)
            assert rows[1]["resumed"] == 1
            assert results(rows) == results(wanted)


@pytest.mark.builds
@pytest.mark.slow(30)
@pytest.mark.usefixtures("a_compiler")
def test_a_compiled_run_is_the_same_with_several_threads() -> None:
    """An embedding's gradient by torch.compile is none of the same: its threads add in any order."""
    settings = cell(
        train_tokens=20000, embedding_size=32, batch_size=20, bptt=35, epochs=1, threads=2, compile="default"
    )
    first, *others = (train_cell(settings, silent) for _ in range(4))
    assert all(results(other) == results(first) for other in others)


@pytest.mark.builds
@pytest.mark.slow(10)
@pytest.mark.usefixtures("a_compiler")
def test_dropouts_decoder_and_penalties_are_compiled_and_no_more() -> None:
    """What is documented, by the operators of the graphs; layers and embedding are as they were before the run."""
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    kinds = LSTMLayer, Embedding
    forwards, compiled = [kind.forward for kind in kinds], torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: compiled(function, backend=record))
        train_cell(cell(**AWD, compile="default", epochs=1), silent)
    told = " ".join(seen)
    for wanted in ("bernoulli", "linear", "cross_entropy", "square", "mean"):
        assert wanted in told, wanted
    assert "lstm" not in told
    assert told.count("embedding") == told.count("function embedding"), "by its mask alone, which has no gradient"
    assert [kind.forward for kind in kinds] == forwards


@pytest.mark.slow(5)
@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_a_process_that_compiles_nothing_is_refused(name: str) -> None:
    code = (
        "from bench.cells import TrainCell; from bench.train import train_cell; "
        "train_cell(TrainCell(compile='default'), print)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {name: "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "ValueError: compile: torch.compile is switched off in this process; accepted: none" in done.stderr


def test_the_time_to_compile_is_none_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(compute: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        called: set[tuple[int, bool]] = set()

        def compiled(inputs: Any, targets: Any, states: Any) -> Any:
            if (kind := (len(inputs), states is None)) not in called:
                called.add(kind)
                time.sleep(1.0)
            return compute(inputs, targets, states)

        return compiled

    monkeypatch.setattr(train, "missing_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", slow)
    settings = cell(**AWD, epochs=1)
    began = time.monotonic()
    compiled = train_cell(settings.model_copy(update={"compile": "default"}), silent)
    took = time.monotonic() - began
    eager = train_cell(settings, silent)
    assert took > 2.0 > compiled[1]["train_seconds"] > compiled[1]["lstm_seconds"]
    assert len(compiled[1]["loss_eager_ms"]) == len(compiled[1]["loss_compiled_ms"]) > 0
    assert eager[1]["loss_eager_ms"] is None
    assert measured(compiled[1]) == measured(eager[1]), "no draw of its own"


def test_a_machine_without_a_compiler_says_so(tmp_path: Path) -> None:
    """In a process of its own, whose torch finds no compiler and nothing that it compiled before."""
    code = (
        "from bench.cells import TrainCell; from bench.train import train_cell; "
        "print(train_cell(TrainCell(compile='default'), print))"
    )
    bare = {"PATH": str(tmp_path), "CXX": str(tmp_path / "c++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | bare, capture_output=True, text=True, timeout=240, check=True
    )
    said = "[{'status': 'unsupported', 'reason': \"compile = default: InvalidCxxCompiler: No working C++ compiler found"
    assert done.stdout.startswith(said), done.stdout
    assert "\\n" not in done.stdout


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOTDIR, errno.ENOENT, errno.EEXIST])
def test_what_the_machine_lacks_today_is_no_answer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), "/cache")

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        train_cell(cell(compile="default"), silent)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "compile: reduce-overhead is of CUDA graphs; accepted: none or default, or device = cuda"),
        (
            {"device": "cuda", "bptt_jitter": 5.0},
            "compile: reduce-overhead records a CUDA graph for each length of a window, .* both of them 0",
        ),
        ({"device": "cuda", "bptt_halved": 0.05}, "compile: reduce-overhead records a CUDA graph for each length"),
    ],
)
def test_cuda_graphs_where_there_can_be_none_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cell(compile="reduce-overhead", **settings)


def test_a_classifier_is_the_same_cell_for_it_has_little_but_its_layers() -> None:
    settings = {"model": "mlp", "dataset": "digits", "hidden_size": 32, "block_size": 8}
    ids = {TrainCell(**settings, compile=mode).cell_id for mode in ("none", "default")}
    assert ids == {TrainCell(**settings).cell_id}
    assert train_cell(TrainCell(**settings, compile="default", epochs=1), silent)[-1]["loss_eager_ms"] is None


def test_no_old_id_changes() -> None:
    assert cell(compile="none").cell_id == cell().cell_id != cell(compile="default").cell_id
