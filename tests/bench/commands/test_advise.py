"""Advise: what is asked, measured, stored and answered, as a user has it; and what is refused in one line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer.testing
from safetensors.torch import load_file, save_file
from torch import nn

from bench.__main__ import app
from bench.commands import advise
from bench.commands.advising import applied, tables
from bench.storing.parquet import from_parquet, read_table
from bench.sweep import load
from kernels.modules import BlockSparseLinear
from kernels.sparsify import sparsify

Invoke = Callable[..., Any]
FEW = ("--threads", "1", "--device", "cpu", "--block-size", "16", "--tokens", "4", "--batch", "2", "--steps", "3")


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command where nothing is, its analysis not started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advise, "answer", lambda *_: 0)
    return lambda *given: typer.testing.CliRunner().invoke(app, ["advise", *map(str, given)])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(64, 32), "lstm": nn.LSTM(40, 32), "norm": nn.LayerNorm(32)})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    return from_parquet(read_table(folder / table)).to_pylist()  # type: ignore[no-any-return]


def test_what_advise_measures_are_the_cells_of_a_sweep(invoke: Invoke, tmp_path: Path) -> None:
    """Cell by cell: the sweep file that says the same has the same ids, and its rows are stored as any sweep's."""
    done = invoke("--shape", "64x32", "--lstm", "32", *FEW, "--sparsity", "0.5", "--passes", "both", "--minutes", "5")
    assert done.exit_code == 0, done.output
    (tmp_path / "same.toml").write_text("""
[base]
block_size = 16
target_sparsity = 0.5
[[grids]]
kind = "gemm"
[grids.base]
m = 64
k = 32
n = 4
layout = "column"
call = "operator"
[[grids]]
kind = "gemm"
[grids.base]
m = 64
k = 32
n = 4
layout = "column"
[grids.axes]
op = ["dsd", "dsd_t", "sdd"]
[[grids]]
kind = "lstm"
[grids.base]
input_size = 32
hidden_size = 32
batch_size = 2
bptt = 3
[grids.axes]
passes = ["forward", "forward_backward"]
""")
    folder = tmp_path / "results" / "advise" / "shapes"
    rows = [row for name in ("gemm.parquet", "lstm.parquet") for row in rows_of(folder, name)]
    assert {row["cell_id"] for row in rows} == {cell.cell_id for cell in load(tmp_path / "same.toml").cells}
    assert all(row["status"] == "ok" and row["error_ratio"] <= 1 and row["source_hash"] for row in rows)
    layers = rows_of(folder, tables.LAYERS)
    assert {cell for row in layers for cell in row["cells"]} == {row["cell_id"] for row in rows}


def test_a_second_run_measures_nothing_again_and_another_question_keeps_what_there_is(invoke: Invoke) -> None:
    few = ("--shape", "32x32", *FEW, "--minutes", "5")
    assert invoke(*few, "--sparsity", "0.5").exit_code == 0
    folder = Path("results/advise/shapes")
    before = rows_of(folder, "gemm.parquet")
    again = invoke(*few, "--sparsity", "0.5", "--sparsity", "0.8")
    assert again.exit_code == 0 and "2 cells to time, 1 not yet" in again.output
    other = invoke(*few, "--sparsity", "0.8")
    assert "1 cell to time, 0 not yet" in other.output and "1 stored cell of shapes" in other.output
    back = invoke(*few, "--sparsity", "0.5")
    assert "1 cell to time, 0 not yet" in back.output
    assert rows_of(folder, "gemm.parquet") == before


def test_the_time_is_kept_and_the_rest_is_said(invoke: Invoke) -> None:
    done = invoke("--shape", "32x32", *FEW, "--minutes", "0.05")
    assert "left: run it again to go on" in done.output


def test_a_shape_given_twice_is_two_layers(invoke: Invoke) -> None:
    subject = advise.look_at(advise.Asked(shapes=["64x64", "64x64"]))
    assert [layer.name for layer in subject.layers] == ["64x64", "64x64 (2)"]


