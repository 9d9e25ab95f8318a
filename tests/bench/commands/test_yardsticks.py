"""Yardsticks: which texts are counted, and the command that stores them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import typer.testing

from bench import sweep
from bench.__main__ import app
from bench.commands import yardsticks
from bench.data.corpus import Corpus
from bench.data.datasets import load_corpus
from bench.schema import Column
from bench.storing.parquet import DamagedError, from_parquet, read_table

ROOT = Path(__file__).resolve().parents[3]

SWEEP = """
kind = "train"
[base]
dataset = "pydoc"
train_tokens = 3000
eval_tokens = 500
[[grids]]
[grids.axes]
epochs = [2, 3]
seed = [0, 1]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "counted.toml"
    path.write_text(SWEEP)
    return path


def test_the_committed_table_has_the_columns_of_today():
    table = from_parquet(read_table(ROOT / "results" / "reference" / "yardsticks" / yardsticks.FILE))
    assert table.schema.equals(yardsticks.SCHEMA, check_metadata=True)


def test_texts_of_a_sweep_are_named_once(small: Path):
    assert yardsticks.texts([sweep.load(small)]) == [
        yardsticks.Text("pydoc", 3000, 2, 500, "pydoc"),
        yardsticks.Text("pydoc", 3000, 3, 500, "pydoc"),
    ]
    assert yardsticks.texts([sweep.load("gemm")]) == []
    assert {text.dataset for text in yardsticks.texts([sweep.load("smoke")])} == {"pydoc"}, "digits are no text"
    whole = yardsticks.texts([sweep.load("wikitext2_chars")])
    assert whole == [yardsticks.Text("wikitext2_chars", 0, 1, 0, "wikitext2_chars")]  # of 4 and of 8 epochs


def test_rows_are_of_what_the_networks_saw():
    corpus = load_corpus("pydoc", "")
    found = list(yardsticks.rows(yardsticks.Text("pydoc", 3000, 2, 500, "pydoc"), corpus))
    assert [row["order"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["smoothing"] for row in found] == ["half_added", *["kneser_ney"] * 5]
    train, test = corpus.train.numpy()[:6000], corpus.test.numpy()[:500]
    counts = Counter(train.tolist())
    nats = [math.log((counts[token] + 0.5) / (6000 + 0.5 * len(corpus.vocabulary))) for token in test[1:].tolist()]
    assert found[0]["test_ppl"] == pytest.approx(math.exp(-sum(nats) / len(nats)))
    assert found[1]["test_ppl"] < found[0]["test_ppl"] and {row["text_tokens"] for row in found} == {6000}
    everything = len(corpus.train)
    often = yardsticks.Text("pydoc", everything - 1, 3, 50, "pydoc")  # starts over: nothing is counted twice
    assert {row["text_tokens"] for row in yardsticks.rows(often, corpus)} == {everything}


def test_characters_are_counted_up_to_seven_by_witten_bell():
    letters = list("the cat sat on the mat and that was that ") * 5
    corpus = Corpus.from_words(letters, letters[:30], letters[5:40], sorted(set(letters)), token="character")
    found = list(yardsticks.rows(yardsticks.Text("made", 0, 1, 0, "made"), corpus))
    assert [row["order"] for row in found] == [1, 2, 3, 4, 5, 6, 7] and found[-1]["smoothing"] == "witten_bell"


def test_the_command_stores_each_text_once(small: Path, tmp_path: Path):
    out = tmp_path / "yardsticks"
    command = ["yardsticks", str(small), "--out", str(out)]
    first = typer.testing.CliRunner().invoke(app, command)
    assert first.exit_code == 0 and "there already" not in first.output, first.output
    table = from_parquet(read_table(out / yardsticks.FILE))
    assert table.schema.names == [column.name for column in yardsticks.COLUMNS] and len(table) == 12
    assert all(isinstance(column, Column) and column.doc for column in yardsticks.COLUMNS)
    assert not any(table[name].null_count for name in table.column_names)
    again = typer.testing.CliRunner().invoke(app, command)
    assert again.output.count("there already") == 2
    assert from_parquet(read_table(out / yardsticks.FILE)).equals(table)


def test_a_damaged_table_is_written_anew(small: Path, tmp_path: Path):
    path = yardsticks.compute([sweep.load(small)], tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError):
        read_table(path)
    said: list[str] = []
    yardsticks.compute([sweep.load(small)], tmp_path, said.append)
    assert "damaged" in said[0] and len(from_parquet(read_table(path))) == 12
