"""Plan and run: the cells of a sweep that are not stored yet."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from bench.cells import KINDS, Cell, Row, TrainCell, is_training, number
from bench.data.corpus import TEXT, DataError, data_dir
from bench.data.datasets import load_data
from bench.engines.driver import Ended, Job, LeftError, Terms, run_jobs, say
from bench.engines.estimate import Pace, roof_lines, spoken
from bench.engines.families import terminable
from bench.engines.local import moment, run_cells
from bench.engines.origin import claim, require_own
from bench.engines.progress import labels
from bench.engines.slurm import run_on_slurm
from bench.measuring.machine import machine, physical_cores, source_hash
from bench.measuring.memory import lines as memory_lines
from bench.pruning.emptied import warnings
from bench.store import Store, Stored
from bench.storing.claims import LOST_SECONDS, Claims
from bench.storing.mirror import Mirror
from bench.sweep import Sweep, SweepError, parts_of
from bench.training.checkpoint import CONTINUED, FOLDER, SECONDS, Checkpoints
from bench.training.needs import data_fault
from bench.training.needs import lines as needs_lines
from kernels.system.resources import ResourceError, is_lack

FINE = ("ok", "unsupported")  # a sweep of these alone ends with exit status 0
LISTED = 20  # cells that are not ok, named at the end
OTHERS_SECONDS = 5.0  # between two looks at what other runs are at
TABLES_SECONDS = 60.0  # after which the tables of a run under way are written again
TABLES_SHARE = 0.02  # of its time that this may take


StoredCell = tuple[str, Cell, Mapping[str, Any]]  # the sweep's name, the cell and its last row


class UnusableError(RuntimeError):
    """The environment lacks something a run needs; one line."""


class Shard(NamedTuple):
    """A part of a sweep's cells: every `of`-th, from the `place`-th on."""

    place: int
    of: int

    def __str__(self) -> str:
        return f"{self.place}/{self.of}" if self.of > 1 else ""

    def part(self, cells: Sequence[Cell]) -> Sequence[Cell]:
        return cells[self.place - 1 :: self.of]


ALL = Shard(1, 1)


@dataclass(frozen=True)
class Plan:
    """What of a sweep is stored and what is still to run, of all of it or of a shard.

    cells: of the shard. other: intact stored cells that the sweep no longer has. halfway: cells to run that were put
    aside in a checkpoint. tables_alone: the folder, where it has tables and no cell, as what is committed, or a
    campaign's.
    """

    sweep: Sweep
    shard: Shard
    cells: tuple[Cell, ...]
    stored: dict[str, Stored]
    todo: tuple[Cell, ...]
    other: int
    halfway: int
    tables_alone: Path | None = None

    def last_rows(self) -> Iterator[StoredCell]:
        """What is stored of its cells."""
        for cell in self.cells:
            if stored := self.stored.get(cell.cell_id):
                yield self.sweep.name, cell, stored.last_row

    def pace(self) -> Pace:
        ended = ((cell, self.stored.get(cell.cell_id)) for cell in self.cells)
        return Pace((cell, stored.cell_seconds) for cell, stored in ended if stored and stored.status == "ok")

    def elsewhere(self) -> list[Stored]:
        """Timings that were stored on another machine than this, or with other libraries, and are not to run again."""
        left = {cell.cell_id for cell in self.todo}
        timed = [cell for cell in self.cells if is_timing(cell) and cell.cell_id in self.stored.keys() - left]
        stored = [(self.stored[cell.cell_id], cell.device) for cell in timed]
        return [each for each, device in stored if each.status == "ok" and each.machine not in (None, machine(device))]

    def require_one_machine(self, results: object) -> None:
        """UnusableError where timings of this machine would stand beside those of another in a table."""
        where_timed = {(cell.cell_id): (cell.kind, cell.device) for cell in self.cells}
        to_time = {(cell.kind, cell.device) for cell in self.todo if is_timing(cell)}
        if others := [each for each in self.elsewhere() if where_timed[each.cell_id] in to_time]:
            where = ", ".join(
                sorted({f"{each.last_row['device_name']}, torch {each.last_row['torch']}" for each in others})
            )
            raise UnusableError(
                f"{number(len(others), 'timing')} in {results} of another machine or other libraries ({where}): "
                "timings of two do not compare; choose another --results, or --mix-machines"
            )

    def left(self, workers: int | None = None) -> str:
        """What is to run, how long that takes, and by what one knows that."""
        if not self.todo:
            return "to run: 0"
        pace = self.pace()
        rough = "a rough figure from the number of operations"
        basis = f"from {number(pace.cells, 'stored cell')}" if pace.cells else rough
        seconds = pace.seconds(self.todo, training_workers(self.todo, workers))
        return f"to run: {len(self.todo)}, about {spoken(seconds)} ({basis})"

    def lines(self, workers: int | None = None) -> list[str]:
        """The plan in words."""
        kinds = Counter(cell.kind for cell in self.sweep.cells)
        statuses = Counter(stored.status for stored in self.stored.values())
        lines = [f"{self.sweep.name}: {number(len(self.sweep.cells))} ({counted(kinds)})"]
        if self.shard.of > 1:
            lines.append(f"shard {self.shard}: {len(self.cells)} of them")
        lines.append(f"stored: {len(self.stored)}" + (f" ({counted(statuses)})" if statuses else ""))
        lines.append(self.left(workers))
        lines += roof_lines(self.todo)
        lines += [*memory_lines(self.todo, training_workers(self.todo, workers)), *needs_lines(self.todo)]
        lines += warnings(self.todo)
        if self.halfway:
            lines.append(f"half done: {self.halfway} of them go on from a checkpoint")
        if self.tables_alone:
            where = shlex.quote(str(self.tables_alone))
            lines.append(
                f"note: tables alone lie in {self.tables_alone}, without cells/: nothing goes on from them; "
                f"read them with python -m analysis report {where}"
            )
        if self.other:
            lines.append(
                f"note: not in this sweep file: {number(self.other, 'more stored cell')}, kept outside the tables"
            )
        if others := self.elsewhere():
            lines.append(f"note: {number(len(others), 'stored timing')} of another machine, or with other libraries")
        if aged := sum(stored.source_hash != source_hash() for stored in self.stored.values()):
            lines.append(f"note: {number(aged, 'stored cell')} measured by other sources than today's, and kept")
        return lines


