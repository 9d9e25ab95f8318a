"""The notebooks run without a kernel, in the process of a test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import IPython.display
import pytest
from matplotlib.figure import Figure

from analysis.reporting.execution import NOTEBOOKS


def run_here(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code of every notebook on the results in a folder."""
    import nbformat  # takes two seconds

    monkeypatch.setenv("BENCH_RESULTS", str(results))
    monkeypatch.setattr(IPython.display, "display", _show)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        names: dict[str, Any] = {}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source.replace("%matplotlib inline", ""), names)


def _show(what: object) -> None:
    """As a notebook does."""
    if isinstance(what, Figure):
        what.savefig(io.BytesIO())
