"""Export a model over another and be killed at each call of the system: start_export.py FOLDER tells a JSON list of what is found after each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.storing.parquet import checksum_of

CALLS = ("unlink", "open", "write", "fsync", "replace", "close")
CELL = TrainCell(schedule="pre", target_sparsity=0.5, block_size=4, embedding_size=8, hidden_size=8, num_layers=1)


def export_of(seed: int) -> FinalModel:
    torch.manual_seed(seed)
    model = MODELS["lstm"](CELL, 20)
    return finalize(model, Pruner(model.prunable(), CELL, steps=1).masks)


def watched(name: str, seen: list[str], killed_at: int) -> Callable[..., Any]:
    """A function of os that kills the process before or after it, where its turn has come."""
    call = getattr(os, name)

    def killing(*given: Any, **named: Any) -> Any:
        for moment in ("before", "after"):
            if len(seen) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(moment)
            if moment == "before":
                answer = call(*given, **named)
        return answer

    return killing


def killed_while_saving(model: FinalModel, path: Path, killed_at: int) -> bool:
    """Whether a child of this process was killed, and not done before."""
    child = os.fork()
    if not child:
        seen: list[str] = []
        for name in CALLS:
            setattr(os, name, watched(name, seen, killed_at))
        model.save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def found(path: Path, models: dict[str, FinalModel]) -> str:
    """Which of the models lies there whole, or why none does."""
    try:
        loaded = FinalModel.load(path)
    except ValueError as error:
        return "nothing" if not path.exists() else str(error)
    return next(name for name, model in models.items() if torch.equal(model.embedding, loaded.embedding))


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, endings = {"old": export_of(0), "new": export_of(1)}, []
    for before in ("nothing", "old"):
        for killed_at in range(1000):
            folder = Path(sys.argv[1]) / f"{before}-{killed_at}"
            folder.mkdir()
            path = folder / "model.pt"
            if before == "old":
                models["old"].save(path)
            killed = killed_while_saving(models["new"], path, killed_at)
            after = found(path, models)
            models["new"].save(path)
            whole = found(path, models) == "new" and set(folder.iterdir()) == {path, checksum_of(path)}
            endings.append({"before": before, "killed": killed, "after": after, "saved again": whole})
            shutil.rmtree(folder)
            if not killed:
                break
    print(json.dumps(endings))
