"""The setting `compile`: the same run to rounding, timed without what compiling takes, refused where it cannot be."""

from __future__ import annotations

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
from rows import DIGITS, results, silent

from bench import train
from bench.cells import TrainCell
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
    "mlp": {**DIGITS, "batch_size": 120, "batch_norm": True},
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
@pytest.mark.slow(30)
@pytest.mark.usefixtures("a_compiler")
def test_a_run_of_random_windows_goes_on_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first window that is compiled is another one in each piece of it."""

    class Stop(BaseException):
        pass

    def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
        def tell(news: dict[str, Any]) -> None:
            if news["step"] == step:
                raise Stop

        return tell

    monkeypatch.setattr(train, "SECONDS_BETWEEN_NEWS", 0.0)
    settings, checkpoints = cell(**NETWORKS["awd_lstm"], compile="default", seed=SEED), Checkpoints(tmp_path, 0.0)
    wanted = train_cell(settings, silent)
    for step in (2, 5, 9):
        with pytest.raises(Stop):
            train_cell(settings, stop_at(step), checkpoints=checkpoints)
    rows = train_cell(settings, silent, checkpoints=checkpoints)
    assert rows[1]["resumed"] == 3
    assert results(rows) == results(wanted)


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


def test_what_the_machine_lacks_today_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/cache")

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(OSError, match="No space left"):
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


def test_no_old_id_changes() -> None:
    assert cell(compile="none").cell_id == cell().cell_id != cell(compile="default").cell_id
