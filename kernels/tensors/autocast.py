"""torch.autocast: which type it wants products in, and its being off inside our own kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

is_any_autocast = torch._C._is_any_autocast_enabled  # of whatever device: tens of nanoseconds


def autocast_type(device: torch.device) -> torch.dtype | None:
    """What torch.autocast computes products on `device` in, None where it is off."""
    kind = device.type
    if is_any_autocast() and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def lowers(x: Tensor) -> bool:
    """Whether torch.autocast gives `x` to products in its own type: float64 and what is no real number stay."""
    return x.is_floating_point() and x.dtype != torch.float64


def lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as a torch.autocast that wants `dtype` gives it to a product."""
    return x.to(dtype) if lowers(x) else x


def multiplied_as(x: Tensor) -> torch.dtype:
    """What products of `x` are computed in: the type of torch.autocast where that is on and lowers it, else its own."""
    wanted = autocast_type(x.device)
    return x.dtype if wanted is None or not lowers(x) else wanted


def as_given(device: torch.device) -> AbstractContextManager[object]:
    """Inside, torch's operators compute in the types of their operands, whatever torch.autocast says."""
    if autocast_type(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
