"""Whether torch watches its operators: ours must be called as registered ones then, at tens of microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

PLAIN = Tensor, Parameter
_modes_before: Callable[[], int] = _len_torch_dispatch_stack_pre_dispatch
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._functorch.peek_interpreter_stack
_FUNCTIONALIZE, _JVP = torch._C._functorch.TransformType.Functionalize, torch._C._functorch.TransformType.Jvp
_tracer = torch._C._get_tracing_state
batched = torch._C._functorch.is_legacy_batchedtensor  # a gradient, by torch.autograd.grad with is_grads_batched


def moded() -> bool:
    """Whether a mode of __torch_dispatch__ is on, be it one that sees operators before they are dispatched."""
    return _modes() > 0 or _modes_before() > 0


def watched(*tensors: Tensor) -> bool:
    """Whether anything but autograd must see an operator on `tensors`: a compiler, a tracer, a mode or a transform.

    Modes of __torch_function__ do not count: torch.set_default_device is one.
    """
    if is_compiling():
        return True
    if moded() or _transforms() is not None or _tracer() is not None or forward_ad._current_level >= 0:
        return True
    for each in tensors:  # a generator takes as long as all the rest  # noqa: SIM110
        if type(each) not in PLAIN:
            return True
    return False


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is under way.

    Such a call has more derivatives than torch's registered operators have formulas for.
    """
    return not is_compiling() and (_transforms() is not None or forward_ad._current_level >= 0)


def in_forward_mode() -> bool:
    """Whether an operator that torch's dispatcher calls may have operands with tangents, and would be asked for them.

    Compilers count no levels where torch does: the transform alone tells then.
    """
    if forward_ad._current_level < 0 and ((inner := _transforms()) is None or inner.key() != _JVP):
        return False
    return torch._C._is_fwd_grad_enabled()


def _is_dual_alone() -> bool:
    """Whether forward mode was entered by dual tensors, and not by a transform, which compilers see."""
    return _transforms() is None


# As torch.compiler.assume_constant_result does, which imports the compiler
_is_dual_alone._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_lost_derivatives() -> None:
    """ValueError or NotImplementedError where torch would lose derivatives of ours, and say nothing.

    That is inside torch.func.functionalize, which has no rule for derivatives of one's own, and where torch.compile is
    called with dual tensors, whose tangents inductor drops: unless it was told to make one graph, it then leaves the
    product out of what it compiles, and nothing is lost.
    """
    if is_compiling():
        if forward_ad._current_level >= 0 and _is_dual_alone():
            raise NotImplementedError(
                "torch.compile loses the tangents of dual tensors: accepted: torch.func.jvp inside the compiled "
                "function, or no fullgraph"
            )
        return
    if _transforms() is None:
        return
    if any(each.key() == _FUNCTIONALIZE for each in torch._C._functorch.get_interpreter_stack() or ()):
        raise ValueError(
            "torch.func.functionalize has no rule for block-sparse products; accepted: torch.export, torch.compile and "
            "the other transforms of torch.func"
        )


def watcher() -> str | None:
    """What sees every operator of torch that is called now, in words, or None."""
    seen = {
        "torch.compile": is_compiling(),
        "a transform of torch.func": _transforms() is not None,
        "forward-mode differentiation": forward_ad._current_level >= 0,
        "a mode of __torch_dispatch__": moded(),
        "torch.jit.trace": _tracer() is not None,
    }
    return next((name for name, there in seen.items() if there), None)


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, torch.inference_mode is off: what is made for later use may be saved for a backward pass then."""
    if is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def refuse_second(*_: object) -> None:
    """The way back through a way back: whoever has no formula for it registers this one."""
    raise ValueError(
        "second derivatives of an LSTM layer: accepted: kernel = 'torch', which takes its steps one by one"
    )


def refuse_transforms(*grads: Tensor | None) -> None:
    """ValueError where a layer that was computed before a transform began is to be gone back through inside it.

    grads: what the way back begins with; a batch of them, as torch.autograd.grad makes with is_grads_batched, is a
    transform.
    """
    if transformed():
        raise ValueError("an LSTM layer has no way back inside a transform that began after it: call it inside, too")
    for each in () if is_compiling() else grads:
        if each is not None and batched(each):
            raise ValueError(
                "an LSTM layer goes back with one gradient at a time, not with is_grads_batched or vectorize; "
                "accepted: one call for each, or kernel = 'torch', which takes its steps one by one"
            )
