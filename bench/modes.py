"""Torch's modes, which a caller may have set: a cell that is trained or timed is to be the same under all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from kernels.backends.arithmetic import applied
from kernels.tracing import watcher

DEVICES = ("cpu", "cuda")  # of cells


@contextmanager
def initial_modes() -> Iterator[None]:
    """Inside, torch's modes are those of a new process; afterwards they are as before.

    Pinned: autocast and its cache, default type and device, gradients, determinism, and in what float32 is multiplied on a
    CPU. ValueError, one line, where something is to see every operator, as a transform of torch.func is.
    """
    if (seen := watcher()) is not None:
        raise ValueError(f"a cell is neither trained nor timed inside {seen}; call it outside")
    with ExitStack() as stack:
        stack.enter_context(_autocast_off())
        stack.enter_context(_default_type(torch.float32))
        stack.enter_context(_any_algorithm())
        stack.enter_context(_exact_products())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _autocast_off() -> Iterator[None]:
    """Nor is one around: its cache of weights would outlive every step, for only the outermost empties it."""
    before = {kind: torch.is_autocast_enabled(kind) for kind in DEVICES}
    around = torch.autocast_increment_nesting()
    for _ in range(around):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for kind in DEVICES:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for kind, enabled in before.items():
            torch.set_autocast_enabled(kind, enabled)
        for _ in range(around - 1):
            torch.autocast_increment_nesting()


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _any_algorithm() -> Iterator[None]:
    """Not only deterministic ones, which add in another order and fill memory before it is written."""
    before, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if not before:
        yield
        return
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 on a CPU is float32: oneDNN may else round what it multiplies to bfloat16, where that was asked for."""
    owners = torch.backends.mkldnn.matmul, torch.backends.mkldnn.rnn  # type: ignore[attr-defined]
    with applied([(each, "fp32_precision", "ieee") for each in owners if each.fp32_precision not in ("none", "ieee")]):
        yield
