"""Every command and program of README, RUNNING and CONTRIBUTING, run as a new user does.

Each in a fresh clone, with what is not committed yet.

A command that is neither run nor in NOT_RUN fails the last tests, as does one there that nobody writes any more, or one
that stands in the prose alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloned import ROOT, clone_into, environment, needed, shell

from bench.sweep import load

pytestmark = pytest.mark.examples

LONG, TRAINS = "takes minutes, on a machine that does nothing else", "trains for hours"
GPU = "needs a GPU, or what the commands above it wrote on one"
RUNS_THIS = "is what runs this test"
CLUSTER = "has daemons stay; tests/bench/engines/test_cluster.py has a cluster of its own"
SHARED = "needs folders of other machines; tests/bench/commands/test_merge.py has some"
MODEL = "needs a model of the reader's; tests/bench/commands/test_advise.py has some"
NOT_RUN = {
    "python -m pip install nox && nox -s sweep": (
        "installs, and times and trains for 5 minutes; a tiny sweep is run below"
    ),
    "python -m pip install nox && nox": "installs, and is what runs this test",
    "nox -s sweep -- wikitext2_small": TRAINS,
    "nox": RUNS_THIS,
    "python -m bench advise --lstm 650:2 --block-size 26 --passes both": LONG,
    "python -m bench advise --lstm 650:2 --batch 20 --steps 35 --block-size 26": LONG,
    "python -m bench advise model.safetensors": MODEL,
    "python -m bench advise package.module:factory": MODEL,
    "python -m bench advise model.safetensors --apply sparse.safetensors --block-size 32 --sparsity 0.8": MODEL,
    "nox -s types": "nox does it beside these tests, and it takes long where mypy has nothing kept",
    "nox -s tests": LONG,
    "nox -s builds": LONG,
    "nox -s examples": RUNS_THIS,
    "nox -s kills": LONG,
    "nox -s chaos": LONG,
    'nox -s tests -- -m "not slow"': LONG,
    "nox -s notebooks": "runs in tests/analysis/reporting/test_notebooks.py, which looks at what it makes",
    "nox -s bench": LONG,
    "nox -s campaign": TRAINS,
    "nox -s campaign -- --budget 30000 --together 2": TRAINS,
    "cp results/campaign/wikitext2_words/train.parquet* results/reference/wikitext2_words/": TRAINS,
    "nox -s sanitize": LONG,
    "nox -s sanitize -- -k sdd": LONG,
    "nox -s cuda": LONG,
    "nox -s gpu": "minutes of compiling, asks the package index; tests/bench/commands/test_bundle.py has a small one",
    "nox -s emulate": LONG,
    "nox -s lock": "asks the package index of today, whose answer is not that of the day before",
    "python -m bench run wikitext2_small": TRAINS,
    "python -m bench tune gemm_gpu --out out/tuned.json --budget 300": GPU,
    "cp out/tuned.json kernels/cuda/tuned.json": GPU,
    "python -m bench campaign gemm_gpu lstm_gpu --out out --budget 600": GPU,
    "cp -r out/gemm_gpu out/lstm_gpu results/reference/": GPU,
    "ray start --head --port 6379": CLUSTER,
    "ray start --address 10.0.0.1:6379": CLUSTER,
    "python -m bench run mine.toml --engine ray --address auto": CLUSTER,
    "python -m bench compare gemm results/reference/gemm": (
        "compares results of one's own; tests/analysis/commands/test_versus.py has some"
    ),
    "python -m bench run mine.toml --results /shared/results --share": SHARED,
    "python -m bench run mine.toml --shard 1/2": SHARED,
    "python -m bench merge mine.toml elsewhere --results results": SHARED,
}
LONGER = {"analysis report": 12, "bench advise": 60}  # seconds
TINY = (
    'kind = "gemm"\n[base]\nm = 64\nk = 64\nn = 4\nblock_size = 16\ntarget_sparsity = 0.5\nthreads = 1\n'
    'backend = "torch_bsr"\n'
)
SMALLER = "TrainCell(train_tokens=4000, eval_tokens=1000, epochs=1, "  # a second instead of half a minute


A_COMMAND = re.compile(r"nox( |$)|pytest .|python -m (bench|analysis|pytest) ")


PAGES = ("README.md", "bench/RUNNING.md", "CONTRIBUTING.md")


def texts() -> list[str]:
    return [(ROOT / name).read_text(encoding="utf-8") for name in PAGES]


def blocks(language: str) -> list[str]:
    return [found for text in texts() for found in re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)]


def in_prose() -> list[str]:
    """The commands between backticks outside blocks; a line may end within one."""
    prose = [re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S) for text in texts()]
    spans = [" ".join(span.split()) for text in prose for span in re.findall(r"`([^`]+)`", text)]
    return list(dict.fromkeys(span for span in spans if A_COMMAND.match(span)))


def commands() -> list[str]:
    """Each once, without what is said about it."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks("console") for line in block.splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


