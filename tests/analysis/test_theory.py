"""Every formula against numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from analysis import theory


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.8, 5.0), (0.9, 10.0), (1.0, math.inf)])
def test_speedup(rho: float, expected: float) -> None:
    assert theory.speedup(rho) == pytest.approx(expected)


@pytest.mark.parametrize("rho", [-0.1, 1.1, 80.0, math.nan])
def test_speedup_refuses_what_is_no_fraction(rho: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        theory.speedup(rho)


def test_operation_counts() -> None:
    assert theory.dense_multiplications(2, 3, 4) == 24


def test_training_integral_of_hand_worked_epochs() -> None:
    # 4 dense epochs against 4 epochs at 0, .4, .8, .8: 4 - 2 = 2 epochs of work left
    assert theory.training_speedup(4, [0.0, 0.4, 0.8, 0.8]) == pytest.approx(2.0)
    # the sparse run needs twice the epochs at rho = 0.5: nothing gained
    assert theory.training_speedup(4, [0.5] * 8) == pytest.approx(1.0)
    assert theory.training_speedup(100, [0.8] * 100) == pytest.approx(5.0)
    assert theory.training_speedup(1, [1.0]) == math.inf


def test_the_slides_training_speedups() -> None:
    # linear, rho_t = a (t - 1), to 0.8 in the last of 100 epochs
    assert theory.training_speedup(100, [0.8 * t / 99 for t in range(100)]) == pytest.approx(1 / 0.6)
    # a = 0.01: epochs 1..81 sum to 0.8 x 40.5 = 32.4, then 19 x 0.8 = 15.2; 100 / 52.4 = 1.908
    assert theory.training_speedup(100, [min(0.01 * t, 0.8) for t in range(100)]) == pytest.approx(100 / 52.4)
    # cubic: sum of (j/99)^3 for j = 0..99 = (99 x 100 / 2)^2 / 99^3 = 25.2525...; mean rho = 0.8 x 0.747475
    # without end it nears 1 / (1 - 0.8 x 3/4) = 2.5
    for epochs, expected in ((100, 2.4874), (100_000, 2.5)):
        cubic = [0.8 * (1.0 - (1.0 - t / (epochs - 1)) ** 3) for t in range(epochs)]
        assert theory.training_speedup(epochs, cubic) == pytest.approx(expected, abs=1e-3 if epochs > 100 else 1e-4)


def test_amdahl_ceiling_of_the_awd_lstm() -> None:
    weight_ih, weight_hh = theory.lstm_multiply_adds(400, 1150, 3)
    assert theory.lstm_multiply_adds(400, 1150, 3, "adaptive") == (4 * 1150 * 2700, 3 * 4 * 1150 * 1150)
    decoder = 400 * 33_278
    assert (weight_ih + weight_hh, weight_hh, decoder) == (20_190_000, 11_220_000, 13_311_200)
    assert theory.amdahl_ceiling(weight_ih + weight_hh, decoder, 0.8) == pytest.approx(1.93, abs=0.005)
    assert theory.amdahl_ceiling(weight_hh, weight_ih + decoder, 0.8) == pytest.approx(1.37, abs=0.005)
    assert theory.amdahl_ceiling(10, 0, 0.8) == pytest.approx(5.0)
    assert theory.amdahl_ceiling(10, 0, 1.0) == math.inf


def test_storage_of_a_small_matrix() -> None:
    # 8 x 8 float32, 2 x 2 blocks, 4 kept blocks = 16 non-zeros, 4-byte indices
    assert theory.dense_bytes(8, 8) == 256
    assert theory.coo_bytes(16) == 8 + 16 * 12
    assert theory.csr_bytes(8, 16) == 16 * 8 + 9 * 4
    assert theory.bsr_bytes(4, 4, 2) == 4 * 20 + 5 * 4
    assert theory.coo_bytes(16, value_bytes=2, index_bytes=8) == 16 + 16 * 18


@pytest.mark.parametrize(
    ("layout", "block_size", "expected"),
    [
        ("coo", 1, 1 - (256 - 8) / (64 * 12)),  # about two thirds: a coordinate is twice a value
        ("csr", 1, 1 - (256 - 36) / (64 * 8)),
        ("bsr", 2, 1 - (256 - 20) / (16 * 20)),
        ("bsr", 8, 1 - (256 - 8) / (1 * 260)),
    ],
)
def test_storage_crossover(layout: str, block_size: int, expected: float) -> None:
    assert theory.storage_crossover(layout, 8, 8, block_size) == pytest.approx(expected)


def test_bytes_that_tensors_of_a_form_hold() -> None:
    # 8 x 8 float32, 16 non-zeros in four 2 x 2 blocks; torch's coordinates of 8 bytes, and no sides among them
    assert theory.stored_bytes("dense", 8, 8, 16) == 256
    assert theory.stored_bytes("coo", 8, 8, 16, index_bytes=8) == 16 * (4 + 2 * 8)
    assert theory.stored_bytes("coo", 8, 8, 16, sides=2) == theory.coo_bytes(16)
    assert theory.stored_bytes("csr", 8, 8, 16) == 16 * 8 + 9 * 4
    assert theory.stored_bytes("csr", 8, 8, 16, index_bytes=8) == 16 * 12 + 9 * 8
    assert theory.stored_bytes("bsr", 8, 8, 4, 2) == 4 * (16 + 4) + 5 * 4
    assert theory.stored_bytes("bsr", 8, 8, 16, 1) == theory.csr_bytes(8, 16), "a block of one element"
    assert theory.stored_bytes("csr", 8, 8, 0) == 36 and theory.stored_bytes("coo", 8, 8, 0) == 0


def test_crossovers_of_what_torch_stores() -> None:
    # without sides coordinates of s + 2i bytes cross dense at 1 - s / (s + 2i), whatever the matrix
    assert theory.storage_crossover("coo", 100, 70, sides=0) == pytest.approx(2 / 3)
    assert theory.storage_crossover("coo", 100, 70, index_bytes=8, sides=0) == pytest.approx(0.8)
    assert theory.storage_crossover("coo", 100, 70, value_bytes=2, index_bytes=8, sides=0) == pytest.approx(8 / 9)
    # compressed rows: 1000 x 1000, (4e6 - 1001 i) / (1e6 (4 + i)) is kept
    assert theory.storage_crossover("csr", 1000, 1000) == pytest.approx(1 - (4e6 - 4004) / 8e6)
    assert theory.storage_crossover("csr", 1000, 1000, index_bytes=8) == pytest.approx(1 - (4e6 - 8008) / 12e6)


def test_blocks_of_zeros_that_know_nothing_of_them() -> None:
    assert theory.empty_block_share(0.9, 2) == pytest.approx(0.6561)
    assert (theory.empty_block_share(0.0, 4), theory.empty_block_share(1.0, 4)) == (0.0, 1.0)
    assert theory.empty_block_share(0.3, 1) == pytest.approx(0.3)


def test_storage_crossover_is_where_the_bytes_agree() -> None:
    rho = theory.storage_crossover("bsr", 1024, 1024, 16, value_bytes=2, index_bytes=4)
    nnzb = (1 - rho) * 64 * 64
    assert nnzb * (16**2 * 2 + 4) + 65 * 4 == pytest.approx(theory.dense_bytes(1024, 1024, 2))


def test_roofline() -> None:
    assert theory.roofline(100e9, 10e9, 2.0) == 20e9
    assert theory.roofline(100e9, 10e9, 50.0) == 100e9
    # 4 kept 2 x 2 blocks of an 8 x 8 weight, n = 3: 2 x 16 x 3 FLOP over 100 + (8 + 8) x 3 x 4 bytes
    assert theory.dsd_intensity(8, 8, 3, 2, 4) == pytest.approx(96 / (100 + 192))


def test_breakeven_interpolates_relative_time() -> None:
    # relative times 2 and 0.5: 1 is reached after two thirds of the way from 0.5 to 0.9
    found = theory.breakeven([0.9, 0.5], [2.0, 0.5])
    assert found.kind == "crosses"
    assert found.sparsity == pytest.approx(0.5 + 0.4 * 2 / 3)
    assert str(found) == "0.77"


@pytest.mark.parametrize(
    ("speedups", "kind"),
    [([1.0, 2.0, 4.0], "always"), ([0.2, 0.5, 0.9], "never"), ([2.0, 0.5, 0.9], "never"), ([0.5, 1.5, 2.0], "crosses")],
)
def test_breakeven_cases(speedups: list[float], kind: str) -> None:
    found = theory.breakeven([0.5, 0.8, 0.9], speedups)
    assert found.kind == kind
    assert (found.sparsity is None) == (kind != "crosses")


def test_breakeven_of_nothing_is_unknown_and_the_last_crossing_counts() -> None:
    assert theory.breakeven([], []).kind == "unknown"
    found = theory.breakeven([0.1, 0.3, 0.5, 0.7], [1.1, 0.9, 0.8, 1.6])
    assert found.sparsity is not None and 0.5 < found.sparsity < 0.7


def test_a_layer_with_both_weights_sparse_gains_what_a_product_gains() -> None:
    assert theory.layer_speedup(64, 256, 0.8) == pytest.approx(theory.speedup(0.8))
    assert theory.layer_speedup(64, 256, 1.0) == math.inf


def test_a_layer_with_weight_hh_sparse_is_bounded_by_weight_ih() -> None:
    # equal sizes: half of the multiply-adds shrink to a fifth; three times as wide an input: a quarter
    assert theory.layer_speedup(128, 128, 0.8, "weight_hh") == pytest.approx(1 / 0.6)
    assert theory.layer_speedup(384, 128, 0.8, "weight_hh") == pytest.approx(1 / 0.8)
