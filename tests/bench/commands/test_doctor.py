"""What the doctor says of GPUs, pretended here."""

from __future__ import annotations

import pytest
import torch

from bench.commands import doctor


@pytest.mark.parametrize(
    ("capability", "slow"), [(75, False), (80, False), (90, False), (100, True), (103, True), (120, False)]
)
def test_where_tcgen05_is_missed_it_is_said(capability: int, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.cuda.choose.describe", lambda: "products by mma.sync")
    monkeypatch.setattr("kernels.cuda.device.capability", lambda: capability)
    said = doctor._cuda_kernels()
    assert said.startswith("products by mma.sync") and ("far less than cuBLAS" in said) is slow


def test_an_amd_gpu_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD Instinct MI300X")
    said = doctor._cuda()
    assert said.startswith("AMD Instinct MI300X, ROCm 7.1") and "none of our kernels" in said and "CUDA" not in said
