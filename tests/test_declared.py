"""What is declared is used: every package that pyproject.toml requires or tells mypy of is imported somewhere."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from bench import doctor

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
