"""Kernels with planted faults: the emulator must find each, and nothing where there is none."""

import ctypes
import re
from collections.abc import Iterator

import emulator
import pytest
import torch
from test_emulator import Variant

HOW = [(order, copies) for order in emulator.ORDERS for copies in emulator.COPIES]
every_way = pytest.mark.parametrize(("order", "copies"), HOW)


def faults_of(source: str) -> dict[str, int]:
    """The names in `enum Fault` of a trial kernel."""
    text = (emulator.HERE / source).read_text()
    names = re.search(r"enum Fault \{(.*?)\}", text, re.DOTALL)
    assert names is not None
    return {name.strip(): i for i, name in enumerate(names[1].split(","))}


class Pipeline(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("c", ctypes.c_void_p),
        ("depth", ctypes.c_int),
        ("fault", ctypes.c_int),
    )


def pipeline(fault: str, **how) -> bool:
    """Whether trial_pipeline.cu gives the right product; EmulationError where the emulator finds a fault."""
    depth = 16 * 7
    generator = torch.manual_seed(0)
    a, b = (
        torch.randn(16, depth, generator=generator).bfloat16(),
        torch.randn(depth, 32, generator=generator).bfloat16(),
    )
    c = torch.full((16, 32), torch.nan)
    kernel = emulator.load(Variant("trial_pipeline.cu", "pipeline", threads=128, shared_bytes=3 * 1536), **how)
    kernel((1, 1, 1), Pipeline(a.data_ptr(), b.data_ptr(), c.data_ptr(), depth, faults_of("trial_pipeline.cu")[fault]))
    return torch.allclose(c, a.float() @ b.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@every_way
def test_a_pipeline_without_faults(order, copies, seed: int) -> None:
    assert pipeline("none", order=order, copies=copies, seed=seed)


PIPELINE_FAULTS = {
    "no_wait": "still bringing",
    "no_barrier": "no barrier between|never written",
    "wrong_stage_read": "still bringing",
    "wrong_stage_written": "no barrier between|still bringing",
    "lane_skips": "lane .* comes to|waits? .* at load_matrix",
    "lane_exits": "exited|exits",
    "lanes_differ": "comes to .* while lanes",
    "other_barrier": "deadlock: .*__syncthreads.*barrier_wait 1",
    "misaligned": "not aligned to 16",
    "outside": "at byte 4608 of 4608 bytes",
    "not_copied": "never written",
    "copied_twice": "copy_async writes byte 0 .* no barrier between",
    "written_outside": "byte 4608 of 4608 bytes",
    "no_memory": "memory that does not exist",
    "wait_too_late": "still bringing",
    "half_committed": "still bringing",
}


@every_way
@pytest.mark.parametrize("fault", PIPELINE_FAULTS)
def test_faults_of_a_pipeline(fault: str, order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=PIPELINE_FAULTS[fault]):
        pipeline(fault, order=order, copies=copies)


@every_way
def test_an_output_that_is_not_written_stays_nan(order, copies) -> None:
    assert not pipeline("not_stored", order=order, copies=copies)


def test_every_planted_fault_of_the_pipeline_is_tried() -> None:
    assert {*PIPELINE_FAULTS, "none", "not_stored"} == set(faults_of("trial_pipeline.cu"))


class Ring(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("fault", ctypes.c_int),
        ("bulk", ctypes.c_int),
    )


def ring(fault: str, bulk: bool, **how) -> bool:
    """Whether trial_ring.cu sums the rows rightly."""
    count = 11
    rows = torch.randint(0, 1000, (count, 256), generator=torch.manual_seed(0)).to(torch.int16)
    sums = torch.full((count, 4), -1, dtype=torch.int32)
    kernel = emulator.load(Variant("trial_ring.cu", "ring", threads=160, shared_bytes=3 * 512 + 48), **how)
    kernel((1, 1, 1), Ring(rows.data_ptr(), sums.data_ptr(), count, faults_of("trial_ring.cu")[fault], bulk))
    return bool((sums == rows.sum(1, keepdim=True)).all())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bulk", [False, True])
@every_way
def test_a_ring_without_faults(order, copies, bulk: bool, seed: int) -> None:
    assert ring("none", bulk, order=order, copies=copies, seed=seed)


RING_FAULTS = {  # fault -> (for copy_async, for copy_bulk); None: is no fault there
    "full_not_awaited": ("still bringing|no barrier|never written",) * 2,
    "empty_not_awaited": ("writes byte|more than .* arrivals|deadlock",) * 2,
    "too_few_bytes": (None, "deadlock: .*mbarrier_wait"),
    "not_published": (None, "mbarrier_publish"),
    "no_barrier": ("no mbarrier at byte|initialised by thread 128 with no barrier",) * 2,
    "wrong_parity": ("still bringing|no barrier|never written|deadlock",) * 2,
    "released_early": ("writes byte .* which warp",) * 2,
    "not_released": ("deadlock: .*mbarrier_wait at byte",) * 2,
    "overwritten": ("was overwritten",) * 2,
    "bulk_misaligned": (None, "not aligned to 16"),
}


def ring_faults() -> Iterator[tuple[str, bool, str]]:
    for fault, messages in RING_FAULTS.items():
        for bulk, message in enumerate(messages):
            if message is not None:
                yield fault, bool(bulk), message


@every_way
@pytest.mark.parametrize(("fault", "bulk", "message"), list(ring_faults()))
def test_faults_of_a_ring(fault: str, bulk: bool, message: str, order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=message):
        ring(fault, bulk, order=order, copies=copies)


@every_way
@pytest.mark.parametrize("bulk", [False, True])
def test_one_lane_releases_what_its_warp_has_read(order, copies, bulk: bool) -> None:
    assert ring("one_releases", bulk, order=order, copies=copies)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_place_released_twice_is_found_in_some_way(bulk: bool) -> None:
    messages = []
    for order, copies in HOW:
        try:
            ring("released_twice", bulk, order=order, copies=copies)
        except emulator.EmulationError as error:
            messages.append(str(error))
    assert messages and all(
        re.search("more than|writes byte|deadlock|still bringing|no barrier", each) for each in messages
    )
