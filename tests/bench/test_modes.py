"""What a caller has set in torch reaches into no cell, and is as before when the cell is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from rows import results, silent
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from bench.cells import GemmCell, TrainCell
from bench.paths import missing_kernel
from bench.timing import time_cell
from bench.train import train_cell

SETTINGS = {
    "train_tokens": 600,
    "eval_tokens": 200,
    "embedding_size": 16,
    "hidden_size": 16,
    "block_size": 8,
    "batch_size": 5,
    "bptt": 20,
    "epochs": 1,
    "threads": 1,
    "schedule": "linear",
    "target_sparsity": 0.5,
}
PATH = "dense" if missing_kernel() else "sparse"


@contextmanager
def default_type() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def rounded_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


Mode = Callable[[], AbstractContextManager[Any]]
PINNED: dict[str, Mode] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast that is off": lambda: torch.autocast("cpu", enabled=False),
    "default type": default_type,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "rounded products": rounded_products,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}
REFUSED: dict[str, Mode] = {
    "forward-mode differentiation": forward_ad.dual_level,
    "a mode of __torch_dispatch__": lambda: FlopCounterMode(display=False),
}


def state() -> tuple[Any, ...]:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return (
        *(torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), depth),
        *(
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        ),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        *(torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision),
    )


@cache
def wanted(precision: str) -> list[dict[str, Any]]:
    return results(
        train_cell(TrainCell(**SETTINGS, path="dense" if precision != "ieee" else PATH, precision=precision), silent)
    )


@pytest.mark.parametrize("name", PINNED)
def test_a_cell_trains_the_same_under_every_mode(name: str) -> None:
    expected = wanted("ieee")
    assert [row["status"] for row in expected] == ["ok", "ok"]
    with PINNED[name]():
        before = state()
        found = results(train_cell(TrainCell(**SETTINGS, path=PATH), silent))
        assert state() == before
    assert found == expected


@pytest.mark.parametrize("name", ["autocast", "autocast that is off"])
def test_weights_rounded_at_one_step_are_not_those_of_the_next(name: str) -> None:
    expected = wanted("bfloat16")
    with PINNED[name]():
        assert results(train_cell(TrainCell(**SETTINGS, precision="bfloat16"), silent)) == expected


@pytest.mark.parametrize("name", ["autocast", "default type", "default device", "deterministic", "inference"])
def test_a_cell_is_timed_the_same_under_every_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MIN_SECONDS", "MAX_SECONDS", "RESAMPLE_SECONDS"):
        monkeypatch.setattr(f"bench.timing.{limit}", 0.01)
    cell = GemmCell(backend="torch_bsr", m=64, k=64, n=8, block_size=16, target_sparsity=0.5, threads=1)
    with PINNED[name]():
        before = state()
        (row,) = time_cell(cell, silent)
        assert state() == before
    assert row["status"] == "ok", row["reason"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_sees_every_operator_is_refused(name: str) -> None:
    with REFUSED[name](), pytest.raises(ValueError, match=f"^a cell is neither trained nor timed inside {name}; .*$"):
        train_cell(TrainCell(**SETTINGS), silent)


def test_a_transform_is_refused() -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        train_cell(TrainCell(**SETTINGS), silent)
        return x

    with pytest.raises(ValueError, match=r"inside a transform of torch\.func; call it outside"):
        torch.func.vmap(inside)(torch.ones(2))
