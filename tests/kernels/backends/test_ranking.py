"""How the fastest of several ways is found on a GPU, pretended here: by events and graphs, not by the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from kernels import launches
from kernels.backends import dense, loop_lstm, torch_lstm
from kernels.backends.dense import DenseLaunch, ways
from kernels.launches import Replayed, fastest, ranked, with_replays
from kernels.problem import GemmProblem, Launch, LstmProblem


class PretendedGpu:
    """A GPU whose launches take the milliseconds that are given by name; eager ones also the processor's."""

    def __init__(self, times: dict[str, float], host: dict[str, float] | None = None, captures: bool = True) -> None:
        self.times, self.host, self.captures = times, host or {}, captures
        self.graphs: list[tuple[str, int]] = []
        self.done: list[str] = []

    def way(self, name: str) -> Callable[[], object]:
        return partial(self.done.append, name)

    def graph_of(self, way: Callable[[], object], count: int = 1) -> object:
        way()
        name = self.done.pop()
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.graphs.append((name, count))
        gpu = self

        class Graph:
            def replay(self) -> None:
                gpu.done += [f"graph of {name}"] * count

        return Graph()

    def between(self, work: Callable[[], object], lead: int = 1) -> float:
        assert lead, "the processor has to be ahead"
        self.done.clear()
        work()
        return sum(self._taken(name) for name in self.done)

    def _taken(self, name: str) -> float:
        own = name.removeprefix("graph of ")
        return max(self.times[own], self.host.get(name, 0.0))

    @contextmanager
    def present(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(launches, "between_events", self.between)
        monkeypatch.setattr(launches, "graph_of", self.graph_of)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        yield


def test_ways_of_a_gpu_are_ranked_by_graphs_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor takes 12 us for each of them, which hides that one takes 4 us and another 5."""
    gpu = PretendedGpu({"a": 0.005, "b": 0.004, "c": 0.009}, host=dict.fromkeys("abc", 0.012))
    with gpu.present(monkeypatch):
        assert ranked({name: gpu.way(name) for name in "abc"}, "cuda") == ["b", "a", "c"]
    assert gpu.graphs == [("a", 20), ("b", 20), ("c", 20)]


def test_where_one_cannot_be_captured_all_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu({"a": 0.005, "b": 0.004}, host={"b": 0.012}, captures=False)
    with gpu.present(monkeypatch):
        assert fastest({name: gpu.way(name) for name in "ab"}, "cuda") == "a"


def test_long_launches_are_timed_alone_and_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu({"a": 3.0, "b": 2.0})
    with gpu.present(monkeypatch):
        assert ranked({name: gpu.way(name) for name in "ab"}, "cuda") == ["b", "a"]
    assert gpu.graphs == []


def test_replays_are_ranked_as_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu({"eager": 0.004, "replay": 0.004}, host={"eager": 0.15})
    with gpu.present(monkeypatch):
        assert fastest({name: gpu.way(name) for name in ("eager", "replay")}, "cuda", captured=False) == "replay"
    assert gpu.graphs == []


class Settable:
    """What of torch.backends.cuda says which library multiplies; it needs no GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen = "cublas"
        monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", self)

    def __call__(self, backend: str | None = None) -> str:
        self.chosen = self.chosen if backend is None else backend
        return self.chosen


@pytest.mark.parametrize(("dtype", "number"), [("float32", 16), ("bfloat16", 32), ("float16", 32), ("float64", 16)])
def test_the_baseline_on_a_gpu_has_both_libraries_and_sums(
    dtype: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, matmul = Settable(monkeypatch), torch.backends.cuda.matmul
    problem = on_a_pretended_gpu(32, 48, 4, dtype)
    seen: dict[str, tuple[str, bool]] = {}

    def multiply(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        name = f"allow_{'fp16' if dtype == 'float16' else 'bf16'}_reduced_precision_reduction"
        seen[current] = library.chosen, getattr(matmul, name)
        return result.copy_(left @ right)

    monkeypatch.setattr(dense, "_multiply", multiply)
    before = matmul.allow_bf16_reduced_precision_reduction
    for current, way in ways(problem).items():  # noqa: B007
        way()
    assert len(seen) == number and library.chosen == "cublas"
    assert matmul.allow_bf16_reduced_precision_reduction == before
    for name, (chosen, loose) in seen.items():
        assert (chosen == "cublaslt") is ("by cuBLASLt" in name)
        if dtype in ("bfloat16", "float16"):
            assert loose is name.endswith("parts summed in 16 bits")


def test_on_amds_gpus_the_library_is_not_called_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    found = ways(on_a_pretended_gpu(32, 48, 4, "bfloat16"))
    assert len(found) == 8 and all(name.endswith(" by ROCm's library") for name in found)


class PretendedProblem(GemmProblem):
    """A product that says it is on a GPU, and whose operands are not."""

    def _normal(self, stream: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(shape, generator=self._generator(stream)) * scale
        return drawn.to(self.torch_dtype)

    def _pruned(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self._kept(name), weight, weight.new_zeros(()))


def on_a_pretended_gpu(m: int, k: int, n: int, dtype: str) -> GemmProblem:
    return PretendedProblem(m, k, n, 8, 0.5, dtype=dtype, device="cuda")


def test_sums_of_parts_in_16_bits_count_where_they_pass_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = on_a_pretended_gpu(32, 48, 4, "bfloat16")
    exact = problem.full_weight @ problem.x

    for error, chosen in ((0.0, "loose" + dense.LOOSE), (0.5, "strict")):
        found = {"strict": lambda: exact.clone(), "loose" + dense.LOOSE: lambda error=error: exact + error}
        monkeypatch.setattr(dense, "ways", lambda _, found=found: found)
        monkeypatch.setattr(dense, "ranked", lambda *_: ["loose" + dense.LOOSE, "strict"])
        assert DenseLaunch(problem).kernel == chosen


def layer() -> LstmProblem:
    return LstmProblem(16, 16, 2, 3, 8, 0.5, passes="forward")


class Recorded:
    """A graph that launches what it is of."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def replay(self) -> None:
        self.launch()


@pytest.mark.parametrize("module", [torch_lstm, loop_lstm])
def test_layers_on_a_gpu_are_offered_as_graphs_too(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's too: a layer that is some 150 launches may be no faster than the processor launches them."""
    offered: list[str] = []

    def last(found: dict[str, Launch], device: str, captured: bool = True) -> str:
        assert device == "cuda" and not captured
        offered.extend(found)
        return list(found)[-1]

    monkeypatch.setattr(launches, "graph_of", Recorded)
    monkeypatch.setattr(launches.Replayed.__init__, "__defaults__", (Recorded, None))
    monkeypatch.setattr(module, "fastest", last)
    monkeypatch.setattr(torch_lstm, "_kernel", lambda _, __, library: f"torch.nn.LSTM {library}")
    monkeypatch.setattr(torch_lstm, "_library", lambda *_: contextmanager(lambda: (yield))())
    problem = layer()
    problem.draw()
    object.__setattr__(problem, "device", "cuda")
    monkeypatch.setattr(launches, "settings", lambda _: [])
    monkeypatch.setattr(torch.nn, "LSTM", without_device(torch.nn.LSTM))
    launch = module.lstm_launch(problem)  # type: ignore[attr-defined]
    eager = [name for name in offered if "replayed" not in name]
    assert [f"{name}, replayed as a CUDA graph" for name in eager] == [name for name in offered if name not in eager]
    assert isinstance(launch, Replayed) and launch.kernel == offered[-1]


def without_device(kind: type[torch.nn.LSTM]) -> Callable[..., torch.nn.LSTM]:
    return lambda *sizes, device, dtype: kind(*sizes, dtype=dtype)  # noqa: ARG005


def test_a_way_that_cannot_be_captured_is_offered_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(launches.Replayed.__init__, "__defaults__", (refuse, None))
    launch = loop_lstm.loop_launch(layer())
    assert with_replays({"loop": launch}, lambda _: loop_lstm.loop_launch(layer())) == {"loop": launch}
