"""The plan for a GPU that is lent for minutes: the folder that goes along, and a dry run of the commands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvrtc import needs_nvrtc
from rows import timed

import bench.commands.campaign
import bench.engines.driver
from bench.__main__ import app
from bench.cells import Cell, TuneCell
from bench.commands import bundle
from bench.commands.bundle import MOST_FILES, commands, cubins, locked_versions, make, variants, wheels
from bench.commands.campaign import run_campaign, run_tuner, tune_cells
from bench.engines.driver import Terms
from bench.engines.local import Ending
from bench.measuring import smoke
from bench.measuring.machine import source_hash
from bench.measuring.smoke import Look, ask, looks, spoken
from bench.sweep import load

ONE = 'kind = "gemm"\n[base]\n'
ONE += 'backend = "cuda"\ndevice = "cuda"\ndtype = "bfloat16"\nm = 512\nk = 512\nn = 256\nblock_size = 32\n'


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.toml"
    path.write_text(ONE)
    return path


def test_what_a_sweep_asks_of_a_gpu_is_known_without_one(one: Path) -> None:
    found = variants(load(one).cells)
    assert found and len(set(found)) == len(found) and all(each.runs_on(90) for each in found)
    compared = set(variants([], tune_cells([load(one)], "cuda")))
    assert len(compared) > 10 and "products_wgmma_tma.cu" in {each.source for each in compared}
    assert {each.source for each in found} >= {"products_wgmma.cu", "dsd.cu"}, (
        "checks of few columns take the first rung"
    )


@needs_nvrtc
def test_kernels_are_found_compiled_where_the_folder_is_the_cache(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names hash sources, architecture and NVRTC's version, and no path."""
    first = variants(load(one).cells)[:1]
    monkeypatch.setattr(bundle, "variants", lambda *_: first)
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    assert re.fullmatch(r"kernels: 1 compiled for sm_90a by NVRTC [\d.]+", cubins([], folder))
    [cubin] = folder.rglob("*.cubin")
    assert cubin.parent.name == "block-sparse-bench" and "sm_90a" in cubin.name
    before = cubin.stat().st_mtime_ns
    cubins([], folder)
    assert cubin.stat().st_mtime_ns == before


def test_wheels_are_of_the_versions_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.partition("==")[0] for line in locked_versions()] == list(bundle.PACKAGES)

    def download(command: tuple[str, ...], _: float) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and set(locked_versions()) <= set(command)
        (tmp_path / "one.whl").write_text("")
        return subprocess.CompletedProcess(command, 1, "", "WARNING\nERROR: no network")

    monkeypatch.setattr(bundle, "run", download)
    assert wheels(tmp_path) == f"wheels: 1 of {len(bundle.PACKAGES)}, since ERROR: no network"


def test_the_folder_has_a_limit_and_its_setup_says_the_commit(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "wheels", lambda _: "wheels: none")
    monkeypatch.setattr(bundle, "cubins", lambda *_: "kernels: none")
    monkeypatch.setattr(bundle, "revision", lambda: ("b" * 40, False))
    said: list[str] = []
    found = make([load(one)], tmp_path / "gpu", said.append)
    assert "lies outside the checkout" in said[-2], said
    assert len(found) == 3 and f"BENCH_COMMIT={'b' * 40}" in (tmp_path / "gpu" / "setup.sh").read_text()
    assert subprocess.run(["sh", "-n", tmp_path / "gpu" / "setup.sh"], check=False).returncode == 0
    assert all(subprocess.run(["sh", "-n", "-c", each], check=False).returncode == 0 for each in found)
    assert (tmp_path / "gpu" / "cache").stat().st_mode & 0o77 == 0
    (tmp_path / "gpu" / "cache" / "large").write_bytes(bytes(41 * 2**20))
    with pytest.raises(ValueError, match="41 MiB; accepted: at most 40"):
        make([load(one)], tmp_path / "gpu", said.append)


