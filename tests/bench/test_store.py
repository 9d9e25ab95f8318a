"""The store: nothing lost, nothing half there, no damage unnoticed."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pytest
from rows import timed, trained

from bench.cells import Cell, GemmCell, TrainCell
from bench.commands.show import key_figures
from bench.schema import arrow_schema, columns
from bench.store import LockedError, Store, _read_table, locked
from bench.storing import parquet as module
from bench.storing.parquet import DamagedError, checksum_of

PROVENANCE = {"commit": "c0ffee", "started_at": "2026-01-01T00:00:00", "cell_seconds": 1.5, "source_hash": "ab"}
BEFORE = {"status": "ok", "epoch": 0, "sparsity": 0.0, "vocabulary": 100}
TRAIN_ROWS = [*trained()[::-1], BEFORE]
MAP = {"weight": "weight_hh_l0", "grid_rows": 1, "grid_cols": 2, "norms": [0.5, 0.0]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "results" / "sweep")
    with made.lock():
        pass
    return made


def gemm_rows(time_ms: float = 0.5) -> list[dict[str, Any]]:
    return timed(time_ms, samples_ms=[0.4, 0.6], baseline_samples_ms=[1.0, 1.0], nnzb=7, noisy=False)


def fill(store: Store) -> list[Cell]:
    """Three cells, stored in another order than they have in the sweep."""
    cells: list[Cell] = [GemmCell(seed=2), TrainCell(seed=1), TrainCell(), GemmCell(seed=1)]
    for cell in (cells[3], cells[2], cells[0], cells[1]):
        store.put(cell, gemm_rows() if cell.kind == "gemm" else TRAIN_ROWS, PROVENANCE)
    return cells


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_a_lock_that_was_removed_meanwhile_is_not_mistaken_for_ones_own(tmp_path: Path) -> None:
    """Who has opened the file of a run that ends and removes it would else hold what nobody after it finds."""
    with locked(tmp_path, leave=False):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(LockedError), locked(tmp_path, leave=False):
            raise AssertionError
    assert list(tmp_path.iterdir()) == []
    acquire, taken = filelock.FileLock.acquire, []

    def late(lock: filelock.FileLock) -> object:
        found = acquire(lock)
        taken.append(lock)
        if len(taken) == 1:
            (tmp_path / ".lock").unlink()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", late)
        with locked(tmp_path):
            patch.undo()
            assert len(taken) == 2
            with pytest.raises(LockedError), locked(tmp_path):
                raise AssertionError


def test_a_row_comes_back_with_identity_settings_and_provenance(store: Store) -> None:
    cell = GemmCell(m=512, target_sparsity=0.5)
    store.put(cell, gemm_rows(), PROVENANCE)
    store.compact([cell])
    table = store.read("gemm")
    wanted = arrow_schema("gemm")
    assert table.schema.names == wanted.names
    assert [field.metadata.get(b"doc") for field in table.schema] == [field.metadata[b"doc"] for field in wanted]
    row = table.to_pylist()[0]
    assert row["cell_id"] == cell.cell_id and row["kind"] == "gemm" and row["status"] == "ok" and row["reason"] is None
    assert (row["m"], row["target_sparsity"], row["backend"]) == (512, 0.5, "native")
    assert (row["samples_ms"], row["nnzb"], row["noisy"], row["host_ms"]) == ([0.4, 0.6], 7, False, None)
    assert (row["commit"], row["cell_seconds"], row["schema_version"]) == ("c0ffee", 1.5, 1)


def test_the_columns_are_identity_settings_results_provenance_and_say_what_they_are() -> None:
    for kind, model in (("gemm", GemmCell), ("train", TrainCell)):
        schema = arrow_schema(kind)
        described = [column.name for column in columns(kind)]
        assert schema.names == [*described[:2], *model.model_fields, *described[2:]]
        assert all(field.metadata[b"doc"] for field in schema)
    schema = arrow_schema("train")
    assert schema.field("lasso_scaled").type == pa.bool_() and schema.field("dropout").type == pa.float64()
    assert schema.field("epochs").type == pa.int64() and schema.field("optimizer").type == pa.string()
    said = schema.field("train_seconds").metadata
    assert said.keys() == {b"role", b"unit", b"doc"} and said[b"role"] == b"measured" and said[b"unit"] == b"s"
    assert said[b"doc"].startswith(b"training part of this epoch")
    assert schema.field("epochs").metadata[b"role"] == b"setting"


def test_tables_are_in_cell_order_then_epoch(store: Store) -> None:
    cells = fill(store)
    store.compact(cells)
    assert store.read("gemm")["seed"].to_pylist() == [2, 1]
    train = store.read("train")
    assert list(zip(train["seed"].to_pylist(), train["epoch"].to_pylist(), strict=True)) == [
        (seed, epoch) for seed in (1, 0) for epoch in range(5)
    ]


def test_settings_are_stored_as_the_cell_is_identified(store: Store) -> None:
    cell = TrainCell(block_size=64)  # neither prunes nor penalises
    store.put(cell, TRAIN_ROWS, PROVENANCE)
    store.compact([TrainCell()])
    assert set(store.read("train")["block_size"].to_pylist()) == {16}


def test_block_norm_maps_survive(store: Store) -> None:
    cell = TrainCell()
    store.put(cell, [BEFORE | {"block_norms": [MAP]}, *trained()], PROVENANCE)
    store.compact([cell])
    assert store.read("train")["block_norms"].to_pylist() == [[MAP], *[None] * 4]


def test_only_cells_of_the_sweep_are_in_the_tables(store: Store) -> None:
    cells = fill(store)
    store.compact(cells)
    store.compact(cells[:1])
    assert len(store.read("gemm")) == 1
    with pytest.raises(DamagedError, match=r"train\.parquet is missing"):
        store.read("train")
    assert len(store.finished()) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"status": "ok", "speedup": 2.0}, "unknown column 'speedup' in a gemm row; accepted: cell_id"),
        ({"status": "fine"}, "unknown status 'fine'; accepted: ok"),
        ({"time_ms": 1.0}, "unknown status None"),
        ({"status": "ok", "time_ms": "fast"}, "column 'time_ms' of a gemm row is no double"),
        ({"status": "ok", "nnzb": 2**70}, "column 'nnzb' of a gemm row is no int64"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(store: Store, row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store.put(GemmCell(), [row], PROVENANCE)
    assert not list(store.cells.iterdir())


def test_a_cell_without_rows_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        store.put(GemmCell(), [], PROVENANCE)


def test_finished_tells_how_a_cell_ended(store: Store) -> None:
    store.put(GemmCell(), [{"status": "unsupported", "reason": "no GPU"}], PROVENANCE)
    store.put(TrainCell(), [*TRAIN_ROWS, {"status": "diverged", "reason": "NaN", "epoch": None}], PROVENANCE)
    found = store.finished()
    assert {cell_id: stored.status for cell_id, stored in found.items()} == {
        GemmCell().cell_id: "unsupported",
        TrainCell().cell_id: "diverged",
    }
    assert found[GemmCell().cell_id].reason == "no GPU"
    store.put(TrainCell(), TRAIN_ROWS, PROVENANCE)
    assert store.finished()[TrainCell().cell_id].status == "ok"
    assert len(list(store.cells.iterdir())) == 2, "a retried cell replaces its earlier rows"


def test_what_is_shown_of_a_stored_compiled_run_is_the_median_of_its_pairs(store: Store) -> None:
    samples = {"loss_eager_ms": [3.0, 4.0, 9.0], "loss_compiled_ms": [2.0, 2.0, 3.0]}
    for cell, rows, words in (
        (TrainCell(compile="default"), trained(**samples), ", epoch 4, its loss compiled 2x as fast"),
        (TrainCell(), trained(), ", epoch 4"),
    ):
        store.put(cell, rows, PROVENANCE)
        assert key_figures(cell, store.finished()[cell.cell_id]).endswith(words)


def test_of_two_shards_of_a_cell_the_later_one_counts(store: Store) -> None:
    earlier = store.put(GemmCell(), [{"status": "failed", "reason": "x"}], PROVENANCE)
    kept = earlier.read_bytes()
    later = store.put(GemmCell(), gemm_rows(), {**PROVENANCE, "started_at": "2026-01-02T00:00:00"})
    earlier.write_bytes(kept)  # as if a kill had come between storing the one and removing the other
    assert store.finished()[GemmCell().cell_id].path == later
    with store.lock():
        assert list(store.cells.glob("*.parquet")) == [later]


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "rename"])
def test_a_damaged_shard_is_named_and_set_aside(store: Store, harm: str) -> None:
    cells = fill(store)
    path = store.finished()[cells[0].cell_id].path
    if harm == "flip":
        flip_a_bit(path, random.Random(0))
    elif harm == "rename":
        path = path.rename(path.with_name("copy of " + path.name))
    else:
        path.write_bytes(path.read_bytes()[: 100 if harm == "truncate" else 0])
    assert cells[0].cell_id not in store.finished()
    with store.lock() as lines:
        assert len(lines) == 1 and str(path) in lines[0] and "\n" not in lines[0]
    assert (store.damaged / path.name).exists() and not path.exists()
    assert len(store.finished()) == 3
    with store.lock() as lines:
        assert lines == []


def test_every_flipped_bit_of_a_shard_is_noticed(store: Store) -> None:
    rng = random.Random(1)
    path = store.put(GemmCell(), gemm_rows(), PROVENANCE)
    whole = path.read_bytes()
    for _ in range(200):
        flip_a_bit(path, rng)
        assert store.finished() == {}
        path.write_bytes(whole)
    assert len(store.finished()) == 1


def test_every_flipped_bit_of_a_table_is_noticed(store: Store) -> None:
    rng = random.Random(2)
    store.compact(fill(store))
    table, checksum = store.folder / "train.parquet", store.folder / "train.parquet.sha256"
    whole = table.read_bytes(), checksum.read_bytes()
    digest = whole[1].split()[0]
    for trial in range(200):
        flip_a_bit(checksum if trial % 10 == 0 else table, rng)
        if trial % 10 == 0 and digest in checksum.read_bytes().lower().split():
            assert len(store.read("train")) == 10, "the name beside the sum does not count"
        else:
            with pytest.raises(DamagedError, match=r"is damaged|cannot be verified"):
                store.read("train")
        table.write_bytes(whole[0])
        checksum.write_bytes(whole[1])
    assert len(store.read("train")) == 10


def test_the_checksum_file_has_the_form_of_sha256sum(store: Store) -> None:
    store.compact(fill(store))
    digest = hashlib.sha256((store.folder / "gemm.parquet").read_bytes()).hexdigest()
    assert (store.folder / "gemm.parquet.sha256").read_text() == f"{digest}  gemm.parquet\n"


def test_stray_temporary_files_go(store: Store) -> None:
    fill(store)
    strays = [store.cells / ".bench-01234567.tmp", store.folder / ".bench-89abcdef.tmp"]
    for stray in strays:
        stray.write_bytes(b"half")
    assert len(store.finished()) == 4
    with store.lock() as lines:
        assert lines == []
    assert not any(stray.exists() for stray in strays)


def test_two_runs_do_not_share_a_folder(store: Store) -> None:
    with store.lock(), pytest.raises(LockedError, match="in use by another run"), Store(store.folder).lock():
        pass
    with store.lock():
        pass


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing(store: Store, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = fill(store)
    store.compact(cells)
    before = {path: path.read_bytes() for path in store.folder.rglob("*.parquet*")}

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        elif call == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr(Path, "open", _short_of_space(full))
        for act in (lambda: store.put(GemmCell(seed=9), gemm_rows(), PROVENANCE), lambda: store.compact(cells)):
            with pytest.raises(OSError, match="No space left"):
                act()
    assert {path: path.read_bytes() for path in store.folder.rglob("*.parquet*")} == before
    assert not list(store.folder.rglob(".*.tmp"))


@pytest.mark.parametrize("survived", range(4))
def test_a_compaction_that_is_killed_leaves_the_table_before_or_after_it(
    survived: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[Cell] = [GemmCell(seed=1), GemmCell(seed=2)]
    for cell in cells:
        store.put(cell, gemm_rows(), PROVENANCE)
    store.compact(cells[:1])
    writes, real = 0, module.publish

    def publish(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == survived:
            raise KeyboardInterrupt
        writes += 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", publish)
        with suppress(KeyboardInterrupt):
            store.compact(cells)
    assert writes == min(survived, 3)
    assert store.read("gemm")["seed"].to_pylist() == ([1] if survived < 2 else [1, 2])
    store.compact(cells)
    assert len(checksum_of(store.folder / "gemm.parquet").read_text().splitlines()) == 1
    assert not store.damaged.exists()


def _short_of_space(full: Callable[..., Any]) -> Callable[..., Any]:
    real = Path.open

    def opened(path: Path, mode: str = "r", *rest: Any) -> Any:
        file = real(path, mode, *rest)
        if not {"w", "x"} & set(mode):
            return file
        file.write(b"some of it")
        file.close()
        return full()

    return opened


def test_shards_of_an_older_version_fit_todays_tables(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    current = arrow_schema("gemm")
    older = pa.schema([field for field in current if field.name not in ("cache", "prepare_ms")])
    with monkeypatch.context() as patch:
        patch.setattr(module, "arrow_schema", lambda _: older)
        settings = [name for name in GemmCell.model_fields if name != "cache"]
        patch.setattr(Cell, "model_dump", lambda cell: {name: getattr(cell, name) for name in settings})
        store.put(GemmCell(seed=4), gemm_rows(), PROVENANCE)
    store.put(GemmCell(seed=5), gemm_rows(), PROVENANCE)
    store.compact([GemmCell(seed=4), GemmCell(seed=5)])
    table = store.read("gemm")
    assert table.schema.names == current.names
    assert table["cache"].to_pylist() == ["hot", "hot"], "a setting an old row lacks had its default"
    assert table["prepare_ms"].to_pylist() == [None, None]


def test_a_shard_is_read_once_by_a_scan_and_once_by_a_compaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return _read_table(path)

    monkeypatch.setattr("bench.store._read_table", counted)
    cells = fill(store)
    assert len(store.finished()) == 4 and read == []  # just written
    store.compact(cells)
    assert len(read) == 4
    again = Store(store.folder)
    with again.lock():
        assert again.finished() == again.finished() == store.finished()
        again.compact(cells)
    assert len(read) == 12


def test_what_is_damaged_after_it_was_seen_is_noticed(store: Store) -> None:
    cells = fill(store)
    before = store.finished()
    flip_a_bit(before[cells[0].cell_id].path, random.Random(0))
    assert store.finished().keys() == before.keys() - {cells[0].cell_id}
    victim = store.finished()[cells[3].cell_id].path
    status = victim.stat()
    flip_a_bit(victim, random.Random(1))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    assert cells[3].cell_id in store.finished()
    store.compact(cells)
    assert set(store.read("train")["seed"].to_pylist()) == {0, 1}
    assert not (store.folder / "gemm.parquet").exists() and cells[3].cell_id not in store.finished()
