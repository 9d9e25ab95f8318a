"""wikitext2_chars: WikiText-2 as characters, of the same three files as `wikitext2`.

Spaces, line ends and " <unk> " count as they stand.
The vocabulary is the characters seen AT_LEAST times in the training text; every other one becomes <unk>.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import wikitext2
from bench.data.corpus import UNK, Corpus, Sizes, build_vocabulary

CHARACTERS = {"train": 10_780_437, "valid": 1_120_192, "test": 1_255_018}
AT_LEAST = 100
TYPES = 97  # 96 characters and <unk>

missing = wikitext2.missing


def sizes() -> Sizes:
    return Sizes(**CHARACTERS, vocabulary=TYPES)


def load(folder: Path) -> Corpus:
    """The corpus from `folder`/wikitext-2, downloaded first where a file is missing.

    DataError if a file is not right.
    """
    texts = wikitext2.texts(folder)
    for part, text in texts.items():
        assert len(text) == CHARACTERS[part], (part, len(text))
    vocabulary = [*build_vocabulary(texts["train"], AT_LEAST), UNK]
    assert len(vocabulary) == TYPES, len(vocabulary)
    return Corpus.from_words(texts["train"], texts["valid"], texts["test"], vocabulary, token="character")
