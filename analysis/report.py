"""The HTML report of a sweep: one file without scripts or requests, so that it can be mailed, printed and kept."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from analysis import compare, runs, study, tables
from analysis.awd import answers as awd
from analysis.awd import tables as awd_tables
from analysis.figures import accuracy as accuracy_figures
from analysis.figures import methods as methods_figures
from analysis.figures import products as product_figures
from analysis.figures import realised as realised_figures
from analysis.figures import storage as storage_figures
from analysis.figures import style
from analysis.figures import training as training_figures
from analysis.findings import findings
from analysis.load import LEFT_OUT, TABLES, records
from analysis.reporting.sections import DOTS_PER_INCH, Section, sections
from analysis.study import Study

PROVENANCE = ("device_name", "cores", "threads_used", "workers", "os", "driver", "python", "torch", "blas", "commit")
NOUNS = {"gemm": "product timings", "lstm": "layer timings", "train": "training runs", "storage": "storage cells"}


def write_report(found: Study | str | os.PathLike[str]) -> Path:
    """Write report.html into the folder of a sweep and return its path.

    BadInputError with one line where the folder holds no table or a damaged one.
    """
    found = found if isinstance(found, Study) else study.read(found)
    return write_page(
        found, found.name, findings(*map(found.main, TABLES)), list(sections(found)), missing(found), caveats(found)
    )


def write_page(
    found: Study, name: str, findings: list[str], sections: list[Section], missing: list[str], caveats: list[str]
) -> Path:
    """Write report.html with these sentences and sections, and with the cells' failures and provenance."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.jinja").render(
        name=name,
        accent=style.BLUE,
        dates=dates(found),
        counts=counts(found),
        findings=findings,
        sections=sections,
        missing=missing,
        failures=failed_cells(found),
        caveats=caveats,
        provenance=provenance(found),
        nouns=[NOUNS[name] for name in found.tables],
    )
    return _write(found.folder / "report.html", text.encode("utf-8", "replace"))  # a folder's name may be no UTF-8


def write_csv(found: Study) -> list[Path]:
    """Write TABLE.csv beside each table, a line for each cell: its single values, of timed ones the speedup too.

    Of training runs those that have finished. Lists, as of samples and norms, are in the tables alone.
    """
    paths = []
    for name in found.tables:
        runs = [part.runs for part in found.parts(name)] if name == "train" else [found.cells(name)]
        frame = pd.concat(runs, ignore_index=True) if runs else found.tables[name].iloc[:0]
        nested = [column for column in frame if frame[column].map(lambda each: hasattr(each, "__len__")).any()]
        plain = frame.drop(columns=[column for column in nested if not frame[column].map(_is_text).any()])
        paths.append(_write(found.folder / f"{name}.csv", plain.to_csv(index=False).encode()))
    return paths


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _write(path: Path, data: bytes) -> Path:
    """Put all of a file in its place. OSError where something else lies there, as a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise FileExistsError(errno.EEXIST, f"{path.name} is {what}", str(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def write_figures(found: Study | str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Write the pictures of a README and table.md of a sweep into `out`; of an AWD-LSTM sweep awd.md too."""
    out, found = Path(out), found if isinstance(found, Study) else study.read(found)
    gemm, train, layer = found.main("gemm"), found.main("train"), found.main("lstm", over="baseline").main_layer()
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in dict(_pictures(found)).items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        written.append(_write(out / f"{name}.png", picture.getvalue()))
    table = tables.breakeven_table(gemm) if "gemm" in found.tables else tables.layer_table(layer)
    table = tables.main_table(train, gemm) if "train" in found.tables else table
    table = tables.methods_table(train) if methods_figures.shown(train) else table
    table = tables.storage_table(found.main("storage")) if [*found.tables] == ["storage"] else table
    written.append(_write(out / "table.md", (tables.to_markdown(table).rstrip() + "\n").encode()))
    role = awd.sweep_role(found.name)
    if role is not None:
        sweeps = awd.read_sweeps(role[1], found.folder.resolve().parent, found)
        parts = [f"{caption}\n\n{tables.to_markdown(table)}" for caption, table in awd_tables.every_table(sweeps)]
        written.append(_write(out / "awd.md", ("\n\n".join([*parts, *awd_tables.notes(sweeps)]) + "\n").encode()))
    return written


