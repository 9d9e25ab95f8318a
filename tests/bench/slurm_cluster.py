"""A SLURM of our own: its real daemons, two nodes on this machine, in a folder; and sweeps for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from psutil import NoSuchProcess, Process

NODES = ("one", "two")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
CONFIG = """\
ClusterName=try
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort={ports[0]}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
SlurmdTimeout=30
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""

TINY = 'kind = "gemm"\n[base]\nthreads = 1\nm = 32\nk = 32\nn = 2\nblock_size = 8\nbackend = "torch_bsr"\n'
TRAINS = (
    'kind = "train"\n[base]\ntrain_tokens = 40000\neval_tokens = 1000\nembedding_size = 16\nhidden_size = 32\n'
    "num_layers = 1\nepochs = {epochs}\nthreads = 1\n[axes]\nseed = [0, 1]\n"
)


def lacks() -> str:
    """What of SLURM is not installed here; empty where it can be started."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"needs {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Its daemons, until the end; the variables of its users' environment. folder: of few letters, as sockets are."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    user, host = Process().username(), socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, user=user, host=host, ports=_free_ports(3)))
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    munge = {
        "--key-file": key, "--socket": folder / "munge.sock", "--pid-file": folder / "munged.pid",
        "--log-file": folder / "munged.log", "--seed-file": folder / "munge.seed",
    }  # fmt: skip
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    environment = {**os.environ, **variables}

    def start(*command: str) -> None:
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)

    try:
        start("munged", "--force", *(f"{option}={value}" for option, value in munge.items()))
        start("slurmctld")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            start("slurmd", "-N", node)
        deadline = time.monotonic() + 60
        while told(environment, "sinfo", "-h", "-o", "%t %D") != "idle 2":
            assert time.monotonic() < deadline, told(environment, "sinfo")
            time.sleep(0.2)
        yield variables
    finally:
        with suppress(OSError, subprocess.CalledProcessError):
            told(environment, "scancel", "--full", "--user", user)
        for file in ("slurmctld", *(f"slurmd-{node}" for node in NODES), "munged"):
            with suppress(OSError, ValueError, NoSuchProcess):
                daemon = Process(int((folder / f"{file}.pid").read_text()))
                daemon.send_signal(signal.SIGTERM)
                with suppress(Exception):
                    daemon.wait(20)


def told(environment: dict[str, str], *command: str) -> str:
    """What a program of SLURM says."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
