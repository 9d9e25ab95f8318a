"""Checks: one kernel on every pattern of blocks and every batch, each against float64, before anything of it is timed.

`python -m bench.measuring.checks SETTINGS` checks a few of them and is what compute-sanitizer watches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from bench.cells import CheckCell, Row, Tell
from bench.measuring.causes import ends_the_caller, one_line, status_of
from bench.measuring.machine import physical_cores
from bench.measuring.modes import initial_modes
from bench.schema import PATTERNS
from kernels.blockmask import BlockMask
from kernels.check import check
from kernels.problem import GemmProblem, LstmProblem, Problem
from kernels.registry import BACKENDS
from kernels.system.programs import run

COLUMNS_OF_X = (1, 7, 33, 100, 300)  # the last is wide enough for the kernels by wgmma
SQUARE = (
    4096  # on a GPU: so many tiles that a CTA takes several, and those of the tuned table, which are measured at it
)
BATCHES = (1, 7, 33, 100)
STEPS = 4
LAYER_SPARSITIES = {"random": 0.6, "all empty": 1.0, "full": 0.0}  # a layer draws its own patterns
SANITIZER = "compute-sanitizer"
FOUND_STATUS = 86  # exit status by which the sanitizer says that it found something
WATCHED_SECONDS = 300
WATCHED = (7, 33, 300)  # of COLUMNS_OF_X, for every kernel one


def pattern(name: str, rows: int, cols: int, block_size: int) -> BlockMask:
    """One of PATTERNS over a weight of rows x cols elements, the same at every call."""
    random = BlockMask.random(rows, cols, block_size, 0.6, torch.Generator().manual_seed(7))
    kept = random.kept
    if name == "empty rows":
        kept[0] = kept[2] = kept[-1] = False
        kept[:, 1] = False
    elif name == "all empty":
        kept[:] = False
    elif name == "one block":
        kept[:] = False
        kept[1, 2] = True
    elif name == "full row":
        kept[1] = True  # among rows that keep few: the work is uneven
    elif name == "full":
        kept[:] = True
    return random


def product_problem(cell: CheckCell, name: str, n: int, shape: tuple[int, int] | None = None) -> GemmProblem:
    """A weight of `shape`.

    By default a grid of at least 6 x 5 blocks; of small blocks more, so that several tiles are filled and the last is
    not.
    """
    size = cell.block_size
    m, k = shape or (size * max(6, 192 // size + 1), size * max(5, 160 // size + 2))
    mask = pattern(name, m, k, size)
    settings: dict[str, Any] = {"dtype": cell.dtype, "device": cell.device, "math": cell.math, "op": cell.op}
    return GemmProblem(m, k, n, size, mask.sparsity, given_mask=mask, seed=n, **settings)


def layer_problem(cell: CheckCell, name: str, n: int) -> LstmProblem:
    """A layer of a few blocks over STEPS time steps, n sequences side by side."""
    size = cell.block_size
    into, hidden = size * max(1, 64 // size), size * max(2, 96 // size)
    settings: dict[str, Any] = {"dtype": cell.dtype, "device": cell.device, "math": cell.math, "passes": cell.op}
    return LstmProblem(into, hidden, n, STEPS, size, LAYER_SPARSITIES[name], seed=n, **settings)


def problems(cell: CheckCell) -> Iterator[tuple[str, int, Problem]]:
    """(pattern, n, problem) of everything that is checked; on a GPU a product of SQUARE too, the last."""
    is_layer = cell.op in ("forward", "forward_backward")
    for name in LAYER_SPARSITIES if is_layer else PATTERNS:
        for n in BATCHES if is_layer else COLUMNS_OF_X:
            yield name, n, layer_problem(cell, name, n) if is_layer else product_problem(cell, name, n)
    if cell.device == "cuda" and not is_layer:
        yield "random", SQUARE, product_problem(cell, "random", SQUARE, (SQUARE, SQUARE))


@initial_modes()
def check_cell(cell: CheckCell, tell: Tell) -> list[Row]:
    """A row for each pattern and n; an exception ends the cell, since after one a GPU may answer nothing any more."""
    if cell.tool != "none":
        return [watched(cell)]
    torch.set_num_threads(cell.threads or physical_cores())
    rows = []
    for name, n, problem in problems(cell):
        row = {"pattern": name, "n": n}
        try:
            rows.append({**row, **check_problem(cell.backend, problem)})
        except BaseException as error:
            if ends_the_caller(error):
                raise
            rows.append({**row, "status": "failed", "reason": status_of(error)[1]})
            break
        tell({"checks": len(rows)})
    return rows


def check_problem(backend: str, problem: Problem) -> Row:
    """status, reason, kernel and error_ratio of one problem."""
    reason = problem.missing_device() or BACKENDS[backend].unsupported(problem)
    if reason:
        return {"status": "unsupported", "reason": reason}
    launch = BACKENDS[backend].prepare(problem)
    ratio, wrong = check(launch, problem)
    if wrong is None:
        _, wrong = check(launch, problem)  # a second launch must not add to the first
    return {"status": "wrong" if wrong else "ok", "reason": wrong or "", "kernel": launch.kernel, "error_ratio": ratio}


def watched(cell: CheckCell) -> Row:
    """One row: whether compute-sanitizer found anything while a few of the cell's problems were checked."""
    sanitizer = shutil.which(SANITIZER)
    if sanitizer is None:
        return {"status": "unsupported", "reason": f"{SANITIZER} is not on PATH"}
    settings = {**cell.settings(), "tool": "none"}
    options = ["--tool", cell.tool, "--error-exitcode", str(FOUND_STATUS), "--print-limit", "3"]
    command = [sanitizer, *options, sys.executable, "-m", "bench.measuring.checks", json.dumps(settings)]
    try:
        done = run(command, WATCHED_SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "reason": f"{SANITIZER} took more than {WATCHED_SECONDS} s"}
    if done.returncode == 0:
        return {"status": "ok", "reason": ""}
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    found = [line for line in said if "=========" in line and "COMPUTE-SANITIZER" not in line] or said[-3:]
    status = "wrong" if done.returncode == FOUND_STATUS else "failed"
    return {"status": status, "reason": one_line(" ".join(found[:4])) or f"exit status {done.returncode}"}


def main(settings: str) -> int:
    """Check a few problems of a cell given as JSON; 1 where one is not right."""
    cell = CheckCell.model_validate_json(settings)
    few = [problem for name, n, problem in problems(cell) if n in WATCHED and name in ("random", "full")]
    rows = [check_problem(cell.backend, problem) for problem in few]
    for row in rows:
        print(row["status"], row["reason"])
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
