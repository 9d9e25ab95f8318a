"""The table of formulas at the end of notebook 6: every test that it names is there, and what it names as ours."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "analysis" / "notebooks" / "06_mathematics_of_pruning.ipynb"


def rows() -> list[list[str]]:
    """The cells of the table, a row each."""
    *_, last, _ = ("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    lines = [line for line in last.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[1:]]


def test_the_table_has_the_formulas_of_the_document():
    assert len(rows()) > 15
    assert all(len(row) == 3 for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip()[:30])
def test_what_tests_a_formula_is_there(row: list[str]):
    path, name = re.fullmatch(r" `(.+)::(\w+)` ", row[2]).groups()
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip()[:30])
def test_what_has_a_formula_is_there(row: list[str]):
    for name in re.findall(r"`((?:bench|analysis)\.[\w.]+)`", row[1]):
        module, _, member = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, member) or importlib.import_module(name)
