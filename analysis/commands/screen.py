"""Tables on a screen."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table


def print_table(console: Console, title: str, table: pd.DataFrame) -> None:
    """A table of texts under its title, or nothing where it has no rows; what a first cell repeats is left blank."""
    if table.empty:
        return
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in table.columns:
        shown.add_column(str(name), overflow="fold")
    before: list[str] = []
    for row in table.to_numpy().tolist():
        shown.add_row(*["" if place == 0 and before[:1] == row[:1] else cell for place, cell in enumerate(row)])
        before = row
    console.print()
    console.print(title, style="bold")
    console.print(shown)
