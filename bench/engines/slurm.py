"""A sweep as an array job of SLURM: each of its jobs is a run that shares the sweep's folder with the others.

So every job takes the next cell that none is at, and what a job that ended was at goes on in another. The jobs are
submitted, awaited and ended here, through submitit.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import psutil

from bench.cells import number
from bench.engines.slurm_options import OptionError, parsed, require_cluster
from kernels.system.resources import ResourceError

FOLDER = ".slurm"  # in the folder of a sweep: what was submitted, and what each job said
LOOK_SECONDS = 5.0
TOLD_SECONDS = 60.0
MOST_LIMITS = 100  # how often a job that has come to its time limit is queued again; submitit's own is 3
ANSWER_SECONDS = 60.0
PENDING = "pending"
GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL, in which what trains puts itself aside
INTERRUPTED = (130, -signal.SIGTERM)  # exit statuses of a run that was told to end, the second as it began
OF_A_USER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")  # the other SLURM_* are of a job


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
        if status in INTERRUPTED:  # preempted, say: no result is left, which would say that a job queued again is over
            sys.exit(INTERRUPTED[0])
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
    Ctrl-C and SIGTERM end the jobs. ResourceError, one line, where there is no submitit or no SLURM, or where SLURM
    refuses the jobs; OptionError where an option is none.
    """
    try:
        import submitit
    except ImportError:
        raise ResourceError("submitit is not installed here: pip install 'block-sparse-bench[slurm]'") from None
    said = folder.absolute() / FOLDER
    if "%" in str(said):
        raise OptionError(f"--results: {said.parent}: SLURM takes % for a pattern; accepted: a folder without %")
    require_cluster(cluster)
    asked = parsed(options)
    try:
        executor = submitit.AutoExecutor(folder=str(said / "%j"), cluster=cluster, slurm_max_num_timeout=MOST_LIMITS)
    except Exception as error:  # of many kinds, AssertionError and TypeError among them
        raise ResourceError(f"SLURM takes no job: {_line(error)}") from None
    try:
        executor.update_parameters(**{"name": folder.name, "slurm_array_parallelism": jobs, **asked})
    except Exception as error:
        raise OptionError(f"--slurm: {_line(error).partition(' Known executors')[0]}") from None
    try:
        with _outside_a_job(), _held(cluster != "local") as told, redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(Part(arguments, str(Path.cwd()))) for _ in range(jobs)]
    except Exception as error:  # which also says what sbatch printed
        raise ResourceError(f"SLURM takes no job: {_line(error)}") from None
    array = Array(submitted, cluster)
    try:
        if told:
            raise KeyboardInterrupt
        say(f"{number(len(submitted), 'job')} submitted; what they say is in {folder / FOLDER}")
        _await(array, done, say)
    except BaseException:
        _end(array, say)
        raise
    for job in submitted:
        if why := array.why_ill(job):
            say(f"job {job.job_id} ended ill: {why}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000]


@contextmanager
def _outside_a_job() -> Iterator[None]:
    """Where this runs in a job of SLURM, as in an interactive one, that says nothing to the jobs submitted meanwhile.

    Its memory or its tasks in their environment would contradict what was asked for them.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SLURMD_")) and name not in OF_A_USER and "SLURM_JOB_ID" in os.environ
    }
    for name in own:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(own)


@contextmanager
def _held(in_children: bool) -> Iterator[list[int]]:
    """What would end this run is only noted meanwhile, so that no job is submitted that nobody knows to cancel.

    Yields the signals that came. in_children: what is started is deaf to them, too: Ctrl-C reaches sbatch as well.
    """
    told: list[int] = []

    def note(number: int, _: Any) -> None:
        told.append(number)

    ending = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        ending = set()
    before = {
        each: signal.signal(each, note) for each in ending if signal.getsignal(each) not in (signal.SIG_IGN, None)
    }
    if in_children:
        signal.pthread_sigmask(signal.SIG_BLOCK, before)
    try:
        yield told
    finally:
        if in_children:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # now comes what waited
        for number, handler in before.items():
            signal.signal(number, handler)


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
        self.spared: set[str] = set()  # cancelled here before they began

    def cancel(self, jobs: Sequence[Any]) -> bool:
        """End some of them; whether SLURM heard that."""
        if self.is_local:
            for job in jobs:
                job.cancel(check=False)
            return True
        told = _asked("scancel", *(job.job_id for job in jobs))
        return told is not None and (told.returncode == 0 or _is_unknown(told))

    def spare(self, jobs: Sequence[Any]) -> None:
        """Cancel those of them that still wait: there is nothing left to do."""
        waiting = [job for job in jobs if self.state(job).startswith(PENDING)]
        if waiting and self.cancel(waiting):
            self.spared |= {job.job_id for job in waiting}

    def at_work(self) -> list[Any]:
        """Those that have not ended."""
        if self.is_local:
            return [job for job in self.jobs if not job.done() or _runs_here(job.job_id)]
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
            if job.paths.stdout.exists():
                return f"it was killed or cancelled, or its node was lost{_last_error(job.paths.stderr)}"
            unseen = "it left SLURM's queue without a word: cancelled, or its node does not see the folder of results"
            return "" if job.job_id in self.spared else unseen
        why = job.exception()
        return "" if why is None else " ".join(str(why).split())[-300:]


def _runs_here(job: str) -> bool:
    """Whether a process of a local job lives: submitit counts one that was told to end as done."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SUBMITIT_LOCAL_JOB_ID") == job and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _last_error(log: Path) -> str:
    """The last error that SLURM wrote into the log of a job, as why it was cancelled."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        errors = [
            line
            for line in lines
            if line.startswith(("slurmstepd", "srun")) and (": error:" in line or ": fatal:" in line)
        ]
        own = [line for line in errors if line.startswith("slurmstepd")] or errors  # srun's often only repeats a status
        return f": {own[-1].strip(' *')[-300:]}" if own else ""
    return ""


def _asked(*command: str) -> subprocess.CompletedProcess[str] | None:
    """What a program of SLURM answers; None where it does not. The user's defaults (SQUEUE_STATES) hide no job here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _is_unknown(told: subprocess.CompletedProcess[str]) -> bool:
    """Whether SLURM has forgotten the job, as it does some time after its end."""
    return "invalid job id" in told.stderr.lower()


def queued(array: str) -> dict[str, str] | None:
    """The state of each job of an array that has not ended, as 'running' or 'pending (Resources)'.

    None where SLURM does not answer.
    """
    told = _asked("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={array}")
    if told is None:
        return None
    if told.returncode:
        return {} if _is_unknown(told) else None
    states = {}
    for line in filter(None, map(str.strip, told.stdout.splitlines())):
        job, state, why = (*line.split("|", 2), "", "")[:3]
        is_explained = state.lower() == PENDING and why not in ("", "None")
        states[job] = f"{state.lower()} ({why})" if is_explained else state.lower()
    return states


def _end(array: Array, say: Callable[[str], None]) -> None:
    """Cancel all jobs and wait until they have ended, for a while; say so where SLURM still has some then."""
    is_heard = False
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        is_heard = is_heard or array.cancel(array.jobs)  # once: a second SIGTERM would disturb what puts itself aside
        left = array.at_work()
        if not left or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    if left:
        why = "have not ended yet" if is_heard else "could not be cancelled"
        say(f"{number(len(left), 'job')} {why}; to end them: scancel {' '.join(job.job_id for job in left)}")


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
                array.spare(left)
