"""The command line, as a person uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked
from rows import ended_ok

from bench.measuring.machine import QUERIES
from bench.schema import COLUMNS, TRAIN, columns, documentation, machine_readable
from bench.store import Store
from bench.sweep import load
from kernels.registry import BACKENDS

ROOT = Path(__file__).parents[2]

TINY = """
description = "six cells"
[[grids]]
kind = "gemm"
[grids.base]
backend = "torch_bsr"
m = 64
k = 64
n = 4
[[grids]]
kind = "lstm"
[grids.base]
backend = "loop_lstm"
input_size = 16
hidden_size = 16
bptt = 3
[[grids]]
kind = "check"
[grids.base]
backend = "reference"
block_size = 64
[[grids]]
kind = "tune"
[grids.base]
backend = "scipy_bsr"
m = 64
k = 64
n = 4
[[grids]]
kind = "storage"
[grids.base]
form = "coo"
m = 64
k = 64
n = 4
[[grids]]
kind = "train"
[grids.base]
train_tokens = 2000
eval_tokens = 1000
embedding_size = 16
hidden_size = 16
num_layers = 1
bptt = 9
epochs = 1
schedule = "linear"
target_sparsity = 0.5
prune_biases = true
path = "auto"
[[grids]]
kind = "train"
[grids.base]
model = "mlp"
dataset = "digits"
hidden_size = 16
batch_size = 100
epochs = 1
schedule = "linear"
target_sparsity = 0.5
prune_biases = true
batch_norm = true
scale_threshold = 0.001
path = "sparse"
"""
OF_A_GPU = {
    "eager_ms", "baseline_eager_ms", "empty_ms", "roof_ms", "peak_tflops", "copy_gb_per_second",
}  # fmt: skip
EQUAL = {"equal_units", "inference_equal_dense_ms", "inference_equal_ms"}  # none comes near under so wide an embedding
OF_CLASSIFIERS = {"features", "kept_neurons", *(column.name for column in TRAIN if column.name.endswith("_accuracy"))}


def bench(*arguments: str, cwd: Path, said: Path | None = None) -> subprocess.CompletedProcess[str]:
    """said: the folder for what one says that is forked, None of one that a new interpreter runs, as a user's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    if said is None:
        command = [sys.executable, "-m", "bench", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    with Forked(["-m", "bench", *arguments], environment, said, cwd) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    done = bench(cwd=tmp_path)
    for command in ("list", "plan", "run", "show", "doctor"):
        assert command in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_list_names_what_sweep_files_can_use(tmp_path: Path) -> None:
    done = bench("list", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("torch_bsr", "pydoc", "digits", "lstm", "mlp", "cubic", "l2"):
        assert name in done.stdout


@pytest.mark.slow(10)
def test_a_real_sweep_from_plan_to_show(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    done = bench("plan", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 0 and "tiny: 7 cells (1 gemm, 1 lstm, 1 check, 1 tune, 1 storage, 2 train)" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
    done = bench("run", "tiny.toml", cwd=tmp_path, said=tmp_path / "said")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/7] ok" in done.stdout and "7 of 7 cells ok; results in results/tiny" in done.stdout
    done = bench("show", "tiny.toml", cwd=tmp_path)
    assert (
        "x dense" in done.stdout
        and "x torch_lstm" in done.stdout
        and " of indices, " in done.stdout
        and "val_ppl" in done.stdout
        and "to run: 0" in done.stdout
    )
    store = Store(tmp_path / "results" / "tiny")
    for kind in COLUMNS:
        rows = store.read(kind).to_pylist()
        ends = [row for row, after in zip(rows, [*rows[1:], {}], strict=True) if row["cell_id"] != after.get("cell_id")]
        assert len(ends) == (2 if kind == "train" else 1)
        for row in ends:
            # times on the host and queries are of a GPU only, the multiplier of the dual lasso, the loss's of compile
            absent = {
                "loss_eager_ms",
                "loss_compiled_ms",
                "reason",
                "block_norms",
                "lasso_multiplier",
                "host_ms",
                "peak_gpu_memory_mib",
                *QUERIES,
                *OF_A_GPU,
            }
            absent |= OF_CLASSIFIERS | EQUAL if row.get("model") == "lstm" else set()
            absent |= {"bias_sparsity"} if row.get("batch_norm") else set()  # which leaves no biases to train
            missing = [c.name for c in columns(kind) if row[c.name] is None and c.name not in absent]
            assert missing == [], "every column is produced"
            assert row["threads_used"] == 1
            assert row.get("model") != "lstm" or not any(row[name] for name in OF_CLASSIFIERS)
    done = bench("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 0 and "to run: 0" in done.stdout


QUICK = """
if __name__ == "__main__":
    from bench.__main__ import main
    main()
else:  # in a worker, which times its cell for a moment
    from bench import timing
    timing.MIN_SECONDS, timing.ATTEMPTS = 0.01, 1
"""


@pytest.mark.slow(8)
def test_nothing_that_reads_or_stores_cells_imports_pandas_nor_what_times_them_a_compiler(tmp_path: Path) -> None:
    """Half a second in which Ctrl-C would be lost (pyarrow imports it by the way, if it can), and two of a worker's."""
    settings = {"schedule": "pre", "target_sparsity": 0.5, "epochs": 1, "embedding_size": 16, "hidden_size": 16}
    train = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    text = '[[grids]]\nkind = "gemm"\n[grids.base]\nm = 32\nk = 32\nblock_size = 8\nbackend = "reference"\n'
    (tmp_path / "some.toml").write_text(
        f'{text}[grids.axes]\nseed = [0, 1]\n[[grids]]\nkind = "train"\n[grids.base]\n{train}'
    )
    sweep = load(tmp_path / "some.toml")
    store = Store(tmp_path / "results" / "some")
    store.cells.mkdir(parents=True)
    for cell in (sweep.cells[0], sweep.cells[-1]):
        store.put(cell, ended_ok(cell), {"cell_seconds": 1.0, "started_at": "2026-01-01", "source_hash": "old"})
    seen = (
        "import sys; from bench.run import make_plan; from bench.sweep import load; "
        "make_plan(load('some.toml'), 'results')"
    )
    (tmp_path / "quick.py").write_text(QUICK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command in (
        ("-c", f"{seen}; assert 'pandas' not in sys.modules"),
        ("-X", "importtime", "-m", "bench", "plan", "some.toml"),
        ("-X", "importtime", "quick.py", "run", "some.toml"),
        ("-X", "importtime", "-m", "bench", "show", "some.toml"),
    ):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
        assert not re.search(r"\|\s+pandas\.", done.stderr)
        assert not re.search(r"\|\s+(torch\._(dynamo|inductor)|sympy)\b", done.stderr)
        assert ("run" in command) is bool(re.search(r"\|\s+kernels\.check\b", done.stderr)), "workers are seen"
    assert len(store.finished()) == 3


def test_a_folder_in_use_is_status_3_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    with Store(tmp_path / "results" / "tiny").lock():
        done = bench("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1 and "in use by another run" in done.stderr


def test_doctor_says_what_works_here(tmp_path: Path) -> None:
    done = bench("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for what in (
        "python",
        "torch",
        "cuda",
        "cuda kernels",
        "compiler",
        "dataset pydoc",
        *(f"backend {name}" for name in BACKENDS),
    ):
        assert what in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_documentation_has_every_column(kind: str) -> None:
    assert all(f"| `{column.name}` |" in documentation() for column in columns(kind))


def test_the_committed_documentation_is_current() -> None:
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == documentation(), (
        "run: python -m bench columns"
    )


def test_the_analysis_knows_the_columns_of_today() -> None:
    assert (ROOT / "analysis" / "loading" / "columns.json").read_text(encoding="utf-8") == machine_readable(), (
        "run: python -m bench columns --schema analysis/loading/columns.json"
    )
