"""wikitext2: word-level WikiText-2 (Merity et al., 1609.07843; CC BY-SA 3.0), tokenised, with <unk>; never the raw one.

Read from `<folder>/wikitext-2/wiki.{train,valid,test}.tokens`, or downloaded there.
A word is what white space separates, every line (blank ones too) ends with <eos>, and the vocabulary is that of all
three files, as everybody counts it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

from bench.data.corpus import (
    DATA_DIR_VARIABLE,
    EOS,
    Corpus,
    DataError,
    Sizes,
    build_vocabulary,
    download_into,
    fetch,
)

PARTS = ("train", "valid", "test")
TOKENS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
TYPES = 33_278

# sha256 of the lines in sorted order: copies of the training file differ in the order of their articles.
SORTED_SHA256 = {
    "train": "ceb07e5c60b8443f5bac85fae2607a570f30cce603b18b5ea2bcac566a35ab50",
    "valid": "53b0620ab6e51b740fc43c845024f14db28dd94c3dc44bb98b54387891590312",
    "test": "b10496346cdb6594df5d4cd4d6b762095a31a57b4b5bb056dbe283aa8a97881d",
}
# The files as they are; known for every copy of valid and test, and the order of the training text does matter.
SHA256 = {
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}

FILES_MIRROR = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/{part}.txt"
ARCHIVE_MIRRORS = (
    "https://wikitext.smerity.com/wikitext-2-v1.zip",
    "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
)


def file_name(part: str) -> str:
    return f"wiki.{part}.tokens"


def fault(part: str, content: bytes) -> str | None:
    """Why `content` is not the named part of WikiText-2, or None."""
    if part in SHA256:
        right = hashlib.sha256(content).hexdigest() == SHA256[part]
    else:
        lines = sorted(content.splitlines(keepends=True))
        right = hashlib.sha256(b"".join(lines)).hexdigest() == SORTED_SHA256[part]
    return None if right else f"{len(content)} bytes with another sha256 than WikiText-2's {part} text"


def from_files(scratch: Path) -> dict[str, Path]:
    """The three files from the mirror that keeps them unpacked."""
    return {part: fetch(FILES_MIRROR.format(part=part), scratch, file_name(part)) for part in PARTS}


def from_archive(url: str, scratch: Path) -> dict[str, Path]:
    """The three files from a copy of the original archive."""
    import zipfile

    with zipfile.ZipFile(fetch(url, scratch, "wikitext-2-v1.zip")) as archive:
        return {part: Path(archive.extract(f"wikitext-2/{file_name(part)}", scratch)) for part in PARTS}


def _verified(source: Callable[[Path], dict[str, Path]], scratch: Path) -> dict[str, Path]:
    """The files of a source by their names; DataError where one is another."""
    found = source(scratch)
    for part, path in found.items():
        if wrong := fault(part, path.read_bytes()):
            raise DataError(wrong)
    return {file_name(part): path for part, path in found.items()}


def download(home: Path) -> None:
    """Put verified files into `home` from the first mirror that works.

    DataError with what to do where none does; OSError where the disk has no room for them.
    """
    sources: list[Callable[[Path], dict[str, Path]]] = [from_files]
    sources += [functools.partial(from_archive, url) for url in ARCHIVE_MIRRORS]
    if not download_into(home, [functools.partial(_verified, source) for source in sources]):
        names = ", ".join(file_name(part) for part in PARTS)
        raise DataError(
            f"its text could not be downloaded; put {names} into {home}, "
            f"or set {DATA_DIR_VARIABLE} to a folder that holds them in wikitext-2"
        )


def missing(folder: Path) -> str | None:
    """What a run would have to download, or None."""
    absent = [file_name(part) for part in PARTS if not (folder / "wikitext-2" / file_name(part)).is_file()]
    return f"{', '.join(absent)}; a run downloads them" if absent else None


def sizes() -> Sizes:
    return Sizes(**TOKENS, vocabulary=TYPES)


def texts(folder: Path) -> dict[str, str]:
    """The three texts as they are in `folder`/wikitext-2, downloaded first where a file is missing.

    DataError if a file is not right.
    """
    home, found = folder / "wikitext-2", {}
    if missing(folder):
        download(home)
    for part in PARTS:
        content = (home / file_name(part)).read_bytes()
        if wrong := fault(part, content):
            raise DataError(f"{home / file_name(part)} is corrupt ({wrong}); delete it to have it downloaded again")
        found[part] = content.decode()
    return found


def load(folder: Path) -> Corpus:
    """The corpus from `folder`/wikitext-2, downloaded first where a file is missing.

    DataError if a file is not right.
    """
    words: dict[str, list[str]] = {}
    for part, text in texts(folder).items():
        words[part] = [word for line in text.splitlines() for word in [*line.split(), EOS]]
        assert len(words[part]) == TOKENS[part], (part, len(words[part]))
    vocabulary = build_vocabulary(word for part in PARTS for word in words[part])
    assert len(vocabulary) == TYPES, len(vocabulary)
    return Corpus.from_words(words["train"], words["valid"], words["test"], vocabulary)
