"""What fast recurrent networks in NumPy are made of: vectors in blocks, tables, matrix products, cells.

A product of two rows takes 10 to 100 µs, so everything around it counts. A linear layer that reads a character is a
table with a row for each. A vector of H units lies in C blocks of at most 256, (C, B, S), filled up with zeros, and a
matrix is cut alike: with AVX-512, OpenBLAS multiplies without a copy of the matrix and in one thread up to a million
numbers, and without AVX-512 in one thread up to 2¹⁸. (Threads that wait for each other are slow beside a busy process.)
In such products a row is rounded in the same way whatever the number of rows, from some on: 2 here, elsewhere 4.

Shapes: B rows, V characters, G gates, H units in C blocks of S, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]
States: TypeAlias = tuple[Array, ...]  # of one layer, each (C, B, S); the first is its output
Activation: TypeAlias = Callable[[Array], Array]

BLOCK = 256
LANES = 16  # sizes of blocks are multiples of it: the columns that are left over round in other ways
ROWS = 4  # of one product, if there are many: 4 · 256 · 256 is 2¹⁸
SOME_ROWS = 15 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else ROWS  # at most in one product


class Inputs(Protocol):
    """What a layer reads, as it adds to the gates: (G, C, B, S) of ids (B) or of the layer below (C, B, S)."""

    def __call__(self, x: Any, /) -> Array:
        """The sums without those of the state."""


class Cell(Protocol):
    """The recurrent side of a layer."""

    def __call__(self, i_GCBS: Array, states: States, /) -> States:
        """The states after a step, which are new arrays."""


def count_of_blocks(units: int) -> int:
    """How many blocks `units` are cut into."""
    return -(-units // BLOCK)


def in_blocks(x: Array) -> Array:
    """(…, B, H) → (…, C, B, S), contiguous, filled up with zeros."""
    *lead, rows, units = x.shape
    blocks = count_of_blocks(units)
    size = -(-units // (blocks * LANES)) * LANES
    filled = np.zeros((*lead, rows, blocks * size), x.dtype)
    filled[..., :units] = x
    return np.ascontiguousarray(np.moveaxis(filled.reshape(*lead, rows, blocks, size), -2, -3))


class Table:
    """What each of some characters adds to the gates, `values_GVH`."""

    def __init__(self, values_GVH: Doubles, dtype: DTypeLike) -> None:
        self.values_GCVS = in_blocks(values_GVH.astype(dtype))

    def __call__(self, ids_B: NDArray[np.int64]) -> Array:
        """The rows of `ids_B`, (G, C, B, S)."""
        return self.values_GCVS.take(ids_B, -2)


class Product:
    """A vector times the matrices `weights_GHK` (laid out as in PyTorch), plus the vectors `bias_GH`."""

    def __init__(self, weights_GHK: Doubles, dtype: DTypeLike, bias_GH: Doubles | None = None) -> None:
        columns = in_blocks(weights_GHK.swapaxes(1, 2).astype(dtype))  # (G, C, K, S)
        rows = in_blocks(columns.swapaxes(2, 3))  # (G, C, blocks of K, S, K in a block)
        blocks = np.ascontiguousarray(rows.transpose(2, 0, 1, 4, 3))
        self.first, *self.others = blocks  # (G, C, K, S), for each block of the vector
        self.bias = None if bias_GH is None else Row(in_blocks(bias_GH[:, None].astype(dtype)))

    def __call__(self, x_CBS: Array) -> Array:
        """(C, B, S) → (G, C, B, S)."""
        if x_CBS.shape[1] <= SOME_ROWS:
            total = np.matmul(x_CBS[0], self.first)
            if self.others:
                for x_BS, block in zip(x_CBS[1:], self.others, strict=True):
                    total += np.matmul(x_BS, block)
        else:
            total = self._of_many(x_CBS)
        if self.bias is not None:
            total += self.bias.repeated(x_CBS.shape[1])
        return total

    def _of_many(self, x_CBS: Array) -> Array:
        """Products of `ROWS` rows, one block of a matrix after the other: it stays in the cache for all rows."""
        blocks, count, size = x_CBS.shape
        some = count - count % ROWS
        total = np.empty((*self.first.shape[:2], count, self.first.shape[3]), x_CBS.dtype)
        pieces = [(slice(0, some), ROWS), (slice(some, count), count - some)]
        for piece, rows in pieces[: 1 if some == count else 2]:
            x_CNRS = x_CBS[:, piece].reshape(blocks, -1, rows, size)
            found = np.matmul(x_CNRS[0], self.first[:, :, None])
            for x_NRS, block in zip(x_CNRS[1:], self.others, strict=True):
                found += np.matmul(x_NRS, block[:, :, None])
            total[:, :, piece] = found.reshape(*found.shape[:2], -1, found.shape[4])
        return total


class Row:
    """One row that is added to any number of them: NumPy adds arrays of the same shape twice as fast."""

    def __init__(self, row: Array) -> None:
        self.row = row
        self._repeated: dict[int, Array] = {}

    def repeated(self, count: int) -> Array:
        """The row `count` times, or once if that does as well."""
        if count > SOME_ROWS:
            return self.row
        if count not in self._repeated:
            self._repeated[count] = self.row.repeat(count, -2)
        return self._repeated[count]


class Head:
    """Logits (B, V) of a vector (C, B, S), perhaps through a dense relu layer."""

    def __init__(self, head: Product, vocab_size: int, dense: Product | None = None) -> None:
        self.head, self.dense, self.vocab_size = head, dense, vocab_size

    def __call__(self, x_CBS: Array) -> Array:
        """See the class."""
        if self.dense is not None:
            x_CBS = relu(self.dense(x_CBS)[0])
        logits_CBS = self.head(x_CBS)[0]
        if len(logits_CBS) == 1:
            return logits_CBS[0, :, : self.vocab_size]
        return np.concatenate(list(logits_CBS), -1)[:, : self.vocab_size]


def tanh(x: Array) -> Array:
    """The hyperbolic tangent, in place."""
    return np.tanh(x, out=x)


def relu(x: Array) -> Array:
    """What is positive (or not a number), in place."""
    return np.maximum(x, 0, out=x)


def elman(recurrent: Product, activation: Activation) -> Cell:
    """h' = f(i + W h)."""

    def step(i_GCBS: Array, states: States) -> States:
        sums = recurrent(states[0])
        sums += i_GCBS
        return (activation(sums)[0],)

    return step


