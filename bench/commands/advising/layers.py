"""Layers of a model as advice sees them: their sizes, how much goes through them, and which cells stand for their time.

Nothing here imports torch, so that a shape that cannot be is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench.cells import Cell, GemmCell, LstmCell
from bench.settings import LARGEST_INT
from kernels.tensors.rounding import in_blocks

GATES = {"lstm": 4, "gru": 3}
OURS = {"cpu": "native", "cuda": "cuda"}
PASSES = ("forward", "training")
TRAINED = ("dsd", "dsd_t", "sdd")  # the product and both gradients, of a linear layer
DENSE: dict[str, object] = {"backend": "dense", "block_size": 1, "target_sparsity": 0.0}
KIND_NAMES = {"linear": "Linear", "lstm": "LSTM", "gru": "GRU"}

Part = tuple[Cell, float]  # a cell, and how often its work is done in a pass of the model


class AdviceError(ValueError):
    """An input that no advice can be given on: one line."""


@dataclass(frozen=True)
class Layer:
    """A weight of a Linear layer, both weights of an LSTM or GRU layer, or what is no candidate, with the reason.

    rows, cols: outputs and inputs of a linear layer, hidden and input size of the others, sizes of any other weight.
    count: layers alike. calls: times it runs in a pass. tokens: columns of X of a linear layer; batch, steps: of the
    others. assumed: what was taken for granted to make a layer of it. weights: its dense elements, biases not counted.
    """

    name: str
    kind: str  # linear, lstm, gru or other
    rows: int
    cols: int
    count: int = 1
    calls: float = 1.0
    tokens: int = 1
    batch: int = 1
    steps: int = 1
    reason: str = ""
    assumed: str = ""

    @property
    def is_recurrent(self) -> bool:
        return self.kind in GATES

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(rows, cols) of each of its weights."""
        if not self.is_recurrent:
            return [(self.rows, self.cols)]
        out = GATES[self.kind] * self.rows
        return [(out, self.cols), (out, self.rows)]

    @property
    def weights(self) -> int:
        return sum(rows * cols for rows, cols in self.sides)

    @property
    def multiply_adds(self) -> float:
        """Of all such layers in a pass."""
        through = self.batch * self.steps if self.is_recurrent else self.tokens
        return self.count * self.calls * self.weights * through

    @property
    def sizes(self) -> str:
        """'Linear 3072 x 768', outputs x inputs; 'LSTM 40 -> 256'."""
        if self.is_recurrent:
            return f"{KIND_NAMES[self.kind]} {self.cols} -> {self.rows}"
        return f"{KIND_NAMES.get(self.kind, 'weight')} {self.rows} x {self.cols}"


@dataclass(frozen=True)
class Setting:
    """What layers are timed with. block_size and sparsity: of one variant of each."""

    passes: str
    block_size: int
    sparsity: float
    device: str = "cpu"
    threads: int = 0
    pad: bool = False


@dataclass(frozen=True)
class Timing:
    """The cells whose times add up to that of a layer in a setting; how it came about.

    reason: why it stays dense, empty where it does not. note: what is not as one would take it. scope: weights that
    are block-sparse.
    """

    parts: list[Part] = field(default_factory=list)
    reason: str = ""
    note: str = ""
    scope: str = "all"


def timing(layer: Layer, setting: Setting) -> Timing:
    """What is measured for a layer: block-sparse where the block size fits, else dense, with the reason."""
    if layer.reason:
        return Timing(reason=layer.reason)
    size = setting.block_size
    rows, cols = in_blocks((layer.rows, layer.cols), 1, size)
    padded = replace(layer, rows=rows, cols=cols)
    if padded == layer:
        return Timing(_parts(layer, setting, "all"))
    if setting.pad:
        note = f"padded inside from {layer.rows} and {layer.cols} to {padded.rows} and {padded.cols}"
        return Timing(_parts(layer, setting, "all", pad=True), note=note)
    if layer.is_recurrent and padded.rows == layer.rows:
        note = f"weight_ih stays dense: its {layer.cols} columns are no whole blocks"
        return Timing(_parts(layer, setting, "weight_hh"), note=note, scope="weight_hh")
    return Timing(_dense_parts(layer, setting), reason=_indivisible(layer, size))


def _indivisible(layer: Layer, block_size: int) -> str:
    side = layer.rows if layer.rows % block_size else layer.cols
    fits = f"; sizes that fit: {nearest_blocks([layer.rows, layer.cols], block_size)}"
    return f"block_size {block_size} does not divide {side}{fits}, or --pad"


def nearest_blocks(sides: Sequence[int], wanted: int) -> str:
    """'10 or 25': the largest block size up to `wanted` that divides all sides, and the smallest above it up to 128."""
    fitting = [size for size in range(2, 129) if not any(side % size for side in sides)]
    below = max((size for size in fitting if size <= wanted), default=0)
    above = min((size for size in fitting if size > wanted), default=0)
    return " or ".join(str(size) for size in (below, above) if size) or "none up to 128"


def _parts(layer: Layer, setting: Setting, scope: str, pad: bool = False) -> list[Part]:
    times = layer.count * layer.calls
    shared = {
        "backend": OURS[setting.device], "block_size": setting.block_size, "target_sparsity": setting.sparsity,
        "pad": pad,
    }  # fmt: skip
    return [(cell, times * often) for cell, often in _cells(layer, setting, shared, scope)]


