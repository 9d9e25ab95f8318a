"""The columns of the result tables, as `bench` tells them across the parquet wall in columns.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COLUMNS_FILE = Path(__file__).with_name("columns.json")  # made by `python -m bench columns --schema`


class BadInputError(ValueError):
    """What is to be read is none of the suite's, or says what cannot be; a line for the user, with file and column."""


@dataclass(frozen=True)
class Column:
    """A column as `bench` describes it; a setting has a default."""

    name: str
    type: str
    role: str
    unit: str
    default: Any = None


@cache
def schema() -> dict[str, Any]:
    """columns.json: schema_version, statuses, and tables by name. BadInputError, one line, where it is damaged."""
    try:
        found: dict[str, Any] = json.loads(COLUMNS_FILE.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        remedy = "python -m bench columns --schema analysis/loading/columns.json writes it anew"
        raise BadInputError(f"{COLUMNS_FILE}: damaged, it is no JSON; {remedy}") from None
    return found


@cache
def columns(kind: str) -> tuple[Column, ...]:
    """Every column of a table, in order."""
    return tuple(Column(**column) for column in schema()["tables"][kind])
