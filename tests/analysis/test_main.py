"""The command line of the analysis: three lines on success, one line and an exit status for what a user can mend."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made
import pandas as pd
import pytest
import typer

from analysis.__main__ import BAD_INPUT, ENVIRONMENT, FAILED, app
from analysis.reporting import execution

ROOT = Path(__file__).parents[2]
Sweep = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, blank_pictures: None) -> Run:
    """run(*arguments) -> (exit status, standard output, standard error); no picture is drawn."""
    monkeypatch.delenv("BENCH_RESULTS", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def folder(sweep: Sweep) -> Path:
    """A stored sweep called smoke, small enough to be drawn at once."""
    train = pd.DataFrame(made.train_frame(seeds=1, variants=("dense", "gradual")))
    return sweep(gemm=made.gemm_frame(backends=("native",)), train=train)


def assert_refused(ended: tuple[int, str, str], status: int, *words: str) -> None:
    """One line on standard error, nothing on standard output."""
    code, out, err = ended
    assert code == status
    assert out == "" and len(err.splitlines()) == 1
    assert all(word in err for word in words), err


def test_report_prints_three_lines(run: Run, folder: Path) -> None:
    status, out, err = run("report", "smoke", "--results", folder.parent)
    assert (status, err) == (0, "")
    speed, cost, place = out.splitlines()
    assert speed.startswith("Speed: the fastest") and "×" in speed
    assert cost.startswith("Accuracy: at 80 % sparsity")
    assert place == f"Report: {folder / 'report.html'}"
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("arguments", [("report",), ("figures", "--out", "drawn")], ids=lambda value: value[0])
def test_an_unknown_sweep_is_one_line_and_status_2(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    command, *options = arguments
    ended = run(command, "nothing", *options, "--results", folder.parent)
    assert_refused(
        ended,
        BAD_INPUT,
        "'nothing'",
        "gemm.parquet or lstm.parquet or train.parquet or storage.parquet",
        "known: smoke",
    )
    assert not Path("drawn").exists()


def test_a_name_that_is_nearly_one_is_asked_about(run: Run, folder: Path) -> None:
    for name in ("smok", "bench/sweeps/smoke2.toml"):
        ended = run("report", name, "--results", folder.parent)
        assert_refused(ended, BAD_INPUT, f"no results called {name!r} (did you mean smoke?): ", "known: smoke")
    assert "did you mean" not in run("report", "gemm", "--results", folder.parent)[2]


@pytest.mark.parametrize("command", ["report", "figures", "notebooks"])
def test_results_that_are_a_file_are_called_one(run: Run, folder: Path, tmp_path: Path, command: str) -> None:
    more = () if command == "notebooks" else ("smoke",)
    more += ("--out", tmp_path / "out") if command != "report" else ()
    ended = run(command, *more, "--results", folder / "gemm.parquet")
    assert_refused(ended, BAD_INPUT, f"--results: {folder / 'gemm.parquet'} is a file; accepted: a folder")
    assert not (tmp_path / "out").exists()


def test_the_process_ends_with_that_status() -> None:
    command = [sys.executable, "-m", "analysis", "report", "no such sweep"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert_refused((done.returncode, done.stdout, done.stderr), BAD_INPUT, "'no such sweep'")


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no checksum"])
@pytest.mark.parametrize("command", ["report", "figures", "notebooks"])
def test_a_damaged_table_is_refused(run: Run, folder: Path, tmp_path: Path, command: str, damage: str) -> None:
    table = folder / "gemm.parquet"
    data = bytearray(table.read_bytes())
    if damage == "flipped bit":
        data[len(data) // 2] ^= 1
        table.write_bytes(data)
    elif damage == "cut short":
        table.write_bytes(data[:-9])
    else:
        table.with_name("gemm.parquet.sha256").unlink()
    out = ("--out", tmp_path / "out") if command != "report" else ()
    which = ("--results", folder) if command == "notebooks" else (folder,)
    assert_refused(run(command, *which, *out), BAD_INPUT, "gemm.parquet", "run the sweep again")
    assert not (folder / "report.html").exists() and not (tmp_path / "out").exists()


def test_figures_writes_pictures_and_a_table(run: Run, folder: Path, tmp_path: Path) -> None:
    status, out, err = run("figures", folder, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    written = [Path(line) for line in out.splitlines()]
    assert [path.name for path in written] == ["speedup.png", "perplexity.png", "tradeoff.png", "table.md"]
    assert all(path.stat().st_size > 0 for path in written)
    assert written[-1].read_text(encoding="utf-8").startswith("| variant | block size |")


def test_figures_of_layers_and_sparse_training(run: Run, sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(lstm=made.lstm_frame((256,)), train=made.sparse_frame(1))
    status, out, _ = run("figures", folder, "--out", tmp_path / "out")
    names = [Path(line).name for line in out.splitlines()]
    assert (status, names) == (0, ["perplexity.png", "layer.png", "integral.png", "end_to_end.png", "table.md"])
    alone = sweep(lstm=made.lstm_frame((256,)))
    (alone / "train.parquet").unlink()
    _, out, _ = run("figures", alone, "--out", tmp_path / "alone")
    assert Path(out.splitlines()[-1]).read_text(encoding="utf-8").startswith("| layer | batch | over |")


FLAGS = ("--help", "--json", "--csv", "--install-completion", "--show-completion")
OPTIONS = {
    ("compare", "--out"),
    ("compare", "--results"),
    ("advice", "--results"),
    ("report", "--results"),
    ("notebooks", "--out"),
    ("notebooks", "--results"),
    ("figures", "--out"),
    ("figures", "--results"),
}


def test_a_command_that_draws_nothing_loads_nothing_to_draw_with() -> None:
    loaded = (
        "import sys; from analysis import __main__, study; from analysis.reporting import execution; "
        "print([name for name in ('matplotlib', 'seaborn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_option_is_tried() -> None:
    group: Any = typer.main.get_command(app)
    parameters = ((name, each.opts[0]) for name, command in group.commands.items() for each in command.params)
    assert {(name, option) for name, option in parameters if option.startswith("--") and option not in FLAGS} == OPTIONS


@pytest.mark.parametrize(("command", "option"), sorted(OPTIONS))
def test_a_path_that_cannot_be_used_is_one_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.chdir(folder)  # what the empty path would be taken for
    before = sorted(tmp_path.rglob("*"))
    more = ("--out", tmp_path / "drawn") if command == "figures" else ()
    name = {"notebooks": (), "compare": ("smoke", "smoke")}.get(command, ("smoke",))
    if command == "notebooks" and option == "--out":
        more = ("--results", folder)
    assert_refused(run(command, *name, *more, option, ""), BAD_INPUT, f"{option}: '' is empty")
    (tmp_path / "taken").write_text("a file")
    for path in (tmp_path / "taken", tmp_path / "taken" / "in it", tmp_path / ("x" * 5000)):
        code, out, err = run(command, *name, *more, option, path)
        assert code in (BAD_INPUT, ENVIRONMENT) and out == "" and len(err.splitlines()) == 1, (code, out, err)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "taken"])


def test_an_empty_name_is_no_sweep(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for more in ((), ("--results", folder)):
        assert_refused(run("report", "", *more), BAD_INPUT, "no results called ''")


@pytest.mark.parametrize("arguments", [("report",), ("figures", "--out", "drawn")], ids=lambda value: value[0])
def test_a_fault_of_ours_is_no_bad_input(
    run: Run, folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr("analysis.study.Study.main", broken)
    command, *options = arguments
    with pytest.raises(ValueError, match="zip"):
        run(command, folder, *options)
    assert not Path("drawn").exists()


def test_the_font_cache_is_built_without_a_notice(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run("report", folder)
    fonts = logging.getLogger("matplotlib.font_manager")
    fonts.warning("Matplotlib is building the font cache; this may take a moment.")
    assert (caplog.messages, capsys.readouterr().err) == ([], "")
    fonts.warning("findfont: Font family %r not found.", "Nowhere")
    assert caplog.messages == ["findfont: Font family 'Nowhere' not found."]


def test_what_the_system_refuses_is_status_3(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert_refused(run("figures", folder, "--out", tmp_path / "taken"), ENVIRONMENT, "taken")


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["speedup.png", "table.md", "report.html"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_nothing_is_written_over_what_is_no_file(what: str, name: str, run: Run, sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    place = (folder if name == "report.html" else tmp_path) / name
    if what == "device":
        place.symlink_to(os.devnull)
    else:
        {"pipe": os.mkfifo, "folder": Path.mkdir}[what](place)
    arguments = ("report", folder) if name == "report.html" else ("figures", folder, "--out", tmp_path)
    assert_refused(run(*arguments), ENVIRONMENT, name, "is a folder" if what == "folder" else "is no regular file")
    assert os.path.lexists(place) and not place.is_file() and not list(place.parent.glob(f".{name}*"))


def test_notebooks_prints_what_it_wrote(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        execution, "execute_all", lambda *arguments: asked.extend(arguments) or [Path("one"), Path("two")]
    )
    assert run("notebooks", "--results", folder, "--out", "copies") == (0, "one\ntwo\n", "")
    assert asked == [Path("copies"), folder]


def test_a_failing_notebook_is_status_1(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise execution.NotebookError("02_perplexity.ipynb: KeyError: 'variant'")

    monkeypatch.setattr(execution, "execute_all", fail)
    assert_refused(run("notebooks", "--results", folder), FAILED, "02_perplexity.ipynb: KeyError: 'variant'")


def test_notebooks_without_jupyter_say_what_brings_it(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbclient", None)
    monkeypatch.setitem(sys.modules, "nbformat", None)
    ended = run("notebooks", "--results", folder, "--out", folder / "out")
    assert_refused(ended, ENVIRONMENT, "is not installed; pip install -e '.[notebooks]' brings it")


def test_notebooks_refuse_a_folder_without_tables(run: Run, tmp_path: Path) -> None:
    assert_refused(run("notebooks", "--results", tmp_path), BAD_INPUT, "holds neither", "run the sweep first")
