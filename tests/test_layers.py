"""The layers of the house: every module has a rung, and imports only rungs strictly below its own.

A package listed with a trailing `.*` is one stranger to the others on its rung; inside it, modules may import each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUNGS: list[list[str]] = [
    ["kernels.system.resources", "kernels.rounding"],
    ["kernels.system.folders"],
    [
        "kernels.registry",
        "kernels.tracing",
        "kernels.operands",
        "kernels.autocast",
        "kernels.native.openmp",
        "kernels.system.cache",
        "kernels.system.driver",
        "kernels.native.buffers",
    ],
    ["kernels.system.compiler", "kernels.cuda.tuned"],
    ["kernels.blockmask", "kernels.index", "kernels.cuda.compile"],
    ["kernels.bsr"],
    ["kernels.cuda.device"],
    [
        "kernels.problem",
        "kernels.native.library",
        "kernels.cuda.mma_plan",
        "kernels.cuda.lstm_plan",
    ],
    ["kernels.cuda.mma", "kernels.cuda.lstm_tiles"],
    [
        "kernels.lstm_problem",
        "kernels.native.products",
        "kernels.cuda.mma_products",
        "kernels.cuda.wgmma",
        "kernels.cuda.lstm_pass",
    ],
    ["kernels.native.lstm", "kernels.cuda.wgmma_sdd", "kernels.cuda.recurrence"],
    ["kernels.cuda.choose"],
    ["kernels.cuda.products"],
    ["kernels.cuda.lstm", "kernels.products"],
    ["kernels.cuda.lstm_tape"],
    ["kernels.ops"],
    ["kernels.backends.*"],
    ["kernels.check"],
    ["bench.measuring.moments", "bench.measuring.modes", "bench.training.precision"],
    [
        "bench.cells",
        "bench.schema",
        "bench.measuring.machine",
        "bench.measuring.pairs",
        "bench.measuring.gpu",
        "bench.measuring.clocks",
        "bench.measuring.quiet",
        "bench.measuring.causes",
        "bench.output",
    ],
    ["bench.storing.parquet"],
    ["bench.storing.rules"],
    ["bench.storing.validation"],
    [
        "bench.store",
        "bench.storing.tables",
        "bench.engines.estimate",
        "bench.data.*",
        "bench.models.*",
        "bench.pruning.*",
    ],
    [
        "bench.settings",
        "bench.columns",
        "bench.training.breakeven",
        "bench.training.optimizer",
        "bench.training.selection",
        "bench.training.evaluation",
        "bench.pruning.emptied",
        "bench.measuring.memory",
        "bench.training.checkpoint",
    ],
    ["bench.training.paths"],
    ["bench.training.probes", "bench.training.meter"],
    ["bench.training.examiner", "bench.training.needs"],
    ["bench.sweep", "bench.train", "bench.timing", "bench.measuring.checks", "bench.engines.progress"],
    ["bench.measuring.tuning", "bench.origin"],
    ["bench.engines.*"],
    ["bench.run", "bench.doctor"],
    ["bench.show", "bench.budget", "bench.options"],
    ["bench.campaign"],
    ["bench.tuner"],
    ["bench.__main__"],
    # the parquet wall: nothing below sees anything above
    ["analysis.schema"],
    ["analysis.rules"],
    ["analysis.validation"],
    [
        "analysis.load",
        "analysis.theory",
        "analysis.figures.style",
        "analysis.stats",
        "analysis.awd.published",
        "analysis.output",
    ],
    ["analysis.compare", "analysis.runs"],
    ["analysis.realised", "analysis.tradeoff", "analysis.awd.lines"],
    ["analysis.findings", "analysis.figures.panels"],
    [
        "analysis.figures.products",
        "analysis.figures.accuracy",
        "analysis.figures.training",
        "analysis.figures.theory",
        "analysis.figures.measured",
        "analysis.figures.realised",
        "analysis.tables",
        "analysis.realised_tables",
        "analysis.study",
    ],
    ["analysis.awd.answers"],
    ["analysis.awd.equal"],
    ["analysis.awd.tables", "analysis.awd.goals"],
    ["analysis.goals.judge", "analysis.sections"],
    ["analysis.report", "analysis.execution", "analysis.goals.gpu"],
    ["analysis.__main__"],
]

PACKAGES = ("kernels", "bench", "analysis")
ONLY_IN = {
    "cupy": ("kernels.backends.",),
    "pyarrow": (
        "bench.schema",
        "bench.storing.parquet",
        "bench.storing.rules",
        "bench.storing.validation",
        "bench.store",
        "analysis.rules",
        "analysis.validation",
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


def rung_of(module: str) -> tuple[int, str]:
    """(rung, the entry that names it)."""
    for rung, entries in enumerate(RUNGS):
        for entry in entries:
            if module == entry or (entry.endswith(".*") and (module + ".").startswith(entry[:-1])):
                return rung, entry
    raise AssertionError(f"{module} has no rung: give it one in RUNGS")


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
def test_imports_only_rungs_below(module: str) -> None:
    known = modules()
    rung, entry = rung_of(module)
    for name in imports(known[module]):
        if name not in known:
            continue
        below, other = rung_of(name)
        assert other == entry or below < rung, f"{module} imports {name}, which is not below it"
        if module.startswith("analysis."):
            assert name.startswith("analysis."), f"{module} reaches through the parquet wall to {name}"


@pytest.mark.parametrize("module", modules())
def test_strangers_stay_where_they_belong(module: str) -> None:
    for name in imports(modules()[module]):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or module.startswith(allowed), f"{module} must not import {name}"


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("kernels.backends.")])
def test_cupy_is_imported_inside_functions(module: str) -> None:
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.split(".")[0] == "cupy" for name in names), f"{module} imports cupy at the top"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_files_are_empty(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert not path.read_text().strip(), f"{path} must import nothing"


def test_every_rung_entry_exists() -> None:
    names = modules()
    for entry in (entry for rung in RUNGS for entry in rung):
        assert any(rung_of(name)[1] == entry for name in names), f"RUNGS names {entry}, which does not exist"


def test_what_stands_on_both_sides_of_the_wall_is_the_same() -> None:
    """`analysis` cannot import it from `bench`: a change of one is made to the other."""
    ours, theirs = ((ROOT / package / "output.py").read_text(encoding="utf-8") for package in ("bench", "analysis"))
    assert ours.count("`analysis.output`") == theirs.count("`bench.output`") == 1
    assert ours.replace("`analysis.output`", "`bench.output`") == theirs


def test_tests_have_no_package_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py")), "a package file under tests would shadow ours"
