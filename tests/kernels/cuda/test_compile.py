"""Every CUDA kernel compiles by NVRTC for every architecture, within its budgets of registers and shared memory.

It spills nothing. One variant of each source and element by default; all of them under the marker nvrtc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from nvrtc import needs_nvrtc

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import mma, wgmma, wgmma_sdd, wgmma_tma
from kernels.cuda.device import Variant, arch_of, compile_cubin
from kernels.cuda.lstm_plan import CTA_OVERHEAD, Device, most_registers
from kernels.cuda.recurrence import Sizes, plans_for, tiles_for, variant_of
from kernels.system.compiler import CompileError
from kernels.system.resources import UnsupportedError

CAPABILITIES = (80, 86, 89, 90, 100, 120)
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SHARED_BYTES = {capability: 1024 * kib for capability, kib in KIB.items()}  # of a CTA
PRODUCTS = (
    "dsd.cu",
    "dsd_fp32.cu",
    "sdd.cu",
    "sdd_fp32.cu",
    "products_wgmma.cu",
    "products_wgmma_tma.cu",
    "sdd_wgmma.cu",
)
DTYPES = {"Float32": torch.float32, "Tf32": torch.float32, "Bfloat16": torch.bfloat16, "Float16": torch.float16}


pytestmark = needs_nvrtc


def lstm_variants(capability: int, blocks: Sequence[int], batches: Sequence[int]) -> Iterator[Variant]:
    """The kernels taken for 1152 hidden units at sparsity 0.8, both passes."""
    shared = SHARED_BYTES[capability]
    device = Device(MULTIPROCESSORS[capability], shared + CTA_OVERHEAD, shared)
    for block in blocks:
        mask = BlockMask.random(4 * 1152, 1152, block, 0.8, torch.Generator().manual_seed(0))
        index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index
        for element, dtype in DTYPES.items():
            plans = plans_for(index, block, dtype)
            for batch in batches:
                sizes = Sizes(batch, 1152, block)
                for together in (True, False):
                    with suppress(UnsupportedError):
                        tiles = tiles_for(plans, sizes, element == "Float32", device, together)
                        for name, plan, tile in zip(("lstm_forward", "lstm_backward"), plans, tiles, strict=True):
                            yield variant_of(name, plan, sizes, tile, element)


def every_variant(capability: int) -> list[Variant]:
    """All that such a GPU may be asked to run."""
    found = every_product()
    found += lstm_variants(capability, (8, 16, 32, 64, 128), (20, 80))
    limit = SHARED_BYTES[capability]
    return list(dict.fromkeys(each for each in found if each.runs_on(capability) and each.shared_bytes <= limit))


def faults(variant: Variant, capability: int) -> list[str]:
    """What is wrong with a variant, in one line each."""
    try:
        cubin = compile_cubin(variant, arch_of(capability))
    except CompileError as error:
        return [str(error)]
    ctas = int(dict(variant.defines).get("CTAS", 1))
    found = []
    if cubin.spill_bytes:
        found.append(f"{cubin.spill_bytes} bytes of registers spilled")
    if cubin.registers > most_registers(ctas * variant.threads // 32):
        found.append(f"{cubin.registers} registers of {variant.threads} threads do not fit {ctas} times")
    if ctas * (variant.shared_bytes + cubin.shared_bytes + CTA_OVERHEAD) > SHARED_BYTES[90] + CTA_OVERHEAD:
        found.append(f"{variant.shared_bytes} bytes of shared memory do not fit {ctas} times")
    if "C7510" in cubin.log or "serialized" in cubin.log:
        found.append("wgmma is serialised")
    return [f"{arch_of(capability)} {variant}: {fault}" for fault in found]


def all_faults(variants: Sequence[Variant], capability: int) -> str:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "\n".join(line for lines in pool.map(lambda each: faults(each, capability), variants) for line in lines)


@pytest.mark.builds
@pytest.mark.parametrize("source", ["add_parts.cu", *PRODUCTS])
def test_the_first_variant_of_each_product_compiles(source: str) -> None:
    variants = [each for each in every_product() if each.source == source]
    assert not all_faults(variants[:1], 90)
    assert not all_faults([each for each in variants[:1] if each.runs_on(80)], 80)


def every_product() -> list[Variant]:
    return [*mma.all_variants(), *wgmma.all_variants(), *wgmma_tma.all_variants(), *wgmma_sdd.all_variants()]


@pytest.mark.builds
def test_a_layer_compiles() -> None:
    variants = [each for each in lstm_variants(90, (32,), (20,)) if dict(each.defines)["ELEMENT"] == "Bfloat16"]
    assert {each.name for each in variants} == {"lstm_forward", "lstm_backward"}
    assert not all_faults(variants[:2], 90)


def test_every_product_has_a_variant_on_every_gpu() -> None:
    for capability in CAPABILITIES:
        for op in mma.OPS:
            for element in mma.ELEMENTS:
                for block in mma.BLOCKS:
                    for parts in (False, True):
                        chosen = mma.default(op, element, block, 80, parts, SHARED_BYTES[capability])
                        assert chosen.variant.runs_on(capability)


def half_sized(op: str, element: str, block: int, parts: bool) -> list[Variant]:
    """Those of which two fit into the 100 KB of a multiprocessor of 8.6, 8.9 and 12.0, with two stages or more."""
    found = [each.variant for each in mma.variants(op, element, block, 4096, parts)]
    return [
        each
        for each in found
        if 2 * (each.shared_bytes + CTA_OVERHEAD) <= SHARED_BYTES[86] + CTA_OVERHEAD
        and dict(each.defines)["CTAS"] == 2
        and int(dict(each.defines)["STAGES"]) >= 2
    ]


def test_two_ctas_share_a_multiprocessor_of_100_kb() -> None:
    """One alone, of four warps, hides little of what it waits for. Not exact sdd, nor TF32's of the largest blocks."""
    for op in mma.OPS:
        for element in mma.ELEMENTS:
            for block in mma.BLOCKS:
                if op != "sdd" or (element != "Float32" and (element, block) != ("Tf32", 128)):
                    assert all(half_sized(op, element, block, parts) for parts in (False, True)), (op, element, block)


@pytest.mark.builds
@pytest.mark.parametrize("capability", [89, 120])
def test_they_compile_for_the_cards_that_have_it(capability: int) -> None:
    chosen = [half_sized(op, element, 16, False)[0] for op in ("dsd", "sdd") for element in ("Bfloat16", "Tf32")]
    wrong = all_faults(chosen, capability)
    assert not wrong, wrong


@pytest.mark.nvrtc
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("source", [*PRODUCTS, "lstm.cu"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_compiles(capability: int, source: str) -> None:
    variants = [each for each in every_variant(capability) if each.source == source]
    if "wgmma" in source and capability != 90:
        assert not variants  # refused: it is in no other GPU
    else:
        assert variants
    wrong = all_faults(variants, capability)
    assert not wrong, wrong
