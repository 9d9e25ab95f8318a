"""What is declared is used: every package that pyproject.toml requires or tells mypy of is imported somewhere."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from bench.commands import doctor

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imported() -> set[str]:
    """The top-level names that our packages import anywhere."""
    names = set()
    for package in ("kernels", "bench", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.partition(".")[0])
    return names


def plain(name: str) -> str:
    """A package's name without its version, as PyPI compares names."""
    found = re.match(r"[\w.-]+", name)
    assert found is not None, name
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_every_dependency_is_imported() -> None:
    brought = importlib.metadata.packages_distributions()
    used = {plain(package) for name in imported() for package in brought.get(name, [])}
    assert {plain(one) for one in PYPROJECT["project"]["dependencies"]} - used == set()


def test_every_import_is_declared() -> None:
    """What another package happens to bring may be gone with its next version."""
    brought = importlib.metadata.packages_distributions()
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    declared = {plain(one) for group in (PYPROJECT["project"]["dependencies"], *extras) for one in group}
    ours = {"kernels", "bench", "analysis"}
    for name in sorted(imported() - sys.stdlib_module_names - ours):
        packages = {plain(package) for package in brought.get(name, [])}
        # cupy comes under a name for each CUDA; of what is not here nothing is known
        assert not packages or packages & declared or name == "cupy", f"{name} of {packages}"


def test_mypy_is_told_only_of_what_is_imported() -> None:
    told = {name.removesuffix(".*") for one in PYPROJECT["tool"]["mypy"]["overrides"] for name in one["module"]}
    assert told - imported() == set()


def test_the_doctor_looks_for_declared_packages_only() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    declared = [plain(one) for group in (PYPROJECT["project"]["dependencies"], *extras) for one in group]
    assert [one for one in doctor.PACKAGES if not any(name.startswith(one) for name in declared)] == []


def locked() -> list[tuple[Requirement, int]]:
    """What requirements.lock names, each with how many hashes it has."""
    found: list[tuple[Requirement, int]] = []
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith("    --hash=sha256:"):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif line and not line.startswith("#"):
            found.append((Requirement(line.removesuffix("\\")), 0))
    return found


def declared() -> list[Requirement]:
    """What the package and its extra dev require, and what builds it."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    groups = [PYPROJECT["project"]["dependencies"], *(extras[name] for name in ("dev", "compiler", "notebooks", "ray"))]
    return [Requirement(one) for group in (*groups, extras["slurm"], ["setuptools>=77"]) for one in group]


def test_everything_is_locked_with_hashes() -> None:
    assert len(locked()) > 150 and all(hashes for _, hashes in locked())
    assert {plain(one.name) for one, _ in locked()}.isdisjoint({"torch", "triton"}), "these come as the machine has it"


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_is_declared_is_locked_at_a_version_that_is_allowed(system: str, python: str) -> None:
    """On every platform each package stands there once; `nox -s lock` writes it anew."""
    machine: dict[str, str] = {**default_environment(), "sys_platform": system, "python_version": python}  # type: ignore[dict-item]
    machine |= {"python_full_version": f"{python}.4", "platform_machine": "x86_64"}
    here = [one for one, _ in locked() if one.marker is None or one.marker.evaluate(machine)]
    names = [plain(one.name) for one in here]
    assert len(names) == len(set(names))
    versions = {plain(one.name): str(one.specifier).removeprefix("==") for one in here}
    for one in declared():
        asked = one.marker is None or one.marker.evaluate(machine)
        if asked and plain(one.name) not in ("torch", "block-sparse-bench"):
            assert one.specifier.contains(versions.get(plain(one.name), "0"), prereleases=True), one


def test_what_is_constrained_is_locked_so() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line.partition("#")[0]) for line in lines if line and not line.startswith("#")]
    versions = {plain(one.name): one.specifier for one, _ in locked()}
    assert [one for one in wanted if plain(one.name) != "torch" and versions[plain(one.name)] != one.specifier] == []
