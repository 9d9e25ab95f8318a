"""Our CUDA products by the first rung alone, mma.sync, so that a GPU with wgmma can say what the second is worth."""

from __future__ import annotations

from functools import partial

from kernels.backends.cuda import CudaBackend, CudaProduct
from kernels.cuda.choose import prepare_by_warps

BACKEND = CudaBackend(name="cuda_mma", product=partial(CudaProduct, prepare=prepare_by_warps), instead="; cuda has")
