"""The CUDA kernels of an LSTM layer on the emulator, against the float64 reference.

They are compiled for every architecture too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import emulator
import pytest
import torch
from emulated_gpu import emulated_gpu
from emulator import CUDA, EmulationError
from lstm_case import DTYPES, MATHS, PATTERNS, ROUNDOFF, Case, Layer, Load, assert_near, tolerance
from nvrtc import needs_nvrtc
from torch import Tensor

from kernels.backends.cuda import BACKEND
from kernels.bsr import BSRMatrix
from kernels.cuda import lstm as cuda_lstm
from kernels.cuda.device import Kernel, Variant, compile_cubin
from kernels.cuda.lstm_plan import Device, Tiles
from kernels.cuda.recurrence import Kept, Recurrence, Sizes, plans_for, tiles_for, variant_of
from kernels.launches import block_sparse_weights
from kernels.ops import block_sparse_lstm
from kernels.problem import LstmProblem
from kernels.system.resources import UnsupportedError

ELEMENTS = list(ROUNDOFF)
TILES = {
    8: Tiles(8, 1, 4, 1),
    16: Tiles(8, 2, 2, 2),
    32: Tiles(16, 2, 2, 2),
    64: Tiles(32, 1, 4, 4),
    128: Tiles(32, 2, 2, 2),
}
SHAPES = [(1, 5), (7, 2), (20, 1), (33, 5)]  # batch, steps


def layer(element: str, block: int, pattern: str = "random", batch: int = 20, steps: int = 2, grid: int = 3) -> Layer:
    sparsity = 0.8 if pattern == "random" else 0.5
    shape = 2 * block, grid * block, batch, steps, block
    return Layer(*shape, sparsity, dtype=DTYPES[element], math=MATHS[element], pattern=pattern, seed=batch)


@pytest.mark.parametrize(("batch", "steps"), [(7, 2), (33, 3)])
@pytest.mark.parametrize(("block", "pattern"), [(8, "random"), (16, "empty rows"), (32, "random")])
@pytest.mark.parametrize("element", ELEMENTS)
def test_against_float64(element: str, block: int, pattern: str, batch: int, steps: int) -> None:
    Case(layer(element, block, pattern, batch, steps), element, TILES[block]).check()


@pytest.mark.emulate
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("block", TILES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_every_block_pattern_and_shape(element: str, block: int, pattern: str) -> None:
    for batch in (1, 7, 20, 33):
        for steps in (1, 2, 5):
            grid = 4 if block <= 16 else 2
            Case(layer(element, block, pattern, batch, steps, grid), element, TILES[block]).check()


@pytest.mark.emulate
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("units", [8, 16, 32])
@pytest.mark.parametrize("element", ELEMENTS)
def test_every_cut(element: str, units: int, resident: bool) -> None:
    for tiles, split, ahead in ((1, 1, 1), (1, 8, 4), (3, 2, 3), (5, 1, 4)):
        Case(layer(element, 32, batch=70), element, Tiles(units, tiles, split, ahead, resident)).check()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", ["reverse", "random"])
@pytest.mark.parametrize("element", ["Float32", "Bfloat16"])
def test_other_orders_of_threads(element: str, order: str, together: bool) -> None:
    for seed in range(3 if order == "random" else 1):
        load = partial(emulator.load, order=order, seed=seed)
        Case(layer(element, 16, batch=33, steps=4), element, TILES[16], together, load).check()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_both_rungs_give_the_same_bits(together: bool, resident: bool) -> None:
    first = Case(layer("Bfloat16", 16, steps=5), "Bfloat16", TILES[16]).outputs()
    other = Case(layer("Bfloat16", 16, steps=5), "Bfloat16", TILES[16]._replace(resident=resident), together).outputs()
    assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("together", [True, False])
def test_inference_keeps_nothing(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, found = Recurrence.forward, list[Kept]()

    def seen(*given: Any) -> tuple[Tensor, Kept]:
        last_cell, kept = forward(*given)
        found.append(kept)
        return last_cell, kept

    monkeypatch.setattr(Recurrence, "forward", seen)
    Case(replace(layer("Float16", 8), passes="forward"), "Float16", TILES[8], together).check()
    (kept,) = found
    assert kept.gates is None and kept.cells.shape[0] == 1


@pytest.mark.parametrize("element", ELEMENTS)
def test_tiles_chosen_for_a_gpu(element: str) -> None:
    case = Case(layer(element, 16, grid=4), element)
    case.check()
    case.check()  # flags and sums begin anew


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("element", ["Float32", "Bfloat16"])
def test_gradients_of_all_states(element: str, together: bool) -> None:
    shape = layer(element, 8, batch=20, steps=3)
    case = Case(shape, element, TILES[8], together)
    generator = torch.Generator().manual_seed(1)
    bsr, (h0, c0) = block_sparse_weights(shape), shape.state
    grads = [torch.randn(h0.shape, generator=generator).to(shape.torch_dtype) for _ in range(2)]
    leaves = {"x": shape.x, "h0": h0, "c0": c0, **{name: each.data for name, each in bsr.items()}, **shape.biases}
    leaves = {name: each.clone().requires_grad_() for name, each in leaves.items()}
    into, recurrent = (bsr[name].with_data(leaves[name]) for name in ("weight_ih", "weight_hh"))
    biases = leaves["bias_ih"], leaves["bias_hh"]
    with case.gpu():
        y, (h, c) = block_sparse_lstm(leaves["x"], (leaves["h0"], leaves["c0"]), into, recurrent, *biases, "cuda")
        wanted = list(leaves.values())
        found = torch.autograd.grad((y, h, c), wanted, (shape.grad_y, *grads), retain_graph=True)
        alone = torch.autograd.grad(h, wanted, grads[0])
    for got, given in ((found, [shape.grad_y, *grads]), (alone, [0 * shape.grad_y, grads[0], 0 * grads[1]])):
        expected = torchs_gradients(shape, given)
        assert expected.keys() == leaves.keys()
        for name, value in zip(leaves, got, strict=True):
            assert_near(value, expected[name], tolerance(shape, element), name)


def torchs_gradients(shape: Layer, grads: list[Tensor]) -> dict[str, Tensor]:
    """By torch.nn.LSTM in float64. grads: of y, h and c."""
    lstm = torch.nn.LSTM(shape.input_size, shape.hidden_size, dtype=torch.float64)
    parameters = dict(zip((*shape.weights, *shape.biases), lstm.parameters(), strict=True))
    for name, value in {**shape.weights, **shape.biases}.items():
        parameters[name].data.copy_(value)
    x, h0, c0 = (each.double().requires_grad_() for each in (shape.x, *shape.state))
    y, (h, c) = lstm(x, (h0, c0))
    leaves = {"x": x, **parameters, "h0": h0, "c0": c0}
    given = [grad.double() for grad in grads]
    found = dict(zip(leaves, torch.autograd.grad([y, h, c], list(leaves.values()), given), strict=True))
    return found | {name: BSRMatrix.from_dense(found[name], mask).data for name, mask in shape.masks.items()}


FAULTS = {
    "no wait": ("part.wait(flags, (u32)(step - given.begin));", "{}"),
    "no wait backward": ("part.wait(flags, (u32)(given.end - 1 - step));", "{}"),
    "no publication": ("if (step + 1 < given.end) part.publish(flags);", ""),
    "a step too early": ("(u32)(step - given.begin)", "(u32)(step - given.begin - 1)"),
    "another column": ("items[at].column[lane % 4];", "items[at].column[0];"),
    "no barrier before the gates": (
        "part.multiply_items(step ? given.states + part.batch * (u64)step * hidden : given.h0, hidden);\n"
        "        __syncthreads();",
        "part.multiply_items(step ? given.states + part.batch * (u64)step * hidden : given.h0, hidden);",
    ),
    "no barrier before publishing": (
        "__syncthreads();\n        if (threadIdx.x == 0) add_release",
        "if (threadIdx.x == 0) add_release",
    ),
    "waits for some pieces only": ("at < items; at += 8 * SPLIT", "at < items - 1; at += 8 * SPLIT"),
    "the next unit's gate": ("gate == 2 ? tangent", "gate == 1 ? tangent"),
    "one sample too many": ("sample + row(which) < batch", "sample + row(which) <= batch"),
}


def planted(folder: Path, fault: str) -> Load:
    """A loader of the kernels with `fault` in them."""
    right, wrong = FAULTS[fault]
    texts = {name: (CUDA / name).read_text() for name in ("lstm.cu", "lstm.h")}
    assert sum(text.count(right) for text in texts.values()) == 1
    for name, text in texts.items():
        (folder / name).write_text(text.replace(right, wrong))

    def load(variant: Variant) -> Kernel:
        return emulator.load(replace(variant, source=str(folder / "lstm.cu")), order="random")

    return load


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, EmulationError)):
        Case(layer("Float32", 8, "full", 20, 4), "Float32", TILES[8], load=planted(tmp_path, fault)).check()


def test_what_cannot_be_computed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = LstmProblem(64, 64, 20, 2, 16, 0.5)
    with emulated_gpu():
        assert BACKEND.unsupported(problem) is None
        assert "float64" in str(BACKEND.unsupported(replace(problem, dtype="float64")))
        assert "not 4" in str(BACKEND.unsupported(replace(problem, block_size=4)))
    large, sizes = replace(problem, hidden_size=512, batch_size=4000), Sizes(4000, 512, 16)
    plans = plans_for(block_sparse_weights(large)["weight_hh"].index, 16, torch.float32)
    with pytest.raises(UnsupportedError, match=r"^[^\n]*4000 does not fit[^\n]*$"):
        tiles_for(plans, sizes, True, Device(multiprocessors=2), together=True)
    with emulated_gpu(multiprocessors=2):
        assert BACKEND.unsupported(large) is None  # a launch a step does
        monkeypatch.setattr(cuda_lstm, "device_of", lambda _: Device(132, 2048, 1024))
        assert "20 keeps more columns in a block row" in str(BACKEND.unsupported(problem))


def spills(element: str, block: int, batch: int, arch: str) -> dict[str, int]:
    """Bytes that the kernels of a layer of 1152 units keep in memory because registers do not suffice."""
    problem = Layer(1152, 1152, batch, 70, block, 0.8, dtype=DTYPES[element])
    mask = problem.masks["weight_hh"]
    index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index
    plans, sizes, found = plans_for(index, block, problem.torch_dtype), Sizes(batch, 1152, block), {}
    for together in (True, False):
        chosen = tiles_for(plans, sizes, element == "Float32", Device(), together)
        for name, plan, tiles in zip(("lstm_forward", "lstm_backward"), plans, chosen, strict=True):
            variant = variant_of(name, plan, sizes, tiles, element)
            found[str(variant)] = compile_cubin(variant, arch).spill_bytes
    return found


@needs_nvrtc
@pytest.mark.parametrize(("block", "batch"), [(16, 80), (32, 20)])
def test_nothing_spills(block: int, batch: int) -> None:
    assert not any(spills("Bfloat16", block, batch, "sm_90a").values())


@needs_nvrtc
@pytest.mark.emulate
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90a", "sm_100a"])
@pytest.mark.parametrize("block", TILES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_nothing_spills_anywhere(element: str, block: int, arch: str) -> None:
    for batch in (20, 80):
        assert not any(spills(element, block, batch, arch).values())
