"""Launches captured as CUDA graphs: what is left of a launch when the processor is out of the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from kernels.problem import Launch

WARM_UPS = 3


class Graph(Protocol):
    """What of torch.cuda.CUDAGraph is used here."""

    def replay(self) -> None: ...


def graph_of(launch: Launch, launches: int = 1) -> Graph:
    """`launches` launches one after another as one CUDA graph. RuntimeError where the launch cannot be captured.

    Warmed up on a side stream, as torch asks for: libraries allocate and choose at their first calls, which no graph holds.
    """
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            launch()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            launch()
    return graph


class Replayed:
    """A launch whose calls replay a CUDA graph of it.

    The graph writes into the tensors that the launch held when it was captured: these are poisoned, and read.
    """

    def __init__(
        self, launch: Launch, capture: Callable[[Launch], Graph] = graph_of, kernel: str | None = None
    ) -> None:
        self.launch, self.graph = launch, capture(launch)
        self.held = dict(vars(launch))
        self.kernel, self.dense = kernel or launch.kernel, launch.dense
        self.weight_bytes, self.index_bytes = launch.weight_bytes, launch.index_bytes

    def __call__(self) -> None:
        self.graph.replay()

    def _recall(self) -> None:
        vars(self.launch).update(self.held)

    def outputs(self) -> dict[str, Tensor]:
        self._recall()
        return self.launch.outputs()

    def poison(self) -> None:
        self._recall()
        self.launch.poison()
        self._recall()  # a launch may drop its results to have them made anew
