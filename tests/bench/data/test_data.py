"""Corpora: counts, determinism, batches, and what happens to missing or damaged files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data import pydoc, wikitext2
from bench.data.corpus import Corpus, batchify, build_vocabulary, data_dir, epoch_slice, windows
from bench.data.datasets import load_corpus, names_of

ROOT = Path(__file__).parents[3]


def offline(*args, **kwargs):
    raise ConnectionError("no network")


@pytest.fixture
def real_folder() -> Path:
    for folder in (os.environ.get("BENCH_DATA_DIR"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "wikitext-2").is_dir():
            return Path(folder)
    pytest.skip("WikiText-2 is neither in BENCH_DATA_DIR nor in ../shared/data")


@pytest.fixture
def copied(real_folder: Path, tmp_path: Path) -> Path:
    """A writable copy of the three files: <folder>/wikitext-2."""
    home = tmp_path / "copy" / "wikitext-2"
    home.mkdir(parents=True)
    for part in wikitext2.PARTS:
        shutil.copyfile(real_folder / "wikitext-2" / wikitext2.file_name(part), home / wikitext2.file_name(part))
    return home


def test_wikitext2_has_the_known_counts(real_folder: Path):
    corpus = load_corpus("wikitext2", real_folder)
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [2_088_628, 217_646, 245_569]
    assert len(corpus.vocabulary) == len(set(corpus.vocabulary)) == 33_278
    assert corpus.train.dtype == torch.int64 and corpus.train.ndim == 1
    words = [corpus.vocabulary[number] for number in corpus.valid[:6].tolist()]
    assert words == ["<eos>", "=", "Homarus", "gammarus", "=", "<eos>"]
    assert load_corpus("wikitext2", real_folder) is corpus


def test_its_characters_have_the_known_counts(real_folder: Path):
    corpus = load_corpus("wikitext2_chars", real_folder)
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [10_780_437, 1_120_192, 1_255_018]
    assert len(corpus.vocabulary) == len(set(corpus.vocabulary)) == 97 and corpus.token == "character"
    text = "".join(corpus.vocabulary[number] for number in corpus.valid[:25].tolist())
    assert text == " \n = Homarus gammarus = \n"
    counts = torch.bincount(corpus.train, minlength=97)
    assert counts[:96].min() >= 100 and (counts[:96].sum() / len(corpus.train)).item() == pytest.approx(
        0.99976, abs=1e-5
    )
    assert load_corpus("wikitext2", real_folder).token == "word"


def test_wikitext2_accepts_another_order_of_articles(copied: Path):
    train = copied / wikitext2.file_name("train")
    lines = train.read_bytes().splitlines(keepends=True)
    train.write_bytes(b"".join(lines[20_000:] + lines[:20_000]))
    assert len(wikitext2.load(copied.parent).train) == 2_088_628


@pytest.mark.parametrize("part", wikitext2.PARTS)
def test_wikitext2_refuses_a_damaged_file(copied: Path, part: str):
    path = copied / wikitext2.file_name(part)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corrupt") as error:
        wikitext2.load(copied.parent)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_wikitext2_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pooch.retrieve", offline)
    with pytest.raises(ValueError, match="could not be downloaded") as error:
        wikitext2.load(tmp_path)
    message = str(error.value)
    assert str(tmp_path / "wikitext-2") in message and "BENCH_DATA_DIR" in message and "wiki.train.tokens" in message
    assert "\n" not in message and message.startswith("its text could not")  # `dataset wikitext2: ` stands before it
    assert not list((tmp_path / "wikitext-2").iterdir())


def test_wikitext2_takes_the_first_mirror_with_the_right_files(copied: Path, tmp_path: Path, monkeypatch):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for part in wikitext2.PARTS:
            packed.write(copied / wikitext2.file_name(part), f"wikitext-2/{wikitext2.file_name(part)}")
    asked = []

    def serve(url: str, known_hash: None, fname: str, path: Path, downloader: object) -> str:
        asked.append(url)
        if url == wikitext2.ARCHIVE_MIRRORS[0]:
            raise ConnectionError("this mirror is down")
        if url.endswith(".zip"):
            return shutil.copyfile(archive, path / fname)
        (path / fname).write_text("not the text you want")
        return str(path / fname)

    monkeypatch.setattr("pooch.retrieve", serve)
    corpus = wikitext2.load(tmp_path / "fresh")
    assert len(corpus.train) == 2_088_628
    assert asked[-2:] == list(wikitext2.ARCHIVE_MIRRORS)
    files = sorted(path.name for path in (tmp_path / "fresh" / "wikitext-2").iterdir())
    assert files == ["wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens"]


def test_pydoc_is_the_same_text_in_every_process(tmp_path: Path):
    corpus = pydoc.load(tmp_path)
    assert len(corpus.train) + len(corpus.valid) + len(corpus.test) > 90_000
    assert 0.09 < len(corpus.valid) / (len(corpus.train) + len(corpus.valid) + len(corpus.test)) < 0.11
    assert 1_500 < len(corpus.vocabulary) < 5_000
    script = "from pathlib import Path; from bench.data.pydoc import load; print(load(Path()).sha256)"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # that of this process is a random one
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == corpus.sha256, done.stderr


def test_pydoc_vocabulary_has_no_word_the_training_text_says_once(tmp_path: Path):
    corpus = pydoc.load(tmp_path)
    assert corpus.vocabulary[0] == "<unk>"
    assert torch.bincount(corpus.train, minlength=len(corpus.vocabulary)).min() >= 2


def test_pydoc_tokens():
    tokens = ["if", "x", "!", "=", "10", ":", "__init__", "=====", "<eos>"]
    assert pydoc.tokenise("  If x != 10: __init__ =====") == tokens


def test_names_are_known_without_torch():
    script = (
        "import sys; from bench.data.corpus import data_dir; from bench.data.datasets import DATASETS;"
        "from bench.models.registry import MODELS;"
        "from bench.pruning.criteria import CRITERIA; from bench.pruning.schedules import SCHEDULES;"
        "print(*DATASETS.names(), *MODELS.names(), *CRITERIA, *SCHEDULES); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"pydoc", "wikitext2", "digits", "lstm", "mlp", "l2", "cubic"} <= set(done.stdout.split())


def test_every_text_is_a_corpus(real_folder: Path):
    for name in names_of("language"):
        corpus = load_corpus(name, real_folder)
        assert len(corpus.sha256) == 64
        for part in (corpus.train, corpus.valid, corpus.test):
            assert part.min() >= 0 and part.max() < len(corpus.vocabulary)


def test_the_data_folder_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.delenv("BENCH_DATA_DIR")
    assert "block-sparse-bench" in str(data_dir())


def test_vocabulary_is_ordered_by_count_then_alphabet():
    assert build_vocabulary("bacabd") == ["a", "b", "c", "d"]
    assert build_vocabulary("bacabd", at_least=2) == ["a", "b"]


def test_words_outside_the_vocabulary():
    corpus = Corpus.from_words(["a"], ["zebra"], ["a"], ["<unk>", "a"])
    assert corpus.valid.tolist() == [0]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Corpus.from_words(["a"], ["zebra"], ["a"], ["a"])


@given(length=st.integers(2, 300), batch_size=st.integers(1, 7), bptt=st.integers(1, 40))
def test_every_token_but_the_first_is_a_target_once(length: int, batch_size: int, bptt: int):
    tokens = torch.arange(length * batch_size + batch_size - 1)
    streams = batchify(tokens, batch_size)
    assert streams.shape == (length, batch_size)
    assert streams.t().flatten().tolist() == list(range(length * batch_size))
    pieces = list(windows(streams, bptt))
    assert len(pieces) == -(-(length - 1) // bptt)
    assert torch.equal(torch.cat([targets for _, targets in pieces]), streams[1:])
    assert torch.equal(torch.cat([inputs for inputs, _ in pieces]), streams[:-1])
    assert all(inputs.shape == targets.shape and len(inputs) <= bptt for inputs, targets in pieces)


def test_too_few_tokens_for_the_streams():
    with pytest.raises(ValueError, match="too few"):
        batchify(torch.arange(39), 20)


def test_epochs_read_successive_slices():
    tokens = torch.arange(10)
    assert [epoch_slice(tokens, 4, epoch).tolist() for epoch in (1, 2, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert epoch_slice(tokens, 0, 3) is tokens
