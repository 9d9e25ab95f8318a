"""Boxes of tensor maps and clusters of two CTAs: against their definition, and what must be found around them."""

import ctypes

import emulator
import numpy as np
import pytest
import torch
from test_emulator import Variant
from test_emulator_faults import every_way, faults_of

from kernels.cuda.tensor_map import SWIZZLES, TensorMap, encoded, placed

ELEMENTS = {"Bfloat16": torch.bfloat16, "Float16": torch.float16, "Tf32": torch.float32}
LINES = (16, 32, 64, 128)


class Arguments(ctypes.Structure):
    _fields_ = (
        ("map", TensorMap),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("x", "y", "bytes", "fault")),
        ("unused", ctypes.c_uint64 * 5),
    )


def loaded(name: str, threads: int, shared_bytes: int, **how) -> emulator.Kernel:
    return emulator.load(Variant("trial_boxes.cu", name, (), threads, shared_bytes), **how)


def swizzled(lines: np.ndarray) -> np.ndarray:
    """Lines of bytes as they lie in shared memory: the 16-byte chunks of 128 bytes change places from 128 to 128."""
    line = lines.shape[1]
    flat = lines.reshape(-1, 16)
    to = np.arange(len(flat))
    if line > 16:
        to = to // 8 * 8 + (to % 8 ^ to // 8 % 8 % (line // 16))
    out = np.empty_like(flat)
    out[to] = flat
    return out.reshape(-1)


