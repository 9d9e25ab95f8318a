"""Which LSTM layers of a model run on the sparse path, the setting `path` at work, and how they multiply, its `precision`.

dense: none. sparse: all, from the first step on. auto: each from its break-even sparsity on, where that was measured to
be on this machine. The two paths add up in different orders, so under auto the last digits of a result
depend on the choice.

The break-even sparsity is where from on the kernels that skip empty blocks train a layer faster. It is measured once per machine, software and shape, by interleaved pairs, and kept in a small JSON file beside the compiled
kernels, sealed by its own sha256. It holds for these sources, this build of the kernels and so many threads alone. A file that
does not hold is not believed in any part: a line says so, and all is measured again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import nn

from bench.cells import TrainCell
from bench.measuring.clocks import interleaved, speedup
from bench.measuring.machine import physical_cores, processor, source_hash
from bench.models.layers import OURS, LSTMLayer
from bench.pruning.pruner import share_empty
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.launches import applied, settings_of
from kernels.native.library import describe, library
from kernels.ops import kernel_for, lstm_kernel
from kernels.system.cache import DoubtError, cache_folder, make_way, publish, read_sealed, say, sealed
from kernels.system.compiler import CompileError
from kernels.system.resources import in_words, shown
from kernels.system.threads import in_force


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


FILE = "breakeven.json"
PAIRS = 5
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
TIMES = (
    "kernels",
    "bench/models",
    "bench/measuring/clocks.py",
    "bench/training/paths.py",
)  # what a break-even depends on
NEVER = math.inf
SURROUNDINGS = ("processor", "torch", "kernels", "build", "cores")

Curve = list[list[float]]  # [sparsity, speedup of the sparse path] in order
Entry = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One LSTM layer as it is trained. inputs, hidden: widths; steps: of back-propagation through time."""

    inputs: int
    hidden: int
    batch: int
    steps: int
    block_size: int
    scope: str
    dtype: str
    threads: int
    weight_drop: float = 0.0
    device: str = "cpu"
    precision: str = "ieee"

    def __str__(self) -> str:
        return (
            f"LSTM {self.inputs} -> {self.hidden}, batch {self.batch}, {self.steps} steps, block {self.block_size}, "
            f"{self.scope}, {self.dtype}, {self.threads} thread{'s' if self.threads > 1 else ''}"
            + (f", weight drop {self.weight_drop:g}" if self.weight_drop else "")
            + (f", {self.device}" if self.device != "cpu" else "")
            + (f", {self.precision}" if self.precision != "ieee" else "")
        )

    def masks(self, sparsity: float) -> dict[str, BlockMask]:
        """Random patterns of the weights that are block-sparse."""
        generator = torch.Generator().manual_seed(0)
        widths = {"weight_ih": self.inputs, "weight_hh": self.hidden}
        return {
            kind: BlockMask.random(4 * self.hidden, width, self.block_size, sparsity, generator)
            for kind, width in widths.items()
            if self.scope == "all" or kind == self.scope
        }


def breakeven(shape: Shape) -> float:
    """The sparsity from which on the sparse path is faster: 0 where it always is, infinite where it never is.

    From the file, or measured now with as many threads as the shape says; other processes wait for it meanwhile, where
    there can be a lock.
    """
    folder = cache_folder()
    entry = {**surroundings(shape.device), "shape": asdict(shape)}
    key = _key(entry)
    with ExitStack() as held:
        try:
            make_way(lock := folder / f".{FILE}.lock")
            held.enter_context(filelock.FileLock(lock))
        except OSError as error:
            say(f"break-even sparsities are measured without a lock, others may be at it: {in_words(error)}")
        entries = _read(folder / FILE)
        if key not in entries:
            entries[key] = {**entry, "curve": measure(shape)}
            _write(folder / FILE, entries)
        return crossing(entries[key]["curve"])


def surroundings(device: str = "cpu") -> dict[str, str]:
    """What a measured break-even holds for, beside its shape.

    kernels: the sources of that device's kernels and of what measures them, the layers of bench among it; build: compiler, flags
    and instructions of the CPU's kernels; cores: that this process may use.
    """
    chip, build = (torch.cuda.get_device_name(), "") if device == "cuda" else (processor(), _build())
    sources = source_hash(*TIMES, without="kernels/native" if device == "cuda" else "kernels/cuda")
    return {
        "processor": chip,
        "torch": torch.__version__,
        "kernels": sources,
        "build": build,
        "cores": str(physical_cores()),
    }


def _build() -> str:
    try:
        return describe(library("dsd", torch.float32), 1)
    except CompileError as error:
        return str(error)


