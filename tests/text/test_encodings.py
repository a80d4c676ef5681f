"""`find_encoding`: each file's encoding is found on its own; what is no text is not taken for one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.text.encodings import find_encoding

GERMAN = "Über die Brücke gehen wir schön müde nach Hause.\n"
RUSSIAN = "Привет, как дела? Это короткий русский текст.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
TEXTS = [
    (GERMAN, "latin-1", "latin-1"),
    ("voilà la carte", "latin-1", "latin-1"),
    ("café", "latin-1", "latin-1"),
    ("Räksmörgås på ön är gott, säger han på våren.", "latin-1", "latin-1"),
    ("Não há razão para a situação; são ações e corações.", "latin-1", "latin-1"),
    ("“It’s fine,” he said — and left the café…\n", "cp1252", "cp1252"),
    (RUSSIAN, "koi8-r", "koi8-r"),
    (RUSSIAN, "cp1251", "cp1251"),
    (RUSSIAN, "cp866", "cp866"),
    (JAPANESE, "shift_jis", "cp932"),  # Microsoft's superset of it
    (JAPANESE, "euc_jp", "euc-jp"),
    ("안녕하세요. 이것은 짧은 한국어 문장입니다.", "cp949", "cp949"),
    ("這是一段很短的中文文字，我是貓。", "big5", "big5"),
    ("我是猫。还没有名字。不知道生在什么地方。" * 3, "gb18030", "gb18030"),
    ("Zażółć gęślą jaźń, to jest polski tekst. ", "cp1250", "cp1250"),
    ("Él está aquí, mañana será otro día. ¿Qué?", "mac_roman", "mac-roman"),
    ("a\n" * 50_000 + GERMAN + "a\n" * 50_000, "latin-1", "latin-1"),  # the evidence is far inside
]


@pytest.mark.parametrize(("text", "encoding", "name"), TEXTS)
def test_a_short_text_in_an_old_encoding_is_read_and_the_encoding_named(text: str, encoding: str, name: str) -> None:
    assert find_encoding(text.encode(encoding)) == (text, name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides(encoding: str) -> None:
    found = find_encoding("Grüße, 漢字 €5".encode(encoding))
    assert found and found[0].lstrip("\ufeff") == "Grüße, 漢字 €5"
    assert found[1] == encoding.removesuffix("-sig")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_nuls(encoding: str) -> None:
    assert find_encoding((GERMAN * 5).encode(encoding)) == (GERMAN * 5, encoding)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
def test_utf_8_is_always_read_as_utf_8(text: str) -> None:
    assert find_encoding(text.encode()) == (text, "utf-8")


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_not_but_never_a_crash(data: bytes) -> None:
    try:
        found = find_encoding(data)
    except UnicodeDecodeError:
        return
    if found:
        assert found[0].encode("utf-16" if found[1] == "utf-16" else found[1], "surrogatepass") is not None


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_text(seed: int) -> None:
    noise = random.Random(seed).randbytes(3000)
    assert find_encoding(noise) is None
    assert find_encoding(noise.replace(b"\0", b"\1")) is None


@pytest.mark.parametrize("damaged", [GERMAN.encode()[:20] * 9 + b"\xfc\n", ("é" * 50).encode()[:-1]])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf_8_with_a_wrong_byte_is_not_read_as_something_else(damaged: bytes, mark: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        find_encoding(mark + damaged)
