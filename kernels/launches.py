"""What the launches of several backends share.

That is a launch with one output (`ProductLaunch`), a call of the public operator (`OperatorLaunch`), a pass through an
LSTM layer as a model makes it (`LstmLaunch`), the arithmetic of torch's own products (`under`), the fastest of several
ways (`fastest`), and replays of CUDA graphs (`Replayed`).

Torch's GPU products use the problem's arithmetic while a baseline runs, whatever the process has set. float32: exactly
or by TF32, as `problem.math` says; cuDNN's layers are on TF32 unless told otherwise. 16-bit types: summed in float32 to
the end, as our kernels do and the check expects, while cuBLAS may otherwise add parts of a sum in 16 bits: that is
offered as a way of its own, which has to pass the check. The settings
are put back after each launch: about 2 us on the processor, nothing in a CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_linear, block_sparse_lstm, block_sparse_matmul
from kernels.problem import GemmProblem, Launch, LstmProblem, Problem
from kernels.tensors.padding import padded, widened

T = TypeVar("T")

Setting = tuple[Any, str, Any]  # of an object, its attribute, the value


def settings(problem: Problem) -> list[Setting]:
    """What is to be set for `problem`: nothing on a CPU, where there is no choice."""
    return settings_of(problem.dtype, problem.math) if problem.device == "cuda" else []


def settings_of(dtype: str, math: str) -> list[Setting]:
    """What is to be set for products of `dtype`.

    allow_tf32 keeps torch's older and newer names of it consistent; the newer is named too, to be as it was afterwards.
    """
    matmul, layers = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    wanted: dict[str, list[Setting]] = {
        "float32": [
            *((matmul, "allow_tf32", math == "tf32"), (matmul, "fp32_precision", math)),
            (layers, "fp32_precision", math),
        ],
        "bfloat16": [(matmul, "allow_bf16_reduced_precision_reduction", False)],
        "float16": [(matmul, "allow_fp16_reduced_precision_reduction", False)],
    }
    return wanted.get(dtype, [])


def _now(owner: Any, name: str) -> Any:
    """A setting: torch does not tell its older name of TF32 where the newer contradicts it, which says it, too."""
    if name != "allow_tf32":
        return getattr(owner, name)
    try:
        return owner.allow_tf32
    except RuntimeError:
        return owner.fp32_precision != "tf32"


def settings_of_partial_sums(dtype: str) -> list[Setting]:
    """What lets cuBLAS add parts of a sum in 16 bits, as torch does by itself; nothing of other types."""
    name = {"bfloat16": "allow_bf16_reduced_precision_reduction", "float16": "allow_fp16_reduced_precision_reduction"}
    return [(torch.backends.cuda.matmul, name[dtype], True)] if dtype in name else []


class Blas:
    """The library of torch's dense products on a GPU, as a setting."""

    @property
    def library(self) -> Any:
        """Any of what `torch.backends.cuda.preferred_blas_library` takes."""
        return torch.backends.cuda.preferred_blas_library()

    @library.setter
    def library(self, chosen: Any) -> None:
        torch.backends.cuda.preferred_blas_library(chosen)


BY_CUBLASLT: Setting = (Blas(), "library", "cublaslt")


def has_cublaslt() -> bool:
    """Whether torch's products can be told to use it."""
    try:
        with applied([BY_CUBLASLT]):
            return True
    except RuntimeError:  # this torch is built without it
        return False


@contextmanager
def applied(chosen: Sequence[Setting]) -> Iterator[None]:
    """Inside, the settings are as chosen; then as before."""
    before = [_now(owner, name) for owner, name, _ in chosen]
    for owner, name, value in chosen:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(chosen, before, strict=True):
            setattr(owner, name, value)


def under(problem: Problem, run: Callable[[], T], also: Sequence[Setting] = ()) -> Callable[[], T]:
    """`run` with the arithmetic of `problem`, and what is to be set besides; itself where nothing is to be set."""
    chosen = [*settings(problem), *also]
    if not chosen:
        return run

    def launch() -> T:
        with applied(chosen):
            return run()

    return launch


def left_factor(problem: GemmProblem) -> tuple[BSRMatrix, str]:
    """The block-sparse matrix that dsd multiplies, of dsd_t the transpose; and what `Launch.kernel` says of that."""
    weight, _ = problem.factors(dense=False)
    if problem.op != "dsd_t":
        return BSRMatrix.from_dense(weight, problem.mask), ""
    mask = BlockMask(problem.mask.kept.T, problem.block_size)
    return BSRMatrix.from_dense(weight, mask), ", values turned beforehand"


