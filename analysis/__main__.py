"""The command line of the analysis: report, advice, compare, notebooks, figures.

Each command imports what it needs itself.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

FAILED, BAD_INPUT, ENVIRONMENT = 1, 2, 3

app = typer.Typer(
    help="Turn the result tables of a sweep into a report, executed notebooks, and figures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _folder(option: str, told: str) -> Any:
    """An option that takes a folder. The empty path, as of a variable not set, would be the folder where one is."""

    def parse(given: Any) -> Path:
        if not str(given):
            raise _ending(f"{option}: '' is empty; accepted: a folder", BAD_INPUT)
        if option == "--results" and _is_file(Path(given)):  # of what is to be written the system's word is told
            raise _ending(f"{option}: {given} is a file; accepted: a folder", BAD_INPUT)
        return Path(given)

    return typer.Option(parser=parse, metavar="FOLDER", help=told)


def _is_file(path: Path) -> bool:
    """Whether a path is a file; not where the system refuses to look: what opens it says why."""
    try:
        return path.is_file()
    except OSError:
        return False


def _ending(line: str, status: int) -> typer.Exit:
    print(line, file=sys.stderr)
    return typer.Exit(status)


Name = Annotated[str, typer.Argument(help="a sweep's name, its .toml file, or a folder with its tables")]
Results = Annotated[
    Path | None,
    _folder(
        "--results",
        "folder that holds one folder a sweep; default: ./results as of bench run, then the checkout's, then "
        "results/reference",
    ),
]
Out = Annotated[Path, _folder("--out", "folder the figures go to")]
Executed = Annotated[
    Path | None,
    _folder("--out", "folder the executed copies go to; default: results/notebooks"),
]
Tables = Annotated[
    Path | None,
    _folder("--results", "folder with the tables to read; default: results/reference/wikitext2_small"),
]


def _is_no_notice(record: logging.LogRecord) -> bool:
    """Whether a message of matplotlib's is more than that it builds its cache of fonts, as once on every machine."""
    return not record.getMessage().startswith("Matplotlib is building the font cache")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can mend becomes one line on standard error, and an exit status; a fault of ours is a traceback."""
    logging.getLogger("matplotlib.font_manager").addFilter(_is_no_notice)
    shown = warnings.showwarning
    said: set[str] = set()  # a table that is read twice is told of once

    def say(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        from analysis.load import LeftOutWarning

        if not issubclass(category, LeftOutWarning):
            shown(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(message, file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = say
            yield
    except ValueError as error:
        from analysis.loading.schema import BadInputError

        if not isinstance(error, BadInputError):
            raise
        raise _ending(str(error).splitlines()[0], BAD_INPUT) from None
    except ModuleNotFoundError as error:
        raise _ending(f"{error.name} is not installed; pip install -e '.[notebooks]' brings it", ENVIRONMENT) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise _ending(f"{where}{error.strerror or error}", ENVIRONMENT) from None


Csv = Annotated[bool, typer.Option("--csv", help="also write a .csv of each table, a line for each cell")]


@app.command()
def report(name: Name, results: Results = None, csv: Csv = False) -> None:
    """Write the HTML report of a sweep, and print what was found: speed, cost, and where the report lies."""
    with _one_line_errors():
        from analysis.findings import findings
        from analysis.load import TABLES, find_folder
        from analysis.report import write_csv, write_report
        from analysis.study import read

        study = read(find_folder(name, results))
        path = write_report(study)
        speed, cost, *_ = findings(*map(study.main, TABLES))
        print(f"{speed}\n{cost}\nReport: {path}")
        for table in write_csv(study) if csv else ():
            print(f"Table: {table}")


AdviceName = Annotated[str, typer.Argument(help="the name of an advice in results/advise, or its folder")]
AsJson = Annotated[bool, typer.Option("--json", help="print it as JSON")]


@app.command()
def advice(name: AdviceName, results: Results = None, json: AsJson = False) -> None:
    """Show what python -m bench advise measured of a model, write its report, and say whether sparsity is worth it."""
    with _one_line_errors():
        from analysis.commands import advice as advising
        from analysis.commands.advising.stored import find

        found, beside = advising.advice(find(name, results))
        path = advising.write(found, beside)
        if json:
            print(advising.to_json(found, beside))
        else:
            advising.show(found, beside, path)


One = Annotated[str, typer.Argument(help="A: a sweep's name, or a folder with its tables")]
Other = Annotated[str, typer.Argument(help="B: the same of another machine, commit or backend")]
Page = Annotated[
    Path | None,
    _folder("--out", "folder that report.html is written to; default: results/compare/A-B"),
]


@app.command()
def compare(a: One, b: Other, results: Results = None, out: Page = None, json: AsJson = False) -> None:
    """Set two folders of results side by side, cell by cell: ratios with intervals, and which of them are decided."""
    with _one_line_errors():
        from analysis.commands import versus
        from analysis.load import find_folder, results_folder
        from analysis.study import read

        one, other = (read(find_folder(name, results)) for name in (a, b))
        found = versus.versus(one, other)
        path = versus.write(
            found, one, other, out or (results or results_folder()) / "compare" / f"{one.name}-{other.name}"
        )
        if json:
            print(versus.to_json(found))
        else:
            versus.show(found, path)


@app.command()
def notebooks(out: Executed = None, results: Tables = None) -> None:
    """Execute every notebook and keep the executed copies."""
    with _one_line_errors():
        from analysis.load import reference_folder, results_folder
        from analysis.reporting.execution import NotebookError, execute_all
        from analysis.study import read

        read(results or reference_folder())
        try:
            done = execute_all(out or results_folder() / "notebooks", results)
        except NotebookError as error:
            raise _ending(str(error), FAILED) from None
        print("\n".join(str(path) for path in done))


@app.command()
def figures(name: Name, out: Out, results: Results = None) -> None:
    """Write the README's pictures (speedup, perplexity, tradeoff, layer, integral, end to end) and table.md."""
    with _one_line_errors():
        from analysis.load import find_folder
        from analysis.report import write_figures

        print("\n".join(str(path) for path in write_figures(find_folder(name, results), out)))


def main() -> None:
    """The command line as a process of its own."""
    from analysis.reporting.output import outlive_readers

    outlive_readers()
    os.environ["MPLBACKEND"] = "agg"  # no screen is needed, nor a backend that the user has named
    app()


if __name__ == "__main__":
    main()
