"""Memory that a cell takes: the least, without which it is refused before it begins, and a rough figure for a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.cells import Cell, StorageCell, TimedCell, TrainCell, is_training
from bench.data.corpus import EVAL_BATCH, Sizes, window_lengths
from bench.data.datasets import known_sizes
from bench.data.images import EVAL_EXAMPLES, ImageSizes

GIB = 2**30
FLOAT_BYTES = 4
STATES = {"adam": 2, "asgd": 1, "nt_asgd": 1}  # tensors of a weight's size that an optimizer keeps
PROCESS_BYTES = 600 * 2**20  # rough: of a process that has loaded torch and a corpus
KEPT_AN_OUTPUT = 12  # rough: floats kept for the backward pass, an output of an LSTM layer
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes(device: str) -> int:
    """All the memory there is: of this machine or container with its swap space, or of the GPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(torch.device("cuda")).total_memory)
    limits = [psutil.virtual_memory().total + psutil.swap_memory().total]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or 'max'
            continue
    return min(limits)


def time_steps(tokens: int, limit: int, streams: int) -> int:
    """Time steps of a whole stream of a text of `tokens`, of which the first `limit` are used (0: all)."""
    return min(tokens, limit or tokens) // streams - 1


def largest_window(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """Targets of the largest window that is computed at once: of the first epoch's training, or of an evaluation."""
    if isinstance(sizes, ImageSizes):
        return max(min(cell.batch_size, sizes.train), min(EVAL_EXAMPLES, max(sizes.valid, sizes.test)))
    steps = time_steps(sizes.train, cell.train_tokens, cell.batch_size)
    if cell.bptt_jitter or cell.bptt_halved:
        longest = max(window_lengths(steps + 1, cell.bptt, cell.bptt_jitter, cell.bptt_halved, f"{cell.seed} 1"))
    else:
        longest = min(cell.bptt, steps)
    evaluated = [
        streams * min(cell.bptt, time_steps(tokens, cell.eval_tokens, streams))
        for tokens, streams in ((sizes.valid, EVAL_BATCH), (sizes.test, EVAL_BATCH), (sizes.test, cell.test_batch_size))
    ]
    return max(longest * cell.batch_size, *evaluated)


def parameters_of(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """Parameters of a model, from the settings alone: embedding, decoder, layers."""
    if isinstance(sizes, ImageSizes):
        normed = 2 if cell.batch_norm else 0
        layers = cell.layer_weights + (1 + normed) * sum(cell.layer_widths[1:])
        return layers + sizes.classes * (cell.layer_widths[-1] + 1)
    vocabulary = sizes.vocabulary
    layers = cell.layer_weights + 8 * sum(cell.layer_widths[1:])  # four gates have two biases each
    return vocabulary * cell.embedding_size + cell.decoder_parameters(vocabulary) + layers


def logits_of(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """Logits that every target has at least."""
    return sizes.classes if isinstance(sizes, ImageSizes) else cell.least_logits(sizes.vocabulary)


def least_bytes(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """Bytes below which no run is possible: weights, gradients, the optimizer's states, logits and their logarithms.

    Logits are of the largest window. Activations, buffers and torch itself come on top.
    """
    parameters, states = parameters_of(cell, sizes), STATES.get(cell.optimizer, 1 if cell.momentum else 0)
    return FLOAT_BYTES * (parameters * (2 + states) + 2 * largest_window(cell, sizes) * logits_of(cell, sizes))


def require_memory(cell: TrainCell, sizes: Sizes | ImageSizes) -> None:
    """MemoryError, one line, where a cell certainly takes more memory than there is."""
    needed, there = least_bytes(cell, sizes), memory_bytes(cell.device)
    if needed > there:
        logits = f"{logits_of(cell, sizes):,} logits"
        text = f" x bptt {cell.bptt} x {logits}, in the test test_batch_size {cell.test_batch_size} x as many"
        raise MemoryError(
            f"a step needs more than {needed / GIB:.1f} GiB ({parameters_of(cell, sizes):,} parameters, batch_size "
            f"{cell.batch_size}{text if isinstance(sizes, Sizes) else f' x {logits}'}), and {cell.device} has "
            f"{there / GIB:.1f} GiB"
        )


def require_operands(cell: TimedCell | StorageCell) -> None:
    """MemoryError, one line, where the weights of a cell certainly take more memory than there is."""
    needed, there = cell.operand_bytes(), memory_bytes(cell.device)
    if needed > there:
        sides = cell.sides.format_map(cell.model_dump())
        raise MemoryError(
            f"the weights ({sides}, {cell.dtype}) and their check need more than {needed / GIB:.1f} GiB, "
            f"and {cell.device} has {there / GIB:.1f} GiB"
        )


def rough_bytes(cell: TrainCell, sizes: Sizes | ImageSizes) -> int:
    """What a run may take in all: the least, and on top torch, what the backward pass keeps, copies of the weights."""
    parameters, outputs = parameters_of(cell, sizes), sum(cell.layer_widths[1:])
    copies = parameters * (1 + (cell.selection == "best") + (cell.prunes and cell.rewind != "none"))
    window = largest_window(cell, sizes)
    more = FLOAT_BYTES * (copies + window * (logits_of(cell, sizes) + KEPT_AN_OUTPUT * outputs))
    return PROCESS_BYTES + least_bytes(cell, sizes) + more


def lines(cells: Sequence[Cell], workers: int) -> list[str]:
    """What a plan says of memory: roughly, of the training cells of the CPU; and which cells of the CPU cannot fit."""
    there = memory_bytes("cpu")
    training: list[int] = []
    impossible: list[int] = []
    for cell in cells:
        if cell.device != "cpu":
            continue
        least = cell.operand_bytes()
        if is_training(cell) and (sizes := known_sizes(cell.dataset)) and is_cuttable(cell, sizes):
            least = least_bytes(cell, sizes)
            training.append(rough_bytes(cell, sizes))
        if least > there:
            impossible.append(least)
    said = []
    if training:
        largest = sorted(training)[-workers:]
        together, free = sum(largest), min(there, psutil.virtual_memory().available)
        side = f"{len(largest)} training cells side by side" if len(largest) > 1 else "the largest training cell"
        said.append(
            f"{'warning: ' if together > free else ''}memory: about {together / GIB:.1f} GiB for {side}, "
            f"{free / GIB:.1f} GiB are available"
        )
    if impossible:
        said.append(
            f"warning: memory: {len(impossible)} cell{'s need' if len(impossible) > 1 else ' needs'} more than "
            f"{min(impossible) / GIB:.1f} GiB, and there are {there / GIB:.1f}: out_of_memory before the first step"
        )
    return said


def is_cuttable(cell: TrainCell, sizes: Sizes | ImageSizes) -> bool:
    """Whether every text is long enough for the streams it is cut into."""
    if isinstance(sizes, ImageSizes):
        return True
    limit, streams = cell.eval_tokens, max(EVAL_BATCH, cell.test_batch_size)
    cuts = (
        (sizes.train, cell.train_tokens, cell.batch_size),
        (sizes.valid, limit, EVAL_BATCH),
        (sizes.test, limit, streams),
    )
    return all(time_steps(*each) >= 1 for each in cuts)
