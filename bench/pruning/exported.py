"""Models as they are exported, whatever they are: a language model or a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from bench.models.mlp import MLP
from bench.pruning.classifier import FinalClassifier, final_classifier
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.narrowing import live_neurons, without_dead_neurons
from bench.pruning.removal import live_units, without_dead_units
from bench.pruning.stored import Exported, read
from kernels.blockmask import BlockMask

FINAL: tuple[type[Exported], ...] = (FinalModel, FinalClassifier)


def exported(model: nn.Module, masks: Mapping[str, BlockMask]) -> Exported:
    """A model of `bench.models` as it computes in evaluation, without its masks, which are those of `prunable()`."""
    return final_classifier(model, masks) if isinstance(model, MLP) else finalize(model, masks)


def load(path: str | PathLike[str]) -> Exported:
    """The exported model that was saved to `path`, of whichever kind; ValueError, one line, where it is none."""
    known = {each.FORMAT: each for each in FINAL}
    content = read(path)
    found = known.get(content.get("format", ""))
    if found is None:
        accepted = " or ".join(map(repr, known))
        raise ValueError(f"{Path(path)} is no exported model; accepted: files of the format {accepted}")
    return found.of_file(path, content)


def live(model: Exported) -> list[Tensor]:
    """Of each layer, bool[units]: which are read and do not stay as they are."""
    if isinstance(model, FinalClassifier):
        return live_neurons(model)
    assert isinstance(model, FinalModel)
    return live_units(model)


def narrowed(model: Exported) -> Exported:
    """The model without its dead units: what it computes is the same, up to the order of sums."""
    if isinstance(model, FinalClassifier):
        return without_dead_neurons(model)
    assert isinstance(model, FinalModel)
    return without_dead_units(model)
