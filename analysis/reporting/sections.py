"""The sections of a report: what is shown of each table, in words, pictures and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import compare, tables
from analysis.awd import answers as awd
from analysis.awd import goals as awd_goals
from analysis.awd import tables as awd_tables
from analysis.figures import accuracy as accuracy_figures
from analysis.figures import methods as methods_figures
from analysis.figures import products as product_figures
from analysis.figures import realised as realised_figures
from analysis.figures import storage as storage_figures
from analysis.figures import training as training_figures
from analysis.figures.panels import did_not_train
from analysis.load import crowds, machines, records
from analysis.runs import failed_runs
from analysis.stats import MARGIN
from analysis.study import Part, Study

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
    for gemm in found.parts("gemm"):
        yield _speed(gemm)
    for gemm in found.parts("gemm", over="op"):
        if gemm.rows["op"].nunique() > 1:
            yield _ops(gemm)
    for lstm in found.parts("lstm", over="baseline"):
        yield _layers(lstm)
    for stored in found.parts("storage"):
        yield _storage(stored)
    main, role = found.main("gemm"), awd.sweep_role(found.name)
    for train in found.parts("train"):
        yield _accuracy(train, main, beside_slides=role is None)
        if methods_figures.shown(train):
            yield _methods(train)
        if not train.narrowings.empty:
            yield _removal(train)
    if role is not None:
        yield _beside_the_slides(found, small=role[1])
    if "train" in found.tables and "gemm" in found.tables:
        yield _tradeoff(found.main("train"), main)
    for train in found.parts("train"):
        if not train.runs.empty:
            yield _over_time(train)
        if not train.gains.empty:
            yield _sparse_training(train)


def _titled(title: str, part: Part) -> str:
    return f"{title} ({part.label})" if part.label else title


def _why_nothing(part: Part, noun: str) -> str:
    """How many cells there are, and why none of them has a result: in place of empty pictures and tables."""
    often = records(failed_runs(part.rows).sort_values("runs", ascending=False, kind="stable"))
    words = "; ".join(f"{row['runs']} × {row['status']}: {row['reason']}" for row in often)
    return f"None of {part.rows['cell_id'].nunique()} {noun} has a result here: {words}."


def _ours(points: pd.DataFrame) -> str:
    """The backend that a figure of one is about: our own of the CPU where it was timed, else that which leads."""
    return "native" if "native" in set(points["backend"]) else compare.leading_backend(points) or "native"


def shown(caption: str, table: pd.DataFrame) -> tuple[str, Markup]:
    """A table as a section has it."""
    return caption, Markup(tables.to_html(table))


def _speed(gemm: Part) -> Section:
    title, noun = _titled("Speed of the products", gemm), "product timings"
    if not gemm.is_measured:
        return Section(title, _why_nothing(gemm, noun))
    pictures, absent = [], []
    for name, shape in gemm.shapes():
        if not shape.is_measured:
            absent.append(f"{name}: {_why_nothing(shape, noun)}")
            continue
        pictures += [
            _picture(
                product_figures.speedup_figure(shape),
                f"Measured speedup over dense against sparsity for {name}: a panel for each backend, a line for each "
                "block size, theory dashed. The break-even sparsities are in the table below.",
                f"{name}. Above the 1× line the block-sparse product is faster than dense; a star marks where a line "
                "crosses it. Bars are 95 % intervals, hollow markers noisy cells.",
            ),
            _picture(
                product_figures.efficiency_figure(shape),
                f"Heat maps of measured over predicted speedup for {name}: block size by sparsity, one map a backend.",
                f"{name}. Share of 1/(1−ρ) that was reached.",
            ),
        ]
    return Section(
        title,
        "Time of a dense product with the unpruned weight over the time of the block-sparse one, as pairs in one "
        "process.",
        pictures,
        [shown("Where the block-sparse product starts to be faster than dense.", tables.breakeven_table(gemm))],
        absent,
    )


def _ops(gemm: Part) -> Section:
    title = _titled("Products for training", gemm)
    if not gemm.is_measured:
        return Section(title, _why_nothing(gemm, "product timings"))
    picture = _picture(
        product_figures.op_figure(gemm, _ours(gemm.points)),
        "Measured speedup over dense against sparsity: a panel for each product shape and op, a line for each block "
        "size, theory dashed.",
        "The product, its transpose and the gradient of the weight: the three that a layer needs in training.",
    )
    return Section(title, "What one training step multiplies, op by op.", [picture])


def _layers(lstm: Part) -> Section:
    title, noun = _titled("Speed of the LSTM layer", lstm), "layer timings"
    if not lstm.is_measured:
        return Section(title, _why_nothing(lstm, noun))
    ours = _ours(lstm.points)
    pictures = [
        _picture(
            product_figures.layer_figure(layer, ours),
            f"Measured speedup of {name} against sparsity: a row of panels for each baseline, a panel for each batch, "
            "a line for each block size, theory dashed. The values are in the table below.",
            f"{name}. Over torch's own fused layer, and over the same step loop with dense products.",
        )
        for name, layer in lstm.layers()
        if layer.is_measured
    ]
    efficiency = _picture(
        product_figures.layer_efficiency_figure(lstm, backend=ours),
        "Measured over predicted speedup of the LSTM layer at 80 % sparsity against its hidden size, a panel for each "
        "batch.",
        "Share of theory that the layer reached, by hidden size and batch.",
    )
    return Section(
        title,
        "Time of a whole layer over all its steps, with unpruned weights, over that of the block-sparse one, as pairs "
        "in one process.",
        [*pictures, efficiency],
        [shown("Where the block-sparse layer starts to be faster.", tables.layer_table(lstm))],
        [f"{name}: {_why_nothing(layer, noun)}" for name, layer in lstm.layers() if not layer.is_measured],
    )


def _storage(stored: Part) -> Section:
    title, noun = _titled("Sparse storage", stored), "storage cells"
    if not stored.is_measured:
        return Section(title, _why_nothing(stored, noun))
    pictures, absent = [], []
    for name, matrix in stored.shapes():
        if not matrix.is_measured:
            absent.append(f"{name}: {_why_nothing(matrix, noun)}")
            continue
        pictures.append(
            _picture(
                storage_figures.forms_figure(matrix),
                f"How many times smaller than dense {name} is, and how many times faster its product, against the "
                "share of its zeros: a line for each form. Where the lines cross 1× is in the table below.",
                f"{name}. Left: dense bytes over those of values and indices in memory, markers measured, dashed by "
                "formula. Right: time of the dense product over that of the form's; bars are 95 % intervals, hollow "
                "markers noisy. Above the 1× line a form is smaller, or faster.",
            )
        )
    caption = (
        "Share of zeros from which on a form takes fewer bytes than dense, in memory, by formula and in a file, and "
        "multiplies faster."
    )
    return Section(
        title,
        "Bytes of a matrix by the form it is stored in, and the time of its product with a dense one, paired with that "
        "of the dense form with no element emptied (of activations: the same ones).",
        pictures,
        [shown(caption, tables.storage_table(stored))],
        [*absent, *_kept_beside(stored)],
    )


def _kept_beside(stored: Part) -> list[str]:
    """What kernels keep of a stored matrix beside its form, where they do: as a share of its bytes."""
    found = stored.points
    shares = (found["packed_bytes"] / found["memory_bytes"])[(found["packed_bytes"] > 0) & (found["nnz"] > 0)]
    if shares.empty:
        return []
    names = ", ".join(dict.fromkeys(found.loc[shares.index, "name"]))
    return [
        f"Not in these bytes: a copy of the values in the order of the kernel, kept for the next product, "
        f"{shares.min():.2f} to {shares.max():.2f} times as large as the form ({names})."
    ]


def _sparse_training(train: Part) -> Section:
    noun = train.layer_noun
    pictures = [
        _picture(
            realised_figures.integral_steps_figure(train),
            f"Time of the {noun} in a training step over the run: on the dense path, in theory, and on the path in "
            "use.",
            "Medians of interleaved pairs on batches along the run. The shaded area is the time saved; its red part "
            "was promised by theory and not reached.",
        ),
        _picture(
            realised_figures.end_to_end_figure(train),
            f"Bars of the speedup of the {noun} in theory and measured and of the whole, with Amdahl's ceiling, "
            "for training and for inference.",
            f"What the {noun} gain is worth less end to end: the rest takes the time it took (Amdahl).",
        ),
    ]
    models = (
        "The finished models: weights merged with their masks and exported in blocks. Intervals of "
        f"{train.unit.name} and of the difference are 95 % of t, the scatter pooled over all settings; equal is shown, "
        "or not, over all rows."
    )
    return Section(
        _titled("Training on the sparse path", train),
        "Theory beside what was realised. Seconds are of whole runs one after another, not interleaved; the integral "
        "and inference are interleaved pairs.",
        pictures,
        [
            shown(f"Training time, and the integral of the {noun}.", tables.training_time_table(train)),
            shown(models, tables.finished_model_table(train)),
        ],
        tables.statements(train),
    )


def _beside_the_slides(found: Study, small: bool) -> Section:
    """The tables of the AWD-LSTM sweeps: this one and those beside it in the same folder."""
    sweeps = awd.read_sweeps(small, found.folder.resolve().parent, found)
    return Section(
        "AWD-LSTM beside the slides" + (", small version" if small else ""),
        "The slides' lines, ours by their recipe and by our best one. What was not run says so.",
        tables=[shown(*each) for each in awd_tables.every_table(sweeps)],
        sentences=[*awd_goals.statements(sweeps), *awd_tables.notes(sweeps)],
    )


BESIDE_SLIDES = (
    "Beside the slides' table: another model, other data and other epochs, so compare directions, not values. Ours: of "
    "the block sizes with the most seeds that with the lowest validation perplexity."
)


COSTS = (
    "Means ± half a 95 % t-interval, and costs paired with the dense run of the same seed with theirs: each holds by "
    "itself, with the scatter pooled over all settings of the sweep. Higher and lower are decided, and equal within "
    f"{100 * MARGIN:g} % is shown, over all costs together at 5 % (Holm)."
)


def _accuracy(train: Part, gemm: Part, beside_slides: bool) -> Section:
    title, unit = _titled("What sparsity costs", train), train.unit.name
    if train.runs.empty:
        return Section(title, _why_nothing(train, "training runs"))
    pictures = [] if methods_figures.shown(train) else [_cost_picture(train)]
    every, each = tables.main_table(train, gemm), "Every variant, block size and sparsity"
    listed = [
        shown(f"{each}: {unit}. {COSTS}", every[[*tables.SETTING, *tables.cost_columns(train)]]),
        shown(f"{each}: speedup.", every[[*tables.SETTING, *tables.SPEED]]),
    ]
    if beside_slides and train.unit.base is None:  # the slides' are of words
        listed.append(shown(BESIDE_SLIDES, awd_tables.slides_table(train, gemm)))
    return Section(
        title,
        f"{unit.capitalize()} of the same network without pruning, with block lasso, and with block lasso and pruning.",
        pictures,
        listed,
        sentences=_machines(train),
    )


def _cost_picture(train: Part) -> Picture:
    unit = train.unit.name
    return _picture(
        accuracy_figures.cost_figure(train),
        f"Test {unit} against sparsity, a line for each variant and block size. The values are in the table below.",
        f"{unit.capitalize()} after the last epoch: lower is better. Bars are 95 % t-intervals of the mean over seeds, "
        "their scatter pooled over all settings; a sweep of one seed has none. Compare settings by the costs below.",
    )


def _methods(train: Part) -> Section:
    pictures = [
        _picture(
            methods_figures.methods_figure(train),
            "Heat map of test accuracy: a row for each method, a column for each sparsity and block size. The values "
            "are in the table below.",
            "Which way to prune is the best at a block size and sparsity, and where that is not decided.",
        ),
        _picture(
            methods_figures.stored_figure(train),
            "Test accuracy against stored weights: a line for each block size, and dense networks by width.",
            "Structured against unstructured pruning, and both beside smaller dense networks of as many weights.",
        ),
    ]
    return Section(
        _titled("Ways to prune a classifier", train),
        "Test accuracy of every method; errors are compared as ratios, paired by seed.",
        pictures,
        [shown(f"Every method. {COSTS}", tables.methods_table(train))],
    )


def _removal(train: Part) -> Section:
    picture = _picture(
        methods_figures.removal_figure(train),
        "Bars of the units that are live, and inference over dense with and without the others.",
        "Units that nothing reads, or that stay as they are, are removed; the network computes the same.",
    )
    return Section(
        _titled("Dead units", train),
        "A block-sparse layer is often a narrower one: what finishing a model removes beside its empty blocks.",
        [picture, *([_worth(train)] if methods_figures.shown(train) else [])],
        [shown("Before and after the dead units are removed.", tables.narrowed_table(train))],
    )


def _worth(train: Part) -> Picture:
    return _picture(
        methods_figures.worth_figure(train),
        "Test accuracy against bytes, and against inference over the dense network: a line for each block size.",
        "Accuracy beside what was measured of the finished models, with dense networks by width as a line.",
    )


def _machines(train: Part) -> list[str]:
    found, beside = machines(train.rows), crowds(train.rows)
    if len(found) > 1:
        on = f"{len(found)} processors ({'; '.join(found)})"
        return [f"Trained on {on}: accuracies are compared, no time is read."]
    said = "accuracies are compared, and inference as pairs in one process; no time of training is read."
    if len(beside) > 1:
        return [f"Trained {' or '.join(str(count) for count in beside)} at a time: {said}"]
    if train.rows["train_seconds"].isna().all():
        return [f"Equal runs took unequal times, for other work ran beside them: {said}"]
    return []


def _tradeoff(train: Part, gemm: Part) -> Section:
    picture = _picture(
        product_figures.tradeoff_figure(train, gemm),
        f"Test {train.unit.name} against the measured speedup of one product at the same block size and sparsity, "
        "front marked.",
        "To the right is faster, down is more accurate; no point on the front is beaten in both by another one.",
    )
    return Section("Accuracy against speed", "What a block-sparse network buys for what it costs.", [picture])


def _over_time(train: Part) -> Section:
    unit = train.unit.name
    drawn = [
        (
            training_figures.curves_figure(train),
            f"{unit.capitalize()} and sparsity after each epoch of every variant.",
            f"Training as it went: {unit}, and the sparsity that was reached.",
        ),
        (
            training_figures.integral_figure(train),
            "Predicted and measured speedup of whole training runs, with the sparsity over the epochs.",
            "The gradual-pruning integral T_D / (T_S − Σρ_t) says what training could save if empty blocks cost "
            "nothing. The dense path multiplies masked weights at dense speed and realises nothing of it.",
        ),
        (
            training_figures.norm_maps_figure(train),
            "Heat maps of the L2 norm of every block of a recurrent weight at the first, middle and last epoch.",
            "Block norms of a recurrent weight at the first, middle and last epoch: which blocks went, and when.",
        ),
    ]
    return Section(
        _titled("Training, epoch by epoch", train),
        "How the variants got there.",
        [_picture(figure, alt, caption) for figure, alt, caption in drawn],
        sentences=list(filter(None, [*did_not_train(train), *awd_tables.endings(train)])),
    )


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure as PNG in a data URI, shown at 100 pixels an inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    width, height = figure.get_size_inches()
    return Picture(uri, round(width * 100), round(height * 100), alt, caption)
