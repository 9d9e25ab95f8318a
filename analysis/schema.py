"""The columns of the result tables, as `bench` tells them across the parquet wall in columns.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COLUMNS_FILE = Path(__file__).with_name("columns.json")  # made by `python -m bench columns --schema`


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
    """columns.json: schema_version, statuses, and tables by name."""
    found: dict[str, Any] = json.loads(COLUMNS_FILE.read_text(encoding="utf-8"))
    return found


@cache
def columns(kind: str) -> tuple[Column, ...]:
    """Every column of a table, in order."""
    return tuple(Column(**column) for column in schema()["tables"][kind])