def _pictures(found: Study) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of what a sweep has for a README."""
    train, gemm, role = found.main("train"), found.main("gemm"), awd.sweep_role(found.name)
    if "gemm" in found.tables:
        yield "speedup", product_figures.speedup_figure(gemm.main_shape())
    if methods_figures.shown(train):
        yield "methods", methods_figures.methods_figure(train)
        yield "stored", methods_figures.stored_figure(train)
        if not train.narrowings.empty:
            yield "removal", methods_figures.removal_figure(train)
            yield "worth", methods_figures.worth_figure(train)
    elif "train" in found.tables:
        yield "perplexity", accuracy_figures.cost_figure(train)
    if "train" in found.tables and "gemm" in found.tables:
        yield "tradeoff", product_figures.tradeoff_figure(train, gemm)
    if "train" in found.tables and role is not None and role[0] == "paper":
        yield "norm_maps", training_figures.norm_maps_figure(awd.four_lines(awd.sweep(found, "paper")))
    if "lstm" in found.tables:
        yield "layer", product_figures.layer_figure(found.main("lstm", over="baseline").main_layer())
    if "storage" in found.tables:
        yield "storage", storage_figures.forms_figure(found.main("storage").main_matrix())
    if not train.gains.empty and train.rows["train_seconds"].notna().any():
        yield "integral", realised_figures.integral_steps_figure(train)
        yield "end_to_end", realised_figures.end_to_end_figure(train)


def dates(found: Study) -> str:
    """'2026-01-01' or '2026-01-01 to 2026-01-02', the days (UTC) on which cells were started."""
    days = sorted({str(start)[:10] for frame in found.tables.values() for start in frame["started_at"].dropna()})
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]])) or "no date stored"


def counts(found: Study) -> str:
    """'57 of 60 product timings and 16 of 16 training runs ended ok'."""
    words = []
    for name, frame in found.tables.items():
        bad = len(compare.failures(frame))
        total = frame["cell_id"].nunique()
        words.append(f"{total - bad} of {total} {NOUNS[name]}")
    return f"{' and '.join(words)} ended ok" if words else "no cell was run"


def missing(found: Study) -> list[str]:
    """One sentence for each table the sweep does not have, and for each that cannot be compared as one."""
    trained = {part.layer_noun for part in found.parts("train") if not part.gains.empty}
    spoken = sorted(trained | ({"LSTM layers"} if "lstm" in found.tables else set()))
    spoken += ["stored matrices"] if "storage" in found.tables else []
    speed = f"what is said about speed is of {' and '.join(spoken)}" if spoken else "nothing is said about speed"
    nouns = {
        "gemm": f"product timings: {speed}",
        "train": "training runs: nothing is said about cost",
    }
    lines = [f"This sweep has no {noun}." for name, noun in nouns.items() if name not in found.tables]
    for name in found.tables:
        parts = [part.label for part in found.parts(name)]
        if len(parts) > 1:
            lines.append(
                f"The {name} table mixes rows that cannot be compared ({'; '.join(parts)}): each part is shown apart, "
                "and the findings are about the largest one."
            )
    return lines


def failed_cells(found: Study) -> list[dict[str, str]]:
    """Every cell that is not ok: its table, the settings in which the cells differ, status and reason."""
    listed = []
    for name, frame in found.tables.items():
        settings = ("seed", *compare.SETTINGS.get(name, _TRAIN_SETTINGS))
        differing = [column for column in settings if column in frame and frame[column].nunique(dropna=False) > 1]
        for row in records(compare.failures(frame)):
            variant = [runs.variant_name(row)] if name == "train" else []
            words = ", ".join([*variant, *(f"{column} {row[column]}" for column in differing)])
            reason = "no reason stored" if pd.isna(row["reason"]) else str(row["reason"])
            listed.append({"table": name, "cell": words or row["cell_id"], "status": row["status"], "reason": reason})
    return listed


_NAMED = {"lasso", "schedule", "criterion"}  # in the variant's name already
_TRAIN_SETTINGS = tuple(column for column in (*runs.PRUNING_SETTINGS, *runs.MODEL_SETTINGS) if column not in _NAMED)


def caveats(found: Study) -> list[str]:
    """What a reader should know before quoting a number."""
    lines = [f"Left out: {line}." for frame in found.tables.values() for line in frame.attrs.get(LEFT_OUT, [])]
    if "train" in found.tables:
        lines.append(
            "Accuracies are comparable inside this report only: same text, tokens, model and epochs. "
            "They are not comparable with other papers' tables."
        )
    amdahl = "1/(1−ρ) is for the pruned product alone. What is not pruned bounds the whole network (Amdahl)"
    final = [part.runs[["ceiling", "stored_sparsity"]] for part in found.parts("train")]
    ceilings = pd.concat(final) if final else pd.DataFrame()
    if len(ceilings):
        top = max(records(ceilings), key=lambda row: float(row["ceiling"]))
        amdahl += f": at most {top['ceiling']:.2f}× for a forward pass here, at ρ = {top['stored_sparsity']:.2f}"
    lines.append(amdahl + ".")
    timed = [frame[frame["status"] == "ok"] for name, frame in found.tables.items() if name != "train"]
    if timed:
        noisy = sum(int(ok["noisy"].fillna(False).sum()) for ok in timed)
        lines.append(
            f"{noisy} of {sum(map(len, timed))} timed cells were noisy: their pairs scattered, so read their "
            "intervals, not their points."
        )
        lines.append("Timings are of this machine and these threads; another machine has another break-even.")
    return lines


def provenance(found: Study) -> list[tuple[str, list[str]]]:
    """(column, its values in each table): with what and where the cells were measured."""
    names = [*PROVENANCE, "dirty", "source_hash", "cell_seconds"]
    return [(name, [_origin(frame, name) for frame in found.tables.values()]) for name in names]


def _origin(frame: pd.DataFrame, name: str) -> str:
    if name not in frame:
        return "–"
    if name == "cell_seconds":
        seconds = frame.drop_duplicates("cell_id")[name].sum()
        return f"{seconds:.0f} in all"
    return ", ".join(sorted({str(value) for value in frame[name].dropna()} - {""})) or "–"
