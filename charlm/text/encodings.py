"""The encoding of a file that does not say it: by its byte order mark, as strict UTF-8, else by charset-normalizer."""

from __future__ import annotations

import codecs
import io
import re
from itertools import pairwise

AUTO = "auto"  # data.encoding=auto: each file's encoding is found on its own
SNIFF = 8192  # a file with a NUL byte among its first bytes is binary, as for git
EVIDENCE = 2**16  # bytes of lines with other characters than ASCII that are looked at

MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1a\x1b"))  # hardly ever in a text
C1 = bytes(range(0x80, 0xA0))  # letters and quotation marks in cp1252, control characters in Latin-1

# What texts are found in, the likelier first: the order decides where nothing else does.
LIKELY = (
    *("cp1252", "cp1251", "koi8_r", "cp1250", "iso8859_2", "cp1253", "iso8859_7", "cp866", "mac_roman", "cp850"),
    *("cp932", "euc_jp", "cp949", "big5", "gb18030", "cp1257", "cp1254", "cp1255", "cp1256"),
)
# Most files outside UTF-8 are in cp1252 or its subset Latin-1. They are taken for it if it is nearly as plausible as
# the best: in its disorder, and in its share of a language's usual letters.
DISORDER, LANGUAGE = 0.1, 0.02
UNKNOWN = 0.2  # the disorder from which the detector does not list an encoding
KANA = re.compile("[\u3041-\u30ff]")
ODD = re.compile(  # what a wrong encoding makes of words: a symbol within, half-width katakana
    r"(?<=[^\W\d_])(?![·’–—…“”«»])[\x80-\xbf×÷\u2000-\u26ff](?=[^\W\d_])|[\uff61-\uff9f]"
)


def find_encoding(data: bytes) -> tuple[str, str] | None:
    """The text of `data` and the name of its encoding; None for what is not text.

    A byte order mark stays in the text. Raises UnicodeDecodeError for UTF-8 with a few invalid bytes, because any other
    encoding would read its characters wrongly.
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return (data.decode(), "utf-8") if mark == b"\xef\xbb\xbf" else _decoded(data, name)
    if b"\0" in data[:SNIFF] and (wide := _unmarked_utf_16(data)):
        return wide
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        head = data[:SNIFF]
        if b"\0" in head or len(head) - len(head.translate(None, CONTROLS)) > len(head) // 200:
            return None
        if _nearly_utf_8(data):
            raise
    for name in _candidates(data):
        if found := _decoded(data, name):
            latin_1 = name == "cp1252" and len(data.translate(None, C1)) == len(data)
            return found[0], "latin-1" if latin_1 else name.replace("_", "-")
    return None


def _decoded(data: bytes, name: str) -> tuple[str, str] | None:
    try:
        return data.decode(name), name
    except UnicodeDecodeError:
        return None


def _unmarked_utf_16(data: bytes) -> tuple[str, str] | None:
    """UTF-16 without a mark, recognised by NULs in nearly every second byte: mostly Latin letters."""
    halves = data[:SNIFF:2], data[1:SNIFF:2]
    for name, zeros, others in (("utf-16-le", halves[1], halves[0]), ("utf-16-be", halves[0], halves[1])):
        if zeros.count(0) > 0.7 * len(zeros) and 0 not in others and (found := _decoded(data, name)):
            if all(c.isprintable() or c.isspace() for c in found[0][:SNIFF].lstrip("\ufeff")):
                return found
    return None


def _nearly_utf_8(data: bytes) -> bool:
    """Whether most bytes outside ASCII form valid UTF-8, which hardly happens by chance in another encoding."""
    replaced = data.decode(errors="replace")
    wrong = replaced.count("\N{REPLACEMENT CHARACTER}")
    return sum(not c.isascii() for c in replaced) >= 2 * wrong


def _candidates(data: bytes) -> list[str]:
    """Encodings that `data` may be in, the most plausible first."""
    from charset_normalizer import from_bytes

    lines, size = [], 0
    for line in io.BytesIO(data):  # ASCII says nothing
        if not line.isascii():
            if len(line) > EVIDENCE:
                line = line[:EVIDENCE].rpartition(b" ")[0] or line  # a space is never part of another character
            lines.append(line)
            size += len(line)
            if size > EVIDENCE:
                break
    evidence = b"".join(lines)
    seen = {}
    for match in from_bytes(evidence, cp_isolation=list(LIKELY)):
        for name in (match.encoding, *match.could_be_from_charset):  # which read these bytes alike
            seen[name] = (match.chaos, match.coherence)
    found = {}
    for place, name in enumerate(LIKELY):
        if text := _decoded(evidence, name):
            disorder, language = seen.get(name, (UNKNOWN, 0.0))
            if len(KANA.findall(text[0])) > len(text[0]) / 5:
                disorder, language = 0.0, 1.0  # nothing else looks like Japanese
            found[name] = (round(disorder + _oddness(text[0]), 2), -language, place)
    ranked = sorted((name for name in found if found[name][0] <= 2 * UNKNOWN), key=found.__getitem__)
    if "cp1252" in ranked:
        (disorder, language, _), best = found["cp1252"], found[ranked[0]]
        if disorder <= best[0] + DISORDER and language <= best[1] + LANGUAGE:
            ranked.insert(0, "cp1252")
    return ranked


def _oddness(text: str) -> float:
    """The share of the characters outside ASCII that stand where no word has them."""
    others = sum(not c.isascii() for c in text)
    flips = sum(a.islower() and b.isupper() and not (a.isascii() and b.isascii()) for a, b in pairwise(text))
    return (len(ODD.findall(text)) + flips) / max(others, 1)
