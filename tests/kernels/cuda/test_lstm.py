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
from kernels.cuda import recurrence as cuda_recurrence
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
    case.check()  # what is awaited and summed begins anew


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


LOOKED_AT = "piece.x == absent || piece.y == absent || piece.z == absent || piece.w == absent"
SUMS = """        UNROLL for (int gate = 0; gate < gates; ++gate)
            UNROLL for (int each = 0; each < unit_tiles; ++each) {
                sum[gate][each].finish(lane);"""
FAULTS = {
    "nothing is looked at": (LOOKED_AT, "false"),
    "only the first word is looked at": (LOOKED_AT, "piece.x == absent"),
    "only the last word is looked at": (LOOKED_AT, "piece.w == absent"),
    "no wait": ("hidden, step > given.begin);", "hidden, false);"),
    "no wait backward": ("4 * hidden, step + 1 < given.end);", "4 * hidden, false);"),
    "what was absent is loaded once more": ("load(ahead, half), again = true;", "load(ahead, half);"),
    "no publication": ("            publish_pair(given.states", "            if (step) publish_pair(given.states"),
    "a step too early": ("part.batch * (u64)step * hidden", "part.batch * (u64)(step - 1) * hidden"),
    "another column": ("at < items ? item[at].column[lane % 4]", "at < items ? item[at].column[0]"),
    "another sample": ("(u64)(sample + row + 8 * half)", "(u64)(sample + row)"),
    "no barrier before the gates": (
        ": given.h0, hidden, step > given.begin);\n        __syncthreads();",
        ": given.h0, hidden, step > given.begin);",
    ),
    "no barrier before the sums": ("        __syncthreads();\n" + SUMS, SUMS),
    "the next unit's gate": ("gate == 2 ? tangent", "gate == 1 ? tangent"),
    "one sample too many": ("min(given.rows, batch - sample)", "min(given.rows, batch - sample + 1)"),
    "one sample too few": ("min(given.rows, batch - sample)", "min(given.rows, batch - sample - 1)"),
    "samples as many as there is room for": ("(int)blockIdx.y * given.rows", "(int)blockIdx.y * lstm_samples"),
}


def planted(folder: Path, right: str, wrong: str, order: str = "random") -> Load:
    """A loader of the kernels with `wrong` in the place of `right`."""
    texts = {name: (CUDA / name).read_text() for name in ("lstm.cu", "lstm.h")}
    assert sum(text.count(right) for text in texts.values()) == 1
    for name, text in texts.items():
        (folder / name).write_text(text.replace(right, wrong))

    def load(variant: Variant) -> Kernel:
        return emulator.load(replace(variant, source=str(folder / "lstm.cu")), order=order)

    return load


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, tmp_path: Path) -> None:
    load = planted(tmp_path, *FAULTS[fault])
    case = Case(layer("Float32", 8, "full", 20, 4), "Float32", TILES[8]._replace(rows=12), load=load)
    with pytest.raises((AssertionError, EmulationError)):
        case.check()


def test_pieces_of_16_bit_elements_that_are_half_there_are_seen(tmp_path: Path) -> None:
    """Whose four words are stored by four threads: else a fault of waiting would not show."""
    load = planted(tmp_path, *FAULTS["only the first word is looked at"])
    with pytest.raises(AssertionError):
        Case(layer("Bfloat16", 8, "full", 20, 4), "Bfloat16", TILES[8], load=load).check()


def test_what_is_never_published_is_a_deadlock(tmp_path: Path) -> None:
    load = planted(tmp_path, *FAULTS["no publication"])
    with pytest.raises(EmulationError, match=r"deadlock: .* relax"):
        Case(layer("Bfloat16", 8, "full", 20, 4), "Bfloat16", TILES[8], load=load).check()


