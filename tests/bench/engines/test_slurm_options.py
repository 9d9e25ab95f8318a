"""The options of SLURM's jobs."""

from __future__ import annotations

import pytest

from bench.engines.slurm_options import OptionError, minutes, parsed


@pytest.mark.parametrize(
    ("text", "is_so"),
    [("90", 90), ("90:00", 90), ("0:30", 1), ("1:30:00", 90), ("1:30:01", 91), ("1-0", 1440), ("1-6:30", 1830),
     ("2-00:00:59", 2881)],
)  # fmt: skip
def test_a_time_is_read_as_sbatch_does(text: str, is_so: int) -> None:
    assert minutes(text) == is_so


@pytest.mark.parametrize("text", ["", "soon", "1h", "-5", "1:2:3:4", "1-", "0", "0:00", "1.5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"time=.* is none; accepted: minutes"):
        parsed({"time": text})


def test_options_become_those_of_the_executor() -> None:
    given = {"time": "2:00:00", "mem_gb": "1.5", "partition": "gpu", "nice": "5", "setup": "module load cuda",
             "exclusive": "true", "srun_args": "--mpi none"}  # fmt: skip
    assert parsed(given) == {
        "slurm_time": 120, "mem_gb": 1.5, "slurm_partition": "gpu", "slurm_nice": 5,
        "slurm_setup": ["module load cuda"], "slurm_exclusive": True, "slurm_srun_args": ["--mpi", "none"],
    }  # fmt: skip


def test_a_limit_that_would_come_at_once_is_refused() -> None:
    with pytest.raises(OptionError, match="90 s before its limit"):
        parsed({"timeout_min": "1"})
    assert parsed({"timeout_min": "1", "signal_delay_s": "35"}) == {"timeout_min": 1, "slurm_signal_delay_s": 35}
    with pytest.raises(OptionError, match="are the same"):
        parsed({"time": "10", "timeout_min": "10"})
