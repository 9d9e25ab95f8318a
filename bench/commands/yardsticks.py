"""What counting reaches on the texts of sweeps: perplexities of n-grams, the yardsticks beside which networks stand.

<out>/yardsticks.parquet holds a row for each text and order, with its checksum beside it. A text is what the networks
of a sweep are trained on (`bench.data.corpus.epoch_slice`, all epochs) and evaluated on. A text that is there already
keeps its rows.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench.cells import is_training
from bench.commands.ngrams import HALF_ADDED, KNESER_NEY, WITTEN_BELL, Smoothing, perplexities, unigram_perplexity
from bench.data.corpus import Corpus, data_dir
from bench.data.datasets import load_corpus
from bench.data.text import Source
from bench.measuring.machine import revision, source_hash
from bench.schema import PROVENANCE, Column, documented
from bench.storing.parquet import DamagedError, from_parquet, publish_pair, read_table, require_pair, to_parquet
from bench.sweep import Sweep

SCHEMA_VERSION = 1
FILE = "yardsticks.parquet"
SMOOTHING: dict[str, Smoothing] = {
    "word": KNESER_NEY,
    "character": WITTEN_BELL,
}  # Kneser-Ney's counts of kinds say little of 97 characters
LONGEST = {"word": 6, "character": 7}  # tokens of an n-gram
DIGITS = 16  # of corpus_sha256, as in the training tables
AS_ELSEWHERE = {column.name: column for column in PROVENANCE}

# fmt: off
COLUMNS = (
    Column("dataset", pa.string(), "setting", "", "corpus"),
    Column("corpus_sha256", pa.string(), "result", "", "sha256 of the token streams, 16 hex digits"),
    Column("token", pa.string(), "result", "", "what a token of the text is: word or character"),
    Column("vocabulary", pa.int64(), "result", "types", "size of the vocabulary"),
    Column("train_tokens", pa.int64(), "setting", "tokens", "tokens of the training text read in an epoch; 0: all"),
    Column("epochs", pa.int64(), "setting", "", "epochs whose texts were counted together; 1 where each reads all"),
    Column("text_tokens", pa.int64(), "result", "tokens", "tokens that were counted, each once"),
    Column("eval_tokens", pa.int64(), "setting", "tokens", "tokens of validation and of test text used; 0: all"),
    Column("order", pa.int64(), "setting", "", "tokens of an n-gram; 1: frequencies"),
    Column("smoothing", pa.string(), "setting", "",
           "half_added (half a count to each type), kneser_ney or witten_bell, interpolated"),
    Column("val_ppl", pa.float64(), "result", "", "validation perplexity, of all its tokens but the first"),
    Column("test_ppl", pa.float64(), "result", "", "test perplexity, likewise"),
    AS_ELSEWHERE["schema_version"], AS_ELSEWHERE["commit"], AS_ELSEWHERE["dirty"],
    Column("source_hash", pa.string(), "provenance", "", "sha256 of the sources that count and read, 16 hex digits"),
    AS_ELSEWHERE["python"],
    Column("numpy", pa.string(), "provenance", "", "numpy version"),
    AS_ELSEWHERE["started_at"],
    Column("seconds", pa.float64(), "provenance", "s", "wall time of all orders of the text"),
)
# fmt: on
SCHEMA = documented(COLUMNS)


class Text(NamedTuple):
    """A data set, tokens an epoch and epochs of training that are counted, tokens of evaluation; 0 tokens: all.

    source: what `load_data` takes.
    """

    dataset: str
    train_tokens: int
    epochs: int
    eval_tokens: int
    source: str | Source

    def columns(self) -> dict[str, Any]:
        """What its rows say of it: all but how the data set is read."""
        return {name: value for name, value in self._asdict().items() if name != "source"}

    def __str__(self) -> str:
        trained = f"{self.epochs} × {self.train_tokens:,} tokens" if self.train_tokens else "the whole text"
        return f"{self.dataset}, {trained}, evaluated on {self.eval_tokens or 'all'}"


def texts(sweeps: Iterable[Sweep]) -> list[Text]:
    """The texts that the language models of sweeps are trained and evaluated on, each once."""
    cells = (cell for sweep in sweeps for cell in sweep.cells if is_training(cell) and cell.is_recurrent)
    found = (
        Text(cell.dataset, cell.train_tokens, cell.epochs if cell.train_tokens else 1, cell.eval_tokens, cell.source)
        for cell in cells
    )
    return list(dict.fromkeys(found))


def rows(text: Text, corpus: Corpus) -> Iterator[dict[str, Any]]:
    """The results of every order on one text."""
    train, size = corpus.train.numpy(), len(corpus.vocabulary)
    read = min(text.train_tokens * text.epochs, len(train)) if text.train_tokens else len(train)
    train = train[:read]  # the slices of successive epochs follow one another and start over at the end
    evaluated = [part.numpy()[: text.eval_tokens or None] for part in (corpus.valid, corpus.test)]
    smoothing, orders = SMOOTHING[corpus.token], LONGEST[corpus.token]
    found = [[unigram_perplexity(train, part, size) for part in evaluated]]
    found += perplexities(train, evaluated, size, orders, smoothing)
    shared = {"corpus_sha256": corpus.sha256[:DIGITS], "token": corpus.token, "vocabulary": size, "text_tokens": read}
    for order, (valid, test) in enumerate(found, 1):
        how = smoothing if order > 1 else HALF_ADDED
        yield {**text.columns(), **shared, "order": order, "smoothing": how, "val_ppl": valid, "test_ppl": test}


def compute(sweeps: Iterable[Sweep], out: Path, say: Callable[[str], None] = print) -> Path:
    """Count what is not in `out` yet of the texts of `sweeps`, and write it. DataError where a text cannot be read."""
    with suppress(FileNotFoundError):
        os.scandir(out).close()  # raises where it is no folder, or shut
    path = out / FILE
    require_pair(path)
    before: bytes | None = None
    stored: list[dict[str, Any]] = []
    try:
        before = read_table(path)
        stored = from_parquet(before).to_pylist()
    except DamagedError as error:
        if path.exists():
            say(f"note: {error}; it is written anew")
    for text in texts(sweeps):
        corpus = load_corpus(text.source, data_dir())
        if any(_is_of(row, text, corpus) for row in stored):
            say(f"{text}: there already")
            continue
        stored += _measured(text, corpus)
        out.mkdir(parents=True, exist_ok=True)
        data = to_parquet(pa.Table.from_pylist(sorted(stored, key=_order), schema=SCHEMA))
        publish_pair(path, data, before)
        before = data
        say(f"{text}: {len(stored)} rows in {path}")
    return path


def _measured(text: Text, corpus: Corpus) -> list[dict[str, Any]]:
    """The rows of one text with where and with what they were made."""
    import numpy as np

    began, clock = datetime.now(UTC), time.perf_counter()
    found = list(rows(text, corpus))
    commit, dirty = revision()
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "commit": commit,
        "dirty": dirty,
        "source_hash": source_hash("bench/commands/ngrams.py", "bench/commands/yardsticks.py", "bench/data"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "started_at": began.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - clock,
    }
    return [{**row, **provenance} for row in found]


def _is_of(row: dict[str, Any], text: Text, corpus: Corpus) -> bool:
    named = {name: row[name] for name in text.columns()}
    return named == text.columns() and row["corpus_sha256"] == corpus.sha256[:DIGITS]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in Text._fields if name != "source"), row["corpus_sha256"], row["order"])
