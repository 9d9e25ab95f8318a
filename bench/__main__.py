"""The command line: list, plan, run, show, doctor, campaign, tune. Flags say where and how to run; what is measured stands in sweep files.

Every command imports what it needs itself, so that a bad sweep file is refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench import options
from bench.options import BAD_INPUT, ending

ENVIRONMENT, INTERRUPTED = 3, 130

app = typer.Typer(
    help="Measure block-sparse networks: a sweep file in, result tables out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="a sweep of bench/sweeps, or a path to a .toml file")]
Results = Annotated[
    Path,
    typer.Option(parser=options.folder("--results"), metavar="FOLDER", help="folder that holds one folder a sweep"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        parser=options.count("--workers"),
        metavar="COUNT",
        help="training cells side by side; default: as many as fit the cores",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(parser=options.seconds("--timeout", 1), metavar="SECONDS", help="seconds a cell may take, 1 or more"),
]
Retry = Annotated[bool, typer.Option("--retry", help="also run again every stored cell that did not end ok")]
CheckpointSeconds = Annotated[
    float,
    typer.Option(
        parser=options.seconds("--checkpoint-seconds"),
        metavar="SECONDS",
        help="seconds between two checkpoints of a cell that trains; it goes on from the last",
    ),
]
WaitQuiet = Annotated[
    float,
    typer.Option(
        parser=options.seconds("--wait-quiet"),
        metavar="SECONDS",
        help="seconds to wait for a machine that is busy with other work, before anything is timed",
    ),
]

Names = Annotated[list[str], typer.Argument(help="sweeps of bench/sweeps, or paths to .toml files")]
Budget = Annotated[
    float,
    typer.Option(
        parser=options.seconds("--budget", 1),
        metavar="SECONDS",
        help="seconds for all, 1 or more; no cell begins that will not fit",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        parser=options.one_of("--device", "cuda", "cpu"),
        metavar="cuda|cpu",
        help="cells of which device; cpu runs those of the CPU the same way",
    ),
]

HERE = Path("results")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Expected errors become one line on standard error and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        raise ending("interrupted", INTERRUPTED) from None
    except ValueError as error:
        from bench.sweep import SweepError

        if not isinstance(error, SweepError):
            raise
        raise ending(str(error), BAD_INPUT) from None


@contextmanager
def _environment_errors() -> Iterator[None]:
    from bench.parquet import DamagedError
    from bench.run import UnusableError
    from bench.store import LockedError
    from bench.validation import NewerError
    from kernels.resources import ResourceError

    try:
        yield
    except (UnusableError, LockedError, DamagedError, NewerError, ResourceError) as error:
        raise ending(str(error), ENVIRONMENT) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ending(f"{where}{error.strerror or error}", ENVIRONMENT) from None
    except ImportError as error:
        why = (str(error).splitlines() or ["no reason given"])[0]
        raise ending(f"{error.name or 'a package'} cannot be imported here: {why}", ENVIRONMENT) from None


@app.command("list")
def list_() -> None:
    """List the sweeps that come with the suite, and the names sweep files can use."""
    with _one_line_errors():
        from bench.settings import REGISTRIES
        from bench.sweep import load, names

        for name in names():
            sweep = load(name)
            print(f"{name:<20} {len(sweep.cells):>4} cells  {sweep.description}")
        print()
        for noun, registry in REGISTRIES.items():
            print(f"{noun:<20} {', '.join(registry.names())}")


@app.command()
def plan(name: Name, results: Results = HERE, workers: Workers = None, retry: Retry = False) -> None:
    """Say what a sweep has to run, what is stored already and how long it will take; change nothing."""
    with _one_line_errors():
        from bench.sweep import load

        sweep = load(name)
        with _environment_errors():
            from bench.run import make_plan

            print("\n".join(make_plan(sweep, results, retry).lines(workers)))


@app.command()
def run(
    name: Name,
    results: Results = HERE,
    workers: Workers = None,
    timeout: Timeout = 3600.0,
    retry: Retry = False,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    wait_quiet: WaitQuiet = 0.0,
) -> None:
    """Run every cell of a sweep that is not stored yet; a second run goes on where the first ended."""
    with _one_line_errors():
        from bench.sweep import load

        sweep = load(name)
        with _environment_errors():
            from bench.run import run_sweep

            status = run_sweep(
                sweep, results, workers, timeout, retry, checkpoint_seconds=checkpoint_seconds, wait_quiet=wait_quiet
            )
    raise typer.Exit(status)


@app.command()
def show(name: Name, results: Results = HERE) -> None:
    """Show the stored cells of a sweep by status, with their key figures."""
    with _one_line_errors():
        from bench.sweep import load

        sweep = load(name)
        with _environment_errors():
            from bench.run import make_plan
            from bench.show import print_cells

            print_cells(make_plan(sweep, results))


@app.command()
def doctor() -> None:
    """Say what works on this machine: compiler, backends, GPU, data sets; and why the rest does not."""
    with _one_line_errors(), _environment_errors():
        from bench.doctor import findings

        for what, how in findings():
            print(f"{what:<18} {how}")


@app.command()
def campaign(
    names: Names,
    out: Annotated[
        Path,
        typer.Option(
            parser=options.folder("--out"),
            metavar="FOLDER",
            help="folder that the tables are written to, and continued from",
        ),
    ],
    budget: Budget,
    device: Device = "cuda",
    resume_from: Annotated[
        Path | None,
        typer.Option(
            parser=options.folder("--resume-from", existing="the --out of an earlier campaign"),
            metavar="FOLDER",
            help="the --out of an earlier campaign, to continue from",
        ),
    ] = None,
    timeout: Timeout = 120.0,
    checkpoint_mib: Annotated[
        float,
        typer.Option(
            parser=options.mebibytes("--checkpoint-mib"),
            metavar="MIB",
            help="keep checkpoints of cells that train in OUT, of up to so many MiB each; 0: none",
        ),
    ] = 0.0,
    together: Annotated[
        int,
        typer.Option(
            parser=options.count("--together"),
            metavar="COUNT",
            help="training cells side by side on the one device; timings run alone",
        ),
    ] = 1,
    wait_quiet: WaitQuiet = 0.0,
) -> None:
    """Check every kernel on a GPU, then time and train sweeps, most important cells first, until the budget is spent; resumable."""
    with _one_line_errors():
        from bench.sweep import load_all

        sweeps = load_all(names)
        with _environment_errors():
            from bench.campaign import run_campaign

            status = run_campaign(
                sweeps,
                out,
                budget,
                device,
                resume_from,
                timeout,
                checkpoint_mib=checkpoint_mib,
                together=together,
                wait_quiet=wait_quiet,
            )
    raise typer.Exit(status)


@app.command()
def tune(
    names: Names,
    out: Annotated[
        Path,
        typer.Option(
            parser=options.file("--out"),
            metavar="FILE",
            help="JSON file that the winners are written to; tune.parquet is beside it",
        ),
    ],
    budget: Budget,
    device: Device = "cuda",
    timeout: Timeout = 300.0,
) -> None:
    """Time every variant of our kernels for the products of sweeps, and write which is the fastest; resumable."""
    with _one_line_errors():
        from bench.sweep import load_all

        sweeps = load_all(names)
        with _environment_errors():
            from bench.tuner import run_tuner

            status = run_tuner(sweeps, out, budget, device, timeout)
    raise typer.Exit(status)


@app.command()
def columns(
    results: Results = HERE,
    schema: Annotated[
        Path | None,
        typer.Option(
            parser=options.file("--schema"),
            metavar="FILE",
            help="also write them for the analysis: analysis/columns.json",
        ),
    ] = None,
) -> None:
    """Write README.md, the meaning of every column of the tables, into the results folder."""
    with _environment_errors():
        from bench.columns import documentation, machine_readable
        from bench.parquet import publish

        results.mkdir(parents=True, exist_ok=True)
        publish(results / "README.md", documentation().encode())
        if schema is not None:
            publish(schema, machine_readable().encode())


def main() -> None:
    """The command line as a process of its own."""
    from bench.output import outlive_readers

    outlive_readers()
    app()


if __name__ == "__main__":
    main()
