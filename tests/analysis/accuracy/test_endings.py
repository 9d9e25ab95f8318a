"""Whether runs were still falling, and when NT-ASGD averaged: from made-up columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import made
import pandas as pd
import pytest
from made import train_frame

from analysis import report, study, tables
from analysis.accuracy.endings import averaged_from, averaging_line, falling, falling_line
from analysis.accuracy.units import BITS, PERPLEXITY
from analysis.awd.tables import endings
from analysis.load import REFERENCE


def runs(*changes: float | None, error: float | None = 0.003) -> pd.DataFrame:
    told = [None if change is None else error for change in changes]
    return pd.DataFrame({"variant": "dense", "val_change": changes, "val_change_error": told}, dtype=object)


def test_a_fall_is_told_in_the_unit_of_the_text():
    assert falling(runs(math.log(0.98)), PERPLEXITY) == "2.00 ± 0.29 %"
    assert falling(runs(-0.01 * math.log(2), error=0.001 * math.log(2)), BITS) == "0.0100 ± 0.0010 bits"
    assert falling(runs(0.01), PERPLEXITY).startswith("-1.01 ")  # it rose
    assert falling(runs(-0.01, error=None), PERPLEXITY) == "1.00 %"


def test_errors_of_seeds_are_those_of_their_mean():
    assert falling(runs(-0.01, -0.01, -0.01, -0.01), PERPLEXITY) == "1.00 ± 0.15 %"


def test_older_tables_do_not_say():
    assert falling(runs(None, None), PERPLEXITY) == "not said"
    assert "not said, for these runs are from before" in falling_line(runs(None), PERPLEXITY)
    assert "not said" in endings(study.read(REFERENCE / "wikitext2_small").main("train"))[0]


def test_the_table_and_the_report_say_how_far_a_run_still_fell(sweep: Callable[..., Path], blank_pictures: None):
    frame = train_frame()
    last = frame["epoch"] == frame["epochs"]
    frame.loc[last, "val_change"], frame.loc[last, "val_change_error"] = math.log(0.98), 0.003
    table = tables.main_table(made.part(frame), study.not_run("gemm"))
    assert table["val fell in the last tenth"].iloc[0] == "2.00 ± 0.21 %"  # two seeds
    words = report.write_report(sweep(train=frame)).read_text()
    assert "Fall of the validation perplexity over the last tenth of a run: dense 2.00 ± 0.21 %;" in words


def asgd(*averaging: tuple[bool | None, ...]) -> pd.DataFrame:
    rows = [
        {"cell_id": str(run), "optimizer": "nt_asgd", "epoch": epoch, "averaging": value}
        for run, values in enumerate(averaging)
        for epoch, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def test_the_epoch_from_which_a_run_averaged_is_named_or_that_it_never_did():
    rows = asgd((False, False, True, True), (False, False, False, True), (False, False, False, False))
    first = averaged_from(rows)["averaged_from"]
    assert first.tolist()[:2] == [3, 4] and math.isnan(first[2])
    final = pd.DataFrame({"cell_id": ["0", "1", "2"], "variant": ["dense", "dense", "lasso"], "seed": 0, "epochs": 4})
    assert averaging_line(rows, final) == "Averaged by NT-ASGD from epoch (of 4): dense 3 to 4; lasso never."
    together = averaging_line(rows, final.assign(variant="dense"))
    assert together.endswith("dense 3 to 4 (1 of 3 runs never).")
    assert averaging_line(rows.assign(optimizer="sgd"), final) == ""


@pytest.mark.parametrize("name", ["wikitext2_paper_small"])
def test_of_the_slides_recipe_only_runs_that_did_not_train_averaged(name: str):
    train = study.read(REFERENCE / name).main("train")
    found = averaged_from(train.rows).merge(train.runs[["cell_id", "trained"]], on="cell_id")
    assert not found.loc[found["averaged_from"].notna(), "trained"].any()