@pytest.mark.parametrize("corner", [(0, 0), (1, 2), (1, 37), (2, 5), (-1, -3), (9, 3)])
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_box_with_zeros_outside(element: str, line: int, corner: tuple[int, int]) -> None:
    """Of a matrix of 40 rows, of two and a half boxes' columns."""
    dtype, rows = ELEMENTS[element], 16
    across = line // dtype.itemsize
    whole = torch.randn(40, 5 * across // 2 // 8 * 8, generator=torch.manual_seed(0)).to(dtype)
    x, y = corner[0] * across, corner[1]
    wanted = torch.zeros(rows, across, dtype=dtype)
    for row in range(rows):
        for column in range(across):
            if 0 <= y + row < whole.shape[0] and 0 <= x + column < whole.shape[1]:
                wanted[row, column] = whole[y + row, x + column]
    for copies in emulator.COPIES:
        kernel = loaded("box", 32, rows * line + 8, copies=copies)
        out = np.zeros(rows * line // 4, np.uint32)
        arguments = placed(Arguments)
        arguments.map = encoded(
            kernel.encode_tiled, element, whole.data_ptr(), tuple(whole.shape), (rows, across), SWIZZLES.get(line, 0)
        )
        arguments.out, arguments.x, arguments.y, arguments.bytes = out.ctypes.data, x, y, rows * line
        kernel((1, 1, 1), arguments)
        assert np.array_equal(out.view(np.uint8), swizzled(wanted.view(torch.uint8).numpy()))


def stored(fault: str, element: str = "Bfloat16", line: int = 128, corner: tuple[int, int] = (0, 0), **how) -> bool:
    """Whether two boxes go where they belong, and nowhere else."""
    dtype, rows = ELEMENTS[element], 16
    across = line // dtype.itemsize
    given = torch.randn(2, rows, across, generator=torch.manual_seed(1)).to(dtype)
    whole = torch.zeros(100, 2 * across + 16, dtype=dtype)
    wanted, (x, y) = whole.clone(), corner
    for turn in range(2):
        lines = wanted[y + 64 * turn : y + 64 * turn + rows, x : x + across]
        lines.copy_(given[turn, : lines.shape[0], : lines.shape[1]])
    kernel = loaded("back", 64, rows * line, **how)
    shared = np.concatenate([swizzled(each.view(torch.uint8).numpy()) for each in given])
    arguments = placed(Arguments)
    box, swizzle = (rows, across), SWIZZLES.get(line, 0)
    arguments.map = encoded(kernel.encode_tiled, element, whole.data_ptr(), tuple(whole.shape), box, swizzle)
    arguments.out, arguments.x, arguments.y, arguments.bytes = shared.ctypes.data, x, y, rows * line
    arguments.fault = faults_of("trial_boxes.cu")[fault]
    kernel((1, 1, 1), arguments)
    return torch.equal(whole, wanted)


@pytest.mark.parametrize("corner", [(0, 0), (8, 3), (16, 30)])
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_box_goes_back(element: str, line: int, corner: tuple[int, int]) -> None:
    for copies in emulator.COPIES:
        assert stored("none", element, line, (corner[0] * line // 32, corner[1]), copies=copies)


STORE_FAULTS = {
    "not_fenced": "store_box reads byte .* without a proxy_fence after",
    "not_synchronised": "store_box reads byte .* (no barrier between|never written)",
    "not_committed": "exits while store_box|is still reading",
    "not_read": "exits while store_box|is still reading",
    "written_too_early": "a store writes byte .* is still reading",
}


@pytest.mark.skipif(not emulator.watches(), reason="ziglang's compiler does not let us see ordinary accesses")
@every_way
@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_faults_of_a_box_on_its_way_back(fault: str, order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=STORE_FAULTS[fault]):
        stored(fault, order=order, copies=copies)


def test_a_map_that_cannot_be_is_refused() -> None:
    kernel, x = loaded("box", 32, 2048), torch.zeros(64, 64, dtype=torch.bfloat16)
    for shape, box, swizzle, shift in (
        ((64, 64), (8, 128), 3, 0),  # wider than a swizzled line
        ((64, 64), (300, 64), 3, 0),
        ((64, 60), (8, 32), 2, 0),  # rows at no multiples of 16 bytes
        ((0, 64), (8, 32), 2, 0),
        ((64, 64), (8, 32), 2, 8),
        ((64, 64), (8, 4), 0, 0),
    ):
        with pytest.raises(RuntimeError, match="tensor map"):
            encoded(kernel.encode_tiled, "Bfloat16", x.data_ptr() + shift, shape, box, swizzle)


def shared_ring(fault: str, grid: int = 4, **how) -> bool:
    """Whether two clusters of trial_boxes.cu sum each stage rightly, in both CTAs of each."""
    stages = 11
    rows = torch.randint(0, 1000, (stages * 16, 64), generator=torch.manual_seed(0)).to(torch.int16)
    sums = torch.full((stages, 2, 4), -1, dtype=torch.int32)
    kernel = loaded("shared_ring", 160, 3 * 2048 + 48, **how)
    arguments = placed(Arguments)
    if fault != "no_map":
        arguments.map = encoded(kernel.encode_tiled, "Bfloat16", rows.data_ptr(), (stages * 16, 64), (8, 64), 3)
    arguments.out, arguments.y, arguments.fault = sums.data_ptr(), stages, faults_of("trial_boxes.cu")[fault]
    kernel((grid, 1, 1), arguments)
    return bool((sums == rows.view(stages, 1, 4, 256).sum(3)).all())


@pytest.mark.parametrize("seed", range(3))
@every_way
def test_a_shared_ring_without_faults(order, copies, seed: int) -> None:
    assert shared_ring("none", order=order, copies=copies, seed=seed)


FAULTS = {
    "too_few_bytes": "deadlock: .*mbarrier_wait|still bringing|no barrier",
    "too_many_bytes": "deadlock: .*mbarrier_wait",
    "full_not_awaited": "still bringing|no barrier|never written",
    "peer_not_awaited": "copy_box writes byte|still bringing|no barrier between|more than .* arrivals|deadlock",
    "exits_early": "exits while thread .* may still come|which has exited",
    "no_first_barrier": "no mbarrier at byte|with no barrier between|has not called",
    "not_published": "mbarrier_publish",
    "misaligned": "not aligned to 128",
    "not_shared": "deadlock: .*mbarrier_wait",
    "unknown_rank": "no CTA 2 in a cluster of 2",
    "no_map": "there is no tensor map",
}


@every_way
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_shared_ring(fault: str, order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=FAULTS[fault]):
        shared_ring(fault, order=order, copies=copies)


def test_every_planted_fault_is_tried() -> None:
    assert {*FAULTS, *STORE_FAULTS, "none"} == set(faults_of("trial_boxes.cu"))


def test_half_a_cluster_is_refused() -> None:
    with pytest.raises(emulator.EmulationError, match="whole clusters"):
        shared_ring("none", grid=3)
