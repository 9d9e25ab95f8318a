"""A device that is none: tensors on torch's meta device, whose values are zero wherever somebody reads them.

Inside `PretendDevice` an operation on tensors of two devices fails, as it would on a GPU, and what a GPU would have to
be waited for is counted.
"""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels.blockmask
import kernels.bsr
import kernels.tensors.index

COPIES = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh", "aten::detach")


class PretendDevice(TorchDispatchMode):
    """operations: all that ran on the device, by name. waits: those whose values somebody on the CPU read."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.waits: list[str] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for module in (kernels.blockmask, kernels.bsr, kernels.tensors.index):
            self.patch.setattr(module, "require_values", lambda *_: None)  # a GPU's tensors have some
        self.patch.setattr(kernels.tensors.index, "_check", lambda *_: None)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.patch.undo()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, func._schema.name
        tensors = [each for each in tree_leaves((args, given)) if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if each.is_meta]
        if there:
            self.operations.append(name)
        if name == "aten::_local_scalar_dense" and there:
            self.waits.append(name)
            return torch.zeros((), dtype=there[0].dtype).item()
        if name == "aten::_to_copy" and there and given.get("device") == torch.device("cpu"):
            self.waits.append(name)
            return torch.zeros(there[0].shape, dtype=given.get("dtype") or there[0].dtype)
        # a number on the CPU may stand beside tensors of a GPU
        devices = {each.device.type for each in tensors if each.ndim or each.is_meta}
        if name not in COPIES:
            assert len(devices) <= 1, f"{name} mixes devices: {[(tuple(each.shape), each.device) for each in tensors]}"
        return func(*args, **given)
