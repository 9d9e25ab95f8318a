"""What a training cell needs of its text and of memory, known before its first step: nothing is trained to be thrown away."""

from __future__ import annotations

from pathlib import Path

import psutil

from bench.cells import TrainCell
from bench.data.corpus import Corpus
from bench.evaluation import EVAL_BATCH

FLOAT_BYTES = 4
STATES = {"adam": 2, "asgd": 1, "nt_asgd": 1}  # tensors of a weight's size that an optimizer keeps
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def require_text(cell: TrainCell, corpus: Corpus) -> None:
    """ValueError, one line naming the field, where a part of the text is too short for the streams it is cut into."""
    limited = cell.eval_tokens or None
    batch, test_batch = ("batch_size", cell.batch_size), ("test_batch_size", cell.test_batch_size)
    parts = (
        ("training", len(corpus.train[: cell.train_tokens or None]), "train_tokens", batch),
        ("validation", len(corpus.valid[:limited]), "eval_tokens", ("evaluation", EVAL_BATCH)),
        ("test", len(corpus.test[:limited]), "eval_tokens", ("evaluation", EVAL_BATCH)),
        ("test", len(corpus.test[:limited]), "eval_tokens", test_batch),
    )
    for part, tokens, cut_by, (field, streams) in parts:
        if tokens < 2 * streams:
            raise ValueError(
                f"{field}: {streams} streams need {2 * streams} tokens of the {part} text, which has {tokens} here "
                f"(dataset {cell.dataset}, {cut_by} {getattr(cell, cut_by)}); accepted: up to {tokens // 2} streams"
            )


def least_bytes(cell: TrainCell, parameters: int, vocabulary: int) -> int:
    """Bytes below which no step is possible: weights, gradients, the optimizer's states, a window's logits and their gradient.

    Activations, buffers and torch itself come on top.
    """
    states = STATES.get(cell.optimizer, 1 if cell.momentum else 0)
    window = cell.bptt * cell.batch_size
    return FLOAT_BYTES * (parameters * (2 + states) + 2 * window * vocabulary)


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


def require_memory(cell: TrainCell, parameters: int, vocabulary: int) -> None:
    """MemoryError, one line, where a step certainly takes more memory than there is."""
    needed, there = least_bytes(cell, parameters, vocabulary), memory_bytes(cell.device)
    if needed > there:
        raise MemoryError(
            f"a step needs more than {needed / 2**30:.1f} GiB ({parameters:,} parameters, batch_size {cell.batch_size} x "
            f"bptt {cell.bptt} x {vocabulary:,} words of logits), and {cell.device} has {there / 2**30:.1f} GiB"
        )
