"""Whether torch watches its operators: then ours must be called as registered ones, which costs tens of microseconds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

PLAIN = Tensor, Parameter
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._functorch.peek_interpreter_stack
_tracer = torch._C._get_tracing_state
batched = torch._C._functorch.is_legacy_batchedtensor  # a gradient, by torch.autograd.grad with is_grads_batched


def watched(*tensors: Tensor) -> bool:
    """Whether anything but autograd's tape must see an operator called on `tensors`: a compiler, a tracer, a mode or a transform.

    Modes of __torch_function__ do not count: torch.set_default_device is one.
    """
    if is_compiling():
        return True
    if _modes() or _transforms() is not None or _tracer() is not None or forward_ad._current_level >= 0:
        return True
    for each in tensors:  # a generator takes as long as all the rest  # noqa: SIM110
        if type(each) not in PLAIN:
            return True
    return False