def test_a_buffer_that_is_not_filled_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other NaNs than `absent` lie there: so they would be taken for outputs."""
    case = Case(layer("Bfloat16", 8, "full", 20, 4), "Bfloat16", TILES[8])
    monkeypatch.setattr(cuda_recurrence, "absent", lambda *given: cuda_recurrence.empty(*given))
    with pytest.raises(AssertionError, match="error nan"):
        case.check()


# Of what a user gives: both NaNs without a zero, of which a kernel may turn one into the other, and infinity.
BITS = {"absent": -1, "its negative": {2: 0x7FFF, 4: 0x7FFFFFFF}, "infinity": {2: 0x7F80, 4: 0x7F800000}}


def spoilt(whole: Tensor, places: tuple[int, ...], bits: str) -> Tensor:
    """A copy with one element of these bits."""
    found, pattern = whole.clone(), BITS[bits]
    value = pattern if isinstance(pattern, int) else pattern[whole.itemsize]
    if whole.dtype is torch.float16 and bits == "infinity":
        value = 0x7C00
    found.view({2: torch.int16, 4: torch.int32}[whole.itemsize])[places] = value
    return found


def differentiated(case: Case, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs and the gradients of x, h0 and c0. given: x, h0, c0 and the gradient of y."""
    bsr = block_sparse_weights(case.layer)
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "h0", "c0")}
    x, h0, c0 = leaves.values()
    y, (h, c) = block_sparse_lstm(
        x, (h0, c0), bsr["weight_ih"], bsr["weight_hh"], *case.layer.biases.values(), kernel="cuda"
    )
    found = torch.autograd.grad(y, list(leaves.values()), given["grad_y"])
    return {"y": y, "h": h, "c": c, **{f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}}


def spoilt_layer(case: Case, name: str, bits: str) -> None:
    """AssertionError where such a number in sample 3 of an operand leaves no NaN there, or changes other samples."""
    (h0, c0), shape = case.layer.state, case.layer
    given = {"x": shape.x, "h0": h0, "c0": c0, "grad_y": shape.grad_y}
    with case.gpu():
        plain = differentiated(case, given)
        assert not any(value.isnan().any() for value in plain.values())
        found = differentiated(case, given | {name: spoilt(given[name], (-1, 3, 5), bits)})
        assert bits == "infinity" or any(value[:, 3].isnan().any() for value in found.values())
        for key, value in found.items():
            others = [sample for sample in range(shape.batch_size) if sample != 3]
            assert torch.equal(value[:, others], plain[key][:, others]), key


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("element", ["Float32", "Bfloat16", "Float16"])
def test_whatever_a_user_gives_no_cta_waits_for_ever(element: str, bits: str, together: bool) -> None:
    for name in ("x", "h0", "c0", "grad_y"):
        case = Case(layer(element, 8, "full", 7, 3), element, TILES[8], together)
        spoilt_layer(case, name, bits)


@pytest.mark.parametrize(
    ("right", "wrong", "name", "bits"),
    [
        ("value == value ? value", "true ? value", "x", "its negative"),
        ("value == value ? value", "true ? value", "grad_y", "absent"),
        (": given.h0, hidden, step > given.begin);", ": given.h0, hidden, true);", "h0", "absent"),
    ],
)
def test_a_nan_that_is_taken_for_absent_is_a_deadlock(
    right: str, wrong: str, name: str, bits: str, tmp_path: Path
) -> None:
    case = Case(layer("Float32", 8, "full", 7, 3), "Float32", TILES[8], load=planted(tmp_path, right, wrong))
    with pytest.raises(EmulationError, match=r"deadlock: .* relax"):
        spoilt_layer(case, name, bits)


def test_no_wait_for_the_first_step_s_gradients(tmp_path: Path) -> None:
    """Those that the gradient of h0 is taken of."""
    shape = layer("Float32", 8, "full", 20, 3, grid=6)
    spoilt_layer(Case(shape, "Float32", TILES[8]), "x", "infinity")
    load = planted(tmp_path, "4 * hidden, given.begin < given.end);", "4 * hidden, false);")
    with pytest.raises(AssertionError):
        spoilt_layer(Case(shape, "Float32", TILES[8], load=load), "x", "infinity")


@pytest.mark.parametrize("rows", [1, 7, 9, 12, 20])
@pytest.mark.parametrize("element", ["Float32", "Bfloat16"])
def test_samples_dealt_out_evenly(element: str, rows: int) -> None:
    tiles = Tiles(8, -(-rows // 16), 2, 2, rows=rows)
    for together in (True, False):
        Case(layer(element, 8, batch=20, steps=3), element, tiles, together).check()


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
