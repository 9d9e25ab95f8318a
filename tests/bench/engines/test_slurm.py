"""A sweep as an array job: submitit's local executor runs the jobs here, as SLURM does on its nodes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from slurm_cluster import TINY, TRAINS

from bench.engines.slurm import FOLDER, Array, Part, run_on_slurm
from bench.engines.slurm_options import OptionError
from bench.store import Store
from kernels.system.resources import ResourceError

pytest.importorskip("submitit", reason="needs submitit: pip install 'block-sparse-bench[slurm]'")

pytestmark = [pytest.mark.kills, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]


def command(file: Path, results: Path, *more: str) -> list[str]:
    line = [sys.executable, "-m", "bench", "run", str(file), "--results", str(results), "--engine", "slurm"]
    return [*line, "--jobs", "2", "--slurm", "cluster=local", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_jobs_share_a_sweep_and_the_run_tells_how_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(f"{TINY}[axes]\nseed = {list(range(6))}\n")
    done = subprocess.run(command(file, tmp_path / "results"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs submitted; what they say is in" in done.stdout and "6 of 6 cells ok" in done.stdout
    folder = tmp_path / "results" / "tiny"
    assert len(Store(folder).finished()) == 6 and Store(folder).read("gemm").num_rows == 6
    said = "".join(path.read_text() for path in (folder / FOLDER).rglob("*.out"))
    assert said.count("] ok in ") == 6, "a cell ran twice, or never"
    again = subprocess.run(command(file, tmp_path / "results"), env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "submitted" not in again.stdout


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_jobs_and_what_trains_is_put_aside(told: signal.Signals, tmp_path: Path) -> None:
    file, results = tmp_path / "trains.toml", tmp_path / "results"
    file.write_text(TRAINS.format(epochs=2000))
    with subprocess.Popen(
        command(file, results, "--checkpoint-seconds", "3"), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as run:  # fmt: skip
        checkpoints = results / "trains" / ".checkpoints"
        deadline = time.monotonic() + 120
        while len(list(checkpoints.glob("*.pt"))) < 2:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.2)
        run.send_signal(told)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted: 0 of 2 cells are stored" in out, out
    left = [process.info for process in psutil.process_iter(["cmdline"]) if "trains.toml" in " ".join(_line(process))]
    assert not left, "a job outlived the run"
    assert len(list(checkpoints.glob("*.pt"))) == 2


SPOILT = """
import dataclasses
from pathlib import Path
from kernels.backends.torch_bsr import BACKEND as WHOLE

def product(problem):
    if Path({file!r}).exists():
        raise ValueError("spoilt")
    return WHOLE.product(problem)

BACKEND = dataclasses.replace(WHOLE, name="spoilt", product=product)
"""


def test_a_retry_runs_again_what_failed_once_whatever_the_number_of_jobs(tmp_path: Path) -> None:
    file, plugin, spoils = tmp_path / "tiny.toml", tmp_path / "spoilt.py", tmp_path / "spoils"
    text = TINY.replace('backend = "torch_bsr"\n', "")
    file.write_text(f'{text}[axes]\nseed = {list(range(4))}\nbackend = ["torch_bsr", "spoilt"]\n')
    plugin.write_text(SPOILT.format(file=str(spoils)))
    spoils.touch()
    folder = tmp_path / "results" / "tiny"

    def run(*more: str) -> tuple[int, str, dict[str, str]]:
        line = command(file, tmp_path / "results", "--plugin", str(plugin), *more)
        done = subprocess.run(line, env=environment(), capture_output=True, text=True)
        rows = Store(folder).read("gemm").to_pylist()
        return done.returncode, done.stdout + done.stderr, {row["cell_id"]: row["started_at"] for row in rows}

    status, out, begun = run()
    assert status == 1 and "4 of 8 cells ok; 4 failed: " in out, out
    status, out, again = run("--retry")
    assert status == 1 and "4 of 8 cells ok; 4 failed: " in out, out
    assert sum(begun[cell] != again[cell] for cell in begun) == 4
    said = "".join(path.read_text() for path in (folder / FOLDER).rglob("*.out"))
    assert (said.count("] failed in "), said.count("] ok in ")) == (8, 4), "a cell ran twice, or never"
    spoils.unlink()
    status, out, _ = run("--retry")
    assert status == 0 and "8 of 8 cells ok" in out, out
    status, out, _ = run("--retry")
    assert status == 0 and "submitted" not in out, out


@pytest.mark.parametrize("given", ["soon", "2026-13-01", "1e9", " ", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_is_none_is_refused(given: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    line = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path / "results"), "--retry-before"]
    done = subprocess.run([*line, given], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith(f"--retry-before: {given!r} is no time; accepted: "), done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("told", ["os.kill(os.getppid(), 15)", "os.kill(0, 2)"])
def test_what_ends_a_run_while_it_submits_leaves_no_job(told: str, tmp_path: Path) -> None:
    """Programs stand for SLURM's here: sbatch takes a second, and the signal comes before it answers.

    Ctrl-C reaches sbatch, too, a program that keeps what is blocked in it, as no shell does.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    sbatch = f"#!{sys.executable}\nimport os, time\n{told}\ntime.sleep(1)\nprint('Submitted batch job 77')\n"
    scancel = f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n'
    for name, text in (("sbatch", sbatch), ("scancel", scancel), ("srun", "#!/bin/sh\n"), ("squeue", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    file = tmp_path / "tiny.toml"
    file.write_text(f"{TINY}[axes]\nseed = [0, 1]\n")
    line = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path / "results")]
    run = subprocess.run(
        [*line, "--engine", "slurm", "--jobs", "2", "--slurm", "time=5"], capture_output=True, text=True,
        env={**environment(), "PATH": f"{programs}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    assert run.returncode == 130 and "interrupted: 0 of 2 cells are stored" in run.stdout, run.stdout + run.stderr
    assert (tmp_path / "cancelled").read_text() == "77_0 77_1\n"


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_where_there_is_no_slurm_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match=r"\ASLURM takes no job: [^\n]+\Z"):
        run_on_slurm([], tmp_path / "sweep", 1, {}, lambda: (0, 0))


@pytest.mark.parametrize("given", [
    "partition", "=gpu", "time=", "a b=c", "time=soon", "time=0", "time=1", "mem_gb=lots", "mem_gb=nan", "mem_gb=-3",
    "mem_gb=1e99", "signal_delay_s=x", "cpus_per_task=0", "cpus_per_task=abc", "nodes=9e9", "cluster=moon",
])  # fmt: skip
def test_an_option_that_is_none_is_refused(given: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    line = command(file, tmp_path / "results", "--slurm", given)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--slurm: " in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"cluster": "elsewhere"}, "--slurm: cluster=elsewhere is none; accepted: slurm, local"),
        ({"cluster": "local", "colour": "red"}, "--slurm: Unknown argument 'colour'"),
    ],
)
def test_an_option_that_submitit_does_not_know_is_refused(
    options: dict[str, str], refused: str, tmp_path: Path
) -> None:
    cluster = options.pop("cluster")
    with pytest.raises(OptionError, match=rf"\A{re.escape(refused)}[^\n]*\Z"):
        run_on_slurm([], tmp_path / "sweep", 1, options, lambda: (0, 0), cluster)


