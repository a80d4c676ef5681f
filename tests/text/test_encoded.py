"""`encode` turns a corpus into ids."""

import numpy as np
import pytest

from charlm.errors import UsageError
from charlm.text.corpus import Corpus
from charlm.text.encoded import encode


def corpus(text: str, *extra: str) -> Corpus:
    more = tuple(Corpus(part, "more", "1" * 64) for part in extra)
    return Corpus(text, "made up", "0" * 64, ("a notice",), more)


def test_what_the_corpus_says_is_kept() -> None:
    encoded = encode(corpus("abba"))
    assert (encoded.source, encoded.sha256, encoded.notices) == ("made up", "0" * 64, ("a notice",))
    assert encoded.ids.tolist() == [0, 1, 1, 0] and encoded.extra == ()
    assert encoded.normalisation == {"lowercase": False, "newlines": "keep", "unicode": "keep"}


def test_extra_texts_share_vocabulary_and_normalisation() -> None:
    encoded = encode(corpus("AB", "bC", "c"), lowercase=True, pad=True)
    assert encoded.vocab.chars == "abc"
    assert [ids.tolist() for ids in (encoded.ids, *encoded.extra)] == [[1, 2], [2, 3], [3]]
    assert encoded.normalisation == {"lowercase": True, "newlines": "keep", "unicode": "keep"}


def test_the_vocabulary_can_be_limited_to_the_beginning_and_extra_texts() -> None:
    encoded = encode(corpus("aabbc", "dd"), vocab_part=lambda length: length - 1, min_freq=2, unk=True)
    assert encoded.vocab.chars == "abd"
    assert encoded.ids.tolist() == [1, 1, 2, 2, 0]


def test_an_unknown_character_of_an_extra_text_is_refused_too() -> None:
    with pytest.raises(UsageError, match=r"'c' \(U\+0063 .*data\.unk=true"):
        encode(corpus("abab", "aabbc"), min_freq=2)


@pytest.mark.parametrize(("characters", "dtype"), [(2**15 - 1, np.int16), (2**15, np.int32)])
def test_ids_are_as_small_as_the_vocabulary_allows(characters: int, dtype: type) -> None:
    text = "".join(chr(0x10000 + i) for i in range(characters))
    encoded = encode(corpus(text, text[-1]))
    assert {ids.dtype for ids in (encoded.ids, *encoded.extra)} == {np.dtype(dtype)}
    assert encoded.extra[0].tolist() == [characters - 1]
