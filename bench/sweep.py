"""Sweep files: TOML in, cells out, or one line that says what is wrong.

    description = "what the sweep is for"   # optional
    kind = "gemm"                           # gemm | lstm | train
    [base]                                  # settings that differ from the cell's defaults
    m = 1024
    [axes]                                  # the product of these lists; the last one varies fastest
    block_size = [8, 16]

Several products in one file are `[[grids]]`, each with a `kind`, `[grids.base]` and `[grids.axes]` of its own laid over
the top level: a setting named in a grid replaces the top level's, whether that was a base or an axis. Where the top
level has a `kind`, grids of another kind take nothing from it. Equal values, and equal cells of different grids, are
merged. Nothing here imports torch, so that a bad file is refused at once.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bench.cells import KINDS, Cell
from kernels.registry import Catalogue, Registry

SWEEPS = Path(__file__).parent / "sweeps"
ROOT = Path(__file__).resolve().parent.parent
RESERVED = ("reference", "notebooks", "advise", "compare", "yardsticks")  # folders of results/ that are no sweep's
FILES = (".parquet", ".sha256", ".json", ".html", ".md")  # what lies beside the folders of sweeps ends so
LARGEST_SWEEP = 10_000  # cells; at a second each that is three hours
SECTIONS = ("kind", "base", "axes")
TOP_LEVEL = ("description", *SECTIONS, "grids")
REGISTRIES: dict[str, Catalogue | Registry[Any]] = {  # those whose members a setting names, by its name
    name: registry
    for kind in KINDS.values()
    for name, field in kind.model_fields.items()
    for registry in field.metadata
    if isinstance(registry, Catalogue | Registry)
}
NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
NAMED: dict[type, str] = {list: "list", dict: "table"}
LONGEST_NAME = 80  # letters of the name of an altered sweep, which is a folder's
LONGEST_SHOWN = 60  # letters of a value or a key in a line

Table = dict[str, Any]


class SweepError(ValueError):
    """A sweep file that cannot be used: one line, `path: field: what is wrong; accepted: ...`."""

    def __init__(self, path: Path | str, field: str, wrong: str, accepted: str) -> None:
        line = f"{path}: {field}: {wrong}" + (f"; accepted: {accepted}" if accepted else "")
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in line))


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its cells are canonical, without duplicates, in file order.

    altered: the options that made it of what its file says, where there were any.
    """

    name: str
    description: str
    path: Path
    cells: tuple[Cell, ...]
    altered: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Which file this is, whatever it holds today: a digest of its place, in the checkout where it lies in one."""
        path = self.path.resolve()
        place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        return hashlib.sha256(os.fsencode(place.as_posix())).hexdigest()

    @property
    def named(self) -> str:
        """What loads it again, from the same folder: the bare name of one that comes with the suite, else its path."""
        return self.name if self.path.parent == SWEEPS else str(self.path)


def names() -> list[str]:
    """The sweeps that come with the suite."""
    return sorted(path.stem for path in SWEEPS.glob("[!.]*.toml") if path.is_file())


def load_all(paths_or_names: Iterable[str | os.PathLike[str]]) -> list[Sweep]:
    """The sweeps of several files, each once; SweepError, too, where two of them would share a results folder."""
    return distinct([load(each) for each in paths_or_names])


def distinct(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """`sweeps` without repetitions. SweepError where two have one name, and so one folder, and other cells."""
    found: dict[str, Sweep] = {}
    for sweep in sweeps:
        other = found.setdefault(sweep.name.casefold(), sweep)
        if (other.name, other.cells) != (sweep.name, sweep.cells):
            wrong = f"{other.path} has the same name and other cells"
            raise SweepError(sweep.path, "file", wrong, "files of different names, as their results lie side by side")
    return list(found.values())


def load(path_or_name: str | os.PathLike[str]) -> Sweep:
    """The sweep of a file, or of a bare name in bench/sweeps. SweepError, one line, where anything is wrong."""
    path = _locate(path_or_name)
    content = _read(path)
    try:
        _check_keys(content, TOP_LEVEL, "top level")
        _check_type(content, "description", str, "a string")
        products = [_checked(where, grid) for where, grid in _grids(content)]
        _require_few("grids", sum(count for *_, count in products))  # before any is built
        cells = [cell for where, model, base, axes, _ in products for cell in _expand(where, model, base, axes)]
    except _Wrong as error:
        raise SweepError(path, *error.args) from None
    unique = {cell.cell_id: cell for cell in (cell.canonical() for cell in cells)}
    return Sweep(path.stem, content.get("description", ""), path, tuple(unique.values()))


SET, ONLY = "--set", "--only"


def altered(sweep: Sweep, settings: Sequence[str], only: Sequence[str]) -> Sweep:
    """`sweep` with other values for some of its settings, and of that a part: a sweep of another name.

    settings: 'name=value' or 'name=value,value'; every cell that has that setting is made with each of the values in
    place of its own. only: the same; cells stay whose setting, or kind, is one of the values. SweepError, one line,
    naming the option, where nothing has such a setting, a value is none of it, or no cell is left.
    """
    if not settings and not only:
        return sweep
    cells, changed = list(sweep.cells), [_assigned(SET, each) for each in settings]
    for name, values in changed:
        cells = [made for cell in cells for made in _with_values(cell, name, values, cells)]
        _few(cells)
    kept = [_assigned(ONLY, each) for each in only]
    for name, values in kept:
        cells = _of_values(cells, name, values)
    unique = {cell.cell_id: cell for cell in (cell.canonical() for cell in cells)}
    given = [*((SET, each) for each in settings), *((ONLY, each) for each in only)]
    options = tuple(part for pair in given for part in pair)
    asked = [f"{name}-{'-'.join(map(_plain_text, values))}" for name, values in (*changed, *kept)]
    name = re.sub(r"[^\w.-]+", "-", "-".join([sweep.name, *asked]))
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}"
    return Sweep(name, sweep.description, sweep.path, tuple(unique.values()), options)


def _few(cells: Sequence[Cell]) -> None:
    if len(cells) > LARGEST_SWEEP:
        raise SweepError(SET, "cells", f"{len(cells)} cells in all", f"at most {LARGEST_SWEEP}; use several sweeps")


def _plain_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _assigned(option: str, given: str) -> tuple[str, list[Any]]:
    """(name, values) of 'name=value,value', each value as TOML reads it, or else as a string."""
    name, equals, text = given.partition("=")
    values = [_value(each.strip()) for each in text.split(",") if each.strip()]
    if not (re.fullmatch(r"\w+", name.strip()) and equals and values):
        raise SweepError(option, cut(given), "names no setting and value", "NAME=VALUE or NAME=VALUE,VALUE")
    return name.strip(), values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return float(text) if re.fullmatch(r"[+-]?\d*\.\d+|[+-]?\d+\.", text) else text  # .8, which TOML lacks


def _with_values(cell: Cell, name: str, values: Sequence[Any], every: Sequence[Cell]) -> Iterator[Cell]:
    """The cell with each value of a setting; itself where it has none, and others have."""
    kinds = dict.fromkeys(type(each) for each in every)
    fields = type(cell).model_fields
    if name not in fields:
        if not any(name in kind.model_fields for kind in kinds):
            known = list(dict.fromkeys(field for kind in kinds for field in kind.model_fields))
            raise SweepError(SET, name, f"no cell has that setting{did_you_mean(name, known)}", ", ".join(known))
        yield cell
        return
    for value in values:
        value = float(value) if fields[name].annotation is float and type(value) is int else value
        if (check := check_setting(type(cell), name, value)) is not None:
            raise SweepError(SET, name, *check)
        try:
            yield type(cell).model_validate(cell.model_dump() | {name: value})
        except ValidationError as error:
            field, wrong, accepted = _of_rule(error)
            raise SweepError(SET, field, wrong, accepted) from None


def _of_values(cells: Sequence[Cell], name: str, values: Sequence[Any]) -> list[Cell]:
    there = [cell.kind if name == "kind" else getattr(cell, name, None) for cell in cells]
    found = [cell for cell, own in zip(cells, there, strict=True) if own is not None and own in values]
    if not found:
        known = list(dict.fromkeys(_plain_text(each) for each in there if each is not None))
        asked = ", ".join(map(_plain_text, values))
        if not known:
            settings = list(dict.fromkeys(field for cell in cells for field in type(cell).model_fields))
            meant = did_you_mean(name, settings)
            raise SweepError(ONLY, name, f"no cell has that setting{meant}", f"kind, {', '.join(settings)}")
        raise SweepError(ONLY, name, f"no cell has {cut(asked)}", cut(", ".join(known)))
    return found


class _Wrong(Exception):  # noqa: N818
    """args: field, what is wrong, what is accepted."""


def _locate(path_or_name: str | os.PathLike[str]) -> Path:
    path = Path(path_or_name)
    if path.suffix or len(path.parts) != 1 or os.path.isdir(path):  # noqa: PTH112 - a name too long for a file is none
        return path
    if path.name not in names():
        accepted = ", ".join([*names(), "or a path to a .toml file"])
        raise SweepError(path.name, "sweep", f"no such sweep{did_you_mean(path.name, names())}", accepted)
    return SWEEPS / f"{path.name}.toml"


def _read(path: Path) -> Table:
    try:
        if path.exists() and not path.is_file():
            raise SweepError(path, "file", "a folder" if path.is_dir() else "not a regular file", "a TOML file")
        text = path.read_bytes().decode("utf-8-sig")
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SweepError(path, f"line {line}", "not UTF-8", "a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at (line \d+|end of document).*", str(error))
        wrong = cut(str(error)[: where.start()] if where else str(error))
        accepted = "TOML, with every key and table given once"
        raise SweepError(path, where[1] if where else "file", wrong, accepted) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, SweepError):
            raise
        raise SweepError(path, "file", f"not readable as TOML ({error})", "a TOML file") from None
    except OSError as error:
        raise SweepError(path, "file", (error.strerror or str(error)).lower(), "a TOML file that exists") from None
    if re.fullmatch(r"\w[\w.-]*", path.stem) is None:
        raise SweepError(path, "file", "its name becomes the results folder's", "letters, digits, '_', '-' and '.'")
    if path.stem.casefold() in RESERVED or path.stem.casefold().endswith(FILES):
        accepted = f"any but {', '.join(RESERVED)}, and none that ends in {', '.join(FILES)}"
        raise SweepError(path, "file", f"the name {path.stem!r} is taken in the results folder", accepted)
    return content


def _grids(content: Table) -> list[tuple[str, Table]]:
    """(where, {kind, base, axes}) of every product, the top level merged in."""
    _check_sections(content, "")
    if "grids" not in content:
        if not {"base", "axes"} & content.keys():
            raise _Wrong("base", "nothing to measure", "a table [base], a table [axes] or tables [[grids]]")
        return [("", content)]
    grids = content["grids"]
    if not (isinstance(grids, list) and grids and all(isinstance(grid, dict) for grid in grids)):
        raise _Wrong("grids", "not a list of tables" if grids else "empty", "one or more tables [[grids]]")
    merged = []
    for position, grid in enumerate(grids):
        where = f"grids[{position}]."
        if not grid:
            raise _Wrong(where[:-1], "empty", "kind, [grids.base] or [grids.axes]")
        _check_keys(grid, SECTIONS, where[:-1])
        _check_sections(grid, where)
        merged.append((where, _overlay(content, grid)))
    return merged


def _overlay(top: Table, grid: Table) -> Table:
    if "kind" in grid and "kind" in top and grid["kind"] != top["kind"]:
        return grid  # the top level speaks of another kind of cell
    base, axes = grid.get("base", {}), grid.get("axes", {})
    return {
        **({"kind": grid.get("kind", top.get("kind"))} if {"kind"} & (grid.keys() | top.keys()) else {}),
        "base": {**{name: value for name, value in top.get("base", {}).items() if name not in axes}, **base},
        "axes": {**{name: value for name, value in top.get("axes", {}).items() if name not in base}, **axes},
    }


def _check_sections(table: Table, where: str) -> None:
    for section in ("base", "axes"):
        _check_type(table, section, dict, f"a table [{section}]", where)
    if "axes" in table and not table["axes"]:
        raise _Wrong(f"{where}axes", "empty", "one or more settings with a list of values each")
    for name, values in table.get("axes", {}).items():
        field = f"{where}axes.{key_shown(name)}"
        if name in table.get("base", {}):
            raise _Wrong(field, "also in [base]", "a setting in one of [base] and [axes]")
        if not isinstance(values, list):
            raise _Wrong(field, f"{shown(values)} is not a list", f"a list of values, or {key_shown(name)} in [base]")
        if not values:
            raise _Wrong(field, "an empty list", "one or more values")


def _require_few(field: str, count: int) -> None:
    if count > LARGEST_SWEEP:
        raise _Wrong(field, f"{count} cells in all", f"at most {LARGEST_SWEEP}; use several sweeps")


def _checked(where: str, grid: Table) -> tuple[str, type[Cell], Table, Table, int]:
    """`where`, kind, base, axes and the number of cells of one product whose single values are right.

    They are checked first, so that an error names the value's own place.
    """
    kind = grid.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        wrong = "missing" if kind is None else f"unknown kind {shown(kind)}{did_you_mean(kind, list(KINDS))}"
        raise _Wrong(f"{where}kind", wrong, ", ".join(KINDS))
    model, base, axes = KINDS[kind], grid.get("base", {}), grid.get("axes", {})
    for name in axes:
        if name not in model.model_fields and (check := check_setting(model, name, None)):
            raise _Wrong(f"{where}axes.{key_shown(name)}", *check)
    count = math.prod(len(values) for values in axes.values())
    _require_few(f"{where}axes", count)
    for name, value in base.items():
        check = check_setting(model, name, value)
        if check is not None:
            raise _Wrong(f"{where}base.{key_shown(name)}", *check)
    for name, values in axes.items():
        for position, value in enumerate(values):
            check = check_setting(model, name, value)
            if check is not None:
                raise _Wrong(f"{where}axes.{name}[{position}]", *check)
    return where, model, base, axes, count


def _expand(where: str, model: type[Cell], base: Table, axes: Table) -> Iterator[Cell]:
    """The cells of one product."""
    for values in product(*axes.values()):
        yield _cell(where, model, {**base, **dict(zip(axes, values, strict=True))})


def _cell(where: str, model: type[Cell], settings: Table) -> Cell:
    try:
        return model.model_validate(settings)
    except ValidationError as error:  # single values are right: what is left are rules between settings
        field, wrong, accepted = _of_rule(error)
        raise _Wrong(f"{where}{field}", wrong, accepted) from None


def _of_rule(error: ValidationError) -> tuple[str, str, str]:
    """(field, what is wrong, what is accepted) of settings that do not go together."""
    return parts_of(error.errors()[0]["msg"].removeprefix("Value error, "))


def parts_of(line: str) -> tuple[str, str, str]:
    """(field, what is wrong, what is accepted) of a line that says so."""
    field, _, rest = line.partition(": ")
    wrong, _, accepted = rest.partition("; accepted: ")
    return field, wrong, accepted


def _check_keys(table: Table, accepted: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in accepted:
            hint = did_you_mean(key, list(accepted))
            raise _Wrong(key_shown(key), f"unknown key of the {where}{hint}", ", ".join(accepted))


def _check_type(table: Table, key: str, wanted: type, accepted: str, where: str = "") -> None:
    if key in table and not isinstance(table[key], wanted):
        raise _Wrong(f"{where}{key}", f"{shown(table[key])} is not {accepted}", accepted)


def check_setting(model: type[Cell], name: str, value: Any) -> tuple[str, str] | None:
    """(what is wrong, what is accepted) of one value for one setting of a kind of cell; None where it is fine."""
    fields = model.model_fields
    if name not in fields:
        wrong = f"unknown setting of a {model.kind} cell{did_you_mean(name, list(fields))}"
        return wrong, ", ".join(fields)
    if name in REGISTRIES and isinstance(value, str):
        accepted = REGISTRIES[name].accepted()
        if REGISTRIES[name].accepts(value):
            return None
        return f"unknown {name} {shown(value)}{did_you_mean(value, accepted)}", ", ".join(accepted)
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        if any(problem["loc"][:1] == (name,) for problem in error.errors()):
            return _what_is_wrong(fields[name], value), accepted_values(name, fields[name])
    return None


def accepted_values(name: str, field: FieldInfo) -> str:
    """What a setting accepts, for people: names, or a type with its bounds."""
    if name in REGISTRIES:
        return ", ".join(REGISTRIES[name].accepted())
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    assert isinstance(field.annotation, type)
    signs = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
    bounds = [
        f"{sign} {_plain(getattr(bound, attribute))}"
        for bound in field.metadata
        for kind, attribute, sign in signs
        if isinstance(bound, kind)
    ]
    return f"{NOUNS[field.annotation]} {' and '.join(bounds)}".rstrip()


def did_you_mean(name: object, accepted: list[str]) -> str:
    """', did you mean block_size?' or nothing."""
    if not isinstance(name, str) or len(name) > LONGEST_SHOWN:
        return ""
    nearest = difflib.get_close_matches(name, accepted, n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""


def shown(value: Any) -> str:
    """A value as TOML writes it, cut to a readable length; of one that cannot be written out, what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    try:
        return cut(repr(value))
    except ValueError:  # Python writes no integer of so many digits
        if isinstance(value, int):
            return f"an integer of {value.bit_length()} bits"
        return f"a {NAMED[type(value)]} with an integer of too many digits"
    except RecursionError:
        return f"a {NAMED[type(value)]} nested too deep"


def key_shown(key: str) -> str:
    """A key as TOML writes it, cut to a readable length: in quotes unless it is a bare one."""
    return cut(key if re.fullmatch("[A-Za-z0-9_-]+", key) else repr(key))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _what_is_wrong(field: FieldInfo, value: Any) -> str:
    text, number = shown(value), isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{text} is not a finite number"
    if field.annotation is float and number:
        share = any(isinstance(bound, Le | Lt) for bound in field.metadata)
        if share and 1 < value <= 100:
            return f"{text} is not a fraction: for {value:g} % write {value / 100:g}"
        return f"{text} is out of bounds"
    if field.annotation is int and number:
        return f"{text} is out of bounds" if isinstance(value, int) else f"{text} is not an integer"
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        return f"unknown value {text}{did_you_mean(value, list(get_args(field.annotation)))}"
    noun = NOUNS[field.annotation] if isinstance(field.annotation, type) else "a string"
    return f"{text} is not {noun}"
