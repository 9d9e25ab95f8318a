"""Rows of training runs, for tests that compare runs."""

from __future__ import annotations

from typing import Any

from bench.schema import TRAIN

MEASURED = [column.name for column in TRAIN if column.role == "measured"]


def silent(news: dict[str, Any]) -> None:
    """Nobody listens to the run."""


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that differ from run to run."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
