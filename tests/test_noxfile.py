"""The sessions of nox: every part of one runs, and one that failed is not lost among the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from nox.command import CommandFailed

FILE = Path(__file__).parents[1] / "noxfile.py"


@pytest.fixture(scope="module")  # nox knows its sessions by name, once
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile_of_the_suite", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """A session of nox in which commands with one of `failing` among their arguments fail."""

    def __init__(self, *failing: str) -> None:
        self.posargs: list[str] = []
        self.failing, self.ran = failing, list[str]()

    def error(self, words: str) -> None:
        raise RuntimeError(words)


@pytest.mark.parametrize(
    ("name", "parts"), [("tests", ("-n", "alone")), ("lint", ("check", "--check"))], ids=["tests", "lint"]
)
@pytest.mark.parametrize("failing", [(), (0,), (1,), (0, 1)])
def test_a_part_that_fails_does_not_keep_the_next_from_running(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, parts: tuple[str, ...], failing: tuple[int, ...]
) -> None:
    def run(session: Session, *arguments: str) -> None:
        session.ran += [part for part in parts if part in arguments]
        if any(part in arguments for part in session.failing):
            raise CommandFailed(f"{arguments[-1]} failed")

    monkeypatch.setattr(noxfile, "run", run)
    session = Session(*(parts[number] for number in failing))
    if failing:
        with pytest.raises(RuntimeError, match="failed" if len(failing) == 1 else "failed; .* failed"):
            getattr(noxfile, name)(session)
    else:
        getattr(noxfile, name)(session)
    assert session.ran == list(parts)


def test_the_environment_is_made_anew_for_what_it_installs_alone(noxfile: ModuleType, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt", "requirements.lock"):
        (tmp_path / name).write_text((FILE.parent / name).read_text(encoding="utf-8"), encoding="utf-8")
    project, constraints = tmp_path / "pyproject.toml", tmp_path / "constraints.txt"
    before, text = noxfile.digest_of_installed(tmp_path), project.read_text(encoding="utf-8")
    assert before == noxfile.digest_of_installed(FILE.parent)
    project.write_text(text.replace("timeout = 300", "timeout = 301"), encoding="utf-8")
    assert noxfile.digest_of_installed(tmp_path) == before
    project.write_text(text.replace('"filelock>=', '"filelock>=3.0,>='), encoding="utf-8")
    assert noxfile.digest_of_installed(tmp_path) != before
    project.write_text(text, encoding="utf-8")
    constraints.write_text(f"{constraints.read_text(encoding='utf-8')}six==1.0\n", encoding="utf-8")
    assert (constrained := noxfile.digest_of_installed(tmp_path)) != before
    with (tmp_path / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("six==1.0\n")
    assert noxfile.digest_of_installed(tmp_path) not in (before, constrained)


class Installing(Session):
    """A session that notes what it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[str] = []

    def run(self, *command: str, **_: object) -> None:
        self.commands.append(" ".join(command[1:]))


def test_everything_but_torch_is_installed_by_its_hash(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is named for torch gives torch alone: no other package can be put in another's place there."""
    monkeypatch.setenv("BENCH_TORCH_INDEX", "https://example.invalid/cpu")
    session = Installing()
    noxfile.install(session)
    pip = "-m pip install -q"
    assert session.commands[1:] == [
        f"{pip} --require-hashes --no-deps -r requirements.lock",
        f"{pip} -c constraints.txt --index-url https://example.invalid/cpu torch",
        f"{pip} --no-deps --no-build-isolation -e .",
    ]


def test_every_test_is_run_by_one_session(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that `nox` runs: what `tests` leaves out is run by the session of that name."""
    ran: dict[str, str] = {}

    def run(session: Session, *arguments: str) -> None:
        ran.setdefault(name, arguments[arguments.index("-m", 1) + 1])

    monkeypatch.setattr(noxfile, "run", run)
    for name in sorted({*noxfile.nox.options.sessions} - {"lint", "types"}):
        getattr(noxfile, name)(Session())
    left_out = ran.pop("tests").removeprefix("not alone and not ").split(" and not ")
    assert sorted(left_out) == sorted(ran) == sorted(ran.values())


@pytest.mark.parametrize("ended", [0, 1, 2, 3, 130, "Ctrl-C"])
def test_a_sweep_is_reported_where_something_is_stored(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, ended: int | str
) -> None:
    """Where all went well or some cells failed; after an interrupt the last line is the one that says how to go on."""
    ran: list[str] = []

    def run(session: Session, *arguments: str, **_: object) -> None:
        ran.append(arguments[1])
        if arguments[1] == "bench" and ended == "Ctrl-C":
            raise KeyboardInterrupt
        if arguments[1] == "bench" and ended:
            raise CommandFailed(f"Returned code {ended}")

    monkeypatch.setattr(noxfile, "run", run)
    if ended:
        with pytest.raises((CommandFailed, KeyboardInterrupt)):
            noxfile.sweep(Session())
    else:
        noxfile.sweep(Session())
    assert ran == (["bench", "analysis"] if ended in (0, 1) else ["bench"])
