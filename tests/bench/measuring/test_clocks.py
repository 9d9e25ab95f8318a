"""Clocks of a GPU and replays of its graphs, as far as they can be tried without one; the rest where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.cells import GemmCell
from bench.measuring import clocks
from bench.measuring.clocks import EventTimer, GraphTimer, WallTimer, host_ms, timer_for
from bench.timing import time_cell
from kernels.backends.dense import BACKEND as DENSE
from kernels.backends.loop_lstm import loop_launch
from kernels.check import check
from kernels.launches import Graph, Replayed
from kernels.problem import GemmProblem, Launch, LstmProblem

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tensors_of(launch: Launch) -> dict[int, Tensor]:
    held = [value for value in vars(launch).values() if isinstance(value, Tensor)]
    held += [tensor for value in vars(launch).values() if isinstance(value, dict) for tensor in value.values()]
    return {tensor.data_ptr(): tensor for tensor in held if isinstance(tensor, Tensor)}


class Recorded:
    """What a CUDA graph of a launch does: writes again what the capture wrote, into the tensors that it wrote then."""

    def __init__(self, launch: Launch, works: bool = True) -> None:
        launch()
        self.works = works
        with torch.no_grad():
            self.wrote = [(tensor, tensor.detach().clone()) for tensor in tensors_of(launch).values()]

    def replay(self) -> None:
        if self.works:
            with torch.no_grad():
                for tensor, value in self.wrote:
                    tensor.copy_(value)


PROBLEMS = [
    GemmProblem(32, 32, 4, 8, 0.5),
    LstmProblem(16, 16, 2, 3, 8, 0.5, passes="forward"),
    LstmProblem(16, 16, 2, 3, 8, 0.5),
]


def prepared(problem: GemmProblem | LstmProblem) -> Launch:
    return DENSE.prepare(problem) if isinstance(problem, GemmProblem) else loop_launch(problem)


@pytest.mark.parametrize("problem", PROBLEMS, ids=["product", "forward", "forward_backward"])
def test_a_replay_is_checked_where_the_graph_writes(problem: GemmProblem | LstmProblem) -> None:
    launch = prepared(problem)
    replayed = Replayed(launch, Recorded)
    launch()  # makes results of its own, which the graph does not write
    assert check(replayed, problem)[1] is None
    assert replayed.kernel == launch.kernel and replayed.dense and replayed.weight_bytes == launch.weight_bytes


@pytest.mark.parametrize("problem", PROBLEMS, ids=["product", "forward", "forward_backward"])
def test_a_graph_that_does_nothing_is_found_out(problem: GemmProblem | LstmProblem) -> None:
    def empty(launch: Launch) -> Graph:
        return Recorded(launch, works=False)

    _, wrong = check(Replayed(prepared(problem), empty), problem)
    assert wrong is not None and "NaN" in wrong


def test_on_a_cpu_the_wall_is_the_clock() -> None:
    launch = DENSE.prepare(PROBLEMS[0])
    timer, replays = timer_for("cpu", [launch])
    assert isinstance(timer, WallTimer) and replays == [] and host_ms("cpu", launch) is None


class Chosen:
    """The choice of a timer with times given for every launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, milliseconds: float, capture: type[Exception] | None) -> None:
        def replayed(launch: Launch) -> Launch:
            if capture:
                raise capture("operation not permitted when stream is capturing\nand more")
            return launch

        monkeypatch.setattr(EventTimer, "time", lambda *_: milliseconds)
        monkeypatch.setattr(clocks, "Replayed", replayed)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.timer, self.replays = timer_for("cuda", [DENSE.prepare(PROBLEMS[0])] * 2)


def test_short_launches_are_replayed_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.019, None)
    assert isinstance(chosen.timer, GraphTimer) and len(chosen.replays) == 2
    assert chosen.timer.name == "CUDA events, graph replay"


def test_long_launches_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.021, None)
    assert isinstance(chosen.timer, EventTimer) and chosen.timer.name == "CUDA events" and not chosen.replays


def test_one_that_cannot_be_captured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.001, RuntimeError)
    assert isinstance(chosen.timer, EventTimer) and not chosen.replays
    assert chosen.timer.name.endswith("cannot be captured as a graph)") and "torch.mm" in chosen.timer.name


@on_gpu
@pytest.mark.parametrize("cache", ["hot", "cold"])
@pytest.mark.parametrize(("n", "timer"), [(4, "CUDA events, graph replay"), (4096, "CUDA events")])
def test_a_gpu_is_timed_by_events(n: int, timer: str, cache: str) -> None:
    size = 64 if n == 4 else 4096
    cell = GemmCell(backend="dense_masked", device="cuda", m=size, k=size, n=n, cache=cache)
    (row,) = time_cell(cell, lambda _: None)
    assert row["status"] == "ok" and row["timer"] == timer and row["host_ms"] > 0
    assert (row["launches_per_sample"] == 1) or cache == "hot"
