"""Plugins: what the page about them shows works as it stands there, and what cannot be used is refused in one line."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import command

from bench.measuring.machine import source_hash
from bench.store import Store
from kernels import registry
from kernels.problem import Backend, GemmProblem
from kernels.registry import BACKENDS, PLUGINS_VARIABLE, PluginError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "kernels" / "PLUGINS.md").read_text(encoding="utf-8")
CODE = {
    code.partition(":")[0].strip('"'): code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
}  # by the name that the first line says
(SWEEP,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SMALL = """
kind = "train"
[base]
train_tokens = 3000
eval_tokens = 1000
embedding_size = 16
hidden_size = 32
num_layers = 1
epochs = 1
block_size = 8
target_sparsity = 0.5
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin is left in this process, nor what one has registered."""
    from bench.pruning.criteria import CRITERIA
    from bench.pruning.schedules import SCHEDULES

    monkeypatch.setattr(registry, "plugins", registry._Loader())
    monkeypatch.setattr("bench.measuring.machine.plugins", registry.plugins)
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    before = [(each, dict(each._members)) for each in (CRITERIA, SCHEDULES)]
    yield
    for each, members in before:
        each._members.clear()
        each._members.update(members)
    for name in [name for name in sys.modules if name.startswith("block_sparse_bench_plugin_")]:
        del sys.modules[name]


def written(folder: Path, name: str, text: str | None = None) -> Path:
    path = folder / f"{name}.py"
    path.write_text(CODE[name] if text is None else text, encoding="utf-8")
    return path


def rows(folder: Path, kind: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = Store(folder / "results" / "mine").read(kind).to_pylist()
    return found


def use(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    monkeypatch.setenv(PLUGINS_VARIABLE, os.pathsep.join(map(str, paths)))


@pytest.mark.slow(8)
def test_the_backend_of_the_page_is_checked_timed_listed_and_identified(tmp_path: Path) -> None:
    plugin = written(tmp_path, "numpy_rows")
    (tmp_path / "mine.toml").write_text(SWEEP.replace("512", "128"))
    assert "numpy_rows" in command("bench", tmp_path, "list", "--plugin", plugin).stdout
    done = command("bench", tmp_path, "run", "mine.toml", "--plugin", plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path, "gemm")
    ours = [row for row in found if row["backend"] == "numpy_rows"]
    assert len(found) == 4 and all(row["status"] == "ok" and row["time_ms"] for row in ours)
    sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
    assert {row["plugins"] for row in ours} == {f"numpy_rows {sha256[:16]}"}
    assert {row["plugins"] for row in found if row["backend"] == "native"} == {""}
    without = command("bench", tmp_path, "plan", "mine.toml")
    assert without.returncode == 2 and "axes.backend" in without.stderr and "accepted: cuda" in without.stderr


@pytest.mark.slow(8)
def test_a_kernel_that_is_wrong_has_no_time(tmp_path: Path) -> None:
    plugin = written(tmp_path, "numpy_rows", CODE["numpy_rows"].replace("y[:] = ", "y[:] = 1.001 * "))
    (tmp_path / "mine.toml").write_text(SWEEP.replace("512", "128").replace(', "native"', ""))
    variable = {PLUGINS_VARIABLE: str(plugin)}  # which every command goes by
    assert command("bench", tmp_path, "run", "mine.toml", **variable).returncode == 1
    assert {(row["status"], row["time_ms"]) for row in rows(tmp_path, "gemm")} == {("wrong", None)}


@pytest.mark.slow(8)
def test_the_criterion_and_the_schedule_of_the_page_train(tmp_path: Path) -> None:
    plugin = written(tmp_path, "thirds")
    settings = 'criterion = "median_magnitude"\nschedule = "thirds"\n'
    (tmp_path / "mine.toml").write_text(SMALL + settings)
    done = command("bench", tmp_path, "run", "mine.toml", "--plugin", plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    last = rows(tmp_path, "train")[-1]
    assert last["sparsity"] == 0.5 and str(last["plugins"]).startswith("thirds ")


DATA = """
from bench.data.corpus import Corpus, Sizes

WORDS = ("a", "b", "c", "d")

def load(folder):
    text = [WORDS[(number * number) % 4] for number in range(9000)]
    return Corpus.from_words(text[:7000], text[7000:8000], text[8000:], list(WORDS))

def sizes():
    return Sizes(7000, 1000, 1000, 4)
