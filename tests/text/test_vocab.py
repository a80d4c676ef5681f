from __future__ import annotations

import json
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.text.vocab import REPLACEMENT, Vocab, check_normalisation, code_points, describe, normalise

ANY_CHARACTER = st.one_of(st.characters(), st.characters(categories=["Cs"]))  # including lone surrogates
ANY_TEXT = st.text(ANY_CHARACTER, min_size=1, max_size=60)
TELLING = [
    "déjà vu – naïve",
    "e\u0301 o\u0308 combining",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "漢字かな한글",
    "a\r\nb\rc\n",
    "\ud83d alone, \ude00 alone",
    "\ud83d\ude00",  # two lone surrogates, not the emoji
    "\0\x01\x7f",
    "\U0010ffff",
    "\ufeff\ufffd",
]
few = settings(max_examples=60, deadline=None)


def naive_ids(vocab: Vocab, text: str, policy: str) -> list[int]:
    table = {character: i + int(vocab.pad) + int(vocab.unk) for i, character in enumerate(vocab.chars)}
    unk = 1 if vocab.pad else 0
    ids = []
    for character in text:
        if character in table:
            ids.append(table[character])
        elif policy == "unk":
            ids.append(unk)
    return ids


@pytest.mark.parametrize("text", TELLING)
def test_tricky_texts_survive_a_round_trip(text: str) -> None:
    vocab = Vocab.build(text, pad=True, unk=True)
    assert vocab.decode(vocab.encode(text)) == text


@few
@given(ANY_TEXT, st.booleans(), st.booleans())
def test_any_text_survives_a_round_trip(text: str, pad: Any, unk: Any) -> None:
    vocab = Vocab.build(text, pad=pad, unk=unk)
    ids = vocab.encode(text, "error")
    assert ids.shape == (len(text),)
    assert vocab.decode(ids) == text
    assert vocab.decode(ids.tolist()) == text


@few
@given(ANY_TEXT)
def test_code_points_agree_with_ord(text: str) -> None:
    assert code_points(text).tolist() == [ord(character) for character in text]


def test_the_empty_text_has_no_ids() -> None:
    vocab = Vocab("ab", pad=True, unk=True)
    assert vocab.encode("").shape == (0,)
    assert vocab.decode([]) == ""


@pytest.mark.parametrize(
    ("pad", "unk", "ids", "unk_id"),
    [(False, False, [0, 1, 2], None), (True, False, [1, 2, 3], None), (False, True, [1, 2, 3], 0)]
    + [(True, True, [2, 3, 4], 1)],
)
def test_pad_and_unk_stand_before_the_sorted_characters(pad: Any, unk: Any, ids: Any, unk_id: Any) -> None:
    vocab = Vocab.build("cab cab".replace(" ", ""), pad=pad, unk=unk)
    assert vocab.chars == "abc"
    assert vocab.encode("abc").tolist() == ids
    assert vocab.unk_id == unk_id
    assert vocab.offset == int(pad) + int(unk) == ids[0]
    assert len(vocab) == ids[-1] + 1


def test_special_ids_read_as_the_replacement_character() -> None:
    assert Vocab("ab", pad=True, unk=True).decode([0, 2, 1, 3]) == f"{REPLACEMENT}a{REPLACEMENT}b"


def test_decode_takes_any_integer_array_and_any_iterable() -> None:
    vocab = Vocab("abc")
    assert vocab.decode(np.array([2, 0], dtype=np.int16)) == "ca"
    assert vocab.decode(iter([1, 2])) == "bc"


def test_an_id_beyond_the_vocabulary_is_not_decoded() -> None:
    with pytest.raises(IndexError):
        Vocab("abc").decode([3])


@few
@given(st.text(st.one_of(st.sampled_from("abcé漢"), ANY_CHARACTER), min_size=1, max_size=40), st.integers(1, 4))
@example("aabbc", 2)
def test_min_freq_agrees_with_a_counter(text: str, min_freq: Any) -> None:
    kept = "".join(sorted(character for character, count in Counter(text).items() if count >= min_freq))
    if kept:
        assert Vocab.build(text, min_freq=min_freq).chars == kept
    else:
        with pytest.raises(UsageError, match="data.min_freq"):
            Vocab.build(text, min_freq=min_freq)


@few
@given(
    st.text(ANY_CHARACTER, min_size=1, max_size=20),
    st.text(ANY_CHARACTER, max_size=20),
    st.booleans(),
    st.sampled_from(["unk", "skip"]),
)
@example("abc", "abcd", False, "skip")
def test_encode_agrees_with_a_dict_and_a_loop(known: Any, text: str, pad: Any, policy: Any) -> None:
    vocab = Vocab.build(known, pad=pad, unk=policy == "unk")
    text = known + text + known
    assert vocab.encode(text, policy).tolist() == naive_ids(vocab, text, policy)


@pytest.mark.parametrize("known", ["a", "é", "漢", "\U0010fffe"])
def test_the_next_code_point_after_the_largest_is_unknown(known: Any) -> None:
    beyond = chr(ord(known) + 1)
    assert Vocab(known, unk=True).encode(known + beyond + "\U0010ffff" + known).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("unk", [False, True])
def test_skip_drops_unknown_characters(unk: Any) -> None:
    vocab = Vocab("ab", unk=unk)
    assert vocab.decode(vocab.encode("xaybz", "skip")) == "ab"
    assert vocab.encode("xyz", "skip").size == 0


