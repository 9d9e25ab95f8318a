"""The options of the command line: finite numbers between bounds, paths and names. All else is refused in one line.

Each function makes one option, with a parser of ours: typer's own refuse in several lines, and let nan and infinity
pass. What the commands share stands at the end.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

BAD_INPUT = 2
LONGEST_SECONDS = 100_000_000  # three years; what waits in the system takes no time without end
LARGEST_MIB = 2**24
MOST = 10_000  # no sweep has more cells


def ending(line: str, status: int) -> typer.Exit:
    """How a command ends with one line on standard error."""
    print(line, file=sys.stderr)
    return typer.Exit(status)


def refusal(option: str, given: object, wrong: str, accepted: str) -> typer.Exit:
    """How a command ends whose `option` was given what it does not take; a path is told whole, all else cut."""
    from bench.sweep import shown

    told = str(given) if isinstance(given, Path) else shown(str(given))
    return ending(f"{option}: {told} {wrong}; accepted: {accepted}", BAD_INPUT)


def number(option: str, told: str, least: float, most: float, unit: str, metavar: str) -> Any:
    """told: what its help says."""
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

    return typer.Option(parser=parse, metavar=metavar, help=told)


def seconds(option: str, told: str, least: float = 0.0) -> Any:
    return number(option, told, least, LONGEST_SECONDS, "seconds", "SECONDS")


def mebibytes(option: str, told: str) -> Any:
    return number(option, told, 0.0, LARGEST_MIB, "MiB", "MIB")


def plugin_files(option: str, told: str) -> Any:
    """Files that become plugins of this process and of those it starts, at once."""

    def use(given: list[Path] | None) -> list[Path]:
        from kernels.registry import PLUGINS_VARIABLE, PluginError, plugins

        before = os.environ.get(PLUGINS_VARIABLE)
        named = [*([before] if before else []), *(str(Path(each).absolute()) for each in given or ())]
        for each in given or ():
            if os.pathsep in str(each):
                raise refusal(option, each, f"has a {os.pathsep!r} in it", "a path without one")
        if named:
            os.environ[PLUGINS_VARIABLE] = os.pathsep.join(named)
        try:
            plugins()
        except PluginError as error:
            raise ending(str(error), BAD_INPUT) from None
        return given or []

    return typer.Option(callback=use, metavar="FILE.py", help=told)


def count(option: str, told: str, least: int = 1, most: int = MOST, metavar: str = "COUNT") -> Any:
    accepted = f"{least} to {most:,}"

    def parse(given: Any) -> int:
        try:
            value = int(given)
        except (ValueError, OverflowError):  # ValueError too where there are more digits than Python reads
            raise refusal(option, given, "is no integer", accepted) from None
        if not least <= value <= most:
            raise refusal(option, given, "is out of bounds", accepted)
        return value

    return typer.Option(parser=parse, metavar=metavar, help=told)


def shard(given: Any) -> tuple[int, int]:
    """(i, n) of 'i/n'."""
    place, _, of = str(given).partition("/")
    if not (place.isdecimal() and of.isdecimal() and len(of) < 6 and 1 <= int(place) <= int(of) <= MOST):
        raise refusal(
            "--shard", given, "is no part of a whole", f"I/N with I from 1 to N, as 2/4, and N up to {MOST:,}"
        )
    return int(place), int(of)


def time_of_day(given: Any) -> str:
    """As rows tell theirs; '' of ''."""
    if not (told := str(given)):
        return ""
    try:
        at = datetime.fromisoformat(told).astimezone(UTC)  # which can overflow
    except (ValueError, OverflowError):
        raise refusal("--retry-before", given, "is no time", "one as 2026-12-31T23:59:59+00:00") from None
    from bench.engines.local import moment

    return moment(at)


def one_of(option: str, told: str, *names: str) -> Any:
    def parse(given: Any) -> str:
        if given not in names:
            raise refusal(option, given, "is unknown", ", ".join(names))
        return str(given)

    return typer.Option(parser=parse, metavar="|".join(names), help=told)


def folder(option: str, told: str, existing: str = "") -> Any:
    """existing: what it must be, where it must be there and be readable."""

    def parse(given: Any) -> Path:
        path = _path(option, given, existing or "a folder")
        if existing and (wrong := no_folder(path)):
            raise refusal(option, path, wrong, existing)
        return path

    return typer.Option(parser=parse, metavar="FOLDER", help=told)


def file(option: str, told: str) -> Any:
    def parse(given: Any) -> Path:
        path = _path(option, given, "a file")
        with suppress(OSError):  # what cannot be looked at is said by who writes it
            if path.is_dir():
                raise refusal(option, path, "is a folder", "a file, which may be there or not")
        return path

    return typer.Option(parser=parse, metavar="FILE", help=told)


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


Name = Annotated[str, typer.Argument(help="a sweep of bench/sweeps, or a path to a .toml file")]
Names = Annotated[list[str], typer.Argument(help="sweeps of bench/sweeps, or paths to .toml files")]

A_SWEEP_EACH = (
    "folder that holds one folder a sweep; the analysis looks into ./results first too, then into the checkout's"
)
Results = Annotated[Path, folder("--results", A_SWEEP_EACH)]
Workers = Annotated[int | None, count("--workers", "training cells side by side; default: as many as fit the cores")]
Timeout = Annotated[float, seconds("--timeout", "seconds a cell may take, 1 or more", least=1)]
Retry = Annotated[bool, typer.Option("--retry", help="also run again every stored cell that did not end ok")]
BEFORE = "as --retry, but only what ended before that moment (ISO 8601, UTC): what each job of SLURM is told"
RetryBefore = Annotated[Any, typer.Option(parser=time_of_day, metavar="TIME", help=BEFORE, hidden=True)]
PART = "run a part of the cells, as 2/4: every fourth from the second on; the others elsewhere, or beside it in RESULTS"
ShardOf = Annotated[Any, typer.Option(parser=shard, metavar="I/N", help=PART)]
AGAIN = "show it again and again while a run is at work, with the time left, until all is stored"
Watch = Annotated[bool, typer.Option("--watch", help=AGAIN)]
BESIDE = "run beside others that share it too, once on each machine with that folder; none begins what another is at"
Share = Annotated[bool, typer.Option("--share", help=BESIDE)]
ENGINES = "where cells run: here, on a Ray cluster (the extra ray), or in array jobs of SLURM (the extra slurm)"
EngineName = Annotated[str, one_of("--engine", ENGINES, "local", "ray", "slurm")]
Jobs = Annotated[int, count("--jobs", "jobs of the array, with --engine slurm")]
ASKED = "KEY=VALUE of a job, as partition=gpu or time=60 (minutes); cluster=local runs the jobs here; may be repeated"
Slurm = Annotated[list[str], typer.Option("--slurm", metavar="KEY=VALUE", help=ASKED)]
JOINED = "of the Ray cluster, as 10.0.0.1:6379 or auto; default: one of this machine alone, for this run"
Address = Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help=JOINED)]
READ = "folders of results, or URLs of --mirror, that are read and stay as they are"
Sources = Annotated[list[str], typer.Argument(help=READ)]
SENT = "URL that each cell is sent to, too, as s3://bucket/results (with the package that fsspec needs for it)"
MirrorUrl = Annotated[str | None, typer.Option("--mirror", metavar="URL", help=SENT)]
MIXED = "let timings of several machines, or library versions, stand in one table"
MixMachines = Annotated[bool, typer.Option("--mix-machines", help=MIXED)]
OLDER = "take timings on a GPU anew that older sources made, or kernels that were tuned otherwise"
Renew = Annotated[bool, typer.Option("--renew", help=OLDER)]
MEND = "set aside what is damaged, remove what is half written, write the tables from the cells"
Repair = Annotated[bool, typer.Option("--repair", help=MEND)]
EVERY = "seconds between two checkpoints of a cell that trains; it goes on from the last"
CheckpointSeconds = Annotated[float, seconds("--checkpoint-seconds", EVERY)]
QUIET = "seconds to wait for a machine that is busy with other work, before anything is timed"
WaitQuiet = Annotated[float, seconds("--wait-quiet", QUIET)]

Budget = Annotated[float, seconds("--budget", "seconds for all, 1 or more; no cell begins that will not fit", least=1)]
WHERE = "cells of which device; cpu runs those of the CPU the same way"
Device = Annotated[str, one_of("--device", WHERE, "cuda", "cpu")]
CampaignOut = Annotated[Path, folder("--out", "folder that the tables are written to, and continued from")]
BundleOut = Annotated[Path, folder("--out", "folder that is made, inside the checkout")]
LENT = "for which the GPU is lent, all commands together"
LentMinutes = Annotated[float, number("--minutes", LENT, 10.0, 1440.0, "minutes", "MINUTES")]
ExpectedOut = Annotated[Path, typer.Option("--out", help="file that is written")]
EARLIER = "the --out of an earlier campaign"
ResumeFrom = Annotated[Path | None, folder("--resume-from", f"{EARLIER}, to continue from", existing=EARLIER)]
KEPT = "keep checkpoints of cells that train in OUT, of up to so many MiB each; 0: none"
CheckpointMib = Annotated[float, mebibytes("--checkpoint-mib", KEPT)]
Together = Annotated[int, count("--together", "training cells side by side on the one device; timings run alone")]
BEHIND = "go on after this command has ended, giving way as with --give-way; what it says goes to OUT/log.txt"
Background = Annotated[bool, typer.Option("--background", help=BEHIND)]
IDLE = "take only processor time that no other work wants"
GiveWay = Annotated[bool, typer.Option("--give-way", help=IDLE)]
WINNERS = "JSON file that the winners are written to; tune.parquet is beside it"
TunedOut = Annotated[Path, file("--out", WINNERS)]
Schema = Annotated[Path | None, file("--schema", "also write them for the analysis: analysis/loading/columns.json")]
YardsticksOut = Annotated[Path, folder("--out", "folder that yardsticks.parquet is written to, and continued from")]
OUTSIDE = "Python file with a backend, criterion, model ... of your own (kernels/PLUGINS.md); may be repeated"
Plugin = Annotated[list[Path], plugin_files("--plugin", OUTSIDE)]
CHANGED = "NAME=VALUE,VALUE: every cell with that setting is made with each of these values; a sweep of its own name"
Set = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUES", help=f"{CHANGED}; may be repeated")]
CHOSEN = "NAME=VALUE,VALUE: only cells whose setting, or kind, is one of these; a sweep of its own name"
Only = Annotated[list[str], typer.Option("--only", metavar="NAME=VALUES", help=f"{CHOSEN}; may be repeated")]

SOURCE = "a .safetensors or .pt file of weights, or package.module:factory; nothing where --shape or --lstm say it"
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE, show_default=False)]
A_SHAPE = "a Linear layer, outputs x inputs, as 3072x768, or 3072x768:12 for twelve; may be repeated"
Shapes = Annotated[list[str], typer.Option("--shape", metavar="OUTxIN", help=A_SHAPE, show_default=False)]
AN_LSTM = "an LSTM layer of so many units, as 650, or 400x1150 of another input size, or 650:2; may be repeated"
Lstms = Annotated[list[str], typer.Option("--lstm", metavar="HIDDEN", help=AN_LSTM, show_default=False)]
LARGEST_SIDE = 10_000_000
GOES = "columns of what a Linear layer multiplies at a time; example inputs say it themselves, as the next two"
Tokens = Annotated[int, count("--tokens", GOES, most=LARGEST_SIDE)]
Batch = Annotated[int, count("--batch", "sequences side by side of LSTM and GRU layers", most=LARGEST_SIDE)]
Steps = Annotated[int, count("--steps", "time steps of LSTM and GRU layers", most=LARGEST_SIDE)]
WHICH = "forward, as in inference; training, forward and backward; or both"
PassesOf = Annotated[str, one_of("--passes", WHICH, "forward", "training", "both")]
MOST_MINUTES = 10_000
TIME = "minutes for all that is measured, most valuable first; run it again to go on"
Minutes = Annotated[float, number("--minutes", TIME, 0.05, MOST_MINUTES, "minutes", "MINUTES")]
SIDES = "side of a square block; may be repeated; default: 32, 16 and 64"
BlockSizes = Annotated[list[Any], count("--block-size", SIDES, least=2, most=1024, metavar="ELEMENTS")]
SHARES = "share of blocks that is empty; may be repeated; default: 0.8, 0.5, 0.2, 0.9, 0.95 and 0"
Sparsities = Annotated[list[Any], number("--sparsity", SHARES, 0.0, 1.0, "a share", "SHARE")]
ON = "where it is timed; auto: on a GPU where there is one"
DeviceOrAuto = Annotated[str, one_of("--device", ON, "auto", "cpu", "cuda")]
Threads = Annotated[int, count("--threads", "CPU threads; 0: all physical cores", least=0)]
FILL = "also fill up sizes that a block size does not divide"
DOUBTFUL = "also time again what did not end ok or was noisy, once all else is timed"
RetryNoisy = Annotated[bool, typer.Option("--retry", help=DOUBTFUL)]
Pad = Annotated[bool, typer.Option("--pad", help=FILL)]
CALLED = "folder in RESULTS/advise that it is kept in; default: made of SOURCE, or shapes"
AdviceName = Annotated[str, typer.Option("--name", metavar="NAME", help=CALLED, show_default=False)]
AdviceResults = Annotated[Path, folder("--results", "folder that holds advise/NAME")]
JSON = "print the answer as JSON, and all else to standard error"
AsJson = Annotated[bool, typer.Option("--json", help=JSON)]
WRITTEN = "measure nothing, but write the weights of SOURCE, pruned with one --block-size and --sparsity, to this file"
ApplyTo = Annotated[Path | None, file("--apply", WRITTEN)]
FolderA = Annotated[str, typer.Argument(metavar="A", help="a sweep's name, or a folder with its tables")]
FolderB = Annotated[str, typer.Argument(metavar="B", help="the same of another machine, commit or backend")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print a line for each cell as comma-separated values")]
