"""Torch's modes, which a caller may have set: a cell that is trained or timed is to be the same under all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules import module
from torch.optim import optimizer
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from kernels.tensors.tracing import watcher

DEVICES = ("cpu", "cuda")  # of cells
Flag = tuple[
    Callable[[], Any], Callable[[Any], object], Any
]  # how to ask for it, how to set it, and its value in a new process
FLAGS: tuple[Flag, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, True),
    (torch._C._get_mkldnn_deterministic, torch._C._set_mkldnn_deterministic, False),
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, True),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark, False),
    (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic, False),
    (torch._C._get_cublas_allow_fp16_accumulation, torch._C._set_cublas_allow_fp16_accumulation, False),
    (torch._C._get_blas_preferred_backend, torch._C._set_blas_preferred_backend, torch._C._BlasBackend.Default),
    (torch._C._get_linalg_preferred_backend, torch._C._set_linalg_preferred_backend, torch._C._LinalgBackend.Default),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda both: torch.set_anomaly_enabled(*both),
        (False, True),
    ),
)
# How float32 is multiplied, a library and an operation of it: all "none" in a new process, which leaves it to a more
# general one before it. cuDNN's layers are pinned by what trains and times them.
PRECISIONS = (
    *(("generic", "all"), ("mkldnn", "all"), ("cuda", "all")),
    *(("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"), ("cuda", "matmul")),
)
HOOKS: dict[str, tuple[object, ...]] = {
    "hooks of every module": (
        *(module._global_forward_pre_hooks, module._global_forward_hooks),
        *(module._global_backward_pre_hooks, module._global_backward_hooks),
        *(module._global_module_registration_hooks, module._global_parameter_registration_hooks),
        module._global_buffer_registration_hooks,
    ),
    "hooks of every optimizer": (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks),
}


@contextmanager
def initial_modes() -> Iterator[None]:
    """Inside, torch's modes are those of a new process; afterwards they are as before, and so is its thread count.

    Pinned: autocast and its cache, default type and device, gradients, anomaly detection, determinism, which libraries
    are used, and in what float32 is multiplied. ValueError, one line, where something is to see or change what every
    operator, module or optimizer does, as a transform of torch.func is.
    """
    if (seen := watcher() or meddler()) is not None:
        raise ValueError(f"a cell is neither trained nor timed inside {seen}; call it outside")
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.enter_context(_autocast_off())
        stack.enter_context(_any_algorithm())
        stack.enter_context(_exact_products())
        for flag in FLAGS:
            stack.enter_context(_as_initially(*flag))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        yield


def meddler() -> str | None:
    """What else would change or see every step of a cell, in words, or None."""
    for name, hooks in HOOKS.items():
        if any(hooks):
            return name
    entered = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if not all(isinstance(mode, DeviceContext) for mode in entered):
        return "a mode of __torch_function__"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "hooks of every saved tensor"
    if sys.float_info.min * 0.5 == 0.0:  # of this thread; those that it started flush too, and cannot be told not to
        return "a process that flushes denormal numbers to zero"
    return None


@contextmanager
def _as_initially(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> Iterator[None]:
    before = read()
    if before == value:
        yield
        return
    write(value)
    try:
        yield
    finally:
        write(before)


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
    """float32 is float32, on a GPU as far as a cell asks for it: oneDNN may else round what it multiplies to bfloat16.

    The general settings are read and cleared first: what says "none" answers with theirs. So is the older one of torch,
    which refuses to answer where the newer ones contradict it.
    """
    before = []
    for place in PRECISIONS:
        before.append(torch._C._get_fp32_precision_getter(*place))
        torch._C._set_fp32_precision_setter(*place, "none")
    older = torch._C._get_float32_matmul_precision()
    if older != "highest":
        torch._C._set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older != "highest":
            torch._C._set_float32_matmul_precision(older)
        for place, precision in zip(PRECISIONS, before, strict=True):
            torch._C._set_fp32_precision_setter(*place, precision)
