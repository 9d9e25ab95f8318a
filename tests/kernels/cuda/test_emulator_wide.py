"""Emulated wgmma: every layout of its operands against the PTX ISA's, and what must be found around it."""

import ctypes
from dataclasses import dataclass

import emulator
import numpy as np
import pytest
import torch
from test_emulator import Variant
from test_emulator_faults import every_way, faults_of

MODES = {16: 0, 128: 1, 64: 2, 32: 3}  # bytes of a line -> the descriptor's swizzle
TYPES = {"Bfloat16": torch.bfloat16, "Float16": torch.float16, "Tf32": torch.float32}


class Arguments(ctypes.Structure):
    _fields_ = (
        ("image", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        *((name, ctypes.c_ulonglong) for name in ("a", "b", "a_step", "b_step")),
        *((name, ctypes.c_int) for name in ("bytes", "steps", "fault")),
    )


@dataclass(frozen=True)
class Layout:
    """Of an operand [size, depth]: rows of A or columns of B, and K."""

    line: int  # bytes; 16: no swizzle
    transposed: bool = False

    def strides(self, size: int, depth: int) -> tuple[int, int]:
        """(leading, stride) byte offsets of the descriptor."""
        if self.line == 16:
            return (size // 8 * 128, 128)
        return (depth * self.line if self.transposed else 16, 8 * self.line)

    def step_bytes(self, size: int, depth: int) -> int:
        """From one step of K (32 bytes, plain, or 16 lines, turned) to the next."""
        if self.line == 16:
            return 2 * self.strides(size, depth)[0]
        return 16 * self.line if self.transposed else 32

    def place(self, i: int, k: int, size: int, depth: int, width: int) -> int:
        """Byte of element (i, k) of `width` bytes, from the operand's first."""
        leading, stride = self.strides(size, depth)
        if self.line == 16:
            along, across = (i, k) if self.transposed else (k, i)
            chunk, within = divmod(along * width, 16)
            far, near = (stride, leading) if self.transposed else (leading, stride)
            return chunk * far + across // 8 * near + across % 8 * 16 + within
        along, across = (i, k) if self.transposed else (k, i)
        group, within = divmod(along * width, self.line)
        byte = group * leading + across // 8 * stride + across % 8 * self.line + within
        line, chunk = byte // 128, byte // 16 % 8
        return byte // 128 * 128 + (chunk ^ line % 8 % (self.line // 16)) * 16 + byte % 16

    def image(self, values: torch.Tensor) -> np.ndarray:
        """The bytes of `values` [size, depth]."""
        size, depth = values.shape
        width = values.element_size()
        raw = values.contiguous().view(torch.uint8).numpy().reshape(size, depth, width)
        whole = size * self.line if self.line > 16 and not self.transposed else size * depth * width
        image = np.full(whole, 0xFF, np.uint8)
        for i in range(size):
            for k in range(depth):
                at = self.place(i, k, size, depth, width)
                image[at : at + width] = raw[i, k]
        return image

    def descriptor(self, offset: int, size: int, depth: int) -> int:
        leading, stride = self.strides(size, depth)
        return (1024 + offset) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | MODES[self.line] << 62


def fragments(a: torch.Tensor) -> np.ndarray:
    """A [64, 32 bytes] as the four registers of each of 128 threads."""
    pairs = a.contiguous().view(torch.int32).numpy().view(np.uint32)  # [64, 8]
    threads = np.arange(128)
    row, col = threads // 32 * 16 + threads % 32 // 4, threads % 4
    return np.stack([pairs[row, col], pairs[row + 8, col], pairs[row, col + 4], pairs[row + 8, col + 4]], 1).copy()


def wide(element, n, a_layout, b_layout, steps=1, fault="none", registers=False, shift=0, **how) -> bool:
    """Whether trial_wide.cu gives the right product."""
    dtype = TYPES[element]
    depth = steps * 32 // dtype.itemsize
    generator = torch.manual_seed(n)
    a, b = (torch.randn(size, depth, generator=generator).to(dtype) for size in (64, n))
    if dtype == torch.float32:
        a, b = (each.bfloat16().float() for each in (a, b))  # exact in tf32
    left, right = a_layout.image(a), b_layout.image(b)
    begin = -(-left.size // 1024) * 1024
    image = np.concatenate([left, np.zeros(begin - left.size, np.uint8), right])
    held = fragments(a[:, : 32 // dtype.itemsize])
    sums = torch.full((2, 64, n), torch.nan)
    defines = (
        ("ELEMENT", element),
        ("COLUMNS", n),
        ("A_TURNED", int(a_layout.transposed)),
        ("B_TURNED", int(b_layout.transposed)),
    )
    kernel = emulator.load(Variant("trial_wide.cu", "wide", defines, 256, image.size), **how)
    arguments = Arguments(
        image.ctypes.data,
        held.ctypes.data if registers else None,
        sums.data_ptr(),
        a_layout.descriptor(0, 64, depth),
        b_layout.descriptor(begin + shift, n, depth),
        a_layout.step_bytes(64, depth) >> 4,
        b_layout.step_bytes(n, depth) >> 4,
        image.size,
        steps,
        faults_of("trial_wide.cu")[fault],
    )
    kernel((1, 1, 1), arguments)
    return torch.allclose(sums, (a.double() @ b.double().T).float().expand(2, -1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", emulator.COPIES)
@pytest.mark.parametrize(
    ("element", "n", "a_layout", "b_layout", "steps"),
    [
        ("Bfloat16", 64, Layout(128), Layout(128), 4),
        ("Bfloat16", 64, Layout(64), Layout(32), 1),
        ("Float16", 256, Layout(64), Layout(64), 2),
        ("Float16", 8, Layout(16), Layout(16), 3),
        ("Tf32", 32, Layout(128), Layout(128), 4),
        ("Tf32", 32, Layout(32), Layout(64), 1),
        ("Bfloat16", 128, Layout(128, True), Layout(128, True), 2),
        ("Bfloat16", 128, Layout(64, True), Layout(32, True), 3),
        ("Float16", 16, Layout(16, True), Layout(16, True), 2),
        ("Float16", 32, Layout(128), Layout(64, True), 4),
    ],
)
def test_products(element, n, a_layout, b_layout, steps, copies) -> None:
    assert wide(element, n, a_layout, b_layout, steps, copies=copies)


@pytest.mark.parametrize("element", TYPES)
def test_products_with_a_in_registers(element) -> None:
    assert wide(element, 32, Layout(32), Layout(128 if element == "Tf32" else 64), registers=True)


FAULTS = {
    "no_proxy_fence": "without a proxy_fence",
    "sums_touched": "sums of multiply_wide were written before wgmma_wait",
    "read_late": "is still reading|still bringing",
    "no_fence": "without a wgmma_fence",
    "not_together": "began other products",
    "no_wait": "wgmma_wait is missing",
}


@every_way
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_around_products(fault: str, order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=FAULTS[fault]):
        wide("Bfloat16", 64, Layout(128), Layout(128), 2, fault, order=order, copies=copies)


@pytest.mark.skipif(not emulator.watches(), reason="ziglang's compiler does not let us see ordinary accesses")
@every_way
def test_an_ordinary_store_needs_a_proxy_fence(order, copies) -> None:
    with pytest.raises(emulator.EmulationError, match=r"byte 16 .* thread 5 wrote without a proxy_fence"):
        wide("Bfloat16", 64, Layout(128), Layout(128), 2, "stored_after_fence", order=order, copies=copies)


@every_way
def test_sums_read_too_early_are_not_numbers(order, copies) -> None:
    assert not wide("Bfloat16", 64, Layout(128), Layout(128), 2, "sums_read", order=order, copies=copies)


@every_way
def test_a_fence_of_the_reader_will_do(order, copies) -> None:
    assert wide("Bfloat16", 64, Layout(128), Layout(128), 2, "fenced_by_reader", order=order, copies=copies)


def test_registers_loaded_after_the_fence() -> None:
    with pytest.raises(emulator.EmulationError, match="after the last wgmma_fence"):
        wide("Bfloat16", 64, Layout(128), Layout(128), 1, "fragments_after_fence", registers=True)


def test_an_operand_outside_shared_memory() -> None:
    with pytest.raises(emulator.EmulationError, match="multiply_wide reads byte"):
        wide("Bfloat16", 64, Layout(128), Layout(128), 4, shift=1024)


def test_every_planted_fault_is_tried() -> None:
    assert {*FAULTS, "none", "sums_read", "fenced_by_reader", "fragments_after_fence", "stored_after_fence"} == set(
        faults_of("trial_wide.cu")
    )
