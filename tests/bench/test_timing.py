"""time_cell: one row, honest statuses, no time for a wrong output."""

import pytest
import torch

from bench import timing
from bench.cells import GemmCell
from bench.schema import GEMM, STATUSES
from bench.timing import Evictor, Samples, WallTimer, pinned_threads, sample_pairs, time_cell
from kernels.backends.dense import BACKEND as DENSE
from kernels.backends.dense import DenseLaunch
from kernels.problem import GemmProblem
from kernels.registry import BACKENDS

MEASURED = {"time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "launches_per_sample", "noisy", "attempts"}
TINY = {"m": 32, "k": 32, "n": 4, "block_size": 8}


def silent(_: dict[str, float | int | str]) -> None: ...


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.02)
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.002)


def test_an_ok_row_has_every_column() -> None:
    (row,) = time_cell(GemmCell(backend="torch_bsr", **TINY), silent)
    assert row["status"] == "ok" and row["reason"] == ""
    assert set(row) == {column.name for column in GEMM} | {"status", "reason"}
    assert len(row["samples_ms"]) == len(row["baseline_samples_ms"]) >= 30
    assert 0 < row["time_ms"] < 1000 and 0 < row["baseline_ms"] < 1000 and row["launches_per_sample"] >= 1
    assert min(row["samples_ms"]) <= row["time_ms"] <= max(row["samples_ms"])
    assert row["nnzb"] + row["num_empty"] == 16 and row["sparsity"] == row["num_empty"] / 16
    assert 0 <= row["error_ratio"] <= 1


def test_deterministic_columns_repeat() -> None:
    names = [column.name for column in GEMM if column.role == "result"]
    first, second = (time_cell(GemmCell(backend="scipy_bsr", **TINY), silent)[0] for _ in range(2))
    assert [first[name] for name in names] == [second[name] for name in names]


def test_cold_samples_are_single_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 2**16)
    (row,) = time_cell(GemmCell(backend="scipy_bsr", cache="cold", **TINY), silent)
    assert row["status"] == "ok" and row["launches_per_sample"] == 1


def test_the_evictor_streams_over_more_than_the_last_level_cache() -> None:
    assert Evictor("cpu").buffer.numel() * 4 > timing.last_level_cache_bytes()


class Spoiled(DenseLaunch):
    def __call__(self) -> None:
        super().__call__()
        self.result[0, 0] += 1


@pytest.mark.parametrize("side", ["backend", "baseline"])
def test_a_wrong_output_has_no_times(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DENSE, "prepare", Spoiled, raising=True)
    settings = {"backend": "dense"} if side == "backend" else {"backend": "scipy_bsr"}
    (row,) = time_cell(GemmCell(**settings, **TINY), silent)
    assert row["status"] == "wrong" and "output[0, 0]" in row["reason"]
    assert not MEASURED & set(row)


@pytest.mark.parametrize("settings", [{"backend": "scipy_bsr"}, {"backend": "dense", "baseline": "scipy_bsr"}])
def test_unsupported_has_a_reason(settings: dict[str, str]) -> None:
    (row,) = time_cell(GemmCell(dtype="bfloat16", **settings, **TINY), silent)
    assert row["status"] == "unsupported" and "scipy has no bfloat16" in row["reason"]
    assert row["status"] in STATUSES


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", BACKENDS.names())
def test_without_a_gpu_cuda_is_unsupported(name: str) -> None:
    assert time_cell(GemmCell(backend=name, device="cuda", **TINY), silent) == [
        {"status": "unsupported", "reason": "no CUDA device"}
    ]


def test_threads_are_pinned_and_restored() -> None:
    before = torch.get_num_threads()
    with pinned_threads(3) as threads:
        assert threads == torch.get_num_threads() == 3
    with pinned_threads(0) as threads:
        assert threads >= 1
    with pytest.raises(KeyError), pinned_threads(2):
        raise KeyError
    assert torch.get_num_threads() == before


class Recorder:
    """A launch that notes when it runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __call__(self) -> None:
        self.log.append(self.name)


class FixedTimer:
    """A timer that launches once and answers from a list."""

    name = "fixed"

    def time(self, launch: Recorder, launches: int) -> float:
        for _ in range(launches):
            launch()
        return 0.1


def test_pairs_alternate_and_each_side_has_as_many_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(timing, "count_launches", lambda *_: 3)
    log: list[str] = []
    samples = sample_pairs(Recorder("a", log), Recorder("b", log), FixedTimer())
    assert log[:16] == ["a"] * 4 + ["b"] * 8 + ["a"] * 4  # one untimed launch and three timed ones each
    assert len(samples.backend) == len(samples.baseline) == 30 and samples.launches == 3


def test_samples_last_long_enough() -> None:
    problem = GemmProblem(32, 32, 4, 8, 0.5)
    launch, timer = DENSE.prepare(problem), WallTimer("cpu")
    samples = sample_pairs(launch, launch, timer)
    assert max(samples.backend) * samples.launches >= timing.SAMPLE_MS * 0.9


def test_noisy_is_the_spread_of_the_ratios() -> None:
    steady = Samples(1, backend=[1.0, 1.2, 1.4, 1.8] * 8, baseline=[2.0, 2.4, 2.8, 3.6] * 8)
    assert steady.ratios == [2.0] * 32 and not steady.noisy
    assert Samples(1, backend=[1.0] * 32, baseline=[1.0, 1.2] * 16).noisy


def test_waiting_for_a_busy_core_is_noisy_though_the_ratios_are_steady() -> None:
    assert Samples(1, backend=[12.0] * 30 + [0.1, 0.1], baseline=[12.0] * 30 + [0.5, 0.5]).noisy


def test_progress_is_told_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TELL_SECONDS", 0.0)
    told: list[dict[str, float | int | str]] = []
    time_cell(GemmCell(backend="scipy_bsr", **TINY), told.append)
    assert told and set(told[0]) == {"pairs", "backend_ms", "baseline_ms"}


def test_a_noisy_cell_is_sampled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, quiet = Samples(1, [1.0, 3.0] * 15, [1.0] * 30), Samples(1, [1.0] * 30, [2.0] * 30)
    cell = GemmCell(backend="torch_bsr", m=32, k=32, n=4)
    for given, attempts in (([noisy, quiet], 2), ([noisy, noisy, noisy], 3), ([quiet], 1)):
        left = iter(given)
        monkeypatch.setattr(timing, "sample_pairs", lambda *_, left=left: next(left))
        [row] = time_cell(cell, silent)
        assert (row["attempts"], row["noisy"]) == (attempts, given[-1].noisy)
        assert row["samples_ms"] == given[-1].backend
