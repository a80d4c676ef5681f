"""Characters to ids and back.

A vocabulary knows characters only: it never sees a file or a device. Ids are laid out as
``[<pad>] [<unk>] characters in code point order``, where the two special symbols are optional.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError

Unknown = Literal["error", "skip", "unk"]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # how an <unk> id reads when it is decoded


def normalise(text: str, lowercase: bool = False) -> str:
    """Apply the text normalisation that a checkpoint records, the same for corpora and prompts."""
    return text.lower() if lowercase else text


def check_normalisation(values: Mapping[str, Any]) -> dict[str, bool]:
    """The arguments of `normalise` as a checkpoint states them. Raises UsageError for anything else."""
    if set(values) != {"lowercase"} or not isinstance(values["lowercase"], bool):
        raise UsageError("a text normalisation is {lowercase: true|false}")
    return dict(values)


def code_points(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """The code points of `text` as an array, one entry a character, without a Python loop."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def describe(characters: Iterable[str], most: int = 8) -> str:
    """Name characters for an error message: ``'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE), …``."""
    listed = sorted(set(characters))
    names = [f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'unnamed')})" for c in listed[:most]]
    return ", ".join(names) + (f" and {len(listed) - most} more" if len(listed) > most else "")


@dataclass(frozen=True)
class Vocab:
    """An ordered set of characters with optional padding and unknown symbols.

    Arguments: `chars`, the known characters, sorted and distinct; `pad`, whether id 0 is a padding
    symbol; `unk`, whether the next id stands for every character not in `chars`.
    """

    chars: str
    pad: bool = False
    unk: bool = False

    def __post_init__(self) -> None:
        if not self.chars or list(self.chars) != sorted(set(self.chars)):
            raise UsageError("a vocabulary needs at least one character, sorted and without repeats")

    @classmethod
    def build(cls, text: str, *, min_freq: int = 1, pad: bool = False, unk: bool = False) -> Vocab:
        """The characters that occur at least `min_freq` times in `text`."""
        counts = np.bincount(code_points(text))
        kept = np.flatnonzero(counts >= max(min_freq, 1)).astype("<u4")
        if kept.size == 0:
            raise UsageError(f"no character of the text occurs {min_freq} times: lower data.min_freq or give more text")
        return cls(kept.tobytes().decode("utf-32-le", "surrogatepass"), pad, unk)

    def __len__(self) -> int:
        """How many ids there are, special symbols included."""
        return self.offset + len(self.chars)

    @property
    def offset(self) -> int:
        """The id of the first character: how many special symbols stand before it."""
        return int(self.pad) + int(self.unk)

    @property
    def unk_id(self) -> int | None:
        """The id of the unknown symbol, or None."""
        return int(self.pad) if self.unk else None

    @cached_property
    def _ids(self) -> NDArray[np.int32]:
        """Id of every code point up to the largest known one, plus a last entry for those beyond."""
        codes = code_points(self.chars)
        table = np.full(max(int(codes[-1]) + 2, 257), -1, dtype=np.int32)
        table[codes] = np.arange(self.offset, len(self), dtype=np.int32)
        return table

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        """Code point of every id. Padding and unknown read as the replacement character."""
        specials = np.full(self.offset, ord(REPLACEMENT), dtype="<u4")
        return np.concatenate([specials, code_points(self.chars).astype("<u4")])

    def encode(self, text: str, unknown: Unknown | None = None) -> NDArray[np.int32]:
        """Ids of `text`, shape (len(text),) unless characters are skipped.

        `unknown` says what becomes of characters outside the vocabulary: ``"unk"`` (their own
        symbol, if there is one), ``"skip"`` or ``"error"``. By default "unk" where the vocabulary has that symbol.
        Raises UsageError, naming the characters, for "error".
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
        """The text of `ids`; special symbols read as U+FFFD."""
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
