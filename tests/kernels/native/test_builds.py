"""The kernels built for narrower vectors, for another CPU, and with sanitizers, which must catch what is planted."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import builds
import pytest

from kernels.native.library import FOLDER
from kernels.system.compiler import candidates

pytestmark = pytest.mark.builds

HERE = Path(__file__).parent
EDGES = [str(HERE / name) for name in ("test_native_products.py", "test_lstm_rounding.py", "test_bfloat16.py")]


def made(build: str) -> dict[str, str]:
    """The environment of a process with that build; skips where there is none."""
    environment = builds.environment(build)
    if isinstance(environment, str):
        pytest.skip(environment)
    return {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_sanitizers_stop_what_is_planted() -> None:
    environment = made("sanitized")
    environment["ASAN_OPTIONS"] += ":symbolize=0"  # the names of functions in ten reports: a third of the time
    command = [sys.executable, str(HERE / "plant.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert len(statuses) == 12
    for name, status in statuses.items():
        assert (status == "0") == name.startswith("right"), f"{name}: exit status {status}"
    reports = re.findall(r"ERROR: AddressSanitizer: (\S+)|runtime error: ([a-z ]+)", done.stderr)
    assert [first or second.strip() for first, second in reports] == [
        *["heap-buffer-overflow"] * 2,
        "signed integer overflow",
        "load of misaligned address",
        "shift exponent",
        *["heap-buffer-overflow"] * 5,
    ]


def assert_edges_pass(build: str, words: str) -> None:
    """The edges under that build whose names have the words: all pass, and many do of each type."""
    command = [sys.executable, "-m", "pytest", "--capture=sys", "-p", "no:cacheprovider", "-rA", *EDGES, "-k", words]
    done = subprocess.run(command, env=made(build), cwd=HERE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    passed = re.findall(r"^PASSED (\S+)", done.stdout, re.MULTILINE)
    short = ["bfloat16" in name for name in passed]
    assert short.count(True) > 40 and short.count(False) > 40, done.stdout[-1000:]


@pytest.mark.slow(45)
@pytest.mark.timeout(900)  # where other tests and an empty cache of kernels hold it up
def test_the_sanitizers_find_nothing() -> None:
    assert_edges_pass("sanitized", "(float32 or bfloat16) and not such_a_cpu")


@pytest.mark.slow(15)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", list(builds.ISAS))
def test_narrower_vectors(build: str) -> None:
    assert_edges_pass(build, "not fuzz and not such_a_cpu")


def run_teams(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """teams.cpp with ThreadSanitizer and those flags; skips where none builds or runs it."""
    for command in candidates():
        options = ("-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=thread", "-DELEMENT=float", f"-I{FOLDER}", *flags)
        build = [*command, *options, str(HERE / "teams.cpp"), "-o", str(folder / "teams")]
        if subprocess.run(build, capture_output=True, check=False).returncode == 0:
            done = subprocess.run([str(folder / "teams")], capture_output=True, text=True, check=False)
            if "unexpected memory mapping" in done.stderr:
                pytest.skip("ThreadSanitizer does not start here: its memory is taken")
            return done
    pytest.skip("no C++ compiler with ThreadSanitizer found; install g++ or clang++")


def test_a_team_races_for_nothing(tmp_path: Path) -> None:
    done = run_teams(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    sums = done.stdout.split()
    assert len(sums) == 60 and len(set(sums)) == 1


def test_a_race_of_a_team_would_be_seen(tmp_path: Path) -> None:
    """What ends an item is planted without its order."""
    done = run_teams(tmp_path, "-U__ATOMIC_RELEASE", "-D__ATOMIC_RELEASE=__ATOMIC_RELAXED")
    assert done.returncode != 0 and re.search(r"data race.*teams\.cpp", done.stderr, re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="the ziglang wheel is not installed")
@pytest.mark.parametrize("source", sorted(path.name for path in FOLDER.glob("*.cpp")))
def test_neon_compiles(source: str, tmp_path: Path) -> None:
    """Only compiled: nothing here runs it."""
    command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", "-std=c++17", "-O0", "-fPIC"]
    for element in ("float", "double", *["bfloat16"] * (source != "lstm.cpp")):
        made = tmp_path / f"{element}.o"
        done = subprocess.run(
            [*command, "-c", f"-DELEMENT={element}", str(FOLDER / source), "-o", str(made)],
            env={
                **os.environ,
                "ZIG_LOCAL_CACHE_DIR": str(tmp_path / "zig"),
                "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "zig"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert source != "dsd.cpp" or b"neon" in made.read_bytes()


def test_without_sanitizers_or_with_an_unknown_build_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "candidates", list)
    assert builds.main("sanitized") == "no C++ compiler with sanitizers found; install g++ or clang++"
    assert builds.main("fast") == "unknown build 'fast'; accepted: sanitized, avx2, 128-bit"


def inner_loops(assembly: str) -> dict[str, list[list[str]]]:
    """By mangled function: the instructions of each loop that has no other in it and several products."""
    loops: dict[str, list[list[str]]] = {}
    lines, labels, function = assembly.splitlines(), {}, ""
    for number, line in enumerate(lines):
        if label := re.match(r"(\.?[\w.]+):", line):
            labels[label[1]] = number
            function = function if label[1].startswith(".") else label[1]
        elif (jump := re.match(r"\s+j\w+\s+(\.L\w+)", line)) and jump[1] in labels:
            body = lines[labels[jump[1]] : number]
            if (
                not any(re.match(r"\s+j\w+\s+\.L", each) for each in body)
                and sum("vfmadd" in each for each in body) > 5
            ):
                loops.setdefault(function, []).append(body)
    return loops


@pytest.mark.parametrize(("march", "lanes", "panel"), [("x86-64-v3", 8, 4), ("x86-64-v4", 16, 8)])
def test_sampled_sums_stay_in_registers(march: str, lanes: int, panel: int, tmp_path: Path) -> None:
    """A loop that reads its columns anew for each row, or keeps a copy of them, takes up to 2.5 times as long."""
    command = next((each for each in candidates() if "ziglang" not in each and platform.machine() == "x86_64"), None)
    if command is None or "clang" in command[0]:
        pytest.skip("g++ on x86-64 has the faults that are looked for")
    made = tmp_path / "sdd.s"
    flags = [
        "-std=c++17",
        "-O3",
        f"-march={march}",
        "-mprefer-vector-width=512",
        "-DELEMENT=float",
        "-fPIC",
        "-w",
        "-S",
    ]
    subprocess.run([*command, *flags, str(FOLDER / "sdd.cpp"), "-o", str(made)], check=True)
    loops = inner_loops(made.read_text())
    vectors = 3
    found = [bodies for name, bodies in loops.items() if f"sampled_tileILi{lanes}ELi{vectors}ELb1E" in name]
    assert [len(bodies) for bodies in found] == [1]
    (body,) = found[0]
    assert sum("vfmadd" in line for line in body) == vectors * panel
    assert not any("(%rsp" in line or "(%rbp" in line for line in body), "\n".join(body)
    read = [line for line in body if "(%" in line and "lea" not in line]
    assert len(read) == vectors + panel, "\n".join(body)