def _dense_parts(layer: Layer, setting: Setting) -> list[Part]:
    """Of a layer that stays dense: its baseline beside itself, so that its time is known."""
    shared = {**DENSE, "backend": "torch_lstm"} if layer.kind == "lstm" else DENSE
    return [(cell, layer.count * layer.calls * often) for cell, often in _cells(layer, setting, shared, "all")]


def _cells(layer: Layer, setting: Setting, shared: dict[str, object], scope: str) -> Iterator[Part]:
    where: dict[str, object] = {"device": setting.device, "threads": setting.threads}
    if layer.kind == "lstm":
        passes = "forward" if setting.passes == "forward" else "forward_backward"
        of_layer = {"input_size": layer.cols, "hidden_size": layer.rows, "batch_size": layer.batch, "bptt": layer.steps}
        found: Cell = LstmCell.model_validate({**where, **of_layer, **shared, "passes": passes, "scope": scope})
        yield found.canonical(), 1.0
        return
    products = [(layer.sides[0], layer.tokens, 1.0)]
    if layer.kind == "gru":  # the inputs of all steps at once, then a product a step
        into, recurrent = layer.sides
        products = [(into, layer.batch * layer.steps, 1.0), (recurrent, layer.batch, float(layer.steps))]
    # A weight in training changes between products: nothing is frozen there. On a GPU only launches are timed.
    call = "operator" if setting.passes == "forward" and setting.device == "cpu" else "launch"
    for place, ((m, k), n, often) in enumerate(products):
        how = DENSE if scope == "weight_hh" and place == 0 else shared
        for op in ("dsd",) if setting.passes == "forward" else TRAINED:
            sizes: dict[str, object] = {"m": m, "k": k, "n": n, "op": op, "layout": "column", "call": call}
            found = GemmCell.model_validate({**where, **sizes, **how})
            yield found.canonical(), often


def in_order_of_worth(layers: Sequence[Layer], settings: Iterable[Setting]) -> list[Cell]:
    """Every cell once: those of the first setting first, and in each those of the most work.

    So that, when the time is up, there is an answer on the whole model for as many settings as fitted.
    """
    heaviest = sorted((layer for layer in layers if not layer.reason), key=lambda layer: -layer.multiply_adds)
    found = {cell.cell_id: cell for each in settings for layer in heaviest for cell, _ in timing(layer, each).parts}
    return list(found.values())


SHAPE = re.compile(r"(\d+)x(\d+)(?::(\d+))?")
LSTM = re.compile(r"(?:(\d+)x)?(\d+)(?::(\d+))?")


def of_shape(given: str, tokens: int) -> Layer:
    """'3072x768' or '3072x768:12': a linear layer of 3072 outputs and 768 inputs, twelve of them. AdviceError."""
    found = SHAPE.fullmatch(given)
    if found is None:
        raise AdviceError(f"--shape: {given!r} is no shape; accepted: OUTxIN or OUTxIN:COUNT, as 3072x768:12")
    rows, cols, count = (_positive("--shape", given, each) for each in (found[1], found[2], found[3] or "1"))
    name = f"{rows}x{cols}" + (f":{count}" if count > 1 else "")
    return Layer(name, "linear", rows, cols, count, tokens=tokens)


def of_lstm(given: str, batch: int, steps: int) -> Layer:
    """'650', or '400x1150' of another input size, or '650:2': LSTM layers. AdviceError."""
    found = LSTM.fullmatch(given)
    if found is None:
        raise AdviceError(f"--lstm: {given!r} is no size; accepted: HIDDEN, INxHIDDEN or INxHIDDEN:COUNT, as 400x1150")
    hidden = _positive("--lstm", given, found[2])
    into, count = _positive("--lstm", given, found[1] or found[2]), _positive("--lstm", given, found[3] or "1")
    name = f"lstm {into}x{hidden}" + (f":{count}" if count > 1 else "")
    return Layer(name, "lstm", hidden, into, count, batch=batch, steps=steps)


def _positive(option: str, given: str, digits: str) -> int:
    if len(digits) > 10 or not 1 <= int(digits) <= LARGEST_INT:
        raise AdviceError(f"{option}: {given!r} is out of bounds; accepted: sizes from 1 to {LARGEST_INT:,}")
    return int(digits)


def require_candidates(layers: Sequence[Layer], block_sizes: Sequence[int], pad: bool, source: str = "") -> None:
    """AdviceError where no layer of `source` can be block-sparse with any of the block sizes, with what would work."""
    fine = [layer for layer in layers if not layer.reason]
    if not fine:
        why = f"; the first, {layers[0].name}: {layers[0].reason}" if layers else ""
        accepted = "a model with Linear, LSTM or GRU layers"
        raise AdviceError(
            f"{source or 'SOURCE'}: none of {len(layers)} weights can be pruned{why}; accepted: {accepted}"
        )
    settings = [Setting("forward", size, 0.5, pad=pad) for size in block_sizes]
    if not any(timing(layer, each).reason == "" for layer in fine for each in settings):
        first, wanted = fine[0], block_sizes[0]
        fits = nearest_blocks([first.rows, first.cols], wanted)
        sizes = ", ".join(map(str, block_sizes))
        rows, cols = in_blocks((first.rows, first.cols), 1, wanted)
        raise AdviceError(
            f"--block-size: none of {sizes} divides {first.sizes}; accepted: {fits} (the nearest sizes that work), "
            f"or --pad, which fills it up to {rows} and {cols}"
        )