def test_unk_is_the_default_where_the_vocabulary_has_that_symbol() -> None:
    vocab = Vocab("ab", pad=True, unk=True)
    assert vocab.encode("a?b").tolist() == vocab.encode("a?b", "unk").tolist() == [2, 1, 3]


def test_error_is_the_default_where_there_is_no_unk_symbol() -> None:
    with pytest.raises(UsageError, match="not in the vocabulary"):
        Vocab("ab").encode("a?b")


@pytest.mark.parametrize(("vocab", "policy"), [(Vocab("ab", unk=True), "error"), (Vocab("ab"), "unk")])
def test_the_error_names_each_unknown_character_once(vocab: Any, policy: Any) -> None:
    with pytest.raises(UsageError) as caught:
        vocab.encode("aé!é\ud800b", policy)
    message = str(caught.value)
    assert message.count("U+00E9 LATIN SMALL LETTER E WITH ACUTE") == 1
    assert "'!' (U+0021 EXCLAMATION MARK)" in message
    assert "U+D800 unnamed" in message
    assert "'a'" not in message and "'b'" not in message
    message.encode("utf-8")  # can be printed


def test_describe_names_eight_and_counts_the_rest() -> None:
    assert describe("ABCDEFGHIJ").endswith("'H' (U+0048 LATIN CAPITAL LETTER H) and 2 more")
    assert "more" not in describe("ABCDEFGH")


def test_encode_does_not_remember_an_earlier_call() -> None:
    vocab = Vocab("ab", unk=True)
    vocab.encode("ax")[:] = 7
    assert vocab.encode("abx").tolist() == [1, 2, 0]


@few
@given(ANY_TEXT, st.booleans(), st.booleans())
def test_a_vocabulary_survives_a_round_trip_through_plain_values(text: str, pad: Any, unk: Any) -> None:
    vocab = Vocab.build(text, pad=pad, unk=unk)
    values = vocab.to_dict()
    assert {type(value) for value in values.values()} <= {str, bool}
    again = Vocab.from_dict(json.loads(json.dumps(values)))
    assert again == vocab
    assert again.encode(text).tolist() == vocab.encode(text).tolist()


@pytest.mark.parametrize(
    "rubbish",
    [
        {},
        {"chars": "ab", "pad": False},
        {"chars": "ab", "unk": False},
        {"pad": False, "unk": False},
        {"chars": "ab", "pad": 0, "unk": False},
        {"chars": "ab", "pad": False, "unk": "no"},
        {"chars": ["a", "b"], "pad": False, "unk": False},
        {"chars": None, "pad": False, "unk": False},
        {"chars": b"ab", "pad": False, "unk": False},
        {"chars": "", "pad": True, "unk": True},
        {"chars": "ba", "pad": False, "unk": False},
        {"chars": "aab", "pad": False, "unk": False},
    ],
)
def test_from_dict_refuses_invalid_values(rubbish: Any) -> None:
    with pytest.raises(UsageError, match="a vocabulary"):
        Vocab.from_dict(rubbish)


@pytest.mark.parametrize("rubbish", [None, [], "abc", 3])
def test_from_dict_refuses_anything_but_a_mapping(rubbish: Any) -> None:
    with pytest.raises(UsageError, match="a vocabulary"):
        Vocab.from_dict(rubbish)


@pytest.mark.parametrize("chars", ["", "ba", "aa"])
def test_a_vocabulary_is_sorted_without_repeats_and_not_empty(chars: Any) -> None:
    with pytest.raises(UsageError, match="sorted and without repeats"):
        Vocab(chars)


@pytest.mark.parametrize(
    ("text", "lower"), [("ABC", "abc"), ("É漢", "é漢"), ("İ", "i\u0307"), ("Maß", "maß"), ("a\r\nB", "a\r\nb")]
)
def test_normalise_lowercases_only_on_request(text: str, lower: Any) -> None:
    assert normalise(text) == text
    assert normalise(text, lowercase=False) == text
    assert normalise(text, lowercase=True) == lower


@few
@given(ANY_TEXT, st.booleans())
@example("e\u0301\r\n\r\u212b\u2126", True)
def test_normalised_text_has_unix_line_ends_is_composed_and_stays_so(text: str, lowercase: bool) -> None:
    found = normalise(text, lowercase, "unix", "NFC")
    assert "\r" not in found and unicodedata.is_normalized("NFC", found)
    assert normalise(found, lowercase, "unix", "NFC") == found
    lines = "\n".join("\n".join(part.split("\r")) for part in text.split("\r\n"))
    assert found == unicodedata.normalize("NFC", lines.lower() if lowercase else lines)


@few
@given(ANY_TEXT)
def test_text_stays_as_it_is_unless_asked(text: str) -> None:
    assert normalise(text) == normalise(text, False, "keep", "keep") == text


@pytest.mark.parametrize(
    "values",
    [
        {"lowercase": True},
        {"lowercase": False, "newlines": "unix", "unicode": "NFC"},
        {"lowercase": True, "unicode": "keep"},
    ],
)
def test_a_recorded_normalisation_is_read_also_where_it_is_an_older_one(values: dict[str, Any]) -> None:
    assert check_normalisation(values) == values


@pytest.mark.parametrize(
    "values",
    [{}, {"lowercase": 1}, {"lowercase": "true"}, {"newlines": "unix"}, {"lowercase": True, "unicode": "NFKC"}]
    + [
        {"lowercase": True, "newlines": True},
        {"lowercase": True, "newlines": ["unix"]},
        {"lowercase": True, "form": "a"},
    ],
)
def test_anything_else_is_no_normalisation(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a text normalisation is"):
        check_normalisation(values)
