"""What a person sees while a sweep runs: a live display on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from bench.cells import Cell
from bench.engines.estimate import spoken

HEARTBEAT_SECONDS = 60.0
SHOWN = 6  # running cells listed on a terminal

Told = Mapping[str, Mapping[str, float | int | str]]


def reporter(labels: Mapping[str, str], total: int) -> Reporter:
    """The one that suits standard output. labels: names of the cells, by cell_id. total: cells to run."""
    console = Console(highlight=False)
    return Terminal(console, labels, total) if console.is_terminal else Reporter(labels, total)


class Reporter:
    """One line per finished cell, and one a minute while nothing finishes.

    `running` is called a few times a second, `ended` once a cell.
    """

    def __init__(self, labels: Mapping[str, str], total: int) -> None:
        self.labels, self.total, self.done, self.spoke = labels, total, 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def line(self, text: str) -> None:
        self.spoke = time.monotonic()
        print(text, flush=True)

    def running(self, told: Told, seconds_left: float) -> None:
        if time.monotonic() - self.spoke >= HEARTBEAT_SECONDS:
            now = "; ".join(_current(self.labels[cell_id], told[cell_id]) for cell_id in told)
            self.line(f"... {self.done} of {self.total} done, about {spoken(seconds_left)} left; running: {now}")

    def ended(self, cell: Cell, status: str, reason: str, seconds: float) -> None:
        self.done += 1
        self.line(_finished(self.done, self.total, self.labels[cell.cell_id], status, reason, seconds))


class Terminal(Reporter):
    """A bar, the time left and the running cells, with the finished ones scrolling away above."""

    def __init__(self, console: Console, labels: Mapping[str, str], total: int) -> None:
        super().__init__(labels, total)
        # Twice a second: cells are being timed on the same machine.
        self.live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def line(self, text: str) -> None:
        self.live.console.print(text, markup=False)

    def running(self, told: Told, seconds_left: float) -> None:
        bar = ProgressBar(total=self.total, completed=self.done, width=40)
        head = Text(f"{self.done} of {self.total} cells, about {spoken(seconds_left)} left")
        lines = [
            Text(_current(self.labels[cell_id], told[cell_id]), overflow="ellipsis", no_wrap=True) for cell_id in told
        ]
        self.live.update(Group(bar, head, *lines[:SHOWN]))


def labels(cells: Iterable[Cell]) -> dict[str, str]:
    """A few words for each cell, by cell_id: its kind, and the settings in which the cells of its kind differ."""
    by_kind: dict[str, list[Cell]] = {}
    for cell in cells:
        by_kind.setdefault(cell.kind, []).append(cell)
    words = {}
    for kind, alike in by_kind.items():
        names = [name for name in type(alike[0]).model_fields if len({getattr(cell, name) for cell in alike}) > 1]
        for cell in alike:
            words[cell.cell_id] = " ".join([kind, *(f"{name}={getattr(cell, name)}" for name in names)])
    return words


def _finished(done: int, total: int, label: str, status: str, reason: str, seconds: float) -> str:
    why = f": {reason}" if reason else ""
    return f"[{done}/{total}] {status} in {spoken(seconds)}: {label}{why}"


def _current(label: str, told: Mapping[str, float | int | str]) -> str:
    """The last news of a cell; what has a whole beside it, as epoch has epochs, is told as a part of it."""
    wholes = {f"{key}s": key for key in told if f"{key}s" in told}
    figures = ", ".join(
        f"{key} {value:.4g}"
        if isinstance(value, float)
        else f"{key} {value}" + (f" of {told[f'{key}s']}" if f"{key}s" in told else "")
        for key, value in told.items()
        if key not in wholes
    )
    return f"{figures or 'started'}: {label}"
