"""Advice on a model: the answer computed from what `python -m bench advise` measured, on the screen and as HTML."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import report, study
from analysis.commands.advising import words
from analysis.commands.advising.answers import Answer, answer, as_json
from analysis.commands.advising.references import Cost, costs
from analysis.commands.advising.stored import in_checkout, read
from analysis.commands.screen import print_table
from analysis.reporting.sections import Section, sections, shown
from analysis.study import Study

MOST_LEFT = 8  # weights that stay dense, on the screen


def advice(folder: Path) -> tuple[Answer, list[Cost]]:
    """The answer of a folder, and what sparsity has cost other networks. BadInputError as `stored.read`."""
    found = answer(read(folder))
    return found, costs(found.measured.values("block_size"))


def to_json(found: Answer, beside: list[Cost]) -> str:
    """The answer for programs, the verdicts among it."""
    others = {"note": words.OTHERS, "costs": [each._asdict() for each in beside]}
    return json.dumps({**as_json(found), "reference": others, "verdicts": words.verdicts(found)}, indent=1)


def show(found: Answer, beside: list[Cost], path: Path, console: Console | None = None) -> None:
    """Print the answer on a screen: tables first, the verdicts last, where they are seen."""
    console = console or Console(highlight=False, markup=False)
    console.print(f"{found.measured.source}: {words.head(found)}", style="bold")
    print_table(console, "Speedup of each layer over dense", words.layer_table(found))
    print_table(console, "All of them together (Amdahl), and end to end", words.whole_table(found))
    print_table(
        console, "Outputs of the whole model: against masked dense; cosine with unpruned", words.output_table(found)
    )
    print_table(
        console,
        "Training time over a run in which sparsity rises (interpolated; end to end where that was timed)",
        words.integral_table(found),
    )
    print_table(console, "Share of the squared norm that pruning by magnitude takes", words.lost_table(found))
    print_table(console, "Bytes of the weights", words.bytes_table(found))
    left = words.left_table(found)
    print_table(console, "Stays dense", left.head(MOST_LEFT))
    if len(left) > MOST_LEFT:
        console.print(f"and {len(left) - MOST_LEFT} more, in the report")
    print_table(console, f"What sparsity cost in the reference sweeps. {words.OTHERS}", words.cost_table(beside))
    for line in [*words.notes(found), *words.caveats(found)[:-1]]:
        console.print(line, style="dim")
    console.print()
    for line in words.verdicts(found):
        console.print(line, style="bold")
    console.print(f"Report: {in_checkout(path)}", soft_wrap=True)


def write(found: Answer, beside: list[Cost]) -> Path:
    """Write report.html into the folder and return its path."""
    cells = study.read(found.measured.folder) if found.measured.cells else Study(found.measured.folder, {})
    mine = [each for each in _sections(found, beside) if each is not None]
    return report.write_page(
        cells,
        name=found.measured.source,
        findings=words.verdicts(found),
        sections=[*mine, *sections(cells)],
        missing=[f"{words.head(found)}."],
        caveats=[*words.caveats(found), *report.caveats(cells)],
    )


def _sections(found: Answer, beside: list[Cost]) -> list[Section | None]:
    return [
        _section(
            "What a layer gains",
            "Dense time over block-sparse time, as interleaved pairs in one process. It pays from the sparsity where "
            f"that crosses 1×, with where the ends of the intervals cross it. {words.MARKS}.",
            words.layer_table(found, interval=True),
            words.notes(found),
        ),
        _section(
            "What the model gains",
            "All layers together: the sum of their dense times over that of their block-sparse ones. End to end: the "
            "whole model with its example inputs.",
            words.whole_table(found),
        ),
        _section(
            "Its outputs",
            "error: largest difference from the dense model with zeros in the empty blocks, as a share of the largest "
            "output. cosine: with the outputs of the unpruned model, without any training after pruning.",
            words.output_table(found),
        ),
        _section(
            "Training, as sparsity rises",
            "Dense time over the time of a run whose sparsity reaches its target at half of it, each step on the "
            "faster path: times between measured sparsities are interpolated, from dense at none. Theory, of the "
            "layers: T_D / (T_S − Σρ_t).",
            words.integral_table(found),
        ),
        _section(
            "What pruning takes away",
            "Share of the squared norm in the blocks that magnitude empties, and in as many at random. Training goes "
            "on after pruning; this says how much it has to make up for.",
            words.lost_table(found, each_layer=True),
        ),
        _section("Bytes", "Weights in float32 with their int32 indices.", words.bytes_table(found)),
        _section("What stays dense", "Weights that cannot be block-sparse.", words.left_table(found)),
        _section("What sparsity cost other networks", words.OTHERS, words.cost_table(beside)),
    ]


def _section(title: str, lead: str, table: pd.DataFrame, sentences: list[str] | None = None) -> Section | None:
    if table.empty:
        return None
    return Section(title, lead, tables=[shown("", table)], sentences=sentences or [])
