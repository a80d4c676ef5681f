"""Completion, compared with all endings there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.inference.decoding import NotFinite
from charlm.inference.search.beams import Text
from charlm.inference.search.completion import Completion, Completions, Reader, complete, word_ends
from charlm.inference.steps.families import steps_of
from charlm.models.recurrent import GRU
from charlm.text.vocab import Vocab
from tests.inference.test_beams import PROMPT, Toy
from tests.inference.test_decoding import Fixed, lively


def mask(vocab_size: int, *ends: int) -> np.ndarray:
    return np.isin(np.arange(vocab_size), ends)


def completions(steps, n: int, ends: np.ndarray, max_length: int = 4, **options) -> Completions:
    return complete(steps, *steps.read(PROMPT), n, ends, max_length, **options)


def every_ending(toy: Toy, ends: np.ndarray, max_length: int, first_id: int = 0) -> list[tuple[float, Text]]:
    """(-probability, ids) of all endings of up to `max_length` ids, the best first."""
    inside = [i for i in range(first_id, toy.vocab_size) if not ends[i]]
    found = []
    for length in range(max_length + 1):
        for text in itertools.product(inside, repeat=length):
            last = sum(math.exp(toy.logprob((*text, i))) for i in np.flatnonzero(ends) if i >= first_id)
            found.append((-last, text))
    return sorted(found)


def same(found: Completions, expected: list[tuple[float, Text]]) -> None:
    assert [ending.ids for ending in found.endings] == [text for _, text in expected]
    assert [ending.probability for ending in found.endings] == pytest.approx([-p for p, _ in expected], rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 5),
    spread=st.sampled_from([0.1, 2.0, 6.0]),
    n=st.integers(1, 40),
    max_length=st.integers(0, 3),
    first_id=st.integers(0, 1),
    batch=st.sampled_from([1, 2, 3, 64]),
    data=st.data(),
)
def test_the_best_of_all_endings_are_found(seed, vocab_size, spread, n, max_length, first_id, batch, data) -> None:
    toy = Toy(vocab_size, seed, spread)
    ends = mask(vocab_size, *data.draw(st.sets(st.integers(first_id, vocab_size - 1), min_size=1)))
    everything = every_ending(toy, ends, max_length + 1, first_id)
    short = [(p, text) for p, text in everything if len(text) <= max_length]
    found = completions(toy, n, ends, max_length, first_id=first_id, batch=batch)
    same(found, short[:n])
    assert sum(ending.probability for ending in found.endings) <= 1 + 1e-12
    listed = {ending.ids for ending in found.endings}
    missing = [-p for p, text in everything if text not in listed]
    assert max(missing, default=0.0) <= found.bound * (1 + 1e-12)


def test_what_is_missing_is_bounded_where_the_search_stops_early() -> None:
    toy, ends = Toy(6, seed=1, spread=0.3), mask(6, 0)
    everything = every_ending(toy, ends, 4)
    whole = completions(toy, 30, ends, 4)
    assert whole.bound == whole.endings[-1].probability
    gaps = []
    for most in (1, 2, 10, 50, 200):
        toy.rows = 0
        found = completions(toy, 30, ends, 4, most=most, batch=7)
        assert toy.rows <= most - 1  # the first prefix, the empty one, has been read
        listed = {ending.ids: ending.probability for ending in found.endings}
        assert len(listed) == min(most, 30)
        assert max(-p for p, text in everything if text not in listed) <= found.bound
        assert all(listed[text] == pytest.approx(-p) for p, text in everything if text in listed)
        gaps.append(found.bound - found.endings[-1].probability)
    assert gaps[0] > 0
    assert gaps[-1] < gaps[0]
    # The best unread prefix is the bound, not something loose.
    first = max(math.exp(toy.logprob((i,))) for i in range(1, 6))
    assert completions(toy, 30, ends, 4, most=1).bound == pytest.approx(first, rel=1e-12)


def test_longer_endings_are_not_searched_but_bounded() -> None:
    steps = steps_of(Fixed([0.0, 5.0]), 2)  # mostly goes on
    p = 1 / (1 + math.exp(-5))
    found = completions(steps, 3, mask(2, 0), 1)
    assert [ending.ids for ending in found.endings] == [(), (1,)]
    assert [ending.probability for ending in found.endings] == pytest.approx([1 - p, p * (1 - p)], rel=1e-5)
    assert found.bound == pytest.approx(p * p)


def test_nothing_is_missing_where_there_are_no_more_endings() -> None:
    found = completions(Toy(3), 5, mask(3, 0, 1, 2))
    assert [ending.ids for ending in found.endings] == [()]
    assert found.endings[0].probability == pytest.approx(1)
    assert found.bound == 0.0


def test_rounding_makes_nothing_more_than_certain() -> None:
    for seed in range(200):
        found = completions(Toy(7, seed), 1, mask(7, *range(7)))
        assert found.endings[0].probability <= 1.0


def test_a_word_without_ends_has_no_endings() -> None:
    toy = Toy(3)
    assert completions(toy, 5, mask(3)) == Completions([], 0.0)
    assert completions(toy, 5, mask(3, 0), first_id=1) == Completions([], 0.0)
    assert toy.steps == 0


def test_special_symbols_neither_go_on_nor_end() -> None:
    steps = steps_of(Fixed([8.0, 7.0, 0.0, 1.0]), 4)
    found = completions(steps, 4, mask(4, 1, 2), 3, first_id=2)
    weights = np.exp([8.0, 7.0, 0.0, 1.0])
    p = weights / weights.sum()
    assert [ending.ids for ending in found.endings] == [(), (3,), (3, 3), (3, 3, 3)]
    assert [e.probability for e in found.endings] == pytest.approx([p[2] * p[3] ** i for i in range(4)], rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_among_equals_the_lower_ids_come_first(batch: int) -> None:
    found = completions(steps_of(Fixed([0.0] * 5), 5), 7, mask(5, 4), 3, batch=batch)
    expected = [(), (0,), (1,), (2,), (3,), (0, 0), (0, 1)]
    assert [ending.ids for ending in found.endings] == expected


def test_an_equal_ending_that_is_found_later_still_comes_first_by_its_ids() -> None:
    # After (0,), a 0 is certain, then an end: as probable as (1,), which is found one step earlier.
    toy, after = Toy(3), {(): [0.0, 0.0, -800.0], (0,): [0.0, -800.0, -800.0]}
    toy.logits = lambda text: np.array(after.get(tuple(text)[len(PROMPT) :], [-800.0, -800.0, 0.0]))
    found = completions(toy, 1, mask(3, 2), 3)
    assert found.endings == [Completion((0, 0), 0.5)]


def test_a_hopeless_prefix_is_not_read() -> None:
    steps = Toy(50, seed=2, spread=4.0)
    found = completions(steps, 1, mask(50, 3), 6, batch=1)
    certain = [i for i in range(50) if math.exp(steps.logprob((i,))) >= found.endings[0].probability and i != 3]
    assert steps.rows >= 1
    assert steps.rows <= 10 * max(len(certain), 1)


def test_how_many_are_read_at_once_changes_nothing_and_the_state_is_kept() -> None:
    network = lively(GRU(9, 4, 8))
    steps, ends = steps_of(network, 9), mask(9, 1, 5)
    logits, state = steps.read(PROMPT)
    first = complete(steps, logits, state, 12, ends, 8, first_id=1)
    for batch in (1, 3, 8, 200):
        assert complete(steps, logits, state, 12, ends, 8, first_id=1, batch=batch) == first
    for ending in first.endings:
        assert ending.probability == pytest.approx(by_reading_anew(network, ending.ids, [1, 5]), rel=1e-9)


@torch.inference_mode()
def by_reading_anew(network: GRU, ids: Text, ends: list[int]) -> float:
    p = network(torch.tensor([[*PROMPT.tolist(), *ids]])).logits[0].softmax(-1)[len(PROMPT) - 1 :]
    return math.prod(p[t, i].item() for t, i in enumerate(ids)) * p[len(ids), ends].sum().item()


def test_a_network_that_diverged_is_refused() -> None:
    with pytest.raises(NotFinite):
        completions(steps_of(Fixed([0.0, math.nan, 1.0]), 3), 3, mask(3, 0))


def test_what_ends_a_word() -> None:
    inside = "aZéß0½_'’-‐ñ漢かカ한дعा\u0301ªˈ·\u00ad\u200c\u200d"
    outside = ' \n\t\u00a0.,;:!?"“”«»()[]—–…/\\@#&*+=<>|~^`$€。、「」♥🙂\u200b\u2028'
    vocab = Vocab("".join(sorted(set(inside + outside))), pad=True, unk=True)
    ends = word_ends(vocab)
    assert ends.shape == (len(vocab),)
    assert not ends[:2].any()
    assert set(vocab.decode(np.flatnonzero(ends))) == set(outside)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=8),
    remembered=st.integers(1, 6),
)
def test_a_reader_gives_what_reading_gives(texts: list[list[int]], remembered: int) -> None:
    toy, plain = Toy(3), Toy(3)
    reader = Reader(toy, remembered)
    for text in texts:
        logits, state = reader.read(np.array(text))
        expected = plain.read(np.array(text))
        assert (logits == expected[0]).all()
        assert state == expected[1]
        assert len(reader._after) <= remembered


def test_a_typed_character_costs_one_step_and_a_deleted_one_nothing() -> None:
    toy = Toy(3)
    reader = Reader(toy)
    text = np.arange(40) % 3
    for end in (20, 21, 22, 22, 23, 22, 21, 20):
        reader.read(text[:end])
    assert (toy.reads, toy.steps) == (1, 3)
    reader.read(np.concatenate([text[:21], [(text[21] + 1) % 3]]))  # 20 is kept, 21 was left behind
    assert (toy.reads, toy.steps) == (1, 5)
    reader.read(text[:19])  # before what is kept
    assert toy.reads == 2
    reader.read(text)  # many new ones
    assert (toy.reads, toy.steps) == (3, 5)


def test_a_reader_does_not_depend_on_the_array_it_was_given() -> None:
    reader, text = Reader(Toy(3)), np.array([0, 1, 2])
    reader.read(text)
    text[:] = 1
    assert reader.read(text)[1] == [(1, 1, 1)]
