"""time_cell: one row, honest statuses, no time for a wrong output."""

import pytest
import torch

from bench import timing
from bench.cells import GemmCell, LstmCell, TimedCell
from bench.measuring import clocks
from bench.measuring.clocks import Evictor, WallTimer
from bench.measuring.machine import QUERIES
from bench.schema import GEMM, LSTM, STATUSES
from bench.timing import Samples, pinned_threads, sample_pairs, time_cell
from kernels.backends.dense import BACKEND as DENSE
from kernels.backends.dense import DenseLaunch
from kernels.backends.loop_lstm import BACKEND as LOOP
from kernels.launches import LstmLaunch
from kernels.problem import GemmProblem, LstmProblem
from kernels.registry import BACKENDS

ATTEMPTS = timing.ATTEMPTS
LOOP_PREPARE = LOOP.prepare
MEASURED = {"time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "launches_per_sample", "noisy", "attempts"}
TINY = {"m": 32, "k": 32, "n": 4, "block_size": 8}
TINY_LAYER = {"input_size": 32, "hidden_size": 32, "batch_size": 2, "bptt": 3, "block_size": 8}


def silent(_: dict[str, float | int | str]) -> None: ...


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.02)
    monkeypatch.setattr(timing, "ATTEMPTS", 1)  # but where a test asks for more
    monkeypatch.setattr(clocks, "WARM_UP_SECONDS", 0.002)


def test_an_ok_row_has_every_column() -> None:
    (row,) = time_cell(GemmCell(backend="torch_bsr", **TINY), silent)
    assert row["status"] == "ok" and row["reason"] == ""
    assert set(row) == {column.name for column in GEMM} | {"status", "reason", *QUERIES}
    assert len(row["samples_ms"]) == len(row["baseline_samples_ms"]) >= 30
    assert 0 < row["time_ms"] < 1000 and 0 < row["baseline_ms"] < 1000 and row["launches_per_sample"] >= 1
    assert min(row["samples_ms"]) <= row["time_ms"] <= max(row["samples_ms"])
    assert row["nnzb"] + row["num_empty"] == 16 and row["sparsity"] == row["num_empty"] / 16
    assert 0 <= row["error_ratio"] <= 1


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_every_product_is_timed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "SAMPLE_MS", 0.02)  # of torch's product: the reference takes hundreds of times as long
    (row,) = time_cell(GemmCell(backend="reference", op=op, **TINY), silent)
    assert row["status"] == "ok" and row["time_ms"] > 0
    assert row["baseline_kernel"].startswith(("torch.mm, ", "oneDNN, ", "torch's mkl_linear"))


@pytest.mark.parametrize("baseline", ["torch_lstm", "loop_lstm"])
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize(("scope", "blocks"), [("all", 128), ("weight_hh", 64)])
def test_a_layer_is_timed_and_its_block_sparse_weights_are_counted(
    scope: str, blocks: int, passes: str, baseline: str
) -> None:
    settings = {"scope": scope, "passes": passes, "baseline": baseline, "target_sparsity": 0.75}
    (row,) = time_cell(LstmCell.model_validate({"backend": "reference", **settings, **TINY_LAYER}), silent)
    assert row["status"] == "ok" and row["reason"] == ""
    assert set(row) == {column.name for column in LSTM} | {"status", "reason", *QUERIES}
    assert row["nnzb"] + row["num_empty"] == blocks and row["sparsity"] == 0.75
    assert row["weight_bytes"] == row["nnzb"] * 8 * 8 * 8
    assert 0 <= row["error_ratio"] <= 1 and row["baseline_ms"] > 0
    assert len(row["samples_ms"]) == len(row["baseline_samples_ms"]) >= 30


def test_padding_is_counted_and_empties_no_block() -> None:
    """30 x 20 in blocks of 8 is 32 x 24: each of the 12 blocks holds elements of the weight."""
    sizes = {"m": 30, "k": 20, "n": 4, "block_size": 8, "pad": True, "backend": "scipy_bsr"}
    (row,) = time_cell(GemmCell.model_validate({**sizes, "target_sparsity": 0.0}), silent)
    assert row["status"] == "ok" and (row["sparsity"], row["nnzb"], row["num_empty"]) == (0.0, 12, 0)
    assert row["padded_share"] == 1 - 30 * 20 / (32 * 24) and row["weight_bytes"] == 4 * 32 * 24
    (row,) = time_cell(GemmCell.model_validate({**sizes, "target_sparsity": 1.0}), silent)
    assert (row["sparsity"], row["padded_share"]) == (1.0, 0.0)
    layer = TINY_LAYER | {"hidden_size": 30, "input_size": 20, "pad": True, "backend": "reference"}
    (row,) = time_cell(LstmCell.model_validate({**layer, "target_sparsity": 0.0}), silent)
    assert row["status"] == "ok" and row["nnzb"] == 4 * 4 * (3 + 4)
    assert row["padded_share"] == pytest.approx(1 - 4 * 30 * (20 + 30) / (4 * 32 * (24 + 32)))
    (row,) = time_cell(GemmCell(backend="scipy_bsr", **TINY), silent)
    assert row["padded_share"] == 0.0


