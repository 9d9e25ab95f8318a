"""`python -m bench` and `python -m analysis` as programs of their own, started from a folder as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def command(module: str, folder: Path, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """What `python -m MODULE ARGUMENTS` said there, and its status. variables: of its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
