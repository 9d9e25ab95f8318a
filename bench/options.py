"""What the options of the command line take: finite numbers between bounds, paths and names. All else is refused in one line.

Each function makes the parser of one option: typer's own refuse in several lines, and let nan and infinity pass.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

BAD_INPUT = 2
LONGEST_SECONDS = 100_000_000  # three years; what waits in the system takes no time without end
LARGEST_MIB = 2**24
MOST = 10_000  # no sweep has more cells

Parser = Callable[[Any], Any]  # of what is typed, and of a default


def ending(line: str, status: int) -> typer.Exit:
    """How a command ends with one line on standard error."""
    print(line, file=sys.stderr)
    return typer.Exit(status)


def refusal(option: str, given: object, wrong: str, accepted: str) -> typer.Exit:
    from bench.settings import shown

    return ending(f"{option}: {shown(str(given))} {wrong}; accepted: {accepted}", BAD_INPUT)


def number(option: str, least: float, most: float, unit: str) -> Parser:
    accepted = f"{unit} from {least:g} to {most:,}"

    def parse(given: Any) -> float:
        try:
            value = float(given)
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise refusal(option, given, "is no finite number", accepted)
        if not least <= value <= most:
            raise refusal(option, given, "is out of bounds", accepted)
        return value

    return parse


def seconds(option: str, least: float = 0.0) -> Parser:
    return number(option, least, LONGEST_SECONDS, "seconds")


def mebibytes(option: str) -> Parser:
    return number(option, 0.0, LARGEST_MIB, "MiB")


def count(option: str) -> Parser:
    def parse(given: Any) -> int:
        try:
            value = int(given)
        except (ValueError, OverflowError):  # ValueError too where there are more digits than Python reads
            raise refusal(option, given, "is no integer", f"1 to {MOST:,}") from None
        if not 1 <= value <= MOST:
            raise refusal(option, given, "is out of bounds", f"1 to {MOST:,}")
        return value

    return parse


def one_of(option: str, *names: str) -> Parser:
    def parse(given: Any) -> str:
        if given not in names:
            raise refusal(option, given, "is unknown", ", ".join(names))
        return str(given)

    return parse


def folder(option: str, existing: str = "") -> Parser:
    """existing: what it must be, where it must be there and be readable."""

    def parse(given: Any) -> Path:
        path = _path(option, given, existing or "a folder")
        if existing and (wrong := no_folder(path)):
            raise refusal(option, given, wrong, existing)
        return path

    return parse


def file(option: str) -> Parser:
    def parse(given: Any) -> Path:
        path = _path(option, given, "a file")
        with suppress(OSError):  # what cannot be looked at is said by who writes it
            if path.is_dir():
                raise refusal(option, given, "is a folder", "a file, which may be there or not")
        return path

    return parse


def no_folder(path: Path) -> str:
    """Why a path is no folder that can be read; nothing where it is one."""
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return "does not exist"
    except NotADirectoryError:
        return "is no folder"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def _path(option: str, given: Any, accepted: str) -> Path:
    """A path; the empty one, as of a variable that is not set, would be the folder where one is."""
    if not str(given):
        raise refusal(option, given, "is empty", accepted)
    return Path(given)
