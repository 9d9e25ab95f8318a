"""The notebooks: exactly five, committed clean and without logic.

Each runs to its end against the committed results and made-up ones.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import made
import made_awd
import psutil
import pytest
from cloned import clone_into, needed, shell
from notebooks import run_here

from analysis.reporting import execution
from analysis.reporting.execution import EXPECTED, NOTEBOOKS, NotebookError, execute_all

if TYPE_CHECKING:  # the import takes two seconds, of every process that collects the tests
    import nbformat

pytestmark = pytest.mark.examples

COMMITTED = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
LONGEST_CELL = 12  # lines
SHOWN = {"image/png", "text/html", "text/markdown"}

AWD = "05_awd_lstm.ipynb"

notebook = pytest.mark.parametrize("name", COMMITTED)


def cells(path: Path) -> list[nbformat.NotebookNode]:
    import nbformat

    read = nbformat.read(path, as_version=4)
    nbformat.validate(read)
    return list(read.cells)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells(path) if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The executed copies by name, as README's command makes them in a fresh clone."""
    needed()
    folder = clone_into(tmp_path_factory.mktemp("notebooks") / "clone")
    shell("nox -s notebooks", folder)
    yield {path.name: path for path in (folder / "results" / "notebooks").glob("*.ipynb")}
    shutil.rmtree(folder)


def test_the_awd_notebook_shows_the_sweep_that_is_named_and_says_what_was_not_run(tmp_path: Path) -> None:
    made_awd.write(tmp_path, made_awd.PAPER, seeds=2)
    environment = os.environ | {
        "BENCH_RESULTS": str(tmp_path / made_awd.PAPER),
        "PYTHONPATH": str(NOTEBOOKS.parents[1]),
    }
    setup, full, small, *_ = code(execution._execute(NOTEBOOKS / AWD, tmp_path / AWD, environment))
    assert setup.outputs[0].text == f"Results of the sweep {made_awd.PAPER}\n"
    tables = ["".join(output.data.get("text/html", "") for output in cell.outputs) for cell in (full, small)]
    assert "not run" in tables[0] and "(2\N{NO-BREAK SPACE}seeds)" not in tables[0]
    assert "not run" in tables[1] and "(2\N{NO-BREAK SPACE}seeds)" in tables[1]  # best and wide were not run


def test_six_are_collected() -> None:
    assert len(COMMITTED) == 6
    assert tuple(COMMITTED) == EXPECTED


@pytest.mark.slow(45)
def test_readme_s_command_executes_all_and_leaves_no_kernel_behind(executed: dict[str, Path]) -> None:
    assert sorted(executed) == COMMITTED
    places = {path.parents[2] / "analysis" / "notebooks" for path in executed.values()}
    assert not [process for process in psutil.process_iter() if process.pid != os.getpid() and cwd(process) in places]


def cwd(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd())
    except psutil.Error:
        return None


@pytest.mark.slow(1)  # where its fixture is at hand
@notebook
def test_every_cell_shows_something(name: str, executed: dict[str, Path]) -> None:
    setup, *others = code(executed[name])
    (output,) = setup.outputs
    assert re.fullmatch(r"Results of the sweep \w+(, \w+)*\n", output.text), output.text
    for cell in others:
        assert cell.execution_count is not None
        assert cell.outputs, f"{cell.id} shows nothing"
        for output in cell.outputs:
            assert output.output_type in ("display_data", "execute_result"), f"{cell.id}: {output}"
            assert SHOWN & set(output.data), f"{cell.id} shows only {output.data}"


@notebook
def test_it_is_committed_without_results(name: str) -> None:
    for cell in code(NOTEBOOKS / name):
        assert cell.outputs == [] and cell.execution_count is None, f"{cell.id}: clear the outputs before committing"


@notebook
def test_its_cells_are_short_and_without_logic(name: str) -> None:
    for cell in code(NOTEBOOKS / name):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.id
        assert not re.search(r"^\s*(def|class|if|while|try)\b|\blambda\b", cell.source, re.MULTILINE), cell.id


@notebook
def test_a_text_comes_before_every_code_cell_and_says_what_to_conclude(name: str) -> None:
    kinds = [cell.cell_type for cell in cells(NOTEBOOKS / name)]
    assert kinds[::2] == ["markdown"] * (len(kinds) // 2) and kinds[1::2] == ["code"] * (len(kinds) // 2)
    first, *others, last = [cell.source for cell in cells(NOTEBOOKS / name) if cell.cell_type == "markdown"]
    assert first.startswith("# ") and last.startswith("## ")
    assert all(text.startswith("## ") and "**What to conclude.**" in text for text in others)


def test_ids_are_unique_and_chosen() -> None:
    ids = [cell.id for name in COMMITTED for cell in cells(NOTEBOOKS / name)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"(gemm|perplexity|tradeoff|theory|awd|pruning)(-[a-z]+)+", one) for one in ids)


@pytest.mark.usefixtures("blank_pictures")
def test_they_run_on_few_made_up_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write(tmp_path, "gemm", made.gemm_frame())
    made.write(tmp_path, "lstm", made.lstm_frame((256,)))
    made.write(tmp_path, "train", made.train_frame(seeds=1))
    run_here(tmp_path, monkeypatch)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    yield tmp_path / "notebooks"
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_missing_notebook_fails_loudly(copies: Path, tmp_path: Path) -> None:
    (copies / EXPECTED[1]).unlink()
    with pytest.raises(
        NotebookError,
        match=r"expected 01_.*, 02_.*, 03_.*, 04_.*, 05_.*, 06_.*; "
        r"found 01_\w+\.ipynb, 03_\w+\.ipynb, 04_\w+\.ipynb, 05_\w+\.ipynb, 06_\w+\.ipynb$",
    ):
        execute_all(tmp_path / "out", tmp_path, copies)


def test_an_extra_notebook_fails_loudly(copies: Path, tmp_path: Path) -> None:
    shutil.copy(copies / EXPECTED[1], copies / "07_more.ipynb")
    with pytest.raises(NotebookError, match=r"found .*07_more\.ipynb$"):
        execute_all(tmp_path / "out", tmp_path, copies)


def test_a_failing_cell_is_one_line_that_names_the_notebook(copies: Path, tmp_path: Path) -> None:
    import nbformat

    first = copies / EXPECTED[0]
    read = nbformat.read(first, as_version=4)
    read.cells = [nbformat.v4.new_code_cell("raise ValueError('first line\\nsecond line')")]
    nbformat.write(read, first)
    with pytest.raises(NotebookError) as raised:
        execute_all(tmp_path / "out", tmp_path, copies)
    assert str(raised.value) == f"{EXPECTED[0]}: ValueError: first line"
