"""What a plan says of training on a GPU before there is one: the least by its roof, what is worth most first."""

from __future__ import annotations

import pytest

from bench.cells import GemmCell, TrainCell
from bench.data.datasets import known_sizes
from bench.engines.estimate import ROOF, ROOF_BYTES, by_worth, roof_lines, roof_seconds, rough_seconds
from bench.measuring.memory import parameters_of
from bench.sweep import load


def test_the_roof_is_arithmetic_or_bytes() -> None:
    """Of a wide layer at large batches arithmetic; at a batch of one, the weights and Adam's moments of each step."""
    given = {"device": "cuda", "train_tokens": 100_000, "eval_tokens": 1000, "epochs": 1, "optimizer": "adam"}
    wide = TrainCell(hidden_size=4096, num_layers=2, batch_size=80, bptt=70, precision="ieee", **given)
    sizes = known_sizes(wide.dataset)
    assert sizes is not None
    seen = 3 * 100_000 + 2000
    logits = wide.least_logits(sizes.vocabulary)
    operations = 2 * (wide.layer_weights + logits * wide.layer_widths[-1]) * seen
    assert roof_seconds(wide) == pytest.approx(operations / ROOF["ieee"])
    narrow = wide.model_copy(update={"batch_size": 1, "bptt": 2, "precision": "bfloat16"})
    least = 4 * parameters_of(narrow, sizes) * (2 + 2 + 4) * 50_000 / ROOF_BYTES
    assert least < roof_seconds(narrow) < 1.1 * least


def test_the_roof_is_below_what_is_estimated_for_every_full_sweep() -> None:
    for name in ("wikitext2_paper", "wikitext2_best", "wikitext2_wide"):
        cells = [cell for cell in load(name).cells if isinstance(cell, TrainCell) and cell.device == "cuda"]
        assert cells and all(0 < roof_seconds(cell) < rough_seconds(cell) for cell in cells)


def test_each_variant_once_comes_before_its_seeds() -> None:
    cells = [TrainCell(hidden_size=size, seed=seed) for size in (64, 128) for seed in (3, 1, 2)]
    first, again = by_worth(cells)
    assert [(cell.hidden_size, cell.seed) for cell in first] == [(64, 3), (128, 3)] and len(again) == 4


def test_a_plan_says_it_of_training_on_a_gpu_alone() -> None:
    assert roof_lines([TrainCell(), GemmCell(backend="cuda", device="cuda")]) == []
    [line] = roof_lines(TrainCell(device="cuda", seed=seed) for seed in (0, 1))
    assert line.startswith("roof: an H100 takes at least ") and "for 1 variant, each once, then" in line
    assert "for 1 more seed (" in line