def known() -> Iterator[tuple[Shape, float]]:
    """Every break-even measured on this machine with today's software, in the order of measuring; nothing is measured."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    surrounding = {device: surroundings(device) for device in devices}
    for entry in _read(cache_folder() / FILE).values():
        if not _is_todays(entry):
            continue
        here = surrounding.get(Shape(**entry["shape"]).device)
        if here and all(entry[name] == value for name, value in here.items()):
            yield Shape(**entry["shape"]), crossing(entry["curve"])


def measure(shape: Shape) -> Curve:
    """Speedups of forward + backward over torch.nn.LSTM at rising sparsities, up to the first that is faster."""
    device, dtype, threads = shape.device, getattr(torch, shape.dtype), torch.get_num_threads()
    torch.set_num_threads(shape.threads)
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            return _measure(shape, device, dtype)
    finally:
        torch.set_num_threads(threads)


def _measure(shape: Shape, device: str, dtype: torch.dtype) -> Curve:
    curve: Curve = []
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        layers = [LSTMLayer(shape.inputs, shape.hidden, shape.weight_drop) for _ in range(2)]
        dense, sparse = (layer.to(device, dtype) for layer in layers)
        x, grad = (torch.randn(shape.steps, shape.batch, width, dtype=dtype) for width in (shape.inputs, shape.hidden))
        x, grad = x.to(device).requires_grad_(), grad.to(device)

        def train(layer: LSTMLayer) -> None:
            layer.zero_grad()
            with autocast(device, shape.precision):
                y, _ = layer(x)
            y.backward(grad)

        with multiplying(device, shape.precision):
            for sparsity in SPARSITIES:
                sparse.follow(shape.masks(sparsity))
                pairs = interleaved(lambda: train(dense), lambda: train(sparse), PAIRS, device)
                curve.append([sparsity, speedup(*pairs)])
                if curve[-1][1] >= 1.0:
                    break
    return curve


def crossing(curve: Curve) -> float:
    """The sparsity from which on every measured speedup is at least 1, interpolated from the point below it.

    The lowest measured one where none is below 1; infinite where the highest one is. Time is linear in density, so 1 / speedup
    is what is interpolated. The analysis reads break-evens off tables by the same rule; tests hold both to the same cases.
    """
    points = sorted(curve)
    below = [index for index, (_, ratio) in enumerate(points) if ratio < 1.0]
    if points and not below:
        return points[0][0]
    if not points or below[-1] == len(points) - 1:
        return NEVER
    (low, slow), (high, fast) = points[below[-1]], points[below[-1] + 1]
    share = (1.0 / slow - 1.0) / (1.0 / slow - 1.0 / fast)
    return low + share * (high - low)


def _read(path: Path) -> dict[str, Entry]:
    """The entries of the file; none where one of them does not hold."""
    try:
        entries = read_sealed(path).get("entries")
        if not isinstance(entries, dict):
            raise DoubtError(f"{shown(path)} has no entries")
        for key, entry in entries.items():
            if fault := _fault(key, entry):
                raise DoubtError(f"{shown(path)}: {fault}")
    except FileNotFoundError:
        return {}
    except DoubtError as doubt:
        say(f"{doubt}; break-even sparsities are measured anew")
        return {}
    return entries


def _write(path: Path, entries: dict[str, Entry]) -> None:
    """All of it or nothing; where it cannot be written, a line says so, and the next process measures again."""
    try:
        publish(path, json.dumps(sealed({"entries": entries}), indent=1).encode())
    except OSError as error:
        say(f"break-even sparsities are not kept: {in_words(error)}")


def _key(entry: Entry) -> str:
    """What an entry stands under: all of it but the curve."""
    return json.dumps({name: part for name, part in entry.items() if name != "curve"}, sort_keys=True)


def _fault(key: str, entry: object) -> str | None:
    """What is wrong with an entry, or None."""
    if not isinstance(entry, dict) or entry.keys() != {*SURROUNDINGS, "shape", "curve"}:
        return "an entry has other parts than a break-even"
    if key != _key(entry):
        return "an entry stands under another's name"
    if not all(isinstance(entry[name], str) for name in SURROUNDINGS) or not isinstance(entry["shape"], dict):
        return "an entry does not say what it holds for"
    if not _is_curve(entry["curve"]):
        return "a curve is no list of rising sparsities from 0 to 1 and their speedups, the first from 1 on the last"
    return _wrong_field(entry["shape"]) if _is_todays(entry) else None


def _is_curve(curve: object) -> bool:
    if not isinstance(curve, list) or not curve:
        return False
    for point in curve:
        if not isinstance(point, list) or len(point) != 2 or any(type(each) not in (int, float) for each in point):
            return False
    sparsities, ratios = zip(*curve, strict=True)
    rising = all(low < high for low, high in pairwise(sparsities))
    in_range = sparsities[0] >= 0.0 and sparsities[-1] <= 1.0 and all(0.0 < ratio < math.inf for ratio in ratios)
    whole = ratios[-1] >= 1.0 or sparsities[-1] >= SPARSITIES[-1]  # it goes on up to there
    return rising and in_range and whole and all(ratio < 1.0 for ratio in ratios[:-1])


def _is_todays(entry: Entry) -> bool:
    """Whether an entry's shape has the fields that it has today; other versions may share the file."""
    return bool(entry["shape"].keys() == {field.name for field in fields(Shape)})


