"""Checkpoints: an interrupted run goes on bit-equal, every part of one is needed, and none that is not trusted is used."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import train
from bench.breakeven import NEVER
from bench.cells import TrainCell
from bench.checkpoint import DIGEST_BYTES, Checkpoints, read, write
from bench.paths import missing_kernel
from bench.schema import TRAIN
from bench.train import Run, train_cell

NO_KERNEL = missing_kernel()
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
MEASURED = [column.name for column in TRAIN if column.role == "measured"]
TINY = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8, "batch_size": 10,
    "bptt": 20, "epochs": 3, "prune_every": 2, "dropout": 0.3, "threads": 1,
    "schedule": "cubic", "target_sparsity": 0.8, "prune_end": 0.8,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 1e-4, "lasso": "proximal"},
    "adam": {"learning_rate": 0.01, "weight_decay": 1e-2, "lr_schedule": "one_cycle"},
    "asgd": {"optimizer": "asgd", "learning_rate": 5.0, "weight_decay": 1e-4, "criterion": "random", "prune_end": 0.4},
}
PATHS = ["dense", pytest.param("sparse", marks=needs_kernel), pytest.param("auto", marks=needs_kernel)]
EVERY_STEP = 0.0


class Stop(Exception):  # noqa: N818  (no error)
    """The run is interrupted."""


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


def silent(news: dict[str, Any]) -> None:
    pass


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that differ from run to run."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of 32 units change over at 0.3, others never; two probes an epoch and few samples."""
    monkeypatch.setattr("bench.paths.breakeven", lambda shape: 0.3 if shape.hidden == 32 else NEVER)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 2)
    monkeypatch.setattr("bench.probes.INFERENCE_PAIRS", 2)


def interrupted(settings: TrainCell, steps: int, folder: Path, seconds: float = EVERY_STEP) -> Path:
    """The checkpoint of a run that begins or goes on, and ends in the middle of a step, `steps` steps later."""
    finite, losses = train.finite, []

    def stop(nats: float, epoch: int) -> float:
        losses.append(nats)
        if len(losses) > steps:
            raise Stop
        return finite(nats, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finite", stop)
        with pytest.raises(Stop):
            train_cell(settings, silent, checkpoints=Checkpoints(folder, seconds))
    return Checkpoints(folder).path(settings.cell_id)


def content(path: Path) -> dict[str, Any]:
    return torch.load(io.BytesIO(path.read_bytes()[DIGEST_BYTES:]), weights_only=True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_run_goes_on_bit_equal(optimizer: str, path: str, tmp_path: Path):
    settings = cell(**OPTIMIZERS[optimizer], path=path)
    wanted = train_cell(settings, silent)
    pieces = (3, 6, 1, 1, 15)  # one ends within an epoch, one before its last step, one at its end, one after it
    for steps in pieces:
        interrupted(settings, steps, tmp_path)
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path, EVERY_STEP))
    assert results(rows) == results(wanted)
    assert [row["resumed"] for row in rows] == [0, 3, 4, 5]
    for row, whole in zip(rows[1:], wanted[1:], strict=True):
        assert row["sparse_share"] == whole["sparse_share"]
        assert [probe["step"] for probe in row["probes"] or ()] == [probe["step"] for probe in whole["probes"] or ()]
    assert path == "dense" or rows[-1]["sparse_share"] > 0.0


def test_a_run_goes_on_from_the_last_checkpoint_and_repeats_what_came_after(tmp_path: Path):
    """Only epochs' ends are put aside here."""
    settings = cell(**OPTIMIZERS["adam"])
    interrupted(settings, 17, tmp_path, seconds=1e9)
    assert content(interrupted(settings, 5, tmp_path, seconds=1e9))["state"]["run"]["step"] == 10
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path, 1e9))
    assert results(rows) == results(train_cell(settings, silent)) and rows[-1]["resumed"] == 2


def leaves(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every number, string and tensor that an object of ours or of torch holds, by the path to it."""
    if isinstance(thing, torch.Tensor):
        yield path, thing.detach().clone()
        yield f"{path}.grad", None  # made anew by every step
    elif isinstance(thing, torch.Generator):
        yield path, thing.get_state()
    elif thing is None or isinstance(thing, bool | int | float | str):
        yield path, thing
    elif id(thing) not in seen:
        seen.add(id(thing))
        if isinstance(thing, dict):
            items = [(position if isinstance(name, torch.Tensor) else name, value) for position, (name, value) in enumerate(thing.items())]
        elif isinstance(thing, list | tuple):
            items = list(enumerate(thing))
        elif type(thing).__module__.startswith(("bench.", "kernels.", "torch.nn", "torch.optim")):
            items = list(vars(thing).items())
        else:
            return
        for name, value in items:
            yield from leaves(value, f"{path}.{name}", seen)


CLOCKS = ("began", "aside", "told", "saved", "cost", "seconds", "listener", "resumed", "checkpoints", "dense_ms", "lstm_ms")
PASSING = ("gradient", "_step_count_wrapped", "hooks")  # written before it is read, by every step


def everything(run: Run) -> dict[str, Any]:
    """What a run holds after some step, without clocks."""
    found = dict(leaves(run, "run", set()))
    found["random"] = torch.get_rng_state()
    return {name: value for name, value in found.items() if not set(name.split(".")) & {*CLOCKS, *PASSING}}


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
