"""Characters to ids and back.

Ids are laid out as ``[<pad>] [<unk>] characters in code point order``, where the two special symbols are optional.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError

Unknown = Literal["error", "skip", "unk"]
Newlines = Literal["keep", "unix"]
Unicode = Literal["keep", "NFC"]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what <pad> and <unk> decode to


def normalise(text: str, lowercase: bool = False, newlines: Newlines = "keep", unicode: Unicode = "keep") -> str:
    """Normalise a corpus or a prompt; a checkpoint records the arguments.

    ``newlines="unix"`` makes all line ends LF. ``unicode="NFC"`` composes characters (e and an acute accent become é);
    it comes last, because lower-casing can take characters apart.
    """
    if newlines == "unix":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if lowercase:
        text = text.lower()
    return text if unicode == "keep" else unicodedata.normalize(unicode, text)


def check_normalisation(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `normalise` in a checkpoint. Raises UsageError for anything else.

    Earlier checkpoints have only `lowercase`.
    """
    allowed = {"lowercase": (False, True), "newlines": get_args(Newlines), "unicode": get_args(Unicode)}
    known = all(name in allowed and type(v) in (bool, str) and v in allowed[name] for name, v in values.items())
    if "lowercase" not in values or not known:
        raise UsageError("a text normalisation is {lowercase: true|false, newlines: keep|unix, unicode: keep|NFC}")
    return dict(values)


def code_points(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """The code point of each character of `text`, without a Python loop."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def describe(characters: Iterable[str], most: int = 8) -> str:
    """Characters in an error message: ``'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE), …``."""
    listed = sorted(set(characters))
    names = [f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'unnamed')})" for c in listed[:most]]
    return ", ".join(names) + (f" and {len(listed) - most} more" if len(listed) > most else "")


@dataclass(frozen=True)
class Vocab:
    """The known characters, sorted and distinct.

    With `pad`, id 0 is a padding symbol; with `unk`, the next id stands for all characters that are not in `chars`.
    """

    chars: str
    pad: bool = False
    unk: bool = False

    def __post_init__(self) -> None:
        if not self.chars or list(self.chars) != sorted(set(self.chars)):
            raise UsageError("a vocabulary needs at least one character, sorted and without repeats")

    @classmethod
    def build(cls, text: str, *, min_freq: int = 1, pad: bool = False, unk: bool = False) -> Vocab:
        """A vocabulary of the characters that occur at least `min_freq` times in `text`."""
        if not text:
            raise UsageError("the text is empty")
        counts = np.bincount(code_points(text))
        kept = np.flatnonzero(counts >= max(min_freq, 1)).astype("<u4")
        if kept.size == 0:
            raise UsageError(f"no character of the text occurs {min_freq} times: lower data.min_freq or give more text")
        return cls(kept.tobytes().decode("utf-32-le", "surrogatepass"), pad, unk)

    def __len__(self) -> int:
        """The number of ids, special symbols included."""
        return self.offset + len(self.chars)

    @property
    def offset(self) -> int:
        """The id of the first character, which is the number of special symbols."""
        return int(self.pad) + int(self.unk)

    @property
    def unk_id(self) -> int | None:
        """The id of the unknown symbol, or None."""
        return int(self.pad) if self.unk else None

    @cached_property
    def _ids(self) -> NDArray[np.int32]:
        """The id of every code point up to the largest known one, then of all beyond it. Unknown: -1."""
        codes = code_points(self.chars)
        table = np.full(max(int(codes[-1]) + 2, 257), -1, dtype=np.int32)
        table[codes] = np.arange(self.offset, len(self), dtype=np.int32)
        return table

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        """The code point of every id; the replacement character for special symbols."""
        specials = np.full(self.offset, ord(REPLACEMENT), dtype="<u4")
        return np.concatenate([specials, code_points(self.chars).astype("<u4")])

    def knows(self, text: str) -> NDArray[np.bool_]:
        """Whether each character of `text` is in the vocabulary, (len(text))."""
        return self._ids.take(code_points(text), mode="clip") >= 0

    def encode(self, text: str, unknown: Unknown | None = None) -> NDArray[np.int32]:
        """Ids of `text`, shape (len(text),) unless characters are skipped.

        `unknown` decides about characters outside the vocabulary: ``"unk"`` encodes them as that symbol and is the
        default where it exists, ``"skip"`` drops them, ``"error"`` raises a UsageError that names them.
        """
        policy = unknown or ("unk" if self.unk else "error")
        ids = self._ids.take(code_points(text), mode="clip")
        missing = ids < 0
        if not missing.any():
            return ids
        if policy == "skip":
            return ids[~missing]
        if policy == "unk" and self.unk_id is not None:
            ids[missing] = self.unk_id
            return ids
        unseen = [text[i] for i in np.flatnonzero(missing)]
        raise UsageError(f"not in the vocabulary: {describe(unseen)}")

    def decode(self, ids: Iterable[int] | NDArray[np.integer[Any]]) -> str:
        """The text of `ids`; special symbols become U+FFFD."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        return self._codes[array].tobytes().decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"chars": self.chars, "pad": self.pad, "unk": self.unk}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocab:
        """The inverse of `to_dict`. Raises UsageError for anything else."""
        entries = values if isinstance(values, Mapping) else {}
        chars, pad, unk = entries.get("chars"), entries.get("pad"), entries.get("unk")
        if not isinstance(chars, str) or not isinstance(pad, bool) or not isinstance(unk, bool):
            raise UsageError("a vocabulary is {chars: text, pad: true|false, unk: true|false}")
        return cls(chars, pad, unk)