RUN = [command for command in commands() if command not in NOT_RUN]


def mark_of(command: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow(seconds) for words, seconds in LONGER.items() if words in command]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """One for each test, gone after it: a clone takes 13 MB and a quarter of a second."""
    needed()
    yield clone_into(tmp_path / "clone")
    shutil.rmtree(tmp_path / "clone")


@pytest.mark.parametrize("command", [pytest.param(each, marks=mark_of(each)) for each in RUN])
def test_a_command_runs_in_a_fresh_clone(command: str, clone: Path) -> None:
    shell(command, clone)


def test_a_checkout_of_somebody_else_is_cloned_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a hook or a container runs the tests."""
    needed()
    real = shutil.which("git")
    somebody = tmp_path / "bin"  # git's own way to try a folder of somebody else
    somebody.mkdir()
    (somebody / "git").write_text(f"#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec '{real}' \"$@\"\n")
    (somebody / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(somebody), prepend=os.pathsep)
    elsewhere = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "BENCH_RESULTS", "BENCH_KERNEL_FLAGS", "PYTHONHOME"}
    for name in elsewhere:
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "data"))
    folder = clone_into(tmp_path / "clone")
    assert (folder / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    given = environment(folder)
    assert not elsewhere & given.keys() and given["BENCH_DATA_DIR"] == str(tmp_path / "data")
    shutil.rmtree(folder)


def test_the_clone_is_what_runs(clone: Path) -> None:
    found = shell("python -c 'import bench, analysis, kernels; print(bench.__path__, kernels.__path__)'", clone)
    assert found.count(str(clone)) == 2


@pytest.mark.slow(12)
def test_a_sweep_of_ones_own_is_run_and_reported(clone: Path) -> None:
    (clone / "own.toml").write_text(TINY)
    said = shell("nox -s sweep -- own.toml", clone)
    assert "[1/1]" in said and (clone / "results" / "own" / "report.html").is_file()


SAYS = {  # what holds after a program, by what it is about
    "FinalModel": "assert logits.shape == (words.numel(), logits.shape[1])",
    "sparsify": "assert report.replaced and max(report.replaced.values()) < 0.9",
}


@pytest.mark.slow(15)
@pytest.mark.parametrize("about", SAYS)
def test_a_program_runs_in_a_fresh_clone(about: str, clone: Path) -> None:
    """The cell that is trained is a smaller one."""
    (program,) = (each for each in blocks("python") if about in each)
    assert program.count("TrainCell(") == (about == "FinalModel")
    (clone / "program.py").write_text(f"{program.replace('TrainCell(', SMALLER)}\n{SAYS[about]}\n")
    shell("python program.py", clone)
    exported = [(clone / name).is_file() for name in ("model.pt", "model.pt.sha256")]
    assert exported == 2 * [about == "FinalModel"]


def test_every_program_is_run() -> None:
    assert all(sum(about in program for about in SAYS) == 1 for program in blocks("python"))


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_sweep_file_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    sizes = [len(values) for values in tomllib.loads(text)["axes"].values()]
    assert len(load(tmp_path / "own.toml").cells) == sizes[0] * sizes[1]


def test_what_is_not_run_is_written_somewhere_and_something_is_run() -> None:
    assert [command for command in NOT_RUN if command not in commands()] == []
    assert len(RUN) >= 10 and all(NOT_RUN.values())


def test_no_command_stands_in_the_prose_alone() -> None:
    """A shorter one may stand for a longer one of a block: `nox -s tests`."""
    known = [part for command in commands() for part in command.split(" && ")]
    assert [span for span in in_prose() if not any(f"{command} ".startswith(f"{span} ") for command in known)] == []


@pytest.mark.parametrize("page", [*PAGES, "analysis/READING.md", "kernels/PLUGINS.md", "results/reference/README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """A file that is there, and in a page a heading, as its words make its anchor."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in headings}, link
