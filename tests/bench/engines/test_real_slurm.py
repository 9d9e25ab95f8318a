"""A sweep on a real SLURM, where one is installed: its daemons, its queue, its signals, without accounting."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from slurm_cluster import TINY, TRAINS, lacks, slurm_cluster, told

from bench.engines.slurm import FOLDER, LOOK_SECONDS, MOST_LIMITS
from bench.store import Store

pytest.importorskip("submitit", reason="needs submitit: pip install 'block-sparse-bench[slurm]'")

pytestmark = [
    pytest.mark.kills,
    pytest.mark.timeout(420),
    pytest.mark.skipif(bool(lacks()), reason=lacks()),
]

ROOT = Path(__file__).parents[3]
LONG, SHORT = TRAINS.format(epochs=2000), TRAINS.format(epochs=8)

Environment = dict[str, str]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Environment]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="slurm") as folder, slurm_cluster(Path(folder)) as variables:
        yield {**os.environ, **variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def begun(slurm: Environment, file: Path, *more: str, jobs: int = 2) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "bench", "run", str(file), "--results", str(file.parent / "results")]
    line += ["--engine", "slurm", "--jobs", str(jobs), *more]
    return subprocess.Popen(
        line, env=slurm, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def sweep(folder: Path, text: str) -> tuple[Path, Path]:
    """Its file, and the folder of its results."""
    file = folder / "sweep.toml"
    file.write_text(text)
    return file, folder / "results" / "sweep"


def until(is_so: Callable[[], object], run: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline and run.poll() is None, run.communicate(timeout=60)
        time.sleep(0.3)


def comes(is_so: Callable[[], object], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.3)


def queue(slurm: Environment) -> list[list[str]]:
    """[job of an array, its state, its node] of those that have not ended."""
    return [line.split("|") for line in told(slurm, "squeue", "-h", "-r", "-o", "%i|%T|%N").splitlines()]


def runs_of(file: Path) -> list[psutil.Process]:
    """The processes `python -m bench run` of the jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(file) in line and "--share" in line:
            found.append(process)
    return found


def test_jobs_share_a_sweep_and_nothing_else_is_said(slurm: Environment, tmp_path: Path) -> None:
    file, folder = sweep(tmp_path, f"{TINY}[axes]\nseed = {list(range(6))}\n")
    with begun(slurm, file, "--slurm", "time=10") as run:
        out, _ = run.communicate(timeout=240)
    assert run.returncode == 0 and "6 of 6 cells ok" in out, out
    assert "sacct" not in out and "accounting" not in out, "what submitit asks need not be there"
    assert Store(folder).read("gemm").num_rows == 6
    said = "".join(path.read_text() for path in (folder / FOLDER).rglob("*.out"))
    assert said.count("] ok in ") == 6, "a cell ran twice, or never"


def test_ctrl_c_cancels_the_jobs_and_what_trains_is_put_aside(slurm: Environment, tmp_path: Path) -> None:
    file, folder = sweep(tmp_path, LONG)
    with begun(slurm, file, "--slurm", "time=10", "--checkpoint-seconds", "3") as run:
        until(lambda: len(list((folder / ".checkpoints").glob("*.pt"))) == 2, run)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted: 0 of 2 cells are stored" in out, out
    assert not queue(slurm) and not runs_of(file)
    assert len(list((folder / ".checkpoints").glob("*.pt"))) == 2


def test_a_job_that_vanished_is_told_and_its_cell_goes_on_in_another(slurm: Environment, tmp_path: Path) -> None:
    """All its processes are killed, SLURM's own among them, so that nothing of it can say how it ended."""
    file, folder = sweep(tmp_path, SHORT)
    with begun(slurm, file, "--slurm", "time=10", "--checkpoint-seconds", "1") as run:
        until(lambda: len(runs_of(file)) == 2 and any(folder.glob(".checkpoints/*.pt")), run)
        job = next(each for each in runs_of(file)[0].parents() if each.name() == "slurmstepd")
        vanished = [*job.children(recursive=True), job]
        for process in vanished:
            process.kill()
        out, _ = run.communicate(timeout=300)
    assert run.returncode == 0 and "2 of 2 cells ok" in out, out
    assert re.search(r"^job \d+_\d ended ill: it was killed ", out, re.M), out
    assert Store(folder).read("train").num_rows > 2