def _wrong_field(shape: dict[str, Any]) -> str | None:
    """Which field of a shape is of another type than it should be, or out of range; or None."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    for field in fields(Shape):
        value = shape[field.name]
        if type(value) not in kinds[str(field.type)]:
            return f"{field.name} is {value!r}, no {field.type}"
        if (field.type == "int" and value < 1) or (field.type == "float" and not 0.0 <= value <= 1.0):
            return f"{field.name} is {value!r}, out of range"
    return None


def missing_kernel(device: str = "cpu", precision: str = "ieee", block_size: int = 16) -> str | None:
    """Why nothing can run on the sparse path of `device` here, or None. ResourceError where that is so today only."""
    dtype = type_of_products(precision)
    try:
        kernel_for(OURS[device], dtype, torch.device(device), layer=True, block_size=block_size)
    except ValueError as error:
        return str(error)
    return None


def missing_kernel_of(cell: TrainCell) -> str | None:
    """Why nothing can run on the sparse path of a cell here, or None."""
    return missing_kernel(cell.device, cell.precision, cell.block_size)


def kernel(device: str = "cpu") -> str:
    """What computes the sparse path of `device` here: kernel, compiler and threads; of a GPU its name, the rest depends on the weights."""
    if device == "cuda":
        return OURS[device]
    return describe(library("dsd", torch.float32), in_force())


def kernel_of(recurrent: Iterable[BSRMatrix], batch: int) -> str:
    """What goes through the steps of layers with these recurrent weights, `batch` sequences side by side."""
    first, *others = recurrent
    if not first.data.is_cuda:
        native = kernel_for("auto", first.data.dtype, first.data.device, layer=True) == "native"
        return kernel() if native else "torch"
    return "; ".join(dict.fromkeys(lstm_kernel(weight, batch) for weight in (first, *others)))


class Paths:
    """The choice for every LSTM layer of `model`, made anew whenever a mask changes.

    kernel: what computes the sparse path, empty as long as nothing ran on it. reason: why auto never leaves the dense path,
    empty where it can. ValueError where path is sparse and there are no kernels. May measure for a minute at first use.
    """

    def __init__(self, model: nn.Module, cell: TrainCell, thresholds: list[float] | None = None) -> None:
        """thresholds: break-even sparsities of the layers that a run began with; None asks for them now."""
        layers: list[LSTMLayer] = list(model.layers)  # type: ignore[arg-type]
        self.layers, self.path, self.batch_size = layers, cell.path, cell.batch_size
        self.device, self.precision = cell.device, cell.precision
        self.kernel, self.reason = "", ""
        self._masks: dict[str, BlockMask] = {}
        missing = missing_kernel_of(cell) if cell.path != "dense" else None
        if missing and cell.path == "sparse":
            raise ValueError(f"path: no sparse path here: {missing}")
        if missing:
            self.reason = f"dense path: {missing}"
        self.thresholds = thresholds or [self._threshold(layer, cell) for layer in layers]

    def _threshold(self, layer: LSTMLayer, cell: TrainCell) -> float:
        if cell.path == "dense" or self.reason:
            return NEVER
        if cell.path == "sparse":
            return 0.0
        sizes = (layer.input_size, layer.hidden_size, cell.batch_size, cell.bptt)
        threads, drop = torch.get_num_threads(), layer.weight_drop
        where = cell.device, cell.precision
        return breakeven(Shape(*sizes, cell.block_size, cell.scope, "float32", threads, drop, *where))

    @property
    def sparse_layers(self) -> int:
        """How many layers run on the sparse path."""
        return sum(layer.sparse for layer in self.layers)

    @property
    def sparse_weights(self) -> frozenset[str]:
        """Names of the weights whose gradients come without empty blocks."""
        return frozenset(f"{kind}_l{number}" for number, layer in enumerate(self.layers) for kind in layer.patterns)

    def update(self, masks: dict[str, BlockMask]) -> None:
        """Put every layer on its path. masks: as `Pruner.masks`, whose members are replaced when they change."""
        if masks.keys() == self._masks.keys() and all(masks[name] is self._masks[name] for name in masks):
            return
        self._masks = dict(masks)
        for number, (layer, threshold) in enumerate(zip(self.layers, self.thresholds, strict=True)):
            own = {kind: masks[name] for kind in ("weight_ih", "weight_hh") if (name := f"{kind}_l{number}") in masks}
            layer.follow(own if own and share_empty(own.values()) >= threshold else {})
        if self.sparse_layers and (self.device == "cuda" or not self.kernel):
            self.kernel = kernel_of(self._recurrent_weights(), self.batch_size)

    def _recurrent_weights(self) -> list[BSRMatrix]:
        """Those of the layers on the sparse path, as they are multiplied."""
        dtype = type_of_products(self.precision)
        found = [layer.patterns["weight_hh"].matrix for layer in self.layers if layer.sparse]
        return [weight.with_data(weight.data.to(dtype)) for weight in found]
