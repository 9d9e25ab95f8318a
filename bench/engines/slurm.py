"""A sweep as an array job of SLURM: each of its jobs is a run that shares the sweep's folder with the others.

So every job takes the next cell that none is at, and what a job that ended was at goes on in another. The jobs are
submitted, awaited and ended here, through submitit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.cells import number
from kernels.system.resources import ResourceError

FOLDER = ".slurm"  # in the folder of a sweep: what was submitted, and what each job said
OF_ALL = ("timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
LOOK_SECONDS = 5.0
TOLD_SECONDS = 60.0
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
        executor = submitit.AutoExecutor(folder=str(folder.absolute() / FOLDER / "%j"), cluster=cluster)
        asked = {name if name in OF_ALL else f"slurm_{name}": _value(text) for name, text in options.items()}
        executor.update_parameters(**{"name": folder.name, "slurm_array_parallelism": jobs, **asked})
        with executor.batch():
            submitted = [executor.submit(Part(arguments, str(Path.cwd()))) for _ in range(jobs)]
    except Exception as error:  # of many kinds, AssertionError and TypeError among them
        raise ResourceError(f"SLURM takes no job: {' '.join(str(error).split())[:300]}") from None
    say(f"{number(len(submitted), 'job')} submitted; what they say is in {folder / FOLDER}")
    told = time.monotonic()
    try:
        while not all(job.done() for job in submitted):
            time.sleep(LOOK_SECONDS)
            if time.monotonic() - told >= TOLD_SECONDS:
                told = time.monotonic()
                with suppress(OSError, RuntimeError, ValueError):  # what cannot be read now can be in a minute
                    stored, of = done()
                    states = Counter(str(job.state).lower() for job in submitted)
                    now = ", ".join(f"{count} {state}" for state, count in states.items())
                    say(f"... {stored} of {of} stored; jobs: {now}")
    except BaseException:
        for job in submitted:
            job.cancel(check=False)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and not all(job.done(force_check=True) for job in submitted):
            time.sleep(1.0)
        raise
    for job in submitted:
        if (why := job.exception()) is not None:
            say(f"job {job.job_id} ended ill: {' '.join(str(why).split())[-300:]}")