class ProductLaunch:
    """A launch with one output, `result`; of a baseline `dense` is true."""

    dense = False
    index_bytes = 0
    result: Tensor

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result}

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class OperatorLaunch(ProductLaunch):
    """The public operator as people call it: on a frozen weight, the output allocated in each launch.

    Activations [n, k] are what `block_sparse_linear` takes, an X row by row what `block_sparse_matmul` does. chosen:
    its kernel; kernel: that in words.
    """

    def __init__(self, problem: GemmProblem, chosen: str, kernel: str) -> None:
        weight = BSRMatrix.from_dense(problem.weight, problem.mask, problem.pad).freeze()
        activations = problem.x.mT
        self.as_linear = problem.layout == "column"
        if self.as_linear:
            called = partial(block_sparse_linear, activations, weight, None, chosen)
        else:
            called = partial(block_sparse_matmul, weight, problem.x, chosen)
        self.kernel = f"{kernel}, {called.func.__name__}"
        self.run = under(problem, called)
        self.weight_bytes, self.index_bytes = weight.values_nbytes, weight.index_nbytes
        self()

    def __call__(self) -> None:
        self.result = self.run()

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result.mT if self.as_linear else self.result}


Outputs = tuple[Tensor, tuple[Tensor, Tensor]]  # y, (h, c)


