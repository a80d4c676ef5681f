"""`Corpus`: a text and where it came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Files:
    """What was read of the user's files: how many and their bytes, and how many in each encoding but UTF-8.

    `left_out` counts the files that are not text by their kind.
    """

    read: int = 0
    bytes: int = 0
    encodings: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Files) -> Files:
        counts = ((self.encodings, other.encodings), (self.left_out, other.left_out))
        return Files(
            self.read + other.read, self.bytes + other.bytes, *(dict(Counter(a) + Counter(b)) for a, b in counts)
        )

    def describe(self, characters: int) -> str:
        """``14 files, 3.1 MB, 3,012,334 characters, 2 in latin-1, 1 left out (1 pdf)``."""
        size, unit = next(((self.bytes / n, u) for n, u in ((1e6, "MB"), (1e3, "kB")) if self.bytes >= n), (None, ""))
        parts = [f"{self.read:,} file{'s' * (self.read != 1)}", f"{size:.1f} {unit}" if size else f"{self.bytes} bytes"]
        parts += [f"{characters:,} characters", *(f"{n} in {name}" for name, n in sorted(self.encodings.items()))]
        if self.left_out:
            parts.append(f"{sum(self.left_out.values())} left out ({count_kinds(self.left_out)})")
        return ", ".join(parts)


def count_kinds(counts: Mapping[str, int]) -> str:
    """``2 pdf, 1 docx``."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class Corpus:
    """A text, its source, and notices for the user about how it was read.

    `sha256` is the checksum of the text in UTF-8; for a single UTF-8 file, that is the file's own. `extra` are further
    texts to train on (see `mix`), `files` is known of the user's own texts.
    """

    text: str
    source: str
    sha256: str
    notices: tuple[str, ...] = ()
    extra: tuple[Corpus, ...] = ()
    files: Files | None = None


def make_corpus(text: str, source: str, notices: Sequence[str] = (), files: Files | None = None) -> Corpus:
    """A corpus whose checksum is computed here."""
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest(), tuple(notices), files=files)