def test_a_job_at_its_time_limit_is_queued_again_and_goes_on(slurm: Environment, tmp_path: Path) -> None:
    """SLURM lets it wait two minutes in between."""
    file, folder = sweep(tmp_path, LONG.replace("seed = [0, 1]", "seed = [0]"))

    def said() -> str:
        return "".join(path.read_text() for path in (folder / FOLDER).rglob("*_log.*"))

    limit = ("--slurm", "time=1", "--slurm", "signal_delay_s=35")
    with begun(slurm, file, *limit, "--checkpoint-seconds", "3600", jobs=1) as run:
        until(lambda: "go on from a checkpoint" in said(), run, 300.0)
        so_far = said()
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 130, out
    assert f"({MOST_LIMITS - 1} remaining timeouts)" in so_far
    assert "Traceback" not in so_far and "resource_tracker" not in so_far, so_far


def test_jobs_that_still_wait_when_all_is_stored_are_cancelled(slurm: Environment, tmp_path: Path) -> None:
    file, _ = sweep(tmp_path, f"{TINY}[axes]\nseed = {list(range(3))}\n")
    with begun(slurm, file, "--slurm", "time=10", jobs=3) as run:
        until(lambda: len(queue(slurm)) >= 3, run)  # two nodes of one processor
        held = next(job for job, state, _ in queue(slurm) if state == "PENDING")
        told(slurm, "scontrol", "hold", held)
        out, _ = run.communicate(timeout=240)
    assert run.returncode == 0 and "3 of 3 cells ok" in out and "ended ill" not in out, out
    assert not queue(slurm)


def test_a_preempted_job_is_queued_again_and_awaited(slurm: Environment, tmp_path: Path) -> None:
    """SLURM tells what trains to end, and lets the job wait two minutes; the run must not believe that it is over."""
    file, folder = sweep(tmp_path, LONG.replace("seed = [0, 1]", "seed = [0]"))
    with begun(slurm, file, "--slurm", "time=10", "--checkpoint-seconds", "1", jobs=1) as run:
        until(lambda: any(folder.glob(".checkpoints/*.pt")), run)
        ((job, *_),) = queue(slurm)
        told(slurm, "scontrol", "requeue", job)
        until(lambda: not runs_of(file), run)
        until(lambda: [state for _, state, _ in queue(slurm)] == ["PENDING"], run)
        time.sleep(3 * LOOK_SECONDS)
        assert run.poll() is None, run.communicate()
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "ended ill" not in out, out
    assert not queue(slurm)


def test_what_cannot_be_cancelled_is_named(slurm: Environment, tmp_path: Path) -> None:
    """SLURM's controller is down as the run ends, as in a restart."""
    file, _ = sweep(tmp_path, LONG)
    controller = psutil.Process(int((Path(slurm["SLURM_CONF"]).parent / "slurmctld.pid").read_text()))
    with begun(slurm, file, "--slurm", "time=10", jobs=1) as run:
        until(lambda: runs_of(file), run)
        ((job, *_),) = queue(slurm)
        controller.terminate()
        controller.wait(20)
        try:
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=180)
        finally:
            subprocess.run(["slurmctld"], env=slurm, check=True)
    assert run.returncode == 130 and f"1 job could not be cancelled; to end them: scancel {job}\n" in out
    until_ended(slurm, job)


def until_ended(slurm: Environment, job: str) -> None:
    """Cancel a job, and wait until it has ended, by a controller that may be starting."""
    deadline = time.monotonic() + 90
    while True:
        subprocess.run(["scancel", job], env=slurm, check=False, capture_output=True)
        listed = subprocess.run(["squeue", "-h"], env=slurm, capture_output=True, text=True, check=False)
        if listed.returncode == 0 and not listed.stdout.strip():
            return
        assert time.monotonic() < deadline, listed
        time.sleep(1.0)


