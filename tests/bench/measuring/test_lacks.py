"""What the machine lacks today is no `unsupported`, which is kept as an answer.

The cell has failed, and says of what.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import silent

from bench.cells import Cell, CheckCell, GemmCell, LstmCell, StorageCell, TrainCell, TuneCell
from bench.commands.doctor import findings
from bench.data import wikitext2
from bench.data.corpus import data_dir
from bench.data.datasets import load_corpus
from bench.engines.local import _work_on, measure
from bench.run import UnusableError, check_datasets
from bench.train import train_cell
from kernels import cusparse
from kernels.backends import cusparse_bsr, cusparse_ell
from kernels.cuda import compile
from kernels.cuda import device as cuda_kernel
from kernels.system import cache, compiler, driver
from kernels.system.compiler import CompileError
from kernels.system.resources import ResourceError, UnsupportedError

SAID = "cc1plus: fatal error: error writing to /tmp/cc.s: No space left on device"
GEMM: dict[str, Any] = {"m": 32, "k": 32, "n": 4, "block_size": 8}
LAYER: dict[str, Any] = {"input_size": 32, "hidden_size": 32, "batch_size": 2, "bptt": 3, "block_size": 8}
TRAIN: dict[str, Any] = {
    "train_tokens": 400, "eval_tokens": 200, "epochs": 1, "schedule": "linear", "target_sparsity": 0.75,
    "block_size": 4, "embedding_size": 16, "hidden_size": 8, "batch_size": 2, "bptt": 3, "threads": 1,
}  # fmt: skip
CELLS = [
    GemmCell(backend="native", **GEMM),
    GemmCell(backend="dense", baseline="native", **GEMM),
    LstmCell(backend="native", **LAYER),
    TrainCell(path="sparse", **TRAIN),
    TrainCell(path="auto", **TRAIN),
    CheckCell(backend="native", block_size=8),
    TuneCell(backend="native", **GEMM),
    StorageCell(**GEMM),
]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a compiler, nothing compiled, and no room for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path))
    program = tmp_path / "compiler"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "{SAID}" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(compiler, "candidates", lambda: [[str(program)]])
    compiler._compile_once.cache_clear()
    yield
    compiler._compile_once.cache_clear()


@pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.kind)
def test_a_cell_without_room_for_its_kernels_has_failed(cell: Cell, full: None, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    (row,) = _work_on(measure, cell, tmp_path / "progress").rows
    torch.set_num_threads(threads)
    assert row["status"] == "failed" and "No space left on device" in row["reason"] and "\n" not in row["reason"]


@pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")
def test_the_doctor_says_what_is_missing_today(full: None) -> None:
    said = dict(findings())
    for what in ("backend native", "sparse path"):
        assert said[what].startswith("not today: ") and "No space left on device" in said[what]
    assert said["backend dense"] == "works"


class Gpu:
    """A driver that answers so."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, _: int) -> int:
        return self.status

    def cuGetErrorName(self, *_: object) -> int:
        return 1


@pytest.mark.parametrize(
    ("status", "today"), [(0, False), (100, False), (34, False), (999, True), (803, True), (802, True), (2, True)]
)
def test_a_gpu_that_does_not_answer_today_is_no_missing_gpu(
    status: int, today: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for module, name in ((driver, "driver"), (cuda_kernel, "_driver")):
        monkeypatch.setattr(module, name, lambda: Gpu(status))
    for cell in (GemmCell(backend="dense", device="cuda", **GEMM), TrainCell(device="cuda", **TRAIN)):
        (row,) = _work_on(measure, cell, tmp_path / "progress").rows
        assert row["status"] == ("failed" if today else "unsupported")
        assert ("does not answer today: cuInit says" if today else "no CUDA device") in row["reason"]
    if today:
        with pytest.raises(ResourceError):
            cuda_kernel.unavailable()
    else:
        assert "finds no GPU" in str(cuda_kernel.unavailable())


@pytest.mark.parametrize(
    ("status", "refused"),
    [(10, True), (3, True), (4, True), (8, True), (2, False), (11, False), (6, False), (1, False)],
)
def test_only_what_cusparse_has_not_is_unsupported(status: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library = object.__new__(cusparse.Cusparse)
    library.library = Answering(status)  # type: ignore[assignment]

    for module, trial in ((cusparse_bsr, cusparse_bsr._trial), (cusparse_ell, cusparse_ell._layout)):
        monkeypatch.setattr(cusparse, "Spmm", lambda *_: library.call("cusparseSpMM"))
        monkeypatch.setattr(module, "GemmProblem", OnCpu)
        said = (UnsupportedError, "cuSPARSE refuses") if refused else (RuntimeError, "cusparseSpMM: so it is")
        with pytest.raises(said[0], match=said[1]):
            trial.__wrapped__("float32", 16)


class Answering:
    """cuSPARSE, whose product ends with that status."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cusparseSpMM(self) -> int:
        return self.status

    def cusparseGetErrorString(self, _: int) -> bytes:
        return b"so it is"


def OnCpu(*sizes: Any, device: str, **settings: Any) -> Any:
    from kernels.problem import GemmProblem

    return GemmProblem(*sizes, **settings)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("libnvrtc.so.13: cannot open shared object file: Too many open files"), ResourceError),
        (MemoryError(), ResourceError),
        (ImportError("No module named 'cuda'"), CompileError),
    ],
)
def test_a_package_that_cannot_be_loaded_today_is_not_missing(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def way() -> Any:
        raise error

    monkeypatch.setattr(compile, "WAYS", (way,))
    with pytest.raises(expected):
        compile.nvrtc.__wrapped__()


def test_a_text_that_finds_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that it could not be downloaded."""

    def retrieve(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path))
    with pytest.raises(UnusableError, match=r"dataset wikitext2: .*No space left on device"):
        check_datasets([TrainCell(dataset="wikitext2")])
    assert not list((tmp_path / "wikitext-2").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("chosen", [False, True])
def test_a_text_in_the_cache_does_not_open_it_to_others(
    chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the folder above would be one that no code is loaded from."""

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("pooch.retrieve", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    if chosen:
        monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "new" / cache.NAME))
    before = os.umask(0)
    try:
        with pytest.raises(ValueError, match="could not be downloaded"):
            load_corpus("wikitext2", data_dir())
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "new").glob("**")}
        assert modes == {0o777 if chosen else 0o700}, "a folder that the user names is as the user's umask says"
        assert (cache.cache_folder() == tmp_path / "new" / cache.NAME) is not chosen
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_text_or_a_checkpoint_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bench.training.checkpoint import Checkpoints

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("pooch.retrieve", offline)
    (tmp_path / "wikitext-2").mkdir()
    for part in wikitext2.PARTS:
        os.mkfifo(tmp_path / "wikitext-2" / wikitext2.file_name(part))
    with pytest.raises(ValueError, match="could not be downloaded"):
        load_corpus("wikitext2", tmp_path)
    cell = TrainCell(**{**TRAIN, "schedule": "none", "target_sparsity": 0.0})
    os.mkfifo(Checkpoints(tmp_path).path(cell.cell_id))
    rows = train_cell(cell, silent, checkpoints=Checkpoints(tmp_path))
    assert rows[-1]["status"] == "ok" and "is no regular file" in capfd.readouterr().err


def test_what_is_lacking_is_told_without_the_users_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.shown("/home/somebody/.cache/x") == "~/.cache/x" and cache.shown("/home/somebodyelse") != "~else"
