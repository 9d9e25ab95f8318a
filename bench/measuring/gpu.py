"""What a GPU says of itself while it is being measured: clocks, temperature, power. Nothing is ever set."""

from __future__ import annotations

import importlib
import subprocess
from typing import Any

QUERIES = {  # column: nvidia-smi's name
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
}

State = dict[str, float | None]


def gpu_state(device: str) -> State:
    """The columns of QUERIES, at this moment, of the first GPU; null where it does not say, and on a CPU."""
    if device != "cuda":
        return dict.fromkeys(QUERIES)
    return _by_nvml() or _by_nvidia_smi()


def _by_nvml() -> State | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "sm_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
            "temperature_celsius": float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            "power_watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        }
    except Exception:  # not installed, no driver, or a GPU that does not answer: each in a class of its own
        return None


def _by_nvidia_smi() -> State:
    query = f"--query-gpu={','.join(QUERIES.values())}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(QUERIES)
    return read_answer(done.stdout)


def read_answer(text: str) -> State:
    """The first line of nvidia-smi's answer: numbers by column; null where it says '[N/A]'."""
    words = (text.splitlines() or [""])[0].split(",")
    state: State = dict.fromkeys(QUERIES)
    for name, word in zip(QUERIES, words, strict=False):
        try:
            state[name] = float(word)
        except ValueError:
            continue
    return state