def test_a_run_in_a_job_of_its_own_says_nothing_of_that_to_its_jobs(slurm: Environment, tmp_path: Path) -> None:
    """As in an interactive one, with other memory than the jobs are to have; srun refuses two kinds of it."""
    file, _ = sweep(tmp_path, f"{TINY}[axes]\nseed = [0, 1]\n")
    inside = {**slurm, "SLURM_JOB_ID": "999", "SLURM_MEM_PER_CPU": "100", "SLURM_NTASKS": "7"}
    with begun(inside, file, "--slurm", "time=10", "--slurm", "mem_gb=2", jobs=1) as run:
        out, _ = run.communicate(timeout=240)
    assert run.returncode == 0 and "2 of 2 cells ok" in out, out


def test_a_job_that_waits_in_vain_says_why_whatever_the_user_has_squeue_hide(
    slurm: Environment, tmp_path: Path
) -> None:
    file, _ = sweep(tmp_path, f"{TINY}[axes]\nseed = [0, 1]\n")
    hidden = {**slurm, "SQUEUE_STATES": "RUNNING"}
    told(slurm, "scontrol", "update", "nodename=one,two", "state=drain", "reason=repair")
    try:
        with begun(hidden, file, "--slurm", "time=10", jobs=1) as run:
            assert run.stdout is not None
            assert any("jobs: 1 pending (" in line for line in iter(run.stdout.readline, "")), "it ended"
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=120)
    finally:
        told(slurm, "scontrol", "update", "nodename=one,two", "state=resume")
    assert run.returncode == 130 and not queue(slurm)


def killed(slurm: Environment, file: Path, *more: str) -> None:
    """A run begun and killed when its jobs run, so that it can say nothing to them."""
    with begun(slurm, file, "--slurm", "time=10", *more) as run:
        until(lambda: len(runs_of(file)) == 2, run)
        run.kill()
        run.communicate()


def test_jobs_of_a_run_that_was_killed_go_on_and_another_run_shares_with_them(
    slurm: Environment, tmp_path: Path
) -> None:
    file, folder = sweep(tmp_path, SHORT.replace("seed = [0, 1]", "seed = [0, 1, 2, 3]"))
    killed(slurm, file)
    assert len(queue(slurm)) == 2
    with begun(slurm, file, "--slurm", "time=10") as run:
        out, _ = run.communicate(timeout=300)
    assert run.returncode == 0 and "4 of 4 cells ok" in out and "ended ill" not in out, out
    once(folder, 4)
    comes(lambda: not queue(slurm), 60, "jobs of the run that was killed stay when all is stored")


