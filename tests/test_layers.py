"""What the import contracts of pyproject.toml do not say.

Where strangers may be imported, and that package files are empty.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = ("kernels", "bench", "analysis")
ONLY_IN = {
    "cupy": ("kernels.backends.", "kernels.cuda."),
    "pyarrow": (
        "bench.schema",
        "bench.storing.parquet",
        "bench.storing.rules",
        "bench.storing.validation",
        "bench.store",
        "bench.commands.yardsticks",
        "bench.commands.advising.tables",
        "analysis.loading.rules",
        "analysis.loading.validation",
        "analysis.load",
    ),
    "torch": ("kernels.", "bench."),
}


def modules() -> dict[str, Path]:
    """Every module of ours but the empty package files, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py":
                found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def imports(path: Path) -> list[str]:
    """Dotted names a file imports anywhere, `from a import b` as both a and a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("module", modules())
def test_strangers_stay_where_they_belong(module: str) -> None:
    for name in imports(modules()[module]):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or module.startswith(allowed), f"{module} must not import {name}"


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("kernels.")])
def test_cupy_is_imported_inside_functions(module: str) -> None:
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.split(".")[0] == "cupy" for name in names), f"{module} imports cupy at the top"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_files_are_empty(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert not path.read_text().strip(), f"{path} must import nothing"


def test_what_stands_on_both_sides_of_the_wall_is_the_same() -> None:
    """`analysis` cannot import it from `bench`: a change of one is made to the other."""
    ours, theirs = (
        (ROOT / wing / "output.py").read_text(encoding="utf-8") for wing in ("bench/engines", "analysis/reporting")
    )
    assert ours.count("`analysis.reporting.output`") == theirs.count("`bench.engines.output`") == 1
    assert ours.replace("`analysis.reporting.output`", "`bench.engines.output`") == theirs


def test_tests_have_no_package_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py")), "a package file under tests would shadow ours"


@pytest.mark.parametrize("package", ["kernels", "bench", "analysis"])
def test_tests_mirror_the_packages(package: str) -> None:
    """The tests of a wing stand in a folder of its name; at the top stand those of the line's stations and commands."""
    tests, wings = ROOT / "tests" / package, {path.parent for path in (ROOT / package).rglob("__init__.py")}
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert folders == {wing.relative_to(ROOT / package) for wing in wings}
