"""N-grams beside networks, runs that did not train, and bits a character."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import made
import made_awd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import train_frame

from analysis import compare, report, study, tables
from analysis.accuracy.units import BITS, PERPLEXITY
from analysis.accuracy.yardsticks import NO_WEIGHT, Yardstick, kept_size, of_part, of_text, standing, why_untrained
from analysis.awd import answers, goals
from analysis.awd.answers import Sweeps
from analysis.figures import accuracy, products, training
from analysis.findings import findings
from analysis.load import REFERENCE, YARDSTICK, load_yardsticks
from analysis.loading.schema import BadInputError
from analysis.study import Part

TEXT = {"corpus_sha256": "c" * 16, "train_tokens": 0, "epochs": 1, "eval_tokens": 0, "token": "word"}
PPLS = {1: 400.0, 2: 130.0, 3: 112.0, 4: 111.0, 5: 110.5, 6: 110.0}
SMALL = ("wikitext2_small", "wikitext2_best_small", "wikitext2_paper_small", "wikitext2_wide_small")


def known(ppls: dict[int, float] = PPLS, **text: object) -> pd.DataFrame:
    """Yardsticks of the text of made-up runs."""
    rows = [
        {**TEXT, **text, "order": order, "smoothing": "kneser_ney", "val_ppl": 1.1 * ppl, "test_ppl": ppl}
        for order, ppl in ppls.items()
    ]
    return pd.DataFrame(rows, columns=list(YARDSTICK)).astype(YARDSTICK)


def part(frame: pd.DataFrame, yardsticks: pd.DataFrame | None = None) -> Part:
    return Part("train", frame, yardsticks=known() if yardsticks is None else yardsticks)


def store(folder: Path, frame: pd.DataFrame) -> Path:
    """Yardsticks as the suite stores them, beside the folders of sweeps."""
    path = folder / "yardsticks" / "yardsticks.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(frame.to_dict("records")), path)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_a_study_finds_the_yardsticks_beside_its_sweep_and_the_committed_ones(sweep: Callable[..., Path]):
    folder = sweep(train=train_frame())
    assert study.read(folder).main("train").ladder == []
    store(folder.parent, known())
    found = study.read(folder)
    assert [one.order for one in found.main("train").ladder] == [1, 2, 3, 4, 5, 6]
    assert len(found.yardsticks) > len(PPLS)  # the committed ones too


def test_damaged_yardsticks_are_refused_in_one_line(tmp_path: Path):
    path = store(tmp_path, known())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInputError, match=r"yardsticks\.parquet: damaged"):
        load_yardsticks(tmp_path)
    store(tmp_path / "other", known().drop(columns="order"))
    with pytest.raises(BadInputError, match=r"no table of yardsticks .*order"):
        load_yardsticks(tmp_path / "other")


def test_of_a_text_that_two_tables_have_the_first_is_taken(tmp_path: Path):
    store(tmp_path / "one", known())
    store(tmp_path / "two", known({1: 9.0, 7: 8.0}))
    assert load_yardsticks(tmp_path / "one", tmp_path / "two")["test_ppl"].tolist() == [*PPLS.values(), 8.0]


def test_yardsticks_are_of_the_very_text():
    run = {**TEXT, "epochs": 7}
    assert len(of_text(known(), run)) == 6  # every epoch read the whole text
    assert of_text(known(), run | {"corpus_sha256": "d" * 16}) == of_text(known(), run | {"eval_tokens": 5}) == []
    part_read = {**TEXT, "train_tokens": 100, "epochs": 7}
    assert of_text(known(train_tokens=100), part_read) == []
    assert len(of_text(known(train_tokens=100, epochs=7), part_read)) == 6
    final = pd.DataFrame([part_read, part_read, part_read | {"epochs": 8}])
    assert len(of_part(known(train_tokens=100, epochs=7), final)) == 6 and of_part(known(), final.head(0)) == []


@pytest.mark.parametrize("name", SMALL)
def test_every_small_sweep_has_its_yardsticks(name: str):
    train = study.read(REFERENCE / name).main("train")
    assert [one.order for one in train.ladder] == [1, 2, 3, 4, 5, 6]
    assert all(later.test_ppl < one.test_ppl for one, later in zip(train.ladder, train.ladder[1:], strict=False))


def test_the_yardsticks_are_those_known_of_the_texts():
    """Counted by another program: Witten-Bell of characters; whole WikiText-2 by Kneser-Ney, discount 0.75: 266.4."""
    found = load_yardsticks(REFERENCE)
    words = found[(found["token"] == "word") & (found["train_tokens"] == 0)].set_index("order")["test_ppl"]
    assert words[2] == pytest.approx(266.4, rel=0.005)
    letters = found[(found["token"] == "character") & (found["train_tokens"] == 0)].set_index("order")
    assert np.log2(letters["test_ppl"][6]) == pytest.approx(1.720, abs=0.03)  # that was of the first 200,000


def norms(size: float) -> list[dict[str, object]]:
    return [{"norms": [0.0, 16 * size, 16 * size, 0.0]}, {"norms": [16 * size]}]


def test_the_size_of_kept_blocks_is_of_their_weights():
    assert kept_size(norms(0.02), 16) == pytest.approx(0.02)
    assert kept_size(None, 16) is None and kept_size([{"norms": [0.0]}], 16) is None


def test_a_run_that_learned_frequencies_or_has_no_weights_left_did_not_train():
    ladder = of_text(known(), TEXT)  # validation by frequencies: 440
    fine = {"val_ppl": 390.0, "block_norms": norms(0.02), "block_size": 16}
    assert why_untrained(fine, ladder) == ""
    assert why_untrained(fine | {"val_ppl": 400.0}, ladder) == "within 10 % of word frequencies"
    assert why_untrained(fine | {"val_ppl": 4000.0}, []) == ""  # nothing to compare with
    assert why_untrained(fine | {"block_norms": norms(0.9 * NO_WEIGHT)}, []) == "its kept blocks are all but zero"


def untrained_frame() -> pd.DataFrame:
    """The random pre-pruned runs stand at the frequencies of words."""
    frame = train_frame()
    frame.loc[frame["schedule"] == "pre", ["val_ppl", "test_ppl"]] = 430.0
    return frame


def test_runs_that_did_not_train_are_told_apart():
    train = part(untrained_frame())
    pre = train.runs["schedule"] == "pre"
    assert (train.runs["trained"] == ~pre).all() and pre.any()
    assert train.replicates["trained"].equals(~train.replicates["variant"].str.contains("pre-pruning"))
    table = tables.main_table(train, study.not_run("gemm"))
    lost = table["variant"].str.contains("pre-pruning")
    assert (table.loc[lost, "cost against dense"] == "did not train").all()
    assert not (table.loc[~lost, "cost against dense"] == "did not train").any()


def test_a_setting_counts_as_trained_where_every_seed_did():
    frame = train_frame()
    frame.loc[(frame["schedule"] == "pre") & (frame["seed"] == 1), "val_ppl"] = 430.0
    found = part(frame).replicates
    assert not found.loc[found["variant"].str.contains("pre-pruning"), "trained"].any()


def test_figures_draw_what_did_not_train_at_the_edge_and_say_so():
    train, gemm = part(untrained_frame()), made.part(made.gemm_frame())
    for drawn in (accuracy.perplexity_figure(train), products.tradeoff_figure(train, gemm)):
        words = " ".join(text.get_text() for text in drawn.texts)
        assert "Did not train" in words and "random pre-pruning (8 of 8 runs" in words.replace("\n    ", " ")
        assert drawn.axes[0].get_ylim()[1] < 430.0
    trade = compare.tradeoff(study.joined(train, gemm))
    assert not trade.loc[~trade["trained"].astype(bool), "front"].any() and trade["front"].any()


def test_nothing_that_trained_is_a_figure_that_says_so():
    frame = train_frame()
    frame["val_ppl"] = 430.0
    for draw in (accuracy.perplexity_figure, accuracy.wide_figure):
        drawn = draw(part(frame))
        assert "no setting trained with all its seeds" in drawn.axes[0].texts[0].get_text()
    assert "no variant pruned to" in findings(part(frame))[1]


def test_yardsticks_are_named_lines_of_every_accuracy_figure():
    train, gemm = part(train_frame()), made.part(made.gemm_frame())
    for drawn in (
        accuracy.perplexity_figure(train),
        accuracy.wide_figure(train),
        products.tradeoff_figure(train, gemm),
        training.curves_figure(train),
    ):
        ax = drawn.axes[0]
        named = ", ".join(text.get_text().replace("\n", " ") for text in ax.texts)
        assert {"bigram", "trigram", "6-gram"} <= set(named.replace(",", "").split()), named
        assert "Kneser–Ney n-grams of the same text" in drawn.texts[0].get_text() + drawn.texts[-1].get_text()
        assert sum(line.get_linestyle() == ":" for line in ax.lines) >= 3


def test_yardsticks_far_beyond_the_scale_stand_in_the_margin():
    far = part(train_frame(), known({1: 9000.0, 2: 7000.0}))
    drawn = accuracy.perplexity_figure(far)
    assert drawn.axes[0].get_ylim()[1] < 1000.0
    assert "are beyond the scale (word frequencies 9000.0, bigram 7000.0)" in drawn.texts[-1].get_text()


def test_where_a_network_stands_is_said_in_one_sentence():
    ladder = of_text(known(), TEXT)
    assert standing(120.0, ladder, PERPLEXITY) == "between the trigram (112.0) and the bigram (130.0)"
    assert standing(500.0, ladder, PERPLEXITY) == "above word frequencies (400.0)"
    assert standing(100.0, ladder, PERPLEXITY) == "below the 6-gram (110.0)"
    said = findings(part(train_frame()))[1]
    assert "Among n-grams of the same text the best dense network (" in said and said.count("stands between") == 2
    assert "Among" not in findings(made.part(train_frame()))[1]


def test_no_order_is_reproduced_by_networks_that_did_not_train():
    frame = made_awd.table(made_awd.PAPER, seeds=2)
    before = answers.order(answers.sweep(made.study(train=frame), "paper"))
    frame.loc[frame["schedule"] == "pre", "block_norms"] = None
    frame.loc[frame["schedule"] == "pre", ["val_ppl", "test_ppl", "reported_val_ppl", "reported_test_ppl"]] = 900.0
    text = frame.iloc[0]
    yardsticks = known(
        {1: 850.0},
        corpus_sha256=text["corpus_sha256"],
        eval_tokens=text["eval_tokens"],
        train_tokens=text["train_tokens"],
        epochs=text["epochs"] if text["train_tokens"] else 1,
    )
    found = answers.sweep(study.Study(Path("made"), {"train": frame}, yardsticks), "paper")
    pairs = answers.order(found)
    assert "did not train" not in [pair.verdict for pair in before]
    assert {pair.verdict for pair in pairs if pair.worse.name.startswith("block lasso + random")} == {"did not train"}
    assert "did not train" not in [pair.verdict for pair in pairs if "random" not in pair.worse.name]
    measured, verdict = goals._in_order(Sweeps(True, {"paper": found}, []))
    assert "did not train" in measured and verdict != "reproduced"


def test_characters_are_told_in_bits():
    frame = train_frame().assign(token="character")
    frame[["train_ppl", "val_ppl", "test_ppl"]] /= 30.0
    train = part(frame, known({1: 24.0, 6: 4.5}, token="character"))
    assert train.unit is BITS and made.part(train_frame()).unit is PERPLEXITY
    dense = train.replicates.iloc[0]
    runs = train.runs[train.runs["variant"] == "dense"]
    assert dense["test_ppl"].value == pytest.approx(np.log2(runs["test_ppl"]).mean())
    row = train.runs[train.runs["ppl_ratio"].notna()].iloc[0]
    partner = runs.loc[runs["seed"] == row["seed"], "test_ppl"].iloc[0]
    assert row["ppl_ratio"] == pytest.approx(math.log2(row["test_ppl"]) / math.log2(partner))
    table = tables.main_table(train, study.not_run("gemm"))
    assert "test bits" in table and "test ppl" not in table
    assert table["test bits"].iloc[0].startswith(f"{dense['test_ppl'].value:.3f} ±")
    assert accuracy.perplexity_figure(train).axes[0].get_ylabel() == "test bits a character"
    assert training.curves_figure(train).axes[0].get_ylabel() == "validation bits a character"
    assert "has test bits a character 3.633 against" in findings(train)[1]
    assert "character frequencies" in findings(train)[1]
    assert Yardstick(1, "half_added", "character", 1.0, 1.0).name == "character frequencies"


def test_a_report_of_characters_compares_nothing_with_the_slides(sweep: Callable[..., Path], blank_pictures: None):
    folder = sweep(train=train_frame().assign(token="character"))
    words = report.write_report(folder).read_text()
    assert "test bits" in words and "132.52" not in words
