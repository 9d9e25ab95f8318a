"""Two folders side by side: known ratios are found and decided, unlike things are refused in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import made
import pandas as pd
import pytest
from commands import command
from rich.console import Console

from analysis.commands import versus
from analysis.load import REFERENCE
from analysis.loading.schema import BadInputError
from analysis.study import Study, read

ROOT = Path(__file__).parents[3]


def study(name: str, **tables: pd.DataFrame) -> Study:
    return Study(Path(name), tables)


def faster(frame: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The same cells, each of the backends so much faster."""
    samples = frame["samples_ms"].map(lambda each: None if each is None else [one / factor for one in each])
    return frame.assign(samples_ms=samples, time_ms=frame["time_ms"] / factor)


def test_a_known_factor_is_found_and_decided() -> None:
    cells = made.gemm_frame()
    found = versus.versus(study("a", gemm=faster(cells, 1.5)), study("b", gemm=cells))
    ok = int((cells["status"] == "ok").sum())
    pairs = found.pairs["gemm"]
    assert len(pairs) == ok and found.over == {"gemm": ""}
    assert all(each.ratio.value == pytest.approx(1.5) and each.ratio.low <= 1.5 <= each.ratio.high for each in pairs)
    assert found.all_together("gemm").value == pytest.approx(1.5)
    decided = [each for each in pairs if each.ratio.low > 1.05]
    assert decided and all(each.verdict == versus.FASTER for each in decided)
    other = versus.versus(study("b", gemm=cells), study("a", gemm=faster(cells, 1.5)))
    assert {each.verdict for each in other.pairs["gemm"]} <= {versus.SLOWER, versus.UNDECIDED}


def test_the_same_twice_is_undecided() -> None:
    cells = read(REFERENCE / "lstm")
    found = versus.versus(cells, cells)
    assert {each.verdict for each in found.pairs["lstm"]} == {versus.UNDECIDED}
    assert all(each.ratio.value == 1.0 for each in found.pairs["lstm"])
    assert "In the mean speedup over dense, A's over B's: 1.00×" in " ".join(versus.sentences(found))
    assert f"Both are {REFERENCE / 'lstm'}: a folder beside itself." in versus.sentences(found)


def test_folders_that_differ_in_their_backend_are_paired_by_the_rest() -> None:
    cells = read(REFERENCE / "gemm").tables["gemm"]
    shared = cells[(cells["baseline"] == "dense") & (cells["op"] == "dsd")]
    one, other = (shared[shared["backend"] == name] for name in ("native", "torch_bsr"))
    found = versus.versus(study("ours", gemm=one), study("theirs", gemm=other))
    assert found.over == {"gemm": "backend"} and len(found.pairs["gemm"]) > 3
    assert all(each.verdict == versus.FASTER and each.ratio.value > 2.0 for each in found.pairs["gemm"])
    assert "have no partner" in " ".join(found.lines)


def test_networks_are_compared_by_seed_and_to_the_digit() -> None:
    cells = read(REFERENCE / "wikitext2_small")
    worse = cells.tables["train"].copy()
    for name in ("test_ppl", "reported_test_ppl"):
        pruned = worse["schedule"] == "cubic"
        worse.loc[pruned, name] = worse.loc[pruned, name] * (1.02 + 0.001 * worse.loc[pruned, "seed"])
    found = versus.versus(study("a", train=cells.tables["train"]), study("b", train=worse))
    by_label = {each.label: each for each in found.pairs["train"]}
    pruned = [each for label, each in by_label.items() if "gradual" in label]
    assert pruned and all(each.ratio.value == pytest.approx(1.021, abs=0.001) for each in pruned)
    assert all(each.verdict == "A better" for each in pruned if each.ratio.n > 2)
    assert by_label["dense"].ratio.value == 1.0 and by_label["dense"].verdict == versus.UNDECIDED
    assert "reach the same figure to the digit" in " ".join(found.lines)


def refused(a: Study, b: Study) -> str:
    with pytest.raises(BadInputError) as caught:
        versus.versus(a, b)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and "accepted: " in line
    return line


def test_unlike_things_are_refused() -> None:
    gemm, lstm = read(REFERENCE / "gemm"), read(REFERENCE / "lstm")
    assert "has gemm and" in refused(gemm, lstm)
    assert "no cell in common" in refused(gemm, read(REFERENCE / "operators"))
    cells = gemm.tables["gemm"]
    two = pd.concat([cells, cells.assign(machine="another1", seed=9)], ignore_index=True).assign(
        machine=lambda rows: rows["machine"].fillna("this1234")
    )
    assert "mix machine" in refused(study("two", gemm=two), gemm)
    train = read(REFERENCE / "wikitext2_small").tables["train"]
    assert "different texts" in refused(study("a", train=train), study("b", train=train.assign(corpus_sha256="f" * 16)))


def test_another_dense_kernel_is_said() -> None:
    cells = made.gemm_frame().assign(baseline_kernel="torch.mm")
    found = versus.versus(study("a", gemm=cells), study("b", gemm=cells.assign(baseline_kernel="oneDNN")))
    assert "have another dense kernel on each side (torch.mm against oneDNN)" in " ".join(found.lines)


def test_the_screen_and_the_page(tmp_path: Path) -> None:
    cells = read(REFERENCE / "gemm")
    found = versus.versus(cells, cells)
    path = versus.write(found, cells, cells, tmp_path / "page")
    text = path.read_text("utf-8")
    assert "gemm against gemm" in text and text.count("<tr") > len(found.pairs["gemm"])
    stream = io.StringIO()
    versus.show(found, path, Console(file=stream, width=80))
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines() if "Report" not in line)
    assert "more, in the report" in stream.getvalue()
    parsed = json.loads(versus.to_json(found))
    assert len(parsed["tables"]["gemm"]) == len(found.pairs["gemm"]) and parsed["sentences"]


@pytest.mark.slow(8)
@pytest.mark.parametrize("package", ["bench", "analysis"])
def test_from_the_command_line(package: str, tmp_path: Path) -> None:
    folder = REFERENCE / "lstm"
    (tmp_path / "results").mkdir()
    done = command(package, tmp_path, "compare", folder, folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["over"] == {"lstm": ""}
    bad = command(package, tmp_path, "compare", folder, "nothing")
    assert bad.returncode == 2 and len(bad.stderr.splitlines()) == 1 and "no results called 'nothing'" in bad.stderr
