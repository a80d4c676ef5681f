"""Verbatim matches, compared with a search for every substring."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference.memorisation import NGRAMS, Match, longest_matches, memorisation
from tests.helpers import of_extra

ALPHABETS = {
    "two": "ab",
    "lines": "a\nb",
    "wide": "aé漢😀",
    "odd": "\0\ud800\udfff\U0010ffff",
    "latin": "\x7f\x80ÿ\x01",
}
texts = st.sampled_from(list(ALPHABETS.values())).flatmap(
    lambda alphabet: st.tuples(st.text(alphabet, max_size=24), st.text(alphabet, max_size=40))
)


@pytest.fixture(autouse=True)
def library() -> None:
    of_extra("evaluate", "pydivsufsort")


def longest_by_search(sample: str, train: str) -> list[int]:
    return [
        max(length for length in range(len(sample) - start + 1) if sample[start : start + length] in train)
        for start in range(len(sample))
    ]


@settings(max_examples=300, deadline=None)
@given(texts)
@example(("", ""))
@example(("", "ab"))
@example(("ab", ""))
@example(("a", "a"))
@example(("a", "b"))
@example(("ababab", "ab"))
def test_the_longest_match_at_every_character(pair: tuple[str, str]) -> None:
    sample, train = pair
    lengths, places = longest_matches(sample, train)
    assert lengths.tolist() == longest_by_search(sample, train)
    for start, (length, place) in enumerate(zip(lengths, places, strict=True)):
        assert length == 0 or train[place : place + length] == sample[start : start + length]


def test_more_than_256_different_characters() -> None:
    for step in (1, 200):  # two and four bytes a character
        train = "".join(map(chr, range(0x1000, 0x1000 + 400 * step, step)))
        sample = train[300:350] + "a" + train[:20]
        if step > 1:
            train += "".join(map(chr, range(0x20000, 0x20000 + 70_000)))
        found = memorisation(sample, train, 20)
        assert [(m.start, m.offset, m.length) for m in found.matches] == [(0, 300, 50), (51, 0, 20)]


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(1, 6))
@example(("aaa", "aa"), 1)
def test_matches_are_maximal_and_apart(pair: tuple[str, str], least: int) -> None:
    sample, train = pair
    found = memorisation(sample, train, least)
    inside = [False] * len(sample)
    for match in found.matches:
        end = match.start + match.length
        assert match.length >= least and sample[match.start : end] == match.text
        assert train[match.offset : match.offset + match.length] == match.text
        assert match.line == train[: match.offset].count("\n") + 1
        assert end == len(sample) or sample[match.start : end + 1] not in train
        assert match.start == 0 or sample[match.start - 1 : end] not in train
        assert not any(inside[match.start : end])
        inside[match.start : end] = [True] * match.length
    assert [m.length for m in found.matches] == sorted((m.length for m in found.matches), reverse=True)

    covered = [False] * len(sample)
    longest = 0
    for start in range(len(sample)):
        for end in range(start + 1, len(sample) + 1):
            if sample[start:end] in train:
                longest = max(longest, end - start)
                if end - start >= least:
                    covered[start:end] = [True] * (end - start)
    assert found.covered == (np.mean(covered) if sample else 0)
    assert (found.longest.length if found.longest else 0) == longest
    assert bool(found.matches) == (longest >= least)
    # A maximal match that the list leaves out overlaps one that is in it.
    lengths = longest_by_search(sample, train)
    for start, length in enumerate(lengths):
        extends = start > 0 and lengths[start - 1] > length
        assert length < least or extends or any(inside[start : start + length])


@settings(max_examples=100, deadline=None)
@given(texts)
def test_shares_of_ngrams(pair: tuple[str, str]) -> None:
    sample, train = pair
    for n, share in memorisation(sample, train).ngrams.items():
        grams = [sample[i : i + n] for i in range(len(sample) - n + 1)]
        assert share == np.mean([gram in train for gram in grams])


def test_only_ngrams_that_fit() -> None:
    assert list(memorisation("abcdefgh", "x").ngrams) == [2, 4, 8]
    assert tuple(memorisation("ab" * 32, "x").ngrams) == NGRAMS
    assert memorisation("a", "a").ngrams == {}


def test_places_and_lines() -> None:
    train = "first line\nsecond line, copied\n\nlast"
    found = memorisation("xx second line, copied\n yy", train, least=10)
    assert found.matches == (Match("second line, copied\n", 3, 11, 2),) == (found.longest,)
    assert found.covered == 20 / 26
    assert list(found.lines()) == [
        "longest match  20 characters at 3 of the sample, line 2 of the training text (offset 11)",
        "n-grams found  2: 76.0%  4: 73.9%  8: 68.4%  16: 45.5%",
        "copied         76.9% of the sample, 1 match of at least 10 characters",
        "  20 characters at 3 of the sample, line 2 of the training text (offset 11)",
        "    second␣line,␣copied⏎",
    ]
    values = json.loads(json.dumps(found.as_dict()))
    first = {"text": "second line, copied\n", "start": 3, "offset": 11, "line": 2, "length": 20}
    assert values["longest"] == first and values["matches"] == [first]
    assert values["ngrams"]["16"] == found.ngrams[16] and values["characters"] == 26


def test_of_overlapping_matches_the_longest_is_kept() -> None:
    found = memorisation("abcdefgh", "abcde / cdefgh / fgh", least=3)
    assert [(m.text, m.offset) for m in found.matches] == [("cdefgh", 8)]
    assert found.covered == 1


def test_nothing_in_common() -> None:
    for sample, train in (("abc", "xyz"), ("abc", ""), ("", "abc"), ("", "")):
        found = memorisation(sample, train)
        assert (found.longest, found.matches, found.covered) == (None, (), 0)
        assert list(found.lines()) == ["no character of the sample occurs in the training text"]
        assert found.as_dict()["longest"] is None


def test_a_long_list_is_cut() -> None:
    lines = list(memorisation("abc1abc2abc3abc", "abc", least=3).lines(most=2, width=2))
    assert lines[-3:] == [
        "  3 characters at 4 of the sample, line 1 of the training text (offset 0)",
        "    ab…",
        "  and 2 more",
    ]


def test_a_copy_is_found_in_a_text_that_repeats_itself() -> None:
    """Every suffix is alike; comparing each with its neighbour anew would take 10^10 steps."""
    found = memorisation("a" * 100_000, "b" + "a" * 200_000)
    assert found.longest is not None and found.longest.length == 100_000 and found.covered == 1


def test_user_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="least=0 must be at least 1"):
        memorisation("a", "a", 0)
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(UsageError, match="needs the package pydivsufsort"):
        memorisation("a", "a")