@pytest.mark.parametrize("cell", [GemmCell(backend="scipy_bsr", **TINY), LstmCell(backend="loop_lstm", **TINY_LAYER)])
def test_deterministic_columns_repeat(cell: TimedCell) -> None:
    names = [column.name for column in GEMM if column.role == "result"]
    first, second = (time_cell(cell, silent)[0] for _ in range(2))
    assert [first[name] for name in names] == [second[name] for name in names]


def test_cold_samples_are_single_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: 2**16)
    (row,) = time_cell(GemmCell(backend="scipy_bsr", cache="cold", **TINY), silent)
    assert row["status"] == "ok" and row["launches_per_sample"] == 1


def test_the_evictor_streams_over_more_than_the_last_level_cache() -> None:
    assert Evictor("cpu").buffer.numel() * 4 > clocks.last_level_cache_bytes()


class Spoiled(DenseLaunch):
    def __call__(self) -> None:
        super().__call__()
        self.result[0, 0] += 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backend": "torch_lstm"}, "LSTM layers only"),
        ({"baseline": "torch_lstm", "backend": "dense"}, "torch_lstm: torch_lstm computes LSTM layers only"),
        ({"backend": "scipy_bsr", "op": "sdd"}, "scipy has no product sampled at blocks"),
    ],
)
def test_what_a_backend_lacks_is_unsupported(settings: dict[str, str], reason: str) -> None:
    (row,) = time_cell(GemmCell.model_validate({**settings, **TINY}), silent)
    assert row["status"] == "unsupported" and reason in row["reason"]
    (row,) = time_cell(LstmCell(backend="dense", **TINY_LAYER), silent)
    assert row["status"] == "unsupported" and "no LSTM layer" in row["reason"]


def test_a_wrong_layer_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(problem: LstmProblem) -> LstmLaunch:
        launch = LOOP_PREPARE(problem)
        launch.leaves["weight_hh"].data = problem.full_weights["weight_hh"] * 1.01
        return launch

    monkeypatch.setattr(LOOP, "prepare", prepare)
    (row,) = time_cell(LstmCell(backend="loop_lstm", **TINY_LAYER), silent)
    assert row["status"] == "wrong" and "times the error bound" in row["reason"]
    assert not MEASURED & set(row)


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
    """A timer that launches and always answers the same."""

    name = "fixed"

    def __init__(self, milliseconds: float = 0.1) -> None:
        self.milliseconds = milliseconds

    def time(self, launch: Recorder, launches: int) -> float:
        for _ in range(launches):
            launch()
        return self.milliseconds


def test_pairs_alternate_and_each_side_has_as_many_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(timing, "count_launches", lambda *_: 3)
    log: list[str] = []
    samples = sample_pairs(Recorder("a", log), Recorder("b", log), FixedTimer())
    assert log[:16] == ["a"] * 4 + ["b"] * 8 + ["a"] * 4  # one untimed launch and three timed ones each
    assert len(samples.backend) == len(samples.baseline) == 30 and samples.launches == 3


def test_long_launches_are_not_launched_untimed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "count_launches", lambda *_: 1)
    log: list[str] = []
    sample_pairs(Recorder("a", log), Recorder("b", log), FixedTimer(2 * timing.LONG_LAUNCH_MS))
    assert log[:8] == ["a", "a", "b", "b", "b", "a", "a", "b"]  # only the first pair


def test_pairs_that_take_too_long_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "count_launches", lambda *_: 1)
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e9)
    for seconds, pairs in ((1e9, 30), (4, 10), (14, 14)):  # the clock advances by one a pair
        monkeypatch.setattr(timing, "LONG_SECONDS", seconds)
        assert len(sample_pairs(Recorder("a", []), Recorder("b", []), FixedTimer()).backend) == pairs


def test_noisy_cells_that_take_long_are_not_sampled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "sample_pairs", lambda *_: Samples(1, [1.0, 3.0] * 15, [1.0] * 30))
    monkeypatch.setattr(timing, "ATTEMPTS", ATTEMPTS)
    monkeypatch.setattr(timing, "RESAMPLE_SECONDS", 0.0)
    [row] = time_cell(GemmCell(backend="torch_bsr", m=32, k=32, n=4), silent)
    assert (row["attempts"], row["noisy"]) == (1, True)


def test_samples_last_long_enough() -> None:
    problem = GemmProblem(32, 32, 4, 8, 0.5)
    launch, timer = DENSE.prepare(problem), WallTimer("cpu")
    samples = sample_pairs(launch, launch, timer)
    assert max(samples.backend) * samples.launches >= clocks.SAMPLE_MS * 0.9


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
    monkeypatch.setattr(timing, "ATTEMPTS", ATTEMPTS)
    noisy, quiet = Samples(1, [1.0, 3.0] * 15, [1.0] * 30), Samples(1, [1.0] * 30, [2.0] * 30)
    cell = GemmCell(backend="torch_bsr", m=32, k=32, n=4)
    for given, attempts in (([noisy, quiet], 2), ([noisy, noisy, noisy], 3), ([quiet], 1)):
        left = iter(given)
        monkeypatch.setattr(timing, "sample_pairs", lambda *_, left=left: next(left))
        [row] = time_cell(cell, silent)
        assert (row["attempts"], row["noisy"]) == (attempts, given[-1].noisy)
        assert row["samples_ms"] == given[-1].backend
