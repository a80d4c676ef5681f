"""The price of unknown characters, against one that follows the definitions character by character."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.inference.unknown import Flags, Urn, unknown_nats
from charlm.text.vocab import Vocab


def by_definition(text: str, vocab: Vocab) -> list[float]:
    nats, known, seen = [], [0, 0], Counter[str]()
    for char in text:
        is_known = char in vocab.chars
        p = 1.0
        if not vocab.unk:
            p *= (known[is_known] + 1 / 2) / (sum(known) + 2 / 2)
            known[is_known] += 1
        if not is_known:
            n = sum(seen.values())
            p *= seen[char] / (n + 1) if char in seen else 1 / (n + 1) / 0x110000
            seen[char] += 1
        nats.append(-math.log(p))
    return nats


@given(text=st.text(st.sampled_from("abcxyz\n\ud800é😀")), unk=st.booleans(), pad=st.booleans())
def test_unknown_nats_follow_the_definitions(text: str, unk: bool, pad: bool) -> None:
    vocab = Vocab("\nabc", pad=pad, unk=unk)
    found = unknown_nats(text, vocab)
    assert found.shape == (len(text),) and found.dtype == np.float64
    np.testing.assert_allclose(found, by_definition(text, vocab), rtol=1e-12, atol=1e-12)


def test_a_long_known_text_costs_a_dozen_bits_and_no_python_loop() -> None:
    text = "ab" * 2_000_000 + "é"
    start = time.process_time()
    found = unknown_nats(text, Vocab("ab"))
    assert time.process_time() - start < 3
    assert found[:-1].sum() / math.log(2) == pytest.approx(0.5 * math.log2(math.pi * 4e6), abs=1e-3)
    assert not unknown_nats(text, Vocab("ab", unk=True))[:-1].any()


@given(choices=st.lists(st.booleans(), max_size=40), most=st.integers(1, 9))
@settings(max_examples=50)
def test_a_run_costs_what_its_flags_cost(choices: list[bool], most: int) -> None:
    runs, single = Flags(), Flags()
    for choice in choices:
        runs.add(choice), single.add(choice)
    found, so_far = runs.runs(1, most), 1.0
    assert found.shape == (most + 1,) and found.sum() == pytest.approx(1)
    for length in range(most):
        assert found[length] == pytest.approx(so_far * single.probability(0))
        so_far *= single.probability(1)
        single.add(1)
    assert found[most] == pytest.approx(so_far)


def test_contexts_have_counts_of_their_own() -> None:
    flags = Flags(3)
    flags.add(2, "a", times=4)
    assert [flags.probability(k, "a") for k in range(3)] == [0.5 / 5.5, 0.5 / 5.5, 4.5 / 5.5]
    assert flags.probability(2, "b") == flags.probability(2) == pytest.approx(1 / 3)


@given(st.text(st.sampled_from("abcdefghijklmn"), max_size=60))
def test_an_urn_is_a_distribution_whose_prices_are_its_probabilities(text: str) -> None:
    urn = Urn()
    for char in text:
        probabilities = urn.probabilities
        assert probabilities.sum() == pytest.approx(1) and len(probabilities) == 1 + len(urn.chars)
        slot = urn.slot(char)
        assert (slot == 0) == (char not in urn.chars)
        uniform = 0 if slot else math.log(0x110000)
        assert urn.nats(char) == pytest.approx(uniform - math.log(probabilities[slot]))
        urn.add(char)
    assert sorted(urn.chars) == sorted(set(text))