class LstmLaunch:
    """Calls `forward` with the operands and, where the problem asks for it, takes their gradients by autograd.

    weights: by name, dense or the kept blocks [nnzb, b, b] of a BSRMatrix; they, x and the biases are the leaves.
    """

    def __init__(
        self,
        problem: LstmProblem,
        kernel: str,
        weights: Mapping[str, Tensor],
        forward: Callable[[Mapping[str, Tensor]], Outputs],
        dense: bool,
        index_bytes: int = 0,
    ) -> None:
        self.problem, self.kernel, self.forward, self.dense = problem, kernel, forward, dense
        self.backward = problem.passes == "forward_backward"
        leaves = {"x": problem.x, **weights, **problem.biases}
        self.leaves = {name: torch.nn.Parameter(leaf, self.backward) for name, leaf in leaves.items()}
        self.results: dict[str, Tensor] = {}
        self.weight_bytes = sum(weights[name].numel() * weights[name].element_size() for name in problem.masks)
        self.index_bytes = index_bytes

    def __call__(self) -> None:
        under(self.problem, self._run)()

    def _run(self) -> None:
        with torch.set_grad_enabled(self.backward):
            y, (h, c) = self.forward(self.leaves)
        self.results = {"y": y, "h": h, "c": c}
        if self.backward:
            grads = torch.autograd.grad(y, list(self.leaves.values()), self.problem.grad_y)
            self.results |= {f"grad_{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}

    def outputs(self) -> dict[str, Tensor]:
        """The results; gradients of block-sparse weights at the kept blocks only."""
        results = {name: result.detach() for name, result in self.results.items()}
        for name in self.problem.masks:
            grad = results.get(f"grad_{name}")
            if grad is not None and grad.ndim == 2:
                results[f"grad_{name}"] = self.problem.blocks_of(name, grad).data
        return results

    def poison(self) -> None:
        with torch.no_grad():
            for result in self.results.values():
                if torch._debug_has_internal_overlap(result) != 1:  # 1: certainly, as of an expanded tensor
                    result.fill_(float("nan"))  # its memory may be the next launch's
        self.results = {}


def block_sparse_weights(problem: LstmProblem) -> dict[str, BSRMatrix]:
    """Those of its weights that are block-sparse, by name."""
    return {name: problem.blocks_of(name, problem.weights[name]) for name in problem.masks}


def block_sparse_launch(
    problem: LstmProblem, bsr: Mapping[str, BSRMatrix], chosen: str, kernel: str, index_bytes: int
) -> LstmLaunch:
    """The layer by `block_sparse_lstm`, as models train. bsr: as above; chosen: its kernel; kernel: that in words."""
    units, size = bsr["weight_hh"].shape[1], problem.hidden_size

    def forward(leaves: Mapping[str, Tensor]) -> Outputs:
        weights = {name: matrix.with_data(leaves[name]) for name, matrix in bsr.items()}
        dense = leaves["weight_ih"]
        into = weights["weight_ih"] if "weight_ih" in weights else padded(dense, 4, (4 * units, dense.shape[1]))
        first, second = (padded(leaves[name], 4, (4 * units,)) for name in ("bias_ih", "bias_hh"))
        h0, c0 = (widened(each, units) for each in problem.state)
        x = widened(leaves["x"], into.shape[1])
        y, (h, c) = block_sparse_lstm(x, (h0, c0), into, weights["weight_hh"], first, second, kernel=chosen)
        return (y, (h, c)) if units == size else (y[..., :size].contiguous(), (h[..., :size], c[..., :size]))

    values = {**problem.weights, **{name: matrix.data for name, matrix in bsr.items()}}
    return LstmLaunch(problem, kernel, values, forward, dense=False, index_bytes=index_bytes)


ROUNDS = 5
PATIENCE_SECONDS = 1.0  # then no further round begins
LONG_SECONDS = 0.1  # filling the caches is nothing to such a launch
RANKED_LAUNCHES = 20  # of a way on a GPU, timed together
RANKED_MS = 0.5  # a launch that takes longer is timed alone
WARM_UPS = 3
LEAD_CYCLES = (
    60_000  # about 30 us in which the processor runs ahead of the GPU, so that it waits for nothing once timed
)

Way = Callable[[], object]


def fastest(ways: Mapping[str, Way], device: str, captured: bool = True) -> str:
    """The name of the way with the shortest launch."""
    return ranked(ways, device, captured)[0]


def ranked(ways: Mapping[str, Way], device: str, captured: bool = True) -> list[str]:
    """The names of the ways, the one with the shortest launch first; each by its best of a few rounds, in turns.

    On a GPU a launch is its time between two events; of several replayed from a CUDA graph, where every way can be
    captured, since the processor would be ranked otherwise. captured: false where some ways are replays themselves.
    """
    times = _between_events_of(ways, captured) if device == "cuda" else _on_the_wall(ways)
    return sorted(times, key=lambda name: times[name])


def _on_the_wall(ways: Mapping[str, Way]) -> dict[str, float]:
    """Seconds of one launch of each. Twice in a row: its own operands are in the caches then."""
    shortest, begin = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for _again in range(2):
                began = time.perf_counter()
                way()
                taken = time.perf_counter() - began
                shortest[name] = min(shortest[name], taken)
                if taken > LONG_SECONDS:
                    break
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            break
    return shortest


def _between_events_of(ways: Mapping[str, Way], captured: bool) -> dict[str, float]:
    """Milliseconds of one launch of each on a GPU."""
    first = [
        between_events(way) for way in ways.values() for _ in range(2)
    ]  # the first call of each chooses, allocates
    launches = RANKED_LAUNCHES if min(first) < RANKED_MS else 1
    works: dict[str, Callable[[], object]] = {name: partial(_repeat, way, launches) for name, way in ways.items()}
    if captured and launches > 1:
        try:
            works = {name: graph_of(way, launches).replay for name, way in ways.items()}
        except RuntimeError:  # one of them cannot be captured: then all are launched
            torch.cuda.synchronize()
    shortest, begin = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for _ in range(ROUNDS):
        for name, work in works.items():
            shortest[name] = min(shortest[name], between_events(work) / launches)
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            break
    return shortest


def _repeat(way: Way, launches: int) -> None:
    for _ in range(launches):
        way()


def between_events(work: Callable[[], object], lead: int = LEAD_CYCLES) -> float:
    """Milliseconds that a GPU spends on `work`. lead: cycles that it is held before, for the processor to run ahead."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    if lead:
        torch.cuda._sleep(lead)  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


class Graph(Protocol):
    """What of torch.cuda.CUDAGraph is used here."""

    def replay(self) -> None: ...


def graph_of(launch: Way, launches: int = 1) -> Graph:
    """`launches` launches one after another as one CUDA graph. RuntimeError where the launch cannot be captured.

    Warmed up on a side stream, as torch asks for: libraries allocate and choose at their first calls, which no graph
    holds. Of a replay what it replays is captured anew: no graph holds another.
    """
    launch = _within(launch)
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
        self.kernel, self.dense = kernel or launch.kernel, launch.dense
        self.launch: Launch = launch.launch if isinstance(launch, Replayed) else launch
        self.graph = capture(self.launch)
        self.held = dict(vars(self.launch))
        self.weight_bytes, self.index_bytes = launch.weight_bytes, launch.index_bytes
        self.own_weight: Tensor | None = getattr(self.launch, "own_weight", None)

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


def _within(launch: Way) -> Way:
    """What a replay replays; any other launch itself."""
    return launch.launch if isinstance(launch, Replayed) else launch


REPLAYED = ", replayed as a CUDA graph"


def with_replays(ways: Mapping[str, Launch], again: Callable[[str], Launch]) -> dict[str, Launch]:
    """The ways, and a replay of each that can be captured, of a launch of its own. again: makes that, by its name."""
    found = dict(ways)
    for name in ways:
        try:
            replay = Replayed(again(name), kernel=f"{name}{REPLAYED}")
        except RuntimeError:
            torch.cuda.synchronize()
            continue
        found[replay.kernel] = replay
    return found
