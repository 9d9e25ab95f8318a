"""The layers of the house: every module has a rung, and imports only rungs strictly below its own.

A package listed with a trailing `.*` is one stranger to the others on its rung; inside it, modules may import each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUNGS: list[list[str]] = [
    ["kernels.resources", "kernels.rounding"],
    ["kernels.folders"],
    [
        "kernels.registry",
        "kernels.tracing",
        "kernels.operands",
        "kernels.autocast",
        "kernels.openmp",
        "kernels.cache",
        "kernels.driver",
        "kernels.backends.buffers",
    ],
    ["kernels.compiler", "kernels.backends.tuned"],
    ["kernels.blockmask", "kernels.index", "kernels.backends.cuda_nvrtc"],
    ["kernels.bsr"],
    ["kernels.backends.cuda_kernel"],
    [
        "kernels.problem",
        "kernels.backends.native_library",
        "kernels.backends.cuda_plan",
        "kernels.backends.cuda_lstm_plan",
    ],
    ["kernels.backends.cuda_variants", "kernels.backends.cuda_lstm_tiles"],
    [
        "kernels.lstm_problem",
        "kernels.backends.native_products",
        "kernels.backends.cuda_products",
        "kernels.backends.cuda_wgmma",
        "kernels.backends.cuda_lstm_pass",
    ],
    ["kernels.backends.native_lstm", "kernels.backends.cuda_wgmma_sdd", "kernels.backends.cuda_recurrence"],
    ["kernels.backends.cuda_rungs"],
    ["kernels.backends.cuda_operators"],
    ["kernels.backends.cuda_lstm_operator", "kernels.products"],
    ["kernels.backends.cuda_lstm_tape"],
    ["kernels.ops"],
    ["kernels.backends.*"],
    ["kernels.check"],
    ["bench.moments", "bench.modes", "bench.precision"],
    [
        "bench.cells",
        "bench.schema",
        "bench.provenance",
        "bench.pairs",
        "bench.gpu",
        "bench.clocks",
        "bench.quiet",
        "bench.causes",
        "bench.output",
    ],
    ["bench.parquet"],
    ["bench.rules"],
    ["bench.validation"],
    ["bench.store", "bench.tables", "bench.estimate", "bench.data.*", "bench.models.*", "bench.pruning.*"],
    [
        "bench.settings",
        "bench.columns",
        "bench.breakeven",
        "bench.optimizer",
        "bench.selection",
        "bench.evaluation",
        "bench.emptied",
        "bench.memory",
        "bench.checkpoint",
    ],
    ["bench.paths"],
    ["bench.probes", "bench.meter"],
    ["bench.examiner", "bench.needs"],
    ["bench.sweep", "bench.train", "bench.timing", "bench.checks", "bench.progress"],
    ["bench.tuning", "bench.origin"],
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
    ["analysis.load", "analysis.theory", "analysis.style", "analysis.stats", "analysis.published", "analysis.output"],
    ["analysis.compare", "analysis.variants"],
    ["analysis.realised", "analysis.tradeoff", "analysis.awd_lines"],
    ["analysis.findings", "analysis.panels"],
    [
        "analysis.figures",
        "analysis.accuracy_figures",
        "analysis.training_figures",
        "analysis.theory_figures",
        "analysis.measured_figures",
        "analysis.realised_figures",
        "analysis.tables",
        "analysis.realised_tables",
        "analysis.study",
    ],
    ["analysis.awd"],
    ["analysis.awd_equal"],
    ["analysis.awd_tables", "analysis.awd_goals"],
    ["analysis.goals", "analysis.sections"],
    ["analysis.report", "analysis.execution", "analysis.gpu_goals"],
    ["analysis.__main__"],
]

PACKAGES = ("kernels", "bench", "analysis")
ONLY_IN = {
    "cupy": ("kernels.backends.",),
    "pyarrow": (
        "bench.schema",
        "bench.parquet",
        "bench.rules",
        "bench.validation",
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
