"""`Corpus`: a text and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A text, where it came from, and remarks for the user about how it was read.

    `sha256` is of the text in UTF-8, which for one UTF-8 file is the file's own checksum. `extra` are
    further texts to train on, beside the main one (see `mix`).
    """

    text: str
    source: str
    sha256: str
    notices: tuple[str, ...] = ()
    extra: tuple[Corpus, ...] = ()


def make_corpus(text: str, source: str, notices: Sequence[str] = ()) -> Corpus:
    """A corpus with the checksum of its text."""
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest(), tuple(notices))
