"""The HTML report of a sweep: one file without scripts or requests, so that it can be mailed, printed and kept."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import compare, figures, study, tables, training_figures, variants
from analysis.load import records, split
from analysis.study import Study

DOTS_PER_INCH = 150  # sharp on paper and on dense screens
PROVENANCE = ("device_name", "cores", "threads_used", "workers", "os", "driver", "python", "torch", "blas", "commit")


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; `alt` is for who cannot see it, `caption` says how to read it."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, a lead sentence, then pictures, then (caption, HTML table) pairs."""

    title: str
    lead: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[tuple[str, Markup]] = field(default_factory=list)


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a sweep and return its path.

    ValueError with one line where the folder holds no table or a damaged one.
    """
    found = study.read(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main = found.comparable()
    text = environment.get_template("report.html.jinja").render(
        name=found.name,
        dates=dates(found),
        counts=counts(found),
        findings=tables.findings(main.train, main.gemm),
        sections=list(sections(found)),
        missing=missing(found),
        failures=failed_cells(found),
        caveats=caveats(found),
        provenance=provenance(found),
    )
    path = folder / "report.html"
    partial = folder / f".report.html.{os.getpid()}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Write the pictures of a README (speedup, perplexity, tradeoff) and table.md into `out`: what the sweep has of them."""
    _, train, gemm, _ = study.read(folder).comparable()
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    if gemm is not None:
        drawn["speedup"] = figures.speedup_figure(study.main_shape(gemm))
    if train is not None:
        drawn["perplexity"] = training_figures.perplexity_figure(train)
    if train is not None and gemm is not None:
        drawn["tradeoff"] = figures.tradeoff_figure(train, gemm)
    written = []
    for name, figure in drawn.items():
        written.append(out / f"{name}.png")
        figure.savefig(written[-1], dpi=DOTS_PER_INCH, metadata={"Software": None})
    table = tables.breakeven_table(gemm) if train is None else tables.main_table(train, gemm)
    written.append(out / "table.md")
    written[-1].write_text(tables.to_markdown(table).rstrip() + "\n", encoding="utf-8")
    return written


def sections(found: Study) -> Iterator[Section]:
    """What the report shows, in order; every comparable part of a table has sections of its own."""
    for label, gemm in _parts(found, "gemm"):
        yield _speed(label, gemm)
    main = found.comparable()
    for label, train in _parts(found, "train"):
        yield _accuracy(label, train, main.gemm)
    if main.train is not None and main.gemm is not None:
        yield _tradeoff(main.train, main.gemm)
    for label, train in _parts(found, "train"):
        yield _over_time(label, train)


def _parts(found: Study, table: str) -> Iterator[tuple[str, pd.DataFrame]]:
    frame = found.tables.get(table)
    if frame is not None:
        yield from split(frame, table)


def _titled(title: str, label: str) -> str:
    return f"{title} ({label})" if label else title


def _speed(label: str, gemm: pd.DataFrame) -> Section:
    pictures = []
    for name, rows in study.shapes(gemm):
        pictures += [
            _picture(
                figures.speedup_figure(rows),
                f"Measured speedup over dense against sparsity for {name}: a panel for each backend, a line for each "
                "block size, theory dashed. The break-even sparsities are in the table below.",
                f"{name}. Above the 1× line the block-sparse product is faster than dense; a star marks where a line "
                "crosses it. Bars are 95 % intervals, hollow markers noisy cells.",
            ),
            _picture(
                figures.efficiency_figure(rows),
                f"Heat maps of measured over predicted speedup for {name}: block size by sparsity, one map a backend.",
                f"{name}. Share of 1/(1−ρ) that was reached.",
            ),
        ]
    html = Markup(tables.to_html(tables.breakeven_table(gemm)))
    return Section(
        _titled("Speed of the products", label),
        "Time of a dense product with the unpruned weight over the time of the block-sparse one, as pairs in one process.",
        pictures,
        [("Where the block-sparse product starts to be faster than dense.", html)],
    )


def _accuracy(label: str, train: pd.DataFrame, gemm: pd.DataFrame | None) -> Section:
    picture = _picture(
        training_figures.perplexity_figure(train),
        "Test perplexity against sparsity, a line for each variant and block size. The values are in the table below.",
        "Perplexity after the last epoch: lower is better. Bars are 95 % t-intervals over seeds; one seed has none.",
    )
    return Section(
        _titled("What sparsity costs", label),
        "Perplexity of the same language model without pruning, with block lasso, and with block lasso and pruning.",
        [picture],
        [
            ("Every variant, block size and sparsity.", Markup(tables.to_html(tables.main_table(train, gemm)))),
            (
                "Beside the slides' table: another model, other data and other epochs, so compare directions, not values.",
                Markup(tables.to_html(tables.slides_table(train))),
            ),
        ],
    )


def _tradeoff(train: pd.DataFrame, gemm: pd.DataFrame) -> Section:
    picture = _picture(
        figures.tradeoff_figure(train, gemm),
        "Test perplexity against the measured speedup of one product at the same block size and sparsity, front marked.",
        "To the right is faster, down is more accurate; no point on the front is beaten in both by another one.",
    )
    return Section("Accuracy against speed", "What a block-sparse network buys for what it costs.", [picture])


