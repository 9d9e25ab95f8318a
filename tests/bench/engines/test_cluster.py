"""Sweeps on a real Ray cluster of two nodes on this machine: the same results, whatever is lost on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import work

from bench.cells import GemmCell, TrainCell
from bench.engines.cluster import OPEN, TRIES, is_open, run_on_ray
from bench.engines.driver import Terms
from bench.engines.local import Ending, Work
from bench.run import run_sweep
from bench.schema import columns
from bench.store import Store
from bench.sweep import Sweep

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'block-sparse-bench[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.kills, pytest.mark.slow(90), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without processors, to which nodes are added; its workers find the tests' modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(HERE)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("BENCH_TEST_FOLDER", str(tmp_path_factory.mktemp("notes")))
        found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        ray.init(address=found.address, log_to_driver=False, logging_level="error")
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def tell(record_property: Any) -> Any:
    """tell(fault, reached): a line of the table of nox -s chaos."""
    return lambda fault, reached: record_property("chaos", f"{fault:<58} {reached}")


@pytest.fixture
def nodes(cluster: Any) -> Iterator[list[Any]]:
    """Two nodes of two processors."""
    added = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    yield added
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def endings(cells: list[Any], do: Work, timeout: float = 60.0) -> dict[int, Ending]:
    return {ending.cell.seed: ending for ending in run_on_ray(cells, do, 1, timeout, lambda _: None)}


def sweep_of(*cells: Any) -> Sweep:
    return Sweep("sweep", "", Path("sweep.toml"), tuple(cells))


SMALL: dict[str, Any] = {
    "train_tokens": 3000, "eval_tokens": 1000, "embedding_size": 16, "hidden_size": 32, "num_layers": 1, "epochs": 2,
    "threads": 1, "lasso": "proximal", "schedule": "cubic", "target_sparsity": 0.8, "block_size": 8,
}  # fmt: skip
TRAINED = sweep_of(*(TrainCell(**SMALL, seed=seed) for seed in range(4)), GemmCell(m=64, k=64, n=4, threads=1))


def deterministic(folder: Path) -> dict[str, list[dict[str, Any]]]:
    store = Store(folder / "sweep")
    names = {kind: [c.name for c in columns(kind) if c.role in ("identity", "result")] for kind in ("train", "gemm")}
    return {kind: store.read(kind).select(found).to_pylist() for kind, found in names.items()}


def test_one_worker_four_workers_and_ray_compute_the_same(nodes: list[Any], tmp_path: Path, tell: Any) -> None:
    found = []
    for name, terms, workers in (
        ("one", Terms(), 1), ("four", Terms(), 4), ("ray", Terms(engine=run_on_ray), None),
    ):  # fmt: skip
        assert run_sweep(TRAINED, tmp_path / name, workers, terms=terms) == 0
        found.append(deterministic(tmp_path / name))
    assert found[0] == found[1] == found[2]
    tell("one worker, four workers, two nodes of Ray", "every deterministic column equal")
    for stored in Store(tmp_path / "ray" / "sweep").finished().values():
        assert stored.machine and stored.last_row["threads_used"] == 1 and stored.last_row["commit"] is not None


def test_every_way_to_fail_is_the_ending_that_it_is_here(nodes: list[Any]) -> None:
    found = endings([GemmCell(seed=seed) for seed in (*range(9), 20)], work.misbehave, timeout=3.0)
    assert {seed: ending.rows[0]["status"] for seed, ending in found.items()} == {
        0: "ok", 1: "failed", 2: "out_of_memory", 3: "out_of_memory", 4: "timeout",
        5: "crashed", 6: "crashed", 7: "crashed", 8: "failed", 20: "ok",
    }  # fmt: skip


def _tasks() -> list[psutil.Process]:
    """Ray's processes that run a cell, of the cluster of this process."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (each.cmdline() or [""])[0].startswith(("ray::train ", "ray::gemm ")):  # a task's name
                found.append(each)
    return found


def _disturbed(act: Any, moments: list[float], results: Path, cells: int) -> Counter[str]:
    """Run a sweep of slow cells while `act` disturbs it at those seconds, and count how its cells ended."""
    ended = threading.Event()

    def disturb() -> None:
        began = time.monotonic()
        for moment in moments:
            if ended.wait(max(0.0, began + moment - time.monotonic())):
                return
            act()

    thread = threading.Thread(target=disturb)
    thread.start()
    sweep = sweep_of(*(TrainCell(seed=seed, threads=1) for seed in range(cells)))
    try:
        assert run_sweep(sweep, results, terms=Terms(work=work.linger, engine=run_on_ray)) == 0
    finally:
        ended.set()
        thread.join()
    store = Store(results / "sweep")
    assert len(list(store.cells.iterdir())) == cells
    return Counter(stored.status for stored in store.finished().values())


