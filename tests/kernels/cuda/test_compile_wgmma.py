"""Kernels by wgmma compile for sm_90a without spills, and ptxas lets their products run on while others are begun."""

import re

import pytest

from kernels.cuda import wgmma, wgmma_sdd, wgmma_tma
from kernels.cuda.compile import nvrtc
from kernels.cuda.device import Variant, compile_cubin
from kernels.system.compiler import CompileError

VARIANTS = [*wgmma.all_variants(), *wgmma_tma.all_variants(), *wgmma_sdd.all_variants()]
FIRST = {
    (each.source, *(dict(each.defines).get(name) for name in ("ELEMENT", "BLOCK", "CLUSTER"))): each
    for each in reversed(VARIANTS)
}


def assert_good(wanted: Variant) -> None:
    """ptxas tells where it puts wgmmas one after the other, or waits for them, in remarks C7510 to C7520."""
    try:
        nvrtc()
    except CompileError as error:
        pytest.skip(str(error))
    cubin = compile_cubin(wanted, "sm_90a")
    assert cubin.spill_bytes == 0
    # A CTA's pool of registers is what its threads are launched with: setmaxnreg.inc waits for ever where that, less
    # what the loading warps give back, is too little (PTX ISA, setmaxnreg).
    assert cubin.registers == 65536 // wanted.threads // 8 * 8
    # C7519 is a fence more, where a group of products was closed before its commit; the others say
    # that wgmma is serialised.
    assert not re.search(r"\(C75\d\d\)", cubin.log), cubin.log


@pytest.mark.parametrize("wanted", FIRST.values(), ids=str)
def test_one_variant_of_each_source_and_element(wanted: Variant) -> None:
    assert_good(wanted)


@pytest.mark.nvrtc
@pytest.mark.parametrize("wanted", VARIANTS, ids=str)
def test_every_variant(wanted: Variant) -> None:
    assert_good(wanted)
