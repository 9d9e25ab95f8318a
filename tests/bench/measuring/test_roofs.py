"""Roofs: what a problem has to compute and to move, by hand, and what rates make of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench.measuring import roofs
from bench.measuring.roofs import Rates, moved_bytes, operations, roof, roof_ms
from kernels.problem import GemmProblem, LstmProblem

H100 = Rates(peak_tflops=720.0, copy_gb_per_second=3000.0)
H200 = Rates(peak_tflops=720.0, copy_gb_per_second=4200.0)


def square(sparsity: float, op: str = "dsd") -> GemmProblem:
    return GemmProblem(4096, 4096, 4096, 128, sparsity, dtype="bfloat16", op=op)


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_a_product_computes_its_kept_elements_and_moves_each_operand_once(op: str) -> None:
    problem = GemmProblem(32, 64, 5, 8, 0.5, dtype="bfloat16", op=op)
    assert operations(problem) == 2 * (32 * 64 // 2) * 5
    assert moved_bytes(problem) == 2 * (32 * 64 // 2 + 64 * 5 + 32 * 5)


def test_padding_is_neither_computed_nor_moved() -> None:
    problem = GemmProblem(30, 20, 4, 8, 0.0, pad=True)
    assert operations(problem) == pytest.approx(2 * 30 * 20 * 4)


def test_a_layer_computes_its_weights_for_every_token() -> None:
    layer = LstmProblem(16, 32, 2, 3, 8, 0.5, passes="forward")
    kept = 4 * 32 * (16 + 32) // 2
    assert operations(layer) == 2 * kept * 2 * 3
    assert moved_bytes(layer) == 4 * (kept + 6 * (16 + 32) + 4 * 2 * 32)
    both = LstmProblem(16, 32, 2, 3, 8, 0.5)
    assert operations(both) == 3 * operations(layer)
    assert moved_bytes(both) == 4 * (2 * (kept + 6 * (16 + 32)) + 4 * 2 * 32)
    assert operations(LstmProblem(16, 32, 2, 3, 8, 0.5, passes="forward", scope="weight_hh")) == (
        2 * (4 * 32 * 16 + 4 * 32 * 32 // 2) * 2 * 3
    )


def test_on_an_h100_memory_is_the_roof_of_block_128_at_nine_tenths() -> None:
    """0.81 of cuBLAS's rate times 1 / (1 - 0.9) at most; on an H200, whose memory is faster, arithmetic decides."""
    dense = operations(square(0.0)) / H100.peak_tflops / 1e9
    assert dense == pytest.approx(0.191, abs=0.001)
    assert dense * 0.1 / roof_ms(square(0.9), H100) == pytest.approx(0.81, abs=0.02)
    assert dense * 0.1 / roof_ms(square(0.9), H200) == pytest.approx(1.0, abs=0.02)
    assert roof_ms(square(0.5), H100) == pytest.approx(dense / 2, rel=1e-3)


def test_a_cpu_has_none_and_neither_has_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"roof_ms": None, "peak_tflops": None, "copy_gb_per_second": None}
    assert roof(square(0.5)) == nothing
    on_gpu = GemmProblem(64, 64, 8, 16, 0.5, device="cuda")
    monkeypatch.setattr(roofs, "rates", lambda *_: Rates(1.0, 1e6))
    assert roof(on_gpu) == {"roof_ms": 2 * 2048 * 8 / 1e9, "peak_tflops": 1.0, "copy_gb_per_second": 1e6}

    def full(*_: str) -> Rates:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(roofs, "rates", full)
    assert roof(on_gpu) == nothing


def test_rates_are_the_best_of_a_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a square product of 8192 and of a copy of 1 GiB, read and written: 2 * 8192^3 operations in 2 ms."""
    times = iter([3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 0.8, 0.9, 0.9, 0.9])
    made = SimpleNamespace(copy_=None)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: made)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: made)
    monkeypatch.setattr(torch, "empty_like", lambda _: made)
    monkeypatch.setattr(roofs, "between_events", lambda _: next(times))
    found = roofs.rates.__wrapped__("bfloat16", "ieee")
    roofs._copy_rate.cache_clear()
    assert found.peak_tflops == pytest.approx(549.8, abs=0.1)
    assert found.copy_gb_per_second == pytest.approx(2 * 2**30 / 0.8 / 1e6)
