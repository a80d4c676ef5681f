"""`Corpus`: a text and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A text, its source, and notices for the user about how it was read.

    `sha256` is the checksum of the text in UTF-8; for a single UTF-8 file, that is the file's own. `extra` are further
    texts to train on (see `mix`).
    """

    text: str
    source: str
    sha256: str
    notices: tuple[str, ...] = ()
    extra: tuple[Corpus, ...] = ()


def make_corpus(text: str, source: str, notices: Sequence[str] = ()) -> Corpus:
    """A corpus whose checksum is computed here."""
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest(), tuple(notices))
