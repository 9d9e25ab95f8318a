"""pydoc: real English that every CPython carries, Python's own language reference as `help()` shows it. No download.

Lower-cased words, numbers and punctuation are tokens (a run of one punctuation mark is one token); every line that is
not blank ends with <eos>. The topics come in alphabetical order; of each one the first 80 % of the lines are training
text, the next 10 % validation and the last 10 % test, so that all three speak of the same things. A word that the
training text has only once is <unk>. The text differs a little between Python versions: rows carry its sha256.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.data.corpus import EOS, UNK, Corpus, Sizes, build_vocabulary

TOKEN = re.compile(r"[^\W\d]+|\d+|([^\w\s])\1*")


def tokenise(line: str) -> list[str]:
    """The tokens of one line, <eos> included."""
    return [match.group() for match in TOKEN.finditer(line.lower())] + [EOS]


def words() -> tuple[list[str], list[str], list[str], list[str]]:
    """The words of the three texts, and the vocabulary."""
    from pydoc_data.topics import topics

    train: list[str] = []
    valid: list[str] = []
    test: list[str] = []
    for name in sorted(topics):
        lines = [tokenise(line) for line in topics[name].splitlines() if line.strip()]
        first, second = len(lines) * 8 // 10, len(lines) * 9 // 10
        for words, part in ((train, lines[:first]), (valid, lines[first:second]), (test, lines[second:])):
            words.extend(word for line in part for word in line)
    return train, valid, test, [UNK, *build_vocabulary(train, at_least=2)]


def sizes() -> Sizes:
    return Sizes(*map(len, words()))


def load(folder: Path) -> Corpus:  # noqa: ARG001  (nothing lies in a folder here)
    """The corpus; `folder` is not used."""
    return Corpus.from_words(*words())