def test_a_killed_worker_of_rays_is_no_fault_of_a_cell(nodes: list[Any], tmp_path: Path, tell: Any) -> None:
    rng, killed = random.Random(1), Counter[str]()

    def kill() -> None:
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            with suppress(psutil.Error):
                # Not one that was lost twice: the third time it is set aside, which the next test is about.
                named = [(each, each.cmdline()[0]) for each in _tasks()]
                if found := [one for one in named if killed[one[1]] < TRIES - 1]:
                    victim, name = rng.choice(found)
                    victim.send_signal(signal.SIGKILL)
                    killed[name] += 1
                    return
            time.sleep(0.05)

    moments = [4.0 + 1.5 * number for number in range(10)]
    assert _disturbed(kill, moments, tmp_path, 40) == {"ok": 40}
    assert killed.total() >= 8, "the moments come too late"
    tell("Ray's processes killed at 10 moments", f"{killed.total()} hit, every cell once")


def test_a_node_that_is_removed_is_no_fault_of_a_cell(
    cluster: Any, nodes: list[Any], tmp_path: Path, tell: Any
) -> None:
    def replace_one() -> None:
        gone = nodes.pop(0)
        nodes.append(cluster.add_node(num_cpus=2))
        cluster.remove_node(gone, allow_graceful=False)

    assert _disturbed(replace_one, [5.0, 10.0, 15.0], tmp_path, 24) == {"ok": 24}
    tell("a node of two removed, 3 times", "every cell once")


def test_a_cell_that_takes_rays_process_with_it_is_set_aside(nodes: list[Any]) -> None:
    found = endings([GemmCell(seed=seed) for seed in range(3)], work.poison)
    assert {seed: ending.rows[0]["status"] for seed, ending in found.items()} == {0: "ok", 1: "crashed", 2: "ok"}
    assert f"lost {TRIES} times" in found[1].rows[0]["reason"]


def test_timings_are_alone_on_their_node(nodes: list[Any], tmp_path: Path) -> None:
    """A cell of products takes a whole node, one that trains its threads."""
    cells = [GemmCell(seed=seed) for seed in range(4)] + [TrainCell(seed=seed, threads=1) for seed in range(4, 8)]
    found = endings(cells, work.say_who_is_beside)
    for ending in found.values():
        beside = ending.rows[0]["reason"]
        assert ending.cell.trains or beside == "", beside


def test_ctrl_c_puts_aside_what_trains(nodes: list[Any], cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        'kind = "train"\n[base]\ntrain_tokens = 40000\neval_tokens = 1000\nembedding_size = 16\nhidden_size = 32\n'
        "num_layers = 1\nepochs = 2000\nthreads = 1\n[axes]\nseed = [0, 1]\n"
    )
    command = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path / "results")]
    with subprocess.Popen(
        [*command, "--engine", "ray", "--address", cluster.address, "--checkpoint-seconds", "2"], text=True,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as run:  # fmt: skip
        aside, deadline = tmp_path / "results" / "sweep" / ".checkpoints", time.monotonic() + 120
        while len(list(aside.glob("*.pt"))) < 2:
            if time.monotonic() > deadline or run.poll() is not None:
                run.kill()
                pytest.fail(f"nothing runs: {run.stdout.read() if run.stdout else ''}")
            time.sleep(0.2)
        told = time.time()
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and OPEN in out, out
    assert len([path for path in aside.glob("*.pt") if path.stat().st_mtime > told]) == 2, out


def test_a_cluster_of_this_machine_alone_is_started_and_ended(tmp_path: Path) -> None:
    code = (
        "import sys, work; from functools import partial; from pathlib import Path\n"
        "from bench.engines.cluster import run_on_ray; from bench.cells import GemmCell\n"
        "found = list(run_on_ray([GemmCell(seed=seed) for seed in range(3)], work.succeed, 1, 60.0, lambda _: None))\n"
        "print(sorted((ending.cell.seed, ending.rows[0]['status']) for ending in found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["[(0, 'ok'), (1, 'ok'), (2, 'ok')]"], done.stderr[-3000:]


def test_where_no_cluster_answers_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from bench.engines.cluster import run_on_ray\n"
        "try:\n"
        "    list(run_on_ray([], None, 1, 1.0, lambda _: None, address='127.0.0.1:1'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    (line,) = done.stdout.splitlines()
    assert line.startswith("ResourceError no Ray cluster at 127.0.0.1:1: "), done.stdout + done.stderr[-2000:]


def test_who_joins_a_cluster_that_asks_for_no_token_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert is_open("auto") and not is_open(None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert not is_open("auto")
