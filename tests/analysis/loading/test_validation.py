"""Tables from elsewhere: of what cannot be, one line that names file and column; what is intact stays and is drawn."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.__main__ import BAD_INPUT, app
from analysis.load import LEFT_OUT, LeftOutWarning, load
from analysis.loading import schema as described
from analysis.loading.rules import ALWAYS, NEEDED
from analysis.loading.schema import columns, schema
from bench.cells import KINDS, identity
from bench.schema import COLUMNS, SCHEMA_VERSION, STATUSES, arrow_schema

Harm = Callable[[pa.Table], pa.Table]
Sweep = Callable[..., Path]
NAN, INF = math.nan, math.inf


def with_column(table: pa.Table, name: str, values: Any, type_: pa.DataType | None = None) -> pa.Table:
    """`table` with other values in one column, all alike where `values` is no list, or with a new column."""
    array = pa.array(values if isinstance(values, list) else [values] * len(table), type_)
    place = table.schema.get_field_index(name)
    return table.append_column(name, array) if place < 0 else table.set_column(place, name, array)


def in_row(name: str, value: Any, place: int = 1) -> Harm:
    """Another value in one row, the others as they are."""

    def harm(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[place] = value
        return with_column(table, name, values, table[name].type)

    return harm


def rehashed(table: pa.Table, kind: str) -> pa.Table:
    """`table` with the cell_ids that its settings give."""
    rows = table.select(list(KINDS[kind].model_fields)).to_pylist()
    return with_column(table, "cell_id", [identity(kind, row) for row in rows])


def without(name: str) -> Harm:
    return lambda table: table.drop_columns([name])


def throughout(name: str, value: Any, type_: pa.DataType | None = None) -> Harm:
    return lambda table: with_column(table, name, value, type_)


def retyped(name: str, type_: pa.DataType) -> Harm:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, table[name].cast(type_))


PROBE = {"step": 1, "sparsity": 0.0, "sparse_layers": 0, "dense_ms": [1.0, 1.0], "lstm_ms": [1.0, 1.0]}
# One cell says what cannot be: it is left out, and the line names the column.
LEFT: dict[str, tuple[str, Harm, str]] = {
    **{
        f"{name} {value}": ("gemm", in_row(name, value), name)
        for name in ("time_ms", "baseline_ms")
        for value in (0.0, -1.0, NAN, INF, None)
    },
    **{
        f"a sample of {value}": ("gemm", in_row(name, [1.0] * 9 + [value]), name)
        for name, value in (("samples_ms", 0.0), ("baseline_samples_ms", -1.0), ("samples_ms", NAN))
    },
    "fewer samples than pairs": ("gemm", in_row("samples_ms", [1.0]), "samples_ms"),
    "a gap among samples": ("gemm", in_row("samples_ms", [1.0] * 9 + [None]), "samples_ms"),
    "no samples": ("gemm", in_row("samples_ms", []), "samples_ms"),
    "no sample at all": ("lstm", in_row("baseline_samples_ms", None), "baseline_samples_ms"),
    "a layer's time": ("lstm", in_row("time_ms", -3.0), "time_ms"),
    "sparsity of 80": ("gemm", in_row("sparsity", 80.0), "sparsity"),
    "sparsity below 0": ("train", in_row("sparsity", -0.1), "sparsity"),
    "mean sparsity": ("train", in_row("mean_sparsity", 1.1), "mean_sparsity"),
    "unknown status": ("gemm", in_row("status", "fine"), "status"),
    "no status": ("gemm", in_row("status", None), "status"),
    "another kind": ("gemm", in_row("kind", "lstm"), "kind"),
    "no kind": ("gemm", in_row("kind", None), "kind"),
    "no cell_id": ("gemm", in_row("cell_id", None), "cell_id"),
    "another cell_id": ("gemm", in_row("cell_id", "0" * 16), "cell_id"),
    "an empty cell_id": ("gemm", in_row("cell_id", ""), "cell_id"),
    "no device": ("gemm", in_row("device", None), "device"),
    "no device_name": ("gemm", in_row("device_name", None), "device_name"),
    "another setting": ("gemm", in_row("block_size", 64), "cell_id"),
    "no setting": ("train", in_row("dataset", None), "dataset"),
    "perplexity 0": ("train", in_row("test_ppl", 0.0), "test_ppl"),
    "perplexity below 0": ("train", in_row("val_ppl", -5.0), "val_ppl"),
    "perplexity NaN": ("train", in_row("train_ppl", NAN), "train_ppl"),
    "no perplexity": ("train", in_row("test_ppl", None), "test_ppl"),
    "no vocabulary": ("train", in_row("vocabulary", None), "vocabulary"),
    "no mean sparsity": ("train", in_row("mean_sparsity", None), "mean_sparsity"),
    "no epoch": ("train", in_row("epoch", None), "epoch"),
    "an epoch in no time": ("train", in_row("train_seconds", 0.0), "train_seconds"),
    "a time before the epoch": ("train", in_row("eval_seconds", -1.0), "eval_seconds"),
    "rows of a cell disagree": ("train", in_row("learning_rate", 3.0), "learning_rate"),
    "two rows of an epoch differ": ("train", in_row("epoch", 0), "cell_id"),
    "block norms below 0": (
        "train",
        in_row("block_norms", [{"weight": "a", "grid_rows": 1, "grid_cols": 1, "norms": [-1.0]}]),
        "block_norms",
    ),
    "probes at no step": (
        "train",
        lambda table: in_row("step", None)(in_row("probes", [PROBE])(table)),
        "step",
    ),
    "a probe of no time": (
        "train",
        in_row("probes", [PROBE | {"dense_ms": [1.0, 0.0]}]),
        "probes",
    ),
}

# The whole table is refused, and the line names the column.
REFUSED: dict[str, tuple[str, Harm, str]] = {
    **{f"without {name}": ("gemm", without(name), name) for name in (*ALWAYS, *NEEDED["gemm"])},
    **{f"training without {name}": ("train", without(name), name) for name in NEEDED["train"]},
    "all of another device": ("gemm", throughout("device", "cuda"), "cell_id"),
    "no device in any row": ("gemm", throughout("device", None, pa.string()), "device: missing"),
    "device, not the default, is dropped": (
        "gemm",
        lambda table: without("device")(rehashed(with_column(table, "device", "cuda"), "gemm")),
        "cell_id",
    ),
    "a newer version": ("gemm", throughout("schema_version", SCHEMA_VERSION + 1), f"schema [{SCHEMA_VERSION + 1}]"),
    "mixed versions": ("gemm", in_row("schema_version", SCHEMA_VERSION + 1), f"schema [1, {SCHEMA_VERSION + 1}]"),
    "no version": ("gemm", in_row("schema_version", None), "schema [1, None]"),
    "text for times": ("gemm", retyped("time_ms", pa.string()), "time_ms"),
    "text for samples": ("gemm", retyped("samples_ms", pa.list_(pa.string())), "samples_ms"),
    "a time for samples": (
        "gemm",
        lambda table: with_column(table, "samples_ms", table["time_ms"].to_pylist()),
        "samples_ms",
    ),
    "numbers for statuses": ("gemm", throughout("status", 1), "status"),
    "halves of blocks": ("gemm", throughout("nnzb", 0.5), "nnzb"),
    "text for block norms": ("train", throughout("block_norms", "none"), "block_norms"),
    "text for versions": ("gemm", throughout("schema_version", "1"), "schema ["),
    "a column twice": ("gemm", lambda table: table.append_column("m", table["m"]), "m: "),
    "another table": ("gemm", lambda _: pa.table({"x": [1.0], "y": [2.0]}), "schema_version"),
    "a table of another kind": ("gemm", throughout("kind", "lstm"), "kind"),
}

# What loses nothing is read, whoever wrote it.
HARMLESS: dict[str, tuple[str, Harm]] = {
    "long strings": ("gemm", retyped("backend", pa.large_string())),
    "categories": ("gemm", lambda table: table.set_column(0, "cell_id", table["cell_id"].dictionary_encode())),
    "whole numbers as floats": ("gemm", retyped("m", pa.float64())),
    "small numbers": ("gemm", retyped("block_size", pa.int32())),
    "columns in another order": ("train", lambda table: table.select(table.column_names[::-1])),
    "columns that are all null": ("gemm", throughout("host_ms", None)),
}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """A small table of each kind, as it is stored."""
    import tempfile

    frames = {
        "gemm": made.gemm_frame(unsupported={}, backends=("native",)),
        "lstm": made.lstm_frame((256,), (20,), (16,)),
        "train": made.train_frame(seeds=1, variants=("dense", "gradual")),
    }
    with tempfile.TemporaryDirectory() as folder:
        return {kind: pq.read_table(made.write(Path(folder), kind, frame)) for kind, frame in frames.items()}


def stored(folder: Path, kind: str, table: pa.Table) -> Path:
    """A table and its checksum, as anybody may write them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.parquet"
    pq.write_table(table, path)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
    return path


