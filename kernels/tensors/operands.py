"""What a tensor must be before a kernel gets its address: memory that holds its values, of a known type and size.

Torch lets a tensor look like another one: a view may be strided, or negated and conjugated only when it is read; a
tensor may be sparse or nested, or lie on a device without memory. A kernel sees an address and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRIDED = torch.strided


def settled(x: Tensor) -> Tensor:
    """`x` whose memory holds what it shows: a view that torch negates or conjugates when it is read is copied.

    So are zeros without memory, which derivatives of torch's make (torch._efficientzerotensor).
    """
    x = x.resolve_conj().resolve_neg()
    return x.clone() if x._is_zerotensor() else x


def contiguous(x: Tensor) -> Tensor:
    """The same, row by row; copied only where it is not so already."""
    return settled(x).contiguous()


def require_memory(name: str, x: object) -> None:
    """ValueError where `x` is no tensor, or one that is not laid out by strides. Wrapped ones are torch's to unwrap."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout is not STRIDED or x.is_nested:
        raise ValueError(f"{name} must be a dense tensor (torch.strided), got {'nested' if x.is_nested else x.layout}")


def require_whole(name: str, number: object) -> None:
    """ValueError where `number` is no whole number: an int, one of numpy's or one of torch's symbols of one."""
    if isinstance(number, bool | Tensor) or not hasattr(type(number), "__index__"):
        raise ValueError(f"{name} must be a whole number, got {number!r}")


def require_values(name: str, x: Tensor) -> None:
    """ValueError where `x` lies on a device whose tensors have no values."""
    require_memory(name, x)
    if x.is_meta:
        raise ValueError(f"{name} is on the device meta, whose tensors have no values; any other is accepted")


def require_room(name: str, x: Tensor) -> None:
    """ValueError where the storage of `x` was made smaller than `x` is, as sharded training leaves its parameters."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    if x.numel() and x.untyped_storage().nbytes() < (x.storage_offset() + last + 1) * x.element_size():
        raise ValueError(f"{name} has no memory for its shape {list(x.shape)}")


def require(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """ValueError where `x` is not of exactly this shape and type on this device."""
    if x.shape != tuple(shape) or x.dtype != dtype or x.device != device:
        raise ValueError(
            f"{name} must be {dtype} {list(shape)} on {device}, got {x.dtype} {list(x.shape)} on {x.device}"
        )


def address(x: Tensor | None) -> int | None:
    """Where the elements of `x` lie, for a kernel of the CPU's; None: it has none. ValueError: they lie nowhere."""
    if x is None:
        return None
    if not x.is_cpu or x.is_neg() or x.is_conj():
        raise ValueError(f"a kernel of the CPU's cannot read a {x.dtype} tensor on {x.device} as it is")
    found = x.data_ptr()
    if not found and x.numel():
        raise ValueError(f"a {x.dtype} tensor of shape {list(x.shape)} has no memory")
    return found or None
