"""The training loss by torch.compile (the setting `compile`): what lies around a network's layers, in fewer launches.

Compiled are embedding, dropouts, decoder, loss and activation penalties. The layers stay as they are: they are a
library's (cuDNN's or oneDNN's LSTM) or our own kernels already, and they time themselves. Random numbers are drawn as
without it, so a run differs by rounding alone.

Which code is made of a window depends on no window before it, so that a run that was put aside goes on bit-equal: one
code a length, or, where lengths are drawn at random, one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes

from bench.cells import TrainCell
from bench.measuring.clocks import interleaved
from bench.models.layers import State
from bench.training.meter import untouched
from bench.training.paths import Paths, autocast
from kernels.system.resources import is_lack

OPTIONS: dict[str, dict[str, Any]] = {  # of the modes of torch.compile that are offered, which go with no others
    "default": {},
    "reduce-overhead": {"triton.cudagraphs": True},
}
AS_EAGER: dict[str, Any] = {"fallback_random": True}
CALLS = {"default": 1, "reduce-overhead": 3}  # before a step is timed: CUDA graphs warm up, are recorded, are replayed
SPECIAL = 3  # lengths below have code of their own: torch keeps sizes of 1 apart, and a penalty takes differences
PAIRS = 5
LEFT_ALONE: set[type[nn.Module]] = set()

Result = tuple[Tensor, list[State]]
Compute = Callable[[Tensor, Tensor, list[State] | None], Result]


def missing_compiler(device: str) -> str | None:
    """Why torch.compile cannot work here, found by compiling one line, or None.

    What the machine lacks today only (space, memory) is raised as torch raises it.
    """
    try:
        torch.compile(lambda x: x + 1.0, options=AS_EAGER)(torch.zeros(8, device=device))
    except Exception as error:
        if is_lack(error):
            raise
        return str(error).strip().splitlines()[0]
    return None


def leave_alone(kinds: Iterable[type[nn.Module]]) -> None:
    """Let torch.compile leave the forward pass of such layers as it is, from here on.

    Asked when first needed: a decorator would import the compiler for everyone who imports the layer.
    """
    for kind in set(kinds) - LEFT_ALONE:
        kind.forward = torch.compiler.disable(kind.forward)  # type: ignore[no-untyped-call]
        LEFT_ALONE.add(kind)


class Loss:
    """The loss of a training step of `model`, as `model.loss` gives it, by the setting `compile`.

    To be prepared for a step's window where `is_new` says so, or the first call takes the time to compile.
    pairs: milliseconds of its forward and backward pass, as it is written and compiled, in turns; none before that.
    """

    def __init__(self, model: nn.Module, cell: TrainCell, paths: Paths) -> None:
        self.model, self.paths, self.mode = model, paths, cell.compile
        self.device, self.precision = cell.device, cell.precision
        self.any_length = bool(cell.bptt_jitter or cell.bptt_halved)
        self.seen: set[tuple[int, bool]] = set()
        self.pairs: tuple[list[float], list[float]] | None = None
        self.written: Compute = model.loss  # type: ignore[assignment]
        if self.mode != "none":
            torch.compiler.reset()  # what another run of this process has left counts against a limit of torch's
            leave_alone(type(layer) for layer in paths.layers)
            options = OPTIONS[self.mode] | AS_EAGER
            self.compiled = torch.compile(self.written, dynamic=self.any_length, options=options)

    def __call__(self, inputs: Tensor, targets: Tensor, states: list[State] | None) -> Result:
        """Mean nats of the targets, and the states to go on from. inputs, targets: those of a step."""
        if self.mode == "none":
            return self.written(inputs, targets, states)
        if self.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.compiled(inputs.clone(), targets.clone(), states)  # views would be told apart by where they begin

    def is_new(self, inputs: Tensor, states: list[State] | None) -> bool:
        """Whether a step like this one is still to be compiled."""
        return self.mode != "none" and self._kind(inputs, states) not in self.seen

    def prepare(self, inputs: Tensor, targets: Tensor, states: list[State] | None) -> None:
        """Compile what a step like this one takes, forward and backward, and leave no trace of it in the run.

        To be called where no gradient is wanted: gradients are cleared.
        """

        def work(compute: Compute) -> None:
            self.model.zero_grad()
            with autocast(self.device, self.precision):
                loss, _ = compute(inputs, targets, states)
            if isinstance(self.model.penalty, Tensor):
                loss = loss + self.model.penalty
            loss.backward()  # type: ignore[no-untyped-call]

        # else a length that happens to be another size of the network's is taken for it, and has code of its own
        with untouched(self.model, self.paths), shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            for _ in range(CALLS[self.mode]):
                work(self)
            if self.pairs is None:
                self.pairs = interleaved(lambda: work(self.written), lambda: work(self), PAIRS, self.device)
        self.seen.add(self._kind(inputs, states))

    def _kind(self, inputs: Tensor, states: list[State] | None) -> tuple[int, bool]:
        return min(len(inputs), SPECIAL) if self.any_length else len(inputs), states is None

    def columns(self) -> dict[str, list[float]]:
        """The columns of a row that say what compiling has changed."""
        return dict(zip(("loss_eager_ms", "loss_compiled_ms"), self.pairs or (), strict=False))
