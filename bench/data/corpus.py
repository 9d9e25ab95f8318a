"""Corpora: token streams over one vocabulary, how they are cut into batches, and where their files lie.

torch is imported inside the functions: naming a data set must not load it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.system.folders import NAME, make_private, user_cache
from kernels.system.resources import is_of_disk

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "text:"  # a path behind it names a text of one's own
LANGUAGE, CLASSIFICATION = "language", "classification"  # tasks

DATA_DIR_VARIABLE = "BENCH_DATA_DIR"
EOS, UNK = "<eos>", "<unk>"
EVAL_BATCH = 10  # streams that a text is cut into for evaluation
SHORTEST_WINDOW = 5


class DataError(ValueError):
    """A text that cannot be used as it lies there, or no folder for it; one line that says what to do."""


@dataclass(frozen=True)
class Sizes:
    """Tokens of the three texts of a corpus, and words of its vocabulary."""

    train: int
    valid: int
    test: int
    vocabulary: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three token streams (int64, one dimension each) and the words their numbers stand for.

    sha256: of the vocabulary and the three streams, so that equal numbers mean equal text. token: what one is, word or
    character.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: list[str]
    sha256: str
    token: str = "word"

    @functools.cached_property
    def counts(self) -> Tensor:
        """How often the training text says each word: [vocabulary]."""
        import torch

        return torch.bincount(self.train, minlength=len(self.vocabulary))

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.train), len(self.valid), len(self.test), len(self.vocabulary))

    @classmethod
    def from_words(
        cls, train: Iterable[str], valid: Iterable[str], test: Iterable[str], vocabulary: list[str], token: str = "word"
    ) -> Corpus:
        """Number the words, or characters; one outside the vocabulary becomes <unk>, which must then be in it."""
        import numpy as np
        import torch

        index = {word: number for number, word in enumerate(vocabulary)}
        unknown = index.get(UNK, -1)
        streams = [
            np.fromiter((index.get(word, unknown) for word in words), dtype="<i8") for words in (train, valid, test)
        ]
        if any((stream < 0).any() for stream in streams):
            raise ValueError(f"the text has words outside the vocabulary, which has no {UNK}")
        digest = hashlib.sha256("\n".join(vocabulary).encode())
        for stream in streams:
            digest.update(len(stream).to_bytes(8, "little") + stream.tobytes())
        train_stream, valid_stream, test_stream = (torch.from_numpy(stream) for stream in streams)
        return cls(train_stream, valid_stream, test_stream, vocabulary, digest.hexdigest(), token)


def build_vocabulary(words: Iterable[str], at_least: int = 1) -> list[str]:
    """The words seen `at_least` times, the most frequent first, ties in alphabetical order."""
    counts = Counter(words)
    return sorted((word for word in counts if counts[word] >= at_least), key=lambda word: (-counts[word], word))


def data_dir() -> Path:
    """The folder datasets are read from and downloaded to: $BENCH_DATA_DIR, else the user's cache folder."""
    if chosen := os.environ.get(DATA_DIR_VARIABLE):
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise DataError(f"{DATA_DIR_VARIABLE}: {chosen}: no such home folder; accepted: a path without ~") from None
    try:
        return user_cache()
    except RuntimeError:  # no HOME, and a user without an entry, as in containers
        return Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"


def make_folder(folder: Path) -> None:
    """Make a folder for the files of a data set; in the user's cache, where code is kept too, it is shut to others."""
    if os.environ.get(DATA_DIR_VARIABLE):
        folder.mkdir(parents=True, exist_ok=True)
    else:
        make_private(folder)


def fetch(url: str, folder: Path, name: str, known_hash: str | None = None) -> Path:
    """A file from `url` in `folder` by that name; in many ways an exception where it cannot be had, or is another."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(timeout=30)
    return Path(pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder, downloader=downloader))


def download_into(home: Path, sources: Iterable[Callable[[Path], dict[str, Path]]]) -> bool:
    """Put the files of the first source that has them all into `home`; whether one had. OSError without room for them.

    A source gives, for a folder to write to, the right files by name, or an exception.
    """
    make_folder(home)
    for source in sources:
        with tempfile.TemporaryDirectory(dir=home, prefix=".download-") as scratch:
            try:
                found = source(Path(scratch))
            except Exception as error:  # in many ways (network, HTTP status, not a zip): the next one is tried
                if is_of_disk(error):
                    raise
                continue
            for name, path in found.items():
                path.replace(home / name)
            return True
    return False


def batchify(tokens: Tensor, batch_size: int) -> Tensor:
    """Parallel streams of contiguous text, the remainder dropped. tokens: [n] -> [n // batch_size, batch_size]."""
    length = len(tokens) // batch_size
    if length < 2:
        raise ValueError(f"{len(tokens)} tokens are too few for {batch_size} streams: each needs at least 2")
    return tokens[: length * batch_size].view(batch_size, length).t().contiguous()


def window_lengths(length: int, bptt: int, jitter: float = 0.0, halved: float = 0.0, seed: str = "") -> list[int]:
    """Lengths of the windows cut from streams of `length` tokens: bptt each, the last what is left.

    jitter: drawn from N(bptt, jitter) instead, rounded, at least SHORTEST_WINDOW.
    halved: share of windows around half of bptt (Merity et al., 1708.02182, section 4.1).
    The same numbers give the same lengths, everywhere.
    """
    draw, left, lengths = random.Random(seed), length - 1, []
    while left > 0:
        mean = max(1, bptt // 2) if halved and draw.random() < halved else bptt
        wanted = max(SHORTEST_WINDOW, round(draw.gauss(mean, jitter))) if jitter else mean
        lengths.append(min(wanted, left))
        left -= lengths[-1]
    return lengths


def cut(streams: Tensor, lengths: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive (inputs, targets) of these lengths, each [time, batch]."""
    start = 0
    for length in lengths:
        yield streams[start : start + length], streams[start + 1 : start + length + 1]
        start += length


def windows(streams: Tensor, bptt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive (inputs, targets), each [time <= bptt, batch].

    Together every token but the first is a target once.
    """
    return cut(streams, window_lengths(streams.shape[0], bptt))


def epoch_slice(tokens: Tensor, size: int, epoch: int) -> Tensor:
    """The tokens of one epoch (1 for the first): all where size is 0, else the next `size`, starting over at the end.

    Successive slices let a short run see as much different text as it has time for. tokens: [n] -> [min(size, n)].
    """
    if size == 0 or size >= len(tokens):
        return tokens
    return tokens.roll(-((epoch - 1) * size % len(tokens)))[:size]
