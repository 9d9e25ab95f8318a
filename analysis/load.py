"""Load result tables across the parquet wall: parquet to DataFrame, checksum first, unlike rows kept apart."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.loading.schema import BadInputError, columns
from analysis.loading.validation import parsed, validated

TABLES = ("gemm", "lstm", "train", "storage")
READINGS = 100  # of a table that changes while it is read
LEFT_OUT = "left out"  # the attribute of a loaded frame that lists what was
ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"  # one folder a sweep, committed
YARDSTICKS = ("yardsticks", "yardsticks.parquet")  # folder beside those of the sweeps, and the table in it
TEXT = ("corpus_sha256", "train_tokens", "epochs", "eval_tokens")
YARDSTICK = {**dict.fromkeys((*TEXT[1:], "order"), "int64"), **dict.fromkeys(("val_ppl", "test_ppl"), "float64"),
             **dict.fromkeys((TEXT[0], "token", "smoothing"), "str")}  # fmt: skip

TIMED = ("schema_version", "device_name", "device", "threads", "timer", "dtype", "math")

# Rows that differ in one of these are never averaged, divided or drawn together. A network trained on another processor
# is another seed's equal, its seconds are not, nor are those of a run that shared its processor with more others: the
# times of such tables are not read (`without_times`).
UNLIKE = {
    "gemm": (*TIMED, "cache", "layout", "call", "op", "baseline"),
    "lstm": (*TIMED, "passes", "scope", "baseline"),
    "storage": (*TIMED, "what"),
    "train": (
        "schema_version",
        "device",
        "threads",
        "precision",
        "dataset",
        "corpus_sha256",
        "train_tokens",
        "eval_tokens",
    ),
}


def results_folders() -> list[Path]:
    """Where sweeps are looked for: ./results, which a run writes to, where that exists, then the checkout's."""
    here, checkout = Path("results"), ROOT / "results"
    found = [here] if here.is_dir() else []
    return found if found and here.resolve() == checkout.resolve() else [*found, checkout]


def results_folder() -> Path:
    """Where what is made of several sweeps goes: the first of `results_folders`."""
    return results_folders()[0]


def reference_folder() -> Path:
    """What the notebooks read: the folder or sweep that BENCH_RESULTS names, else the committed wikitext2_small."""
    named = os.environ.get("BENCH_RESULTS")
    if not named:
        return REFERENCE / "wikitext2_small"
    return Path(named) if Path(named).is_dir() else find_folder(named)


