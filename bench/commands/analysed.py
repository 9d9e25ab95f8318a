"""Commands that end with what the analysis says of what they have stored."""

from __future__ import annotations

import subprocess
import sys


def analysed(*arguments: str) -> int:
    """Run `python -m analysis ARGUMENTS`, a program of its own since it sees results through parquet; its status."""
    return subprocess.run([sys.executable, "-m", "analysis", *arguments], check=False).returncode
