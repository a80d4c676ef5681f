"""A network one character of each row at a time, as every decoder uses it: states are kept, repeated and forked.

Shapes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charlm.inference.decoding import Ids
from charlm.models.network import Network
from charlm.models.state import State, select_rows

Logits: TypeAlias = NDArray[np.floating[Any]]


class Steps(Protocol):
    """Reads ids and gives the logits of what follows. What a state is, only its `Steps` knows; none is ever changed."""

    def read(self, ids_T: Ids) -> tuple[Logits, Any]:
        """Read one text of at least one id from the initial state: logits (1, V), and the state of this row."""

    def step(self, ids_B: Ids, state: Any) -> tuple[Logits, Any]:
        """Read one more id of each row: logits (B, V), and the state."""

    def select(self, state: Any, rows_B: Ids) -> Any:
        """The state of these rows, in this order; rows may repeat."""

    def join(self, states: Sequence[Any]) -> Any:
        """The state of all the rows of several states."""


class TorchSteps:
    """Any network, in PyTorch, on its device."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.device = next(network.parameters()).device

    def read(self, ids_T: Ids) -> tuple[Logits, State]:
        """See `Steps`."""
        return self._forward(torch.from_numpy(ids_T).unsqueeze(0), None)

    def step(self, ids_B: Ids, state: State) -> tuple[Logits, State]:
        """See `Steps`."""
        threads = torch.get_num_threads()
        if threads == 1 or self.device.type != "cpu":
            return self._forward(torch.from_numpy(ids_B).unsqueeze(1), state)
        torch.set_num_threads(1)  # a step is so small that threads only wait for each other
        try:
            return self._forward(torch.from_numpy(ids_B).unsqueeze(1), state)
        finally:
            torch.set_num_threads(threads)

    def select(self, state: State, rows_B: Ids) -> State:
        """See `Steps`."""
        return select_rows(state, torch.from_numpy(rows_B).to(self.device))

    def join(self, states: Sequence[State]) -> State:
        """See `Steps`."""
        first = states[0]
        if isinstance(first, Tensor):
            return torch.cat([part for part in states if isinstance(part, Tensor)])
        return tuple(self.join(parts) for parts in zip(*states, strict=True))

    @torch.inference_mode()
    def _forward(self, x_BT: Tensor, state: State | None) -> tuple[Logits, State]:
        logits, state, _ = self.network(x_BT.to(self.device), state)
        last = logits[:, -1]
        return (last if last.dtype == torch.float64 else last.float()).cpu().numpy(), state


class Rows(NamedTuple):
    """The state of `rows` rows, and of others that fill them up to `size`."""

    rows: int
    size: int
    state: Any


class Plan(NamedTuple):
    """How some rows are read: to how many they are filled up, with which, and how many are read at once."""

    size: int
    filled: Ids
    together: int


class SteadySteps:
    """`steps` of which a row's logits are the same, to the last bit, alone and among any number of other rows.

    So a sample that was drawn among others can be drawn again alone. Matrix products usually round differently for
    one row than for many, but alike from some number of rows on. This number is found by trying, and fewer rows are
    filled up to it. Where there is no such number, rows are read one by one; with `one_by_one`, that is not tried.
    """

    FEW = (1, 2, 4, 8)
    MANY = 64

    def __init__(self, steps: Steps, vocab_size: int, one_by_one: bool = False) -> None:
        self.steps, self._vocab_size, self._one_by_one = steps, vocab_size, one_by_one
        self._steady: dict[int, bool] = {}  # for each size that was tried: whether its rows round like `fewest`
        self._plans: dict[int, Plan] = {}

    def read(self, ids_T: Ids) -> tuple[Logits, Rows]:
        """See `Steps`."""
        logits, state = self.steps.read(ids_T)
        return logits, Rows(1, 1, state)

    def step(self, ids_B: Ids, state: Rows) -> tuple[Logits, Rows]:
        """See `Steps`."""
        count = len(ids_B)
        plan = self._plan(count)
        if state.size != plan.size:
            state = self.select(state, np.arange(count))
        logits, after = self._in_groups(ids_B.take(plan.filled), state.state, plan.together)
        return logits[:count], Rows(count, plan.size, after)

    def select(self, state: Rows, rows_B: Ids) -> Rows:
        """See `Steps`."""
        plan = self._plan(len(rows_B))
        return Rows(len(rows_B), plan.size, self.steps.select(state.state, rows_B.take(plan.filled)))

    def join(self, states: Sequence[Rows]) -> Rows:
        """See `Steps`."""
        count = sum(state.rows for state in states)
        return Rows(count, count, self.steps.join([self.steps.select(s.state, np.arange(s.rows)) for s in states]))

    @functools.cached_property
    def fewest(self) -> int:
        """The smallest number of rows that round like many."""
        if self._one_by_one:
            return 1
        many, state = self._probe(self.MANY)
        expected = self._in_groups(many, state, self.MANY)
        for rows in self.FEW:
            if self._same(self._in_groups(many, state, rows), expected):
                return rows
        return 1

    def _plan(self, count: int) -> Plan:
        """How `count` rows are read."""
        if count not in self._plans:
            size = self._size(count)
            filled = np.arange(size)
            filled[count:] = 0
            self._plans[count] = Plan(size, filled, size if self._is_steady(size) else self.fewest)
        return self._plans[count]

    def _size(self, count: int) -> int:
        """To how many rows `count` rows are filled up."""
        if count > self.MANY:
            return -(-count // self.MANY) * self.MANY
        return max(self.fewest, 1 << (count - 1).bit_length())

    def _is_steady(self, size: int) -> bool:
        if self._one_by_one:
            return size == 1
        if size not in self._steady:
            ids, state = self._probe(size)
            few, whole = (self._in_groups(ids, state, rows) for rows in (self.fewest, size))
            self._steady[size] = self._same(few, whole)
        return self._steady[size]

    def _probe(self, count: int) -> tuple[Ids, Any]:
        """Ids of `count` rows to try, and a state in which no two rows are alike."""
        rng = np.random.default_rng(0)
        texts = rng.integers(0, self._vocab_size, (count, 4))
        return texts[:, 0], self.steps.join([self.steps.read(ids_T)[1] for ids_T in texts])

    def _same(self, one: tuple[Logits, Any], other: tuple[Logits, Any]) -> bool:
        """Whether both logits are the same, and also those of a step later, which depend on the states."""
        ids = one[0].argmax(-1) if np.isfinite(one[0]).all() else np.zeros(len(one[0]), np.int64)
        rows = len(ids)
        later = [self._in_groups(ids, state, rows)[0] for _, state in (one, other)]
        return one[0].tobytes() == other[0].tobytes() and later[0].tobytes() == later[1].tobytes()

    def _in_groups(self, ids_B: Ids, state: Any, rows: int) -> tuple[Logits, Any]:
        """One step, `rows` rows at a time."""
        if rows == len(ids_B):
            return self.steps.step(ids_B, state)
        groups = [np.arange(start, start + rows) for start in range(0, len(ids_B), rows)]
        found = [self.steps.step(ids_B[group], self.steps.select(state, group)) for group in groups]
        return np.concatenate([logits for logits, _ in found]), self.steps.join([after for _, after in found])
