"""Steps of any network, and rows whose bits do not depend on how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.inference.steps.families import steps_of
from charlm.inference.steps.steps import SteadySteps, TorchSteps
from charlm.models.lesson import loops
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM
from charlm.models.windowed import Windowed

V = 7


class Rounding:
    """Steps whose state is a hash of the text, and whose logits depend on it and on how many rows are read at once.

    `kinds` gives the rounding of a number of rows; None is that of any other number.
    """

    def __init__(self, kinds: dict[int | None, float]) -> None:
        self.kinds, self.sizes = kinds, []

    def read(self, ids_T: Any) -> tuple[Any, Any]:
        state = np.array([17], np.int64)
        for i in ids_T:
            state = self.after(state, i)
        return self.logits(state, 0.0), state

    def step(self, ids_B: Any, state: Any) -> tuple[Any, Any]:
        assert len(ids_B) == len(state)
        self.sizes.append(len(ids_B))
        after = self.after(state, ids_B)
        return self.logits(after, self.kinds.get(len(ids_B), self.kinds[None])), after

    def select(self, state: Any, rows_B: Any) -> Any:
        return state[rows_B]

    def join(self, states: Sequence[Any]) -> Any:
        return np.concatenate(states)

    def after(self, state: Any, ids: Any) -> Any:
        return (state * 31 + ids + 1) % 1_000_003

    def logits(self, state: Any, rounding: float) -> Any:
        return np.sin(state[:, None] * np.arange(1.0, V + 1)) + rounding


@pytest.mark.parametrize(
    ("kinds", "fewest"),
    [
        ({None: 0.0}, 1),
        ({1: 1e-9, None: 0.0}, 2),
        ({1: 1e-9, 2: 1e-9, None: 0.0}, 4),
        ({1: 1e-9, 2: 2e-9, 4: 1e-9, None: 0.0}, 8),
        ({1: 1e-9, 2: 2e-9, 4: 1e-9, 8: 3e-9, None: 0.0}, 1),  # no number rounds like many: one by one
    ],
)
def test_the_smallest_number_that_rounds_like_many_is_found(kinds: dict[int | None, float], fewest: int) -> None:
    inner = Rounding(kinds)
    steps = SteadySteps(inner, V)
    assert steps.fewest == fewest
    for rows in (1, 2, 3, 5, 16, 33, 64, 65, 150):
        state = steps.select(steps.read(np.array([1]))[1], np.zeros(rows, np.int64))
        steps.step(np.zeros(rows, np.int64), state)  # tries this size
        inner.sizes.clear()
        logits, _ = steps.step(np.zeros(rows, np.int64), state)
        assert logits.shape == (rows, V)
        used = {kinds.get(size, kinds[None]) for size in inner.sizes}
        assert used == {kinds.get(fewest, kinds[None])}
        assert len(inner.sizes) == 1 or fewest == 1 and len(kinds) > 1


def test_a_size_that_rounds_in_another_way_is_not_used() -> None:
    inner = Rounding({1: 1e-9, 16: 1e-9, None: 0.0})
    steps = SteadySteps(inner, V)
    state = steps.select(steps.read(np.array([1]))[1], np.zeros(11, np.int64))
    steps.step(np.zeros(11, np.int64), state)
    inner.sizes.clear()
    steps.step(np.zeros(11, np.int64), state)
    assert inner.sizes == [2] * 8


@given(st.data())
def test_rows_are_those_of_their_own_texts(data: st.DataObject) -> None:
    """Random programs of read, step, select and join against the text of each row, read alone."""
    inner = Rounding(
        data.draw(st.sampled_from([{None: 0.0}, {1: 0.5, None: 0.0}, {1: 0.5, 2: 0.25, 16: 4.0, None: 0}]))
    )
    steps = SteadySteps(inner, V)
    ids = st.integers(0, V - 1)
    groups: list[tuple[list[list[int]], Any]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["read", "step", "select", "join"]))
        if action == "read" or not groups:
            text = data.draw(st.lists(ids, min_size=1, max_size=3))
            groups.append(([text], steps.read(np.array(text))[1]))
            continue
        texts, state = groups[data.draw(st.integers(0, len(groups) - 1))]
        if action == "step":
            following = data.draw(st.lists(ids, min_size=len(texts), max_size=len(texts)))
            logits, after = steps.step(np.array(following), state)
            texts = [[*text, i] for text, i in zip(texts, following, strict=True)]
            expected = [steps.step(np.array(text[-1:]), steps.read(np.array(text[:-1]))[1])[0][0] for text in texts]
            assert logits.tobytes() == np.array(expected).tobytes()
            groups.append((texts, after))
        elif action == "select":
            rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=70))
            groups.append(([texts[row] for row in rows], steps.select(state, np.array(rows))))
        else:
            others = [groups[data.draw(st.integers(0, len(groups) - 1))] for _ in range(2)]
            joined = steps.join([state, *(other for _, other in others)])
            groups.append((texts + others[0][0] + others[1][0], joined))


@pytest.mark.parametrize(
    "network",
    [GRU(V, 4, 6), LSTM(V, 4, 6, 2), loops.CharLoop(V, 4, 6), Windowed(GRU(V, 4, 6), 3)],
    ids=lambda n: type(n).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_network_in_pytorch(network: Network, dtype: torch.dtype) -> None:
    network = network.to(dtype).eval()
    steps = TorchSteps(network)
    texts = np.random.default_rng(0).integers(0, V, (3, 9))
    state = steps.join([steps.read(text_T[:4])[1] for text_T in texts])
    for t in range(4, 9):
        logits, state = steps.step(texts[:, t].copy(), state)
    with torch.no_grad():
        expected = network(torch.from_numpy(texts))[0][:, -1].to(torch.promote_types(dtype, torch.float32)).numpy()
    assert logits.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_allclose(logits, expected, atol=0.03 if dtype == torch.bfloat16 else 1e-6)
    forked, _ = steps.step(np.array([1, 1]), steps.select(state, np.array([2, 0])))
    alone, _ = steps.step(np.array([1]), steps.select(state, np.array([2])))
    np.testing.assert_allclose(forked[:1], alone, atol=0.03 if dtype == torch.bfloat16 else 1e-6)


def test_pytorch_steps_use_one_thread_and_give_the_others_back() -> None:
    network, seen = GRU(V, 4, 6).eval(), []
    network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps = TorchSteps(network)
        _, state = steps.read(np.array([1, 2]))
        steps.step(np.array([1]), state)
        assert seen == [2, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_subclass_in_pytorch_is_steady_too() -> None:
    class Mine(GRU):
        pass

    steps = steps_of(Mine(V, 40, 300).eval(), V)
    assert isinstance(steps.steps, TorchSteps)
    ids = np.random.default_rng(0).integers(0, V, (20, 6))
    together = steps.join([steps.read(text_T[:3])[1] for text_T in ids])
    alone = steps.read(ids[7, :3])[1]
    for t in range(3, 6):
        logits, together = steps.step(ids[:, t].copy(), together)
        one, alone = steps.step(ids[7:8, t].copy(), alone)
        assert logits[7].tobytes() == one[0].tobytes()
