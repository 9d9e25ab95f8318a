"""sparsify: the layers of a model pruned in blocks and replaced by block-sparse ones; and what was left, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from kernels.blockmask import BlockMask, grid_shape
from kernels.layers.recurrent import Recurrent
from kernels.layers.weight import BlockSparseWeight
from kernels.modules import BlockSparseGRU, BlockSparseLinear, BlockSparseLSTM
from kernels.tensors.operands import require_values, require_whole
from kernels.tensors.padding import in_blocks, padded
from kernels.tensors.rounding import blocks_to_empty, nearest_multiples

Criterion = Callable[[Tensor, int], Tensor]  # weight [rows, cols], block_size -> scores [grid_rows, grid_cols]
Patterns = str | Iterable[str] | None

SPARSE: dict[type[nn.Module], Any] = {
    nn.Linear: BlockSparseLinear,
    nn.LSTM: BlockSparseLSTM,
    nn.GRU: BlockSparseGRU,
}
NAMES = ", ".join(kind.__name__ for kind in SPARSE)
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


@dataclass(frozen=True)
class Report:
    """What `sparsify` did.

    replaced: each weight that is block-sparse now, by its qualified name, and its sparsity; left: each layer with a
    weight, or weight of a replaced layer, that is as it was, and the reason. Printed, a line for each.
    """

    replaced: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: sparsity {sparsity:.4g}" for name, sparsity in self.replaced.items()]
        return "\n".join(lines + [f"{name}: left, {reason}" for name, reason in self.left.items()])


def _as_blocks(weight: Tensor, block_size: int) -> Tensor:
    """[rows, cols] -> [grid_rows, b, grid_cols, b], in float32 at least."""
    grid = weight.shape[0] // block_size, weight.shape[1] // block_size
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return wide.reshape(grid[0], block_size, grid[1], block_size)


def _random(weight: Tensor, block_size: int) -> Tensor:
    return torch.rand(weight.shape[0] // block_size, weight.shape[1] // block_size, device="cpu")


CRITERIA: dict[str, Criterion] = {
    "l2": lambda weight, size: _as_blocks(weight, size).square().sum(dim=(1, 3)),  # ranks as its root does
    "l1": lambda weight, size: _as_blocks(weight, size).abs().sum(dim=(1, 3)),
    "max": lambda weight, size: _as_blocks(weight, size).abs().amax(dim=(1, 3)),
    "random": _random,
}


def sparsify(
    model: nn.Module,
    block_size: int,
    sparsity: float,
    criterion: str | Criterion = "l2",
    include: Patterns = None,
    exclude: Patterns = None,
    *,
    pad: bool = False,
    kernel: str = "auto",
) -> tuple[nn.Module, Report]:
    """`model` with its Linear, LSTM and GRU layers replaced by block-sparse ones, in place, and what was replaced.

    Of each weight the share `sparsity` of its blocks is emptied, those of the lowest score; kept values are copied. The
    model comes back, a new layer where it is itself one. criterion: 'l2', 'l1', 'max', 'random' (torch's generator), or
    a function of (weight [rows, cols], block_size) that gives scores [grid_rows, grid_cols]. include, exclude: patterns
    (fnmatch) of qualified names, as 'encoder.*', of layers or of single weights; None includes all. Left as they are,
    with the reason in the report: sizes that the block size does not divide, weights that are tied, parametrized, no
    parameters or without values, layers with hooks or a proj_size, subclasses, and layers of other kinds. pad: sizes
    that do not divide are filled up inside, and not left. Make the optimizer afterwards: the parameters are new ones.
    kernel: of the layers.
    ValueError, before anything is changed, where a setting is wrong or a pattern of `include` matches no weight.
    """
    require_whole("block_size", block_size)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    blocks_to_empty(sparsity, 1)
    if not callable(criterion) and criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; accepted: {', '.join(CRITERIA)}, or a function")
    scores = criterion if callable(criterion) else CRITERIA[criterion]
    survey = Survey(model, None if pad else block_size, _listed(include), _listed(exclude) or [])
    report, made = Report(left=dict(survey.left)), {}
    for module, weights in survey.chosen.items():
        sparse, masks = SPARSE[type(module)], {}
        for weight in weights:
            whole = _in_blocks(getattr(module, weight), getattr(sparse, "GATES", 1), block_size)
            masks[weight] = BlockMask.from_scores(scores(whole, block_size), sparsity, block_size)
        given: Any = masks["weight"] if isinstance(module, nn.Linear) else masks
        made[module] = sparse.from_dense(module, given, kernel=kernel, pad=pad)
        for name in survey.names[module]:
            report.replaced.update({_joined(name, weight): mask.sparsity for weight, mask in masks.items()})
    for module, sparse in made.items():
        for name in survey.names[module]:
            if not name:
                return sparse, report
            model.set_submodule(name, sparse)
    _leave_fast_paths(model)
    return model, report


def _in_blocks(weight: Tensor, gates: int, block_size: int) -> Tensor:
    """The values of a weight, with zeros up to whole blocks."""
    rows, cols = weight.shape
    return padded(weight.detach(), gates, in_blocks((rows, cols), gates, block_size))


def _listed(patterns: Patterns) -> list[str] | None:
    return [patterns] if isinstance(patterns, str) else None if patterns is None else list(patterns)


def _joined(name: str, weight: str) -> str:
    return f"{name}.{weight}" if name else weight


class Survey:
    """Which weights of a model can be block-sparse, and what is left why.

    names: every qualified name of a module; chosen: the weights of each layer to be replaced; left: reasons by name.
    block_size: that sizes must be multiples of, or None.
    """

    def __init__(self, model: nn.Module, block_size: int | None, include: list[str] | None, exclude: list[str]) -> None:
        self.block_size, self.include, self.exclude = block_size, include, exclude
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.owners = self._owners()
        self.chosen: dict[nn.Module, list[str]] = {}
        self.left: dict[str, str] = {}
        met: set[str] = set()
        for module, names in self.names.items():
            weights = [name for name, each in module._parameters.items() if each is not None and each.ndim >= 2]
            known = isinstance(module, (*SPARSE, *SPARSE.values()))
            if (weights or known) and not isinstance(module, BlockSparseWeight | ParametrizationList):
                met |= {_joined(name, weight) for name in names for weight in ("", *weights)}
                self._place(module, names, weights)
        for pattern in include or ():
            if not any(fnmatchcase(name.rstrip("."), pattern) for name in met):
                few = ", ".join(sorted(name for name in met if name.endswith(".weight") or "_hh_" in name)[:4])
                raise ValueError(f"include: {pattern!r} matches no layer and no weight; there are {few or 'none'}")

    def _owners(self) -> dict[int, list[tuple[nn.Module, str]]]:
        """The modules that hold a parameter, and its name there, by where its memory is."""
        found: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self.names:
            for name, each in module._parameters.items():
                if each is not None:
                    found.setdefault(_place_of(each), []).append((module, name))
        return found

    def _place(self, module: nn.Module, names: list[str], weights: list[str]) -> None:
        """Among `chosen`, or with a reason among `left`; single weights too."""
        wanted = {weight: self._unwanted(names, weight) for weight in weights}
        reason = self._reason(module)
        if reason is None and weights and all(wanted.values()):
            reason = next(iter(wanted.values()))
        if reason is not None:
            self.left.update(dict.fromkeys(names, reason))
            return
        kept_dense = {weight: said or self._indivisible(getattr(module, weight)) for weight, said in wanted.items()}
        reasons = list(kept_dense.values())
        if all(reasons):
            self.left.update(dict.fromkeys(names, str(reasons[0])))
            return
        self.chosen[module] = [weight for weight, said in kept_dense.items() if said is None]
        for weight, said in kept_dense.items():
            if said is not None:
                self.left.update({_joined(name, weight): said for name in names})

    def _unwanted(self, names: list[str], weight: str) -> str | None:
        """Why a weight is not asked for under one of its names, or None."""
        for name in names:
            both = (name, _joined(name, weight))
            for pattern in self.exclude:
                if any(fnmatchcase(each, pattern) for each in both):
                    return f"excluded by {pattern!r}"
            if self.include is not None and not any(fnmatchcase(each, p) for each in both for p in self.include):
                return "not included" if len(names) == 1 else f"not included as {name!r}"
        return None

    def _indivisible(self, weight: Tensor) -> str | None:
        if self.block_size is None:
            return None
        try:
            rows, cols = weight.shape
            grid_shape(rows, cols, self.block_size)
        except ValueError as error:
            return str(error)
        return None

    def _reason(self, module: nn.Module) -> str | None:
        """Why a layer cannot be replaced at all, or None."""
        kind = type(module).__name__
        if isinstance(module, BlockSparseLinear | Recurrent):
            return "block-sparse already"
        if is_parametrized(module):
            return "its weights are parametrized; torch.nn.utils.parametrize.remove_parametrizations makes plain ones"
        if any(map(nn.parameter.is_lazy, module.parameters())):
            return "it has no weights yet: call the model once before"
        if type(module) not in SPARSE:
            base = next((each.__name__ for each in SPARSE if isinstance(module, each)), None)
            return f"{kind} is a subclass of {base}" if base else f"{kind} is none of {NAMES}"
        if any(getattr(module, hooks) for hooks in HOOKS):
            return "it has hooks, which would be lost"
        if getattr(module, "proj_size", 0):
            return f"proj_size {module.proj_size}: a block-sparse layer has no projections"
        if isinstance(module, nn.Linear) and "weight" not in module._parameters:
            return "its weight is no parameter"
        for name, each in module._parameters.items():
            if each is not None and (said := self._unusable(module, name, each)):
                return said
        size, hidden = self.block_size, getattr(module, "hidden_size", 0)
        if size is not None and hidden % size:  # or gates would share a block row
            nearest = nearest_multiples(hidden, size)
            return f"block_size {size} does not divide its hidden_size {hidden}; nearest sizes that work: {nearest}"
        return None

    def _unusable(self, module: nn.Module, name: str, parameter: Tensor) -> str | None:
        """Why a parameter cannot be copied into another layer, or None."""
        try:
            require_values(name, parameter)
        except ValueError as error:
            return str(error)
        for other, as_name in self.owners[_place_of(parameter)]:
            if other is not module or as_name != name:
                return f"its {name} is tied to {_joined(self.names[other][0], as_name)}"
        return None


def _place_of(parameter: Tensor) -> int:
    """Where its memory is; who it is, where it has none."""
    has_memory = not nn.parameter.is_lazy(parameter) and not parameter.is_meta and parameter.numel()
    return parameter.data_ptr() if has_memory else id(parameter)


def _leave_fast_paths(model: nn.Module) -> None:
    """torch's Transformer layers call their parts in evaluation, too, where these are block-sparse.

    There they would read `linear1.weight` for one fused operator, and make nested tensors for it.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            inner = [part for layer in module.layers for part in layer.modules()]
            module.use_nested_tensor &= not any(isinstance(part, BlockSparseLinear) for part in inner)
        elif isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(part, BlockSparseLinear) for part in module.children()
        ):
            module.activation_relu_or_gelu = 0  # what torch's layer has for other activations
