"""Provenance: where a row comes from, without saying whose machine it is."""

from __future__ import annotations

import getpass
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.measuring import machine
from bench.measuring.machine import QUERIES, gpu_state
from bench.schema import PROVENANCE
from kernels.cuda.compile import Nvrtc

OF_THE_CELL = {"plugins", "started_at", "cell_seconds", "peak_memory_mib", "peak_gpu_memory_mib"}
GIVEN_BY_THE_RUN = {"schema_version", "threads_used", "workers", *OF_THE_CELL, *QUERIES}


def test_every_column_is_filled() -> None:
    facts = machine.facts("cpu")
    assert set(facts) | GIVEN_BY_THE_RUN == {column.name for column in PROVENANCE}
    assert facts["device_name"] and facts["torch"] and facts["blas"] != "unknown" and facts["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{16}", facts["source_hash"])
    assert re.fullmatch(r"([0-9a-f]{40})?", facts["commit"])


def test_nothing_tells_whose_machine_it_is() -> None:
    text = " ".join(str(value) for value in machine.facts("cpu").values())
    assert platform.node() not in text
    assert str(Path.home()) not in text and str(machine.ROOT) not in text
    assert re.search(rf"\b{re.escape(getpass.getuser())}\b", text) is None


def test_the_source_hash_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("kernels", "bench"):
        (tmp_path / folder).mkdir()
    source, sweep = tmp_path / "kernels" / "a.cpp", tmp_path / "bench" / "smoke.toml"
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    hashes = []
    for path, text in ((source, "1"), (source, "2"), (sweep, "3")):
        path.write_text(text)
        hashes.append(machine.source_hash.__wrapped__())
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_docstring_of_a_command_is_no_source_of_a_cell() -> None:
    """Else it would make checkpoints, tunings and break-evens unusable."""
    named = {machine.ROOT / top for top in machine.COMPUTES}
    assert all(path.exists() for path in named)
    stations = ("__main__", "commands/campaign", "commands/doctor", "run", "store", "engines/local", "storing/parquet")
    for name in stations:
        path = machine.ROOT / "bench" / f"{name}.py"
        assert path.is_file() and not {path, *path.parents} & named


def test_a_folder_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    for folder in ("cuda", "native"):
        (tmp_path / "kernels" / folder).mkdir(parents=True)
        (tmp_path / "kernels" / folder / "a.cu").write_text("1")
    before = {
        each: machine.source_hash.__wrapped__("kernels", without=f"kernels/{each}") for each in ("cuda", "native")
    }
    (tmp_path / "kernels" / "cuda" / "a.cu").write_text("2")
    after = {each: machine.source_hash.__wrapped__("kernels", without=f"kernels/{each}") for each in ("cuda", "native")}
    assert before["cuda"] == after["cuda"] and before["native"] != after["native"]


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.revision() == ("", None)
    monkeypatch.setenv("PATH", "")
    assert machine.revision() == ("", None)
    assert machine.gpu_driver() == ""


def test_a_copy_without_git_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder that is copied to a machine is; a checkout says its own."""
    monkeypatch.setenv("BENCH_COMMIT", "a" * 40)
    assert machine.revision()[0] != "a" * 40 or not (machine.ROOT / ".git").exists()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.revision() == ("a" * 40, None)
    monkeypatch.setenv("BENCH_COMMIT", "main\n")
    assert machine.revision() == ("", None)


def test_the_tuned_table_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels" / "cuda").mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    before = machine.source_hash.__wrapped__("kernels")
    (tmp_path / "kernels" / "cuda" / "other.json").write_text("{}")
    assert machine.source_hash.__wrapped__("kernels") == before
    (tmp_path / "kernels" / "cuda" / "tuned.json").write_text("{}")
    assert machine.source_hash.__wrapped__("kernels") != before


def test_libraries_of_a_gpu_are_named_as_far_as_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    monkeypatch.setattr(machine, "_versions", lambda *_: iter(["13.1.0.3"]))
    monkeypatch.setattr("kernels.cuda.compile.nvrtc", lambda: Nvrtc("13.0", lambda *_: (b"", "")))
    assert machine.gpu_libraries() == "CUDA 13.0, cuBLAS 13.1.0.3, cuDNN 91300, NVRTC 13.0"
    monkeypatch.setattr(machine, "_versions", lambda *_: iter([]))
    assert machine.gpu_libraries() == "CUDA 13.0, cuDNN 91300, NVRTC 13.0"


def test_blas_is_read_from_torchs_build() -> None:
    show = "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product\n  - Build settings: BLAS_INFO=mkl, X=1"
    assert machine.blas(show) == "mkl 2024.2"
    assert machine.blas("BLAS_INFO=open, LAPACK_INFO=open") == "open"
    assert machine.blas("") == "unknown"


def test_a_job_has_the_processors_that_slurm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("bench.measuring.machine._quota", lambda: [6])
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert machine.processors() == 6
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert machine.processors() == 6, "no job"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert machine.processors() == 4
    for given, found in (("2", 2), ("16", 6), ("0", 1), ("many", 4), ("9" * 5000, 4), ("٣", 4)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert machine.processors() == found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.max": "150000 100000\n"}, [2]),
        ({"cpu.max": "nonsense\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [1]),
    ],
)
def test_a_container_has_the_processors_of_its_quota(files: dict[str, str], found: list[int], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._quota(tmp_path) == found


def test_there_is_a_core_to_use() -> None:
    assert machine.physical_cores() >= 1


def pretended_driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package nvidia-ml-py as torch.cuda uses it, on a machine with two GPUs of which torch sees the second."""
    driver = ModuleType("pynvml")
    clocks = {(0, 1): 345, (0, 2): 405, (1, 1): 1980, (1, 2): 3201}
    driver.NVMLError_DriverNotLoaded = OSError
    driver.nvmlInit = lambda: None
    driver.nvmlDeviceGetHandleByIndex = lambda index: index
    driver.nvmlDeviceGetClockInfo = lambda gpu, kind: clocks[gpu, kind]
    driver.nvmlDeviceGetTemperature = lambda gpu, _: (30, 45)[gpu]
    driver.nvmlDeviceGetPowerUsage = lambda gpu: (70000, 312550)[gpu]
    driver.nvmlDeviceGetCurrentClocksEventReasons = lambda gpu: (0x1, 0x4 | 0x20)[gpu]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "pynvml", driver, raising=False)
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", True)
    monkeypatch.setattr(torch.cuda, "_get_device_index", lambda *_, **__: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    return driver


def test_the_state_of_a_gpu_is_that_of_torchs_and_what_it_does_not_say_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gpu_state("cpu").values()) == {None}
    driver = pretended_driver(monkeypatch)
    found = (1980.0, 3201.0, 45.0, 312.55, "power cap, thermal, software")
    assert gpu_state("cuda") == dict(zip(QUERIES, found, strict=True))
    assert set(gpu_state("cpu").values()) == {None}
    del driver.nvmlDeviceGetTemperature
    assert gpu_state("cuda")["temperature_celsius"] is None and gpu_state("cuda")["power_watts"] == 312.55
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", False)
    monkeypatch.setattr(torch.cuda, "_PYNVML_ERR", ImportError("no such package"), raising=False)
    assert gpu_state("cuda") == dict.fromkeys(QUERIES)
