"""The training loss by torch.compile (the setting `compile`): what lies before and behind a language model's layers.

Compiled are dropouts, a tied decoder with its loss, and activation penalties. Left as they are: layers, which are a
library's (cuDNN's or oneDNN's LSTM) or our own kernels already and time themselves; the embedding, whose gradient
torch.compile would add up in any order; and most of an adaptive softmax, whose shapes differ at each step. Random
numbers are drawn as without it, so a run differs by rounding alone.

Which code is made depends on the cell alone, so that a run that was put aside goes on bit-equal: one code a length of
window, or, where lengths are drawn at random, one for all, made for a window of `bptt` steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

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
CALLS = {"default": 1, "reduce-overhead": 3}  # before a step is timed: CUDA graphs warm up, are recorded, are replayed
SPECIAL = 3  # lengths below have code of their own: torch keeps sizes of 1 apart, and a penalty takes differences
PAIRS = 5

Result = tuple[Tensor, list[State]]
Compute = Callable[[Tensor, Tensor, list[State] | None], Result]


def options_of(mode: str) -> dict[str, Any]:
    """A mode's, with random numbers as without torch.compile, and no choice of code by timing where torch can do so."""
    from torch._inductor import config

    chosen: dict[str, Any] = {"deterministic": True} if hasattr(config, "deterministic") else {}
    return {**OPTIONS[mode], "fallback_random": True, **chosen}


def missing_compiler(device: str) -> str | None:
    """Why torch.compile cannot work here, found by compiling one line, or None.

    What the machine lacks today only (space, memory, a folder) is raised as torch raises it; ValueError where torch was
    told to compile nothing.
    """
    try:
        told = torch.compile(lambda x: x + torch.compiler.is_compiling(), options=options_of("default"))
        compiled = bool(told(torch.zeros(8, device=device)).sum())
    except Exception as error:
        if is_lack(error) or isinstance(error, OSError):
            raise
        lines = str(error).strip().splitlines()
        causes = [line.strip() for line in lines[1:] if "error:" in line]
        return "; ".join([lines[0], *causes[:1]])
    if not compiled:
        raise ValueError(
            "compile: torch.compile is switched off in this process; accepted: none, or an environment without "
            "TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE, and torch's default stance"
        )
    return None


class Loss:
    """The loss of a training step of `model`, as `model.loss` gives it, by the setting `compile`; used as a context.

    To be prepared for a step's window where `is_new` says so, or the first call takes the time to compile.
    pairs: milliseconds of its forward and backward pass, as it is written and compiled, in turns; none before that.
    """

    def __init__(self, model: nn.Module, cell: TrainCell, paths: Paths) -> None:
        self.model, self.paths, self.mode = model, paths, cell.compile
        self.device, self.precision, self.bptt = cell.device, cell.precision, max(cell.bptt, SPECIAL)
        self.any_length = bool(cell.bptt_jitter or cell.bptt_halved)
        self.seen: set[tuple[int, bool]] = set()
        self.pairs: tuple[list[float], list[float]] | None = None
        self.written: Compute = model.loss  # type: ignore[assignment]
        self.compiled = self.written
        self.undo = ExitStack()

    def __enter__(self) -> Loss:
        if self.mode != "none":
            torch.compiler.reset()  # what another run of this process has left counts against a limit of torch's
            self.undo.callback(torch.compiler.reset)  # graphs on a GPU keep their memory
            embeddings = [each for each in self.model.modules() if isinstance(each, nn.Embedding)]
            for kind in {type(each) for each in (*self.paths.layers, *embeddings)}:
                self._leave_alone(kind)
            self.compiled = torch.compile(self.written, dynamic=self.any_length, options=options_of(self.mode))
        return self

    def _leave_alone(self, kind: type[nn.Module]) -> None:
        """Let torch.compile leave the forward pass of such modules as it is, for this run.

        A decorator would import the compiler for everyone who imports the module.
        """
        written = kind.forward
        kind.forward = torch.compiler.disable(written)  # type: ignore[no-untyped-call]
        self.undo.callback(setattr, kind, "forward", written)

    def __exit__(self, *_: object) -> None:
        self.undo.close()

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
        from torch.fx.experimental import _config as shapes

        kind, tag = self._kind(inputs, states), ""
        if self.any_length and len(inputs) >= SPECIAL:
            inputs, targets = (each[torch.arange(self.bptt) % len(each)] for each in (inputs, targets))
            tag = f"{self.bptt} steps"

        def work(compute: Compute) -> None:
            self.model.zero_grad()
            with autocast(self.device, self.precision):
                loss, _ = compute(inputs, targets, states)
            if isinstance(self.model.penalty, Tensor):
                loss = loss + self.model.penalty
            loss.backward()  # type: ignore[no-untyped-call]

        with ExitStack() as stack:
            stack.enter_context(untouched(self.model, self.paths))
            # else a length that happens to be another size of the network's is taken for it, and has code of its own
            stack.enter_context(shapes.patch(use_duck_shape=False))  # type: ignore[attr-defined]
            # code for any length is made for the one at hand, and kept on disk by torch without a word of that
            stack.enter_context(torch.compiler.config.patch(cache_key_tag=tag))  # type: ignore[attr-defined]
            for _ in range(CALLS[self.mode]):
                work(self)
            if self.pairs is None:
                self.pairs = interleaved(lambda: work(self.written), lambda: work(self), PAIRS, self.device)
        self.seen.add(kind)

    def _kind(self, inputs: Tensor, states: list[State] | None) -> tuple[int, bool]:
        return min(len(inputs), SPECIAL) if self.any_length else len(inputs), states is None

    def columns(self) -> dict[str, list[float]]:
        """The columns of a row that say what compiling has changed."""
        return dict(zip(("loss_eager_ms", "loss_compiled_ms"), self.pairs or (), strict=False))
