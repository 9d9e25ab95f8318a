"""Tensor maps: what the driver says of a matrix in memory, of which TMA copies boxes to shared memory.

A kernel takes a map by value, as a field of its arguments at a multiple of 64 bytes (CUDA driver API,
cuTensorMapEncodeTiled; PTX ISA, "Tensors"). ctypes aligns nothing to 64, so that `placed` makes the arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

ALIGNMENT = 64
TensorMap = ctypes.c_uint64 * 16
Map = ctypes.Array[ctypes.c_uint64]  # one of it
TYPES = {"Float16": 6, "Tf32": 7, "Bfloat16": 9}  # CU_TENSOR_MAP_DATA_TYPE_FLOAT16, FLOAT32, BFLOAT16
SWIZZLES = {32: 1, 64: 2, 128: 3}  # bytes of a line of a box -> CU_TENSOR_MAP_SWIZZLE_32B, 64B, 128B
BYTES = {"Float16": 2, "Tf32": 4, "Bfloat16": 2}
PROMOTION = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B: what is fetched from memory to L2 at once
Encode = Callable[..., int]  # cuTensorMapEncodeTiled, or what stands in its place

Given = TypeVar("Given", bound=ctypes.Structure)


def _aligned(size: int) -> tuple[Any, int]:
    """Memory, and where in it `size` bytes begin at a multiple of 64."""
    room = (ctypes.c_char * (size + ALIGNMENT))()
    return room, -ctypes.addressof(room) % ALIGNMENT


def placed(structure: type[Given]) -> Given:
    """One of it, full of zeros, at a multiple of 64 bytes."""
    return structure.from_buffer(*_aligned(ctypes.sizeof(structure)))


def encoded(
    encode: Encode, element: str, pointer: int, shape: tuple[int, int], box: tuple[int, int], swizzle: int
) -> Map:
    """The map of a matrix [rows, columns] that lies at `pointer`, row by row, copied by boxes of rows x columns.

    Rows and pointer at multiples of 16 bytes; what lies outside the matrix is zero. RuntimeError where it cannot be.
    """
    found = TensorMap.from_buffer(*_aligned(ctypes.sizeof(TensorMap)))
    sizes = (ctypes.c_uint64 * 2)(shape[1], shape[0])
    pitch = (ctypes.c_uint64 * 1)(shape[1] * BYTES[element])
    boxes, steps = (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1)
    kind, rank, address = TYPES[element], 2, ctypes.c_void_p(pointer)
    status = encode(ctypes.byref(found), kind, rank, address, sizes, pitch, boxes, steps, 0, swizzle, PROMOTION, 0)
    if status:
        raise RuntimeError(f"no tensor map of {element} {list(shape)} by boxes {list(box)}: the driver says {status}")
    return found
