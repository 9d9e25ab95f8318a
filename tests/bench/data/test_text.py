"""Texts of one's own: how they are read and cut, that networks learn them, and the one line for what is no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import command

from bench.cells import TrainCell
from bench.data.corpus import EOS, UNK, DataError
from bench.data.datasets import load_corpus, load_data
from bench.data.text import Source, load
from bench.store import Store

ROOT = Path(__file__).parents[3]
VERSE = "the cat sat on the mat\n\nthe dog sat too\n"
SETTINGS = """
kind = "train"
[base]
embedding_size = 16
hidden_size = 16
num_layers = 1
epochs = 1
bptt = 10
batch_size = 4
"""


def written(folder: Path, content: str | bytes, name: str = "mine.txt") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_words_of_a_file_are_cut_by_share(tmp_path: Path) -> None:
    corpus = load(Source(str(written(tmp_path, VERSE * 20))))
    words = [word for line in (VERSE * 20).splitlines() for word in [*line.split(), EOS]]
    assert corpus.sizes == (len(words) - 2 * 26, 26, 26, 8) or (corpus.sizes.valid, corpus.sizes.test) == (26, 26)
    assert [corpus.vocabulary[number] for number in corpus.train.tolist()] == words[: len(words) - 52]
    assert [corpus.vocabulary[number] for number in corpus.test.tolist()] == words[-26:]
    assert corpus.token == "word" and UNK not in corpus.vocabulary


def test_characters_are_those_of_the_text(tmp_path: Path) -> None:
    text = "naïve café\r\n" * 30
    corpus = load(Source(str(written(tmp_path, text)), "char", valid_share=0.2, test_share=0.3))
    parts = (corpus.train, corpus.valid, corpus.test)
    assert "".join(corpus.vocabulary[number] for part in parts for number in part.tolist()) == text
    assert [len(part) for part in parts] == [180, 72, 108] and corpus.token == "character"


def test_what_is_rare_is_unknown(tmp_path: Path) -> None:
    text = "a b\n" * 50 + "once\n" + "a c\n" * 20
    corpus = load(Source(str(written(tmp_path, text)), min_count=2))
    assert set(corpus.vocabulary) == {"a", "b", "c", EOS, UNK} or set(corpus.vocabulary) == {"a", "b", EOS, UNK}
    assert corpus.vocabulary[-1] == UNK and (corpus.train == corpus.vocabulary.index(UNK)).sum() >= 1


@pytest.mark.parametrize(
    "names", [("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"), ("train.txt", "val.txt", "test.txt")]
)
def test_a_folder_of_three(names: tuple[str, str, str], tmp_path: Path) -> None:
    texts = (VERSE * 9, "the new dog\n" * 4, "the cat\n" * 5)
    for name, text in zip(names, texts, strict=True):
        written(tmp_path, text, name)
    written(tmp_path, "no part", "README.md")
    corpus = load(Source(str(tmp_path)))
    assert "new" in corpus.vocabulary and (corpus.sizes.valid, corpus.sizes.test) == (16, 15)


def test_a_folder_of_wikitext_is_read_as_wikitext_is() -> None:
    folder = Path(os.environ.get("BENCH_DATA_DIR", "nowhere")) / "wikitext-2"
    if not folder.is_dir():
        pytest.skip("BENCH_DATA_DIR holds no wikitext-2")
    assert load(Source(str(folder))).sha256 == load_corpus("wikitext2", folder.parent).sha256


def test_how_it_is_read_is_part_of_what_is_kept(tmp_path: Path) -> None:
    """One process, two cells of one file: each has its own reading of it."""
    name = f"text:{written(tmp_path, VERSE * 30)}"
    cells = TrainCell(dataset=name), TrainCell(dataset=name, tokens="char"), TrainCell(dataset=name, min_count=25)
    corpora = [load_data(cell.source, tmp_path) for cell in cells]
    assert len({corpus.sha256 for corpus in corpora}) == len({cell.cell_id for cell in cells}) == 3
    assert cells[2].source == Source(name.removeprefix("text:"), min_count=25)


def test_of_other_data_sets_the_new_settings_are_idle() -> None:
    assert TrainCell(tokens="char", min_count=3, valid_share=0.2).cell_id == TrainCell().cell_id


BAD: dict[str, tuple[str | bytes | None, str]] = {
    "missing": (None, "no such file or directory; accepted: a file of UTF-8 text"),
    "empty": (" \n", "is empty"),
    "binary": (b"abc\0def" * 100, "is binary, it has a zero byte at 3"),
    "latin": ("café ".encode("latin-1") * 100, "is not UTF-8, at byte 3"),
    "short": ("one two three\n", "the train text has 4 words; accepted: 10 or more"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_no_text_ends_in_one_line_with_nothing_created(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    if content is not None:
        written(tmp_path, content)
    written(tmp_path, SETTINGS + 'dataset = "text:mine.txt"\n', "mine.toml")
    before = sorted(tmp_path.rglob("*"))
    done = command("bench", tmp_path, "run", "mine.toml")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert done.stderr.startswith("text:mine.txt: dataset: mine.txt: ") and words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_too_short_for_a_cell_names_the_setting(tmp_path: Path) -> None:
    written(tmp_path, VERSE * 10)
    written(
        tmp_path, SETTINGS.replace("batch_size = 4", "batch_size = 80") + 'dataset = "text:mine.txt"\n', "mine.toml"
    )
    done = command("bench", tmp_path, "run", "mine.toml")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert done.stderr.startswith("text:mine.txt: ") and "streams need" in done.stderr and "accepted: " in done.stderr
    assert not (tmp_path / "results").exists()


CAMPAIGN = ("campaign", "mine.toml", "--device", "cpu", "--out", "out", "--budget", "100")
SLURM = ("run", "mine.toml", "--engine", "slurm", "--slurm", "cluster=local")


@pytest.mark.slow(8)
@pytest.mark.parametrize("how", [("run", "mine.toml"), CAMPAIGN, SLURM], ids=["run", "campaign", "slurm"])
def test_another_text_in_its_place_is_refused(how: tuple[str, ...], tmp_path: Path) -> None:
    """What is stored is of the old one; once that is gone, what is stored stands."""
    text = written(tmp_path, VERSE * 60)
    written(tmp_path, SETTINGS + 'dataset = "text:mine.txt"\n', "mine.toml")
    first = how if "campaign" in how else ("run", "mine.toml")
    assert command("bench", tmp_path, *first).returncode == 0
    assert command("bench", tmp_path, *how).returncode == 0
    text.write_text(VERSE.replace("cat", "rat") * 60)
    done = command("bench", tmp_path, *how)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("text:mine.txt: dataset: mine has cells that were trained on another text")
    text.unlink()
    assert command("bench", tmp_path, *how).returncode == 0


def test_two_files_of_one_part_are_refused(tmp_path: Path) -> None:
    for name in ("wiki.train.tokens", "train.txt", "valid.txt", "test.txt"):
        written(tmp_path, VERSE * 9, name)
    with pytest.raises(
        DataError, match=r"files of the train text: train\.txt, wiki\.train\.tokens; accepted: one file"
    ):
        load(Source(str(tmp_path)))


def test_one_letter_over_and_over_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the train text has one char alone; accepted: "):
        load(Source(str(written(tmp_path, "x" * 500)), "char"))


@pytest.mark.slow(8)
def test_networks_learn_it_and_its_checksum_is_stored(tmp_path: Path) -> None:
    written(tmp_path, VERSE * 120)
    grids = '[axes]\ntokens = ["word", "char"]\n'
    written(tmp_path, SETTINGS.replace("epochs = 1", "epochs = 3") + f'dataset = "text:mine.txt"\n{grids}', "mine.toml")
    done = command("bench", tmp_path, "run", "mine.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Store(tmp_path / "results" / "mine").read("train").to_pylist()
    by_token = {row["token"]: row for row in rows if row["epoch"] == 3}
    assert set(by_token) == {"word", "character"}
    for row in by_token.values():
        assert row["val_ppl"] < row["vocabulary"] * 0.8 and len(row["corpus_sha256"]) == 16
    shown = command("analysis", tmp_path, "report", "results/mine")
    assert shown.returncode == 0, shown.stderr
