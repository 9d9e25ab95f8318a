"""Packed sequences: every sequence by itself, from its own beginning to its own end, either way."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from kernels.layers.sequences import State, run_backwards, run_packed


def running(x: Tensor, state: State) -> tuple[Tensor, State]:
    """y = s <- s / 2 + x: it tells in which order the steps came."""
    outputs, sums = [], state[0]
    for step in x:
        sums = sums / 2 + step
        outputs.append(sums)
    return torch.stack(outputs), (sums,)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), backwards=st.booleans())
def test_each_sequence_is_run_by_itself(lengths: list[int], backwards: bool) -> None:
    lengths.sort(reverse=True)
    sequences = [torch.randn(length, 2, dtype=torch.float64) for length in lengths]
    begin = torch.randn(len(lengths), 2, dtype=torch.float64)
    packed = pack_sequence(sequences)
    y, (end,) = run_packed(running, packed.data, packed.batch_sizes.tolist(), (begin,), backwards)
    rows, _ = pad_packed_sequence(packed._replace(data=y))
    for place, sequence in enumerate(sequences):
        run = run_backwards if backwards else lambda run, *given_: run(*given_)
        wanted, (last,) = run(running, sequence[:, None], (begin[place : place + 1],))
        assert torch.equal(rows[: lengths[place], place], wanted[:, 0]) and torch.equal(end[place], last[0])


def test_a_stretch_of_time_is_one_run() -> None:
    seen: list[tuple[int, ...]] = []

    def run(x: Tensor, state: State) -> tuple[Tensor, State]:
        seen.append(tuple(x.shape))
        return running(x, state)

    for backwards in (False, True):
        run_packed(run, torch.zeros(11, 2), [4, 4, 2, 1], (torch.zeros(4, 2),), backwards)
    assert seen == [(2, 4, 2), (1, 2, 2), (1, 1, 2), (1, 1, 2), (1, 2, 2), (2, 4, 2)]
