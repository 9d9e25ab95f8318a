"""What a training cell needs of its text and of its export: known before its first step, that none is for nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cells import Cell, TrainCell, is_training, number
from bench.data.corpus import EVAL_BATCH, DataError, Sizes, data_dir
from bench.data.datasets import known_sizes, missing_files
from bench.data.images import ImageSizes
from bench.measuring.machine import physical_cores, processors
from bench.measuring.memory import time_steps
from bench.storing.parquet import require_pair
from kernels.system.driver import has_no_gpu
from kernels.system.threads import LIMIT, limit


def text_fault(cell: TrainCell, sizes: Sizes) -> str | None:
    """One line naming the field where a part of the text is too short for the streams it is cut into, or None.

    The field is that of the streams, where fewer of them would do, else that of the tokens, where more of them are
    there.
    """
    parts = (
        ("training", sizes.train, "train_tokens", "batch_size"),
        ("validation", sizes.valid, "eval_tokens", None),
        ("test", sizes.test, "eval_tokens", None),
        ("test", sizes.test, "eval_tokens", "test_batch_size"),
    )
    for part, tokens, cut_by, cut_into in parts:
        limit: int = getattr(cell, cut_by)
        streams: int = EVAL_BATCH if cut_into is None else getattr(cell, cut_into)
        if time_steps(tokens, limit, streams) < 1:
            used = min(tokens, limit or tokens)
            if cut_into is not None and used >= 2:
                field, accepted = cut_into, f"up to {used // 2} streams"
            elif tokens >= 2 * streams:
                field, accepted = cut_by, f"{2 * streams} tokens or more, or 0 for all"
            else:
                field, accepted = "dataset", f"one with {2 * streams} tokens or more in each text"
            return (
                f"{field}: {streams} streams need {2 * streams} tokens of the {part} text, which has {used} here "
                f"(dataset {cell.dataset}, {cut_by} {limit}); accepted: {accepted}"
            )
    return None


def decoder_fault(cell: TrainCell, sizes: Sizes) -> str | None:
    """One line naming the field where the adaptive softmax leaves no word to its last cluster, or None."""
    if cell.decoder == "tied" or cell.cutoffs[-1] < sizes.vocabulary:
        return None
    field = "second_cutoff" if cell.second_cutoff else "cutoff"
    words = f"{cell.cutoffs[-1]} leaves no cluster of the {sizes.vocabulary} words of {cell.dataset}"
    return f"{field}: {words}; accepted: fewer than these"


def batch_fault(cell: TrainCell, sizes: ImageSizes) -> str | None:
    """One line naming the field where batch normalisation would see a batch of one example, or None."""
    if not cell.batch_norm or sizes.train % cell.batch_size != 1 % cell.batch_size:
        return None
    alone = f"{cell.batch_size} leaves a batch of one of the {sizes.train} examples of {cell.dataset}"
    return f"batch_size: {alone}, which batch_norm cannot normalise; accepted: another, or batch_norm = false"


def example_fault(cell: TrainCell, sizes: ImageSizes) -> str | None:
    """One line naming the data set where a part of it has no example, or None."""
    parts = {"training": sizes.train, "validation": sizes.valid, "test": sizes.test}
    empty = [part for part, examples in parts.items() if not examples]
    said = f"{cell.dataset} has no {empty[0]} example" if empty else ""
    return f"dataset: {said}; accepted: one with examples in each part" if empty else None


def data_fault(cell: TrainCell, sizes: Sizes | ImageSizes) -> str | None:
    """One line naming the field where the data are not enough for a cell, or None."""
    if isinstance(sizes, ImageSizes):
        return example_fault(cell, sizes) or batch_fault(cell, sizes)
    return text_fault(cell, sizes) or decoder_fault(cell, sizes)


def require_data(cell: TrainCell, sizes: Sizes | ImageSizes) -> None:
    """ValueError where a part of the text is too short, or has too few words, or a batch has too few examples."""
    if fault := data_fault(cell, sizes):
        raise ValueError(fault)


def data_notes(cell: TrainCell, sizes: Sizes | ImageSizes) -> Iterator[str]:
    """Settings that ask for more than there is: such a cell runs, on what there is."""
    if isinstance(sizes, ImageSizes):
        if cell.batch_size > sizes.train:
            yield f"batch_size: {cell.dataset} has {sizes.train} examples, not {cell.batch_size}: one step an epoch"
        return
    if cell.train_tokens > sizes.train:
        asked, said = cell.train_tokens, "all are read in each epoch"
        yield f"train_tokens: the training text has {sizes.train} tokens, not {asked}: {said}"
    evaluated = max(sizes.valid, sizes.test)
    if cell.eval_tokens > evaluated:
        asked, said = cell.eval_tokens, "all are used"
        yield f"eval_tokens: no text to evaluate has more than {evaluated} tokens, asked for are {asked}: {said}"
    steps = time_steps(sizes.train, cell.train_tokens, cell.batch_size)
    if cell.bptt > steps:
        said = f"have {steps} time steps, fewer than {cell.bptt}: one window an epoch"
        yield f"bptt: {cell.batch_size} training streams {said}"


def thread_note(cell: Cell) -> str | None:
    """One line where a cell asks for more threads than can run at once here: they run in turns, or are fewer."""
    asked, here, most = cell.threads or physical_cores(), processors(), limit()
    if most is not None and asked > most:
        return f"threads: {asked} asked for, {LIMIT} allows {most}: such a cell runs on fewer"
    if asked > here:
        said = "they take turns, and its times are of that"
        return f"threads: {asked} asked for, {number(here, 'processor')} to use: {said}"
    return None


def thread_lines(cells: Sequence[Cell]) -> list[str]:
    """A line for each way in which cells ask for more threads than there are."""
    found = Counter(note for note in map(thread_note, cells) if note)
    return [f"warning: {note} ({number(count)})" for note, count in found.items()]


def place_lines(cells: Sequence[Cell]) -> list[str]:
    """What is not here that cells need: a GPU, files of a data set."""
    found = []
    on_gpu = sum(cell.device == "cuda" for cell in cells)
    if on_gpu and has_no_gpu():
        found.append(
            "note: 1 cell needs a GPU; there is none here: it ends unsupported"
            if on_gpu == 1
            else f"note: {on_gpu} cells need a GPU; there is none here: they end unsupported"
        )
    for name in sorted({cell.dataset for cell in cells if is_training(cell)}):
        try:
            folder = data_dir()
        except DataError as error:
            return [*found, f"warning: {error}"]
        if missing_files(name, folder):
            found.append(f"note: dataset {name} is not in {folder}; run downloads it")
    return found


def lines(cells: Sequence[Cell]) -> list[str]:
    """What a plan says of the place, of threads, and of texts whose sizes are known without reading them."""
    found: Counter[str] = Counter()
    for cell in cells:
        if is_training(cell) and (sizes := known_sizes(cell.dataset)):
            fault = data_fault(cell, sizes)
            found.update(
                [f"warning: will fail: {fault}"] if fault else [f"note: {each}" for each in data_notes(cell, sizes)]
            )
    return place_lines(cells) + thread_lines(cells) + [f"{line} ({number(count)})" for line, count in found.items()]


def require_writable(export: Path) -> None:
    """ValueError, one line, where no file can be written to `export`."""
    try:
        require_pair(export)
        with tempfile.TemporaryFile(dir=export.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"export: {export}: {error.strerror or error}; accepted: a file in a folder that can be written"
        ) from None
