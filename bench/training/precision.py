"""How a training cell multiplies: its `precision` on its device, for torch's products and for ours alike."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from kernels.launches import applied, settings_of


def multiplying(device: str, precision: str) -> AbstractContextManager[None]:
    """Inside, cuBLAS, cuDNN and our CUDA kernels multiply float32 exactly, or by TF32 where `precision` says so.

    A run is to be made inside; bfloat16 products are summed in float32 to the end. On a CPU there is no choice.
    """
    if device != "cuda":
        return nullcontext()
    return applied(
        [*settings_of("float32", "tf32" if precision == "tf32" else "ieee"), *settings_of("bfloat16", "ieee")]
    )


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """For a forward pass, not the backward one: inside, products are of bfloat16 where `precision` says so."""
    return torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def type_of_products(precision: str) -> torch.dtype:
    """What a layer multiplies under `autocast`."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
