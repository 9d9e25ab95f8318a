"""The sections of a report: what is shown of each table, in words, pictures and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import compare, realised_tables, study, tables
from analysis.awd import answers as awd
from analysis.awd import goals as awd_goals
from analysis.awd import tables as awd_tables
from analysis.figures import accuracy as accuracy_figures
from analysis.figures import measured as measured_figures
from analysis.figures import products as product_figures
from analysis.figures import realised as realised_figures
from analysis.figures import training as training_figures
from analysis.load import records, split
from analysis.realised_tables import statements
from analysis.runs import failed_runs, final_epochs
from analysis.study import Study

DOTS_PER_INCH = 150  # sharp on paper and on dense screens


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
    """A heading, a lead sentence, sentences as a list, then pictures, then (caption, HTML table) pairs."""

    title: str
    lead: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[tuple[str, Markup]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def sections(found: Study) -> Iterator[Section]:
    """What the report shows, in order; every comparable part of a table has sections of its own."""
    for label, gemm in _parts(found, "gemm"):
        yield _speed(label, gemm)
    for label, gemm in _parts(found, "gemm", over="op"):
        if gemm["op"].nunique() > 1:
            yield _ops(label, gemm)
    for label, lstm in _parts(found, "lstm", over="baseline"):
        yield _layers(label, lstm)
    main, role = found.comparable(), awd.sweep_role(found.name)
    for label, train in _parts(found, "train"):
        yield _accuracy(label, train, main.gemm, beside_slides=role is None)
    if role is not None:
        yield _beside_the_slides(found, small=role[1])
    if main.train is not None and main.gemm is not None:
        yield _tradeoff(main.train, main.gemm)
    for label, train in _parts(found, "train"):
        if not final_epochs(train).empty:
            yield _over_time(label, train)
        if statements(train):
            yield _sparse_training(label, train)


def _parts(found: Study, table: str, over: str | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    frame = found.tables.get(table)
    if frame is not None:
        yield from split(frame, table, over)


def _titled(title: str, label: str) -> str:
    return f"{title} ({label})" if label else title


def _measured_nothing(title: str, frame: pd.DataFrame, noun: str) -> Section:
    """One sentence in place of empty pictures and a table without rows."""
    return Section(title, _why_nothing(frame, noun))


def _why_nothing(frame: pd.DataFrame, noun: str) -> str:
    """How many cells there are, and why none of them has a result."""
    often = records(failed_runs(frame).sort_values("runs", ascending=False, kind="stable"))
    words = "; ".join(f"{row['runs']} × {row['status']}: {row['reason']}" for row in often)
    return f"None of {frame['cell_id'].nunique()} {noun} has a result here: {words}."


def _ours(points: pd.DataFrame) -> str:
    """The backend that a figure of one is about: our own of the CPU where it was timed, else that which leads."""
    return "native" if "native" in set(points["backend"]) else compare.leading_backend(points) or "native"


def _is_measured(frame: pd.DataFrame) -> bool:
    return bool((frame["status"] == "ok").any())


def _speed(label: str, gemm: pd.DataFrame) -> Section:
    title = _titled("Speed of the products", label)
    if not _is_measured(gemm):
        return _measured_nothing(title, gemm, "product timings")
    pictures, absent = [], []
    for name, rows in study.shapes(gemm):
        if not _is_measured(rows):
            absent.append(f"{name}: {_why_nothing(rows, 'product timings')}")
            continue
        pictures += [
            _picture(
                product_figures.speedup_figure(rows),
                f"Measured speedup over dense against sparsity for {name}: a panel for each backend, a line for each "
                "block size, theory dashed. The break-even sparsities are in the table below.",
                f"{name}. Above the 1× line the block-sparse product is faster than dense; a star marks where a line "
                "crosses it. Bars are 95 % intervals, hollow markers noisy cells.",
            ),
            _picture(
                product_figures.efficiency_figure(rows),
                f"Heat maps of measured over predicted speedup for {name}: block size by sparsity, one map a backend.",
                f"{name}. Share of 1/(1−ρ) that was reached.",
            ),
        ]
    html = Markup(tables.to_html(tables.breakeven_table(gemm)))
    return Section(
        title,
        "Time of a dense product with the unpruned weight over the time of the block-sparse one, as pairs in one process.",
        pictures,
        [("Where the block-sparse product starts to be faster than dense.", html)],
        absent,
    )


def _ops(label: str, gemm: pd.DataFrame) -> Section:
    if not _is_measured(gemm):
        return _measured_nothing(_titled("Products for training", label), gemm, "product timings")
    picture = _picture(
        measured_figures.op_figure(gemm, _ours(compare.gemm_points(gemm, over="op"))),
        "Measured speedup over dense against sparsity: a panel for each product shape and op, a line for each block size, "
        "theory dashed.",
        "The product, its transpose and the gradient of the weight: the three that a layer needs in training.",
    )
    return Section(_titled("Products for training", label), "What one training step multiplies, op by op.", [picture])


def _layers(label: str, lstm: pd.DataFrame) -> Section:
    if not _is_measured(lstm):
        return _measured_nothing(_titled("Speed of the LSTM layer", label), lstm, "layer timings")
    ours = _ours(compare.lstm_points(lstm, over="baseline"))
    pictures = [
        _picture(
            measured_figures.layer_figure(rows, ours),
            f"Measured speedup of {name} against sparsity: a row of panels for each baseline, a panel for each batch, a line "
            "for each block size, theory dashed. The values are in the table below.",
            f"{name}. Over torch's own fused layer, and over the same step loop with dense products.",
        )
        for name, rows in study.layers(lstm)
        if _is_measured(rows)
    ]
    absent = [
        f"{name}: {_why_nothing(rows, 'layer timings')}" for name, rows in study.layers(lstm) if not _is_measured(rows)
    ]
    efficiency = _picture(
        measured_figures.layer_efficiency_figure(lstm, backend=ours),
        "Measured over predicted speedup of the LSTM layer at 80 % sparsity against its hidden size, a panel for each batch.",
        "Share of theory that the layer reached, by hidden size and batch.",
    )
    return Section(
        _titled("Speed of the LSTM layer", label),
        "Time of a whole layer over all its steps, with unpruned weights, over that of the block-sparse one, as pairs in one "
        "process.",
        [*pictures, efficiency],
        [("Where the block-sparse layer starts to be faster.", Markup(tables.to_html(tables.layer_table(lstm))))],
        absent,
    )


def _sparse_training(label: str, train: pd.DataFrame) -> Section:
    pictures = [
        _picture(
            realised_figures.integral_steps_figure(train),
            "Time of the LSTM layers in a training step over the run: on the dense path, in theory, and on the path in use.",
            "Medians of interleaved pairs on batches along the run. The shaded area is the time saved; its red part was "
            "promised by theory and not reached.",
        ),
        _picture(
            realised_figures.end_to_end_figure(train),
            "Bars of the speedup of the LSTM layers in theory and measured and of the whole, with Amdahl's ceiling, for "
            "training and for inference.",
            "What the LSTM layers gain is worth less end to end: the rest takes the time it took (Amdahl).",
        ),
    ]
    times, models = realised_tables.training_time_table(train), realised_tables.finished_model_table(train)
    return Section(
        _titled("Training on the sparse path", label),
        "Theory beside what was realised. Seconds are of whole runs one after another, not interleaved; the integral and "
        "inference are interleaved pairs.",
        pictures,
        [
            ("Training time, and the integral of the LSTM layers.", Markup(tables.to_html(times))),
            (
                "The finished models: weights merged with their masks and exported in blocks.",
                Markup(tables.to_html(models)),
            ),
        ],
        statements(train),
    )


def _beside_the_slides(found: Study, small: bool) -> Section:
    """The tables of the AWD-LSTM sweeps: this one and those beside it in the same folder."""
    sweeps = awd.read_sweeps(small, found.folder.resolve().parent)
    return Section(
        "AWD-LSTM beside the slides" + (", small version" if small else ""),
        "The slides' lines, ours by their recipe and by our best one. What was not run says so.",
        tables=[(caption, Markup(tables.to_html(table))) for caption, table in awd_tables.every_table(sweeps)],
        sentences=[*awd_goals.statements(sweeps), *awd_tables.notes(sweeps)],
    )


def _accuracy(label: str, train: pd.DataFrame, gemm: pd.DataFrame | None, beside_slides: bool) -> Section:
    if final_epochs(train).empty:
        return _measured_nothing(_titled("What sparsity costs", label), train, "training runs")
    picture = _picture(
        accuracy_figures.cost_figure(train),
        "Test perplexity against sparsity, a line for each variant and block size. The values are in the table below.",
        "Perplexity after the last epoch: lower is better. Bars are 95 % t-intervals over seeds; one seed has none.",
    )
    every = tables.main_table(train, gemm)
    costs, speeds = (Markup(tables.to_html(every[[*tables.SETTING, *names]])) for names in (tables.COST, tables.SPEED))
    shown = [
        ("Every variant, block size and sparsity: perplexity.", costs),
        ("Every variant, block size and sparsity: speedup.", speeds),
    ]
    if beside_slides:
        shown.append(
            (
                "Beside the slides' table: another model, other data and other epochs, so compare directions, not values. Ours: of "
                "the block sizes with the most seeds that with the lowest validation perplexity.",
                Markup(tables.to_html(tables.slides_table(train, gemm))),
            )
        )
    return Section(
        _titled("What sparsity costs", label),
        "Perplexity of the same language model without pruning, with block lasso, and with block lasso and pruning.",
        [picture],
        shown,
    )


def _tradeoff(train: pd.DataFrame, gemm: pd.DataFrame) -> Section:
    picture = _picture(
        product_figures.tradeoff_figure(train, gemm),
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