def find_folder(name: str, results: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a finished sweep: a folder, a sweep's name, or its .toml file; else BadInputError with one line.

    A folder may be named from where one is or from the checkout. A sweep is looked up in `results`, before anything
    else is tried, and a bare name is that of a sweep; where `results` is not given, in `results_folders` and then among
    the committed ones. A file is refused where its name's folder was measured from another file.
    """
    parents = [*results_folders(), REFERENCE] if results is None else [Path(results)]
    sweep = Path(name).stem if name.endswith(".toml") else name
    sweeps, named = [parent / sweep for parent in parents], [Path(name), ROOT / name]
    is_path = len(Path(name).parts) > 1
    places = [*named, *sweeps] if results is None else [*sweeps, *(named if is_path else [])]
    for folder in places if name else []:
        if folder.is_dir() and tables_in(folder):
            if name.endswith(".toml"):
                _check_origin(folder, Path(name))
            return folder
    known = sorted({path.name for parent in parents for path in parent.glob("*") if tables_in(path)})
    meant = get_close_matches(Path(sweep).name, known, n=1)
    asked = f" (did you mean {meant[0]}?)" if meant else ""
    missing = f"neither it nor {sweeps[0]} holds" if named[0] in places else f"{sweeps[0]} holds no"
    raise BadInputError(
        f"no results called {name!r}{asked}: {missing} {' or '.join(f'{table}.parquet' for table in TABLES)}; "
        f"known: {', '.join(known) or 'none yet'}"
    )


class LeftOutWarning(UserWarning):
    """A part of a table is left out, or not read; one line."""


def _check_origin(folder: Path, file: Path) -> None:
    """BadInputError where `folder` says that it belongs to another sweep file (`bench.sweep.Sweep.origin`)."""
    place = file.resolve()
    place = place.relative_to(ROOT) if place.is_relative_to(ROOT) else place
    try:
        said = (_regular(folder / ".sweep") or b"").decode("ascii", "replace").strip()
    except OSError:
        return
    if re.fullmatch("[0-9a-f]{64}", said) and said != hashlib.sha256(os.fsencode(place.as_posix())).hexdigest():
        raise BadInputError(
            f"{file}: {folder} was measured from another file of that name; accepted: {folder}, to see that"
        )


def tables_in(folder: Path) -> list[str]:
    """The tables a sweep's folder holds, whatever is under their names."""
    return [table for table in TABLES if os.path.lexists(folder / f"{table}.parquet")]


def load(folder: str | os.PathLike[str], table: str) -> pd.DataFrame:
    """One table of a sweep with every column of today's schema, after its bytes matched a sha256 beside it.

    BadInputError with one line where the file or its checksum is missing, damaged, of another schema version or of no
    such table.
    Cells that say what cannot be are left out with a `LeftOutWarning` for each kind of fault, listed in `attrs` too.
    """
    path = Path(folder) / f"{table}.parquet"
    data = verified(path)
    try:
        kept, lines = validated(data, table)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    for line in lines:
        warnings.warn(f"{path}: {line}", LeftOutWarning, stacklevel=2)
    frame: pd.DataFrame = kept.to_pandas(use_threads=False)
    frame.attrs[LEFT_OUT] = [f"{path.name}: {line}" for line in lines]
    return frame


def load_yardsticks(*parents: Path) -> pd.DataFrame:
    """What n-grams reach on the texts of sweeps: a row a text and order, columns YARDSTICK.

    parents: of the tables there. Of a text that several have it is the first one's. BadInputError with one line where a
    table is damaged or none of ours.
    """
    found = [pd.DataFrame({name: pd.Series(dtype=type_) for name, type_ in YARDSTICK.items()})]
    paths = dict.fromkeys(parent.joinpath(*YARDSTICKS) for parent in parents)
    found += [_yardsticks(path) for path in paths if os.path.lexists(path)]
    every = pd.concat(found[1:] or found, ignore_index=True)
    return every.drop_duplicates([*TEXT, "order"], ignore_index=True)


def _yardsticks(path: Path) -> pd.DataFrame:
    try:
        stored = parsed(verified(path))
        frame: pd.DataFrame = stored.select(list(YARDSTICK)).to_pandas(use_threads=False).astype(YARDSTICK)
    except BadInputError as error:
        raise BadInputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path}: no table of yardsticks ({why})") from None
    return frame


def verified(path: Path) -> bytes:
    """The bytes of a table that match its checksum file.

    The two are written one after the other, so beside a run they may be of different moments: they are read again while
    they change.
    """
    sidecar = path.with_name(path.name + ".sha256")
    for _ in range(READINGS):
        seen = _moment(path), _moment(sidecar)
        data, sums = _regular(path), _regular(sidecar)
        if data is not None and sums is not None and hashlib.sha256(data).hexdigest() in _sums(sums):
            return data
        if (_moment(path), _moment(sidecar)) == seen:
            break
    else:
        raise BlockingIOError(errno.EAGAIN, "written faster than it can be read; try again", str(path))
    if data is None:
        raise BadInputError(f"{path}: {'no regular file' if os.path.lexists(path) else 'missing'}; run the sweep first")
    if sums is None:
        raise BadInputError(f"{path}: its checksum {sidecar.name} is missing; run the sweep again to rebuild both")
    raise BadInputError(f"{path}: damaged, its bytes do not match {sidecar.name}; run the sweep again to rebuild it")


