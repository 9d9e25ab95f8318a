"""text: a text of one's own, `dataset = "text:PATH"`, as words or characters.

PATH is a file, whose last tokens are kept for validation and test, or a folder with three files, which are told by
`train`, `valid` (or `val`, `dev`) and `test` in their names, as of WikiText: wiki.train.tokens. A word is what white
space separates, and every line, blank ones too, ends with <eos>; characters are those of the text, line ends among
them. The vocabulary is that of all parts; with a minimum count it is what the training text has at least as often, and
everything else is <unk>.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.data.corpus import EOS, TEXT, UNK, Corpus, DataError, build_vocabulary

PARTS = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
SUFFIXES = (".tokens", ".txt", ".text", "")
FEWEST = 10  # tokens of a part, below which it is none


class Source(NamedTuple):
    """Where a text lies and how it is read: the settings of a cell that `load_data` goes by."""

    path: str
    tokens: str = "word"
    min_count: int = 1
    valid_share: float = 0.1
    test_share: float = 0.1

    def __str__(self) -> str:
        """The name of the data set, as a sweep file has it."""
        return f"{TEXT}{self.path}"


def load(source: Source) -> Corpus:
    """The corpus. DataError, one line with the file, where it cannot be used."""
    path = Path(source.path)
    parts = _three_files(path, source) if path.is_dir() else _cut(path, source)
    for part, tokens in zip(PARTS, parts, strict=True):
        if len(tokens) < FEWEST:
            few = f"{len(tokens)} {source.tokens}s" if tokens else f"no {source.tokens}"
            raise DataError(f"{path}: the {part} text has {few}; accepted: {FEWEST} or more, or another share")
    if source.min_count == 1:
        vocabulary = build_vocabulary(token for part in parts for token in part)
    else:
        vocabulary = build_vocabulary(parts[0], source.min_count)
        vocabulary += [] if UNK in vocabulary else [UNK]
    if len(vocabulary) < 2:
        seen = f"no {source.tokens} {source.min_count} times" if source.min_count > 1 else f"one {source.tokens} alone"
        raise DataError(f"{path}: the train text has {seen}; accepted: a text, or a lower min_count")
    train, valid, test = parts
    return Corpus.from_words(train, valid, test, vocabulary, "character" if source.tokens == "char" else "word")


def _three_files(folder: Path, source: Source) -> list[Sequence[str]]:
    return [_tokens(_part(folder, names), source.tokens) for names in PARTS.values()]


def _part(folder: Path, names: Sequence[str]) -> Path:
    """The one file of a folder whose name says that it is a part."""
    files = [each for each in sorted(folder.iterdir()) if each.is_file() and not each.name.startswith(".")]
    found = [each for each in files if each.suffix in SUFFIXES and any(name in each.stem.lower() for name in names)]
    if len(found) != 1:
        those = ", ".join(each.name for each in found) or "none"
        wanted = f"one file of train, valid and test each, as {names[0]}.txt or wiki.{names[0]}.tokens"
        raise DataError(f"{folder}: files of the {names[0]} text: {those}; accepted: {wanted}")
    return found[0]


def _cut(path: Path, source: Source) -> list[Sequence[str]]:
    """The tokens of one file: its first part for training, then validation, the last for test."""
    tokens = _tokens(path, source.tokens)
    test = round(len(tokens) * source.test_share)
    valid = round(len(tokens) * source.valid_share)
    train = len(tokens) - valid - test
    return [tokens[:train], tokens[train : train + valid], tokens[train + valid :]]


def _tokens(path: Path, kind: str) -> Sequence[str]:
    text = _read(path)
    return text if kind == "char" else [word for line in text.splitlines() for word in [*line.split(), EOS]]


def _read(path: Path) -> str:
    """What a file says. DataError, one line, where it is none that can be read as text."""
    accepted = "accepted: a file of UTF-8 text, or a folder of three"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}; {accepted}") from None
    if not content.strip():
        raise DataError(f"{path}: is empty; {accepted}")
    if b"\0" in content:
        raise DataError(f"{path}: is binary, it has a zero byte at {content.index(0)}; {accepted}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8, at byte {error.start}; {accepted}") from None
