"""Parts of a sweep that ran apart become one; cells that several processes share run once; all stored is checked."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
import work

from bench import store as storing
from bench.cells import Cell, GemmCell, TrainCell
from bench.commands.campaign import run_campaign
from bench.commands.fsck import check
from bench.commands.merge import merge
from bench.commands.options import shard
from bench.engines.driver import LeftError, Terms
from bench.run import Shard, UnusableError, _Shelf, make_plan, run_sweep
from bench.store import LockedError, Store, locked
from bench.storing import claims as claiming
from bench.storing.claims import Claims
from bench.storing.mirror import Mirror
from bench.sweep import Sweep, load
from kernels.system.resources import ResourceError

ROOT = Path(__file__).parents[3]
START = Path(__file__).parents[1] / "start.py"
PROVENANCE = {"started_at": "2026-01-01", "cell_seconds": 1.0, "device_name": "one", "torch": "2", "machine": "0" * 8}


def sweep_of(*cells: Any) -> Sweep:
    return Sweep("sweep", "", Path("sweep.toml"), tuple(cells))


TRAINED = sweep_of(*(TrainCell(seed=seed) for seed in range(6)))
TIMED = sweep_of(*(GemmCell(seed=seed) for seed in range(6)))


def put(folder: Path, cells: Sequence[Cell], **provenance: Any) -> Store:
    """The folder of a sweep with those cells, ok."""
    store = Store(folder / "sweep")
    store.cells.mkdir(parents=True)
    for cell in cells:
        store.put(cell, work.rows_of(cell), PROVENANCE | provenance)
    return store


def run(sweep: Sweep, folder: Path, **more: Any) -> int:
    return run_sweep(sweep, folder, terms=Terms(work=work.succeed), **more)


def test_shards_are_all_of_a_sweep_and_each_runs_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [Shard(place, 4) for place in (1, 2, 3, 4)]
    assert sorted(cell.seed for part in parts for cell in part.part(TRAINED.cells)) == list(range(6))
    for part in parts[:3]:
        assert run(TRAINED, tmp_path, shard=part) == 0
    said = capsys.readouterr().out
    assert "shard 2/4: 2 of them" in said and "2 of 2 cells of shard 2/4 ok" in said
    assert make_plan(TRAINED, tmp_path).todo == (TRAINED.cells[3],)
    assert make_plan(TRAINED, tmp_path, shard=parts[0]).todo == ()
    assert run(TRAINED, tmp_path, shard=parts[3]) == 0
    assert Store(tmp_path / "sweep").read("train")["seed"].to_pylist() == [
        row for cell in TRAINED.cells for row in [cell.seed] * len(work.rows_of(cell))
    ]


@pytest.mark.parametrize("given", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/1000000", "", "²/3"])
def test_a_shard_that_is_none_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as refused:
        shard(given)
    assert refused.value.exit_code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_folders_are_merged_and_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "a", TRAINED.cells[:3])
    put(tmp_path / "b", TRAINED.cells[2:5], started_at="2026-01-02")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert merge(TRAINED, [tmp_path / "a", tmp_path / "b" / "sweep"], tmp_path / "all") == 0
    said = capsys.readouterr().out
    assert "5 of 6 cells stored" in said and "1 cell missing: python -m bench run" in said
    assert {path: path.read_bytes() for path in before} == before
    finished = Store(tmp_path / "all" / "sweep").finished()
    assert set(finished) == {cell.cell_id for cell in TRAINED.cells[:5]}
    assert finished[TRAINED.cells[2].cell_id].started_at == "2026-01-02"
    assert len(set(Store(tmp_path / "all" / "sweep").read("train")["cell_id"].to_pylist())) == 5
    merge(TRAINED, [tmp_path / "a"], tmp_path / "all")
    assert "0 cells taken over" in capsys.readouterr().out


def test_what_is_damaged_is_left_and_told_and_what_is_ok_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a", TRAINED.cells[:3])
    other = Store(tmp_path / "b" / "sweep")
    other.cells.mkdir(parents=True)
    for cell in TRAINED.cells[:2]:
        other.put(cell, [{"status": "failed", "reason": "x"}], PROVENANCE | {"started_at": "2027"})
    (path,) = (tmp_path / "a" / "sweep" / "cells").glob(f"{TRAINED.cells[0].cell_id}-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert merge(TRAINED, [tmp_path / "b", tmp_path / "a"], tmp_path / "all") == 1
    assert f"{path} is damaged" in capsys.readouterr().out and path.exists()
    finished = Store(tmp_path / "all" / "sweep").finished()
    assert [finished[cell.cell_id].status for cell in TRAINED.cells[:3]] == ["failed", "ok", "ok"]


def test_two_results_of_one_training_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = TRAINED.cells[0]
    for name, sparsity in (("a", 0.1), ("b", 0.2)):
        store = Store(tmp_path / name / "sweep")
        store.cells.mkdir(parents=True)
        store.put(cell, work.rows_of(cell, sparsity=sparsity), PROVENANCE | {"source_hash": "same"})
    assert merge(TRAINED, [tmp_path / "a", tmp_path / "b"], tmp_path / "all") == 1
    assert "has two results, by the same sources on one machine: sparsity differ" in capsys.readouterr().out


def test_tables_of_a_campaign_are_gone_on_from(tmp_path: Path) -> None:
    assert run_campaign([TRAINED], tmp_path / "out", 1000.0, "cpu", terms=Terms(work=work.succeed)) == 0
    assert merge(TRAINED, [tmp_path / "out"], tmp_path / "all") == 0
    assert make_plan(TRAINED, tmp_path / "all").todo == ()


def test_nothing_of_a_sweep_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="holds nothing of sweep"):
        merge(TRAINED, [tmp_path], tmp_path / "all")
    assert list(tmp_path.iterdir()) == []


def test_timings_of_two_machines_stand_in_no_table_unasked(tmp_path: Path) -> None:
    """Nor by going on in a folder, nor by a merge, nor in a campaign's; what trains may."""
    put(tmp_path / "a", TIMED.cells[:3])
    put(tmp_path / "b", TIMED.cells[3:], machine="1" * 8)
    with pytest.raises(
        UnusableError, match=r"3 timings in [^\n]+ of another machine or other libraries \(one, torch 2\)"
    ):
        run(TIMED, tmp_path / "a")
    with pytest.raises(UnusableError, match="timed on 2 machines"):
        merge(TIMED, [tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not list((tmp_path / "all").rglob("*.parquet"))
    assert "note: 3 stored timings of another machine" in "\n".join(make_plan(TIMED, tmp_path / "a").lines())
    assert merge(TIMED, [tmp_path / "a", tmp_path / "b"], tmp_path / "all", mix_machines=True) == 0
    assert run(TIMED, tmp_path / "all") == 0, "nothing is timed here"
    assert run(TIMED, tmp_path / "a", mix_machines=True) == 0
    put(tmp_path / "c", TRAINED.cells[:3])
    assert run(TRAINED, tmp_path / "c") == 0
    older = put(tmp_path / "d", TIMED.cells[:3], machine=None)
    assert run(TIMED, tmp_path / "d") == 0 and len(older.finished()) == 6


def test_a_campaign_times_on_one_machine_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Terms(work=work.end_well)
    few = sweep_of(*TRAINED.cells, GemmCell(seed=0, backend="dense"))
    assert run_campaign([few], tmp_path, 1000.0, "cpu", terms=terms) == 0
    monkeypatch.setattr("bench.commands.campaign.machine", lambda _: "another")
    more = sweep_of(*few.cells, GemmCell(seed=1, backend="dense"))
    with pytest.raises(UnusableError, match="1 timing stored on another machine or with other libraries"):
        run_campaign([more], tmp_path, 1000.0, "cpu", terms=terms)
    assert run_campaign([more], tmp_path, 1000.0, "cpu", terms=terms, mix_machines=True) == 0


@pytest.mark.kills
def test_eight_processes_share_a_sweep_and_each_cell_runs_once(tmp_path: Path) -> None:
    file, results, log = tmp_path / "sweep.toml", tmp_path / "results", tmp_path / "log"
    log.mkdir()
    file.write_text(f'kind = "gemm"\n[axes]\nseed = {list(range(40))}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_TEST_FOLDER": str(log)}
    command = [sys.executable, str(START), str(file), str(results), "note", "0", "share"]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 8, said
    began = [path.name.split(".")[0] for path in log.iterdir()]
    assert sorted(map(int, began)) == list(range(40)), "a cell ran twice, or never"
    store = Store(results / "sweep")
    assert len(store.finished()) == 40 and store.read("gemm")["seed"].to_pylist() == list(range(40))
    assert not list((results / "sweep" / "claims").iterdir())


def test_a_lock_that_another_looks_at_while_it_is_taken_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who shares looks at every lock for what kills have left: also at one that was made and is not yet held."""
    (folder := tmp_path / "sweep").mkdir()
    monkeypatch.setattr("bench.store.secrets.token_hex", lambda _: "00")
    name, looking, looked = ".lock-share-00", threading.Event(), threading.Event()

    def look() -> None:
        with locked(folder, "", name):
            looking.set()
            looked.wait(0.3)
            (folder / name).unlink()

    other = threading.Thread(target=look)
    other.start()
    looking.wait()
    with Store(folder).lock(share=True), pytest.raises(LockedError), locked(folder, "", name):
        pass
    other.join()


def test_a_claim_of_who_is_gone_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = Claims(tmp_path), Claims(tmp_path)
    with mine.held(), theirs.held():
        assert theirs.claim("a") and not mine.claim("a") and not theirs.claim("a")
        theirs.done("a")
        assert mine.claim("a")
        assert theirs.claim("b")
        monkeypatch.setattr(claiming, "LOST_SECONDS", -1.0)
        assert mine.claim("b")
        theirs.done("b")  # is no longer its own
        monkeypatch.setattr(claiming, "LOST_SECONDS", 60.0)
        assert not theirs.claim("b")
    assert list((tmp_path / claiming.FOLDER).iterdir()) == []


def test_a_claim_is_kept_while_its_run_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claiming, "LOST_SECONDS", 0.5)
    mine, theirs = Claims(tmp_path), Claims(tmp_path)
    with mine.held(), theirs.held():
        assert mine.claim("a")
        time.sleep(1.0)
        assert not theirs.claim("a")


def test_fsck_names_every_kind_of_file_and_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAINED, tmp_path) == 0
    folder = tmp_path / "sweep"
    capsys.readouterr()
    assert check(TRAINED, folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"cells: 6 of 6 stored and intact in {folder / 'cells'}",
        "train.parquet: 6 cells intact",
    ]
    first, second, *_ = sorted((folder / "cells").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-1])
    (folder / "cells" / ".bench-01234567.tmp").touch()
    (folder / ".checkpoints").mkdir()
    (folder / ".checkpoints" / "abc.pt").write_bytes(b"x" * 40)
    data = bytearray((folder / "train.parquet").read_bytes())
    data[100] ^= 1
    (folder / "train.parquet").write_bytes(data)
    Store(folder).put(TIMED.cells[0], work.rows_of(TIMED.cells[0]), PROVENANCE | {"source_hash": "other"})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert check(TRAINED, folder) == 1
    said = capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for words in (
        "cells: 5 of 6 stored and intact", f"damaged: {first} is damaged",
        f"damaged: {folder / 'train.parquet'} is damaged",
        "foreign: 1 cell not in", "checkpoints: 0 of 1 intact", "half written, by a run that was killed",
        "nothing was changed; --repair sets aside what is damaged: 3 files",
    ):  # fmt: skip
        assert words in said, words
    assert check(TRAINED, folder, repair=True) == 1
    capsys.readouterr()
    assert check(TRAINED, folder) == 0
    assert {path.name for path in (folder / "damaged").iterdir()} >= {first.name, "train.parquet", "abc.pt"}
    assert not list(folder.rglob(".bench-*"))
    assert len(set(Store(folder).read("train")["cell_id"].to_pylist())) == 5
    assert second.exists()


def test_fsck_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(load("smoke"), tmp_path / "smoke") == 0
    assert capsys.readouterr().out.startswith("cells: 0 of ") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_cells_are_mirrored_to_a_url_and_merged_from_it(scheme: str, tmp_path: Path) -> None:
    """On a disk, where files grow, and on a storage of objects."""
    url = f"{scheme}://{tmp_path / 'far'}"
    assert run(TRAINED, tmp_path / "a", shard=Shard(1, 2), mirror_url=url) == 0
    assert run(TRAINED, tmp_path / "b", shard=Shard(2, 2), mirror_url=url) == 0
    assert merge(TRAINED, [url], tmp_path / "all") == 0
    assert make_plan(TRAINED, tmp_path / "all").todo == ()
    for name in ("a", "b"):
        for path in (tmp_path / name / "sweep" / "cells").iterdir():
            assert (tmp_path / "all" / "sweep" / "cells" / path.name).read_bytes() == path.read_bytes()
    failing = [{"status": "failed", "reason": "x"}]
    store = Store(tmp_path / "a" / "sweep")
    mirror = Mirror(url, "sweep", print)
    mirror.send(store.put(TRAINED.cells[0], failing, PROVENANCE | {"started_at": "2099"}))
    assert mirror.finish() == ""
    assert sum(name.startswith(TRAINED.cells[0].cell_id) for name in mirror._names()) == 1, "the older one is gone"


def test_a_mirror_that_takes_nothing_costs_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "far").write_text("in the way")
    with pytest.raises(ResourceError, match="6 cells not at file://"):
        run(TRAINED, tmp_path / "a", mirror_url=f"file://{tmp_path / 'far'}")
    assert capsys.readouterr().out.count("takes nothing now, tried again later") == 1
    assert len(Store(tmp_path / "a" / "sweep").finished()) == 6
    (tmp_path / "far").unlink()
    sweep = sweep_of(*TRAINED.cells, TrainCell(seed=6))
    assert run(sweep, tmp_path / "a", mirror_url=f"file://{tmp_path / 'far'}") == 0
    assert len(list((tmp_path / "far" / "sweep" / "cells").iterdir())) == 7, "what was not sent before is sent, too"
    for url in ("nowhere://x", "s3://x"):
        with pytest.raises(ResourceError, match=f"{url}: "):
            run(sweep, tmp_path / "c", mirror_url=url)
    with pytest.raises(ResourceError, match="nothing of sweep can be read there"):
        merge(TRAINED, [f"file://{tmp_path / 'nothing'}"], tmp_path / "all")


def test_who_wants_a_sweep_alone_and_who_shares_it_exclude_each_other(tmp_path: Path) -> None:
    """A part with another part, and all who share, go together; a whole run, a merge and a repair with none of them."""
    folder = tmp_path / "sweep"
    parts: list[dict[str, Any]] = [{"shard": "1/2"}, {"shard": "2/2"}, {"share": True}, {"share": True}]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(Store(folder).lock(**part))
        for alone in (lambda: run(TRAINED, tmp_path), lambda: merge(TRAINED, [tmp_path], tmp_path)):
            with pytest.raises(LockedError, match="in use by another run"):
                alone()
        with pytest.raises(LockedError, match="in use by another run"), Store(folder).lock("2/2"):
            pass
    with Store(folder).lock():
        for part in parts[1:3]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(storing, "LOOK_SECONDS", 0.1)
                with pytest.raises(LockedError, match="in use by another run"), Store(folder).lock(**part):
                    pass
    assert run(TRAINED, tmp_path) == 0 and not list(folder.glob(".lock-share-*"))


def test_a_result_of_a_retry_counts_whatever_the_clock_says(tmp_path: Path) -> None:
    """That of a failure may have been ahead."""
    store = Store(tmp_path / "sweep")
    store.cells.mkdir(parents=True)
    for share in (False, True):
        store.put(TRAINED.cells[0], [{"status": "failed", "reason": "x"}], PROVENANCE | {"started_at": "2099"})
        assert run(TRAINED, tmp_path, retry=True, share=share) == 0
        assert Store(tmp_path / "sweep").finished()[TRAINED.cells[0].cell_id].status == "ok"
        assert len(list(store.cells.iterdir())) == 6


def test_two_machines_that_share_a_sweep_time_it_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known where a run begins, and while it is under way: what is timed elsewhere by then is left."""
    assert run(TIMED, tmp_path, shard=Shard(1, 2)) == 0
    monkeypatch.setattr("bench.run.machine", lambda _: "another")
    shelf = _Shelf(Store(tmp_path / "sweep"), make_plan(TIMED, tmp_path), None, None, False)
    shelf.store.is_shared = True
    assert shelf.taken(TIMED.cells[1]) == ("", "")
    assert _Shelf(shelf.store, shelf.plan, None, None, True).taken(TIMED.cells[1]) is None
    assert set(shelf.elsewhere) == {TIMED.cells[1].cell_id}
    with pytest.raises(UnusableError, match="3 cells left to the machine that timed the others of their kind"):
        run(TIMED, tmp_path, shard=Shard(2, 2))
    with pytest.raises(UnusableError, match=r"3 timings in [^\n]+ of another machine or other libraries"):
        run(TIMED, tmp_path, share=True)
    with pytest.raises(LeftError, match="were timed on another machine"):
        shelf.put(TIMED.cells[1], work.rows_of(TIMED.cells[1]), PROVENANCE | {"machine": "another"})
    shelf.put(TIMED.cells[1], [{"status": "failed", "reason": "x"}], PROVENANCE | {"machine": "another"})


def test_a_claim_needs_no_folder_and_room_is_no_reason_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Claims(tmp_path / "gone")
    with mine.held():
        assert mine.claim("a")
        mine.done("a")
        (tmp_path / "gone" / claiming.FOLDER).rmdir()
        assert mine.claim("a")

        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", full)
            with pytest.raises(OSError, match="No space left"):
                mine.claim("b")
        assert mine.claim("b")


def test_a_run_that_shares_waits_for_room_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, began = Claims.claim, time.monotonic()

    def claim(claims: Claims, cell_id: str) -> bool:
        if time.monotonic() - began < 1.0:
            raise OSError(errno.ENOSPC, "No space left on device", "claims")
        return real(claims, cell_id)

    monkeypatch.setattr(Claims, "claim", claim)
    assert run(TRAINED, tmp_path, share=True) == 0
    assert capsys.readouterr().out.count("No space left on device: claims: nothing more begins") == 1


def test_locks_of_runs_that_were_killed_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / ".lock-share-0123").touch()
    assert run(TRAINED, tmp_path, share=True) == 0 and not list(folder.glob(".lock-share-*"))


def test_a_repair_takes_what_only_the_table_has_intact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAINED, tmp_path) == 0
    folder = tmp_path / "sweep"
    before = Store(folder).read("train")
    path = sorted((folder / "cells").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert check(TRAINED, folder, repair=True) == 1
    assert "1 cell taken from train.parquet, where their rows are intact" in capsys.readouterr().out
    assert check(TRAINED, folder) == 0 and Store(folder).read("train").equals(before)
    assert make_plan(TRAINED, tmp_path).todo == ()
