"""Malformed sweep files with what the one line must say that refuses each, and `python -m bench` to refuse them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.sweep import LARGEST_SWEEP

ROOT = Path(__file__).parents[2]


class Bad(NamedTuple):
    """content: of the file; None means there is no file. words: that the one line must hold."""

    content: str | bytes | None
    field: str
    words: tuple[str, ...]


GEMM = 'kind = "gemm"\n'
TRAIN = 'kind = "train"\n'

BAD = {
    "missing file": Bad(None, "file", ("no such file", "a TOML file that exists")),
    "folder": Bad(None, "file", ("a folder", "accepted: a TOML file")),
    "empty file": Bad("", "base", ("nothing to measure", "[axes]", "[[grids]]")),
    "not UTF-8": Bad(GEMM.encode() + b'description = "caf\xe9"\n[base]\n', "line 2", ("not UTF-8", "accepted")),
    "binary": Bad(bytes(range(256)) * 20, "line 2", ("not UTF-8",)),
    "broken TOML": Bad(GEMM + "[base]\nm = = 3\n", "line 3", ("accepted: TOML",)),
    "unclosed TOML": Bad(GEMM + "[axes]\nm = [1, 2", "end of document", ("accepted: TOML",)),
    "key given twice": Bad(GEMM + "[base]\nm = 512\nm = 1024\n", "line 4", ("every key and table given once",)),
    "table given twice": Bad(
        GEMM + "[base]\nm = 512\n[base]\nk = 512\n", "line 4", ("every key and table given once",)
    ),
    "nested too deep": Bad(GEMM + "x = " + "[" * 100_000, "", ("accepted",)),
    "a key of many dots": Bad(GEMM + "[base]\nm" + ".a" * 3000 + " = 1\n", "base.m", ("too deep", "accepted")),
    "a kind of many dots": Bad("kind" + ".a" * 3000 + " = 1\n[base]\n", "kind", ("too deep", "accepted")),
    "a table of many dots": Bad(GEMM + "[axes" + ".a" * 3000 + "]\n", "axes.a", ("too deep", "accepted")),
    "kind missing": Bad("[base]\nm = 512\n", "kind", ("missing", "gemm, lstm, train")),
    "kind unknown": Bad('kind = "gem"\n[base]\n', "kind", ("did you mean gemm?", "accepted: gemm, lstm, train")),
    "kind no string": Bad("kind = 3\n[base]\n", "kind", ("accepted: gemm, lstm, train",)),
    "kind a list": Bad('kind = ["gemm", "train"]\n[base]\n', "kind", ("accepted: gemm, lstm, train",)),
    "unknown top-level key": Bad(GEMM + "[axis]\nm = [1]\n", "axis", ("did you mean axes?", "base, axes, grids")),
    "unknown grid key": Bad(GEMM + "[[grids]]\nname = 'x'\n", "name", ("grids[0]", "kind, base, axes")),
    "base no table": Bad(GEMM + "base = 3\n", "base", ("accepted: a table [base]",)),
    "axes no table": Bad(GEMM + "axes = [1, 2]\n", "axes", ("accepted: a table [axes]",)),
    "description no string": Bad(GEMM + "description = 3\n[base]\n", "description", ("accepted: a string",)),
    "axes empty": Bad(GEMM + "[axes]\n", "axes", ("empty", "accepted")),
    "axis empty": Bad(GEMM + "[axes]\nm = []\n", "axes.m", ("an empty list", "one or more values")),
    "axis no list": Bad(GEMM + "[axes]\nm = 512\n", "axes.m", ("512 is not a list", "m in [base]")),
    "base a list": Bad(GEMM + "[base]\nm = [512]\n", "base.m", ("accepted: an integer >= 1",)),
    "grids empty": Bad(GEMM + "grids = []\n", "grids", ("empty", "[[grids]]")),
    "grids no list": Bad(GEMM + "[grids]\nm = 3\n", "grids", ("not a list of tables", "[[grids]]")),
    "grid empty": Bad(GEMM + "[[grids]]\n", "grids[0]", ("empty", "[grids.base]")),
    "in base and in axes": Bad(GEMM + "[base]\nm = 512\n[axes]\nm = [512]\n", "axes.m", ("also in [base]", "accepted")),
    "unknown setting": Bad(
        GEMM + "[base]\nblock_sise = 8\n", "base.block_sise", ("did you mean block_size?", "accepted: ")
    ),
    "unknown axis": Bad(TRAIN + "[axes]\nsparsity = [0.5]\n", "axes.sparsity", ("target_sparsity", "accepted: ")),
    "setting of the other kind": Bad(
        GEMM + "[base]\nepochs = 3\n", "base.epochs", ("of a gemm cell", "accepted: seed")
    ),
    "string for a number": Bad(GEMM + '[base]\nm = "512"\n', "base.m", ("'512' is not an integer", ">= 1")),
    "float for an integer": Bad(GEMM + "[base]\nm = 512.0\n", "base.m", ("512.0 is not an integer", ">= 1")),
    "bool for an integer": Bad(GEMM + "[axes]\nblock_size = [8, true]\n", "axes.block_size[1]", ("true", "an integer")),
    "bool for a number": Bad(TRAIN + "[base]\ndropout = false\n", "base.dropout", ("false", "a number >= 0 and < 1")),
    "number for a bool": Bad(TRAIN + "[base]\nlasso_scaled = 1\n", "base.lasso_scaled", ("1 is not true or false",)),
    "number for a string": Bad(
        TRAIN + "[base]\ndataset = 2\n", "base.dataset", ("accepted: digits, mnist, mnist1d, pydoc",)
    ),
    "date": Bad(TRAIN + "[base]\nepochs = 2026-01-01\n", "base.epochs", ("accepted: an integer >= 1",)),
    "NaN": Bad(
        GEMM + "[base]\ntarget_sparsity = nan\n", "base.target_sparsity", ("nan is not a finite", ">= 0 and <= 1")
    ),
    "infinity": Bad(
        TRAIN + "[axes]\nlearning_rate = [0.1, inf]\n", "axes.learning_rate[1]", ("inf is not a finite", "> 0")
    ),
    "percent": Bad(GEMM + "[base]\ntarget_sparsity = 80\n", "base.target_sparsity", ("for 80 % write 0.8", "<= 1")),
    "percent in an axis": Bad(GEMM + "[axes]\ntarget_sparsity = [0.5, 90.0]\n", "[1]", ("for 90 % write 0.9", "<= 1")),
    "negative": Bad(TRAIN + "[base]\nclip = -1.0\n", "base.clip", ("-1.0 is out of bounds", ">= 0")),
    "zero": Bad(TRAIN + "[base]\nepochs = 0\n", "base.epochs", ("0 is out of bounds", ">= 1")),
    "huge integer": Bad(TRAIN + f"[base]\nseed = {10**30}\n", "base.seed", ("out of bounds", ">= 0")),
    "more digits than Python reads": Bad(TRAIN + f"[base]\nseed = {'9' * 5000}\n", "file", ("accepted: a TOML file",)),
    "backend": Bad(GEMM + '[base]\nbackend = "torch_bsrr"\n', "base.backend", ("did you mean torch_bsr?", "dense")),
    "baseline": Bad(
        GEMM + '[axes]\nbaseline = ["dense", "x"]\n', "axes.baseline[1]", ("unknown baseline 'x'", "dense")
    ),
    "model": Bad(TRAIN + '[base]\nmodel = "gpt"\n', "base.model", ("unknown model 'gpt'", "accepted: awd_lstm, lstm")),
    "dataset": Bad(TRAIN + '[base]\ndataset = "wikitext-2"\n', "base.dataset", ("did you mean wikitext2?", "pydoc")),
    "schedule": Bad(TRAIN + '[base]\nschedule = "Cubic"\n', "base.schedule", ("did you mean cubic?", "one_shot")),
    "criterion": Bad(TRAIN + '[base]\ncriterion = "L2"\n', "base.criterion", ("unknown criterion 'L2'", "random")),
    "optimizer": Bad(
        TRAIN + '[base]\noptimizer = "adamw"\n', "base.optimizer", ("did you mean adam?", "sgd, adam, asgd")
    ),
    "type no layer is timed in": Bad(
        'kind = "lstm"\n[base]\ndtype = "int8"\n', "base.dtype", ("unknown value 'int8'", "float32, float64")
    ),
    "layer's block size does not divide": Bad(
        'kind = "lstm"\n[base]\nhidden_size = 1150\n', "hidden_size", ("1150 is not divisible", "1136 or 1152")
    ),
    "dtype": Bad(GEMM + '[base]\ndtype = "fp16"\n', "base.dtype", ("unknown value 'fp16'", "float16")),
    "block size does not divide": Bad(
        GEMM + "[base]\nm = 1150\n", "m", ("1150 is not divisible", "accepted: 1136 or 1152")
    ),
    "grid's block size does not divide": Bad(
        TRAIN + '[[grids]]\n[grids.base]\nlasso = "proximal"\n[grids.axes]\nhidden_size = [64, 100]\n',
        "grids[0].hidden_size",
        ("100 is not divisible by block_size 16", "96 or 112"),
    ),
    "ramp ends before it begins": Bad(
        TRAIN + '[base]\nschedule = "cubic"\ntarget_sparsity = 0.5\nprune_begin = 0.9\n',
        "prune_end",
        ("from 0.9 to 1",),
    ),
    "huge product": Bad(
        GEMM + "[axes]\nseed = [" + "1," * 2000 + "]\nn = [" + "2," * 2000 + "]\n",
        "axes",
        ("4000000 cells", str(LARGEST_SWEEP)),
    ),
    "many large grids": Bad(
        GEMM + ("[[grids]]\n[grids.axes]\nseed = [" + ",".join(map(str, range(4000))) + "]\n") * 3,
        "grids",
        ("12000 cells",),
    ),
    "line break in a value": Bad(GEMM + '[base]\nbackend = "a\\nb\\u2028c"\n', "base.backend", ("accepted: cuda",)),
}


def write_bad(folder: Path, name: str) -> Path:
    path = folder / "bad.toml"
    if name == "folder":
        path.mkdir()
    content = BAD[name].content
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check_line(name: str, line: str, path: Path) -> None:
    assert line.startswith(f"{path}: "), line
    assert BAD[name].field in line.removeprefix(str(path)), line
    for words in BAD[name].words:
        assert words in line, line
    assert "accepted: " in line


# Says when it is ready; then of each line, [folder, out, err, arguments], the status of `python -m bench ARGUMENTS` and
# its processor seconds.
COMMANDS = """
import contextlib, io, json, os, runpy, sys
import bench.__main__
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
    bench.__main__.app(["run", "none.toml"])  # imports what refuses a file