def test_norms_lost_are_those_of_the_files_weights(invoke: Invoke, weights: Path) -> None:
    assert invoke(weights, *FEW, "--sparsity", "0.5", "--minutes", "5").exit_code == 0
    rows = {row["name"]: row for row in rows_of(Path("results/advise/model"), tables.LAYERS)}
    weight = load_file(weights)["fc.weight"]
    norms = weight.square().reshape(2, 16, 4, 16).sum(dim=(1, 3)).flatten().sort().values
    assert rows["fc.weight"]["lost"] == pytest.approx(float(norms[:4].sum() / norms.sum()))
    assert rows["fc.weight"]["lost"] < rows["fc.weight"]["lost_at_random"] == pytest.approx(0.5, abs=0.1)
    assert rows["fc.weight"]["sparse_bytes"] == 4 * (16 * 16 * 4 + 4) + 4 * 3
    assert "stays dense: its 40 columns" in rows["lstm.weight_l0"]["note"]


def test_weights_that_are_not_numbers_are_said(invoke: Invoke, weights: Path) -> None:
    values = load_file(weights)
    values["fc.weight"][0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    save_file(values, weights)
    assert invoke(weights, *FEW, "--sparsity", "0.5", "--minutes", "5").exit_code == 0
    rows = {row["name"]: row for row in rows_of(Path("results/advise/model"), tables.LAYERS)}
    assert "3 values of fc.weight not finite" in rows["fc.weight"]["note"]
    assert rows["fc.weight"]["lost"] is None and rows["lstm.weight_l0"]["lost"] is not None


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    place = ModuleType("of_a_user")

    def build() -> tuple[nn.Module, torch.Tensor]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), torch.rand(5, 32)

    place.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, place.__name__, place)
    return "of_a_user:build"


def test_a_module_is_timed_whole_and_its_layers_with_what_goes_through_them(invoke: Invoke, factory: str) -> None:
    done = invoke(factory, *FEW, "--sparsity", "0.5", "--minutes", "5")
    assert done.exit_code == 0 and "ok: whole model, forward, block 16, sparsity 0.5" in done.output, done.output
    folder = Path("results/advise/of_a_user.build")
    (row,) = rows_of(folder, tables.MODEL)
    assert row["status"] == "ok" and row["replaced"] == 2
    assert {each["tokens"] for each in rows_of(folder, tables.LAYERS)} == {5}
    invoke(factory, *FEW, "--sparsity", "0.5", "--minutes", "5")
    assert rows_of(folder, tables.MODEL) == [row]


def test_applied_weights_are_those_of_sparsify_and_load_into_its_model(
    invoke: Invoke, factory: str, tmp_path: Path
) -> None:
    done = invoke(factory, "--apply", "out/sparse.safetensors", "--block-size", "16", "--sparsity", "0.5")
    assert done.exit_code == 0 and "2 block-sparse weights" in done.output and not Path("results").exists()
    model, x = sys.modules["of_a_user"].build()
    wanted, _ = sparsify(model, 16, 0.5)
    other, _ = sparsify(sys.modules["of_a_user"].build()[0], 16, 0.8, criterion="random")
    other.load_state_dict(load_file("out/sparse.safetensors"))
    assert torch.equal(other(x), wanted(x))


def test_a_file_is_applied_too_and_says_which_blocks_are_kept(invoke: Invoke, weights: Path) -> None:
    out = Path("sparse.safetensors")
    done = invoke(weights, "--apply", out, "--block-size", "16", "--sparsity", "0.5")
    assert done.exit_code == 0, done.output
    stored, masks = load_file(out), applied.masks(out)
    assert set(masks) == {"fc.weight", "lstm.weight_hh_l0"} and "lstm.weight_ih_l0" in stored
    layer = BlockSparseLinear(64, 32, masks["fc.weight"])
    layer.load_state_dict({name.removeprefix("fc."): each for name, each in stored.items() if name.startswith("fc.")})
    dense = load_file(weights)["fc.weight"] * masks["fc.weight"].expand()
    assert torch.equal(layer.weight.to_dense(), dense)