def test_a_retry_of_what_ended_before_a_time_to_come_runs_it_once(tmp_path: Path) -> None:
    """As where the clock of who asks is ahead: what this run has stored is not before its begin."""
    file, plugin = tmp_path / "tiny.toml", tmp_path / "spoilt.py"
    file.write_text(TINY.replace("torch_bsr", "spoilt"))
    plugin.write_text(SPOILT.format(file=str(plugin)))
    line = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path / "results"), "--plugin"]
    line += [str(plugin), "--share"]
    for more in ([], ["--retry-before", "2999-01-01"]):
        done = subprocess.run([*line, *more], env=environment(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and done.stdout.count("] failed in ") == 1, done.stdout + done.stderr


def test_a_folder_that_slurm_would_read_as_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="accepted: a folder without %"):
        run_on_slurm([], tmp_path / "at 100%a", 2, {}, lambda: (0, 0), "local")
    assert not list(tmp_path.iterdir())


def test_a_job_that_was_told_to_end_leaves_no_result_and_one_that_failed_does(tmp_path: Path) -> None:
    """SLURM tells a job to end before it queues it again; a result would say that it is over."""
    with pytest.raises(RuntimeError, match="exit status 2"):
        Part(["no/such.toml"], str(tmp_path))()
    plugin = tmp_path / "told.py"
    plugin.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    with pytest.raises(SystemExit) as told:
        Part(["smoke", "--plugin", str(plugin)], str(tmp_path))()
    assert told.value.code == 130


class Submitted:
    """What a job of submitit is to an array."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self.job_id = job_id
        self.paths = SimpleNamespace(result_pickle=folder / job_id, stdout=folder / "said", stderr=folder / "errors")


def test_a_job_that_the_queue_has_no_longer_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program stands for squeue here; `test_real_slurm.py` asks SLURM's."""
    squeue = tmp_path / "squeue"
    squeue.write_text(
        '#!/bin/sh\n[ -z "$SQUEUE_STATES" ] || exit 0\ncat "$0.says"; cat "$0.errs" >&2; exit $(cat "$0.status")\n'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")

    def say(lines: str, status: int = 0, errs: str = "") -> None:
        for kind, text in (("says", lines), ("status", str(status)), ("errs", errs)):
            (tmp_path / f"squeue.{kind}").write_text(text)

    first, second = jobs = [Submitted(tmp_path, "7_0"), Submitted(tmp_path, "7_1")]
    array = Array(jobs, "slurm")
    say("7_0|RUNNING|None\n7_1|PENDING|(a node, is down)\n")
    assert array.at_work() == jobs
    assert [array.state(job) for job in jobs] == ["running", "pending ((a node, is down))"]
    say("", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert array.at_work() == array.at_work() == jobs, "a queue that does not answer says nothing of a job"
    say("7_0|RUNNING\n")
    assert array.at_work() == jobs, "its result may be late"
    assert array.at_work() == [first] and array.state(second) == "gone"
    assert "cancelled, or its node does not see the folder" in array.why_ill(second), "it never began"
    (tmp_path / "said").touch()
    (tmp_path / "errors").write_text("slurmstepd: error: *** JOB 7 CANCELLED DUE TO X ***\nsrun: error: exit code 1\n")
    why = array.why_ill(second)
    assert why == "it was killed or cancelled, or its node was lost: slurmstepd: error: *** JOB 7 CANCELLED DUE TO X"
    say("", 1, "slurm_load_jobs error: Invalid job id specified")
    first.paths.result_pickle.touch()
    assert array.at_work() == [] and array.state(first) == "done"
