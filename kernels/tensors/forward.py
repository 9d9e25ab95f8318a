"""Forward-mode derivatives of torch's registered operators, which have a place for those of the way back alone.

An operator without a formula drops the tangents of its operands, and says nothing. Where ours are called as they are,
a transform is seen before; in a graph that was exported, compiled or traced it meets the operator itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor
from torch._compile import _disable_dynamo
from torch._library.autograd import make_autograd_impl
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from kernels.tensors.tracing import in_forward_mode

LEVEL = 0  # torch has one; transforms inside each other wrap their tensors anew


def primal(x: Tensor) -> Tensor:
    """`x` without its tangent."""
    found: Tensor = forward_ad.unpack_dual(x, level=LEVEL).primal  # type: ignore[no-untyped-call]
    return found


def has_tangent(x: Any) -> bool:
    """Whether `x` is a tensor with a tangent, or a list with one."""
    if isinstance(x, list | tuple):
        return any(map(has_tangent, x))
    if not isinstance(x, Tensor):
        return False
    return forward_ad.unpack_dual(x, level=LEVEL).tangent is not None  # type: ignore[no-untyped-call]


def tangent_of(
    multiply: Callable[[Tensor, Tensor], Tensor], factors: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensor:
    """Of a product: that of left times right, and left times that of right. One of the two tangents may be missing."""
    parts = [] if tangents[0] is None else [multiply(tangents[0], factors[1])]
    parts += [] if tangents[1] is None else [multiply(factors[0], tangents[1])]
    return sum(parts[1:], parts[0])


def dual_product(multiply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """left times right with its tangent."""
    unpack, make_dual = cast("Any", forward_ad.unpack_dual), cast("Any", forward_ad.make_dual)
    (one, its), (other, of_other) = (unpack(each, level=LEVEL) for each in (left, right))
    found: Tensor = make_dual(multiply(one, other), tangent_of(multiply, (one, other), (its, of_other)), level=LEVEL)
    return found


def register_forward(operator: CustomOpDef, formula: Callable[..., Any]) -> None:
    """Call `formula` in the place of `operator` where an operand has a tangent: it gives results that have theirs.

    Elsewhere torch's own registration stands, at about two microseconds more.
    """
    by_torch = make_autograd_impl(operator._opoverload, operator)

    @_disable_dynamo  # as the operator itself is: what is called by the dispatcher is no part of a graph
    def call(keyset: Any, *operands: Any, **named: Any) -> Any:
        if in_forward_mode() and has_tangent(operands):
            return formula(*operands, **named)
        return by_torch(keyset, *operands, **named)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        operator._lib.impl(operator._name, call, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


def refuse_forward(*_: object, **__: object) -> None:
    """The formula of an operator that has none."""
    raise NotImplementedError(
        "an LSTM layer's way back has no forward-mode derivatives: accepted: kernel = 'torch', which takes its steps "
        "one by one"
    )