def make_plan(
    sweep: Sweep,
    results: str | PathLike[str],
    retry: bool | str = False,
    store: Store | None = None,
    shard: Shard = ALL,
) -> Plan:
    """Compare a sweep with what is stored; changes nothing.

    retry: also run again what did not end ok; where it is a moment (ISO 8601, UTC), what did so before that. store: the
    sweep's, which need not read again what it has read.

    SweepError where another file of the same name has cells there: the tables would become this file's.
    """
    folder = Path(results) / sweep.name
    finished = (store or Store(folder)).finished()
    cells = tuple(shard.part(sweep.cells))
    ours = {cell.cell_id: finished[cell.cell_id] for cell in cells if cell.cell_id in finished}
    require_own(sweep, folder, finished.keys(), "--results")
    todo = tuple(cell for cell in cells if cell.cell_id not in ours or _is_again(ours[cell.cell_id], retry))
    checkpoints = Checkpoints(folder / FOLDER)
    halfway = sum(checkpoints.path(cell.cell_id).is_file() for cell in todo)
    alone = not finished and any((folder / f"{kind}.parquet").is_file() for kind in KINDS)
    other = len(finished.keys() - {cell.cell_id for cell in sweep.cells})
    return Plan(sweep, shard, cells, ours, todo, other, halfway, folder if alone else None)


def _is_again(stored: Stored, retry: bool | str) -> bool:
    """Whether a stored cell is to be run again."""
    return stored.status != "ok" and (retry if isinstance(retry, bool) else stored.started_at < retry)


