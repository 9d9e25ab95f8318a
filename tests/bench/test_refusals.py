"""What is refused is refused in one short line that names the field.

Every setting, and every oddity that TOML and JSON can hold.
"""

from __future__ import annotations

import ast
import json
import re
from itertools import product
from pathlib import Path

import pytest

from bench.cells import KINDS, TrainCell
from bench.data.corpus import Sizes
from bench.sweep import SweepError, load, shown
from bench.training.needs import data_notes, text_fault
from kernels.cuda.choose import choices, nearest
from kernels.system.cache import sealed

ROOT = Path(__file__).parents[2]
HUGE = "0x" + "f" * 5000  # more digits than Python writes
DEEP = ".".join("a" * 1500)  # keys of tables, each in the one before: read without recursion, not so written
LONG = "x" * 2**14
MEGABYTE = "x" * 2**20
LONGEST_LINE = 2000  # letters, beside the path

VALUES = {
    "hexadecimal": HUGE,
    "octal": "0o" + "7" * 5000,
    "binary": "0b" + "1" * 20_000,
    "negative": "-1",
    "nan": "nan",
    "inf": "-inf",
    "beyond floats": "1e400",
    "date": "1979-05-27",
    "time": "07:32:00",
    "date and time": "1979-05-27T07:32:00Z",
    "empty list": "[]",
    "list of a huge integer": f"[{HUGE}]",
    "nested list": "[" * 300 + "]" * 300,
    "table": "{a = 1}",
    "table with a huge integer": "{a = " + HUGE + "}",
    "deep table": "{" + DEEP + " = 1}",
    "string": '"no such"',
    "empty string": '""',
    "long string": f'"{LONG}"',
    "line breaks": r'"a\nb\u2028c\u0000"',
}
KEYS = {
    "empty": '""',
    "dots": '"a.b.c"',
    "line breaks": r'"a\nb\u2028c"',
    "long": LONG,
    "no ASCII": '"größe"',
    "deep": DEEP,
    "a number": "16",
}


def refusal(folder: Path, text: str) -> str:
    """The one line with which a sweep file is refused, without its path."""
    path = folder / "odd.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SweepError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    line = line.removeprefix(f"{path}: ")
    assert len(line) < LONGEST_LINE, line[:200]
    return line


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_refuses_it_by_its_own_name(tmp_path: Path, kind: str, value: str) -> None:
    for name in KINDS[kind].model_fields:
        for table, wanted, text in (("base", "", VALUES[value]), ("axes", r"\[0\]", f"[{VALUES[value]}]")):
            line = refusal(tmp_path, f'kind = "{kind}"\n[{table}]\n{name} = {text}\n')
            assert re.match(rf"{table}\.{name}{wanted}: .+; accepted: .", line), line


@pytest.mark.parametrize("value", VALUES)
def test_it_is_refused_in_place_of_a_table_or_a_kind(tmp_path: Path, value: str) -> None:
    text = VALUES[value]
    for field in ("kind", "base", "axes", "grids", "description"):
        if field == "description" and ("string" in value or value == "line breaks"):
            continue
        rest = "" if field == "kind" else 'kind = "gemm"\n'
        line = refusal(tmp_path, f"{rest}{field} = {text}\n" + ("[base]\n" if field in ("kind", "description") else ""))
        assert line.startswith(field), line
    line = refusal(tmp_path, f'kind = "gemm"\n[axes]\nm = {text}\n')
    assert line.startswith("axes.m"), line


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("table", ["", "[base]", "[axes]", "[[grids]]", "[[grids]]\n[grids.base]"])
def test_a_key_of_any_letters_is_told_in_one_short_line(tmp_path: Path, key: str, table: str) -> None:
    line = refusal(tmp_path, f'kind = "gemm"\n{table}\n{KEYS[key]} = [1]\n')
    assert "accepted: " in line and ("unknown" in line or (key, table) == ("deep", "[axes]"))
    if key == "dots":
        assert "'a.b.c'" in line, "one key, not three"
    line = refusal(tmp_path, f'kind = "gemm"\n{table}\n{KEYS[key]} = 1\n')
    assert "; accepted: " in line


@pytest.mark.parametrize(
    "header",
    [f"[{LONG}]\n" * 2, f"[{MEGABYTE}]\n", f"[{DEEP}]\n", f"[base.m.{DEEP}]\n", f"[axes.m.{DEEP}]\n"],
    ids=range(5),
)
def test_tables_with_long_and_deep_names(tmp_path: Path, header: str) -> None:
    refusal(tmp_path, f'kind = "gemm"\n{header}')


def test_surrogates_impossible_dates_and_long_texts(tmp_path: Path) -> None:
    for text in (r'"\ud800"', "2026-02-30", "25:00:00", "9" * 5000, "[" * 5000, f'"{MEGABYTE}"'):
        assert "accepted: " in refusal(tmp_path, f'kind = "gemm"\n[base]\nm = {text}\n')