def told(folder: Path, kind: str) -> tuple[Any, list[str]]:
    """The table that is loaded, and each line that is said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load(folder, kind)
    assert all(warning.category is LeftOutWarning for warning in caught)
    return frame, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("case", LEFT)
def test_a_cell_that_cannot_be_is_left_out_with_one_line(
    case: str, tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    kind, harm, column = LEFT[case]
    whole = tables[kind]
    path = stored(tmp_path, kind, harm(whole))
    cell = whole["cell_id"][1].as_py()
    frame, lines = told(tmp_path, kind)
    assert len(lines) == 1 and "\n" not in lines[0], lines
    assert lines[0].startswith(f"{path}: {column}: ") and "left out: " in lines[0]
    kept = [name for name in whole["cell_id"].to_pylist() if name != cell]
    assert frame["cell_id"].tolist() == kept or case in ("no cell_id", "another cell_id", "an empty cell_id")
    assert len(frame) >= len(kept) > 0
    assert frame.attrs[LEFT_OUT] == [line.replace(str(path), path.name) for line in lines]


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_is_none_is_refused_with_one_line(case: str, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    kind, harm, words = REFUSED[case]
    path = stored(tmp_path, kind, harm(tables[kind]))
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        told(tmp_path, kind)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


@pytest.mark.parametrize("case", HARMLESS)
def test_what_loses_nothing_is_read(case: str, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    kind, harm = HARMLESS[case]
    stored(tmp_path / "there", kind, harm(tables[kind]))
    stored(tmp_path / "here", kind, tables[kind])
    (frame, lines), (wanted, nothing) = told(tmp_path / "there", kind), told(tmp_path / "here", kind)
    assert lines == nothing == []
    assert repr(frame.to_dict("records")) == repr(wanted.to_dict("records"))


def test_rows_that_are_there_twice_are_read_once(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    for kind, table in tables.items():
        stored(tmp_path, kind, pa.concat_tables([table, table]))
        frame, (line,) = told(tmp_path, kind)
        assert f"{len(table)} rows are copies of others; each is read once" in line
        assert frame["cell_id"].tolist() == table["cell_id"].to_pylist()


def test_columns_that_are_not_known_are_told(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    stored(tmp_path, "gemm", with_column(tables["gemm"], "speed_limit", 3))
    frame, (line,) = told(tmp_path, "gemm")
    assert "not read: speed_limit" in line and "speed_limit" not in frame and len(frame) == len(tables["gemm"])


def test_what_failed_may_have_measured_anything(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    table = in_row("status", "wrong")(in_row("error_ratio", INF)(in_row("time_ms", None)(tables["gemm"])))
    stored(tmp_path, "gemm", table)
    frame, lines = told(tmp_path, "gemm")
    assert lines == [] and len(frame) == len(table)


def test_bytes_that_are_no_table_are_refused_whatever_their_sum_is(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    path = stored(tmp_path, "gemm", tables["gemm"])
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 999 + whole[999:]):
        path.write_bytes(data)
        path.with_name(path.name + ".sha256").write_text(hashlib.sha256(data).hexdigest())
        with pytest.raises(ValueError, match=r"\A[^\n]*gemm\.parquet: damaged, it is no parquet table[^\n]*\Z"):
            load(tmp_path, "gemm")


def in_the_way() -> dict[str, Callable[[Path], object]]:
    found: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to(path.with_name("nowhere")),
    }
    return found | ({"pipe": os.mkfifo} if hasattr(os, "mkfifo") else {})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\udcff"'])
def test_damaged_columns_are_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "columns.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(described, "COLUMNS_FILE", tmp_path / "columns.json")
    with pytest.raises(ValueError, match=r"\A[^\n]*columns\.json: damaged[^\n]*\Z"):
        described.schema.__wrapped__()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", in_the_way())
def test_what_is_no_file_is_refused_and_never_waited_for(
    what: str, tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    for name, words in (("gemm.parquet", "no regular file"), ("gemm.parquet.sha256", "checksum")):
        stored(tmp_path / name, "gemm", tables["gemm"])
        (tmp_path / name / name).unlink()
        in_the_way()[what](tmp_path / name / name)
        with pytest.raises(ValueError, match=rf"\A[^\n]*gemm\.parquet: [^\n]*{words}[^\n]*\Z"):
            load(tmp_path / name, "gemm")


SIDECARS = {
    "not UTF-8 beside the right one": (b"\xff\xfe\n%s  gemm.parquet\n", True),
    "new and old": (b"%s  gemm.parquet\n" + b"0" * 64 + b"  gemm.parquet\n", True),
    "old and new": (b"0" * 64 + b"  gemm.parquet\n%s  gemm.parquet\n", True),
    "of a file of another name": (b"%s *export/of today.parquet\r\n", True),
    "the sum alone": (b"%s", True),
    "not UTF-8": (b"\xff%s  gemm.parquet\n", False),
    "cut short": (b"%.40s", False),
    "blank": (b" \n\n", False),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_of_a_checksum_file_the_sums_count(case: str, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    text, fits = SIDECARS[case]
    path = stored(tmp_path, "gemm", tables["gemm"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest().encode()
    path.with_name(path.name + ".sha256").write_bytes(text % digest if b"%" in text else text)
    if fits:
        assert len(load(tmp_path, "gemm")) == len(tables["gemm"])
    else:
        with pytest.raises(ValueError, match="damaged"):
            load(tmp_path, "gemm")


def test_an_older_table_has_every_column_of_today(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    for kind, table in tables.items():
        settings = list(KINDS[kind].model_fields)
        defaults = {
            name: field.get_default()
            for name, field in KINDS[kind].model_fields.items()
            if set(table[name].to_pylist()) == {field.get_default()}
        }
        later = [column.name for column in COLUMNS[kind] if column.name not in NEEDED[kind]]
        stored(tmp_path, kind, table.drop_columns([*later, *defaults]))
        frame, lines = told(tmp_path, kind)
        assert lines == [] and list(frame.columns) == arrow_schema(kind).names
        assert all(frame[name].isna().all() for name in later)
        assert all(set(frame[name]) == {value} for name, value in defaults.items())
        assert frame[settings].to_dict("records") == table.select(settings).to_pylist()


def test_both_sides_of_the_wall_have_the_same_columns() -> None:
    assert schema()["schema_version"] == SCHEMA_VERSION and schema()["statuses"] == list(STATUSES)
    for kind in NEEDED:
        fields = KINDS[kind].model_fields
        assert [column.name for column in columns(kind)] == arrow_schema(kind).names
        for column, field in zip(columns(kind), arrow_schema(kind), strict=True):
            assert column.role == field.metadata[b"role"].decode() and column.unit == field.metadata[b"unit"].decode()
            assert column.role != "setting" or column.default == fields[column.name].get_default()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], blank_pictures: None) -> Callable[..., tuple[int, list[str], list[str]]]:
    """run(*arguments) -> (exit status, lines said, lines of standard error)."""

    def call(*arguments: object) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err.splitlines()

    return call


Run = Callable[..., tuple[int, list[str], list[str]]]


def test_a_report_says_what_it_left_out(run: Run, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    path = stored(tmp_path / "sweep", "gemm", in_row("time_ms", 0.0)(tables["gemm"]))
    status, out, err = run("report", path.parent)
    assert status == 0 and len(out) == 3
    assert len(err) == 1 and err[0].startswith(f"{path}: time_ms: 0 is no time")
    text = (path.parent / "report.html").read_text(encoding="utf-8")
    assert "Left out: gemm.parquet: time_ms: 0 is no time" in text and str(tmp_path) not in text
    status, _, err = run("figures", path.parent, "--out", tmp_path / "out")
    assert status == 0 and len(err) == 1


@pytest.mark.parametrize("command", ["report", "figures", "notebooks"])
def test_the_commands_refuse_in_one_line(command: str, run: Run, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    cases: Sequence[tuple[str, Harm]] = [("time_ms", throughout("time_ms", -1.0)), ("status", without("status"))]
    for column, harm in cases:
        path = stored(tmp_path / column, "gemm", harm(tables["gemm"]))
        arguments = ("--results", path.parent) if command == "notebooks" else (path.parent,)
        out = () if command == "report" else ("--out", tmp_path / "out")
        status, said, err = run(command, *arguments, *out)
        assert (status, said, len(err)) == (BAD_INPUT, [], 1) and err[0].startswith(f"{path}: {column}: ")
        assert not (tmp_path / "out").exists() and not (path.parent / "report.html").exists()


def test_an_empty_table_says_that_nothing_was_run(run: Run, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    path = stored(tmp_path, "gemm", tables["gemm"].slice(0, 0))
    assert len(load(tmp_path, "gemm")) == 0
    status, _, err = run("report", path.parent)
    assert (status, err) == (0, [])
    assert "no cell was run" in (tmp_path / "report.html").read_text(encoding="utf-8")
