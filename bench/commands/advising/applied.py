"""Weights pruned in blocks and written as safetensors, under the names that a sparsified model's state_dict has.

NAME.values [nnzb, b, b], NAME.indices and NAME.indptr for each block-sparse weight NAME, and every other tensor as it
was. The file's metadata has block_size, sparsity and, for each such weight, its shape and gates, as JSON.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bench.cells import number
from bench.commands.advising.layers import GATES, AdviceError, Layer, Setting, timing
from bench.commands.advising.weights import Weights
from bench.storing.parquet import publish, require_file
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight, sparse_from
from kernels.sparsify import CRITERIA, sparsify
from kernels.tensors.padding import in_blocks, padded

FORMAT = "block-sparse-bench 1"


def of_weights(
    weights: Weights, layers: Sequence[Layer], held: Mapping[str, Weights], setting: Setting
) -> dict[str, Tensor | BlockSparseWeight]:
    """Every tensor of a file by name, those of candidates in blocks, pruned by their norms."""
    found: dict[str, Tensor | BlockSparseWeight] = dict(weights)
    for layer in layers:
        how = timing(layer, setting)
        if how.reason:
            continue
        for name, weight in held[layer.name].items():
            if how.scope == "weight_hh" and "_hh" not in name:
                continue
            whole = layer.name if name == "weight" else f"{_prefix(layer)}{name}"
            stored = whole if whole in weights else f"{whole}_raw"
            found.pop(stored, None)
            found[whole] = _sparse(weight, GATES.get(layer.kind, 1), setting)
    return found


def _prefix(layer: Layer) -> str:
    """What stands before the names of a recurrent layer's weights."""
    return layer.name[: layer.name.rindex("weight")]


def _sparse(weight: Tensor, gates: int, setting: Setting) -> BlockSparseWeight:
    rows, cols = weight.shape
    size = setting.block_size
    whole = padded(weight.detach(), gates, in_blocks((rows, cols), gates, size))
    return sparse_from(weight, BlockMask.from_scores(CRITERIA["l2"](whole, size), setting.sparsity, size), gates)


def of_model(model: nn.Module, setting: Setting) -> dict[str, Tensor | BlockSparseWeight]:
    """The same of a model, as `sparsify` prunes it."""
    made, _ = sparsify(copy.deepcopy(model), setting.block_size, setting.sparsity, pad=setting.pad)
    sparse = {name: part for name, part in made.named_modules() if isinstance(part, BlockSparseWeight)}
    others = {name: each for name, each in made.state_dict().items() if name.rpartition(".")[0] not in sparse}
    return {**others, **sparse}


def write(path: Path, found: Mapping[str, Tensor | BlockSparseWeight], setting: Setting) -> str:
    """Write the file and say in a line what is in it. AdviceError where nothing is block-sparse."""
    sparse = {name: each for name, each in found.items() if isinstance(each, BlockSparseWeight)}
    if not sparse:
        raise AdviceError(f"--apply: block_size {setting.block_size} divides no weight; accepted: another, or --pad")
    require_file(path)
    tensors: dict[str, Tensor] = {}
    for name, each in found.items():
        tensors |= {part: held.detach().cpu().contiguous().clone() for part, held in _parts(name, each).items()}
    about = {name: {"shape": each.shape, "gates": each.gates} for name, each in sparse.items()}
    settings = {"block_size": str(setting.block_size), "sparsity": f"{setting.sparsity:g}"}
    data = save(tensors, {"format": "pt", "made_by": FORMAT, **settings, "block_sparse": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, data)
    kept = sum(each.values.numel() for each in sparse.values())
    weights = number(len(sparse), "block-sparse weight")
    said = f"{path}: {weights} with {kept:,} values kept, {len(data) / 1e6:.1f} MB in all"
    ill = [name for name, each in sparse.items() if not each.values.isfinite().all()]
    return f"{said}; not all finite, and so kept first: {', '.join(ill)}" if ill else said


def _parts(name: str, held: Tensor | BlockSparseWeight) -> dict[str, Tensor]:
    if isinstance(held, Tensor):
        return {name: held}
    return {f"{name}.{part}": each for part, each in held.state_dict().items()}


def masks(path: Path) -> dict[str, BlockMask]:
    """The pattern of each block-sparse weight of such a file, by name: what layers of `kernels.modules` are made with.

    AdviceError where the file is none of ours.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("made_by") != FORMAT:
            raise AdviceError(f"{path}: has no block-sparse weights; accepted: what --apply has written")
        told: dict[str, Any] = json.loads(about["block_sparse"])
        return {name: _mask(file, name, each) for name, each in told.items()}


def _mask(file: Any, name: str, about: Mapping[str, Any]) -> BlockMask:
    values, indices, indptr = (file.get_tensor(f"{name}.{part}") for part in ("values", "indices", "indptr"))
    shape = in_blocks(tuple(about["shape"]), about["gates"], values.shape[-1])
    return BSRMatrix(torch.empty_like(values), indices, indptr, shape).mask