# σ(x) = (1 + tanh(x / 2)) / 2. Gates below come in with the halves of x, so that one tanh serves several of them.


def gru(recurrent: Product) -> Cell:
    """The gated recurrent unit, with gates r, z, n; the product has half of n's, and of the bias inside r ⊙ (…)."""
    half = np.array(0.5, recurrent.first.dtype)

    def step(i_GCBS: Array, states: States) -> States:
        h = states[0]
        sums = recurrent(h)
        gates, inner = sums[:2], sums[2]
        gates += i_GCBS[:2]
        np.tanh(gates, gates)
        r, z = gates
        n = r * inner
        n += inner
        n += i_GCBS[2]
        np.tanh(n, n)
        after = h - n
        z *= half
        z += half
        after *= z
        after += n
        return (after,)

    return step


def lstm(recurrent: Product) -> Cell:
    """Long short-term memory, with gates i, f, o, g and states h, c."""
    half = np.array(0.5, recurrent.first.dtype)

    def step(i_GCBS: Array, states: States) -> States:
        sums = recurrent(states[0])
        sums += i_GCBS
        np.tanh(sums, sums)
        gates = sums[:3]
        gates *= half
        gates += half
        i, f, o, g = sums
        c = f * states[1]
        i *= g
        c += i
        h = np.tanh(c)
        h *= o
        return h, c

    return step