def test_a_folder_of_somebody_elses_is_left_alone(one: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "wheels" / "file"
    mine.parent.mkdir(parents=True)
    mine.touch()
    for out in (tmp_path / "mine", mine):
        with pytest.raises(ValueError, match="was not made by this command; accepted: another --out"):
            make([load(one)], out)
    assert mine.is_file()


def test_every_command_is_one_that_the_suite_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are read, and nothing is run."""
    (tmp_path / "gpu" / "earlier").mkdir(parents=True)
    given: list[tuple[Any, ...]] = []
    for name in ("run_campaign", "run_tuner"):
        monkeypatch.setattr(bench.commands.campaign, name, lambda *each: given.append(each) or 0)
    for line in commands(str(tmp_path / "gpu"), ["gemm_gpu", "lstm_gpu"]):
        for part in re.findall(r"python3 -m bench (?:campaign|tune)[^;|)]*", line):
            with pytest.raises(SystemExit) as ended:
                app(shlex.split(part.replace("$OUT", "out"))[3:])
            assert ended.value.code == 0
    assert [len(each) for each in given] == [5, 9, 9] and given[1][-1] is True, "--renew"


class PretendedGpu:
    """A device on which every cell ends ok in its turn, as many in a call as `cells` says."""

    def __init__(self, cells: int) -> None:
        self.cells, self.ran = cells, list[Cell]()

    def __call__(self, cells: Iterable[Cell | None], *_: Any, **__: Any) -> Generator[Ending, None, None]:
        for cell in cells:
            if cell is None or len(self.ran) >= self.cells:
                return
            self.ran.append(cell)
            yield Ending(cell, self._rows(cell), "2026-01-01T00:00:00Z", 1.0)

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        if cell.checks:
            return [{"status": "ok", "pattern": "full", "n": 1, "reason": ""}]
        if isinstance(cell, TuneCell):
            right = {
                "status": "ok",
                "variant": '{"rung": "wgmma"}',
                "time_ms": 1.0,
                "samples_ms": [1.0],
                "chosen": True,
            }
            return [right]
        return timed()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], PretendedGpu]:
    monkeypatch.setattr(bench.commands.campaign, "require_device", lambda _: None)
    monkeypatch.setattr(bench.commands.campaign, "machine", lambda _: "0123abcd")
    facts = {"source_hash": source_hash(), "machine": "0123abcd", "device_name": "Pretended", "torch": "2.13"}
    monkeypatch.setattr(bench.engines.driver, "facts", lambda _: facts)
    return PretendedGpu


def files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_dry_run_of_the_whole_plan(pretended: Callable[[int], PretendedGpu], tmp_path: Path) -> None:
    """Three commands, each leaving a few files; the third goes on where the second ended; no cell runs twice."""
    sweeps = [load("gemm_gpu"), load("lstm_gpu")]
    tuner, first, second = pretended(10), pretended(60), pretended(60)
    outs = [tmp_path / name for name in ("right", "numbers", "rest")]
    assert run_tuner(sweeps[:1], outs[0] / "tuned.json", 110.0, "cuda", Terms(engine=tuner)) == 0
    for name in ("doctor.txt", "smoke.txt"):
        (outs[0] / name).write_text("said\n")
    terms = [Terms(timeout=40.0, engine=engine) for engine in (first, second)]
    assert run_campaign(sweeps, outs[1], 540.0, "cuda", None, 0.0, terms[0], renew=True) == 0
    assert run_campaign(sweeps, outs[2], 430.0, "cuda", outs[1], 0.0, terms[1], renew=True) == 0
    for out in outs:
        assert 0 < len(list(files(out))) <= MOST_FILES and not any(".lock" in name for name in files(out))
    assert {cell.kind for cell in first.ran} == {"check", "gemm", "lstm"}
    ran = [cell.cell_id for cell in (*first.ran, *second.ran)]
    assert len(ran) == len(set(ran)) == 120


def test_a_kernel_that_hangs_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def hang(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        asked.append(seconds)
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(smoke, "run", hang)
    said: list[str] = []
    assert smoke.smoke("cuda", quick=True, say=said.append) == 1
    assert asked == [20.0] * 4 and said[-1] == "dsd 4096 block 32: timeout: stopped after 20 s"


def test_a_look_comes_to_more_tiles_than_a_gpu_has_multiprocessors() -> None:
    whole = list(looks("cuda", quick=False))
    assert len(whole) == 3 + 12 and whole[0].op == "rates"
    assert all((look.side // 256) * (look.side // 128) > 148 for look in whole[1:])


def test_the_plan_keeps_to_the_time_that_a_machine_is_lent_for() -> None:
    for minutes, campaigns in ((10, 1), (15, 1), (30, 2), (60, 5)):
        first, *rest = commands("gpu", ["gemm_gpu"], minutes=minutes)
        budgets = [float(found) for line in rest for found in re.findall(r"--budget (\d+)", line)]
        assert len(budgets) == campaigns and all(60 <= each <= 540 for each in budgets)
        assert sum(budgets) + 360 + 90 * campaigns <= 60 * minutes, "with the first, and starts"
        assert ["--resume-from gpu/earlier" in line for line in rest] == [False] + [True] * (campaigns - 1)
        assert ("smoke --device cuda)" in first) == (minutes >= 30), "each kernel timed"


@pytest.mark.parametrize("ill", ["cluster 2", "", "cluster 1", "tests"])
def test_nothing_that_hangs_in_the_first_command_costs_the_rest(ill: str, tmp_path: Path) -> None:
    """Run by a shell with stand-ins for its programs; what is ill ends with status 1, the tests by never ending."""
    programs, out = tmp_path / "programs", tmp_path / "out"
    for folder in (programs, out, tmp_path / "gpu"):
        folder.mkdir()
    (tmp_path / "gpu" / "setup.sh").touch()
    hangs = 'case "$*" in *"-m pytest"*) sleep 60;; esac' if ill == "tests" else ""
    python = f'#!/bin/sh\necho "$BENCH_TUNE_WITHOUT|$*" >> {tmp_path}/ran\n{hangs}\n'
    python += f'case "$*" in *"{ill or "no such word"}"*) exit 1;; esac\n'
    (programs / "python3").write_text(python)
    (programs / "python3").chmod(0o755)
    first = commands("gpu", ["gemm_gpu"], minutes=15)[0].replace("-k 5 150", "-k 1 1")
    assert "timeout -k 1 1 python3 -m pytest" in first
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "OUT": str(out)}
    subprocess.run(["bash", "-c", first], cwd=tmp_path, env=environment, check=True, timeout=30, capture_output=True)
    *_, tuned = (tmp_path / "ran").read_text().splitlines()
    assert tuned.startswith({"cluster 2": ",cluster=2|", "cluster 1": ",cluster=1|"}.get(ill, "|") + "-m bench tune")


def test_kernels_by_tma_that_hang_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        asked = Look(*json.loads(command[-1]))
        assert asked.cluster == 2
        if asked.block_size == 32:
            raise subprocess.TimeoutExpired(command, seconds, output=b"at tile 7\n")
        said = '{"status": "ok", "count": 4, "error_ratio": 0.25}'
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(smoke, "run", hang)
    said: list[str] = []
    assert smoke.clusters("cuda", 2, said.append) == 1
    assert len(said) == 4 and "block 128: 4 kernels right, at most 0.25 of the error bound" in said[0]
    assert "block 32: timeout: stopped after 60 s" in said[2] and "at tile 7" in said[2]
    monkeypatch.setattr(
        smoke, "run", lambda one, _: subprocess.CompletedProcess(one, 1, "at tile 7\n", "E\nno launch\n")
    )
    assert ask(Look("dsd", 32, 4096, "cuda", 2), 1.0)["reason"] == "exit status 1 at tile 7: no launch"


@pytest.mark.slow
def test_each_look_is_a_process_and_a_line() -> None:
    """On the CPU by torch's dense product; one that dies says its last word."""
    dense = Look("dense", 0, 64, "cpu")
    found = ask(dense, 120.0)
    assert found["status"] == "ok", found
    assert re.fullmatch(
        r"dense 64: [\d.]+ us, [\d.]+ TFLOP/s, [\d.]+ of the error bound, .+", spoken(dense, found, 1.0)
    )
    ours = {"status": "ok", "ms": 0.05, "tflops": 500.0, "error_ratio": 0.5, "kernel": "cuda wgmma"}
    assert "efficiency 0.80" in spoken(Look("dsd", 128, 4096, "cuda"), ours, 0.2)
    assert ask(Look("nothing", 8, 64, "cpu"), 120.0)["status"] == "crashed"