def _over_time(label: str, train: pd.DataFrame) -> Section:
    drawn = [
        (
            training_figures.curves_figure(train),
            "Perplexity and sparsity after each epoch of every variant.",
            "Training as it went: perplexity, and the sparsity that was reached.",
        ),
        (
            training_figures.integral_figure(train),
            "Predicted and measured speedup of whole training runs, with the sparsity over the epochs.",
            "The gradual-pruning integral T_D / (T_S − Σρ_t) says what training could save if empty blocks cost nothing. "
            "The dense path multiplies masked weights at dense speed and realises nothing of it.",
        ),
        (
            training_figures.norm_maps_figure(train),
            "Heat maps of the L2 norm of every block of a recurrent weight at the first, middle and last epoch.",
            "Block norms of a recurrent weight at the first, middle and last epoch: which blocks went, and when.",
        ),
    ]
    return Section(
        _titled("Training, epoch by epoch", label),
        "How the variants got there.",
        [_picture(figure, alt, caption) for figure, alt, caption in drawn],
    )


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure as PNG in a data URI, shown at 100 pixels an inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    width, height = figure.get_size_inches()
    return Picture(uri, round(width * 100), round(height * 100), alt, caption)


def dates(found: Study) -> str:
    """'2026-01-01' or '2026-01-01 to 2026-01-02', the days (UTC) on which cells were started."""
    days = sorted({str(start)[:10] for frame in found.tables.values() for start in frame["started_at"].dropna()})
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]])) or "no date stored"


def counts(found: Study) -> str:
    """'57 of 60 product timings and 16 of 16 training runs ended ok'."""
    nouns = {"gemm": "product timings", "train": "training runs"}
    words = []
    for name, frame in found.tables.items():
        bad = len(compare.failures(frame))
        total = frame["cell_id"].nunique()
        words.append(f"{total - bad} of {total} {nouns[name]}")
    return f"{' and '.join(words)} ended ok" if words else "no cell was run"


def missing(found: Study) -> list[str]:
    """One sentence for each table the sweep does not have, and for each that cannot be compared as one."""
    nouns = {
        "gemm": "product timings: nothing is said about speed",
        "train": "training runs: nothing is said about cost",
    }
    lines = [f"This sweep has no {noun}." for name, noun in nouns.items() if name not in found.tables]
    for name, frame in found.tables.items():
        parts = [label for label, _ in split(frame, name)]
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
        settings = ("seed", *(compare.GEMM_SETTINGS if name == "gemm" else _TRAIN_SETTINGS))
        differing = [column for column in settings if column in frame and frame[column].nunique(dropna=False) > 1]
        for row in records(compare.failures(frame)):
            variant = [variants.variant_name(row)] if name == "train" else []
            words = ", ".join([*variant, *(f"{column} {row[column]}" for column in differing)])
            reason = "no reason stored" if pd.isna(row["reason"]) else str(row["reason"])
            listed.append({"table": name, "cell": words or row["cell_id"], "status": row["status"], "reason": reason})
    return listed


_NAMED = {"lasso", "schedule", "criterion"}  # in the variant's name already
_TRAIN_SETTINGS = tuple(
    column for column in (*variants.PRUNING_SETTINGS, *variants.MODEL_SETTINGS) if column not in _NAMED
)


def caveats(found: Study) -> list[str]:
    """What a reader should know before quoting a number."""
    lines = []
    gemm, train = found.gemm, found.train
    if train is not None:
        lines.append(
            "Perplexities are comparable inside this report only: same text, tokens, model and epochs. "
            "They are not comparable with other papers' tables."
        )
    amdahl = "1/(1−ρ) is for the pruned product alone. What is not pruned bounds the whole network (Amdahl)"
    runs = [] if train is None else [variants.runs(part) for _, part in split(train, "train")]
    ceilings = pd.concat([part[["ceiling", "stored_sparsity"]] for part in runs]) if runs else pd.DataFrame()
    if len(ceilings):
        top = max(records(ceilings), key=lambda row: float(row["ceiling"]))
        amdahl += f": at most {top['ceiling']:.2f}× for a forward pass here, at ρ = {top['stored_sparsity']:.2f}"
    lines.append(amdahl + ".")
    if gemm is not None:
        ok = gemm[gemm["status"] == "ok"]
        noisy = int(ok["noisy"].fillna(False).sum())
        lines.append(
            f"{noisy} of {len(ok)} timed cells were noisy: their pairs scattered, so read their intervals, not their points."
        )
        lines.append("Timings are of this machine and these threads; another machine has another break-even.")
    return lines


def provenance(found: Study) -> list[tuple[str, str, str]]:
    """(column, product timings, training runs): with what and where the cells were measured."""
    names = [*PROVENANCE, "dirty", "source_hash", "cell_seconds"]
    gemm, train = found.tables.get("gemm"), found.tables.get("train")
    return [(name, _origin(gemm, name), _origin(train, name)) for name in names]


def _origin(frame: pd.DataFrame | None, name: str) -> str:
    if frame is None or name not in frame:
        return "–"
    if name == "cell_seconds":
        seconds = frame.drop_duplicates("cell_id")[name].sum()
        return f"{seconds:.0f} in all"
    return ", ".join(sorted({str(value) for value in frame[name].dropna()} - {""})) or "–"
