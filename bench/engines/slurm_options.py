"""The options of SLURM's jobs as they are written on the command line, made those of submitit's executor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

OF_ALL = ("timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
CLUSTERS = ("slurm", "local")
TIMES = ("time", "timeout_min")
MOST, MOST_GB = 65_535, 1_000_000  # more than any node has, in numbers that SLURM reads
SIGNAL = "signal_delay_s"
SIGNAL_SECONDS = 90  # submitit's own

Value = int | float | bool | str | list[str]


class OptionError(ValueError):
    """An option that cannot be used; one line."""


def parsed(options: Mapping[str, str]) -> dict[str, Value]:
    """Options of the command line as those of submitit's executor; OptionError where one has another form than it."""
    found = {name: _value(name, text) for name, text in options.items()}
    given = {name for name in TIMES if name in found}
    if len(given) > 1:
        raise OptionError(f"--slurm: {' and '.join(sorted(given))} are the same; accepted: one of them")
    delay = found.get(SIGNAL, SIGNAL_SECONDS)
    for name in given:
        limit = found[name]
        if isinstance(limit, int) and isinstance(delay, int) and limit * 60 <= delay:
            raise OptionError(
                f"--slurm: {name}={options[name]}: a job is told to put itself aside {delay} s before its limit, which "
                f"would be at once; accepted: a longer time, or a smaller {SIGNAL}"
            )
    return {name if name in OF_ALL else f"slurm_{name}": value for name, value in found.items()}


def require_cluster(cluster: str) -> None:
    """OptionError where there is none of that name."""
    if cluster not in CLUSTERS:
        raise OptionError(f"--slurm: cluster={cluster} is none; accepted: {', '.join(CLUSTERS)}")


def minutes(text: str) -> int:
    """A time limit as sbatch takes it, in whole minutes, rounded up: '90', '90:00', '1:30:00', '1-0', '1-6:30'.

    ValueError where it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise ValueError
    days, *rest = found.groups()
    numbers = [int(each) for each in rest if each is not None]
    if days is not None:
        hours, minute, second = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minute, second = numbers
    else:
        hours, (minute, second) = 0, (*numbers, 0)[:2]
    total = int(days or 0) * 1440 + hours * 60 + minute + -(-second // 60)
    if not total:  # no limit to SLURM, and to submitit one that has passed
        raise ValueError
    return total


def _value(name: str, text: str) -> Value:
    form, accepted = FORMS.get(name, (_any, ""))
    try:
        return form(text)
    except ValueError:
        raise OptionError(f"--slurm: {name}={text} is none; accepted: {accepted}") from None


def _memory(text: str) -> float:
    if not 0 < (value := float(text)) <= MOST_GB:
        raise ValueError
    return value


def _count(text: str) -> int:
    if not 1 <= (value := int(text)) <= MOST:
        raise ValueError
    return value


def _any(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _alone(text: str) -> list[str]:
    return [text]


FORMS: dict[str, tuple[Callable[[str], Value], str]] = {
    **dict.fromkeys(TIMES, (minutes, "minutes, or a time as 12:00:00 or 1-12 (days and hours)")),
    "mem_gb": (_memory, f"a number of GB up to {MOST_GB:,}"),
    **dict.fromkeys(("nodes", "tasks_per_node", "cpus_per_task"), (_count, f"a number from 1 to {MOST:,}")),
    SIGNAL: (_count, f"a number of seconds from 1 to {MOST:,}"),
    "setup": (_alone, "a line of shell"),
    "teardown": (_alone, "a line of shell"),
    "srun_args": (shlex.split, "words of a shell"),
}
