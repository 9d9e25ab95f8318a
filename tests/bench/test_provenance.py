"""Provenance: where a row comes from, without saying whose machine it is."""

from __future__ import annotations

import getpass
import platform
import re
from pathlib import Path

import pytest

from bench.measuring import machine
from bench.measuring.machine import QUERIES, gpu_state, read_answer
from bench.schema import PROVENANCE

GIVEN_BY_THE_RUN = {"schema_version", "threads_used", "workers", "started_at", "cell_seconds", *QUERIES}


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
    stations = ("__main__", "campaign", "doctor", "run", "store", "engines/local", "storing/parquet")
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


def test_blas_is_read_from_torchs_build() -> None:
    show = "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product\n  - Build settings: BLAS_INFO=mkl, X=1"
    assert machine.blas(show) == "mkl 2024.2"
    assert machine.blas("BLAS_INFO=open, LAPACK_INFO=open") == "open"
    assert machine.blas("") == "unknown"


def test_there_is_a_core_to_use() -> None:
    assert machine.physical_cores() >= 1


def test_the_state_of_a_gpu_is_read_and_what_it_does_not_say_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gpu_state("cpu").values()) == {None}
    assert list(read_answer("1980, 3201, 45, 312.55\n").values()) == [1980.0, 3201.0, 45.0, 312.55]
    assert list(read_answer("1980, [N/A], 45\n").values()) == [1980.0, None, 45.0, None]
    assert set(read_answer("").values()) == {None}
    monkeypatch.setenv("PATH", "")
    assert set(gpu_state("cuda")) == set(QUERIES)
