"""How long cells will take: a rough count of operations, scaled by what cells of the same kind did take."""

from __future__ import annotations

from collections.abc import Iterable

from bench.cells import CHECK_SECONDS, Cell, TrainCell, is_training
from bench.data.corpus import Sizes, known_sizes
from bench.data.images import ImageSizes
from bench.measuring.machine import physical_cores

FLOPS_PER_SECOND = 20e9  # of one thread; only a start, corrected by the first cells that end
GPU_FLOPS_PER_SECOND = 20e12  # of a GPU, float64 for the reference included
GPU_TRAINING = {"ieee": 30e12, "tf32": 150e12, "bfloat16": 300e12}  # operations a second, by precision
GPU_TIME_STEP = 15e-6  # seconds that a time step of one layer takes at least; the backward pass has two of them
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
    return cell.kind, cell.device


def rough_seconds(cell: Cell) -> float:
    """What a cell would take at FLOPS_PER_SECOND and density 1."""
    rate = FLOPS_PER_SECOND * (cell.threads or physical_cores())
    if is_training(cell):
        return _training_seconds(cell, GPU_TRAINING[cell.precision] if cell.device == "cuda" else rate)
    return cell.seconds_at(GPU_FLOPS_PER_SECOND if cell.device == "cuda" else rate)


def _training_seconds(cell: TrainCell, rate: float) -> float:
    sizes = known_sizes(cell.dataset) or UNTOLD
    if isinstance(sizes, ImageSizes):
        weights = cell.layer_weights + cell.layer_widths[-1] * sizes.classes
        seen = 3 * sizes.train + sizes.valid + sizes.test
        steps = cell.epochs * sizes.train / cell.batch_size
        return CHECK_SECONDS + steps * STEP_SECONDS + cell.epochs * 2 * weights * seen / rate
    train = cell.train_tokens or sizes.train
    evaluated = 2 * cell.eval_tokens or sizes.valid + sizes.test
    words = cell.least_logits(sizes.vocabulary)
    per_token = 2 * (cell.layer_weights + words * cell.layer_widths[-1])
    # the backward pass costs twice the forward pass
    seconds = CHECK_SECONDS + cell.epochs * per_token * (3 * train + evaluated) / rate
    if cell.device == "cuda":
        time_steps = cell.epochs * (3 * train / cell.batch_size + evaluated / 10) + evaluated / 2 / cell.test_batch_size
        seconds += GPU_TIME_STEP * cell.num_layers * time_steps
    return seconds


def spoken(seconds: float) -> str:
    """'40 s', '5 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
