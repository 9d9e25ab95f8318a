"""Clocks of a GPU and replays of its graphs, as far as they can be tried without one; the rest where there is one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

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


def test_a_replay_of_a_replay_is_one_of_the_launch_itself() -> None:
    """No graph holds another; and each is read where its own graph writes."""
    captured: list[Launch] = []

    def capture(launch: Launch) -> Graph:
        captured.append(launch)
        return Recorded(launch)

    launch = prepared(PROBLEMS[1])
    first = Replayed(launch, capture, kernel="replayed")
    second = Replayed(first, capture)
    assert captured == [launch, launch] and second.kernel == "replayed"
    launch()
    assert check(second, PROBLEMS[1])[1] is None and check(first, PROBLEMS[1])[1] is None


def test_on_a_cpu_the_wall_is_the_clock() -> None:
    launch = DENSE.prepare(PROBLEMS[0])
    timer, replays = timer_for("cpu", [launch])
    assert isinstance(timer, WallTimer) and replays == [] and host_ms("cpu", launch) is None


class Chosen:
    """The choice of a timer with times given for every launch, of a GPU and of the processor."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        milliseconds: float,
        capture: type[Exception] | None = None,
        host: tuple[float, float] = (0.001, 0.001),
    ) -> None:
        def replayed(launch: Launch) -> Launch:
            if capture:
                raise capture("operation not permitted when stream is capturing\nand more")
            return launch

        sides = [DENSE.prepare(PROBLEMS[0]) for _ in range(2)]
        spent = {id(launch): each for launch, each in zip(sides, host, strict=True)}
        monkeypatch.setattr(EventTimer, "time", lambda *_: milliseconds)
        monkeypatch.setattr(clocks, "host_ms", lambda _, launch: spent[id(launch)])
        monkeypatch.setattr(clocks, "Replayed", replayed)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.timer, self.replays = timer_for("cuda", sides)


def test_short_launches_are_replayed_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.019)
    assert isinstance(chosen.timer, GraphTimer) and len(chosen.replays) == 2
    assert chosen.timer.name == "CUDA events, graph replay"


def test_long_launches_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.045)
    assert isinstance(chosen.timer, EventTimer) and chosen.timer.name == "CUDA events" and not chosen.replays


@pytest.mark.parametrize("host", [(0.15, 0.004), (0.004, 0.15), (0.004, 0.023)])
def test_both_are_replayed_where_the_processor_is_late_for_one(
    host: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch of 45 us that takes 150 us of Python would be timed as Python, and so would its rival look slow."""
    chosen = Chosen(monkeypatch, 0.045, host=host)
    assert isinstance(chosen.timer, GraphTimer) and len(chosen.replays) == 2


def test_one_that_cannot_be_captured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(monkeypatch, 0.001, RuntimeError)
    assert isinstance(chosen.timer, EventTimer) and not chosen.replays
    assert chosen.timer.name.endswith("cannot be captured as a graph)") and "torch.mm" in chosen.timer.name


def test_what_is_replayed_has_its_eager_time_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []

    def between(work: Callable[[], None], lead: int) -> float:
        assert lead == 0, "nothing runs ahead of what a program pays without a graph"
        work()
        return 2.0 * len(launched)

    monkeypatch.setattr(clocks, "between_events", between)
    launch = cast("Launch", lambda: launched.append(1))
    assert clocks.eager_ms(EventTimer(), launch) is None and clocks.eager_ms(WallTimer("cpu"), launch) is None
    assert clocks.eager_ms(GraphTimer(), launch) == 6.0  # the median of 5 samples of 20 launches


def test_an_empty_launch_is_timed_as_the_samples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    class Timer:
        name = "given"

        def time(self, launch: Launch, launches: int) -> float:
            seen.append((launch.kernel, launches))
            return 0.002

    assert clocks.empty_ms("cpu", Timer(), 7) is None
    assert clocks.empty_ms("cuda", Timer(), 7) == 0.002 and set(seen) == {("empty", 7)}


def test_lines_that_evicting_wrote_are_clean_before_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a second buffer is read after the first was written."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=2**12))
    evict, read = clocks.Evictor("cuda"), []
    assert evict.clean is not None and evict.clean.numel() == evict.buffer.numel() == 2**11
    monkeypatch.setattr(torch.Tensor, "sum", lambda each: read.append((each is evict.clean, float(evict.buffer[0]))))
    evict()
    assert read == [(True, 1.0)]


@on_gpu
@pytest.mark.parametrize("cache", ["hot", "cold"])
@pytest.mark.parametrize(("n", "timer"), [(4, "CUDA events, graph replay"), (4096, "CUDA events")])
def test_a_gpu_is_timed_by_events(n: int, timer: str, cache: str) -> None:
    size = 64 if n == 4 else 4096
    cell = GemmCell(backend="dense_masked", device="cuda", m=size, k=size, n=n, cache=cache)
    (row,) = time_cell(cell, lambda _: None)
    assert row["status"] == "ok" and row["timer"] == timer and row["host_ms"] > 0
    assert (row["launches_per_sample"] == 1) or cache == "hot"
