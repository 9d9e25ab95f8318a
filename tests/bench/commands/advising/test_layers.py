"""Layers: which cells stand for their time, and what cannot be."""

from __future__ import annotations

import pytest

from bench.cells import GemmCell, LstmCell
from bench.commands.advising.layers import (
    AdviceError,
    Layer,
    Setting,
    in_order_of_worth,
    nearest_blocks,
    of_lstm,
    of_shape,
    require_candidates,
    timing,
)

FORWARD = Setting("forward", 16, 0.8)
TRAINING = Setting("training", 16, 0.8)


def test_a_linear_layer_is_one_operator_on_activations_and_three_products_in_training() -> None:
    layer = of_shape("64x32:3", tokens=7)
    shared = {"m": 64, "k": 32, "n": 7, "block_size": 16, "target_sparsity": 0.8, "layout": "column", "threads": 0}
    assert timing(layer, FORWARD).parts == [(GemmCell(call="operator", **shared), 3.0)]
    trained = timing(layer, TRAINING).parts
    assert trained == [(GemmCell(op=op, **shared), 3.0) for op in ("dsd", "dsd_t", "sdd")]


def test_an_lstm_is_a_cell_of_its_own_and_a_gru_its_products() -> None:
    (cell, times), *more = timing(of_lstm("32x64:2", batch=4, steps=5), TRAINING).parts
    assert isinstance(cell, LstmCell) and not more and times == 2.0
    assert (cell.input_size, cell.hidden_size, cell.batch_size, cell.bptt) == (32, 64, 4, 5)
    assert (cell.passes, cell.scope, cell.baseline) == ("forward_backward", "all", "torch_lstm")
    gru = Layer("g", "gru", 64, 32, batch=4, steps=5)
    assert [(each.m, each.k, each.n, often) for each, often in timing(gru, FORWARD).parts] == [  # type: ignore[attr-defined]
        (192, 32, 20, 1.0),
        (192, 64, 4, 5.0),
    ]


def test_what_the_block_size_does_not_divide_stays_dense_and_says_what_would_fit() -> None:
    found = timing(of_shape("650x650", tokens=8), FORWARD)
    assert found.reason == "block_size 16 does not divide 650; sizes that fit: 13 or 25, or --pad"
    ((cell, _),) = found.parts
    assert (cell.backend, cell.baseline, cell.m) == ("dense", "dense", 650)  # type: ignore[attr-defined]


def test_an_lstm_of_odd_inputs_is_sparse_in_its_recurrent_weight_alone() -> None:
    found = timing(of_lstm("40x64", batch=1, steps=2), FORWARD)
    ((cell, _),) = found.parts
    assert cell.scope == found.scope == "weight_hh" and "40 columns are no whole blocks" in found.note  # type: ignore[attr-defined]
    gru = timing(Layer("g", "gru", 64, 40, batch=1, steps=2), FORWARD)
    assert [each.backend for each, _ in gru.parts] == ["dense", "native"]  # type: ignore[attr-defined]


def test_a_padded_layer_is_timed_beside_a_dense_one_of_its_own_size() -> None:
    padded = Setting("forward", 16, 0.8, pad=True)
    for layer in (of_shape("650x650", tokens=8), of_lstm("40x650", batch=1, steps=2)):
        found = timing(layer, padded)
        ((cell, _),) = found.parts
        assert cell.pad and cell.backend == "native"  # type: ignore[attr-defined]
        sizes = (cell.m, cell.k) if cell.kind == "gemm" else (cell.hidden_size, cell.input_size)  # type: ignore[attr-defined]
        assert sizes == (layer.rows, layer.cols)
        assert not found.reason and "padded inside from 650" in found.note and found.scope == "all"
    ((cell, _),) = timing(of_shape("64x64", tokens=8), padded).parts
    assert not cell.pad, "whole blocks need none"  # type: ignore[attr-defined]


def test_a_gpu_is_asked_for_launches_of_its_own_kernels() -> None:
    ((cell, _),) = timing(of_shape("64x64", 8), Setting("forward", 16, 0.8, "cuda")).parts
    assert (cell.backend, cell.device, cell.call) == ("cuda", "cuda", "launch")  # type: ignore[attr-defined]


def test_what_is_worth_most_comes_first_and_equal_layers_are_one_cell() -> None:
    layers = [of_shape("32x32", 8), of_shape("64x64", 8), of_shape("64x64:4", 8)]
    cells = in_order_of_worth(layers, [FORWARD, Setting("forward", 16, 0.5)])
    assert [(cell.m, cell.target_sparsity) for cell in cells] == [(64, 0.8), (32, 0.8), (64, 0.5), (32, 0.5)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", ["3072", "x768", "3072x768x2", "3072X768", "0x768", "64x64:0", "99999999999x1"])
def test_a_shape_that_is_none_is_one_line(given: str) -> None:
    with pytest.raises(AdviceError, match=r"^--shape: .*; accepted: "):
        of_shape(given, 1)


@pytest.mark.parametrize("given", ["", "a", "0", "400x1150x2", "-650"])
def test_a_size_of_an_lstm_that_is_none_is_one_line(given: str) -> None:
    with pytest.raises(AdviceError, match=r"^--lstm: .*; accepted: "):
        of_lstm(given, 1, 1)


def test_where_no_block_size_fits_the_nearest_and_the_padded_choice_are_said() -> None:
    layers = [of_lstm("650", 20, 35)]
    with pytest.raises(AdviceError) as raised:
        require_candidates(layers, [32, 16], pad=False)
    assert str(raised.value) == (
        "--block-size: none of 32, 16 divides LSTM 650 -> 650; accepted: 26 or 50 (the nearest sizes that work), or "
        "--pad, which fills it up to 672 and 672"
    )
    require_candidates(layers, [32], pad=True)
    require_candidates(layers, [26], pad=False)
    assert nearest_blocks([650, 3], 16) == "none up to 128"
