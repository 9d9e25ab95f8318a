"""The plan for a GPU that is lent for minutes: the folder that goes along, and a dry run of the commands."""

from __future__ import annotations

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
from bench.commands.campaign import run_campaign, run_tuner
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
    assert {each.source for each in found} >= {"products_wgmma.cu", "dsd.cu"}, (
        "checks of few columns take the first rung"
    )


@needs_nvrtc
def test_kernels_are_found_compiled_where_the_folder_is_the_cache(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names hash sources, architecture and NVRTC's version, and no path."""
    first = variants(load(one).cells)[:1]
    monkeypatch.setattr(bundle, "variants", lambda _: first)
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
    assert "lies outside the checkout" in said[-2]
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
        for part in re.findall(r"python -m bench (?:campaign|tune)[^;|)]*", line):
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