def test_jobs_of_a_run_that_was_killed_do_all_of_it(slurm: Environment, tmp_path: Path) -> None:
    file, folder = sweep(tmp_path, SHORT.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    killed(slurm, file)
    comes(lambda: not queue(slurm), 240, "its jobs do not end")
    with begun(slurm, file, "--slurm", "time=10") as run:
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "3 of 3 cells ok" in out and "submitted" not in out, out
    once(folder, 3)


def once(folder: Path, cells: int) -> None:
    """Each cell ended once."""
    said = "".join(path.read_text() for path in (folder / FOLDER).rglob("*.out"))
    assert said.count("] ok in ") == cells, said
    assert len(Store(folder).finished()) == cells


def test_two_runs_on_one_folder_share_it(slurm: Environment, tmp_path: Path) -> None:
    file, folder = sweep(tmp_path, SHORT.replace("seed = [0, 1]", "seed = [0, 1, 2, 3]"))
    with begun(slurm, file, "--slurm", "time=10") as first, begun(slurm, file, "--slurm", "time=10") as second:
        said = [run.communicate(timeout=360)[0] for run in (first, second)]
    assert first.returncode == second.returncode == 0, said
    assert all("4 of 4 cells ok" in out and "ended ill" not in out for out in said), said
    once(folder, 4)
    assert not queue(slurm)


def test_what_ran_on_a_node_that_was_lost_goes_on(slurm: Environment, tmp_path: Path) -> None:
    """Its daemon and all of the job on it die at once; SLURM finds out after 30 seconds, and queues the job again."""
    file, folder = sweep(tmp_path, SHORT)
    spool = Path(slurm["SLURM_CONF"]).parent
    with begun(slurm, file, "--slurm", "time=10", "--checkpoint-seconds", "1") as run:
        until(lambda: len(runs_of(file)) == 2 and any(folder.glob(".checkpoints/*.pt")), run)
        daemon = psutil.Process(int((spool / "slurmd-two.pid").read_text()))
        lost = [each for each in psutil.process_iter(["name"]) if each.info["name"] == "slurmstepd" and on_two(each)]
        assert lost
        for process in [daemon, *(child for each in lost for child in each.children(recursive=True)), *lost]:
            process.kill()
        try:
            out, _ = run.communicate(timeout=360)
        finally:
            subprocess.run(["slurmd", "-N", "two"], env=slurm, check=True)
    assert run.returncode == 0 and "2 of 2 cells ok" in out, out
    assert Store(folder).read("train").num_rows > 2
    comes(lambda: told(slurm, "sinfo", "-h", "-o", "%t %D") == "idle 2", 60, "the node does not come back")


def on_two(process: psutil.Process) -> bool:
    """Whether it is of the second node: SLURM tells a job's processes theirs."""
    return any(each.environ().get("SLURMD_NODENAME") == "two" for each in process.children(recursive=True))


def test_a_job_with_too_little_memory_is_told_and_a_cell_that_ends_all_is_left(
    slurm: Environment, tmp_path: Path
) -> None:
    """SLURM kills what takes more than was asked for it: each of the jobs, and with it the run's cell, not the run."""
    file, folder = sweep(tmp_path, f"{TINY}[axes]\nseed = [0, 1, 2]\n".replace("torch_bsr", "glutton"))
    plugin = tmp_path / "glutton.py"
    plugin.write_text(GLUTTON)
    with begun(slurm, file, "--slurm", "time=10", "--slurm", "mem_gb=1", "--plugin", str(plugin)) as run:
        out, _ = run.communicate(timeout=300)
    assert run.returncode == 1 and not queue(slurm), out
    assert re.search(r"^job \d+_\d ended ill: .*memory", out, re.M), out
    assert "not stored; run again to go on" in out and len(Store(folder).finished()) < 3


GLUTTON = """
import dataclasses, time
import numpy
from kernels.backends.torch_bsr import BACKEND as WHOLE

def product(problem):
    if problem.seed == 1:
        taken = numpy.ones(3 << 27)
        time.sleep(20)
    return WHOLE.product(problem)

BACKEND = dataclasses.replace(WHOLE, name="glutton", product=product)
"""


def test_a_job_uses_the_processors_that_it_was_given(slurm: Environment, tmp_path: Path) -> None:
    """One of each node here, while nothing binds the job's processes to it."""
    file, folder = sweep(tmp_path, TINY.replace("threads = 1\n", ""))
    here = {name: value for name, value in slurm.items() if name != "OMP_NUM_THREADS"}
    with begun(here, file, "--slurm", "time=10", jobs=1) as run:
        out, _ = run.communicate(timeout=240)
    assert run.returncode == 0, out
    assert [row["threads_used"] for row in Store(folder).read("gemm").to_pylist()] == [1]


def test_ctrl_c_while_a_busy_controller_takes_the_jobs_leaves_none(slurm: Environment, tmp_path: Path) -> None:
    """In a terminal it reaches sbatch, too, which waits for SLURM's answer."""
    file, _ = sweep(tmp_path, LONG)
    controller = psutil.Process(int((Path(slurm["SLURM_CONF"]).parent / "slurmctld.pid").read_text()))
    controller.suspend()
    try:
        run = begun(slurm, file, "--slurm", "time=10")

        def submits() -> bool:
            return any(child.name() == "sbatch" for child in psutil.Process(run.pid).children(recursive=True))

        until(submits, run)
        time.sleep(1.0)
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(1.0)
        assert run.poll() is None and submits()
    finally:
        controller.resume()
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted: 0 of 2 cells are stored" in out, out
    assert not queue(slurm) and not runs_of(file)
