"""How long cells will take: a rough count of operations, scaled by what cells of the same kind did take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.cells import CHECK_SECONDS, Cell, TrainCell, is_training, number
from bench.data.corpus import Sizes
from bench.data.datasets import known_sizes
from bench.data.images import ImageSizes
from bench.measuring.machine import physical_cores
from bench.measuring.memory import FLOAT_BYTES, KEPT_AN_OUTPUT, STATES, logits_of, parameters_of

FLOPS_PER_SECOND = 20e9  # of one thread; only a start, corrected by the first cells that end
GPU_FLOPS_PER_SECOND = 20e12  # of a GPU, float64 for the reference included
GPU_TRAINING = {"ieee": 30e12, "tf32": 150e12, "bfloat16": 300e12}  # operations a second, by precision
GPU_TIME_STEP = 15e-6  # seconds that a time step of one layer takes at least; the backward pass has two of them
ROOF = {"ieee": 50e12, "tf32": 400e12, "bfloat16": 720e12}  # operations a second that dense products reach on an H100
ROOF_BYTES = 3e12  # a second that a copy in its memory reaches
COMPILE_SECONDS = {"none": 0.0, "default": 20.0, "reduce-overhead": 40.0}  # by torch.compile, at a first time
STEP_SECONDS = 1e-3  # that a step of a small classifier takes at least
UNTOLD = Sizes(train=90_000, valid=11_000, test=11_000, vocabulary=5_000)  # where a data set does not tell its own


class Pace:
    """Seconds a rough second takes, by kind of cell and device; learns from every cell that ends.

    ended: cells and the seconds that they took, to begin with.
    """

    def __init__(self, ended: Iterable[tuple[Cell, float]] = ()) -> None:
        self.cells = 0
        self._rough: dict[tuple[str, str], float] = {}
        self._measured: dict[tuple[str, str], float] = {}
        for cell, seconds in ended:
            self.learn(cell, seconds)

    def learn(self, cell: Cell, seconds: float) -> None:
        self.cells += 1
        key = _likeness(cell)
        self._rough[key] = self._rough.get(key, 0.0) + rough_seconds(cell)
        self._measured[key] = self._measured.get(key, 0.0) + seconds

    def seconds(self, cells: Iterable[Cell], workers: int = 1) -> float:
        """Time for `cells`: timings one after the other, training `workers` side by side."""
        total = 0.0
        for cell in cells:
            key = _likeness(cell)
            factor = self._measured[key] / self._rough[key] if key in self._rough else 1.0
            total += factor * rough_seconds(cell) / (workers if cell.trains else 1)
        return total


def _likeness(cell: Cell) -> tuple[str, str]:
    """Cells of one likeness are estimated from each other."""
    return cell.kind + (" compiled" if is_training(cell) and cell.canonical().compile != "none" else ""), cell.device


def rough_seconds(cell: Cell) -> float:
    """What a cell would take at FLOPS_PER_SECOND and density 1."""
    rate = FLOPS_PER_SECOND * (cell.threads or physical_cores())
    if is_training(cell):
        return _training_seconds(cell, GPU_TRAINING[cell.precision] if cell.device == "cuda" else rate)
    return cell.seconds_at(GPU_FLOPS_PER_SECOND if cell.device == "cuda" else rate)


def _targets(cell: TrainCell, sizes: Sizes | ImageSizes) -> tuple[int, int]:
    """What is learned in an epoch, and what its evaluations ask for: words or examples."""
    if isinstance(sizes, ImageSizes):
        return sizes.train, sizes.valid + sizes.test
    return cell.train_tokens or sizes.train, 2 * cell.eval_tokens or sizes.valid + sizes.test


def _operations(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """Of an epoch, dense, a multiply-add being two; the backward pass costs twice the forward pass."""
    train, evaluated = _targets(cell, sizes)
    weights = cell.layer_weights + logits_of(cell, sizes) * cell.layer_widths[-1]
    return 2 * weights * (3 * train + evaluated)


def _training_seconds(cell: TrainCell, rate: float) -> float:
    sizes = known_sizes(cell.dataset) or UNTOLD
    train, evaluated = _targets(cell, sizes)
    seconds = CHECK_SECONDS + COMPILE_SECONDS[cell.canonical().compile] + cell.epochs * _operations(cell, sizes) / rate
    if isinstance(sizes, ImageSizes):
        seconds += cell.epochs * train / cell.batch_size * STEP_SECONDS
    elif cell.device == "cuda":
        time_steps = cell.epochs * (3 * train / cell.batch_size + evaluated / 10) + evaluated / 2 / cell.test_batch_size
        seconds += GPU_TIME_STEP * cell.num_layers * time_steps
    return seconds


def roof_seconds(cell: TrainCell) -> float:
    """The least that training takes on an H100, dense: the longer one of its arithmetic and of its bytes.

    Bytes: of each step the weights, gradients and the optimizer's states, read and written; of each target its logits
    and what an LSTM's outputs keep for the backward pass, written and read. That time steps wait for each other is no
    part of it.
    """
    sizes = known_sizes(cell.dataset) or UNTOLD
    train, evaluated = _targets(cell, sizes)
    window = cell.batch_size * (cell.bptt if cell.is_recurrent else 1)
    outputs = logits_of(cell, sizes) + KEPT_AN_OUTPUT * sum(cell.layer_widths[1:])
    states = STATES.get(cell.optimizer, 1 if cell.momentum else 0)
    a_step = parameters_of(cell, sizes) * (2 + 2 + 2 * states)
    moved = FLOAT_BYTES * (a_step * train / window + 2 * (train + evaluated) * outputs)
    return cell.epochs * max(_operations(cell, sizes) / ROOF[cell.precision], moved / ROOF_BYTES)


def by_worth(cells: Sequence[TrainCell]) -> tuple[list[TrainCell], list[TrainCell]]:
    """The first of each variant in the order of the file, which tells the most, and those that repeat it by a seed."""
    seen: Counter[str] = Counter()
    first: list[TrainCell] = []
    again: list[TrainCell] = []
    for cell in cells:
        variant = cell.model_copy(update={"seed": 0}).model_dump_json()
        (again if seen[variant] else first).append(cell)
        seen[variant] += 1
    return first, again


def roof_lines(cells: Iterable[Cell]) -> list[str]:
    """What a plan says of training on a GPU: the least time by its roof, what is worth most first."""
    trained = [cell for cell in cells if is_training(cell) and cell.device == "cuda"]
    if not trained:
        return []
    first, again = by_worth(trained)
    line = f"roof: an H100 takes at least {spoken(sum(map(roof_seconds, first)))} for {number(len(first), 'variant')}"
    if again:
        line += f", each once, then {spoken(sum(map(roof_seconds, again)))} for {number(len(again), 'more seed')}"
    rates = ", ".join(f"{name} {ROOF[name] / 1e12:g}" for name in sorted({cell.precision for cell in trained}))
    return [f"{line} (TFLOP/s: {rates}; {ROOF_BYTES / 1e12:g} TB/s; dense, and no time step waiting for another)"]


def spoken(seconds: float) -> str:
    """'40 s', '5 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
