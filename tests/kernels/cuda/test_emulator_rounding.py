"""The emulator's conversions between float and the shorter types, at every value that is hard to round."""

import numpy as np
import pytest
import torch
from test_emulator import ROUNDED, bits, run


def hard_floats() -> np.ndarray:
    """Floats around every rounding boundary: ties, subnormals, the largest, infinities; and at random."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    as_bf16, as_f16 = halves << 16, halves.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    near = [
        base + np.uint32(step)
        for base in (as_bf16, as_f16)
        for step in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)
    ]
    tiny = np.float32(2.0**-25) * np.array([0.5, 0.999, 1, 1.001, 2, 3, 2.999, 3.001], np.float32)
    large = np.array([65503, 65504, 65519, 65519.996, 65520, 65536, 1e38, 3.4028235e38], np.float32)
    anywhere = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
    return np.concatenate([*near, tiny.view(np.uint32), large.view(np.uint32), anywhere])


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_rounding_to_halves(kind: str) -> None:
    floats = hard_floats()
    got = run("convert", floats, floats.size, ["bf16", "f16"].index(kind), threads=256, grid=4) & 0xFFFF
    wanted = bits(torch.from_numpy(floats.view(np.float32).copy()).to(ROUNDED[kind]))
    numbers = ~np.isnan(floats.view(np.float32))
    assert np.array_equal(got[numbers], wanted[numbers])
    assert set(got[~numbers].tolist()) == {0x7FFF}


def test_f16_to_float() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32)
    got = run("convert", halves, halves.size, 2, threads=256, grid=3).view(np.float32)
    assert np.array_equal(got, halves.astype(np.uint16).view(np.float16).astype(np.float32), equal_nan=True)


def test_rounding_to_tf32_is_to_nearest_with_ties_away() -> None:
    floats = hard_floats()
    with np.errstate(invalid="ignore"):
        values = floats.view(np.float32).astype(np.float64)
    finite = np.isfinite(values) & (np.abs(values) >= 2.0**-126) & (np.abs(values) < 3e38)
    got = run("convert", floats, floats.size, 3, threads=256).view(np.float32).astype(np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(values[finite]))) - 10)
    assert np.array_equal(
        got[finite], np.copysign(np.floor(np.abs(values[finite]) / unit + 0.5) * unit, values[finite])
    )
    infinite = np.isinf(values)
    assert np.array_equal(got[infinite], values[infinite])
