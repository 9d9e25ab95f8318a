"""The command line: list, plan, run, show, doctor, campaign, tune, bundle, expected, yardsticks, advise.

Flags say where and how to run; what is measured stands in sweep files.

Every command imports what it needs itself, so that a bad sweep file is refused before torch is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bench.commands.options import (
    BAD_INPUT,
    Address,
    AdviceName,
    AdviceResults,
    ApplyTo,
    AsCsv,
    AsJson,
    Background,
    Batch,
    BlockSizes,
    Budget,
    BundleOut,
    CampaignOut,
    CheckpointMib,
    CheckpointSeconds,
    Device,
    DeviceOrAuto,
    EngineName,
    ExpectedOut,
    FolderA,
    FolderB,
    GiveWay,
    Jobs,
    LentMinutes,
    Lstms,
    Minutes,
    MirrorUrl,
    MixMachines,
    Name,
    Names,
    Only,
    Pad,
    PassesOf,
    Plugin,
    Renew,
    Repair,
    Results,
    ResumeFrom,
    Retry,
    RetryBefore,
    RetryNoisy,
    Schema,
    Set,
    Shapes,
    ShardOf,
    Share,
    Slurm,
    Source,
    Sources,
    Sparsities,
    Steps,
    Threads,
    Timeout,
    Together,
    Tokens,
    TunedOut,
    WaitQuiet,
    Watch,
    Workers,
    YardsticksOut,
    ending,
)

if TYPE_CHECKING:
    from bench.engines.driver import Terms
    from bench.sweep import Sweep

ENVIRONMENT, INTERRUPTED = 3, 130
IGNORED = {  # options of run that an engine has no use for
    "local": ("--address", "--jobs", "--slurm"),
    "ray": ("--jobs", "--slurm", "--workers", "--wait-quiet"),
    "slurm": ("--address", "--shard", "--share", "--retry-before"),
}

app = typer.Typer(
    help="Measure block-sparse networks: a sweep file in, result tables out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

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
        from kernels.registry import PluginError

        if not isinstance(error, SweepError | PluginError):
            raise
        raise ending(str(error), BAD_INPUT) from None


@contextmanager
def _environment_errors() -> Iterator[None]:
    from bench.run import UnusableError
    from bench.store import LockedError
    from bench.storing.parquet import DamagedError
    from bench.storing.validation import NewerError
    from kernels.system.resources import ResourceError

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


@contextmanager
def _sweeps(names: Iterable[str], settings: Sequence[str] = (), only: Sequence[str] = ()) -> Iterator[list[Sweep]]:
    """The sweeps that a command is about, of files that are all right, altered as --set and --only say."""
    with _one_line_errors():
        from bench.sweep import altered, load_all

        sweeps = [altered(sweep, settings, only) for sweep in load_all(names)]
        with _environment_errors():
            yield sweeps


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, from its beginning to its end."""
    with _one_line_errors():
        from bench.engines.families import terminable

        with terminable():
            yield


@contextmanager
def _text_is_all() -> Iterator[None]:
    """Where a command makes nothing but what it prints, that is not lost in silence."""
    from bench.engines.output import lost_text

    yield
    if why := lost_text():
        raise ending(f"standard output: {why}", ENVIRONMENT)


@app.command("list")
def list_(json: AsJson = False, plugin: Plugin = []) -> None:  # noqa: ARG001, B006 - typer's way to say none
    """List the sweeps that come with the suite, and the names sweep files can use."""
    with _one_line_errors(), _text_is_all():
        if json:
            from bench.commands.show import listed

            print(listed())
            return
        from bench.cells import number
        from bench.sweep import REGISTRIES, load, names

        for name in names():
            sweep = load(name)
            print(f"{name:<20} {number(len(sweep.cells)):>10}  {sweep.description}")
        print()
        for noun, registry in REGISTRIES.items():
            print(f"{noun:<20} {', '.join(registry.names())}")