"""
MODEL = '''
from bench.models.lstm import LSTM

class Wide(LSTM):
    """As the suite's."""

def model(cell, vocabulary):
    return Wide(cell, vocabulary)
'''


@pytest.mark.slow(8)
def test_a_model_and_a_data_set_of_ones_own(tmp_path: Path) -> None:
    plugins = [written(tmp_path, "squares", DATA), written(tmp_path, "wide", MODEL)]
    (tmp_path / "mine.toml").write_text(SMALL + 'dataset = "squares"\nmodel = "wide"\nschedule = "cubic"\n')
    options = [part for each in plugins for part in ("--plugin", each)]
    done = command("bench", tmp_path, "run", "mine.toml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    last = rows(tmp_path, "train")[-1]
    assert last["vocabulary"] == 4 and 1.0 <= float(str(last["val_ppl"])) < 4.5
    assert [each.split()[0] for each in str(last["plugins"]).split(", ")] == ["squares", "wide"]


BAD = {
    "raises": ("raise RuntimeError('two\\nlines')", "no plugin: RuntimeError: two lines"),
    "syntax": ("def (:", "no plugin: SyntaxError: "),
    "exits": ("import sys\nsys.exit(3)", "no plugin: SystemExit: 3"),
    "dense": ("from kernels.backends.native import BACKEND", "the suite has a backend dense"),
    "three": ("BACKEND = 3", "its BACKEND is no backend; accepted: a backend, as those of kernels.backends"),
    "not-a-name": ("", "no such file, or its name is none of a Python module"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_ends_in_one_line(name: str, tmp_path: Path) -> None:
    text, words = BAD[name]
    plugin = written(tmp_path, name, text)
    (tmp_path / "mine.toml").write_text(SWEEP)
    before = sorted(tmp_path.rglob("*"))
    done = command("bench", tmp_path, "run", "mine.toml", "--plugin", plugin, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(plugin) in done.stderr and words in done.stderr and "accepted: " in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_what_it_prints_is_no_part_of_an_answer(tmp_path: Path) -> None:
    done = command("bench", tmp_path, "list", "--json", "--plugin", written(tmp_path, "talks", "print('hello')"))
    assert done.returncode == 0 and done.stderr == "hello\n" and json.loads(done.stdout)["sweeps"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = command("bench", tmp_path, "list", "--plugin", "nothing.py")
    assert done.returncode == 2 and "nothing.py: no plugin: no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    use(monkeypatch, written(tmp_path, "numpy_rows"), written(tmp_path / "other", "numpy_rows"))
    with pytest.raises(PluginError, match="another plugin is called numpy_rows"):
        BACKENDS.names()


def test_another_version_of_a_file_is_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = source_hash.__wrapped__()
    plugin = written(tmp_path, "numpy_rows")
    use(monkeypatch, plugin)
    first = source_hash.__wrapped__()
    monkeypatch.setattr("bench.measuring.machine.plugins", registry._Loader())
    plugin.write_text(CODE["numpy_rows"] + "\n# changed\n")
    assert len({without, first, source_hash.__wrapped__()}) == 3
    assert source_hash.__wrapped__("kernels/native") == source_hash("kernels/native")


def test_an_installed_package_names_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "of_a_package", CODE["numpy_rows"])
    spec = importlib.util.spec_from_file_location("of_a_package", tmp_path / "of_a_package.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    point = SimpleNamespace(name="numpy_rows", value="of_a_package", load=lambda: module)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if "block_sparse" in group else [])
    assert "numpy_rows" in BACKENDS.names() and isinstance(BACKENDS["numpy_rows"], Backend)
    problem = GemmProblem(32, 16, 5, 8, 0.5)
    launch = BACKENDS["numpy_rows"].prepare(problem)
    launch()
    assert torch.allclose(launch.outputs()["output"], problem.weight @ problem.x, atol=1e-4)


def test_the_kernel_in_triton_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile(CODE["triton_rows"], "triton_rows.py", "exec")
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        pytest.skip("runs on a GPU with Triton")
    from kernels.check import check

    use(monkeypatch, written(tmp_path, "triton_rows"))
    for dtype in ("float32", "bfloat16"):
        problem = GemmProblem(256, 128, 70, 16, 0.6, dtype=dtype, device="cuda")
        assert check(BACKENDS["triton_rows"].prepare(problem), problem)[1] is None