def test_a_product_of_more_cells_than_can_be_written(tmp_path: Path) -> None:
    axes = "".join(f"no_setting_{number} = [{'1, ' * 100}]\n" for number in range(3000))
    assert refusal(tmp_path, f'kind = "gemm"\n[axes]\n{axes}').startswith("axes.no_setting_0: unknown")


def test_the_name_of_a_sweep_may_be_too_long_for_a_file() -> None:
    with pytest.raises(SweepError, match="no such sweep"):
        load("x" * 5000)
    with pytest.raises(SweepError, match="file"):
        load("x" * 5000 + ".toml")


def test_values_are_shown_short() -> None:
    assert shown(2**20_000) == "an integer of 20001 bits"
    assert shown([2**20_000]) == "a list with an integer of too many digits"
    assert len(shown(LONG)) == 60


def rules() -> list[str]:
    """How each line begins with which cells and groups of settings refuse those that contradict each other."""
    found = list(TrainCell().divided)
    sources = [ROOT / "bench" / "cells.py", *(ROOT / "bench").glob("*/settings.py")]
    for node in (node for source in sources for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            words = node.args[0] if node.args else None
            if node.func.id == "ValueError" and isinstance(words, ast.JoinedStr):
                words = words.values[0]
            if node.func.id in ("ValueError", "require_division") and isinstance(words, ast.Constant):
                found.append(str(words.value))
    return found


def test_rules_between_settings_name_one_of_them() -> None:
    fields = {name for kind in KINDS.values() for name in kind.model_fields}
    assert len(rules()) >= 10
    assert {line.partition(":")[0] for line in rules()} <= fields


def part_of(fault: str) -> str:
    """Which text a line speaks of."""
    return fault.partition(" tokens of the ")[2].partition(" text")[0]


def test_what_a_text_is_too_short_for_names_a_setting() -> None:
    """And what it says is accepted is accepted: a change of that field alone gets further."""
    refused = 0
    texts = [Sizes(*each, 50) for each in product((5, 39, 1000), (1, 19, 400), (1, 19, 400))]
    counts = (1, 2, 150, 2**31 - 1)
    for sizes, batch, test_batch, train, evaluated in product(texts, counts, counts, (0, 1, 3, 500), (0, 1, 3, 300)):
        settings = {"batch_size": batch, "test_batch_size": test_batch, "train_tokens": train, "eval_tokens": evaluated}
        cell = TrainCell(**settings)
        for note in data_notes(cell, sizes):
            assert note.partition(":")[0] in TrainCell.model_fields, note
        fault = text_fault(cell, sizes)
        if fault is None:
            continue
        refused += 1
        field, _, rest = fault.partition(": ")
        assert field in TrainCell.model_fields, fault
        limits = [int(number) for number in re.findall(r"\d+", rest.partition("; accepted: ")[2])]
        if field != "dataset":
            left = text_fault(cell.model_copy(update={field: limits[0]}), sizes)
            assert left is None or (left.partition(": ")[0], part_of(left)) != (field, part_of(fault)), (fault, left)
    assert refused > 100


ENTRY = {"op": "dsd", "dtype": "float32", "math": "ieee", "block_size": 16, "m": 64, "k": 64, "n": 32}
ODD = {
    "huge": 10**4000,
    "larger than a column": 2**31,
    "nan": float("nan"),
    "inf": float("inf"),
    "negative": -1,
    "zero": 0,
    "a fraction": 0.5,
    "text": "x" * 2**20,
    "surrogate": "\ud800",
    "list": [],
    "table": {},
    "null": None,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["block_size", "m", "k", "n"])
def test_a_tuned_table_with_odd_sizes_is_not_followed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, odd: str
) -> None:
    entry = {**ENTRY, "target_sparsity": 0.5, "variant": {"rows": 16}, name: ODD[odd]}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(sealed({"choices": [entry]})))
    choices.cache_clear()
    assert nearest("dsd", "float32", "ieee", 16, 64, 64, 32, 0.5, path) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert f"choice 1: {name} is no whole number" in line and len(line) < LONGEST_LINE


@pytest.mark.parametrize("depth", [10, 500, 900, 950, 990, 1000, 2000, 100_000])
@pytest.mark.parametrize("ends", ["[]", "{}"], ids=["lists", "tables"])
def test_a_tuned_table_nested_deep_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ends: str, depth: int
) -> None:
    begin = '{"a":' if ends == "{}" else "["
    path = tmp_path / "tuned.json"
    path.write_text('{"sha256": "", "choices": ' + begin * depth + "1" + ends[1] * depth + "}")
    choices.cache_clear()
    assert choices(path) == ()
    (line,) = capfd.readouterr().err.splitlines()
    assert "damaged" in line
