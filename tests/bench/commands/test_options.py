"""Every option of every command, given what it cannot take: one line and an exit status, and nothing is begun."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import bench.commands.campaign
import bench.run
from bench.__main__ import app
from bench.engines.driver import Ended, Terms
from bench.sweep import load

BUDGET = ("--budget", "9")
CPU = ("--device", "cpu")
BAD_NUMBERS = (
    *(
        "inf",
        "-inf",
        "nan",
        "-1",
        "1e400",
        "-1e400",
        "1e300",
        "",
        " ",
        "x",
        "1e",
        "0x10",
        "9" * 400,
        "9" * 5000,
        "-" + "9" * 5000,
    ),
    "１e9９",
)
NUMBERS: dict[tuple[str, str], tuple[str, ...]] = {  # command, option: more that it does not take
    **{(command, "--workers"): ("0", "1.5", "10001") for command in ("plan", "run")},
    **{(command, "--timeout"): ("0", "0.99") for command in ("run", "campaign", "tune")},
    **{(command, "--budget"): ("0", "0.99") for command in ("campaign", "tune")},
    **{(command, "--wait-quiet"): () for command in ("run", "campaign")},
    ("run", "--checkpoint-seconds"): (),
    ("campaign", "--checkpoint-mib"): (),
    ("campaign", "--together"): ("0", "1.5", "10001"),
    ("run", "--jobs"): ("0", "1.5", "10001"),
}
COUNTS = ("--workers", "--together", "--jobs")
ACCEPTED = {"--device": "accepted: cuda, cpu", "--engine": "accepted: local, ray, slurm"}
NAMES = {
    **{(command, "--device"): ("", "gpu", "CPU", "cuda ", "x" * 10_000) for command in ("campaign", "tune")},
    ("run", "--engine"): ("", "Ray", "slurm ", "x" * 10_000),
}
# What becomes of a path: missing, a folder, a file, a folder that is shut, a path in a file.
PATHS = {
    **{(command, "--results"): (0, 0, 3, 3, 3) for command in ("plan", "run", "show", "fsck", "columns")},
    ("campaign", "--out"): (0, 0, 3, 3, 3),
    ("campaign", "--resume-from"): (2, 0, 2, 2, 2),
    ("tune", "--out"): (0, 2, 0, 2, 3),
    ("columns", "--schema"): (0, 2, 0, 2, 3),
    ("yardsticks", "--out"): (0, 0, 3, 3, 3),
}
STATES = ("missing", "folder", "file", "shut", "in a file")
FLAGS = {
    *(("plan", "--retry"), ("run", "--retry"), ("run", "--share"), ("show", "--watch"), ("fsck", "--repair")),
    *((command, "--mix-machines") for command in ("run", "campaign", "merge")),
    *(("campaign", "--background"), ("campaign", "--give-way"), ("campaign", "--renew")),
}
ADVISE = (
    "shape",
    "lstm",
    "tokens",
    "batch",
    "steps",
    "passes",
    "minutes",
    "block-size",
    "sparsity",
    "device",
    "threads",
)
ADVISE += ("pad", "name", "results", "mix-machines", "retry", "json", "apply")
PLUGGED = ("list", "plan", "run", "show", "merge", "fsck", "doctor", "campaign", "tune")
ELSEWHERE = {  # test_merge.py, test_advise.py, test_altered.py, test_bundle.py and test_show.py of tests/bench
    *((command, "--plugin") for command in PLUGGED),  # tests/test_plugins.py
    *((command, option) for command in ("plan", "run", "show") for option in ("--set", "--only")),
    *((command, "--json") for command in ("list", "plan", "show", "doctor")),
    *(("show", "--csv"), ("compare", "--json"), ("compare", "--results")),  # tests/analysis/commands/test_versus.py
    *(("advise", f"--{name}") for name in ADVISE),
    *(("plan", "--shard"), ("run", "--shard"), ("run", "--mirror"), ("merge", "--results")),
    *(("run", "--address"), ("run", "--slurm"), ("bundle", "--out"), ("expected", "--out")),
    *(("run", "--retry-before"), ("bundle", "--minutes")),  # test_slurm.py of tests/bench/engines
}


def options() -> dict[tuple[str, str], Any]:
    """Every option of every command but --help."""
    group: Any = typer.main.get_command(app)
    return {
        (name, option.opts[0]): option
        for name, command in group.commands.items()
        for option in command.params
        if option.param_type_name == "option" and option.opts[0] != "--help"
    }


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been run, by its arguments."""
    calls: list[dict[str, Any]] = []

    def record(*given: Any, **named: Any) -> Any:
        calls.append({**dict(enumerate(given)), **named})
        return 0

    class Nothing:
        def lines(self, workers: object) -> list[str]:
            calls.append({"workers": workers})
            return []

    monkeypatch.setattr(bench.run, "run_sweep", record)
    monkeypatch.setattr(bench.run, "run_jobs_of", record)
    monkeypatch.setattr(bench.run, "make_plan", lambda *_, **__: Nothing())
    monkeypatch.setattr(bench.commands.campaign, "run_campaign", record)
    monkeypatch.setattr(bench.commands.campaign, "run_tuner", record)
    return calls


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """run(command, option, value) -> (exit status, standard output, standard error), in an empty folder."""
    (tmp_path / "one.toml").write_text('kind = "gemm"\n[base]\nbackend = "reference"\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(command: str, option: str, value: str) -> tuple[int, str, str]:
        arguments = [] if command == "columns" else ["../one.toml"]
        if command in ("campaign", "tune"):
            arguments += [*BUDGET, *CPU, "--out", "out/x"]
        if command == "columns":
            arguments += ["--results", "written"]
        if option == "--jobs":
            arguments += ["--engine", "slurm", "--slurm", "time=60"]
        with pytest.raises(SystemExit) as ended:
            app([command, *arguments, option, value])  # of an option given twice the last counts
        return (int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_every_option_is_tried() -> None:
    assert options().keys() == NUMBERS.keys() | NAMES.keys() | PATHS.keys() | FLAGS | ELSEWHERE


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_a_number_that_cannot_be_meant_is_one_line(
    command: str, option: str, run: Callable[..., Any], begun: list[dict[str, Any]]
) -> None:
    for value in (*BAD_NUMBERS, *NUMBERS[command, option]):
        status, out, err = run(command, option, value)
        assert (status, out) == (2, "") and err.count("\n") == 1, (value, out, err)
        assert err.startswith(f"{option}: ") and "; accepted: " in err and len(err) < 200, err
    assert begun == [] and not list(Path.cwd().iterdir())


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_a_number_at_its_bounds_is_taken(
    command: str, option: str, run: Callable[..., Any], begun: list[dict[str, Any]]
) -> None:
    whole = option in COUNTS
    for value in ("1", "10000") if whole else ("1", "1e8" if option != "--checkpoint-mib" else "1e7", " 2.5 "):
        status, _, err = run(command, option, value)
        assert (status, err) == (0, "")
        given = [
            each for one in begun[-1].values() for each in (vars(one).values() if isinstance(one, Terms) else [one])
        ]
        numbers = [each for each in given if isinstance(each, int | float)]
        assert (int(value) if whole else float(value)) in numbers and all(map(math.isfinite, numbers))


@pytest.mark.parametrize(("command", "option"), NAMES)
def test_a_device_that_there_is_not_is_one_line(
    command: str, option: str, run: Callable[..., Any], begun: list[dict[str, Any]]
) -> None:
    for value in NAMES[command, option]:
        status, out, err = run(command, option, value)
        assert (status, out) == (2, "") and err.count("\n") == 1 and ACCEPTED[option] in err and len(err) < 200
    assert begun == []


def made(state: str, folder: Path) -> Path:
    path = folder / "given"
    if state in ("folder", "shut"):
        path.mkdir()
    if state in ("file", "in a file"):
        path.write_text("theirs")
    if state == "shut":
        path.chmod(0)
    return path / "x" if state == "in a file" else path


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("command", "option"), PATHS)
def test_a_path_that_cannot_be_used_is_one_line(
    command: str, option: str, state: str, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured here; the rest is real."""
    if state == "shut" and (os.name != "posix" or os.geteuid() == 0):
        pytest.skip("needs a user who may not read everything")
    for module in (bench.commands.campaign, bench.run):
        monkeypatch.setattr(module, "run_jobs", lambda *_, **__: Ended([], False))
    monkeypatch.setattr(bench.run, "_summary", lambda *_: 0)
    path, wanted = made(state, tmp_path), PATHS[command, option][STATES.index(state)]
    try:
        status, out, err = run(command, option, str(path))
    finally:
        if state == "shut":
            path.chmod(0o700)
    assert status == wanted, (out, err)
    assert err.count("\n") == (1 if wanted else 0) and (not wanted or str(tmp_path / "given") in err), err
    assert "theirs" in path.read_text() if state == "file" and wanted else True
    assert not wanted or not list(tmp_path.glob("given/*")), "nothing is made where it is refused"


@pytest.mark.parametrize(("command", "option"), PATHS)
def test_an_empty_path_is_one_line(
    command: str, option: str, run: Callable[..., Any], begun: list[dict[str, Any]]
) -> None:
    status, out, err = run(command, option, "")
    assert (status, out) == (2, "") and err.count("\n") == 1 and err.startswith(f"{option}: '' is empty; accepted: ")
    assert begun == [] and not list(Path.cwd().iterdir())


def test_a_sweep_whose_path_is_too_long_is_one_line(run: Callable[..., Any], begun: list[dict[str, Any]]) -> None:
    for name in ("x" * 5000, "x/" * 5000):
        with pytest.raises(SystemExit) as ended:
            app(["plan", name])
        assert ended.value.code == 2
    assert begun == []


def test_a_campaign_from_python_does_not_pass_over_a_missing_folder(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('kind = "gemm"\n[base]\nbackend = "reference"\n')
    with pytest.raises(FileNotFoundError):
        bench.commands.campaign.run_campaign([load(file)], tmp_path / "out", 9.0, "cpu", tmp_path / "missing")
    (tmp_path / "tuned.json").mkdir()
    with pytest.raises(FileExistsError, match=r"tuned\.json is a folder"):
        bench.commands.campaign.run_tuner([load(file)], tmp_path / "tuned.json", 9.0, "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [
    ("--engine", "ray", "--workers", "2"), ("--engine", "ray", "--jobs", "2"), ("--jobs", "2"), ("--slurm", "time=1"),
    ("--address", "auto"), ("--engine", "slurm", "--slurm", "time=1", "--shard", "1/2"),
    ("--engine", "slurm", "--slurm", "time=1", "--share"), ("--engine", "slurm", "--jobs", "2"),
    ("--engine", "slurm", "--slurm", "time=1", "--retry-before", "2026-01-01"),
])  # fmt: skip
def test_an_option_that_an_engine_has_no_use_for_is_refused(
    given: tuple[str, ...], begun: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.toml").write_text('kind = "gemm"\n[base]\nbackend = "reference"\n')
    with pytest.raises(SystemExit) as ended:
        app(["run", str(tmp_path / "one.toml"), *given])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and begun == []
