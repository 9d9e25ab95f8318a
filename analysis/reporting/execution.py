"""Execute the notebooks with the interpreter that is running, whatever kernels are installed elsewhere."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from analysis.load import reference_folder

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EXPECTED = (
    "01_gemm_speedup.ipynb",
    "02_perplexity.ipynb",
    "03_tradeoff.ipynb",
    "04_measured_against_theoretical.ipynb",
    "05_awd_lstm.ipynb",
    "06_mathematics_of_pruning.ipynb",
)
TIMEOUT = 300  # seconds a cell may take


class NotebookError(Exception):
    """A notebook is missing, unexpected, or has a cell that failed; one line."""


def execute_all(
    out: str | os.PathLike[str], results: str | os.PathLike[str] | None = None, notebooks: Path = NOTEBOOKS
) -> list[Path]:
    """Execute every notebook into folder `out`; `results` is what they read in place of the reference results.

    NotebookError unless exactly the expected ones are there and every cell of each runs.
    """
    out, results = Path(out), Path(results) if results else None
    found = sorted(path.name for path in notebooks.glob("[!.]*.ipynb"))
    if found != list(EXPECTED):
        raise NotebookError(f"{notebooks}: expected {', '.join(EXPECTED)}; found {', '.join(found) or 'none'}")
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    if results or environment.get("BENCH_RESULTS"):  # a name or relative path means nothing where the notebooks lie
        environment["BENCH_RESULTS"] = str((results or reference_folder()).resolve())
    environment.pop("MPLBACKEND", None)  # pictures go into the notebook
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="notebooks-"
    ) as scratch:  # in place of a home, which may hold anything, or lack
        environment |= {"IPYTHONDIR": scratch, "JUPYTER_RUNTIME_DIR": scratch}
        return [_execute(notebooks / name, out / name, environment) for name in EXPECTED]


def _execute(source: Path, target: Path, environment: dict[str, str]) -> Path:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=TIMEOUT, km=_manager(), resources={"metadata": {"path": str(source.parent)}}
    )
    client.owns_km = True  # it ends the kernel it was given, too
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        words = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise NotebookError(f"{source.name}: {words.strip().splitlines()[0]}") from error
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    nbformat.write(notebook, partial)  # type: ignore[no-untyped-call]
    partial.replace(target)
    return target


def _manager() -> Any:
    """A kernel manager that always starts this interpreter; a kernel called python3 elsewhere is not asked."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class Here(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
            return KernelSpec(argv=command, language="python", display_name=kernel_name)

    return AsyncKernelManager(kernel_spec_manager=Here())