def _regular(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none: missing, a folder, a pipe to be waited for, a link to nothing."""
    try:
        return path.read_bytes() if path.is_file() else None
    except FileNotFoundError:
        return None


def _sums(sidecar: bytes) -> set[str]:
    """The sums of a checksum file, which names the bytes before and after while a table is replaced.

    The file names beside them do not count, so that a table may be copied or renamed.
    """
    lines = sidecar.decode("ascii", errors="replace").splitlines()
    return {line.split()[0].lower() for line in lines if line.strip()}


def _moment(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries by column name, with Python's own values; <NA> is None.

    As `to_dict("records")`, which takes five times as long: it looks up each of a hundred columns by its place.
    """
    names, rows = [str(name) for name in frame.columns], frame.to_numpy(dtype=object).tolist()
    return [{name: None if value is pd.NA else value for name, value in zip(names, row, strict=True)} for row in rows]


def one_of(frame: pd.DataFrame, columns: Sequence[str], over: str | None = None) -> None:
    """ValueError where `frame` mixes values of one of `columns`; `over` names the one column that is compared.

    Nulls (a cell that failed has no timer) are not values.
    """
    for column in columns:
        if column == over or column not in frame:
            continue
        values = sorted(str(value) for value in frame[column].dropna().unique())
        if len(values) > 1:
            raise ValueError(
                f"these rows mix {column} ({', '.join(values)}); select one, or name {column!r} as the column compared "
                "over"
            )


def machines(train: pd.DataFrame) -> list[str]:
    """The processors that the cells of a training table ran on, by name."""
    return sorted(str(name) for name in train["device_name"].dropna().unique())


def crowds(train: pd.DataFrame) -> list[int]:
    """How many cells were trained side by side while those of a training table were: each number that there is."""
    return sorted(int(count) for count in train["workers"].dropna().unique())


def timed_alike(train: pd.DataFrame) -> bool:
    """Whether times of a training table compare: of one processor, with equally many cells side by side."""
    return len(machines(train)) < 2 and len(crowds(train)) < 2


STEADY = 1.5
FEW = 5  # settings


def timed_steadily(train: pd.DataFrame) -> bool:
    """Whether runs that are equal but for their seed took about the same time: no other work came between them.

    The longest beside the shortest of each setting is at most STEADY, in the median over settings. A median of fewer
    than FEW settings tells nothing, and they are believed.
    """
    ok = train[train["status"] == "ok"]
    settings = [column.name for column in columns("train") if column.role == "setting" and column.name in ok]
    settings.remove("seed")
    cells = ok.groupby("cell_id")
    runs = cells[settings].first().assign(seconds=cells["train_seconds"].sum(min_count=1))
    took = runs.dropna(subset=["seconds"]).groupby(settings, dropna=False)["seconds"]
    ratios = (took.max() / took.min())[took.size() > 1]
    return len(ratios) < FEW or bool(ratios.median() <= STEADY)


PAIRED = "inference_"  # times of pairs, one beside the other in one process


def without_times(train: pd.DataFrame, paired: bool = False) -> pd.DataFrame:
    """A training table whose cells were not timed alike: its accuracies compare, its times do not, so they are null.

    paired: those that were taken in pairs stay.
    """
    times = [
        column.name
        for column in columns("train")
        if column.role == "measured" and column.unit in ("s", "ms") and not (paired and column.name.startswith(PAIRED))
    ]
    nothing = [None] * len(train)  # of lists, too: None is no NaN
    null = {name: pd.Series(nothing, train.index, train[name].dtype) for name in times if name in train}
    return train.assign(**null)


def split(frame: pd.DataFrame, table: str, over: str | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, rows) of each comparable part of `frame`; the label names only what differs, empty where nothing does.

    A failed cell has no timer; it goes with the others where they all share one. `over` names a column that is
    compared: its values stay in one part.
    """
    filled = frame.copy()
    mixed = []
    for column in (column for column in UNLIKE[table] if column in frame and column != over):
        values = filled[column].dropna().unique()
        if len(values) == 1:
            filled[column] = filled[column].fillna(values[0])
        elif len(values) > 1:
            mixed.append(column)
    if not mixed:
        yield "", filled
        return
    for key, part in filled.groupby(mixed, dropna=False, sort=True):
        yield ", ".join(f"{column} {value}" for column, value in zip(mixed, key, strict=True)), part
