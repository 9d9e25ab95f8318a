"""The engine on a Ray cluster: every cell is a task, which the local engine runs on its node.

So a cell ends there as it does here: in a process of its own, with its time limit, put aside when it is to stop. What
Ray adds is the node. One that is lost, and what it was at, is no fault of the cell's: that begins anew elsewhere, at
most TRIES times.

Timings get a whole node, or a GPU, for themselves; what trains gets its threads, and a GPU where it trains on one.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from bench.cells import Cell, Progress
from bench.engines.families import Interrupts
from bench.engines.local import Crew, Ending, Work, failure, run_cells
from bench.measuring.causes import status_of, words_of
from bench.measuring.machine import ROOT, facts, physical_cores
from kernels.registry import PLUGINS_VARIABLE
from kernels.system.resources import ResourceError

TRIES = 3
POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0
STOP_SECONDS = 90.0  # what trains may take to put itself aside
OF_SOURCES = ("commit", "dirty", "source_hash")  # columns of what runs, which every node has from here
OPEN = (
    "warning: this Ray cluster asks for no token, so whoever reaches its ports runs programs on it: "
    "RAY_AUTH_MODE=token, set before it and this run start, has it ask"
)


def run_on_ray(
    cells: Iterable[Cell | None],
    work: Work,
    workers: int,  # noqa: ARG001 - the cluster's processors say how many run
    timeout: float | None,
    watch: Callable[[dict[str, Progress]], None],
    unlimited: bool = False,
    address: str | None = None,
) -> Generator[Ending, None, None]:
    """As `bench.engines.local.run_cells`, on the cluster at `address`; None: on one of this machine alone.

    ResourceError, one line, where there is no Ray or none answers.
    """
    with _cluster(address) as cluster, Interrupts() as interrupts:
        yield from _Tasks(cluster, work, timeout, unlimited).run(iter(cells), interrupts, watch)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; where it was not before, it is not afterwards."""
    try:
        import ray
    except ImportError:
        raise ResourceError("Ray is not installed here: pip install 'block-sparse-bench[ray]'") from None
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:  # for this run alone: nothing of it can be reached from elsewhere
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {
            "address": "local", "num_cpus": physical_cores(), "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    else:
        modules = [str(ROOT / name) for name in ("bench", "kernels")]  # so that all nodes compute by these sources
        given = {name: os.environ[name] for name in (PLUGINS_VARIABLE,) if name in os.environ}
        options |= {"address": address, "runtime_env": {"py_modules": modules, "env_vars": given}}
    try:
        _require_reachable(address)
        ray.init(**options)
    except Exception as error:  # of several kinds: ConnectionError, RuntimeError, those of Ray
        where = "here" if address is None else f"at {address}"
        raise ResourceError(f"no Ray cluster {where}: {' '.join(words_of(error).split())[:300]}") from None


def _require_reachable(address: str | None) -> None:
    """OSError where nothing listens at HOST:PORT: Ray tries that for minutes, and then ends the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def is_open(address: str | None) -> bool:
    """Whether a cluster that is joined lets in whoever reaches it."""
    return address is not None and os.environ.get("RAY_AUTH_MODE", "").lower() != "token"


@dataclass
class _Task:
    """A cell on its way, for which so many nodes were lost."""

    cell: Cell
    lost: int = 0
    processors: float = 0.0


class _Tasks:
    """The tasks of one run. running: by what Ray knows them by. again: those whose node was lost."""

    def __init__(self, ray: Any, work: Work, timeout: float | None, unlimited: bool) -> None:
        self.ray, self.work, self.timeout, self.unlimited = ray, work, timeout, unlimited
        self.running: dict[Any, _Task] = {}
        self.again: list[_Task] = []
        self.board = ray.remote(num_cpus=0)(_Board).remote()
        self.task = ray.remote(max_retries=0)(_on_node)
        self.task_on_gpu = ray.remote(max_retries=0, num_gpus=1)(_on_node)  # in a process of its own, with that GPU

    def run(
        self, waiting: Iterator[Cell | None], interrupts: Interrupts, watch: Callable[[dict[str, Progress]], None]
    ) -> Iterator[Ending]:
        asked = True
        try:
            while asked or self.running or self.again:
                while (asked or self.again) and len(self.running) < self._room():
                    try:
                        task = self.again.pop(0) if self.again else _Task(_given(next(waiting)))
                    except StopIteration:
                        asked = False
                        break
                    except _NoneYet:
                        break
                    self._begin(task)
                done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS) if self.running else ([], [])
                if not self.running:
                    interrupts.pause(POLL_SECONDS)
                interrupts.look()
                for ref in done:
                    yield from self._ended(ref)
                self._ask_again()
                watch(self._told())
            interrupts.look()
        finally:
            self._stop()

    def _room(self) -> int:
        """How many tasks are given to Ray at a time: what its processors can be at, and one that waits."""
        return 1 + int(sum(node["Resources"].get("CPU", 0.0) for node in self._nodes()))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0.0) >= 1.0]

    def _begin(self, task: _Task) -> None:
        cell, nodes = task.cell, self._nodes()
        most = self._most()
        # Where there is no GPU the cell says so itself.
        on_gpu = cell.device == "cuda" and any(node["Resources"].get("GPU", 0.0) >= 1.0 for node in nodes)
        alone = not cell.trains and not on_gpu  # on the CPU, whose every processor it may use
        processors = most if alone or (cell.trains and not cell.threads) else min(most, cell.threads or 1)
        limit = None if self.unlimited and cell.trains else self.timeout
        task.processors = processors
        remote = self.task_on_gpu if on_gpu else self.task
        options = {"num_cpus": processors, "name": f"{cell.kind} {cell.cell_id}"}
        ref = remote.options(**options).remote(self.work, cell, limit, self.board)
        self.running[ref] = task

    def _most(self) -> float:
        """Processors of the largest node."""
        return max((float(node["Resources"]["CPU"]) for node in self._nodes()), default=1.0)

    def _ask_again(self) -> None:
        """Ask for less where no node is left that has as many processors as a task waits for."""
        most = self._most()
        for ref in [ref for ref, task in self.running.items() if task.processors > most]:
            self.ray.cancel(ref, force=False)
            self.again.append(self.running.pop(ref))

    def _ended(self, ref: Any) -> Iterator[Ending]:
        task, errors = self.running.pop(ref), self.ray.exceptions
        lost = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError,
            errors.OutOfMemoryError, errors.RuntimeEnvSetupError, errors.RaySystemError,
        )  # fmt: skip
        try:
            ending: Ending = self.ray.get(ref)
            here = facts(task.cell.device) if ending.facts else {}
            shared = {name: here[name] for name in OF_SOURCES if name in here}
            yield replace(ending, facts={**ending.facts, **shared} if ending.facts else None)
        except lost as error:
            task.lost += 1
            if task.lost < TRIES:
                self.again.append(task)
            else:
                why = f"its node or Ray's process there was lost {TRIES} times: {type(error).__name__}"
                yield failure(task.cell, "crashed", why, 0.0)
        except errors.RayTaskError as error:
            status, reason = status_of(error.cause if isinstance(error.cause, BaseException) else error)
            yield failure(task.cell, status, reason, 0.0)
        except errors.RayError as error:
            yield failure(task.cell, "crashed", f"{type(error).__name__}: {words_of(error)}", 0.0)

    def _told(self) -> dict[str, Progress]:
        told: dict[str, Progress] = {}
        with suppress(self.ray.exceptions.RayError):
            told = self.ray.get(self.board.told.remote(), timeout=POLL_SECONDS)
        return {task.cell.cell_id: told.get(task.cell.cell_id, {}) for task in self.running.values()}

    def _stop(self) -> None:
        """Have what runs put itself aside, and wait for that."""
        with suppress(self.ray.exceptions.RayError):
            for ref in self.running:
                self.ray.cancel(ref, force=False)
            if self.running:
                self.ray.wait(list(self.running), num_returns=len(self.running), timeout=STOP_SECONDS)


class _NoneYet(Exception):  # noqa: N818 - it is none
    """No cell may begin yet."""


def _given(cell: Cell | None) -> Cell:
    if cell is None:
        raise _NoneYet
    return cell


# What follows runs on the nodes.


class _Board:
    """What running cells last told, by their ids."""

    def __init__(self) -> None:
        self.news: dict[str, Progress] = {}

    def tell(self, told: dict[str, Progress]) -> None:
        self.news |= told

    def told(self) -> dict[str, Progress]:
        return self.news


def _on_node(work: Work, cell: Cell, timeout: float | None, board: Any) -> Ending:
    """Run one cell by the local engine, whose worker stays for the next task of this process."""
    try:
        (ending,) = run_cells([cell], work, 1, timeout, board.tell.remote, crew=_crew(work))
    except BaseException:
        _STANDING.clear()
        raise
    return replace(ending, facts={**facts(cell.device), "workers": None if cell.trains else 1})


_STANDING: dict[bytes, Crew] = {}  # the worker of this process, by what it does


def _crew(work: Work) -> Crew:
    named = pickle.dumps((work, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")))
    if named not in _STANDING:
        for other in _STANDING.values():
            other.stop()
        _STANDING.clear()
        _STANDING[named] = Crew(1, work)
    return _STANDING[named]
