"""The tuned table at work on an emulated GPU.

Followed where it knows a like product, and no harm where it is damaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated_gpu import emulated_gpu

from kernels.backends.cuda import BACKEND
from kernels.check import check
from kernels.cuda import choose
from kernels.cuda.choose import Task
from kernels.problem import GemmProblem, LstmProblem, Problem
from kernels.system.cache import say, sealed

SHAPE = {"dtype": "bfloat16", "math": "ieee", "block_size": 16, "m": 64, "k": 64, "n": 33, "target_sparsity": 0.5}
Write = Callable[[object], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Puts a table in the place of ours: a list of entries, sealed, or any text."""
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(choose.nearest, "__defaults__", (path,))

    def written(content: object) -> None:
        text = content if isinstance(content, str) else json.dumps(sealed({"provenance": {}, "choices": content}))
        path.write_text(text, encoding="utf-8")
        choose.choices.cache_clear()

    yield written
    choose.choices.cache_clear()


def entries(op: str, rung: str, element: str = "Bfloat16", capability: int = 90, **other: Any) -> list[dict[str, Any]]:
    """An entry for each choice of a rung."""
    with emulated_gpu(capability) as gpu:
        names = [json.loads(name) for name in choose.offered(Task(op, element, 16, 40), gpu)]
    return [{"op": op, **SHAPE, **other, "variant": name} for name in names if name["rung"] == rung]


def kernel_of(problem: Problem) -> str:
    """What runs, checked."""
    launch = BACKEND.prepare(problem)
    assert check(launch, problem)[1] is None
    return launch.kernel


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_it_is_followed_where_it_knows_the_product(op: str, write: Write) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, dtype="bfloat16", op=op)
    with emulated_gpu():
        write([])
        assert kernel_of(problem).startswith("cuda mma.sync") and "tuned" not in kernel_of(problem)
        write(entries(op, "wgmma")[:1])
        assert kernel_of(problem).startswith("cuda wgmma") and kernel_of(problem).endswith(", tuned")
        assert "tuned" not in kernel_of(replace(problem, dtype="float16"))
        assert "tuned" not in kernel_of(replace(problem, n=200))  # not like it


@pytest.mark.parametrize("op", ["dsd", "dsd_t"])
def test_operands_by_tma_are_a_rung_of_their_own(op: str, write: Write) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, dtype="bfloat16", op=op)
    with emulated_gpu():
        for entry in entries(op, "wgmma tma")[:2]:
            write([entry])
            kernel = kernel_of(problem)
            assert kernel.startswith("cuda wgmma tma sm_90a Bfloat16 rows=") and kernel.endswith(", tuned")
            assert f"cluster={entry['variant']['cluster']}" in kernel


def test_tf32_is_a_row_of_its_own(write: Write) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, math="tf32")
    with emulated_gpu(80):
        write(entries("dsd", "mma.sync", "Tf32", 80, dtype="float32", math="tf32")[-1:])
        assert kernel_of(problem).endswith(", tuned") and "tuned" not in kernel_of(replace(problem, math="ieee"))


def test_every_entry_can_be_followed(write: Write) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, dtype="bfloat16", op="sdd")
    with emulated_gpu():
        for rung in ("mma.sync", "wgmma"):
            for entry in entries("sdd", rung)[:3]:
                write([entry])
                assert kernel_of(problem).startswith(f"cuda {rung}") and kernel_of(problem).endswith(", tuned")


def test_a_choice_that_this_gpu_lacks_means_the_default(write: Write) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, dtype="bfloat16")
    write(entries("dsd", "wgmma")[:1])
    with emulated_gpu(80):
        assert kernel_of(problem).startswith("cuda mma.sync") and "tuned" not in kernel_of(problem)
    write([{"op": "dsd", **SHAPE, "variant": {"rung": "mma.sync", "rows": 7}}])
    with emulated_gpu():
        assert "tuned" not in kernel_of(problem)


def test_a_damaged_table_is_no_harm(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    problem = GemmProblem(64, 64, 40, 16, 0.5, dtype="bfloat16")
    whole = entries("dsd", "wgmma")[0]
    wrong = [("n", 0), ("m", "64"), ("k", 64.0), ("block_size", True), ("op", 3), ("variant", "wgmma")]
    wrong += [("target_sparsity", each) for each in (None, -0.5, float("nan"), True, "0.5")]
    broken: list[object] = [{**whole, name: value} for name, value in wrong]
    broken += [{name: value for name, value in whole.items() if name != gone} for gone in ("op", "k", "variant")]
    table = json.dumps(sealed({"provenance": {}, "choices": [whole]}))
    texts = ["", "{", "[]", "3", json.dumps({"provenance": {}, "choices": [whole]}), "[" * 5000]
    texts += [json.dumps(sealed(content)) for content in ({}, {"choices": 3}, {"choices": {"op": 1}})]
    texts += [table[:length] for length in range(0, len(table), 40)]
    with emulated_gpu():
        for content in (*texts, [3], [None], *([whole, each] for each in broken)):
            say.cache_clear()
            write(content)
            assert "tuned" not in kernel_of(problem), content
            (line,) = capfd.readouterr().err.splitlines()
            assert "default rule" in line and "tuned.json" in line
        write(table)
        assert kernel_of(problem).endswith(", tuned")


def test_every_altered_bit_of_a_table_is_seen(write: Write, tmp_path: Path) -> None:
    whole = entries("dsd", "wgmma")[0]
    write([whole])
    path, found = tmp_path / "tuned.json", (whole,)
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 5):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        assert choose.choices.__wrapped__(path) in ((), found)


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.timeout(60)
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tuned.json")
    assert choose.choices.__wrapped__(tmp_path / "tuned.json") == ()


def test_it_is_looked_for_where_the_page_on_running_puts_it() -> None:
    root = Path(__file__).parents[3]
    assert f" {choose.PATH.relative_to(root).as_posix()} " in (root / "bench" / "RUNNING.md").read_text(
        encoding="utf-8"
    )


def test_layers_follow_it_too(write: Write) -> None:
    problem = LstmProblem(64, 16, 20, 2, 16, 0.5, dtype="bfloat16")
    with emulated_gpu():
        assert "tuned" not in kernel_of(problem)
        write(entries("dsd", "wgmma")[:1])
        assert kernel_of(problem).endswith(", tuned")
