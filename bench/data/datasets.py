"""Data sets by name: what is learned from each, what of it is missing, how large it is, and the data themselves.

Naming one loads neither torch nor a file.
"""

from __future__ import annotations

import functools
from os import PathLike
from pathlib import Path
from types import ModuleType

from bench.data import text
from bench.data.corpus import LANGUAGE, TEXT, Corpus, Sizes
from bench.data.images import Images, ImageSizes
from bench.data.text import Source
from kernels.registry import Catalogue


class Datasets(Catalogue):
    """The data sets by name, and any text as `text:PATH`."""

    def accepts(self, name: str) -> bool:
        return (name.startswith(TEXT) and len(name) > len(TEXT)) or super().accepts(name)

    def accepted(self) -> list[str]:
        return [*super().accepted(), f"{TEXT}PATH"]

    def module(self, name: str) -> ModuleType:
        return text if name.startswith(TEXT) else super().module(name)


DATASETS = Datasets("dataset", "bench.data", "load", helpers=("corpus", "datasets", "images", "settings", "text"))


def load_data(source: str | Source, folder: str | PathLike[str]) -> Corpus | Images:
    """One data set, by its name or as a text of one's own is read; numbered once in a process.

    ValueError for an unknown name, DataError for unusable files.
    """
    return _load_data(source, Path(folder))


@functools.cache
def _load_data(source: str | Source, folder: Path) -> Corpus | Images:
    data: Corpus | Images = DATASETS[source](folder) if isinstance(source, str) else text.load(source)
    return data


def load_corpus(source: str | Source, folder: str | PathLike[str]) -> Corpus:
    """`load_data` of a text; ValueError for a data set that is none."""
    if task_of(str(source)) != LANGUAGE:
        raise ValueError(f"dataset: {source} is no text; accepted: {', '.join(names_of(LANGUAGE))}")
    data = load_data(source, folder)
    assert isinstance(data, Corpus)
    return data


@functools.cache
def task_of(name: str) -> str:
    """What is learned from a data set: LANGUAGE, or what its module says (`TASK`). Every training cell asks."""
    return str(getattr(DATASETS.module(name), "TASK", LANGUAGE))


def names_of(task: str) -> list[str]:
    """The data sets of a task."""
    return [name for name in DATASETS if task_of(name) == task]


def missing_files(name: str, folder: str | PathLike[str]) -> str | None:
    """What of a data set is not in `folder` yet, as its module says (`missing(folder)`), or None.

    Some data sets need no files.
    """
    missing = getattr(DATASETS.module(name), "missing", None)
    absent: str | None = missing(Path(folder)) if missing else None
    return absent


@functools.cache
def known_sizes(name: str) -> Sizes | ImageSizes | None:
    """The sizes of a data set, where its module can tell them (`sizes()`) without torch or a file; else None."""
    module = DATASETS.module(name)
    sizes: Sizes | ImageSizes | None = module.sizes() if hasattr(module, "sizes") else None
    return sizes
