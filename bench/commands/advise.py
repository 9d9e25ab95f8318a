"""Advise: whether a block-sparse network is worth having for a model that somebody has, measured on this machine.

What is measured lies in results/advise/<name>: gemm.parquet and lstm.parquet, cells as those of any sweep, each stored
when it is finished; layers.parquet and model.parquet (`bench.commands.advising.tables`). The answer is computed from
these by `python -m analysis advice`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cells import number
from bench.commands.advising.layers import (
    PASSES,
    AdviceError,
    Layer,
    Setting,
    in_order_of_worth,
    of_lstm,
    of_shape,
    require_candidates,
)
from bench.commands.analysed import analysed
from bench.sweep import Sweep

if TYPE_CHECKING:
    from bench.commands.advising.modules import Made
    from bench.commands.advising.weights import Weights
    from bench.engines.driver import Ended

BLOCK_SIZES = (32, 16, 64)  # in order of worth, as sparsities
SPARSITIES = (0.8, 0.5, 0.2, 0.9, 0.95, 0.0)
WHOLE_SHARE = 0.4  # of the time, for the whole model where there are example inputs
TIMEOUT = 120.0  # seconds a cell may take
FOLDER = "advise"


@dataclass(frozen=True)
class Asked:
    """What advice is asked on. source: a file, 'package.module:factory' or nothing; minutes: for what is measured."""

    source: str = ""
    shapes: Sequence[str] = ()
    lstms: Sequence[str] = ()
    tokens: int = 128
    batch: int = 20
    steps: int = 35
    passes: Sequence[str] = ("forward",)
    minutes: float = 5.0
    block_sizes: Sequence[int] = BLOCK_SIZES
    sparsities: Sequence[float] = SPARSITIES
    device: str = "cpu"
    threads: int = 0
    pad: bool = False
    name: str = ""
    results: Path = Path("results")
    mix_machines: bool = False
    retry: bool = False

    @property
    def folder(self) -> Path:
        return self.results / FOLDER / (self.name or self._own_name())

    def _own_name(self) -> str:
        if not self.source:
            return "shapes"
        own = self.source.replace(":", ".") if _is_factory(self.source) else Path(self.source).stem
        return re.sub(r"[^\w.-]", "_", own).lstrip(".-") or "model"

    def settings(self) -> list[Setting]:
        """What layers are timed with, most valuable first."""
        return [
            Setting(passes, size, sparsity, self.device, self.threads, self.pad)
            for sparsity in self.sparsities
            for passes in PASSES
            if passes in self.passes
            for size in self.block_sizes
        ]


@dataclass
class Subject:
    """A model as it was found: its layers, their weights by name, and itself where there is one to be called."""

    words: str
    layers: list[Layer]
    held: dict[str, Weights] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    made: Made | None = None


def _is_factory(source: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", source) is not None


def look_at(asked: Asked) -> Subject:
    """The layers that are asked about. AdviceError, one line, where there is nothing to advise on; makes nothing."""
    given = [of_shape(each, asked.tokens) for each in asked.shapes]
    given += [of_lstm(each, asked.batch, asked.steps) for each in asked.lstms]
    given = _told_apart(given)
    if asked.source and given:
        raise AdviceError("--shape and --lstm: SOURCE has its own layers; accepted: one of the two")
    if not asked.source and not given:
        raise AdviceError(
            "SOURCE: nothing to advise on; accepted: a .safetensors or .pt file, package.module:factory, or --shape or "
            "--lstm"
        )
    if asked.name and re.fullmatch(r"\w[\w.-]*", asked.name) is None:
        raise AdviceError(f"--name: {asked.name!r} names no folder; accepted: letters, digits, '_', '-' and '.'")
    subject = _found(asked) if asked.source else Subject(_spoken(asked), given)
    require_candidates(subject.layers, asked.block_sizes, asked.pad, asked.source)
    return subject


def _told_apart(layers: Sequence[Layer]) -> list[Layer]:
    """Layers whose names differ: a shape that is given twice is two layers."""
    seen: Counter[str] = Counter()
    found = []
    for layer in layers:
        seen[layer.name] += 1
        times = seen[layer.name]
        found.append(replace(layer, name=f"{layer.name} ({times})") if times > 1 else layer)
    return found


def _spoken(asked: Asked) -> str:
    return ", ".join([*(f"Linear {each}" for each in asked.shapes), *(f"LSTM {each}" for each in asked.lstms)])


def _found(asked: Asked) -> Subject:
    """A file or a factory."""
    source, through = asked.source, (asked.tokens, asked.batch, asked.steps)
    path = Path(source)
    if _is_factory(source) and not path.exists():
        from bench.commands.advising import modules

        with modules.pandas_allowed():
            made = modules.to(modules.make(source), asked.device)
            layers, held = modules.layers_of(source, made, *through)
        return Subject(source, layers, held, made=made)
    from bench.commands.advising import weights

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise AdviceError(f"{source}: {what}; accepted: a .safetensors or .pt file, or package.module:factory")
    if path.suffix not in weights.SUFFIXES:
        raise AdviceError(f"{source}: no file of weights, by its name; accepted: {', '.join(weights.SUFFIXES)}")
    found = weights.read(path)
    layers, held = weights.layers_of(found, *through)
    return Subject(path.name, layers, held, found)


def apply(asked: Asked, out: Path) -> str:
    """Write the weights that are asked about, pruned in blocks; a line that says what. AdviceError as `look_at`."""
    if not asked.source:
        raise AdviceError("--apply: shapes have no weights; accepted: a file or package.module:factory as SOURCE")
    if len(asked.block_sizes) != 1 or len(asked.sparsities) != 1:
        raise AdviceError("--apply: takes one way to prune; accepted: one --block-size and one --sparsity")
    if out.suffix != ".safetensors":
        raise AdviceError(f"--apply: {out} is no name of its format; accepted: a name that ends in .safetensors")
    if out.exists() and Path(asked.source).exists() and out.samefile(asked.source):
        raise AdviceError(f"--apply: {out} is SOURCE itself; accepted: another file")
    subject, (setting, *_) = look_at(asked), asked.settings()
    from bench.commands.advising import applied

    made = subject.made
    if made is not None:
        found = applied.of_model(made.model, setting)
    else:
        found = applied.of_weights(subject.weights, subject.layers, subject.held, setting)
    return applied.write(out, found, setting)


def measure(asked: Asked, subject: Subject) -> int:
    """Measure what is not stored yet, within the time, and return the exit status: 0, 1 (something failed) or 130.

    Raises UnusableError, LockedError or OSError where the environment is at fault.
    """
    from bench.commands.advising import tables
    from bench.commands.campaign import is_finished, require_one_machine
    from bench.engines.driver import Job, say
    from bench.engines.origin import Kept
    from bench.run import counted, failures
    from bench.store import locked
    from bench.storing.parquet import clear_strays

    folder, settings = asked.folder, asked.settings()
    cells = in_order_of_worth(subject.layers, settings)
    sweep = Sweep(folder.name, subject.words, folder / FOLDER, tuple(cells))
    with locked(folder) as unseen:
        if unseen:
            say(unseen)
        clear_strays(folder)
        kept = Kept(sweep, folder, cells)
        kept.load(say)
        kept.settle(say)
        jobs = [Job(cell, kept.tables) for cell in cells]
        todo = [job for job in jobs if not is_finished(job.tables, job.cell)]
        if asked.retry:
            todo += [job for job in jobs if job not in todo and _is_doubtful(job.tables.rows(job.cell)[-1])]
        if not asked.mix_machines:
            require_one_machine(jobs, todo, asked.device)
        say(f"{subject.words}: {_counted(subject.layers)}; {number(len(cells), 'cell')} to time, {len(todo)} not yet")
        tables.write(
            folder / tables.LAYERS,
            tables.LAYER_COLUMNS,
            tables.layer_rows(subject.words, subject.layers, subject.held, settings),
        )
        ended = _run(asked, subject, jobs, todo, settings)
        for kind in set(kept.tables.kinds.values()):
            kept.tables.write(kind)
    stored = [rows[-1] for job in jobs if (rows := job.tables.rows(job.cell))]
    failed = failures(row["status"] for row in stored)
    line = f"{len(stored)} of {number(len(jobs), 'cell')} timed in {folder}"
    line += f"; {failed.total()} failed: {counted(failed)}" if failed else ""
    say(line + (f"; {len(jobs) - len(stored)} left: run it again to go on" if len(stored) < len(jobs) else ""))
    return 130 if ended.interrupted else 1 if failed or not stored else 0


def _is_doubtful(row: Mapping[str, Any]) -> bool:
    """Whether a stored cell may be better another time."""
    return row["status"] != "ok" or bool(row["noisy"])


def _counted(layers: Sequence[Layer]) -> str:
    fine = sum(layer.count for layer in layers if not layer.reason)
    left = sum(bool(layer.reason) for layer in layers)
    return f"{number(fine, 'layer')} that can be block-sparse, {left} that cannot"


def _run(asked: Asked, subject: Subject, jobs: list, todo: list, settings: Sequence[Setting]) -> Ended:  # type: ignore[type-arg]
    """Cells, then the whole model, then cells again, until all is measured or the time is up."""
    from bench.engines.driver import Terms, run_jobs
    from bench.engines.estimate import Pace

    stored = ((job.cell, rows[-1]) for job in jobs if (rows := job.tables.rows(job.cell)))
    pace = Pace((cell, row["cell_seconds"]) for cell, row in stored if row["status"] == "ok")
    begin, seconds = time.monotonic(), 60.0 * asked.minutes
    whole = subject.made is not None and subject.made.inputs is not None
    terms = Terms(timeout=TIMEOUT, wait_quiet=0.0)
    ended = run_jobs(todo, terms, pace, begin + seconds * (1.0 - WHOLE_SHARE if whole else 1.0))
    if not whole or ended.interrupted:
        return ended
    _time_whole(asked, subject, settings, begin + seconds)
    return run_jobs(ended.left, Terms(timeout=TIMEOUT), pace, begin + seconds)


def _time_whole(asked: Asked, subject: Subject, settings: Sequence[Setting], deadline: float) -> None:
    """Time the whole model in each setting that is not stored and fits, each stored at once."""
    from bench.commands.advising import tables, whole
    from bench.engines.driver import say
    from bench.measuring.machine import machine, source_hash

    assert subject.made is not None
    path, sha = asked.folder / tables.MODEL, whole.fingerprint(subject.made)
    rows = [
        row
        for row in tables.stored(path)
        if (row["weights_sha256"], row["machine"], row["source_hash"], row["threads"], row["device"])
        == (sha, machine(asked.device), source_hash(), asked.threads, asked.device)
    ]
    again = [row for row in rows if asked.retry and _is_doubtful(row)]
    done = {_key(row) for row in rows} - {_key(row) for row in again}
    for setting in settings:
        key = setting.passes, setting.block_size, setting.sparsity
        if key in done or time.monotonic() + whole.seconds_of(subject.made, setting) > deadline:
            continue
        row = whole.time_model(subject.words, subject.made, sha, setting)
        rows = [*(each for each in rows if _key(each) != key), row]
        tables.write(path, tables.MODEL_COLUMNS, rows)
        what = f"whole model, {setting.passes}, block {setting.block_size}, sparsity {setting.sparsity:g}"
        say(f"{row['status']}: {what} {row['reason']}".rstrip())


def _key(row: Mapping[str, Any]) -> tuple[str, int, float]:
    return row["passes"], row["block_size"], row["target_sparsity"]


def answer(asked: Asked, as_json: bool) -> int:
    """Show what the measurements say."""
    return analysed("advice", str(asked.folder), *(["--json"] if as_json else []))
