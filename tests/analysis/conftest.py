"""What every test of analysis shares: made-up tables at hand (`import made`), and figures without a screen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
import made

matplotlib.use("Agg")


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Path]:
    """sweep(gemm=frame, train=frame) writes results/smoke under a temporary folder and returns it."""

    def build(**tables: pd.DataFrame | None) -> Path:
        folder = tmp_path / "results" / "smoke"
        folder.mkdir(parents=True, exist_ok=True)
        for table, frame in tables.items():
            if frame is not None:
                made.write(folder, table, frame)
        return folder

    return build


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes most of a report's time; each is stored as a few bytes."""

    def savefig(figure: Figure, target: Path | BinaryIO, **options: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"no picture")
        else:
            target.write(b"no picture")

    monkeypatch.setattr(Figure, "savefig", savefig)
