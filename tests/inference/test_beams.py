"""Beam search, compared with all texts there are and with a beam search that reads each text anew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.inference.decoding import NotFinite
from charlm.inference.search.beams import Beam, _ranked, beam_search, best, log_softmax
from charlm.inference.steps.families import steps_of
from charlm.models.recurrent import GRU
from tests.inference.test_decoding import Fixed, lively

PROMPT = np.array([1, 0, 2])


class Toy:
    """Steps whose state is the texts themselves: the logits after a text are random, but always the same."""

    def __init__(self, vocab_size: int, seed: int = 0, spread: float = 2.0) -> None:
        self.vocab_size, self.seed, self.spread = vocab_size, seed, spread
        self.reads = self.rows = self.steps = 0

    def logits(self, text: Iterable[int]) -> np.ndarray:
        return np.random.default_rng([self.seed, *text]).normal(0, self.spread, self.vocab_size)

    def read(self, ids_T):
        self.reads += 1
        text = tuple(ids_T.tolist())
        return self.logits(text)[None], [text]

    def step(self, ids_B, state):
        assert len(ids_B) == len(state)
        self.steps, self.rows = self.steps + 1, self.rows + len(state)
        texts = [(*text, new) for text, new in zip(state, ids_B.tolist(), strict=True)]
        return np.stack([self.logits(text) for text in texts]), texts

    def select(self, state, rows_B):
        return [state[row] for row in rows_B]

    def join(self, states):
        return [text for state in states for text in state]

    def logprob(self, text: Iterable[int], prompt: Iterable[int] = PROMPT) -> float:
        """log p(text | prompt), by the definition."""
        total, read = 0.0, [int(i) for i in prompt]
        for new in text:
            p = np.exp(self.logits(read))
            total += math.log(p[new] / p.sum())
            read.append(int(new))
        return total


class Total:
    """The constraint that the ids of the whole text add up to `total`: a state is what is left."""

    def __init__(self, total: int, vocab_size: int) -> None:
        self.start, self.vocab_size = total, vocab_size

    def allowed(self, state, remaining):
        assert remaining >= 1
        largest = self.vocab_size - 1
        return np.array([0 <= state - i <= (remaining - 1) * largest for i in range(self.vocab_size)])

    def advance(self, state, chosen):
        assert chosen <= state
        return state - chosen

    def may_end(self, state):
        return state == 0


def search(steps, length: int, width: int, prompt: np.ndarray = PROMPT, **options) -> list[Beam]:
    return beam_search(steps, *steps.read(prompt), length, width, **options)


def order(found: tuple[tuple[int, ...], float]) -> tuple[float, tuple[int, ...]]:
    return -found[1], found[0]


def simple_beams(logprob, vocab_size, length, width, first_id=0, ended=lambda ids: False):
    """A beam search that keeps nothing between the levels but texts, and stops at nothing but the length."""
    texts, over = [()], []
    for level in range(1, length + 1):
        candidates = [(*text, i) for text in texts for i in range(first_id, vocab_size)]
        best = sorted(((text, logprob(text)) for text in candidates), key=order)
        texts = []
        for text, value in best:
            if ended(text) or level == length:
                over.append((text, value))
            else:
                texts.append(text)
            if len(texts) == width:
                break
    return sorted(over, key=order)[:width]


def same(found: list[Beam], expected: list[tuple[tuple[int, ...], float]]) -> None:
    assert [beam.ids for beam in found] == [text for text, _ in expected]
    assert [beam.logprob for beam in found] == pytest.approx([value for _, value in expected], rel=1e-9)


@pytest.mark.parametrize("first_id", [0, 1])
def test_wide_beams_find_the_best_of_all_texts(first_id: int) -> None:
    toy = Toy(4, seed=first_id)
    everything = itertools.product(range(first_id, 4), repeat=4)
    expected = sorted(((text, toy.logprob(text)) for text in everything), key=order)
    for width in (4**3, 4**3 + 5, 10**4):
        same(search(toy, 4, width, first_id=first_id), expected[:width])


def test_width_one_is_greedy() -> None:
    toy, text = Toy(6, seed=3), ()
    for _ in range(12):
        text = (*text, 2 + int(toy.logits([*PROMPT, *text])[2:].argmax()))
    same(search(toy, 12, 1, first_id=2), [(text, toy.logprob(text))])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 5),
    length=st.integers(1, 6),
    width=st.integers(1, 12),
    special=st.booleans(),
    stop=st.sampled_from([None, 1, 2]),
)
def test_other_widths_equal_a_simple_beam_search(seed, vocab_size, length, width, special, stop) -> None:
    toy = Toy(vocab_size, seed)

    def ended(ids: tuple[int, ...]) -> bool:
        return stop is not None and ids[-1] == vocab_size - 1 and len(ids) >= stop

    found = search(toy, length, width, first_id=int(special), ended=ended)
    same(found, simple_beams(toy.logprob, vocab_size, length, width, int(special), ended))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), total=st.integers(0, 9), length=st.integers(0, 5))
def test_constrained_beams_find_the_best_of_all_texts_that_are_allowed(seed, total, length) -> None:
    toy = Toy(3, seed)
    # A text that has its sum goes on with zeros, so all are of full length.
    everything = [text for text in itertools.product(range(3), repeat=length) if sum(text) == total]
    expected = sorted(((text, toy.logprob(text)) for text in everything), key=order)
    same(search(toy, length, 3**5, constraint=Total(total, 3)), expected)
    narrow = {beam.ids for beam in search(toy, length, 2, constraint=Total(total, 3))}
    assert narrow <= set(everything)
    assert bool(narrow) == bool(everything)


class Finite:
    """The constraint that the text is one of `texts`, and ends where it cannot go on."""

    start: tuple[int, ...] = ()

    def __init__(self, texts: list[tuple[int, ...]], vocab_size: int) -> None:
        self.texts, self.vocab_size = texts, vocab_size

    def allowed(self, state, remaining):
        following = {text[len(state)] for text in self.texts if text[: len(state)] == state and len(text) > len(state)}
        return np.isin(np.arange(self.vocab_size), list(following))

    def advance(self, state, chosen):
        return (*state, chosen)

    def may_end(self, state):
        return state in self.texts


@pytest.mark.parametrize("seed", range(5))
def test_texts_end_where_nothing_more_is_allowed(seed: int) -> None:
    texts = [(0,), (1, 2, 1), (1, 2, 2), (2, 0), (2, 1, 1, 1, 0), (3, 3, 3, 3, 3, 3)]
    toy = Toy(4, seed)
    expected = sorted(((text, toy.logprob(text)) for text in texts if len(text) <= 5), key=order)
    same(search(toy, 5, 10, constraint=Finite(texts, 4)), expected)


def test_a_text_that_can_neither_go_on_nor_end_is_dropped() -> None:
    toy = Toy(3)

    class Never(Finite):
        def may_end(self, state):
            return state == (2, 1)

    assert [beam.ids for beam in search(toy, 4, 5, constraint=Never([(0,), (1, 1), (2, 1)], 3))] == [(2, 1)]
    assert search(toy, 4, 5, constraint=Never([(0,), (1, 1)], 3)) == []
    # It takes no place from the others.
    toy.logits = lambda text: np.array([5.0, 0.0, 1.0])
    assert [beam.ids for beam in search(toy, 4, 1, constraint=Never([(0,), (2, 1)], 3))] == [(2, 1)]
    assert search(toy, 0, 5, constraint=Never([(0,)], 3)) == []
    assert search(toy, 4, 5, constraint=Finite([()], 3)) == [Beam((), 0.0)]


def test_a_stop_where_the_constraint_has_not_ended_is_passed_over() -> None:
    toy = Toy(3)
    texts = [(1, 0, 2), (1, 1)]
    found = search(toy, 5, 5, constraint=Finite([*texts, (1, 1, 0)], 3), ended=lambda ids: ids[-1] == 1)
    assert sorted(beam.ids for beam in found) == [(1, 0, 2), (1, 1)]


def test_an_ended_text_is_kept_however_many_open_ones_are_better_for_a_while() -> None:
    toy, p = Toy(3), {(): [0.21, 0.6, 0.19], (1,): [0.499, 0.499, 0.002]}
    toy.logits = lambda text: np.log(p.get(tuple(text)[len(PROMPT) :], [1 / 3] * 3))
    found = search(toy, 4, 2, ended=lambda ids: ids == (0,))  # (1, 0) and (1, 1) are better than (0,)
    same(found[:1], [((0,), math.log(0.21))])
    assert [beam.ids for beam in found] == [(0,), (1, 0, 0, 0)]


def test_among_equals_the_lower_ids_come_first() -> None:
    for network in (Fixed([0.0] * 4), Fixed([0.0, 1.0, 1.0, 1.0])):
        found = search(steps_of(network, 4), 3, 5, first_id=1)
        assert [beam.ids for beam in found] == [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 1), (1, 2, 2)]


def test_an_equal_text_that_ends_later_still_comes_first_by_its_ids() -> None:
    # (2,) is the second text that ends. (0, 0), (0, 1) … are as probable and go on with certainty.
    half = math.log(0.5)
    toy, after = Toy(4), {(): [0.0, half, 2 * half, -800.0], (0,): [0.0] * 4}
    toy.logits = lambda text: np.array(after.get(tuple(text)[len(PROMPT) :], [0.0, -800.0, -800.0, -800.0]))
    found = search(toy, 3, 2, ended=lambda ids: ids in [(1,), (2,)])
    assert [beam.ids for beam in found] == [(1,), (0, 0, 0)]


def test_equals_of_different_parents_are_in_order_of_their_ids() -> None:
    halves = {(): [-800.0, math.log(0.25), math.log(0.5), math.log(0.25)], (1,): [0.0, 0.0, -800.0, -800.0]}
    toy = Toy(4)
    toy.logits = lambda text: np.array(halves.get(tuple(text)[len(PROMPT) :], [0.0] * 4))
    found = search(toy, 2, 2)  # all of (1, 0), (1, 1), (2, 0) … (2, 3) have probability 1/8
    assert [beam.ids for beam in found] == [(1, 0), (1, 1)]
    assert [beam.logprob for beam in found] == pytest.approx([math.log(1 / 8)] * 2)


def test_nothing_more_is_read_when_no_open_text_can_win() -> None:
    toy = Toy(3)
    toy.logits = lambda text: np.array([0.0, 0.0, 9.0])
    found = search(toy, 5, 1, ended=lambda ids: ids[-1] == 2)
    one = pytest.approx(toy.logprob((2,)))
    assert found == [Beam((2,), one, (one,))]
    assert toy.steps == 0


def test_the_state_is_forked_and_each_level_is_one_step() -> None:
    toy = Toy(5)
    logits, state = toy.read(PROMPT)
    kept = logits.copy(), list(state)
    first = beam_search(toy, logits, state, 6, 3)
    assert toy.steps == 5
    assert toy.rows == 15
    assert (logits == kept[0]).all()
    assert state == kept[1]
    assert beam_search(toy, logits, state, 6, 3) == first
    assert search(toy, 0, 3) == [Beam((), 0.0)]


@torch.inference_mode()
def test_a_real_network_gives_the_same_as_reading_each_text_anew() -> None:
    network = lively(GRU(7, 4, 8))

    def logprob(text: tuple[int, ...]) -> float:
        whole = torch.tensor([[*PROMPT.tolist(), *text]])
        logprobs = network(whole).logits[0].log_softmax(-1)
        return sum(logprobs[len(PROMPT) - 1 + t, new].item() for t, new in enumerate(text))

    for width in (1, 3, 10):
        same(search(steps_of(network, 7), 8, width, first_id=1), simple_beams(logprob, 7, 8, width, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_diverged_is_refused(bad: float) -> None:
    with pytest.raises(NotFinite):
        search(steps_of(Fixed([0.0, bad, 1.0]), 3), 3, 2)


def test_log_softmax_of_float32_is_in_float64() -> None:
    logits = np.array([[0.1, -3e38, 5.0], [1000.0, 1000.0, 1000.0]], np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float64
    x = [float(value) for value in logits[0]]
    assert found[0, 0] == pytest.approx(x[0] - x[2] - math.log1p(math.exp(x[0] - x[2])), rel=1e-14)
    assert found[1] == pytest.approx([-math.log(3)] * 3, rel=1e-14)
    assert np.isfinite(found).all()
    assert (found <= 0).all()


@given(st.lists(st.sampled_from([-math.inf, -1e300, -2.0, -1.0, 0.0]), min_size=1, max_size=12), st.integers(1, 14))
def test_the_best_come_first_lower_indices_first_and_without_what_is_impossible(scores, count) -> None:
    possible = [i for i, score in enumerate(scores) if score > -math.inf]
    expected = sorted(possible, key=lambda i: (-scores[i], i))
    assert best(np.array(scores), count).tolist() == expected[:count]
    assert list(_ranked(np.array(scores), count)) == expected
