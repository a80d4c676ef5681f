"""Networks in NumPy, one character of each row at a time: several times as fast as PyTorch for few rows.

`charlm.inference.steps.families` makes them from the networks of charlm.

Shapes: B rows, T time, N the length of a window, H units in C blocks of S (see `charlm.inference.steps.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from charlm.inference.steps.parts import Array, Cell, Head, Inputs, States
from charlm.inference.steps.steps import Ids, Logits

Layers: TypeAlias = tuple[States, ...]

CHUNK = 256  # characters of a prompt that go through a layer together
PAIR = np.zeros(2, np.int64)
quietly = np.errstate(all="ignore")  # whoever reads logits that are not finite says so


@dataclass(frozen=True)
class ArrayNetwork:
    """Layers, each with what it reads and its recurrent side; a head; and the state of one row before any character."""

    layers: Sequence[tuple[Inputs, Cell]]
    head: Head
    initial: Layers


class _ArraySteps:
    """States are tuples, one for each layer, of arrays whose last dimension but one is the row."""

    def select(self, state: Layers, rows_B: Ids) -> Layers:
        """See `Steps`."""
        return _map(lambda part: part.take(rows_B, -2), state)

    def join(self, states: Sequence[Layers]) -> Layers:
        """See `Steps`."""
        return _map(lambda *parts: np.concatenate(parts, -2), *states)


class ArraySteps(_ArraySteps):
    """A network that predicts after every character."""

    def __init__(self, network: ArrayNetwork) -> None:
        self.network = network

    @quietly
    def read(self, ids_T: Ids) -> tuple[Logits, Layers]:
        """See `Steps`."""
        # Two rows: the products of one row are other routines, which may use threads.
        state = self.select(self.network.initial, PAIR)
        for start in range(0, len(ids_T), CHUNK):
            state = self._through(ids_T[start : start + CHUNK], state)
        state = self.select(state, PAIR[:1])
        return self.network.head(self.select(state, PAIR)[-1][0])[:1], state

    def step(self, ids_B: Ids, state: Layers) -> tuple[Logits, Layers]:
        """See `Steps`."""
        after = advance(self.network, ids_B, state)
        return self.network.head(after[-1][0]), after

    def _through(self, ids_T: Ids, state: Layers) -> Layers:
        """The state after a text: layer by layer, because inputs of all steps at once are fast."""
        x: Any = ids_T if len(ids_T) > 1 else ids_T[PAIR]
        after = []
        for (inputs, cell), states in zip(self.network.layers, state, strict=True):
            i_GCTS = inputs(x)
            outputs = []
            for t in range(len(ids_T)):
                states = cell(i_GCTS[:, :, t : t + 1], states)
                outputs.append(states[0][:, :1])
            after.append(states)
            x = np.concatenate(outputs if len(outputs) > 1 else outputs * 2, 1)
        return tuple(after)


class WindowedArraySteps(_ArraySteps):
    """A network that predicts from the last N characters only.

    Instead of reading N characters for each prediction, it keeps the states of N - 1 rows that began one character
    after the other, (C, N - 1, B, S). With a further character, the oldest of them has read a whole window, and
    another one begins. Before N characters have been read, the older ones all began with the first.

    `first` has the states after the first character of a window. `offsets_N` is added to an id in each place of a
    window, if the table has other rows for each place; then `first` has rows for all of them.
    """

    def __init__(self, network: ArrayNetwork, offsets_N: Ids, first: Layers) -> None:
        self.network, self.first = network, first
        self.offsets_N1 = offsets_N[:, None]

    @quietly
    def read(self, ids_T: Ids) -> tuple[Logits, Layers]:
        """See `Steps`."""
        places = len(self.offsets_N1)
        ids_T = ids_T[-places:]
        ids_N2 = ids_T[:1] + np.repeat(self.offsets_N1, 2, 1)
        state = _map(lambda part: part.take(ids_N2, -2), self.first)
        for i in ids_T[1:]:
            state = self._advance(np.repeat(i, 2), _map(lambda part: part[:, :-1], state))
        logits = self.network.head(state[-1][0][:, -1])
        return logits[:1], _map(lambda part: part[:, :-1, :1], state)

    def step(self, ids_B: Ids, state: Layers) -> tuple[Logits, Layers]:
        """See `Steps`."""
        after = self._advance(ids_B, state)
        return self.network.head(after[-1][0][:, -1]), _map(lambda part: part[:, :-1], after)

    def _advance(self, ids_B: Ids, state: Layers) -> Layers:
        """The states of the rows of all N ages, the youngest first."""
        places, rows = len(self.offsets_N1), len(ids_B)
        ids_NB = ids_B + self.offsets_N1
        flat = _map(lambda part: part.reshape(part.shape[0], (places - 1) * rows, part.shape[3]), state)
        older = advance(self.network, ids_NB[1:].ravel(), flat)
        return _map(lambda begun, part: _put_together(begun.take(ids_NB[0], -2), part), self.first, older)


def advance(network: ArrayNetwork, ids_B: Ids, state: Layers) -> Layers:
    """The state after one more character of each row."""
    x: Any = ids_B
    after = []
    for (inputs, cell), states in zip(network.layers, state, strict=True):
        states = cell(inputs(x), states)
        x = states[0]
        after.append(states)
    return tuple(after)


def after_first(network: ArrayNetwork) -> Layers:
    """The states after each of the characters, read from the initial state."""
    with np.errstate(all="ignore"):
        count = network.head.vocab_size
        return advance(network, np.arange(count), _map(lambda part: part.repeat(count, -2), network.initial))


def _put_together(begun_CBS: Array, older: Array) -> Array:
    """(C, N, B, S)."""
    blocks, rows, size = begun_CBS.shape
    together = np.empty((blocks, older.shape[1] // rows + 1, rows, size), begun_CBS.dtype)
    together[:, 0] = begun_CBS
    together[:, 1:] = older.reshape(blocks, -1, rows, size)
    return together


def _map(function: Callable[..., Array], *states: Layers) -> Layers:
    """Apply `function` to the arrays of one or more states."""
    return tuple(tuple(map(function, *layers)) for layers in zip(*states, strict=True))
