"""The whole model timed dense and sparsified, in pairs, once its outputs are those of the same model with zeros."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from bench.commands.advising.layers import Setting
from bench.commands.advising.modules import Made, call, tensors
from bench.measuring.clocks import WallTimer
from bench.measuring.machine import facts
from bench.schema import SCHEMA_VERSION
from bench.timing import ATTEMPTS, pinned_threads, sample_pairs
from kernels.layers.weight import BlockSparseWeight
from kernels.modules import freeze
from kernels.sparsify import sparsify

TOLERANCE = 1e-3  # of an output's largest element; sums are taken in another order, layer after layer
PAIRS = 10  # of the whole model, at least
PROVENANCE = ("machine", "device_name", "source_hash")

Row = Mapping[str, Any]


def fingerprint(made: Made) -> str:
    """Of the parameters, buffers and example inputs of a model: 16 hex digits."""
    digest = hashlib.sha256()
    for each in (*made.model.state_dict().values(), *_inputs(made.inputs), *_inputs(made.keywords)):
        if isinstance(each, Tensor):
            digest.update(f"{each.dtype} {tuple(each.shape)}".encode())
            digest.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _inputs(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [one for each in value or () for one in (_inputs(each) if isinstance(each, list | tuple | dict) else [each])]


class _Pass:
    """A pass of a model as something that is timed."""

    kernel, dense, weight_bytes, index_bytes = "", False, 0, 0

    def __init__(self, model: nn.Module, made: Made, trains: bool) -> None:
        self.model, self.made, self.trains = model, made, trains
        self.output: Any = None

    def __call__(self) -> None:
        if not self.trains:
            with torch.no_grad():
                self.output = self.model(*(self.made.inputs or ()), **self.made.keywords)
            return
        self.model.zero_grad(set_to_none=True)
        self.output = self.model(*(self.made.inputs or ()), **self.made.keywords)
        sum(each.square().mean() for each in tensors(self.output) if each.requires_grad).backward()  # type: ignore[union-attr]

    def outputs(self) -> dict[str, Tensor]:
        return dict(enumerate(tensors(self.output)))  # type: ignore[arg-type]

    def poison(self) -> None:
        """It owns no buffers."""


def time_model(source: str, made: Made, sha: str, setting: Setting) -> Row:
    """The row of one setting; `failed` with the reason where the sparsified model cannot be called."""
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    shared = {
        "schema_version": SCHEMA_VERSION, "source": source, "passes": setting.passes, "device": setting.device,
        "block_size": setting.block_size, "target_sparsity": setting.sparsity, "threads": setting.threads,
        "weights_sha256": sha, "started_at": begun, **{name: facts(setting.device)[name] for name in PROVENANCE},
    }  # fmt: skip
    with pinned_threads(setting.threads):
        try:
            return {**shared, **_timed(made, setting)}
        except (RuntimeError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
            return {**shared, "status": "failed", "reason": reason}


def _timed(made: Made, setting: Setting) -> Row:
    model, report = sparsify(copy.deepcopy(made.model), setting.block_size, setting.sparsity, pad=setting.pad)
    if not report.replaced:
        return {"status": "unsupported", "reason": "no weight can be block-sparse in this block size"}
    said: dict[str, Any] = {
        "replaced": len(report.replaced),
        "dense_bytes": _bytes(made.model),
        "sparse_bytes": _bytes(model),
    }
    if setting.passes == "forward":
        freeze(model)
    sparse, dense = (_Pass(each, made, setting.passes == "training") for each in (model, made.model))
    with torch.no_grad():
        plain = tensors(call(made.model, made, "the model"))
        ours, masked = tensors(call(model, made, "the sparsified model")), tensors(_masked(made, model))
    error = max((_error(one, other) for one, other in zip(ours, masked, strict=True)), default=float("nan"))
    said |= {"error": error, "cosine": _cosine(ours, plain)}
    if not error <= TOLERANCE:
        return {**said, "status": "wrong", "reason": f"its outputs are {error:.2g} from those with zeros"}
    timer = WallTimer(setting.device)
    for _ in range(ATTEMPTS):
        samples = sample_pairs(sparse, dense, timer, min_pairs=PAIRS)
        if not samples.noisy:
            break
    times = {"dense_ms": samples.baseline, "sparse_ms": samples.backend, "noisy": samples.noisy}
    return {**said, "status": "ok", "reason": "", **times}


def _masked(made: Made, sparse: nn.Module) -> Any:
    """The output of the dense model with zeros where the sparse one has empty blocks."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for name, part in sparse.named_modules():
            if isinstance(part, BlockSparseWeight):
                weight = made.model.get_parameter(name)
                kept.append((weight, weight.detach().clone()))
                weight.copy_(part.to_dense())
        return call(made.model, made, "the model with zeros")
    finally:
        for weight, values in kept:
            weight.copy_(values)


def _error(one: Tensor, other: Tensor) -> float:
    scale = float(other.abs().max()) if other.numel() else 1.0
    return float((one - other).abs().max()) / (scale or 1.0) if other.numel() else 0.0


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of all outputs, each flattened by its last side: the mean over rows, as over the sentences of a batch."""
    rows = [
        nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).flatten()
        for a, b in zip(one, other, strict=True)
        if a.ndim
    ]
    return float(torch.cat(rows).mean()) if rows else float("nan")


def _bytes(model: nn.Module) -> int:
    held = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers()) if each.numel()}
    return sum(each.numel() * each.element_size() for each in held.values())


def seconds_of(made: Made, setting: Setting) -> float:
    """Roughly what one setting takes: two passes timed, and what comes before."""
    with pinned_threads(setting.threads):
        one = _Pass(made.model, made, setting.passes == "training")
        begin = time.perf_counter()
        one()
    return 2.0 + 2 * max(PAIRS * (time.perf_counter() - begin), 1.0)