BAD = {
    "nothing": ((), "SOURCE: nothing to advise on"),
    "both": (("model.safetensors", "--shape", "16x16"), "--shape and --lstm: SOURCE has its own layers"),
    "no file": (("gone.pt",), "gone.pt: does not exist"),
    "a folder": ((".",), ".: is a folder"),
    "no weights by name": (("a.txt",), "a.txt: no file of weights, by its name"),
    "no module": (("no_such_module:f",), "no_such_module:f: there is no module no_such_module"),
    "a shape": (("--shape", "12"), "--shape: '12' is no shape"),
    "indivisible": (("--lstm", "650"), "--block-size: none of 32, 16, 64 divides LSTM 650 -> 650"),
    "minutes 0": (("--shape", "16x16", "--minutes", "0"), "--minutes: "),
    "minutes nan": (("--shape", "16x16", "--minutes", "nan"), "--minutes: "),
    "minutes below": (("--shape", "16x16", "--minutes", "-1"), "--minutes: "),
    "sparsity": (("--shape", "16x16", "--sparsity", "1.5"), "--sparsity: "),
    "block size": (("--shape", "16x16", "--block-size", "1"), "--block-size: "),
    "passes": (("--shape", "16x16", "--passes", "back"), "--passes: "),
    "name": (("--shape", "16x16", "--name", "../up"), "--name: '../up' names no folder"),
    "tokens": (("--shape", "16x16", "--tokens", "0"), "--tokens: "),
    "apply of shapes": (("--shape", "16x16", "--apply", "x.safetensors"), "--apply: shapes have no weights"),
    "apply of several": (("model.safetensors", "--apply", "x.safetensors"), "--apply: takes one way to prune"),
    "apply as .pt": (
        ("model.safetensors", "--apply", "x.pt", "--block-size", "16", "--sparsity", "0.5"),
        "--apply: x.pt is no name of its format",
    ),
    "apply onto itself": (
        ("model.safetensors", "--apply", "model.safetensors", "--block-size", "16", "--sparsity", "0.5"),
        "--apply: model.safetensors is SOURCE itself; accepted: another file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_makes_nothing(case: str, invoke: Invoke, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    before = sorted(tmp_path.iterdir())
    given, line = BAD[case]
    done = invoke(*given)
    assert done.exit_code == 2 and done.stderr.startswith(line), done.output
    assert done.stderr.count("\n") == 1 and "accepted" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


NUMBERS = ("--tokens", "--batch", "--steps", "--minutes", "--block-size", "--sparsity", "--threads")


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_that_cannot_be_meant_is_one_line(option: str, invoke: Invoke) -> None:
    for value in ("inf", "nan", "-1", "1e400", "", "x", "9" * 5000, "1e9"):
        done = invoke("--shape", "16x16", option, value)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and len(done.stderr) < 200, (value, done.stderr)
        assert done.stderr.startswith(f"{option}: ") and "; accepted: " in done.stderr
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [("--results", "", 2), ("--apply", "", 2), ("--device", "gpu", 2), ("--results", "taken", 3), ("--name", "a/b", 2)],
)
def test_a_place_that_cannot_be_used_is_one_line(option: str, value: str, status: int, invoke: Invoke) -> None:
    Path("taken").write_text("theirs")
    done = invoke("--shape", "16x16", *FEW, "--minutes", "0.05", option, value)
    assert done.exit_code == status and done.stderr.count("\n") == 1, done.output
    assert [path.name for path in Path.cwd().iterdir()] == ["taken"] and Path("taken").read_text() == "theirs"


def test_what_was_noisy_is_timed_again_where_that_is_asked_for(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--shape", "32x32", *FEW, "--sparsity", "0.5", "--minutes", "5")
    invoke(*few)
    monkeypatch.setattr(advise, "_is_doubtful", lambda _: True)
    assert "1 cell to time, 0 not yet" in invoke(*few).output
    before = rows_of(Path("results/advise/shapes"), "gemm.parquet")
    assert "[1/1] ok" in invoke(*few, "--retry").output
    assert rows_of(Path("results/advise/shapes"), "gemm.parquet")[0]["samples_ms"] != before[0]["samples_ms"]


@pytest.mark.slow(20)
def test_a_user_gets_the_answer_of_a_file_as_json(weights: Path, tmp_path: Path) -> None:
    """The whole command as a process of its own, from weights to verdicts."""
    import subprocess

    command = [
        sys.executable,
        "-m",
        "bench",
        "advise",
        str(weights),
        *FEW,
        "--sparsity",
        "0.8",
        "--minutes",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verdicts"][0].startswith("Latency: ") and len(told["layers"]) == 2
    assert (tmp_path / "results" / "advise" / "model" / "report.html").is_file()