del sys.modules["bench.__main__"]
begun = sum(os.times()[:2])
print("ready", flush=True)
for line in sys.stdin:
    folder, *streams, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, stream in enumerate(streams, start=1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["bench", *arguments]
        runpy.run_module("bench", run_name="__main__", alter_sys=True)
        sys.exit(0)
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), begun + used.ru_utime + used.ru_stime]), flush=True)
"""
Bench = Callable[..., tuple[subprocess.CompletedProcess[str], float]]


@contextmanager
def commands(said: Path) -> Iterator[Bench]:
    """bench(*arguments, cwd=folder) runs `python -m bench ARGUMENTS` from there, in a process of its own.

    Beside it its processor seconds with those of its imports, for the machine may be busy with other things; it is
    forked from one that has done these.
    """
    streams = [said / name for name in ("out", "err")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", COMMANDS], env=environment, text=True, **pipes) as server:
        assert server.stdin and server.stdout and server.stdout.readline() == "ready\n"

        def run(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
            print(json.dumps([str(cwd), *map(str, streams), arguments]), file=server.stdin, flush=True)
            status, seconds = json.loads(server.stdout.readline())
            out, err = (stream.read_text(encoding="utf-8") for stream in streams)
            return subprocess.CompletedProcess(arguments, status, out, err), seconds

        yield run
        server.stdin.close()
