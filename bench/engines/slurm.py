"""A sweep as an array job of SLURM: each of its jobs is a run that shares the sweep's folder with the others.

So every job takes the next cell that none is at, and what a job that ended was at goes on in another. The jobs are
submitted, awaited and ended here, through submitit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.cells import number
from kernels.system.resources import ResourceError

FOLDER = ".slurm"  # in the folder of a sweep: what was submitted, and what each job said
OF_ALL = ("timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
LOOK_SECONDS = 5.0
TOLD_SECONDS = 60.0
MOST_LIMITS = 100  # how often a job that has come to its time limit is queued again; submitit's own is 3
ANSWER_SECONDS = 60.0
PENDING = "pending"
GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL, in which what trains puts itself aside


def _value(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


class Part:
    """One job: `python -m bench run` with those arguments. Requeued, as after its time limit, it goes on."""

    def __init__(self, arguments: Sequence[str], folder: str) -> None:
        self.arguments, self.folder = list(arguments), folder

    def __call__(self) -> int:
        command = [sys.executable, "-m", "bench", "run", *self.arguments, "--share"]
        with subprocess.Popen(command, cwd=self.folder) as run:
            try:
                status = run.wait()
            except BaseException:
                run.terminate()
                raise
        if status not in (0, 1):  # all is well, or some cells are not
            raise RuntimeError(f"python -m bench run ended with exit status {status}")
        return status

    def checkpoint(self) -> Any:
        """What SLURM is to run in place of this job: the same, which the store and checkpoints let go on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint


def run_on_slurm(
    arguments: Sequence[str],
    folder: Path,
    jobs: int,
    options: Mapping[str, str],
    done: Callable[[], tuple[int, int]],
    cluster: str = "slurm",
    say: Callable[[str], None] = print,
) -> None:
    """Run a sweep as an array of `jobs` jobs, and return when all have ended.

    arguments: of `python -m bench run`. folder: of the sweep's results. options: of submitit's executor, those of
    sbatch without the prefix slurm_. done: how many cells are stored, of how many. cluster: "local" runs the jobs here.
    Ctrl-C and SIGTERM end the jobs. ResourceError, one line, where there is no submitit or no SLURM.
    """
    try:
        import submitit
    except ImportError:
        raise ResourceError("submitit is not installed here: pip install 'block-sparse-bench[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(
            folder=str(folder.absolute() / FOLDER / "%j"), cluster=cluster, slurm_max_num_timeout=MOST_LIMITS
        )
        asked = {name if name in OF_ALL else f"slurm_{name}": _value(text) for name, text in options.items()}
        executor.update_parameters(**{"name": folder.name, "slurm_array_parallelism": jobs, **asked})
        with executor.batch():
            submitted = [executor.submit(Part(arguments, str(Path.cwd()))) for _ in range(jobs)]
    except Exception as error:  # of many kinds, AssertionError and TypeError among them
        raise ResourceError(f"SLURM takes no job: {' '.join(str(error).split())[:300]}") from None
    say(f"{number(len(submitted), 'job')} submitted; what they say is in {folder / FOLDER}")
    array = Array(submitted, cluster)
    try:
        _await(array, done, say)
    except BaseException:
        cancel(submitted)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and array.at_work():
            time.sleep(1.0)
        raise
    for job in submitted:
        if why := array.why_ill(job):
            say(f"job {job.job_id} ended ill: {why}")


class Array:
    """The jobs of an array, and what SLURM's queue says of them.

    The queue is what every SLURM has; the accounting that submitit asks (sacct) is not, and without it submitit never
    hears of a job that was killed before it could say so.
    """

    def __init__(self, jobs: Sequence[Any], cluster: str) -> None:
        self.jobs, self.is_local = jobs, cluster == "local"
        self.states: dict[str, str] = {}  # by job, of those that have not ended; on SLURM
        self.missed: set[str] = set()  # by the queue, at the last look
        self.gone: set[str] = set()  # without a result

    def at_work(self) -> list[Any]:
        """Those that have not ended."""
        if self.is_local:
            return [job for job in self.jobs if not job.done()]
        left = [job for job in self.jobs if not job.paths.result_pickle.exists() and job.job_id not in self.gone]
        if left and (states := queued(left[0].job_id.partition("_")[0])) is not None:
            self.states = states
            missing = {job.job_id for job in left} - states.keys()
            self.gone |= missing & self.missed  # at two looks: a result comes late in a shared folder
            self.missed = missing
        return [job for job in left if job.job_id not in self.gone]

    def state(self, job: Any) -> str:
        """'running', as SLURM has it."""
        if self.is_local:
            return str(job.state).lower()
        if job.paths.result_pickle.exists():
            return "done"
        return "gone" if job.job_id in self.gone else self.states.get(job.job_id, "unknown")

    def why_ill(self, job: Any) -> str:
        """Why it did not end well, in one line; empty where it did, or never began."""
        if job.job_id in self.gone:
            began = job.paths.stdout.exists()
            return "it was killed, or its node was lost; what it was at is not stored" if began else ""
        why = job.exception()
        return "" if why is None else " ".join(str(why).split())[-300:]


def cancel(jobs: Iterable[Any]) -> None:
    for job in jobs:
        job.cancel(check=False)


def queued(array: str) -> dict[str, str] | None:
    """The state of each job of an array that has not ended, as 'pending'; None where SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i|%T", f"--jobs={array}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode:  # it forgets ended jobs after a while
        return {} if "invalid job id" in told.stderr.lower() else None
    pairs = (line.strip().partition("|") for line in told.stdout.splitlines() if line.strip())
    return {job: state.lower() for job, _, state in pairs}


def _await(array: Array, done: Callable[[], tuple[int, int]], say: Callable[[str], None]) -> None:
    """Return when all jobs have ended; those that still wait when every cell is stored are cancelled."""
    told = time.monotonic()
    while left := array.at_work():
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - told < TOLD_SECONDS:
            continue
        told = time.monotonic()
        with suppress(OSError, RuntimeError, ValueError):  # what cannot be read now can be in a minute
            stored, of = done()
            states = Counter(map(array.state, array.jobs))
            now = ", ".join(f"{count} {state}" for state, count in states.items())
            say(f"... {stored} of {of} stored; jobs: {now}")
            if stored == of:
                cancel(job for job in left if array.state(job) == PENDING)
