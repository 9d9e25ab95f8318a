"""A first look at a GPU: what it reaches, and each of our kernels checked and timed, a line each as it is known.

`python -m bench.measuring.smoke [--quick | --cluster 2] [--device cpu]`. Each kernel runs in a process of its own for
LIMIT_SECONDS at most, so that one that hangs costs no more. A product of SIDE has more tiles than a GPU has
multiprocessors: a CTA comes to its second one, which the small shapes of checks do not show.
--cluster: instead, whether the kernels with operands by TMA are right, those whose CTAs go alone (1) or in pairs (2).
Only tuning runs them, which one that hangs would end; the exit status says whether it is to leave them out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from kernels.system.programs import run

LIMIT_SECONDS = 20.0
TOGETHER_SECONDS = 60.0  # for several kernels that are only checked, beside those of the other block sizes
RAGGED = 128, 96  # rows and columns that such a product lacks: an odd number of row groups, a last tile in part
SIDE = {"cuda": 4096, "cpu": 256}
LARGER = {"cuda": 8192, "cpu": 512}  # a dense product beside it
BACKEND = {"cuda": "cuda", "cpu": "native"}
DTYPE = {"cuda": "bfloat16", "cpu": "float32"}
BLOCKS = (128, 64, 32, 16)
OPS = ("dsd", "dsd_t", "sdd")
SPARSITY = 0.8
LAUNCHES = 20

Answer = dict[str, Any]


class Look(NamedTuple):
    """One product of a block-sparse matrix, or of a dense one (op 'dense'), or the rates of the device."""

    op: str
    block_size: int
    side: int
    device: str
    cluster: int = 0  # of the kernels by TMA, all that there are; 0: the kernel that is chosen

    def __str__(self) -> str:
        if self.op == "rates":
            return "rates"
        if self.cluster:
            return f"{self.op} by TMA, clusters of {self.cluster}, block {self.block_size}"
        return f"{self.op} {self.side}" + (f" block {self.block_size}" if self.block_size else "")


def looks(device: str, quick: bool) -> Iterator[Look]:
    """All that is looked at, in order; quick: dsd of two block sizes."""
    if device == "cuda":
        yield Look("rates", 0, 0, device)
    yield Look("dense", 0, SIDE[device], device)
    if not quick:
        yield Look("dense", 0, LARGER[device], device)
    for op in OPS[:1] if quick else OPS:
        for block_size in (128, 32) if quick else BLOCKS:
            yield Look(op, block_size, SIDE[device], device)


def answer(look: Look) -> Answer:
    """What one look finds: rates, or status, kernel, ms of a launch and 1e12 operations a second."""
    if look.op == "rates":
        from bench.measuring.roofs import rates

        return {"status": "ok", **rates(DTYPE[look.device], "ieee")._asdict()}
    from kernels.check import check
    from kernels.problem import GemmProblem
    from kernels.registry import BACKENDS

    name = "dense" if look.op == "dense" else "cuda" if look.cluster else BACKEND[look.device]
    op, size = ("dsd", 16) if look.op == "dense" else (look.op, look.block_size)
    given: dict[str, Any] = {"dtype": DTYPE[look.device], "device": look.device, "op": op}
    m, n = (look.side - less for less in (RAGGED if look.cluster else (0, 0)))
    problem = GemmProblem(m, look.side, n, size, SPARSITY, **given)
    reason = problem.missing_device() or BACKENDS[name].unsupported(problem)
    if reason:
        return {"status": "unsupported", "reason": reason}
    if look.cluster:
        return _all_right(problem, look.cluster)
    launch = BACKENDS[name].prepare(problem)
    ratio, wrong = check(launch, problem)
    if wrong:
        return {"status": "wrong", "reason": wrong, "kernel": launch.kernel}
    milliseconds = _milliseconds(launch, look.device)
    density = 1.0 if look.op == "dense" else 1 - problem.mask.sparsity
    tflops = 2 * density * look.side**3 / milliseconds / 1e9
    return {"status": "ok", "kernel": launch.kernel, "ms": milliseconds, "tflops": tflops, "error_ratio": ratio}


def _all_right(problem: Any, cluster: int) -> Answer:
    """Whether every kernel of such clusters is right; its tile is said before it runs, for one that hangs."""
    from kernels.check import check
    from kernels.registry import BACKENDS

    worst, count = 0.0, 0
    for name, prepare in BACKENDS["cuda"].variants(problem).items():
        tile = json.loads(name)
        if tile.get("cluster") != cluster or tile.get("band"):
            continue
        print(f"at {name}", flush=True)
        launch = prepare()
        ratio, wrong = check(launch, problem)
        if wrong:
            return {"status": "wrong", "reason": wrong, "kernel": launch.kernel}
        worst, count = max(worst, ratio), count + 1
    return {"status": "ok", "count": count, "error_ratio": worst}


def _milliseconds(launch: Any, device: str) -> float:
    """The best of a few samples of LAUNCHES in a row, from a graph on a GPU."""
    from bench.measuring.clocks import GraphTimer, Timer, WallTimer

    timer: Timer = GraphTimer() if device == "cuda" else WallTimer(device)
    return min(timer.time(launch, LAUNCHES) for _ in range(3))


def ask(look: Look, limit: float) -> Answer:
    """The same in a process of its own, stopped after `limit` seconds."""
    command = [sys.executable, "-m", "bench.measuring.smoke", "--one", json.dumps(look)]
    try:
        done = run(command, limit)
    except subprocess.TimeoutExpired as late:
        so_far = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        at = so_far.strip().splitlines()[-1:]
        return {"status": "timeout", "reason": " ".join([f"stopped after {limit:g} s", *at])}
    said = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found = json.loads(said)
        return found if isinstance(found, dict) else {"status": "failed", "reason": said[:200]}
    except ValueError:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no word"])[-1]
        place = f" {said[:300]}" if said not in ("", last) else ""
        return {"status": "crashed", "reason": f"exit status {done.returncode}{place}: {last[:200]}"}


def spoken(look: Look, found: Answer, dense_ms: float | None) -> str:
    """One line; of a block-sparse product its share of what theory makes of the dense time."""
    if found["status"] != "ok":
        return f"{look}: {found['status']}: {found['reason']}"
    if look.op == "rates":
        return f"{look}: {found['peak_tflops']:.0f} TFLOP/s, copies at {found['copy_gb_per_second']:.0f} GB/s"
    if look.cluster:
        return f"{look}: {found['count']} kernels right, at most {found['error_ratio']:.2f} of the error bound"
    line = f"{look}: {found['ms'] * 1e3:.1f} us, {found['tflops']:.1f} TFLOP/s"
    if dense_ms is not None and look.op != "dense":
        line += f", efficiency {dense_ms * (1 - SPARSITY) / found['ms']:.2f}"
    return f"{line}, {found['error_ratio']:.2f} of the error bound, {found['kernel']}"


def _is_ill(found: Answer) -> bool:
    return found["status"] not in ("ok", "unsupported")


def smoke(device: str, quick: bool = False, limit: float = LIMIT_SECONDS, say: Callable[[str], None] = print) -> int:
    """Look at everything and say it; the exit status: 1 where a kernel is wrong, hangs or fails."""
    dense_ms, ill = None, 0
    for look in looks(device, quick):
        found = ask(look, limit)
        if look == Look("dense", 0, SIDE[device], device):
            dense_ms = found.get("ms")
        ill += _is_ill(found)
        say(spoken(look, found, dense_ms))
    return int(ill > 0)


def clusters(device: str, cluster: int, say: Callable[[str], None] = print) -> int:
    """Whether the kernels by TMA of such clusters are right, block sizes side by side; the exit status as `smoke`'s."""
    wanted = [Look("dsd", block_size, SIDE[device], device, cluster) for block_size in BLOCKS]
    ill = 0
    with ThreadPoolExecutor(len(wanted)) as asking:
        for look, found in zip(wanted, asking.map(lambda each: ask(each, TOGETHER_SECONDS), wanted), strict=True):
            ill += _is_ill(found)
            say(spoken(look, found, None))
    return int(ill > 0)


def main() -> int:
    """The command line; --one is of the process of one look."""
    options = argparse.ArgumentParser(
        prog="python -m bench.measuring.smoke", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--device", choices=tuple(SIDE), default="cuda")
    options.add_argument("--quick", action="store_true", help="dsd of two block sizes")
    options.add_argument("--cluster", type=int, choices=(1, 2), help="kernels by TMA alone, of such clusters")
    options.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds a kernel may take")
    options.add_argument("--one", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(answer(Look(*json.loads(given.one)))))
        return 0
    if given.cluster:
        return clusters(given.device, given.cluster, lambda line: print(line, flush=True))
    return smoke(given.device, given.quick, given.limit, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
