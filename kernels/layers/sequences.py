"""Sequences of unequal length through a recurrent layer: over the stretches of time in which as many of them go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # [batch, size] each: h and c of an LSTM, h of a GRU
Run = Callable[[Tensor, State], tuple[Tensor, State]]  # x [steps, batch, in], state -> y [steps, batch, size], state


def run_backwards(run: Run, x: Tensor, state: State) -> tuple[Tensor, State]:
    """`run` from the last step to the first."""
    y, state = run(x.flip(0), state)
    return y.flip(0), state


def _stretches(batch_sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first row, steps, sequences) of each stretch of time."""
    found, row = [], 0
    for batch, steps in ((batch, len(list(same))) for batch, same in groupby(batch_sizes)):
        found.append((row, steps, batch))
        row += steps * batch
    return found


def run_packed(
    run: Run, rows: Tensor, batch_sizes: Sequence[int], state: State, backwards: bool = False
) -> tuple[Tensor, State]:
    """One direction of a layer over a torch.nn.utils.rnn.PackedSequence, and the state of each sequence at its end.

    rows: [sum of batch_sizes, in], step after step, the longest sequence first; batch_sizes: sequences that go on at
    each step, falling. State [sequences, size] -> y [rows, size], state. Nothing is padded: what is computed is what a
    sequence has.
    """
    outputs, stretches = [], _stretches(batch_sizes)
    ended: list[State] = []
    begun, waiting = 0, state
    state = tuple(each[:0] for each in state) if backwards else state
    for row, steps, batch in reversed(stretches) if backwards else stretches:
        x = rows[row : row + steps * batch].view(steps, batch, -1)
        if backwards:
            state = tuple(torch.cat([one, more[begun:batch]]) for one, more in zip(state, waiting, strict=True))
            begun = batch
            y, state = run_backwards(run, x, state)
        else:
            ended.append(tuple(each[batch:] for each in state))
            y, state = run(x, tuple(each[:batch] for each in state))
        outputs.append(y.flatten(0, 1))
    if backwards:
        return torch.cat(outputs[::-1]), state
    return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
