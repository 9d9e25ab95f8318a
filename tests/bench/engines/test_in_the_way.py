"""What lies in the place of a file that a user names, or that a command reads or writes.

One line, nothing waited for, nothing lost.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from bench.__main__ import ENVIRONMENT, columns
from bench.cells import TrainCell
from bench.commands.campaign import run_tuner
from bench.engines.origin import origin
from bench.models.registry import MODELS
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.run import make_plan
from bench.storing.parquet import _host, checksum_of, publish, require_file
from bench.sweep import Sweep
from bench.train import train_cell

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="there are no such files"),
    pytest.mark.timeout(120),
]
CELL = TrainCell(schedule="pre", target_sparsity=0.5, block_size=4, embedding_size=8, hidden_size=8, num_layers=1)
WAYS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": lambda path: (path / "with something in it").mkdir(parents=True),
    "device": lambda path: path.symlink_to(os.devnull),  # by a link, so that the device itself is not at stake
}
in_the_way = pytest.mark.parametrize("what", WAYS)


def kind(path: Path) -> int:
    return stat.S_IFMT(path.lstat().st_mode)


@pytest.fixture
def final() -> FinalModel:
    torch.manual_seed(0)
    model = MODELS["lstm"](CELL, 20)
    return finalize(model, Pruner(model.prunable(), CELL, steps=1).masks)


@in_the_way
@pytest.mark.parametrize("name", ["model.pt", "model.pt.sha256"])
def test_an_export_is_neither_read_from_it_nor_written_over_it(
    what: str, name: str, final: FinalModel, tmp_path: Path
) -> None:
    path, place = tmp_path / "model.pt", tmp_path / name
    final.save(path)
    place.unlink()
    WAYS[what](place)
    before = kind(place)
    with pytest.raises(ValueError, match=r"\A[^\n]*no regular file[^\n]*export the model again\Z") as refused:
        FinalModel.load(path)
    assert str(place) in str(refused.value)
    with pytest.raises(OSError, match=f"{name} is (a folder|no regular file)"):
        final.save(path)
    with pytest.raises(ValueError, match=rf"\Aexport: [^\n]*{name} is (a folder|no regular file); accepted: [^\n]*\Z"):
        train_cell(CELL.model_copy(update={"path": "sparse", "epochs": 1000}), lambda _: None, export=path)
    assert kind(place) == before and len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_nothing_can_be_published_over_is_named(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(OSError, match=r"directory|permitted") as refused:
        publish(tmp_path / "table", b"whole")
    assert Path(refused.value.filename) == tmp_path / "table"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_several_publish_one_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose file half is written is nobody else's: each of two comes whole."""
    path, inside = tmp_path / "table", []

    def fsync(handle: int) -> None:
        if not inside:
            inside.append(handle)
            publish(path, b"another's")

    monkeypatch.setattr(os, "fsync", fsync)
    publish(path, b"mine")
    assert inside and path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_what_a_process_that_is_gone_has_left_half_written_goes(tmp_path: Path) -> None:
    """Not another machine's, nor a living process's."""
    kept = [tmp_path / f".bench-{_host()}-{os.getpid()}-01234567.tmp", tmp_path / ".bench-89abcdef-1-01234567.tmp"]
    for path in (*kept, tmp_path / f".bench-{_host()}-99999999-01234567.tmp"):
        path.touch()
    publish(tmp_path / "table", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "table"])


@in_the_way
def test_the_file_that_says_whose_a_folder_is(what: str, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "cells").mkdir(parents=True)
    WAYS[what](tmp_path / "tiny" / ".sweep")
    assert origin(tmp_path / "tiny") == ""
    assert make_plan(Sweep("tiny", "", tmp_path / "tiny.toml", (CELL,)), tmp_path).todo == (CELL,)


@in_the_way
def test_a_tuned_table_is_not_written_over_it(what: str, tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    WAYS[what](out)
    before = kind(out)
    with pytest.raises(OSError, match=r"tuned\.json is (a folder|no regular file)"):
        run_tuner([], out, 1.0, "cpu")
    assert kind(out) == before and list(tmp_path.iterdir()) == [out], "refused before anything is measured"


@in_the_way
@pytest.mark.parametrize("name", ["README.md", "columns.json"])
def test_columns_are_not_written_over_it(
    what: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    WAYS[what](place)
    before = kind(place)
    with pytest.raises(typer.Exit) as ended:
        columns(tmp_path, tmp_path / "columns.json")
    out, err = capsys.readouterr()
    assert ended.value.exit_code == ENVIRONMENT and out == "" and len(err.splitlines()) == 1 and str(place) in err
    assert kind(place) == before and list(tmp_path.iterdir()) == [place]


def test_links_to_files_and_what_is_not_there_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling", "new"):
        require_file(tmp_path / name)
    assert checksum_of(tmp_path / "a.pt") == tmp_path / "a.pt.sha256"


def test_the_doctor_goes_on_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.commands import doctor
    from bench.training import paths

    def refuse(*_: Any) -> Path:
        raise OSError(28, "No space left on device", "/tmp")

    monkeypatch.setattr(paths, "cache_folder", refuse)
    assert list(doctor._breakevens()) == [("break-even", "not today: No space left on device: /tmp")]
