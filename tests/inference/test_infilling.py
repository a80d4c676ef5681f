"""Infilling, compared with all middles there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.inference.decoding import NotFinite
from charlm.inference.search.infilling import Filled, infill
from charlm.inference.steps.families import steps_of
from charlm.models.recurrent import GRU
from tests.inference.test_beams import PROMPT, Toy, simple_beams
from tests.inference.test_decoding import Adder, Fixed, lively

RIGHT = np.array([2, 0, 1, 1])


def every_middle(toy: Toy, right: list[int], max_length: int, first_id: int = 0) -> list[tuple[float, tuple[int, ...]]]:
    """(-log p(middle, right | left), middle), the best first."""
    lengths = range(max_length + 1)
    middles = [m for n in lengths for m in itertools.product(range(first_id, toy.vocab_size), repeat=n)]
    return sorted((-toy.logprob((*middle, *right)), middle) for middle in middles)


def same(found: list[Filled], expected: list[tuple[float, tuple[int, ...]]]) -> None:
    assert [filled.ids for filled in found] == [ids for _, ids in expected]
    assert [filled.logprob for filled in found] == pytest.approx([-value for value, _ in expected], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    right=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    max_length=st.integers(0, 4),
    first_id=st.integers(0, 1),
)
def test_wide_beams_judge_all_middles(seed: int, right: list[int], max_length: int, first_id: int) -> None:
    toy = Toy(3, seed)
    found = infill(toy, PROMPT, np.array(right), max_length, 3**4, first_id=first_id)
    same(found, every_middle(toy, right, max_length, first_id))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), max_length=st.integers(0, 5), width=st.integers(1, 5))
def test_narrow_beams_judge_the_most_probable_middles_of_each_length(seed: int, max_length: int, width: int) -> None:
    toy = Toy(4, seed)
    middles = [()] + [
        text for n in range(1, max_length + 1) for text, _ in simple_beams(toy.logprob, 4, n, width, first_id=1)
    ]
    expected = sorted((-toy.logprob((*middle, *RIGHT)), middle) for middle in middles)
    same(infill(toy, PROMPT, RIGHT, max_length, width, first_id=1), expected)


def test_the_right_text_decides() -> None:
    # The next id is the sum of all ids and their number, so one middle of length 1 leads to the right text.
    steps = steps_of(Adder(13), 13)
    left, middle = [5, 1, 7], 9
    after = sum(left) + len(left) + middle + 1
    right = [after % 13, (after + after % 13 + 1) % 13]
    found = infill(steps, np.array(left), np.array(right), 1, 13)
    assert [filled.ids for filled in found[:1]] == [(9,)]


def test_middles_of_other_lengths_are_compared_by_their_total_probability() -> None:
    found = infill(steps_of(Fixed([0.0, 3.0]), 2), PROMPT % 2, np.array([0]), 3, 2)
    p = 1 / (1 + math.exp(-3))
    assert [filled.ids for filled in found[:4]] == [(), (1,), (1, 1), (1, 1, 1)]
    assert [f.logprob for f in found[:4]] == pytest.approx([math.log((1 - p) * p**n) for n in range(4)], rel=1e-5)


def test_among_equals_the_lower_ids_come_first() -> None:
    found = infill(steps_of(Fixed([0.0] * 3), 3), PROMPT, RIGHT, 2, 2)
    assert [filled.ids for filled in found] == [(), (0,), (1,), (0, 0), (0, 1)]


def test_equals_of_different_parents_are_in_order_of_their_ids() -> None:
    toy, after = Toy(4), {(): [-800.0, math.log(0.25), math.log(0.5), math.log(0.25)], (1,): [0.0, 0.0, -800.0, -800.0]}
    toy.logits = lambda text: np.array(after.get(tuple(text)[len(PROMPT) :], [0.0] * 4))
    found = infill(toy, PROMPT, RIGHT[:0], 2, 2)  # (1, 0), (1, 1), (2, 0) … (2, 3) have probability 1/8
    assert [filled.ids for filled in found if len(filled.ids) == 2] == [(1, 0), (1, 1)]


def test_without_a_right_text_only_the_middle_counts() -> None:
    toy = Toy(3)
    same(infill(toy, PROMPT, RIGHT[:0], 2, 9), every_middle(toy, [], 2))
    assert infill(toy, PROMPT, RIGHT[:0], 0, 9) == [Filled((), 0.0)]


@torch.inference_mode()
def test_a_real_network_gives_the_same_as_reading_each_text_anew() -> None:
    network = lively(GRU(6, 4, 8))
    found = infill(steps_of(network, 6), PROMPT, RIGHT, 4, 5, first_id=1)
    assert len(found) == 1 + 4 * 5
    for filled in found:
        text = torch.tensor([[*PROMPT.tolist(), *filled.ids, *RIGHT.tolist()]])
        logprobs = network(text).logits[0].log_softmax(-1)
        each = [logprobs[t - 1, text[0, t]].item() for t in range(len(PROMPT), text.shape[1])]
        assert filled.logprob == pytest.approx(sum(each), rel=1e-9)
    assert sorted(found, key=lambda filled: -filled.logprob) == found


def test_a_network_that_diverged_is_refused() -> None:
    with pytest.raises(NotFinite):
        infill(steps_of(Fixed([0.0, math.nan, 1.0]), 3), PROMPT, RIGHT, 2, 2)