def training_workers(cells: Sequence[Cell], wanted: int | None) -> int:
    """Training cells side by side: as many as fit the physical cores, or one where a GPU trains, unless `wanted`."""
    if not wanted and any(cell.trains and cell.device == "cuda" for cell in cells):
        return 1
    threads = max((cell.threads or physical_cores() for cell in cells if cell.trains), default=1)
    return wanted or max(1, physical_cores() // threads)


def run_sweep(
    sweep: Sweep,
    results: str | PathLike[str],
    workers: int | None = None,
    retry: bool | str = False,
    checkpoint_seconds: float = SECONDS,
    terms: Terms = Terms(),  # noqa: B008 - it is frozen
    mix_machines: bool = False,
    shard: Shard = ALL,
    share: bool = False,
    mirror_url: str | None = None,
) -> int:
    """Run what is not stored yet and return the exit status: 0, 1 (some cells failed) or 130 (interrupted).

    Timings come first, one at a time with nothing else running; then training, side by side: `workers` cells, or as
    many as fit. checkpoint_seconds: between two checkpoints of a cell that trains. mix_machines: timings may stand in
    one table with those of another machine. shard: run a part only, beside runs of the other parts if need be. share:
    beside other runs that share the sweep too, on this machine or others with the same folder: each takes the next cell
    that none is at. retry: as `make_plan`'s. mirror_url: where each cell is sent, too.

    Raises OSError, LockedError or UnusableError where the environment is at fault; every cell finished before that
    stays stored.
    """
    store = Store(Path(results) / sweep.name)
    if isinstance(retry, str):  # what this run stores it runs no more, whatever the clocks of others say
        retry = min(retry, moment(datetime.now(UTC)))
    again = partial(make_plan, sweep, results, store=store, shard=shard)
    if any(map(_reads_own_text, sweep.cells)):  # before anything is made
        before = again(retry)
        check_datasets(list(filter(_reads_own_text, before.todo)), before.last_rows())
    checkpoints = Checkpoints(store.folder / FOLDER, checkpoint_seconds)
    claims = Claims(store.folder) if share or shard.of > 1 else None
    mirror = Mirror(mirror_url, sweep.name, say) if mirror_url else None
    with store.lock(str(shard), share) as repairs, claims.held() if claims else nullcontext():
        plan = again(retry)
        claim(store.folder, sweep)
        checkpoints.discard(stale(plan))
        for line in [*repairs, *plan.lines(workers)]:
            say(line)
        here = terms.engine is run_cells
        alone = here and not store.is_shared  # so that this look is enough; else each cell is looked at, too
        if not mix_machines and here:
            plan.require_one_machine(store.folder)
        if mirror is not None:
            mirror.send(*(stored.path for stored in plan.stored.values()))
        check_datasets(plan.todo)
        begin = partial(_Shelf, store, claims=claims, mirror=mirror, mix_machines=mix_machines or alone)
        left = partial(again, retry if isinstance(retry, str) else False)
        ended, elsewhere = _run_all(plan, left, begin, checkpoints, workers, terms)
        if not store.is_shared:
            checkpoints.tidy()
        store.compact(sweep.cells)
        if mirror is not None and (why := mirror.finish()):
            if not ended.interrupted:
                raise ResourceError(why)
            say(why)
    if elsewhere and not ended.interrupted:
        where = ", ".join(sorted(set(elsewhere.values())))
        raise UnusableError(
            f"{number(len(elsewhere))} left to the machine that timed the others of their kind ({where}): "
            "timings of two do not compare; go on there, or with --mix-machines"
        )
    return _summary(again(), store, ended.interrupted)


def _run_all(
    plan: Plan,
    again: Callable[[], Plan],
    begin: Callable[[Plan], _Shelf],
    checkpoints: Checkpoints,
    workers: int | None,
    terms: Terms,
) -> tuple[Ended, Mapping[str, str]]:
    """Run a plan, then what others that share it leave: how it ended, and the machines that cells are left to.

    again: the plan of what is not stored by now. begin: where the rows of a plan's cells go.
    """
    names, told = labels(plan.sweep.cells), False
    while True:
        shelf = begin(plan)
        jobs = [Job(cell, shelf, partial(shelf.taken, cell)) for cell in sorted(plan.todo, key=_trains)]
        together = replace(terms, together=training_workers(plan.todo, workers))
        ended = run_jobs(jobs, together, plan.pace(), checkpoints=checkpoints, names=names)
        plan, terms = again(), replace(terms, wait_quiet=None)
        left = [cell for cell in plan.todo if cell.cell_id not in shelf.elsewhere]
        if ended.interrupted or shelf.claims is None or not left:
            return ended, shelf.elsewhere
        if not told:
            say(
                f"waiting for {number(len(left))} that other runs are at; one that is gone for {LOST_SECONDS:g} s "
                "loses what it is at to this one"
            )
        told = True
        if not _waited(OTHERS_SECONDS):
            return ended._replace(interrupted=True), shelf.elsewhere


def run_jobs_of(
    sweep: Sweep,
    results: str | PathLike[str],
    jobs: int,
    options: Mapping[str, str],
    given: Sequence[str],
    retry: bool = False,
) -> int:
    """Run a sweep as `jobs` jobs of SLURM that share its folder, and return the exit status as `run_sweep`.

    options: of SLURM; cluster=local runs the jobs here. given: more arguments of each job's `python -m bench run`.
    retry: also run again, once, what did not end ok before now. Raises as `run_sweep`, but for locks.
    """
    folder = Path(results).absolute() / sweep.name
    store = Store(folder)
    before = moment(datetime.now(UTC)) if retry else ""
    again = partial(make_plan, sweep, results, before, store)
    plan = again()
    for line in plan.lines():
        say(line)
    check_datasets(plan.todo, plan.last_rows())
    cluster = options.get("cluster", "slurm")
    options = {name: value for name, value in options.items() if name != "cluster"}
    arguments = [str(Path(sweep.named).absolute()) if Path(sweep.named).suffix else sweep.named]
    arguments += [*sweep.altered, "--results", str(folder.parent), *given]
    arguments += ["--retry-before", before] if retry else []

    def done() -> tuple[int, int]:
        return len(sweep.cells) - len(again().todo), len(sweep.cells)

    interrupted = False
    if plan.todo:
        try:
            with terminable():
                run_on_slurm(arguments, folder, jobs, options, done, cluster, say)
        except KeyboardInterrupt:
            interrupted = True
    with store.lock(share=True):
        store.compact(sweep.cells)
    return _summary(make_plan(sweep, results, store=store), store, interrupted)


def _trains(cell: Cell) -> bool:
    return cell.trains


def _reads_own_text(cell: Cell) -> TypeGuard[TrainCell]:
    return is_training(cell) and cell.dataset.startswith(TEXT)


def _waited(seconds: float) -> bool:
    """Wait; whether that was not interrupted."""
    try:
        with terminable():
            time.sleep(seconds)
    except KeyboardInterrupt:
        return False
    return True


class _Shelf:
    """The store of a sweep under way, whose tables are written now and then, so that all can read what there is.

    Beside it others may be at work there, seen or not. claims: of this run, where it shares the sweep. mirror: where
    each cell is sent, too.
    """

    def __init__(
        self, store: Store, plan: Plan, claims: Claims | None, mirror: Mirror | None, mix_machines: bool
    ) -> None:
        self.store, self.plan, self.claims, self.mirror = store, plan, claims, mirror
        self.mix_machines = mix_machines
        self.elsewhere: dict[str, str] = {}  # cells that another machine is to time, by its name
        self.written, self.cost = time.monotonic(), 0.0

    def taken(self, cell: Cell) -> tuple[str, str] | None:
        """Whether another run has stored a cell meanwhile, or is at it: `Job.refusal`."""
        if self.claims is not None and not self.claims.claim(cell.cell_id):
            return "", ""
        if not self.store.is_shared:
            return None
        there = self.store.newer(cell, self.plan.stored.get(cell.cell_id))
        if not there and (other := self._timed_elsewhere(cell, machine(cell.device))):
            self.elsewhere[cell.cell_id] = other
        if there or cell.cell_id in self.elsewhere:
            if self.claims is not None:
                self.claims.done(cell.cell_id)
            return "", ""
        return None

    def _timed_elsewhere(self, cell: Cell, here: str) -> str:
        """The name of another machine on which cells like this one were timed; nothing where there is none."""
        if self.mix_machines or not is_timing(cell):
            return ""
        finished = self.store.finished()
        for other in self.plan.sweep.cells:
            stored = finished.get(other.cell_id)
            alike = is_timing(other) and (other.kind, other.device) == (cell.kind, cell.device)
            if alike and stored and stored.status == "ok" and stored.machine not in (None, here):
                return str(stored.last_row["device_name"])
        return ""

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> None:
        here = provenance.get("machine")
        if here and all(row["status"] == "ok" for row in rows) and (other := self._timed_elsewhere(cell, here)):
            if self.claims is not None:
                self.claims.done(cell.cell_id)
            raise LeftError(
                f"others of its kind were timed on another machine ({other}), and --mix-machines was not said"
            )
        path = self.store.put(cell, rows, provenance)
        earlier = self.plan.stored.get(cell.cell_id)
        if earlier is not None and earlier.path != path:
            earlier.path.unlink(missing_ok=True)  # whatever the clock was when it was stored
        if self.claims is not None:
            self.claims.done(cell.cell_id)
        if self.mirror is not None:
            self.mirror.send(path)
        began = time.monotonic()
        if began - self.written > max(TABLES_SECONDS, self.cost / TABLES_SHARE):
            with suppress(OSError):  # for the last time at the end
                self.store.compact(self.plan.sweep.cells)
            self.written = time.monotonic()
            self.cost = self.written - began


def check_datasets(cells: Sequence[Cell], stored: Iterable[StoredCell] = ()) -> None:
    """Load every data set once, before any worker starts, downloaded where it must be. UnusableError, one line.

    SweepError where it is a text of the user's that cannot be used, is too short for a cell, or is another than that
    which `stored` cells were trained on.
    """
    for source in sorted({cell.source for cell in cells if is_training(cell)}, key=str):
        try:
            load_data(source, data_dir())
        except (OSError, DataError) as error:
            if not isinstance(source, str):
                raise SweepError(str(source), "dataset", *str(error).rsplit("; accepted: ", 1)) from None
            raise UnusableError(f"dataset {source}: {error}") from None
    for cell in filter(_reads_own_text, cells):
        if fault := data_fault(cell, load_data(cell.source, data_dir()).sizes):
            raise SweepError(cell.dataset, *parts_of(fault))
    for name, trained, row in stored:
        if _reads_own_text(trained):
            _require_the_same_text(name, trained, row["corpus_sha256"])


def _require_the_same_text(name: str, cell: TrainCell, sha256: str | None) -> None:
    """SweepError where a stored cell of the sweep `name` was trained on another text than lies at its path today."""
    with suppress(OSError, DataError):  # gone: what is stored stands
        if sha256 and not load_data(cell.source, data_dir()).sha256.startswith(sha256):
            wrong = f"{name} has cells that were trained on another text, whose sha256 begins {sha256}"
            accepted = "that text, a text of another name, or another --results"
            raise SweepError(cell.dataset, "dataset", wrong, accepted)


def is_timing(cell: Cell) -> bool:
    """Whether a cell's times are what it is run for: only those of one machine compare."""
    return not cell.trains and not cell.checks


def lacked(row: Mapping[str, Any]) -> bool:
    """Whether a cell failed for want of something that day, space, permission, a GPU: no answer to keep."""
    reason = str(row["reason"])
    return row["status"] == "failed" and (reason.startswith(ResourceError.__name__) or is_lack(reason))


def stale(plan: Plan) -> list[str]:
    """The cells whose checkpoint nothing goes on from any more."""
    left = {cell.cell_id for cell in plan.todo}
    return [name for name, stored in plan.stored.items() if name not in left and stored.status not in CONTINUED]


def _summary(plan: Plan, store: Store, interrupted: bool) -> int:
    if interrupted:
        print(f"interrupted: {len(plan.stored)} of {len(plan.cells)} cells are stored; run again to go on")
        return 130
    cells, of_shard = plan.cells, f" of shard {plan.shard}" if plan.shard.of > 1 else ""
    statuses = Counter(stored.status for stored in plan.stored.values())
    failed = failures(statuses.elements())
    line = f"{statuses['ok']} of {len(cells)} cells{of_shard} ok"
    line += f"; {statuses['unsupported']} unsupported here" if statuses["unsupported"] else ""
    line += f"; {failed.total()} failed: {counted(failed)}" if failed else ""
    print(f"{line}; results in {store.folder}")
    names = labels(cells)
    not_ok = [cell for cell in cells if cell.cell_id in plan.stored and plan.stored[cell.cell_id].status != "ok"]
    for cell in not_ok[:LISTED]:
        stored = plan.stored[cell.cell_id]
        print(f"  {stored.status}: {names[cell.cell_id]}: {stored.reason}")
    if len(not_ok) > LISTED:
        shown = shlex.join([plan.sweep.named, *plan.sweep.altered, "--results", str(store.folder.parent)])
        print(f"  and {len(not_ok) - LISTED} more: python -m bench show {shown}")
    if plan.todo:  # removed or damaged since, or by a run beside this one
        print(f"{number(len(plan.todo))} of them not stored; run again to go on")
    return 1 if failed or plan.todo else 0


def failures(statuses: Iterable[str]) -> Counter[str]:
    """How many did not end fine, by status: where there are such, a command ends with exit status 1."""
    return Counter(status for status in statuses if status not in FINE)


def counted(counts: Mapping[str, int]) -> str:
    """'3 ok, 1 wrong'."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
