"""Finite automata over a model's characters.

Shapes: S states, C classes of characters that no state tells apart, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from charlm.inference.constraints.byte_automaton import CELLS, ByteAutomaton, Refused
from charlm.text.vocab import Vocab


class Automaton:
    """A `Constraint`: an automaton over characters, without the states from which no end can be reached.

    A state is its number. `table` (S, C + 1) has the next state or -1, and its last column is the class of what is
    never allowed; `classes` (V) are the characters' classes, `ends` (S) the states in which a text may end.
    `distances` (S) are the fewest characters from a state to an end, `shortest` is that of the start, -1 for none.
    """

    start = 0

    def __init__(self, classes: NDArray[np.intp], table: NDArray[np.int32], ends: NDArray[np.bool_]) -> None:
        distances = _distances(table, ends)
        lost = np.append(distances < 0, True)  # also of -1, no state
        self._table: NDArray[np.int32] = np.where(lost[table], np.int32(-1), table)
        self._array = classes
        self._classes: list[int] = classes.tolist()
        self._ends: list[bool] = ends.tolist()
        self._distances = distances
        self.shortest = int(distances[0])
        self._rows: dict[int, tuple[list[int], list[NDArray[np.bool_]]]] = {}
        self._masks: dict[bytes, NDArray[np.bool_]] = {}

    @property
    def has_text(self) -> bool:
        """Whether there is anything to write: a match that is not empty."""
        return bool((self._table[0] >= 0).any())

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self._table)

    def allowed(self, state: int, remaining: int) -> NDArray[np.bool_]:
        """See `Constraint`. The masks are shared and cannot be written to."""
        needed, masks = self._rows.get(state) or self._row(state)
        return masks[bisect_right(needed, remaining)]

    def advance(self, state: int, id: int) -> int:
        """See `Constraint`. Raises ValueError for an id after which there is no match."""
        after = self._table.item(state, self._classes[id])
        if after < 0:
            raise ValueError(f"id {id} cannot follow in state {state}")
        return after

    def may_end(self, state: int) -> bool:
        """See `Constraint`."""
        return self._ends[state]

    def _row(self, state: int) -> tuple[list[int], list[NDArray[np.bool_]]]:
        """The different numbers of characters that a match needs from here, and the mask below the first and from each.

        There are few: the same masks serve almost all remaining lengths.
        """
        after = self._table[state]
        need = np.where(after < 0, 0, self._distances[after] + 1)  # 0: never allowed
        needed = np.unique(need[need > 0])
        masks = [self._mask((need > 0) & (need <= most)) for most in (0, *needed)]
        row = self._rows[state] = (needed.tolist(), masks)
        return row

    def _mask(self, of_classes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        key = of_classes.tobytes()
        if key not in self._masks:
            mask = of_classes[self._array]
            mask.setflags(write=False)
            self._masks[key] = mask
        return self._masks[key]


def over_characters(found: ByteAutomaton, vocab: Vocab, characters: str) -> Automaton:
    """The automaton of `found` over these characters of `vocab`. Raises Refused."""
    # Characters whose bytes no state tells apart are one class from the beginning.
    columns = {byte: found.table[:, column].tobytes() for byte, column in enumerate(found.columns) if column >= 0}
    kinds = {content: kind for kind, content in enumerate(dict.fromkeys(columns.values()))}
    kind_of = {byte: kinds[content] for byte, content in columns.items()}
    one_of = {kind_of[byte]: int(found.columns[byte]) for byte in columns}
    table = found.table[:, [one_of[kind] for kind in range(len(kinds))]]
    spelled = [tuple(kind_of[byte] for byte in c.encode()) for c in characters]
    spellings = {spelling: n for n, spelling in enumerate(dict.fromkeys(spelled))}
    paths = np.full((max(map(len, spellings)), len(spellings)), -1)
    for spelling, n in spellings.items():
        paths[: len(spelling), n] = spelling
    rows, numbers = _explore(table, paths, found.start)
    whole = np.concatenate(rows)
    order = np.argsort(numbers[numbers >= 0])
    ends = found.ends[np.flatnonzero(numbers >= 0)[order]]
    # Then those whose targets are the same everywhere.
    merged: dict[bytes, int] = {}
    targets = np.ascontiguousarray(numbers[whole].T)
    class_of = [merged.setdefault(column.tobytes(), len(merged)) for column in targets]
    _, first = np.unique(class_of, return_index=True)
    joined = np.concatenate([targets[first], np.full((1, len(ends)), -1, np.int32)]).T
    classes = np.full(len(vocab), len(merged), np.intp)
    classes[vocab.encode(characters)] = [class_of[spellings[spelling]] for spelling in spelled]
    return Automaton(classes, np.ascontiguousarray(joined, np.int32), ends)


def _explore(
    table: NDArray[np.int32], paths: NDArray[np.intp], start: int
) -> tuple[list[NDArray[np.int32]], NDArray[np.int32]]:
    """The byte states that whole characters reach: their targets, level by level, and their numbers, -1 for others."""
    dead = len(table) - 1
    numbers = np.full(dead + 1, -1, np.int32)
    numbers[start], count = 0, 1
    frontier, rows = np.array([start]), []
    while len(frontier):
        if count * paths.shape[1] > CELLS:
            raise Refused("large")
        targets = np.broadcast_to(frontier[:, None], (len(frontier), paths.shape[1]))
        for kinds in paths:
            targets = np.where(kinds >= 0, table[targets, kinds], targets)
        rows.append(targets.astype(np.int32))
        reached = np.unique(targets)
        frontier = reached[(numbers[reached] < 0) & (reached != dead)]
        numbers[frontier] = np.arange(count, count + len(frontier))
        count += len(frontier)
    return rows, numbers


def _distances(table: NDArray[np.int32], ends: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The fewest characters from each state to an end, (S); -1 where there is no way."""
    count = len(table)
    sources, columns = np.nonzero(table >= 0)
    edges = np.unique(table[sources, columns].astype(np.int64) * count + sources)  # by target
    starts = np.searchsorted(edges, np.arange(count + 1) * count).tolist()
    before = (edges % count).tolist()
    distances = [0 if end else -1 for end in ends.tolist()]
    queue = np.flatnonzero(ends).tolist()
    for state in queue:
        for source in before[starts[state] : starts[state + 1]]:
            if distances[source] < 0:
                distances[source] = distances[state] + 1
                queue.append(source)
    return np.array(distances, np.int64)
