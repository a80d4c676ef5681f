"""Where continuations end, against simple searches in the whole text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.inference.stopping import Stops

texts = st.text("ab", max_size=8)


def grow(stops: Stops, prompt: str, text: str) -> tuple[str, str]:
    """The text that is left and the reason, when `text` is written character by character."""
    shown = 0
    for n in range(1, len(text) + 1):
        if end := stops.find(prompt, text[:n]):
            assert end.text.startswith(text[:shown])  # what was shown is not taken back
            return end
        settled = stops.settled(prompt, text[:n])
        assert shown <= settled <= n
        shown = settled
    return text, "length"


@given(texts, texts, st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
@example("a", "b", ["ab"])
@example("", "aab", ["ab", "aab"])
def test_a_text_ends_before_the_first_stop_that_is_complete(prompt: str, text: str, stops: list[str]) -> None:
    whole = prompt + text
    ends = [
        (start + len(stop), start)
        for stop in stops
        for start in range(len(whole))
        if whole.startswith(stop, start) and start + len(stop) > len(prompt)
    ]
    expected = (text, "length")
    if ends:
        first = min(end for end, _ in ends)
        start = min(start for end, start in ends if end == first)
        expected = text[: max(0, start - len(prompt))], "stop"
    assert grow(Stops(stops), prompt, text) == expected


def test_what_may_become_a_stop_is_held_back() -> None:
    stops = Stops(["END", "\n\n"])
    assert [stops.settled("", text) for text in ("a", "aE", "aEN", "aENx", "a\n", "a\nb")] == [1, 1, 1, 4, 1, 3]
    assert stops.settled("xE", "N") == 0


@pytest.mark.parametrize(
    ("prompt", "text", "left"),
    [
        ("", "He goes. She stays.", "He goes."),
        ("Mr", ". Smith goes. He", "."),  # it does not know abbreviations
        ("", 'He said "Go!" and', 'He said "Go!"'),
        ("", "What?!\nYes", "What?!"),
        ("", "It is 3.14 now… and", "It is 3.14 now…"),
        ("He goes.", " She stays. No", " She stays."),
        ("", "他走了。她说「好！」然后", "他走了。"),
        ("", "他说「好！」然后", "他说「好！」"),
        ("", "Go." + '"' * 300 + " on", "Go." + '"' * 300),
        ("", "no end", "no end"),
        ("", "the end.", "the end."),
    ],
)
def test_sentences(prompt: str, text: str, left: str) -> None:
    found, reason = grow(Stops(at="sentence"), prompt, text)
    assert found == left and reason == ("length" if found == text else "sentence")


@pytest.mark.parametrize(
    ("prompt", "text", "left"),
    [
        ("", "one\ntwo\n\nthree", "one\ntwo"),
        ("", "\n\none\n\ntwo", "\n\none"),  # no paragraph had begun
        ("one", "\n\ntwo", ""),
        ("one\n", "\ntwo", ""),
        ("one\n\n", "\ntwo\n \nx", "\ntwo"),
        ("", "one  \n\t\n\n", "one"),
        ("", "one" + " " * 300 + "\n" + " " * 300 + "\n", "one"),
    ],
)
def test_paragraphs(prompt: str, text: str, left: str) -> None:
    assert grow(Stops(at="paragraph"), prompt, text) == (left, "paragraph")


@given(st.text('a.!" \n', max_size=30))
def test_sentences_end_where_a_search_in_the_whole_text_finds_the_first_end(text: str) -> None:
    found = re.search(r"[.!]+\"*(?=[ \n])", text)
    assert grow(Stops(at="sentence"), "", text)[0] == (text[: found.end()] if found else text)


@given(st.text("a \n", max_size=30))
def test_paragraphs_end_where_a_search_in_the_whole_text_finds_the_first_end(text: str) -> None:
    found = re.search(r"(?<=a) *\n *\n", text)
    assert grow(Stops(at="paragraph"), "", text)[0] == (text[: found.start()] if found else text)
