"""Layers of a module: what sparsify would replace, and what goes through them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from bench.commands.advising import modules, whole
from bench.commands.advising.layers import AdviceError, Setting
from kernels.sparsify import sparsify


class Network(nn.Module):
    """An LSTM over steps, then two linear layers, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(10, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.twice, self.last, self.unused = nn.Linear(32, 32), nn.Linear(32, 5), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.words(x))
        return self.last(self.twice(torch.relu(self.twice(y))))  # type: ignore[no-any-return]


def build() -> tuple[nn.Module, Tensor]:
    return Network(), torch.randint(10, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> str:
    place = ModuleType("made_up")
    place.build = build  # type: ignore[attr-defined]
    place.raises = lambda: 1 / 0  # type: ignore[attr-defined]
    place.leaves = lambda: sys.exit(0)  # type: ignore[attr-defined]
    place.number = 3  # type: ignore[attr-defined]
    place.wrong = lambda: "text"  # type: ignore[attr-defined]
    place.uncallable = lambda: (Network(), torch.rand(3, 7))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", place)
    return "made_up"


def test_example_inputs_say_what_goes_through_each_layer(named: str) -> None:
    made = modules.make(f"{named}:build")
    layers, held = modules.layers_of(named, made, tokens=1, batch=1, steps=1)
    by = {layer.name: layer for layer in layers}
    assert (by["lstm.weight_l0"].batch, by["lstm.weight_l0"].steps) == (3, 7)
    assert (by["twice.weight"].tokens, by["twice.weight"].calls) == (21, 2.0)
    assert by["unused.weight"].reason == "the example inputs never reach it"
    assert by["words"].reason == "Embedding is none of Linear, LSTM, GRU"
    assert set(held["lstm.weight_l0"]) == {"weight_ih_l0", "weight_hh_l0"}


def test_candidates_are_what_sparsify_replaces(named: str) -> None:
    made = modules.make(f"{named}:build")
    layers, held = modules.layers_of(named, modules.Made(made.model, None, {}), 8, 3, 7)
    _, report = sparsify(copy.deepcopy(made.model), 16, 0.5)
    from bench.commands.advising.layers import timing

    fine = [layer for layer in layers if not layer.reason and not timing(layer, Setting("forward", 16, 0.5)).reason]
    assert sum(len(held[layer.name]) for layer in fine) == len(report.replaced)


@pytest.mark.parametrize(
    "place", ["nowhere:f", "made_up:g", "made_up:raises", "made_up:leaves", "made_up:number", "made_up:wrong"]
)
def test_a_factory_that_gives_no_model_is_one_line(named: str, place: str) -> None:
    with pytest.raises(AdviceError) as raised:
        modules.make(place)
    assert str(raised.value).startswith(f"{place}: ") and "\n" not in str(raised.value)


def test_a_model_that_its_inputs_do_not_fit_is_one_line(named: str) -> None:
    with pytest.raises(
        AdviceError, match=r"^made_up:uncallable: the model raised RuntimeError: .* on its example inputs$"
    ):
        modules.layers_of("made_up:uncallable", modules.make("made_up:uncallable"), 1, 1, 1)


@pytest.mark.parametrize("passes", ["forward", "training"])
def test_the_whole_model_is_checked_and_timed_and_stays_as_it_was(named: str, passes: str) -> None:
    made = modules.make(f"{named}:build")
    before = whole.fingerprint(made)
    row = whole.time_model("x", made, before, Setting(passes, 16, 0.5, threads=1))
    assert row["status"] == "ok" and row["error"] < 1e-5 and 0.5 < row["cosine"] < 1.0
    assert len(row["dense_ms"]) == len(row["sparse_ms"]) >= 10 and row["sparse_bytes"] < row["dense_bytes"]
    assert whole.fingerprint(made) == before and row["replaced"] == 4


def test_outputs_that_are_not_those_with_zeros_are_wrong(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = modules.make(f"{named}:build")
    monkeypatch.setattr(whole, "_masked", lambda made, _: made.model(*made.inputs) + 1)
    row = whole.time_model("x", made, "", Setting("forward", 16, 0.5, threads=1))
    assert row["status"] == "wrong" and "dense_ms" not in row


def test_nothing_that_fits_is_unsupported(named: str, tmp_path: Path) -> None:
    row = whole.time_model("x", modules.make(f"{named}:build"), "", Setting("forward", 64, 0.5, threads=1))
    assert row["status"] == "unsupported"