@app.command()
def plan(
    name: Name,
    results: Results = HERE,
    workers: Workers = None,
    retry: Retry = False,
    shard: ShardOf = "1/1",
    settings: Set = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    json: AsJson = False,
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Say what a sweep has to run, what is stored already and how long it will take; change nothing."""
    with _sweeps([name], settings, only) as (sweep,), _text_is_all():
        from bench.commands.show import planned
        from bench.run import Shard, make_plan

        plan = make_plan(sweep, results, retry, shard=Shard(*shard))
        print(planned(plan, workers) if json else "\n".join(plan.lines(workers)))


@app.command()
def run(
    name: Name,
    results: Results = HERE,
    workers: Workers = None,
    timeout: Timeout = 3600.0,
    retry: Retry = False,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    wait_quiet: WaitQuiet = 0.0,
    mix_machines: MixMachines = False,
    shard: ShardOf = "1/1",
    share: Share = False,
    engine: EngineName = "local",
    address: Address = None,
    mirror: MirrorUrl = None,
    jobs: Jobs = 1,
    slurm: Slurm = [],  # noqa: B006 - typer's way to say none
    retry_before: RetryBefore = "",
    settings: Set = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Run every cell of a sweep that is not stored yet; a second run goes on where the first ended.

    It says first whether other work keeps the processors busy: noise does not only widen intervals, it moves medians. A
    cell that cannot be trained (a text too short for its batch, more memory than there is) ends before its first step;
    one that fails after an epoch keeps its finished epochs.

    A cell that trains is put aside at every checkpoint, at the end of each epoch, and at once on SIGTERM or Ctrl-C, in
    RESULTS/SWEEP/.checkpoints, and goes on from there: bit-equal on the CPU. kill -9 costs what came after the last
    checkpoint. A checkpoint that is damaged, or was made by other sources, another torch, processor, thread count or
    text, is not used, and a line says so. What timed out, crashed, failed or ran out of memory goes on with --retry.
    """
    with _stoppable(), _sweeps([name], settings, only) as (sweep,):
        from bench.engines.driver import Terms
        from bench.engines.output import be_hasty
        from bench.engines.slurm_options import OptionError
        from bench.run import Shard, run_jobs_of, run_sweep

        be_hasty()
        terms = Terms(timeout=timeout, wait_quiet=wait_quiet)
        if mirror is not None and not mirror.strip():
            raise ending("--mirror: '' is empty; accepted: a URL", BAD_INPUT)
        given = {
            "--address": address is not None, "--jobs": jobs != 1, "--slurm": bool(slurm), "--shard": shard != (1, 1),
            "--share": share, "--retry-before": bool(retry_before), "--workers": workers is not None,
            "--wait-quiet": wait_quiet > 0,
        }  # fmt: skip
        for option in (option for option, is_given in given.items() if is_given and option in IGNORED[engine]):
            raise ending(f"{option} has no meaning with --engine {engine}", BAD_INPUT)
        if engine == "ray":
            terms = _on_ray(terms, address)
        part = Shard(*shard)
        if engine == "slurm":
            more: dict[str, Any] = {"--timeout": timeout, "--checkpoint-seconds": checkpoint_seconds}
            more |= {"--wait-quiet": wait_quiet, "--workers": workers, "--mirror": mirror}
            words = [str(word) for option, value in more.items() if value is not None for word in (option, value)]
            words += ["--mix-machines"] if mix_machines else []
            try:
                status = run_jobs_of(sweep, results, jobs, _of_slurm(slurm), words, retry)
            except OptionError as error:
                raise ending(str(error), BAD_INPUT) from None
        else:
            again = retry_before or retry
            status = run_sweep(
                sweep, results, workers, again, checkpoint_seconds, terms, mix_machines, part, share, mirror
            )
    raise typer.Exit(status)


def _of_slurm(given: list[str]) -> dict[str, str]:
    """The options of SLURM by their names; OptionError, one line, where one is none."""
    from bench.engines.slurm_options import OptionError, parsed, require_cluster

    pairs = [text.partition("=") for text in given]
    for name, equals, value in pairs:
        if not (name.isidentifier() and equals and value):
            raise OptionError(f"--slurm: {name}{equals}{value} is no option; accepted: KEY=VALUE")
    found = {name: value for name, _, value in pairs}
    require_cluster(cluster := found.get("cluster", "slurm"))
    if not {"time", "timeout_min"} & found.keys() and cluster != "local":
        raise OptionError("--slurm: no time limit is said; accepted: time=MINUTES, after which a job goes on anew")
    parsed(found)
    return found


def _on_ray(terms: Terms, address: str | None) -> Terms:
    from bench.engines.cluster import OPEN, is_open, run_on_ray

    if is_open(address):
        print(OPEN, flush=True)
    return replace(terms, engine=partial(run_on_ray, address=address), wait_quiet=None)


@app.command()
def show(
    name: Name,
    results: Results = HERE,
    watch: Watch = False,
    json: AsJson = False,
    csv: AsCsv = False,
    settings: Set = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Show the stored cells of a sweep by status, with their key figures."""
    with _sweeps([name], settings, only) as (sweep,), _text_is_all():
        from bench.commands.show import as_csv, as_json, print_cells, watch_cells
        from bench.run import make_plan
        from bench.store import Store

        if json + csv + watch > 1:
            raise ending("--json, --csv and --watch: more than one was given; accepted: one of them", BAD_INPUT)
        if json or csv:
            print((as_json if json else as_csv)(make_plan(sweep, results)))
        elif watch:
            store = Store(results / sweep.name)
            watch_cells(lambda: make_plan(sweep, results, store=store))
        else:
            print_cells(make_plan(sweep, results))


@app.command()
def merge(
    name: Name,
    sources: Sources,
    results: Results = HERE,
    mix_machines: MixMachines = False,
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Take what other folders have of a sweep into RESULTS: parts run with --shard, or what a campaign brought back."""
    with _sweeps([name]) as (sweep,):
        from bench.commands.merge import merge as merged

        for source in (source for source in sources if not source.strip()):
            raise ending(f"SOURCES: {source!r} is empty; accepted: folders of results, or URLs", BAD_INPUT)
        status = merged(sweep, sources, results, mix_machines)
    raise typer.Exit(status)


@app.command()
def fsck(
    name: Name,
    results: Results = HERE,
    repair: Repair = False,
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Check every file that is stored of a sweep; change nothing without --repair. 1 where something is damaged."""
    with _sweeps([name]) as (sweep,), _text_is_all():
        from bench.commands.fsck import check

        status = check(sweep, results / sweep.name, repair)
    raise typer.Exit(status)


@app.command()
def doctor(json: AsJson = False, plugin: Plugin = []) -> None:  # noqa: ARG001, B006
    """Say what works on this machine: compiler, backends, GPU, data sets; and why the rest does not."""
    with _one_line_errors(), _text_is_all(), _environment_errors():
        from bench.commands.doctor import as_json, findings

        if json:
            print(as_json())
            return
        for what, how in findings():
            print(f"{what:<18} {how}")


@app.command()
def campaign(
    names: Names,
    out: CampaignOut,
    budget: Budget,
    device: Device = "cuda",
    resume_from: ResumeFrom = None,
    timeout: Timeout = 120.0,
    checkpoint_mib: CheckpointMib = 0.0,
    together: Together = 1,
    wait_quiet: WaitQuiet = 0.0,
    give_way: GiveWay = False,
    background: Background = False,
    mix_machines: MixMachines = False,
    renew: Renew = False,
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Time and train sweeps on a GPU, most important cells first, each kernel checked before; a budget; resumable.

    OUT holds few files, each with its checksum. check.parquet says how each kernel's check ended; a kernel that it
    found wrong is not timed, and one whose check was cut short (--timeout, a crash) waits until the check is made
    again. The next call with the same --out goes on, or with another one and --resume-from.

    Cells that train run too, --together of them side by side (the column workers says so, since it lengthens their
    seconds). With --checkpoint-mib a cell that will not fit is begun, put aside in OUT/.checkpoints when the time is
    up, one file, and goes on in the next call. A checkpoint above that size is not kept, and a line says so: weights
    and Adam's moments take 12 bytes a parameter, so 16 MiB hold a model of about 1.3 million parameters. A run taken up
    from its checkpoint repeats itself to the digit only where torch's algorithms are deterministic, which they need not
    be on a GPU.
    """
    with _sweeps(names) as sweeps:
        from bench.commands.campaign import run_campaign
        from bench.engines import background as behind
        from bench.engines.driver import Terms
        from bench.engines.output import be_hasty

        be_hasty()
        if background:
            log = out / "log.txt"
            rest = [each for each in sys.argv[1:] if each not in ("--background", "--give-way")]
            number = behind.detach([*rest, "--give-way"], log)
            print(f"the campaign goes on in the background as process {number}, and says in {log} how far it is")
            return
        if give_way:
            behind.give_way()
        terms = Terms(timeout=timeout, together=together, wait_quiet=wait_quiet)
        status = run_campaign(sweeps, out, budget, device, resume_from, checkpoint_mib, terms, mix_machines, renew)
    raise typer.Exit(status)


@app.command()
def tune(
    names: Names,
    out: TunedOut,
    budget: Budget,
    device: Device = "cuda",
    timeout: Timeout = 300.0,
    plugin: Plugin = [],  # noqa: ARG001, B006
) -> None:
    """Time every variant of our kernels for the products of sweeps, and write which is the fastest; resumable."""
    with _sweeps(names) as sweeps:
        from bench.commands.campaign import run_tuner
        from bench.engines.driver import Terms
        from bench.engines.output import be_hasty

        be_hasty()
        status = run_tuner(sweeps, out, budget, device, Terms(timeout=timeout))
    raise typer.Exit(status)


@app.command()
def bundle(names: Names, out: BundleOut = HERE / "gpu", minutes: LentMinutes = 30.0) -> None:
    """Make the folder that goes along to a GPU without a network, and print the commands to run there.

    OUT gets wheels that the machine may lack, our kernels compiled (where NVRTC is here), and setup.sh. It stands
    inside the checkout, which is copied with it, git or no git.
    """
    with _sweeps(names) as sweeps, _text_is_all():
        from bench.commands.bundle import make

        try:
            found = make(sweeps, out, minutes=minutes)
        except ValueError as error:
            raise ending(str(error), ENVIRONMENT) from None
        print("then, on the GPU, each with $OUT an empty folder:")
        for number, command in enumerate(found, 1):
            print(f"{number}. {command}")


@app.command()
def expected(out: ExpectedOut = Path("analysis/goals/expected.json")) -> None:
    """Estimate what our CUDA kernels will reach, by their plans and a model of a GPU: no measurement, and never a row.

    The analysis shows OUT beside the goals, as expected. To be written anew after a change to the plans.
    """
    with _one_line_errors(), _environment_errors():
        from bench.commands.expected import estimates, write

        found = list(estimates())
        write(out, found)
        for each in found:
            low, high = each.longest_first
            print(f"block {each.block_size}, sparsity {each.sparsity:g}: {low:.2f} to {high:.2f} of theory")


@app.command()
def yardsticks(names: Names, out: YardsticksOut = HERE / "yardsticks") -> None:
    """Count n-grams of the texts of sweeps: what word frequencies, bigrams and longer ones reach where networks stand.

    OUT/yardsticks.parquet is what the analysis draws as lines in its accuracy figures, for sweeps in the folder beside
    OUT. A text that is there already is not counted again.
    """
    with _sweeps(names) as sweeps:
        from bench.commands.yardsticks import compute
        from bench.data.corpus import DataError

        try:
            compute(sweeps, out)
        except DataError as error:
            raise ending(str(error), ENVIRONMENT) from None


@app.command()
def advise(
    source: Source = "",
    shape: Shapes = [],  # noqa: B006 - typer's way to say none, as below
    lstm: Lstms = [],  # noqa: B006
    tokens: Tokens = 128,
    batch: Batch = 20,
    steps: Steps = 35,
    passes: PassesOf = "forward",
    minutes: Minutes = 5.0,
    block_size: BlockSizes = [],  # noqa: B006
    sparsity: Sparsities = [],  # noqa: B006
    device: DeviceOrAuto = "auto",
    threads: Threads = 0,
    pad: Pad = False,
    name: AdviceName = "",
    results: AdviceResults = HERE,
    mix_machines: MixMachines = False,
    retry: RetryNoisy = False,
    json: AsJson = False,
    apply: ApplyTo = None,
) -> None:
    """Say from which sparsity on, and in which blocks, a model is worth being block-sparse on this machine.

    Each layer that can be is timed, dense beside block-sparse in pairs, as the cells of a sweep are, within --minutes;
    a factory that returns (module, example inputs) has the whole model timed, too. What is stored in
    RESULTS/advise/NAME is never measured again. Of a file nothing is executed; a factory is your own code. The answer
    is shown, and written as report.html there: `python -m analysis advice NAME` shows it again.
    """
    with _stoppable(), _advice_errors(), _environment_errors():
        from bench.commands import advise as adviser
        from bench.commands.campaign import require_device
        from bench.engines.output import be_hasty

        be_hasty()
        if device != "cpu":
            device = _device(device)
        require_device(device)
        which = ("forward", "training") if passes == "both" else (passes,)
        sizes = tuple(dict.fromkeys(block_size)) or adviser.BLOCK_SIZES
        sparsities = tuple(dict.fromkeys(sparsity)) or adviser.SPARSITIES
        asked = adviser.Asked(
            source, shape, lstm, tokens, batch, steps, which, minutes, sizes, sparsities, device, threads, pad, name,
            results, mix_machines, retry,
        )  # fmt: skip
        if apply is not None:
            print(adviser.apply(asked, apply))
            return
        with redirect_stdout(sys.stderr) if json else nullcontext():
            status = adviser.measure(asked, adviser.look_at(asked))
        if status != INTERRUPTED:
            status = adviser.answer(asked, json) or status
    raise typer.Exit(status)


@app.command()
def compare(a: FolderA, b: FolderB, results: Results = HERE, json: AsJson = False) -> None:
    """Set two folders of results side by side, as of two machines, commits or backends: what is decided, and a page.

    Cells are paired by their settings, all but one that the folders differ in as a whole, as their backend. Compared
    are speedups over dense, and perplexities by seed; on one GPU times too. Unlike things are refused in one line.
    """
    with _environment_errors():
        from bench.commands.analysed import analysed

        where = [] if results == HERE else ["--results", str(results)]
        status = analysed("compare", a, b, *where, *(["--json"] if json else []))
    raise typer.Exit(status)


@contextmanager
def _advice_errors() -> Iterator[None]:
    from bench.commands.advising.layers import AdviceError

    try:
        yield
    except AdviceError as error:
        raise ending(str(error), BAD_INPUT) from None


def _device(device: str) -> str:
    """That named, or where there is a GPU that one."""
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
def columns(
    results: Results = HERE,
    schema: Schema = None,
) -> None:
    """Write README.md, the meaning of every column of the tables, into the results folder."""
    with _environment_errors():
        from bench.schema import documentation, machine_readable
        from bench.storing.parquet import publish, require_file

        for target in (results / "README.md", schema):
            if target is not None:
                require_file(target)
        results.mkdir(parents=True, exist_ok=True)
        publish(results / "README.md", documentation().encode())
        if schema is not None:
            publish(schema, machine_readable().encode())


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from importing pandas, half a second in which Ctrl-C is lost.

    It does so where it can, for whatever is made of Python lists.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if fullname == "pandas":
            raise ModuleNotFoundError("not needed here", name=fullname)


def main() -> None:
    """The command line as a process of its own."""
    from bench.engines.output import outlive_readers

    outlive_readers()
    sys.meta_path.insert(0, _WithoutPandas())
    app()


if __name__ == "__main__":
    main()
